"""Pictures with 16 bits a sample, of which fewer were used: their values, and how they become 8.

A camera's 10 or 12 bits in a 16-bit file are nearly black when they are read as 16. Alpha always
has all 16.
"""

import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile


def deep_values(image: Image.Image, data: bytes) -> np.ndarray:
    """(H, W, C) uint16 samples of a 16-bit picture; C is 1, 2 (gray and alpha), 3 or 4.

    image : as Pillow decodes it. data : the bytes that it was decoded from.

    Raises ValueError for what Pillow gives no 16 bits of, as for a TIFF in colour.
    """
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if not isinstance(image, PngImageFile):
        raise ValueError("this kind of 16-bit TIFF cannot be read with --bits; save it as PNG")
    png = PngImageFile(io.BytesIO(data))
    if png.tile[0].args == "LA;16B":  # a pixel is as wide as one of 8-bit RGBA
        pixels_HW4 = np.ascontiguousarray(_unpacked(data, "RGBA"))
        return pixels_HW4.view(">u2").astype(np.uint16)

    # Pillow keeps one byte of each sample of 16-bit colour; decoded twice, it gives both
    high = _unpacked(data, f"{png.mode};16B").astype(np.uint16)
    low = _unpacked(data, f"{png.mode};16L").astype(np.uint16)
    return high << 8 | low


def brightest(values_HWC: np.ndarray) -> int:
    """The greatest sample of a picture's colours."""
    return int(_colours(values_HWC).max())


def rgb_of_bits(
    image: Image.Image,
    data: bytes,
    bits: int,
) -> tuple[Image.Image, Image.Image | None]:
    """A 16-bit picture as 8-bit RGB, round(255 x / (2^bits - 1)), and its alpha if it has any.

    image, data : as `deep_values` takes them. bits : how many its samples have.

    Raises ValueError for a sample beyond them: nothing is clipped.
    """
    values_HWC = deep_values(image, data)
    colours_HWC = _colours(values_HWC)
    greatest = (1 << bits) - 1
    found = int(colours_HWC.max())
    if found > greatest:
        raise ValueError(
            f"16-bit values up to {found}, more than the {greatest} of {bits} bits (--bits of "
            "`store build`); save it in the range of the other photographs"
        )
    # to the nearest in integers; greatest is odd, so there are no ties
    rgb_HWC = (2 * 255 * colours_HWC.astype(np.uint32) + greatest) // (2 * greatest)
    rgb_HW3 = np.broadcast_to(rgb_HWC, (*rgb_HWC.shape[:2], 3))  # gray thrice
    rgb = Image.fromarray(rgb_HW3.astype(np.uint8))

    if values_HWC.shape[-1] in (2, 4):
        alpha_HW = values_HWC[..., -1] >> 8
        return rgb, Image.fromarray(alpha_HW.astype(np.uint8))
    key = None
    if isinstance(image, PngImageFile):
        # opened anew: of `image` the key was cut to its high bytes
        key = PngImageFile(io.BytesIO(data)).info.get("transparency")
    if key is None:
        return rgb, None
    is_key_HW = (values_HWC == np.array(key)).all(-1)
    alpha_HW = np.where(is_key_HW, 0, 255)
    return rgb, Image.fromarray(alpha_HW.astype(np.uint8))


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
