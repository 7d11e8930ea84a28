"""What does it cost to cut a build into parts? P13: seconds a part beyond its images.

One process builds the same photographs whole, and in parts of one photograph each, with a backbone
that is loaded before. What parts take longer, shared out over them, is the overhead of a part: its
plan read, its store laid out, locked, synced, its receipt, its name. Both take turns; page cache
warm. CPU seconds are this process's, which busy neighbours change little.
"""

import argparse
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from _bench import add_before, context, finish, measured_beside, spread, work_folder

from featurestore.backbone.demo.drawing import draw_pasture
from featurestore.backbone.load import load_backbone
from featurestore.parts.build import _loaded, part_task
from featurestore.parts.merge import merge_parts
from featurestore.parts.plan import PartPlan, plan_parts
from featurestore.photos.views import choose_views
from featurestore.write import prepare
from featurestore.write.build import build_store
from featurestore.write.config import BuildConfig

P13_MARK = 0.050
BACKBONE = "vit_tiny_patch16_224"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where data and stores go for the time being")
    add_before(parser)
    options = parser.parse_args()
    if compared := measured_beside(Path(__file__), options):
        finish(compared)
        return
    warnings.filterwarnings("ignore", message=".*random weights")
    torch.set_num_threads(1)
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Rounds of one build whole and in parts, of a store with patches and of a pooled one."""
    draw_pasture(folder / "data", n_train=options.images, n_test=1)
    backbone = load_backbone(
        BACKBONE,
        "random",
        crop="halves",
        image_size=options.image_size,
        views=choose_views("1"),
        device="cpu",
    )
    seconds: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}

    def timed(name: str, call) -> tuple[float, float]:
        start, used = time.perf_counter(), time.process_time()
        call()
        took = time.perf_counter() - start, time.process_time() - used
        seconds.setdefault(name, []).append(took[0])
        cpu.setdefault(name, []).append(took[1])
        return took

    n = options.images

    def round_of(tokens: str, place: Path) -> PartPlan:
        config = BuildConfig(
            data=folder / "data",
            out=place / "whole.zarr",
            backbone=BACKBONE,
            image_size=options.image_size,
            views="1",
            weights="random",
            device="cpu",
            precision="fp32",
            tokens=tokens,
            save_weights=False,
        )
        place.mkdir()
        with patch.object(prepare, "_load", lambda *_: backbone):
            whole = timed(f"{tokens} whole", lambda: build_store(config, progress=False))
            plan = plan_parts(config, options.images, place / "P")
        _give(plan, backbone)
        parts = timed(f"{tokens} parts", lambda: build_parts(plan))
        for kept, of_parts, of_whole in zip((seconds, cpu), parts, whole, strict=True):
            kept.setdefault(f"{tokens} overhead a part", []).append((of_parts - of_whole) / n)
        return plan

    def merge_of(tokens: str, plan: PartPlan) -> None:
        merge = timed(f"{tokens} merge", lambda: merge_parts(plan, merged_of(plan), remove=True))
        for kept, took in zip((seconds, cpu), merge, strict=True):
            kept.setdefault(f"{tokens} merge a part", []).append(took / n)

    plans = []
    for number in range(options.rounds + 1):
        for tokens in ("all", "pooled"):
            plans.append((tokens, round_of(tokens, folder / f"{number}{tokens}")))
        if number == 0:  # warm-up
            seconds.clear()
            cpu.clear()
    # last: for a while after parts are removed the kernel makes new files at half the pace
    for _, plan in plans[:2]:  # the warm-up's, of both kinds
        merge_parts(plan, merged_of(plan), remove=True)
    for tokens, plan in plans[2:]:
        merge_of(tokens, plan)

    for name, values in seconds.items():
        print(
            f"{name:24} {1e3 * spread(values)['median']:8.1f} ms, "
            f"{1e3 * spread(cpu[name])['median']:8.1f} ms of a core"
        )
    print(f"mark of the overhead a part: {1e3 * P13_MARK:.0f} ms")
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "cpu_seconds": {name: spread(values) for name, values in cpu.items()},
        **context(vars(options) | {"dir": str(options.dir)}, ["torch", "timm", "zarr"]),
    }


def _give(plan: PartPlan, backbone: object) -> None:
    """Have the parts of a plan use a backbone that is loaded, as all but a worker's first do."""
    _loaded.cache_clear()
    with patch("featurestore.parts.build.plan_backbone", lambda *_: backbone):
        _loaded(plan.folder, plan.id, "cpu")


def merged_of(plan: PartPlan) -> Path:
    return plan.folder.with_name("merged.zarr")


def build_parts(plan: PartPlan) -> None:
    for part in range(plan.n_parts):
        part_task(str(plan.folder), part, "cpu")


if __name__ == "__main__":
    main()
