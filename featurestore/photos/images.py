"""From a photograph's bytes to tiles of RGB pixels, alike for building and predicting.

Pixels are as stored: ICC profiles, gamma chunks and XMP are ignored, of EXIF only the orientation
counts. Which images there are is `catalog`'s business, views of a tile are `views`'. Everything
here may be called from many threads.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from featurestore.disk.maps import TOO_MANY
from featurestore.errors import InputError, MemoryShortError, NoAccessError
from featurestore.photos.headers import (
    JPEG_MAGIC,
    PNG_MAGIC,
    UPRIGHT,
    Header,
    read_header,
)
from featurestore.photos.jpeg import COLOUR, scan_warning, tell_damage
from featurestore.photos.sixteen_bits import HEAD_BYTES, brightest, has_16_bits, rgb_of_bits


@dataclass(frozen=True)
class Photograph:
    """One decoded photograph.

    pixels_HW3 : upright uint8 RGB, read-only. sha256 : of the file's bytes, in hex.
    """

    pixels_HW3: np.ndarray
    sha256: str
    damage: str | None = None
    """What is wrong inside a JPEG's picture, whose pixels came out all the same; None too where
    simplejpeg is missing."""

    @property
    def width(self) -> int:
        return self.pixels_HW3.shape[1]

    @property
    def height(self) -> int:
        return self.pixels_HW3.shape[0]


def inspect_photograph(path: Path) -> tuple[int, int]:
    """Width and height in pixels after EXIF orientation, from the headers alone.

    That takes milliseconds; nothing is decoded.

    Raises InputError, naming the file, if it is missing, empty, not JPEG or PNG by content,
    unreadable, visibly cut short, or has more than MAX_PIXELS pixels. Damage inside the pixels is
    left to `read_photograph`.
    """
    with _naming(path), open(path, "rb") as fp:
        return read_header(fp).upright_size


def read_photograph(path: Path, bits: int | None = None) -> Photograph:
    """Decode a JPEG or PNG file to upright 8-bit RGB.

    bits : how many bits the values of 16-bit pictures have, gray and colour, see
        `sixteen_bits.rgb_of_bits`; None is as follows.

    Gray is repeated, 16-bit gray is scaled (round(x / 257)), of 16-bit colour the high byte is
    taken, CMYK is inverted as Adobe writes it, transparency of any kind is laid over white; of
    several frames the first counts. Of a JPEG that is damaged inside its picture `damage` tells:
    whether it can be used is the caller's decision.

    Raises InputError, naming the file, for everything `inspect_photograph` refuses and for pixels
    that do not decode; MemoryShortError if memory is not enough for it.
    """
    with naming_memory(path), _naming(path):
        data = Path(path).read_bytes()
        header = read_header(io.BytesIO(data))
        if bits and has_16_bits(data):
            rgb, alpha = rgb_of_bits(_checked(data), bits)
            image = _over_white(rgb, alpha) if alpha else rgb
        else:
            image = to_rgb(_decode(data, header))
        if header.orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[header.orientation])
        return Photograph(
            np.asarray(image), hashlib.sha256(data).hexdigest(), _damage(data, header)
        )


def find_damage(path: Path) -> str | None:
    """`Photograph.damage` of a file without decoding its pixels twice.

    Raises as `read_photograph`.
    """
    with naming_memory(path), _naming(path):
        data = Path(path).read_bytes()
        return _damage(data, read_header(io.BytesIO(data)))


def find_brightest(path: Path) -> int | None:
    """The greatest value of a 16-bit PNG's colours; None for other files.

    Of those only the first bytes are read. Raises as `read_photograph`.
    """
    with naming_memory(path), _naming(path), open(path, "rb") as fp:
        start = fp.read(HEAD_BYTES)
        return brightest(_checked(start + fp.read())) if has_16_bits(start) else None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, transparency over white.

    Raises ValueError for floats and colour spaces.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_gray16(image)
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr"):
        raise ValueError(f"pixels of mode {image.mode!r} have no defined RGB; save it as 8-bit RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way to RGBA
    rgba = image.convert("RGBA")
    return _over_white(rgba.convert("RGB"), rgba.getchannel("A"))


def thumbnail(pixels_HW3: np.ndarray, height: int, width: int) -> np.ndarray:
    """The whole picture squeezed to (height, width, 3) uint8, for people alone.

    Never fed to a backbone.
    """
    image = Image.fromarray(pixels_HW3).resize(
        (width, height), Image.Resampling.BILINEAR, reducing_gap=2.0
    )
    return np.array(image)


@contextmanager
def naming_memory(path: Path) -> Iterator[None]:
    """Turn a MemoryError into a MemoryShortError that names the photograph.

    It is sound, so it must not be skipped as damaged.
    """
    try:
        yield
    except MemoryError as err:
        raise MemoryShortError(
            f"{path}: not enough memory to decode it; free some or raise the limit and start "
            "again, or shrink the photograph"
        ) from err


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what opening, header parsing and Pillow raise into InputError that names the file."""
    try:
        yield
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as err:
        # nothing is wrong with the photograph
        if isinstance(err, OSError) and err.errno in TOO_MANY:
            raise
        raise InputError(f"{path}: {getattr(err, 'strerror', None) or err}") from err


