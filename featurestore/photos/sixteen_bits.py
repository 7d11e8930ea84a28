"""PNGs with 16 bits a sample, of which fewer were used: their values, and how they become 8 bits.

A camera's 10 or 12 bits in a 16-bit PNG are nearly black when they are read as 16. Alpha always has
all 16.
"""

import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

HEAD_BYTES = 25  # up to the bits in IHDR


def has_16_bits(start: bytes) -> bool:
    """Whether a file that begins so is a PNG with 16 bits a sample."""
    return start[:4] == b"\x89PNG" and start[12:16] == b"IHDR" and start[24:HEAD_BYTES] == b"\x10"


def deep_values(png: bytes) -> np.ndarray:
    """(H, W, C) uint16 samples of a 16-bit PNG; C is 1, 2 (gray and alpha), 3 or 4."""
    image = PngImageFile(io.BytesIO(png))
    mode, rawmode = image.mode, image.tile[0].args
    if rawmode == "LA;16B":  # a pixel is as wide as one of 8-bit RGBA
        return np.ascontiguousarray(_unpacked(png, "RGBA")).view(">u2").astype(np.uint16)
    if mode not in ("RGB", "RGBA"):
        return np.asarray(image).astype(np.uint16)[..., None]
    # Pillow keeps one byte of each sample of 16-bit colour; decoded twice, it gives both
    high, low = (_unpacked(png, f"{mode};16{order}").astype(np.uint16) for order in "BL")
    return high << 8 | low


def brightest(png: bytes) -> int:
    """The greatest sample of a 16-bit PNG's colours."""
    return int(_colours(deep_values(png)).max())


def rgb_of_bits(png: bytes, bits: int) -> tuple[Image.Image, Image.Image | None]:
    """A 16-bit PNG as 8-bit RGB, round(255 x / (2^bits - 1)), and its alpha if it has any.

    bits : how many its samples have.

    Raises ValueError for a sample beyond them: nothing is clipped.
    """
    values_HWC = deep_values(png)
    colours_HWC, greatest = _colours(values_HWC), (1 << bits) - 1
    if (found := int(colours_HWC.max())) > greatest:
        raise ValueError(
            f"16-bit values up to {found}, more than the {greatest} of {bits} bits (--bits of "
            "`store build`); save it in the range of the other photographs"
        )
    # to the nearest in integers; greatest is odd, so there are no ties
    rgb_HWC = (2 * 255 * colours_HWC.astype(np.uint32) + greatest) // (2 * greatest)
    rgb = Image.fromarray(np.broadcast_to(rgb_HWC, (*rgb_HWC.shape[:2], 3)).astype(np.uint8))
    alpha_HW = _alpha(values_HWC, PngImageFile(io.BytesIO(png)).info.get("transparency"))
    return rgb, None if alpha_HW is None else Image.fromarray(alpha_HW)


def _unpacked(png: bytes, rawmode: str) -> np.ndarray:
    """Pixels as Pillow unpacks them in another raw mode.

    Of 16 bits, `L` takes the byte that `B` leaves out.
    """
    image = PngImageFile(io.BytesIO(png))
    image.tile = [image.tile[0]._replace(args=rawmode)]
    return np.asarray(image)


def _colours(values_HWC: np.ndarray) -> np.ndarray:
    # without alpha, which is the second of two samples, or the fourth
    return values_HWC[..., : 1 if values_HWC.shape[-1] < 3 else 3]


def _alpha(values_HWC: np.ndarray, key: int | tuple[int, ...] | None) -> np.ndarray | None:
    """(H, W) uint8, from the alpha samples or the one transparent colour."""
    if values_HWC.shape[-1] in (2, 4):
        return (values_HWC[..., -1] >> 8).astype(np.uint8)
    if key is None:
        return None
    return np.where((values_HWC == np.array(key)).all(-1), 0, 255).astype(np.uint8)
