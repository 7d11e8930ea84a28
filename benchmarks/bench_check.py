"""What does a sweep pay for comparing each row with its checksum at first use? Whole sweeps with
and without, in turns.

Full-size rows of one view, page cache warm, every sweep in a store that is opened anew. Ten epochs
of one view read each row as often as 200 epochs of 20 views do, so the share is that of a sweep at
full size. The sweeps: 30 heads over patch tokens, and a ridge, which reads vectors alone (of a row
in HDF5 the check reads the patch tokens all the same, in Zarr their own checksum).
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from _bench import context, finish, spread, work_folder
from bench_sweep import make_store

from featurestore import FeatureStore
from trainer.loop.grid import SweepConfig
from trainer.loop.sweep import run_sweep

MARK = 0.05
YAML = """
experiment: {{name: bench, seed: 0}}
dataset: {{store: {store}}}
head: {{kind: {kind}}}
trainer: {{num_epochs: {epochs}, batch_size: 32}}
optimization: {{lr: {lr}, weight_decay: {decay}}}
inference: {{tta_indices: [0]}}
"""
SWEEPS = {
    "30 heads": {"kind": "cls_gating", "lr": "[2e-3, 1e-3, 1e-4]", "decay": "[1e-2, 1e-3]"},
    "ridge": {"kind": "ridge", "lr": "1e-3", "decay": "1e-2"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--grid", type=int, default=60, help="patches on a side")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dir", type=Path, help="where the stores go for the time being")
    options = parser.parse_args()
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    found = {}
    for suffix in ("h5", "zarr"):
        store = make_store(options, folder / f"features.{suffix}").path
        for name, settings in SWEEPS.items():
            path = folder / "sweep.yaml"
            path.write_text(YAML.format(store=store, epochs=options.epochs, **settings))
            found[f"{name}, {suffix}"] = with_and_without(SweepConfig.load(path), folder, options)
    for name, each in found.items():
        print(
            f"{name}: {100 * each['share']['median']:.2f} % of the sweep, "
            f"{100 * each['cpu_share']['median']:.2f} % of its processor time"
        )
    print(f"mark {100 * MARK:g} %, of 30 heads")
    settings = {key: str(value) for key, value in vars(options).items()}
    return {
        "sweeps": found,
        "mark": MARK,
        "threads": torch.get_num_threads(),
        **context(settings, ["torch", "numpy", "h5py", "google-crc32c"]),
    }


def with_and_without(config: SweepConfig, folder: Path, options: argparse.Namespace) -> dict:
    """Seconds of the sweep with and without the check, and the share that it takes, round by round.

    On a machine that others use, the processor's time says more: `cpu_share` is that of the check
    in the whole sweep.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    cpu_shares: list[float] = []
    for number in range(-1, options.rounds):
        for check in (True, False) if number % 2 else (False, True):
            start, cpu = time.perf_counter(), time.process_time()
            with timed_checks() as checks:
                run_sweep(config, folder / "runs", options.device, progress=False, check=check)
            if number < 0:  # the round before warms up caches, buffers and kernels
                continue
            seconds[check].append(time.perf_counter() - start)
            if check:
                cpu_shares.append(sum(checks) / (time.process_time() - cpu))
    shares = [a / b - 1 for a, b in zip(seconds[True], seconds[False], strict=True)]
    return {
        "with_s": spread(seconds[True]),
        "without_s": spread(seconds[False]),
        "share": spread(shares),
        "cpu_share": spread(cpu_shares),
    }


@contextmanager
def timed_checks() -> Iterator[list[float]]:
    """Seconds of the processor that each call of `check_rows` in the block took."""
    taken, check_rows = [], FeatureStore.check_rows

    def timed(*arguments: object, **options: object) -> None:
        start = time.thread_time()
        check_rows(*arguments, **options)
        taken.append(time.thread_time() - start)

    FeatureStore.check_rows = timed
    try:
        yield taken
    finally:
        FeatureStore.check_rows = check_rows


if __name__ == "__main__":
    main()
