"""How long do the ridges of a sweep take? 100 fits, 20 repeats of 5 folds, over the contest's 357
images and 7,680 features.

A fit reads the pooled vectors of its split, chooses strengths by inner folds, and predicts what the
split holds out. `--before REV` fits in turn with the ridge of that commit, whose results are
compared too. Page cache warm.
"""

import argparse
import subprocess
import time
from pathlib import Path
from types import ModuleType

import numpy as np
from _bench import ROOT, context, finish, spread, work_folder
from bench_sweep import make_store

from trainer.heads.kinds import ridge
from trainer.judge.baselines import fit_splits
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import Sweep, prepare_sweep

MARK = 5
"""Times faster than the ridge of commit 2918dd0."""
YAML = """
experiment: {{name: bench, seed: 0}}
dataset: {{store: {store}}}
head: {{kind: ridge}}
trainer: {{num_epochs: 1}}
optimization: {{lr: 1e-3, weight_decay: 0}}
cv: {{n_folds: 5, repeats: {repeats}}}
inference: {{tta_indices: [0]}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=357)
    parser.add_argument("--width", type=int, default=1280, help="channels of each of 6 vectors")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", metavar="REV", help="a commit whose ridge takes turns")
    parser.add_argument("--dir", type=Path, help="where the store goes for the time being")
    options = parser.parse_args()
    options.grid = 2
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    store = make_store(options, folder / "features.h5")
    path = folder / "sweep.yaml"
    path.write_text(YAML.format(store=store.path, repeats=options.repeats))
    sweep = prepare_sweep(SweepConfig.load(path), "cpu")
    ridges = {"now": ridge.KIND}
    if options.before:
        ridges["before"] = ridge_of(options.before).KIND

    seconds: dict[str, list[float]] = {name: [] for name in ridges}
    found = {}
    for number in range(-1, options.rounds):
        for name, kind in ridges.items():
            start = time.perf_counter()
            found[name] = fit_all(sweep, kind)
            if number >= 0:  # the round before warms up caches, buffers and kernels
                seconds[name].append(time.perf_counter() - start)

    n_fits = len(sweep.splits)
    for name, values in seconds.items():
        print(f"{name:7} {spread(values)['median']:.2f} s for {n_fits} fits")
    result = {"seconds": {name: spread(v) for name, v in seconds.items()}, "fits": n_fits}
    if options.before:
        pairs = zip(seconds["before"], seconds["now"], strict=True)
        result["times_faster"] = spread(before / now for before, now in pairs)
        result["largest_difference_g"] = float(np.nanmax(abs(found["now"] - found["before"])))
        print(f"{result['times_faster']['median']:.2f} times faster, mark {MARK}")
    settings = {key: str(value) for key, value in vars(options).items()}
    packages = ["numpy", "scipy", "scikit-learn"]
    return {**result, "mark": MARK, **context(settings, packages)}


def fit_all(sweep: Sweep, kind: ridge.Ridge) -> np.ndarray:
    """(R, N, 5) masses out of fold."""
    ours, ridge.KIND = ridge.KIND, kind
    try:
        _, by_view = fit_splits(
            sweep.data, sweep.folds, sweep.splits, sweep.config.points[0], sweep.views
        )
    finally:
        ridge.KIND = ours
    return by_view[sweep.views[0]]


def ridge_of(revision: str) -> ModuleType:
    """The module as that commit has it."""
    file = "trainer/heads/kinds/ridge.py"
    text = subprocess.run(
        ["git", "-C", str(ROOT), "show", f"{revision}:{file}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    module = ModuleType(f"ridge_of_{revision}")
    exec(compile(text, f"{revision}:{file}", "exec"), module.__dict__)
    return module


if __name__ == "__main__":
    main()
