"""Named views of a tile, the same for building and for test-time augmentation.

A view acts on a tile after the crop, so tile t is always the same part of the photograph. Its
amounts are keyed by (store seed, image_id, view name): a view can be made again, alone, anywhere.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from featurestore.format.spec import ViewSpec
from featurestore.photos.view_names import (
    COLOURS,
    FLIPS,
    chosen_names,
    first_tta_names,
    tta_names,
    view_name,
)


def _view(flip: str, colour: str, transpose: bool = False) -> ViewSpec:
    hflip, vflip = FLIPS[flip]
    return ViewSpec(
        name=view_name(flip, colour, transpose),
        hflip=hflip,
        vflip=vflip,
        transpose=transpose,
        colour=colour or None,
        amounts=COLOURS[colour],
    )


VIEWS = tuple(_view(flip, colour) for colour in COLOURS for flip in FLIPS)
"""The twenty views of the experiment this project starts from; the four plain flips come first."""
TRANSPOSES = tuple(_view(flip, "", transpose=True) for flip in FLIPS)
"""The other four symmetries of a square, for prediction with eight views."""
_BY_NAME = {view.name: view for view in VIEWS + TRANSPOSES}


def choose_views(text: str) -> tuple[ViewSpec, ...]:
    """Views from what a user types, as `chosen_names` reads it."""
    return tuple(_BY_NAME[name] for name in chosen_names(text))


def tta_views(n: int) -> tuple[ViewSpec, ...]:
    """Views of test-time augmentation, by their number, as in `first_tta_names`."""
    return tuple(_BY_NAME[name] for name in first_tta_names(n))


def chosen_tta(tta: int | str | Sequence[ViewSpec]) -> tuple[ViewSpec, ...]:
    """Views of test-time augmentation from a number or from names, as `tta_names` reads them."""
    if not isinstance(tta, int | str):
        return tuple(tta)
    return tuple(_BY_NAME[name] for name in tta_names(tta))


def view_amounts(view: ViewSpec, seed: int, image_id: str) -> list[float]:
    """The view's drawn amounts, uniform in [-amount, amount] for each."""
    # by its address alone: a view is the same in another order, on another machine, in predict
    key = hashlib.sha256(f"{seed}/{image_id}/{view.name}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(key, np.uint32))
    return [float(rng.uniform(-amount, amount)) for amount in view.amounts]


def make_view(tiles_T3HW: Tensor, view: ViewSpec, amounts: list[float]) -> Tensor:
    """One view of a photograph's tiles.

    Parameters
    ----------
    tiles_T3HW : (T, 3, H, W) float32 in [0, 1], RGB; not written to.
    amounts : what `view_amounts` drew.

    Returns (T, 3, H, W) float32 in [0, 1], with H and W exchanged by a transpose.
    """
    x = tiles_T3HW
    if view.colour:
        x = _COLOUR_CHANGES[view.colour](x, *amounts)

    # transposed before it is flipped, by the format: the other way round is another symmetry
    if view.transpose:
        x = x.transpose(-1, -2)
    flips = []
    if view.hflip:
        flips.append(-1)
    if view.vflip:
        flips.append(-2)
    return x.flip(flips) if flips else x


def shift_hsv(x: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    """Add to hue (of a full circle), saturation and value, both clamped to [0, 1]; gray stays gray.

    With V the greatest of R, G, B, a channel is V (1 - S k), k in [0, 1] set by the hue alone
    (Smith 1978), so S and V can be shifted without leaving RGB.
    """
    x = tv.adjust_hue(x, hue)
    v = x.amax(-3, keepdim=True)
    chroma = v - x.amin(-3, keepdim=True)
    k = (v - x) / chroma.clamp_min(1e-6)  # of gray 0 / 1e-6: no hue comes up
    s = (chroma / v.clamp_min(1e-6) + saturation).clamp(0, 1)
    return (v + value).clamp(0, 1) * (1 - s * k)


# amounts are drawn around 0, and torchvision's factors and exponents change nothing at 1
_COLOUR_CHANGES = {
    "brightness": lambda x, amount: tv.adjust_brightness(x, 1 + amount),
    "contrast": lambda x, amount: tv.adjust_contrast(x, 1 + amount),
    "hsv": shift_hsv,
    "gamma": lambda x, amount: tv.adjust_gamma(x, 1 + amount),
}


def normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(..., 3, H, W) from [0, 1] to what the backbone was trained on."""
    return (x - _on(x.device, mean)) / _on(x.device, std)


@lru_cache(maxsize=16)
def _on(device: torch.device, values: tuple[float, ...]) -> Tensor:
    """(3, 1, 1): made once, since the host waits for each copy to a device."""
    return torch.tensor(values, device=device).view(3, 1, 1)
