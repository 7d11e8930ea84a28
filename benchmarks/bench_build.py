"""What does `store build` cost beyond the backbone? P6: its wall time vs the bare forward over the same crops.

The model is loaded once, before; everything else of a build is in its time: CSV, header checks, decoding, crops, views, pooling,
checksums, writing, syncing. The forward runs on crops that are ready in memory. Both take turns; page cache warm.
"""

import argparse
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from _bench import context, finish, spread, work_folder

from featurestore import build
from featurestore.backbone import Backbone, load_backbone
from featurestore.catalog import find_photographs, read_catalog
from featurestore.decode import decode
from featurestore.demo import draw_pasture
from featurestore.views import choose_views, make_view, normalise, view_amounts

P6_MARK = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_dinov3")
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--views", default="2")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where data and stores go for the time being")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*random weights")
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Rounds of bare forward, then a build of each format; the ratio of each to its own round's forward."""
    draw_pasture(folder / "data", n_train=options.images, n_test=1)
    backbone = load_backbone(options.backbone, "random", crop="halves", image_size=options.image_size,
                             views=choose_views(options.views), device=options.device, precision=options.precision)
    crops = ready_crops(backbone, folder / "data")
    forward(backbone, crops[:1])  # warm-up: the first call plans its kernels
    times: dict[str, list[float]] = {"forward": [], "h5": [], "zarr": []}
    for number in range(options.rounds):
        times["forward"].append(timed(lambda: forward(backbone, crops)))
        for suffix in ("h5", "zarr"):
            out = folder / f"{number}.{suffix}"
            times[suffix].append(timed(lambda out=out: build_all(options, backbone, folder / "data", out)))
    ratios = {suffix: spread(b / f for b, f in zip(times[suffix], times["forward"], strict=True)) for suffix in ("h5", "zarr")}
    for name, values in times.items():
        print(f"{name:8} {spread(values)['median']:.3f} s   {options.images} photographs x {options.views} views x 2 halves")
    print({suffix: ratio["median"] for suffix, ratio in ratios.items()}, f"x the bare forward; mark {P6_MARK}")
    config = {key: str(value) for key, value in vars(options).items()}
    return {"P6": ratios, "seconds": {name: spread(values) for name, values in times.items()}, "mark": P6_MARK,
            "threads": torch.get_num_threads(), **context(config, ["torch", "timm", "numpy", "h5py", "zarr"])}


def ready_crops(backbone: Backbone, data: Path) -> list[torch.Tensor]:
    """Every view of every photograph as the model takes it."""
    frame = read_catalog(data / "train.csv")
    crops = []
    for image_id, path in zip(frame["image_id"], find_photographs(frame, data), strict=True):
        x = decode(path, backbone.crop).tiles_THW3.permute(0, 3, 1, 2).float().div(255)
        for view in backbone.spec.views:
            made = make_view(x, view, view_amounts(view, 0, image_id))
            crops.append(normalise(made, backbone.spec.mean, backbone.spec.std).to(backbone.device, backbone.dtype))
    return crops


@torch.inference_mode()
def forward(backbone: Backbone, crops: list[torch.Tensor]) -> None:
    for x in crops:
        backbone.model.forward_features(x)
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()


def build_all(options: argparse.Namespace, backbone: Backbone, data: Path, out: Path) -> None:
    config = build.BuildConfig(data=data, out=out, backbone=options.backbone, image_size=options.image_size, views=options.views,
                               weights="random", device=options.device, precision=options.precision)
    with patch.object(build, "_load", lambda *_: backbone):
        build.build_store(config, progress=False)


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
