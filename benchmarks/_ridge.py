"""How long do the ridges of a sweep take? 100 fits, 20 repeats of 5 folds, over the contest's 357
images and 7,680 features, or what is asked for.

A fit reads the pooled vectors of its split, chooses strengths and spaces by inner folds, and
predicts what the split holds out. The ridge of an earlier commit takes turns, which reads its
vectors anew in each split and averages raw and log1p; results are compared with ours in that space.
Page cache warm. A part of bench_sweep.
"""

import argparse
import subprocess
import time
from types import ModuleType

import numpy as np
from _bench import ROOT, context, spread

from featurestore.photos.sites import joined_sites
from featurestore.store import FeatureStore
from trainer.heads.reads import vectors_of
from trainer.heads.regressor import Regressor
from trainer.judge.baselines import blank_values, fit_splits
from trainer.loop.grid import SweepConfig
from trainer.loop.memory import keep_freed_memory
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


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--before", default="2918dd0", metavar="REV", help="whose ridge takes turns"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--ridge-images", type=int, default=357, metavar="N")
    parser.add_argument(
        "--ridge-vectors",
        default="cls,mean,std,max,min,gem3",
        metavar="NAME,...",
        help="with more images than features, fits are made by sums",
    )


def measure(options: argparse.Namespace, store: FeatureStore) -> dict:
    """Seconds of all fits by this program and by an earlier ridge, round by round."""
    keep_freed_memory()  # as a sweep does
    path = store.path.with_name("sweep.yaml")
    path.write_text(YAML.format(store=store.path, repeats=options.repeats))
    sweeps = {}
    for space in ("chosen", "average"):
        vectors = options.ridge_vectors.split(",")
        given = SweepConfig.load(path, {"loss.space": space, "head.features": vectors})
        sweeps[space] = prepare_sweep(given, "cpu")
    kind = ridge_of(options.before).KIND
    ways = {
        "now": lambda: fit_all(sweeps["chosen"]),
        "before": lambda: fit_all_before(sweeps["chosen"], kind),
    }

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for number in range(-1, options.rounds):
        for name, fit in ways.items():
            start = time.perf_counter()
            found[name] = fit()
            if number >= 0:  # the round before warms up caches, buffers and kernels
                seconds[name].append(time.perf_counter() - start)

    n_fits = len(sweeps["chosen"].splits)
    for name, values in seconds.items():
        print(f"{name:7} {spread(values)['median']:.2f} s for {n_fits} fits")
    faster = spread(b / n for b, n in zip(seconds["before"], seconds["now"], strict=True))
    print(f"{faster['median']:.2f} times faster, mark {MARK}")
    apart_g = float(np.nanmax(abs(fit_all(sweeps["average"]) - found["before"])))
    print(f"{apart_g:.2g} g at most between predictions in the same space")
    settings = {key: str(value) for key, value in vars(options).items()}
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "fits": n_fits,
        "times_faster": faster,
        "largest_difference_g": apart_g,
        "mark": MARK,
        **context(settings, ["numpy", "scipy", "scikit-learn"]),
    }


def fit_all(sweep: Sweep) -> np.ndarray:
    """(R, N, 5) masses out of fold."""
    _, by_view = fit_splits(
        sweep.data, sweep.folds, sweep.splits, sweep.config.points[0], sweep.views
    )
    return by_view[sweep.views[0]]


def fit_all_before(sweep: Sweep, kind: Regressor) -> np.ndarray:
    """The same as that commit's sweeps did it: vectors are read anew in each split."""
    data = sweep.data
    names = vectors_of(sweep.config.points[0])
    group_N = joined_sites(sweep.folds["site"], data.catalog)
    raw_RNK = blank_values(data, sweep.splits)
    for split in sweep.splits:
        train_N = split.train_N
        x_nF = data.features(names, 0, train_N)
        state = kind.fit(x_nF, data.truth_NK[train_N], group_N[train_N], 0)
        new_MF = data.features(names, sweep.views[0], split.val_N)
        raw_RNK[split.repeat, split.val_N] = kind.predict(state, new_MF)
    return raw_RNK


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
