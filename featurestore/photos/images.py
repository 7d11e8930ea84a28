"""From a photograph's bytes to tiles of RGB pixels, alike for building and predicting.

Pixels are as stored: ICC profiles, gamma chunks and XMP are ignored, of EXIF only the orientation
counts. Which images there are is `catalog`'s business, views of a tile are `views`'. Everything
here may be called from many threads.
"""

import hashlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featurestore.disk.maps import TOO_MANY
from featurestore.errors import InputError, MemoryShortError, NoAccessError
from featurestore.format.spec import MAX_PIXELS
from featurestore.photos.headers import (
    Header,
    check_scans,
    read_header,
)
from featurestore.photos.jpeg import COLOUR, scan_warning, tell_damage
from featurestore.photos.kinds import opened
from featurestore.photos.limits import TimedBytes
from featurestore.photos.picture import Picture
from featurestore.photos.sixteen_bits import brightest, deep_values, rgb_of_bits


@dataclass(frozen=True)
class Photograph:
    """One decoded photograph.

    sha256 : of the file's bytes, in hex.
    """

    picture: Picture
    sha256: str
    damage: str | None = None
    """What is wrong inside a JPEG's picture, whose pixels came out all the same; None too where
    simplejpeg is missing."""

    @property
    def pixels_HW3(self) -> np.ndarray:
        """A copy of the upright pixels, uint8, read-only."""
        return np.asarray(self.image)

    @property
    def image(self) -> Image.Image:
        """A copy of the picture, upright."""
        return self.picture.cut((0, 0, self.width, self.height))

    @property
    def width(self) -> int:
        return self.picture.size[0]

    @property
    def height(self) -> int:
        return self.picture.size[1]


def inspect_photograph(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height in pixels after EXIF orientation, from the headers alone.

    That takes milliseconds; nothing is decoded.

    Raises InputError, naming the file, if it is missing, empty, by content of a format that is not
    read, unreadable, visibly cut short, or has more than max_pixels pixels. Damage inside the
    pixels is left to `read_photograph`.
    """
    with _naming(path), open(path, "rb") as fp:
        return read_header(fp, max_pixels).upright_size


def read_photograph(
    path: Path,
    bits: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Photograph:
    """Decode a photograph to upright 8-bit RGB; which formats, `kinds` says.

    bits : how many bits the values of 16-bit pictures have, gray and colour, see
        `sixteen_bits.rgb_of_bits`; None is as follows.

    Gray is repeated, 16-bit gray is scaled (round(x / 257)), of 16-bit colour the high byte is
    taken, CMYK is inverted in a JPEG, as Adobe writes it, transparency of any kind is laid over
    white; of several frames the first counts. Of a JPEG that is damaged inside its picture `damage`
    tells: whether it can be used is the caller's decision.

    Raises InputError, naming the file, for everything `inspect_photograph` refuses and for pixels
    that do not decode; MemoryShortError if memory is not enough for it.
    """
    with naming_memory(path), _naming(path):
        data, header = _loaded(path, max_pixels)
        # first, while there are no pixels in memory
        damage = _damage(data, header)
        if bits and header.bits == 16:
            image = _decode(data, header)
            rgb, alpha = rgb_of_bits(image, _pixel_bytes(data, header), bits)
            image = _over_white(rgb, alpha) if alpha else rgb
        else:
            image = to_rgb(_decode(data, header))
        sha256 = hashlib.sha256(data).hexdigest()
        return Photograph(Picture(image, header.orientation), sha256, damage)


def find_damage(path: Path, max_pixels: int = MAX_PIXELS) -> str | None:
    """`Photograph.damage` of a file without decoding its pixels twice.

    Raises as `read_photograph`.
    """
    with naming_memory(path), _naming(path):
        return _damage(*_loaded(path, max_pixels))


def find_brightest(path: Path, max_pixels: int = MAX_PIXELS) -> int | None:
    """The greatest value of a 16-bit picture's colours; None for other files.

    Of those only headers are read, and None too is a TIFF in colour, of which Pillow keeps the
    high byte. Raises as `read_photograph`.
    """
    with naming_memory(path), _naming(path):
        with open(path, "rb") as fp:
            if read_header(fp, max_pixels).bits != 16:
                return None
        data, header = _loaded(path, max_pixels)
        image = _decode(data, header)
        if header.kind == "TIFF" and not image.mode.startswith("I;16"):
            return None
        return brightest(deep_values(image, _pixel_bytes(data, header)))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, transparency over white.

    Raises ValueError for floats and colour spaces.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_gray16(image)
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr"):
        raise ValueError(f"pixels of mode {image.mode!r} have no defined RGB; save it as 8-bit RGB")
    if not image.has_transparency_data:
        # what is RGB already would be copied
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way to RGBA
    rgba = image.convert("RGBA")
    return _over_white(rgba.convert("RGB"), rgba.getchannel("A"))


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
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            # whoever opens a pipe waits for its writer
            raise ValueError("no file but a pipe, a socket or a device")
        yield
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as err:
        # nothing is wrong with the photograph
        if isinstance(err, OSError) and err.errno in TOO_MANY:
            raise
        raise InputError(f"{path}: {getattr(err, 'strerror', None) or err}") from err


def _loaded(path: Path, max_pixels: int) -> tuple[bytes, Header]:
    """A file's bytes and header, once it is known that decoding it comes to an end."""
    data = Path(path).read_bytes()
    header = read_header(io.BytesIO(data), max_pixels)
    if header.kind == "JPEG":
        check_scans(data, header)
    return data, header


def _pixel_bytes(data: bytes, header: Header) -> bytes:
    """Of a file the bytes that make its pixels."""
    if header.spans == ((0, None),):
        return data
    return b"".join([data[start:stop] for start, stop in header.spans])


def _decode(data: bytes, header: Header) -> Image.Image:
    """The pixels as Pillow stores them."""
    if header.kind == "PNG":
        _check_chunks(data, header)
    image = opened(header.kind, TimedBytes(_pixel_bytes(data, header)))
    if image.size != (header.width, header.height):  # a second header would slip past the cap
        raise ValueError(
            f"its headers say both {header.width} x {header.height} and {image.width} x "
            f"{image.height}"
        )
    image.load()
    key = image.info.get("transparency") if header.kind == "PNG" else None
    # Pillow 13 stretches the pixels, not the key
    if image.mode == "L" and header.bits < 8 and key is not None:
        greatest = (1 << header.bits) - 1
        image.info["transparency"] = (key & greatest) * 255 // greatest
    elif image.mode == "RGB" and header.bits == 16 and key is not None:
        # the byte Pillow keeps of each pixel
        image.info["transparency"] = tuple(k >> 8 for k in key)
    return image


def _damage(data: bytes, header: Header) -> str | None:
    """What is wrong inside a JPEG's picture.

    Of its headers the decoder is shown only what it needs, so none can warn.
    """
    if header.kind != "JPEG":
        return None
    needed = []
    for start, stop in header.spans:
        if data[start + 1] not in COLOUR:
            needed.append(data[start:stop])
    jpeg = b"".join(needed)
    warning = scan_warning(jpeg)
    if not warning:
        return None
    # only now, as few photographs are damaged
    pixels_HW3 = np.asarray(to_rgb(_decode(data, header)))
    return tell_damage(jpeg, warning, pixels_HW3)


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
