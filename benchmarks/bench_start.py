"""How soon does a command begin its work? Processor and wall time of whole commands on the demo,
each beside the bare import of the library that it needs.

Every command runs in a process of its own, in turns with the imports, and has little to do: a plan
times some steps and a fit, building and predicting take one photograph. Page cache warm. On a
machine that others use, the processor's time (user and system) says more than the wall's.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from _bench import ROOT, add_before, context, finish, spread, work_folder

from featurestore.backbone.demo.drawing import draw_pasture
from featurestore.write.build import build_store
from predictor.demo import BACKBONE, CONFIG, IMAGE_SIZE, VIEWS, demo_store
from trainer.loop.chosen import best_run
from trainer.loop.grid import SweepConfig
from trainer.loop.sweep import run_sweep

N_TRAIN = 120  # photographs of the demo
TRAIN_MARK = 1.3
"""Of `train`, times `import torch`."""
TIMM_MARK_S = 0.7
"""Of `store build` and `predict`, seconds more than `import timm`."""
LOOK_MARK_S = 0.4
"""Of `store info` and `store stats`, seconds."""

IMPORTS = {
    "import torch": ["-c", "import torch"],
    "import timm": ["-c", "import timm"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where data, store and runs go for the time being")
    add_before(parser)
    options = parser.parse_args()
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Medians of every command, and what it takes beside the import of the same round."""
    run = make_demo(folder)
    checkouts = {"now": ROOT}
    if options.before:
        checkouts["before"] = options.before.resolve()

    cpu_s: dict[str, list[float]] = {}
    wall_s: dict[str, list[float]] = {}
    for number in range(-1, options.rounds):  # the first round fills the page cache
        for name, root, words in turns(checkouts, commands(folder, run)):
            shutil.rmtree(folder / "made", ignore_errors=True)  # each has the same to do
            (folder / "made").mkdir()
            cpu, wall = timed(root, words)
            if number >= 0:
                cpu_s.setdefault(name, []).append(cpu)
                wall_s.setdefault(name, []).append(wall)

    for name, values in cpu_s.items():
        print(
            f"{name:20} {spread(values)['median']:6.3f} s of the processor, "
            f"{spread(wall_s[name])['median']:6.3f} s of the wall clock"
        )
    found = marks(cpu_s)
    for name, each in found.items():
        print(f"{name}: {each['median']:.3g}, mark {each['mark']}")
    config = {key: str(value) for key, value in vars(options).items()}
    return {
        "marks": found,
        "cpu_seconds": {name: spread(values) for name, values in cpu_s.items()},
        "wall_seconds": {name: spread(values) for name, values in wall_s.items()},
        **context(config, ["torch", "timm", "torchvision", "pandas", "pydantic", "h5py"]),
    }


def make_demo(folder: Path) -> Path:
    """The demo's photographs, store and config, and a run to predict with, which is returned."""
    draw_pasture(folder / "data", n_train=N_TRAIN, n_test=1)
    build_store(demo_store(folder / "data", folder / "features.h5", 0, IMAGE_SIZE, VIEWS))
    (folder / "demo.yaml").write_text(CONFIG)
    # one photograph has a row for each of its targets
    head, *rows = (folder / "data/train.csv").read_text().splitlines(keepends=True)
    first = rows[0].split("__")[0]
    of_first = [row for row in rows if row.startswith(f"{first}__")]
    (folder / "one.csv").write_text("".join([head, *of_first]))

    settings = {"dataset.store": folder / "features.h5", "trainer.num_epochs": 1}
    config = SweepConfig.load(folder / "demo.yaml", settings)
    return best_run(run_sweep(config, folder / "runs", "cpu", progress=False).path)


def commands(folder: Path, run: Path) -> dict[str, list[str | Path]]:
    """Each command's words, by name."""
    store = folder / "features.h5"
    data = folder / "data"
    build = ["store", "build", "--data", data, "--csv", folder / "one.csv"]
    build += ["--backbone", BACKBONE, "--image-size", str(IMAGE_SIZE), "--views", "1"]
    build += ["--precision", "fp32", "--device", "cpu", "--out", folder / "made/one.h5"]
    predict = ["predict", "--data", data, "--run", run, "--device", "cpu"]
    predict += ["--out", folder / "made/one.csv"]
    return {
        "train --plan": ["train", "--plan", "--config", folder / "demo.yaml", "--store", store],
        "store build": build,
        "predict": predict,
        "store info": ["store", "info", store],
        "store stats": ["store", "stats", store],
    }


def turns(
    checkouts: dict[str, Path], words: dict[str, list[str | Path]]
) -> list[tuple[str, Path, list[str | Path]]]:
    """Name, checkout and Python's arguments of each process of a round, in order."""
    found = [(name, ROOT, arguments) for name, arguments in IMPORTS.items()]
    for name, arguments in words.items():
        for which, root in checkouts.items():
            label = name if which == "now" else f"{name}, {which}"
            found.append((label, root, [root / "cli.py", *arguments]))
    return found


def timed(root: Path, words: list[str | Path]) -> tuple[float, float]:
    """Seconds of the processor and of the wall clock that a process takes from its start to its
    end."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    told = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{words}: exit code {process.returncode}: {told.decode()}")
    return used.ru_utime + used.ru_stime, wall


def marks(cpu_s: dict[str, list[float]]) -> dict[str, dict]:
    """What is to be reached, round by round, of the processor's time."""
    found = {}
    pairs = zip(cpu_s["train --plan"], cpu_s["import torch"], strict=True)
    times = spread(command / bare for command, bare in pairs)
    found["train --plan, times import torch"] = times | {"mark": TRAIN_MARK}
    for name in ("store build", "predict"):
        pairs = zip(cpu_s[name], cpu_s["import timm"], strict=True)
        more = spread(command - bare for command, bare in pairs)
        found[f"{name}, seconds more than import timm"] = more | {"mark": TIMM_MARK_S}
    for name in ("store info", "store stats"):
        found[f"{name}, seconds"] = spread(cpu_s[name]) | {"mark": LOOK_MARK_S}
    return found


if __name__ == "__main__":
    main()
