"""An earlier experiment's npz files, made of photographs with the demo's backbone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.load import load_backbone
from featurestore.photos.decode import decode
from featurestore.photos.views import choose_views

MODEL = "vit_demo_patch16_dinov3"


def demo_backbone(
    size: int, keep_in: Path, views: str = "plain,hflip", crop: str = "squash"
) -> tuple[Backbone, Path]:
    """The demo's backbone on squares, and the file of its weights."""
    backbone = load_backbone(
        MODEL, None, crop=crop, image_size=size, views=choose_views(views), keep_in=keep_in
    )
    return backbone, next(keep_in.glob("*.safetensors"))


def write_tokens(folder: Path, photographs: Sequence[Path], backbone: Backbone) -> Path:
    """`{image_id}.npz` of every photograph, as earlier experiments kept them."""
    folder.mkdir()
    for photograph in photographs:
        tiles = decode(photograph, backbone.crop).tiles_THW3
        arrays = {}
        for v, view in enumerate(backbone.spec.views):
            cls_TD, patches_TPD = backbone.tokens(tiles, photograph.stem, view)
            arrays |= {f"cls_{v}": cls_TD[0].float(), f"patches_{v}": patches_TPD[0].float()}
        np.savez_compressed(folder / photograph.stem, **arrays)
    return folder
