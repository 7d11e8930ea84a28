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

from featurestore.errors import InputError
from featurestore.format.spec import ViewSpec

FLIPS = {"": (False, False), "hflip": (True, False), "vflip": (False, True), "hvflip": (True, True)}
COLOURS = {
    None: (),
    "brightness": (0.2,),  # factor 1 +- 0.2
    "contrast": (0.2,),
    "hsv": (10 / 180, 20 / 255, 20 / 255),  # added to hue (of a full circle), saturation and value
    "gamma": (0.2,),  # exponent 1 +- 0.2
}


def _view(flip: str, colour: str | None, transpose: bool = False) -> ViewSpec:
    parts = ("transpose" if transpose else "", flip, colour or "")
    name = "_".join(part for part in parts if part) or "plain"
    hflip, vflip = FLIPS[flip]
    return ViewSpec(
        name=name,
        hflip=hflip,
        vflip=vflip,
        transpose=transpose,
        colour=colour,
        amounts=COLOURS[colour],
    )


VIEWS = tuple(_view(flip, colour) for colour in COLOURS for flip in FLIPS)
"""The twenty views of the experiment this project starts from; the four plain flips come first."""
TRANSPOSES = tuple(_view(flip, None, transpose=True) for flip in FLIPS)
"""The other four symmetries of a square, for prediction with eight views."""


def choose_views(text: str) -> tuple[ViewSpec, ...]:
    """Views from what a user types: a number (the first so many), or names with commas.

    InputError names them all.
    """
    if text.isdecimal() and 1 <= int(text) <= len(VIEWS):
        return VIEWS[: int(text)]
    known = {view.name: view for view in VIEWS}
    names = [name.strip() for name in text.split(",")]
    if wrong := [name for name in names if name not in known]:
        raise InputError(
            f"views: {', '.join(wrong)!r} unknown; give a number from 1 to {len(VIEWS)} or some of "
            f"{', '.join(known)}"
        )
    if len(set(names)) < len(names):
        raise InputError(f"views: {text!r} names a view twice")
    return tuple(known[name] for name in names)


def tta_views(n: int) -> tuple[ViewSpec, ...]:
    """Views of test-time augmentation, by their number.

    1 plain, 2 adds the horizontal flip, 4 all flips, 8 the transposes (square tiles).
    """
    if n not in (1, 2, 4, 8):
        raise InputError(
            f"tta {n}: "
            "choose 1 (plain), 2 (and hflip), 4 (all flips) or 8 (all symmetries of a square)"
        )
    return (VIEWS[:4] + TRANSPOSES)[:n]


def chosen_tta(tta: int | str | Sequence[ViewSpec]) -> tuple[ViewSpec, ...]:
    """Views of test-time augmentation from a number or from names with commas.

    A number as in `tta_views`; names may be of transposes.
    """
    if not isinstance(tta, int | str):
        return tuple(tta)
    if isinstance(tta, int) or tta.isdecimal():
        return tta_views(int(tta))
    known = {view.name: view for view in VIEWS + TRANSPOSES}
    names = [name.strip() for name in tta.split(",")]
    unknown = [name for name in names if name not in known]
    twice = [name for name in names if names.count(name) > 1]
    if wrong := unknown or twice:
        raise InputError(
            f"tta: {', '.join(map(repr, wrong))} unknown or twice; give 1, 2, 4, 8 or some of "
            f"{', '.join(known)}"
        )
    return tuple(known[name] for name in names)


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
    x = _COLOUR_CHANGES[view.colour](tiles_T3HW, *amounts) if view.colour else tiles_T3HW
    if view.transpose:
        x = x.transpose(-1, -2)
    flips = [axis for axis, flip in ((-1, view.hflip), (-2, view.vflip)) if flip]
    return x.flip(flips) if flips else x


def shift_hsv(x: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    """Add to hue (of a full circle), saturation and value, both clamped to [0, 1]; gray stays gray.

    With V the greatest of R, G, B, a channel is V (1 - S k), k in [0, 1] set by the hue alone
    (Smith 1978), so S and V can be shifted without leaving RGB.
    """
    x = tv.adjust_hue(x, hue)
    v, least = x.amax(-3, keepdim=True), x.amin(-3, keepdim=True)
    chroma = v - least
    k = (v - x) / chroma.clamp_min(1e-6)  # of gray 0 / 1e-6: no hue comes up
    s = (chroma / v.clamp_min(1e-6) + saturation).clamp(0, 1)
    return (v + value).clamp(0, 1) * (1 - s * k)


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
