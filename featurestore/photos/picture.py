"""A decoded picture that lies as its camera stored it, and is seen upright.

One of more than LARGE pixels takes hundreds of megabytes, so it is turned and resized a band of
rows at a time. Smaller ones are resized by Pillow at once, as they always were: it may take columns
first, which rounds otherwise.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from featurestore.format.spec import MAX_PIXELS

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the upright picture; right and bottom are outside."""
LARGE = MAX_PIXELS  # none of these was ever stored before bands were
BAND = 256  # rows that are turned at once
# EXIF 2.32, tag 0x0112: what undoes each orientation
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXCHANGED = (5, 6, 7, 8)
"""Orientations whose width is stored as height."""
MIRRORED_X, MIRRORED_Y = (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations whose upright x, or y, runs against the stored axis."""


@dataclass(frozen=True)
class Picture:
    """8-bit RGB pixels as stored, and their EXIF orientation, 1 to 8."""

    stored: Image.Image
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        width, height = self.stored.size
        return (height, width) if self.orientation in EXCHANGED else (width, height)

    def cut(self, box: Box) -> Image.Image:
        """The pixels of a box, upright; no copy of a whole picture that lies upright."""
        if self.orientation == 1 and box == (0, 0, *self.stored.size):
            return self.stored
        return self._turned(self.stored.crop(self._stored_box(box)))

    def resized(self, box: Box, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
        """The pixels of a box, upright, in another size (width, height)."""
        width, height = self.size
        if width * height <= LARGE:
            return self.cut(box).resize(size, method)
        # rows first, then columns, with 8 bits in between
        left, top, right, bottom = box
        rows = Image.new("RGB", (size[0], bottom - top))
        for start in range(top, bottom, BAND):
            band = self.cut((left, start, right, min(start + BAND, bottom)))
            narrow = band.resize((size[0], band.height), method)
            rows.paste(narrow, (0, start - top))
        return rows.resize(size, method)

    def small(self, box: Box, size: tuple[int, int]) -> Image.Image:
        """A box squeezed to another size (width, height), for people alone.

        Quick, and never fed to a backbone.
        """
        stored_size = size[::-1] if self.orientation in EXCHANGED else size
        area = self._stored_box(box)
        method = Image.Resampling.BILINEAR
        return self._turned(self.stored.resize(stored_size, method, box=area, reducing_gap=2.0))

    def thumbnail(self, height: int, width: int) -> np.ndarray:
        """The whole picture as (height, width, 3) uint8."""
        return np.array(self.small((0, 0, *self.size), (width, height)))

    def _turned(self, image: Image.Image) -> Image.Image:
        turn = UPRIGHT.get(self.orientation)
        return image if turn is None else image.transpose(turn)

    def _stored_box(self, box: Box) -> Box:
        """Where a box lies in what is stored."""
        left, top, right, bottom = box
        width, height = self.size
        if self.orientation in MIRRORED_X:
            left, right = width - right, width - left
        if self.orientation in MIRRORED_Y:
            top, bottom = height - bottom, height - top
        if self.orientation in EXCHANGED:
            return top, left, bottom, right
        return left, top, right, bottom
