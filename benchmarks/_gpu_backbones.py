"""Backbones on a GPU, parts of gpu_day.py: building a store, and predicting."""

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import bench_predict
import pandas as pd
import torch
from _bench import finish
from _gpu_day import Day, peak
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.demo.drawing import draw_pasture
from featurestore.photos.catalog import read_catalog
from featurestore.write import build as building
from featurestore.write.build import build_store
from featurestore.write.config import BuildConfig

P11_MARK = 0.55


def build(day: Day, which: str) -> dict:
    """P11: `store build` but for loading, as a share of the measured bf16 peak."""
    asked = day.size.builds[which]
    data = photographs(day, asked.photographs)
    config = BuildConfig(
        data=data,
        out=day.folder / f"{which}.h5",
        backbone=asked.backbone,
        image_size=asked.image_size,
        views=str(asked.views),
        weights="random",
        device=day.device,
        save_weights=False,
    )
    took_s: list[float] = []
    backbones: list[Backbone] = []
    build_images = building.build_images

    def timed(backbone: Backbone, *arguments, **options) -> None:
        day.wait()
        start = time.perf_counter()
        build_images(backbone, *arguments, **options)
        day.wait()
        took_s.append(time.perf_counter() - start)
        backbones.append(backbone)

    with patch.object(building, "build_images", timed):
        build_store(config, progress=False)
    (seconds,), (backbone,) = took_s, backbones
    config.out.unlink()

    n_tiles = asked.photographs * asked.views * backbone.spec.n_tiles
    tile_flop = flop_of_a_tile(backbone)
    peak_tflops = peak(day, torch.bfloat16)
    tflops = tile_flop * n_tiles / seconds / 1e12
    told = [
        f"{asked.photographs} photographs x {asked.views} views in {seconds:.2f} s: "
        f"{n_tiles / seconds:.1f} tiles/s, {tflops:.3g} TFLOP/s = {tflops / peak_tflops:.2f} of "
        f"the bf16 peak of {peak_tflops:.4g} (mark {P11_MARK})"
    ]
    found = {
        "told": told,
        "share_of_peak": round(tflops / peak_tflops, 4),
        "mark": P11_MARK,
        "seconds": round(seconds, 3),
        "tiles_a_second": round(n_tiles / seconds, 2),
        "gflop_a_tile": round(tile_flop / 1e9, 3),
        "tflops": round(tflops, 3),
        "bf16_peak_tflops": peak_tflops,
        "precision": backbone.precision,
        "batch": backbone.batch,
    }
    finish(found)  # should time run out over the bare forwards
    alone = forwards(day, backbone, tile_flop, sorted({backbone.batch, 16, 64}))
    told.append(
        f"{backbone.precision}, batches of {backbone.batch}; the bare forward in batches of "
        + ", ".join(f"{n}: {rate / peak_tflops:.2f}" for n, rate in alone.items())
    )
    return found | {"forward_tflops": alone}


def photographs(day: Day, n: int) -> Path:
    """A data folder of n photographs of the contest's size, a few of them again and again."""
    drawn = day.folder / "drawn"
    if not drawn.exists():
        draw_pasture(drawn, n_train=16, n_test=1)
        for path in drawn.glob("train/*.jpg"):
            with Image.open(path) as picture:
                larger = picture.resize(day.size.photograph, Image.Resampling.BICUBIC)
            larger.save(path, quality=90)
    data = day.folder / f"data{n}"
    if data.exists():
        return data
    (data / "train").mkdir(parents=True)
    catalog = read_catalog(drawn / "train.csv")
    rows = []
    for i in range(n):
        row = catalog.iloc[i % len(catalog)].to_dict()
        (data / "train" / f"ID{i}.jpg").hardlink_to(drawn / row["path"])
        rows.append({"image_path": f"train/ID{i}.jpg", "mass_g": float(i)})
    pd.DataFrame(rows).to_csv(data / "train.csv", index=False)
    return data


def tiles(backbone: Backbone, n: int) -> Tensor:
    size = n, 3, backbone.spec.tile_height, backbone.spec.tile_width
    return torch.randn(size, device=backbone.device).to(backbone.dtype)


@torch.inference_mode()
def flop_of_a_tile(backbone: Backbone) -> int:
    """Of products in the forward pass; attention as plain products, which any device counts."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backbone.model.forward_features(tiles(backbone, 1))
    return counter.get_total_flops()


@torch.inference_mode()
def forwards(
    day: Day, backbone: Backbone, tile_flop: int, batches: Sequence[int]
) -> dict[int, float]:
    """TFLOP/s of the bare forward pass, by tiles at once; without those that do not fit."""
    found = {}
    for n in batches:
        x_B3HW = tiles(backbone, n)
        try:
            rate = day.rate(lambda x=x_B3HW: backbone.model.forward_features(x), 1.0)
        except torch.OutOfMemoryError:
            break
        found[n] = round(n * tile_flop * rate / 1e12, 3)
    return found


def predict(day: Day) -> dict:
    """P7: `predict` with 30 heads beside the bare forward over the same crops."""
    asked = day.size.predicted
    options = argparse.Namespace(
        backbone=asked.backbone,
        image_size=asked.image_size,
        images=asked.photographs,
        precision="auto",
        device=day.device,
        kind="cls_gating",
        repeats=6,
        tta=asked.views,
        rounds=3,
    )
    warnings.filterwarnings("ignore", message=".*random weights")
    (day.folder / "predict").mkdir()
    found = bench_predict.measure(options, day.folder / "predict")
    seconds = found["seconds"]["predict"]["median"]
    told = (
        f"{asked.photographs} photographs x {asked.views} views by {found['heads']} heads in "
        f"{seconds:.2f} s: {asked.photographs / seconds:.1f} photographs/s, "
        f"{found['P7']['median']:.2f} x the bare forward (mark {found['mark']})"
    )
    return {"told": [told], "P7": found["P7"], "mark": found["mark"], "seconds": found["seconds"]}
