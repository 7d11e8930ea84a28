"""What bench_build and bench_predict are compared with: the bare backbone forward over crops that
are ready in memory."""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from featurestore.backbone.backbone import Backbone
from featurestore.format.spec import ViewSpec
from featurestore.photos.decode import decode
from featurestore.photos.views import make_view, normalise, view_amounts


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which backbone, on what, how often."""
    parser.add_argument("--backbone", default="vit_small_patch16_dinov3")
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--dir", type=Path, help="where data, stores and runs go for the time being"
    )


def ready_crops(
    backbone: Backbone, photographs: Iterable[tuple[str, Path]], views: Sequence[ViewSpec]
) -> list[torch.Tensor]:
    """Every view of every photograph, (image_id, path), as the model takes it."""
    crops = []
    for image_id, path in photographs:
        x = decode(path, backbone.crop).tiles_THW3.permute(0, 3, 1, 2).float().div(255)
        for view in views:
            made = make_view(x, view, view_amounts(view, 0, image_id))
            crops.append(
                normalise(made, backbone.spec.mean, backbone.spec.std).to(
                    backbone.device, backbone.dtype
                )
            )
    return crops


@torch.inference_mode()
def forward(backbone: Backbone, crops: list[torch.Tensor]) -> None:
    for x in crops:
        backbone.model.forward_features(x)
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
