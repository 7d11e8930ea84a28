"""How a photograph becomes the tiles that a backbone takes."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from featurestore.errors import InputError
from featurestore.format.spec import MAX_PIXELS, TokenSpec
from featurestore.photos.picture import Picture

ASPECT_TOLERANCE = 0.05


INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)


@dataclass(frozen=True)
class Crop:
    """How a photograph becomes T tiles; height and width in pixels are those of one tile.

    kind is "squash" (all of it, aspect lost), "halves" (left and right square of a 2:1 picture) or
    "whole" (all of it, aspect kept); interpolation is one of INTERPOLATIONS; bits and
    max_pixels are those of `read_photograph`. Make one with `plan_crop`.
    """

    kind: str
    height: int
    width: int
    interpolation: str
    bits: int | None = None
    max_pixels: int = MAX_PIXELS

    @classmethod
    def of(cls, tokens: TokenSpec, max_pixels: int = MAX_PIXELS) -> "Crop":
        """The crop that tokens of this spec were made by."""
        return cls(
            tokens.crop,
            tokens.tile_height,
            tokens.tile_width,
            tokens.interpolation,
            tokens.bits,
            max_pixels,
        )

    @property
    def n_tiles(self) -> int:
        return 2 if self.kind == "halves" else 1

    def check(self, width: int, height: int) -> None:
        """InputError if the crop would distort a photograph of this size by more than 5 %."""
        wanted = self.n_tiles * self.width / self.height
        if self.kind != "squash" and abs(width / height / wanted - 1) > ASPECT_TOLERANCE:
            others = (
                "squash or whole"
                if self.kind == "halves"
                else "squash, or crop the photographs alike"
            )
            raise InputError(
                f"a photograph of {width} x {height} has aspect {width / height:.3f}; crop "
                f"{self.kind!r} needs {wanted:.3f} within {ASPECT_TOLERANCE:.0%}; use {others}"
            )

    def __call__(self, photograph: Picture | np.ndarray) -> np.ndarray:
        """Tiles of one photograph, which may be (H, W, 3) uint8: (T, height, width, 3) uint8.

        C-contiguous, writable.

        Raises InputError if the aspect does not fit, see `check`.
        """
        if isinstance(photograph, np.ndarray):
            photograph = Picture(Image.fromarray(photograph))
        width, height = photograph.size
        self.check(width, height)
        middle = width // 2
        boxes = [(0, 0, width, height)]
        if self.kind == "halves":
            # cut before resizing: Pillow's `box` would let the filter look past the cut
            boxes = (0, 0, middle, height), (middle, 0, width, height)
        method = Image.Resampling[self.interpolation.upper()]
        size = self.width, self.height
        tiles = [photograph.resized(box, size, method) for box in boxes]
        return np.stack([np.asarray(tile) for tile in tiles])


def plan_crop(
    kind: str, image_size: int, patch_size: int, interpolation: str, aspect: float
) -> Crop:
    """The crop whose tiles a backbone with square patches can take.

    Parameters
    ----------
    kind : "squash", "halves" or "whole", see Crop.
    image_size : pixels, the side of a square tile; for "whole" the short side.
    patch_size : pixels, the side of one patch; divides both sides of a tile.
    interpolation : one of INTERPOLATIONS.
    aspect : width / height of the first photograph, after orientation; only "whole" looks at it.

    Raises InputError for an unknown kind or interpolation, and sizes that cannot work.
    """
    if kind not in ("squash", "halves", "whole"):
        raise InputError(f"crop {kind!r} is unknown; use squash, halves or whole")
    if interpolation not in INTERPOLATIONS:
        raise InputError(
            f"interpolation {interpolation!r} is unknown; use one of {', '.join(INTERPOLATIONS)}"
        )
    if image_size < 1 or image_size % patch_size:
        below = image_size // patch_size * patch_size
        sizes = " or ".join(str(size) for size in (below, below + patch_size) if size > 0)
        raise InputError(
            f"image size {image_size} is not a multiple of the patch size {patch_size}; use {sizes}"
        )

    stretch = max(aspect, 1 / aspect) if kind == "whole" else 1
    # rounded to whole patches: a partial one would have no token
    long = round(image_size * stretch / patch_size) * patch_size
    if abs(stretch * image_size / long - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"crop 'whole': {image_size} x {long}, the nearest sides in whole patches of "
            f"{patch_size}, miss the aspect {aspect:.3f} by more than {ASPECT_TOLERANCE:.0%}; use "
            "a larger image size"
        )
    if long * image_size > MAX_PIXELS:
        raise InputError(
            f"crop {kind!r}: tiles of {long} x {image_size} have more than {MAX_PIXELS:,} pixels; "
            "use squash or a smaller image size"
        )
    height, width = (image_size, long) if aspect >= 1 else (long, image_size)
    return Crop(kind, height, width, interpolation)
