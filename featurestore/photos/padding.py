"""Which patch tokens are of the photograph, where fit `pad` surrounds it with padding."""

import numpy as np

from featurestore.format.spec import TokenSpec, ViewSpec
from featurestore.photos.crop import Crop


def photo_patches(
    tokens: TokenSpec,
    view: ViewSpec,
    width: float,
    height: float,
) -> np.ndarray | None:
    """(T, P) bool: whether a patch of this view holds any of the photograph; None where all do.

    width, height : of the photograph, as the catalog has them.
    """
    crop = Crop.of(tokens)
    # what was imported has no size in its catalog, and no padding either
    if crop.fit != "pad" or not crop.pads(int(width), int(height)):
        return None
    places = crop.places(int(width), int(height))
    h, w = tokens.grid
    photo_Thw = np.zeros((len(places), h, w), bool)
    for tile_hw, (left, top, right, bottom) in zip(photo_Thw, places, strict=True):
        rows = _patches(top, bottom, tokens.patch_size)
        columns = _patches(left, right, tokens.patch_size)
        tile_hw[rows, columns] = True
    if view.transpose:
        photo_Thw = photo_Thw.swapaxes(1, 2)
    if view.hflip:
        photo_Thw = np.flip(photo_Thw, 2)
    if view.vflip:
        photo_Thw = np.flip(photo_Thw, 1)
    contiguous_Thw = np.ascontiguousarray(photo_Thw)  # torch takes no other
    return contiguous_Thw.reshape(len(places), -1)


def _patches(start: int, end: int, size: int) -> slice:
    """Patches that a span of pixels touches."""
    return slice(start // size, -(-end // size))