def _decode(data: bytes, header: Header) -> Image.Image:
    """The pixels as Pillow stores them.

    The classes are called directly: Image.open would look for MPO frames.
    """
    if data.startswith(PNG_MAGIC):
        _check_chunks(data, header)
    reader = PngImageFile if data.startswith(PNG_MAGIC) else JpegImageFile
    image = reader(io.BytesIO(b"".join(data[start:stop] for start, stop in header.spans)))
    if image.size != (header.width, header.height):  # a second header would slip past the cap
        raise ValueError(
            f"its headers say both {header.width} x {header.height} and {image.width} x "
            f"{image.height}"
        )
    image.load()
    key = image.info.get("transparency")
    # Pillow 13 stretches the pixels, not the key
    if image.mode == "L" and header.bits < 8 and key is not None:
        image.info["transparency"] = (
            (key & (1 << header.bits) - 1) * 255 // ((1 << header.bits) - 1)
        )
    elif image.mode == "RGB" and header.bits == 16 and key is not None:
        # the byte Pillow keeps of each pixel
        image.info["transparency"] = tuple(k >> 8 for k in key)
    return image


def _checked(data: bytes) -> bytes:
    """Of a file that decodes, the bytes that make its pixels."""
    _decode(data, header := read_header(io.BytesIO(data)))
    return b"".join([data[start:stop] for start, stop in header.spans])


def _damage(data: bytes, header: Header) -> str | None:
    """What is wrong inside a JPEG's picture.

    Of its headers the decoder is shown only what it needs, so none can warn.
    """
    if not data.startswith(JPEG_MAGIC):
        return None
    jpeg = b"".join(
        [data[start:stop] for start, stop in header.spans if data[start + 1] not in COLOUR]
    )
    warning = scan_warning(jpeg)
    if not warning:
        return None
    return tell_damage(jpeg, warning, np.asarray(to_rgb(_decode(data, header))))


def _check_chunks(data: bytes, header: Header) -> None:
    """ValueError if a PNG chunk fails its CRC; Pillow checks only those before the pixels."""
    view = memoryview(data)
    for start, stop in header.spans[1:]:  # the first is the file's magic
        # the CRC covers kind and data, not the length before them
        committed = int.from_bytes(view[stop - 4 : stop], "big")
        if zlib.crc32(view[start + 4 : stop - 4]) != committed:
            raise ValueError(
                f"the PNG chunk at byte {start} does not match its checksum; copy it again"
            )


def _from_gray16(image: Image.Image) -> Image.Image:
    """16-bit gray as RGB: scaled, never clipped; the one transparent value becomes white."""
    values_HW = np.asarray(image).astype(np.int64)
    if values_HW.min() < 0 or values_HW.max() > 65535:
        raise ValueError(
            f"gray values from {values_HW.min()} to {values_HW.max()}; expected 0 to 65535"
        )
    # round(x / 257): 65535 is 255, and ties cannot happen
    gray_HW = ((values_HW + 128) // 257).astype(np.uint8)
    gray_HW[values_HW == image.info.get("transparency", -1)] = 255
    return Image.fromarray(gray_HW).convert("RGB")


def _over_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", rgb.size, "white")
    canvas.paste(rgb, mask=alpha)  # exact: round((alpha * x + (255 - alpha) * 255) / 255)
    return canvas
