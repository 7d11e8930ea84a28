"""How a photograph becomes the tiles that a backbone takes."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from featurestore.errors import InputError
from featurestore.format.spec import ANY_ASPECT, MAX_PIXELS, TokenSpec, crop_grid, named_crop
from featurestore.photos.picture import Box, Picture

ASPECT_TOLERANCE = 0.05
INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)
WAYS_OUT = {
    "halves": "use squash or whole",
    "whole": "use squash, or crop the photographs alike",
}


@dataclass(frozen=True)
class Crop:
    """How a photograph becomes T tiles; height and width in pixels are those of one tile.

    kind is "squash" (all of it, aspect lost), "halves" (left and right square of a 2:1 picture),
    "grid:RxC" (R rows of C squares, of a picture with aspect C:R), "center" (the largest square in
    the middle) or "whole" (all of it, aspect kept); interpolation is one of INTERPOLATIONS; bits
    and max_pixels are those of `read_photograph`. Make one with `plan_crop`, or `Crop.of` a spec.

    fit says what becomes of an aspect that is more than 5 % away: None refuses it, "squash" loses
    the aspect, "crop" takes the largest part in the middle that has it.
    """

    kind: str
    height: int
    width: int
    interpolation: str
    bits: int | None = None
    max_pixels: int = MAX_PIXELS
    fit: str | None = None

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
            tokens.fit,
        )

    @classmethod
    def unsized(cls, kind: str, fit: str | None, max_pixels: int) -> "Crop":
        """A crop that no backbone has given a size yet; see `sized_for`."""
        return cls(kind, 0, 0, "bicubic", None, max_pixels, fit)

    def sized_for(self, width: int, height: int) -> "Crop":
        """The crop itself, or with the aspect that a first photograph of this size gives it."""
        if self.height:
            return self
        sides = (height, width) if self.kind == "whole" else (1, 1)
        return replace(self, height=sides[0], width=sides[1])

    @property
    def n_tiles(self) -> int:
        rows, columns = crop_grid(self.kind)
        return rows * columns

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of all tiles together."""
        rows, columns = crop_grid(self.kind)
        return columns * self.width, rows * self.height

    def check(self, width: int, height: int) -> None:
        """InputError unless the crop takes a photograph of this size."""
        if not self.fit and not self._takes(width, height):
            wide, high = self.frame_size
            others = WAYS_OUT.get(self.kind, "use squash, center or whole")
            raise InputError(
                f"a photograph of {width} x {height} has aspect {width / height:.3f}; crop "
                f"{self.kind!r} needs {wide / high:.3f} within {ASPECT_TOLERANCE:.0%}; {others}, "
                "or build with --fit squash or crop"
            )
        for left, top, right, bottom in self.boxes(width, height):
            if left >= right or top >= bottom:
                raise InputError(
                    f"a photograph of {width} x {height} pixels is too small for crop {self.kind!r}"
                )

    def frame(self, width: int, height: int) -> Box:
        """The part of a photograph that the tiles show."""
        wide, high = self.frame_size
        if self.kind == "center":
            side = min(width, height)
            return _in_the_middle(width, height, side, side)
        if self.fit in (None, "squash") or self._takes(width, height):
            return 0, 0, width, height
        if width * high > height * wide:
            return _in_the_middle(width, height, height * wide // high, height)
        return _in_the_middle(width, height, width, width * high // wide)

    def boxes(self, width: int, height: int) -> list[Box]:
        """The part of a photograph that each tile shows, row by row."""
        left, top, right, bottom = self.frame(width, height)
        rows, columns = crop_grid(self.kind)
        x = [left + (right - left) * column // columns for column in range(columns + 1)]
        y = [top + (bottom - top) * row // rows for row in range(rows + 1)]
        return [
            (x[column], y[row], x[column + 1], y[row + 1])
            for row in range(rows)
            for column in range(columns)
        ]

    def __call__(self, photograph: Picture | np.ndarray) -> np.ndarray:
        """Tiles of one photograph, which may be (H, W, 3) uint8: (T, height, width, 3) uint8.

        C-contiguous, writable.

        Raises InputError if the aspect does not fit, see `check`.
        """
        if isinstance(photograph, np.ndarray):
            photograph = Picture(Image.fromarray(photograph))
        self.check(*photograph.size)
        method = Image.Resampling[self.interpolation.upper()]
        size = self.width, self.height
        # cut before resizing: Pillow's `box` would let the filter look past the cut
        tiles = [photograph.resized(box, size, method) for box in self.boxes(*photograph.size)]
        return np.stack([np.asarray(tile) for tile in tiles])

    def thumbnail(self, photograph: Picture, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8: what the tiles show, for people alone."""
        return np.array(photograph.small(self.frame(*photograph.size), (width, height)))

    def framed(self, photograph: Picture) -> Image.Image:
        """What the tiles show, at the photograph's own size."""
        return photograph.cut(self.frame(*photograph.size))

    def _takes(self, width: int, height: int) -> bool:
        """Whether the aspect of a photograph is the one that the tiles have together."""
        if self.kind in ANY_ASPECT:
            return True
        wide, high = self.frame_size
        return abs(width / height / (wide / high) - 1) <= ASPECT_TOLERANCE


def _in_the_middle(width: int, height: int, inner_width: int, inner_height: int) -> Box:
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height


def plan_crop(
    kind: str,
    image_size: int,
    patch_size: int,
    interpolation: str,
    aspect: float,
    fit: str | None = None,
) -> Crop:
    """The crop whose tiles a backbone with square patches can take.

    Parameters
    ----------
    kind, fit : see Crop.
    image_size : pixels, the side of a square tile; for "whole" the short side.
    patch_size : pixels, the side of one patch; divides both sides of a tile.
    interpolation : one of INTERPOLATIONS.
    aspect : width / height of the first photograph, after orientation; only "whole" looks at it.

    Raises InputError for an unknown kind or interpolation, and sizes that cannot work.
    """
    try:
        kind = named_crop(kind)
    except ValueError as err:
        raise InputError(str(err)) from err
    if fit and kind in ANY_ASPECT:
        raise InputError(f"crop {kind!r} takes photographs of any aspect; leave --fit out")
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
    return Crop(kind, height, width, interpolation, fit=fit)
