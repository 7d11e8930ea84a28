"""What does `store build` cost beyond the backbone? P6: its wall time vs the bare forward over the
same crops.

The model is loaded once, before; everything else of a build is in its time: CSV, header checks,
decoding, crops, views, pooling, checksums, writing, syncing. The forward runs on crops that are
ready in memory. Both take turns; page cache warm.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from _bench import add_before, context, finish, measured_beside, spread, work_folder
from _forward import add_options, forward, ready_crops, timed

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.demo.drawing import draw_pasture
from featurestore.backbone.load import load_backbone
from featurestore.photos.catalog import read_catalog
from featurestore.photos.find import find_photographs
from featurestore.photos.views import choose_views
from featurestore.write import prepare
from featurestore.write.build import build_store
from featurestore.write.config import BuildConfig

P6_MARK = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--views", default="2")
    add_before(parser)
    options = parser.parse_args()
    if compared := measured_beside(Path(__file__), options):
        finish(compared)
        return
    warnings.filterwarnings("ignore", message=".*random weights")
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Rounds of bare forward, then a build of each format; the ratio of each to its own round's
    forward."""
    draw_pasture(folder / "data", n_train=options.images, n_test=1)
    backbone = load_backbone(
        options.backbone,
        "random",
        crop="halves",
        image_size=options.image_size,
        views=choose_views(options.views),
        device=options.device,
        precision=options.precision,
    )
    crops = ready_crops(backbone, photographs(folder / "data"), backbone.spec.views)
    forward(backbone, crops[:1])  # warm-up: the first call plans its kernels
    times: dict[str, list[float]] = {"forward": [], "h5": [], "zarr": []}
    for number in range(options.rounds):
        times["forward"].append(timed(lambda: forward(backbone, crops)))
        for suffix in ("h5", "zarr"):
            out = folder / f"{number}.{suffix}"
            times[suffix].append(
                timed(lambda out=out: build_all(options, backbone, folder / "data", out))
            )
    ratios = {
        suffix: spread(b / f for b, f in zip(times[suffix], times["forward"], strict=True))
        for suffix in ("h5", "zarr")
    }
    for name, values in times.items():
        print(
            f"{name:8} {spread(values)['median']:.3f} s   {options.images} photographs x "
            f"{options.views} views x 2 halves"
        )
    print(
        {suffix: ratio["median"] for suffix, ratio in ratios.items()},
        f"x the bare forward; mark {P6_MARK}",
    )
    config = {key: str(value) for key, value in vars(options).items()}
    return {
        "P6": ratios,
        "seconds": {name: spread(values) for name, values in times.items()},
        "mark": P6_MARK,
        "threads": torch.get_num_threads(),
        **context(config, ["torch", "timm", "numpy", "h5py", "zarr"]),
    }


def photographs(data: Path) -> Iterator[tuple[str, Path]]:
    frame = read_catalog(data / "train.csv")
    return zip(frame["image_id"], find_photographs(frame, data), strict=True)


def build_all(options: argparse.Namespace, backbone: Backbone, data: Path, out: Path) -> None:
    config = BuildConfig(
        data=data,
        out=out,
        backbone=options.backbone,
        image_size=options.image_size,
        views=options.views,
        weights="random",
        device=options.device,
        precision=options.precision,
    )
    with patch.object(prepare, "_load", lambda *_: backbone):
        build_store(config, progress=False)


if __name__ == "__main__":
    main()
