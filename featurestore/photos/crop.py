"""How a photograph becomes the tiles that a backbone takes."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from featurestore.errors import InputError
from featurestore.format.spec import ANY_ASPECT, MAX_PIXELS, TokenSpec, crop_grid, named_crop
from featurestore.photos.picture import Box, Picture

ASPECT_TOLERANCE = 0.05  # by the format (docs/format.md, section 4)
INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)
WAYS_OUT = {
    "whole": "use squash, or crop the photographs alike",
}
LEAST_SHOWN = 16
"""Of each side of a tile at least one part in so many must be photograph, the rest is padding."""
UNIT = 1024
"""Side of a tile while no backbone has given it a size: only ratios count then."""


@dataclass(frozen=True)
class Crop:
    """How a photograph becomes T tiles; height and width in pixels are those of one tile.

    kind is "squash" (all of it, aspect lost), "halves" (left and right square of a 2:1 picture),
    "grid:RxC" (R rows of C squares, of a picture with aspect C:R), "center" (the largest square in
    the middle) or "whole" (all of it, aspect kept); interpolation is one of INTERPOLATIONS; bits
    and max_pixels are those of `read_photograph`. Make one with `plan_crop`, or `Crop.of` a spec.

    fit says what becomes of an aspect that is more than 5 % away: None refuses it, "squash" loses
    the aspect, "crop" takes the largest part in the middle that has it, "pad" shows all of it in
    the middle of `background` (RGB).
    """

    kind: str
    height: int
    width: int
    interpolation: str
    bits: int | None = None
    max_pixels: int = MAX_PIXELS
    fit: str | None = None
    background: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, tokens: TokenSpec, max_pixels: int = MAX_PIXELS) -> "Crop":
        """The crop that tokens of this spec were made by."""
        background = cls.background
        if tokens.fit == "pad":  # the backbone's mean colour, which it sees as zeros
            background = tuple(round(255 * mean) for mean in tokens.mean)
        return cls(
            tokens.crop,
            tokens.tile_height,
            tokens.tile_width,
            tokens.interpolation,
            tokens.bits,
            max_pixels,
            tokens.fit,
            background,
        )

    @classmethod
    def unsized(cls, kind: str, fit: str | None, max_pixels: int) -> "Crop":
        """A crop that no backbone has given a size yet; see `sized_for`."""
        # what has no size resizes nothing: the interpolation is not looked at
        return cls(kind, 0, 0, "bicubic", None, max_pixels, fit)

    def sized_for(self, width: int, height: int) -> "Crop":
        """The crop itself, or with the aspect that a first photograph of this size gives it."""
        if self.height:
            return self
        sides = (height, width) if self.kind == "whole" else (UNIT, UNIT)
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
                "or build with --fit squash, crop or pad"
            )
        if not self._shows_in_every_tile(width, height):
            raise InputError(
                f"a photograph of {width} x {height} leaves tiles of crop {self.kind!r} with fit "
                "'pad' to padding; build with a grid that has as many rows as columns "
                "(grid:1x1 takes any aspect), or with --fit squash or crop"
            )
        for left, top, right, bottom in self.boxes(width, height):
            if left >= right or top >= bottom:
                raise InputError(
                    f"a photograph of {width} x {height} pixels is too small for crop {self.kind!r}"
                )

    def frame(self, width: int, height: int) -> Box:
        """The part of a photograph that the tiles show."""
        # aspects are compared as products: integers do not round
        wide, high = self.frame_size
        if self.kind == "center":
            side = min(width, height)
            return _in_the_middle(width, height, side, side)
        if self.fit != "crop" or self._takes(width, height):
            return 0, 0, width, height
        if width * high > height * wide:
            return _in_the_middle(width, height, height * wide // high, height)
        return _in_the_middle(width, height, width, width * high // wide)

    def place(self, width: int, height: int) -> Box:
        """Where the photograph lies in the picture of all tiles, in pixels of that picture.

        Everywhere, unless padding surrounds it.
        """
        wide, high = self.frame_size
        if not self.pads(width, height):
            return 0, 0, wide, high
        if width * high > height * wide:
            return _in_the_middle(wide, high, wide, max(1, height * wide // width))
        return _in_the_middle(wide, high, max(1, width * high // height), high)

    def pads(self, width: int, height: int) -> bool:
        """Whether tiles of a photograph of this size have padding."""
        return self.fit == "pad" and not self._takes(width, height)

    def places(self, width: int, height: int) -> list[Box]:
        """Where the photograph lies in each tile, row by row, in pixels of the tile."""
        left, top, right, bottom = self.place(width, height)
        rows, columns = crop_grid(self.kind)
        across = [_inside(left, right, column, self.width) for column in range(columns)]
        down = [_inside(top, bottom, row, self.height) for row in range(rows)]
        places = []
        for top_in_tile, bottom_in_tile in down:
            for left_in_tile, right_in_tile in across:
                places.append((left_in_tile, top_in_tile, right_in_tile, bottom_in_tile))
        return places

    def boxes(self, width: int, height: int) -> list[Box]:
        """The part of a photograph that each tile shows, row by row."""
        left, top, right, bottom = self.frame(width, height)
        placed_left, placed_top, placed_right, placed_bottom = self.place(width, height)
        _, columns = crop_grid(self.kind)

        # in integers, so that tiles that meet on their picture meet on the photograph too
        def x_of(pixel: int) -> int:
            return left + (pixel - placed_left) * (right - left) // (placed_right - placed_left)

        def y_of(pixel: int) -> int:
            return top + (pixel - placed_top) * (bottom - top) // (placed_bottom - placed_top)

        boxes = []
        for tile, (x0, y0, x1, y1) in enumerate(self.places(width, height)):
            # the tile's own corner in the picture of all tiles
            x = tile % columns * self.width
            y = tile // columns * self.height
            upper = x_of(x + x0), y_of(y + y0)
            lower = x_of(x + x1), y_of(y + y1)
            boxes.append((*upper, *lower))
        return boxes

    def __call__(self, photograph: Picture | np.ndarray) -> np.ndarray:
        """Tiles of one photograph, which may be (H, W, 3) uint8: (T, height, width, 3) uint8.

        C-contiguous, writable.

        Raises InputError if the aspect does not fit, see `check`.
        """
        if isinstance(photograph, np.ndarray):
            photograph = Picture(Image.fromarray(photograph))
        self.check(*photograph.size)
        method = Image.Resampling[self.interpolation.upper()]
        tiles = []
        boxes = self.boxes(*photograph.size)
        places = self.places(*photograph.size)
        for box, (left, top, right, bottom) in zip(boxes, places, strict=True):
            # cut before resizing: Pillow's `box` would let the filter look past the cut
            shown = photograph.resized(box, (right - left, bottom - top), method)
            tiles.append(self._on_background(shown, (left, top), (self.width, self.height)))
        return np.stack([np.asarray(tile) for tile in tiles])

    def thumbnail(self, photograph: Picture, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8: what the tiles show, for people alone."""
        wide, high = self.frame_size
        left, top, right, bottom = self.place(*photograph.size)
        small_width = max(1, (right - left) * width // wide)
        small_height = max(1, (bottom - top) * height // high)
        shown = photograph.small(self.frame(*photograph.size), (small_width, small_height))
        corner = left * width // wide, top * height // high
        return np.array(self._on_background(shown, corner, (width, height)))

    def framed(self, photograph: Picture) -> Image.Image:
        """What the tiles show, at the photograph's own size."""
        shown = photograph.cut(self.frame(*photograph.size))
        size = self.framed_size(*photograph.size)
        corner = (size[0] - shown.width) // 2, (size[1] - shown.height) // 2
        return self._on_background(shown, corner, size)

    def framed_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what the tiles show, at the photograph's own size."""
        left, top, right, bottom = self.frame(width, height)
        if not self.pads(width, height):
            return right - left, bottom - top
        wide, high = self.frame_size
        if width * high > height * wide:
            return width, width * high // wide
        return height * wide // high, height

    def _on_background(
        self,
        shown: Image.Image,
        corner: tuple[int, int],
        size: tuple[int, int],
    ) -> Image.Image:
        """A picture of this size (width, height) with what is shown of a photograph."""
        if shown.size == size:
            return shown
        whole = Image.new("RGB", size, self.background)
        whole.paste(shown, corner)
        return whole

    def _shows_in_every_tile(self, width: int, height: int) -> bool:
        """Whether padding leaves each tile a part of the photograph."""
        if not self.pads(width, height):
            return True
        wide, high = self.frame_size
        rows, columns = crop_grid(self.kind)
        # as if tiles had no pixels: they may have no size yet
        n_across = columns * width * high / (height * wide)
        n_down = rows * height * wide / (width * high)
        # it lies in the middle: inner tiles are full, and the two outer ones share the rest
        return all(
            n == 1 or shown >= n - 2 + 2 / LEAST_SHOWN
            for n, shown in ((columns, n_across), (rows, n_down))
        )

    def _takes(self, width: int, height: int) -> bool:
        """Whether the aspect of a photograph is the one that the tiles have together."""
        if self.kind in ANY_ASPECT:
            return True
        wide, high = self.frame_size
        return abs(width / height / (wide / high) - 1) <= ASPECT_TOLERANCE


def _in_the_middle(
    width: int,
    height: int,
    inner_width: int,
    inner_height: int,
) -> Box:
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height


def _inside(start: int, end: int, tile: int, side: int) -> tuple[int, int]:
    """A span of pixels as one of the tiles in a line sees it."""
    return max(0, start - tile * side), min(side, end - tile * side)


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
        raise InputError(
            f"crop {kind!r} takes photographs of any aspect; leave --fit out (--crop grid:1x1 "
            "--fit pad keeps the aspect)"
        )
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
