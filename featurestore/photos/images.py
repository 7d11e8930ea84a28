"""From a photograph's bytes to tiles of RGB pixels; the same functions for building a store and for
predicting.

Pixels are as stored: ICC profiles, gamma chunks and XMP are ignored, of EXIF only the orientation
counts. Which images there are is `catalog`'s business, views of a tile are `views`'. Everything
here may be called from many threads.
"""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from featurestore.disk.maps import TOO_MANY
from featurestore.errors import InputError, MemoryShortError, NoAccessError
from featurestore.photos.jpeg import COLOUR, scan_warning, tell_damage
from featurestore.photos.sixteen_bits import HEAD_BYTES, brightest, has_16_bits, rgb_of_bits

MAX_PIXELS = 80_000_000  # 240 MB as RGB; below Pillow's own warning limit of 89.5 million
ASPECT_TOLERANCE = 0.05
TAIL_BYTES = 1 << 16
JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
INTERPOLATIONS = tuple(method.name.lower() for method in Image.Resampling)
# EXIF 2.32, tag 0x0112: what undoes each orientation; 5 to 8 exchange the sides
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Photograph:
    """One decoded photograph: pixels_HW3 upright uint8 RGB, read-only; sha256 of the file's bytes,
    in hex."""

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
    """Width and height in pixels after EXIF orientation, from the headers alone: milliseconds,
    nothing is decoded.

    Raises InputError, naming the file, if it is missing, empty, not JPEG or PNG by content,
    unreadable, visibly cut short, or has more than MAX_PIXELS pixels. Damage inside the pixels is
    left to `read_photograph`.
    """
    with _naming(path), open(path, "rb") as fp:
        return _read_header(fp).upright_size


def read_photograph(path: Path, bits: int | None = None) -> Photograph:
    """Decode a JPEG or PNG file to upright 8-bit RGB.

    bits : how many bits the values of 16-bit pictures have, gray and colour, see
        `deep.rgb_of_bits`; None is as follows.

    Gray is repeated, 16-bit gray is scaled (round(x / 257)), of 16-bit colour the high byte is
    taken, CMYK is inverted as Adobe writes it, transparency of any kind is laid over white; of
    several frames the first counts. Of a JPEG that is damaged inside its picture `damage` tells:
    whether it can be used is the caller's decision.

    Raises InputError, naming the file, for everything `inspect_photograph` refuses and for pixels
    that do not decode; MemoryShortError if memory is not enough for it.
    """
    with naming_memory(path), _naming(path):
        data = Path(path).read_bytes()
        header = _read_header(io.BytesIO(data))
        image = (
            _of_bits(data, bits) if bits and has_16_bits(data) else to_rgb(_decode(data, header))
        )
        if header.orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[header.orientation])
        return Photograph(
            np.asarray(image), hashlib.sha256(data).hexdigest(), _damage(data, header)
        )


def find_damage(path: Path) -> str | None:
    """`Photograph.damage` of a file without decoding its pixels twice. Raises as
    `read_photograph`."""
    with naming_memory(path), _naming(path):
        data = Path(path).read_bytes()
        return _damage(data, _read_header(io.BytesIO(data)))


def find_brightest(path: Path) -> int | None:
    """The greatest value of a 16-bit PNG's colours; None, after its first bytes, for other files.
    Raises as `read_photograph`."""
    with naming_memory(path), _naming(path), open(path, "rb") as fp:
        start = fp.read(HEAD_BYTES)
        return brightest(_checked(start + fp.read())) if has_16_bits(start) else None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, transparency over white. Raises ValueError for floats and
    colour spaces."""
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
    """The whole picture squeezed to (height, width, 3) uint8, to look at; never fed to a
    backbone."""
    image = Image.fromarray(pixels_HW3).resize(
        (width, height), Image.Resampling.BILINEAR, reducing_gap=2.0
    )
    return np.array(image)


@dataclass(frozen=True)
class Crop:
    """How a photograph becomes T tiles; height and width in pixels are those of one tile.

    kind is "squash" (all of it, aspect lost), "halves" (left and right square of a 2:1 picture) or
    "whole" (all of it, aspect kept); interpolation is one of INTERPOLATIONS; bits are those of
    `read_photograph`. Make one with `plan_crop`.
    """

    kind: str
    height: int
    width: int
    interpolation: str
    bits: int | None = None

    @property
    def n_tiles(self) -> int:
        return 2 if self.kind == "halves" else 1

    def check(self, width: int, height: int) -> None:
        """Raise InputError if a photograph of this size has an aspect the crop would distort by
        more than 5 %."""
        wanted = self.n_tiles * self.width / self.height
        if self.kind != "squash" and abs(width / height / wanted - 1) > ASPECT_TOLERANCE:
            others = (
                "squash or whole"
                if self.kind == "halves"
                else "squash, or crop the photographs alike"
            )
            raise InputError(
                f"a photograph of {width} x {height} has aspect {width / height:.3f}; crop "
                f"{self.kind!r} "
                f"needs {wanted:.3f} within {ASPECT_TOLERANCE:.0%}; use {others}"
            )

    def __call__(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """Tiles of one photograph: (H, W, 3) uint8 -> (T, height, width, 3) uint8, C-contiguous,
        writable.

        Raises InputError if the aspect does not fit, see `check`.
        """
        self.check(pixels_HW3.shape[1], pixels_HW3.shape[0])
        middle = pixels_HW3.shape[1] // 2
        # cut before resizing: Pillow's `box` would let the filter look past the cut into the other
        # half
        parts = (
            (pixels_HW3[:, :middle], pixels_HW3[:, middle:])
            if self.kind == "halves"
            else (pixels_HW3,)
        )
        method = Image.Resampling[self.interpolation.upper()]
        return np.stack(
            [
                np.asarray(Image.fromarray(part).resize((self.width, self.height), method))
                for part in parts
            ]
        )


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
    _check_patches(image_size, patch_size)
    stretch = max(aspect, 1 / aspect) if kind == "whole" else 1
    long = round(image_size * stretch / patch_size) * patch_size
    if abs(stretch * image_size / long - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"crop 'whole': {image_size} x {long}, the nearest sides in whole patches of "
            f"{patch_size}, "
            f"miss the aspect {aspect:.3f} by more than {ASPECT_TOLERANCE:.0%}; use a larger image "
            "size"
        )
    if long * image_size > MAX_PIXELS:
        raise InputError(
            f"crop {kind!r}: tiles of {long} x {image_size} have more than {MAX_PIXELS:,} pixels; "
            "use squash or a smaller image size"
        )
    height, width = (image_size, long) if aspect >= 1 else (long, image_size)
    return Crop(kind, height, width, interpolation)


def _check_patches(image_size: int, patch_size: int) -> None:
    if image_size < 1 or image_size % patch_size:
        below = image_size // patch_size * patch_size
        sizes = " or ".join(str(size) for size in (below, below + patch_size) if size > 0)
        raise InputError(
            f"image size {image_size} is not a multiple of the patch size {patch_size}; use {sizes}"
        )


@contextmanager
def naming_memory(path: Path) -> Iterator[None]:
    """Turn a MemoryError into MemoryShortError that names the photograph: it is sound, so it must
    not be skipped as damaged."""
    try:
        yield
    except MemoryError as err:
        raise MemoryShortError(
            f"{path}: not enough memory to decode it; free some or raise the limit and start "
            "again, or shrink "
            "the photograph"
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


@dataclass(frozen=True)
class _Header:
    """What precedes the pixels; width and height as stored, bits of one sample."""

    width: int
    height: int
    bits: int
    orientation: int
    spans: tuple[tuple[int, int | None], ...]
    """The bytes that make the pixels, as slices of the file. Pillow is shown nothing else, so
    broken EXIF, MPO or APNG data can neither warn, nor refuse, nor choose another frame."""

    def __post_init__(self) -> None:
        if not 0 < self.width * self.height <= MAX_PIXELS:
            raise ValueError(
                f"{self.width} x {self.height} pixels; between 1 and {MAX_PIXELS:,} are read, "
                "shrink it"
            )

    @property
    def upright_size(self) -> tuple[int, int]:
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def _read_header(fp: BinaryIO) -> _Header:
    start = fp.read(len(PNG_MAGIC))
    if not start:
        raise ValueError("the file is empty")
    if start == PNG_MAGIC:
        return _png_header(fp)
    if start.startswith(JPEG_MAGIC):
        return _jpeg_header(fp)
    raise ValueError(
        f"neither JPEG nor PNG, whatever its name: it starts with {start!r}; save it as one of the "
        "two"
    )


def _jpeg_header(fp: BinaryIO) -> _Header:
    """Follow the segments up to the scan (ITU-T T.81, B.1). APP0 and APP14 say how colour is coded,
    the rest may go."""
    fp.seek(2)
    frame, orientation, spans = None, None, [(0, 2)]
    while (marker := _next_marker(fp)) != 0xDA:
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:
            continue
        start = fp.tell()
        stop = start + struct.unpack(">H", _read(fp, 2))[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack(">BHH", _read(fp, 5))
        elif marker == 0xE1 and orientation is None and fp.read(6) == b"Exif\0\0":
            orientation = _orientation(_read(fp, stop - fp.tell()))
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            spans.append((start - 2, stop))
        fp.seek(stop)
    scan = fp.tell()
    _find_end_of_jpeg(fp, scan)
    if frame is None:
        raise ValueError("JPEG without a frame header; it is damaged, export it again")
    bits, height, width = frame
    return _Header(width, height, bits, orientation or 1, (*spans, (scan - 2, None)))


def _next_marker(fp: BinaryIO) -> int:
    """The code of the next marker; fill bytes and stray ones before it are skipped."""
    while True:
        while _read(fp, 1) != b"\xff":
            pass
        while (code := _read(fp, 1)) == b"\xff":
            pass
        if code != b"\0":
            return code[0]


def _find_end_of_jpeg(fp: BinaryIO, scan: int) -> None:
    """Raise ValueError if no end-of-image marker follows the scan; phones append whole videos, so
    look twice."""
    size = fp.seek(0, os.SEEK_END)
    for start in (max(scan, size - TAIL_BYTES), scan):
        fp.seek(start)
        if b"\xff\xd9" in fp.read():
            return
    raise ValueError(f"cut short: {size} bytes and no JPEG end-of-image marker; copy it again")


def _png_header(fp: BinaryIO) -> _Header:
    """Follow the chunks to the end (PNG 3rd edition, 5.3). Critical chunks and tRNS make the
    pixels; others may go."""
    frame, orientation, kind, spans = None, 1, b"", [(0, 8)]
    while kind != b"IEND":
        start = fp.tell()
        length, kind = struct.unpack(">I4s", _read(fp, 8))
        if kind == b"IHDR":
            frame = struct.unpack(">IIB", _read(fp, 9))
        elif kind == b"eXIf":
            orientation = _orientation(_read(fp, length))
        stop = start + 12 + length
        if kind[:1].isupper() or kind == b"tRNS":
            spans.append((start, stop))
        fp.seek(stop - 1)
        _read(fp, 1)  # a seek goes past the end of a file unnoticed, a read does not
    if frame is None:
        raise ValueError("PNG without IHDR; it is damaged, export it again")
    return _Header(*frame, orientation, tuple(spans))


def _read(fp: BinaryIO, n: int) -> bytes:
    data = fp.read(n)
    if len(data) < n:
        raise ValueError(
            f"cut short: it ends at byte {fp.tell()}, in the middle of its header or data; copy it "
            "again"
        )
    return data


def _orientation(tiff: bytes) -> int:
    """Orientation 1 to 8 from the first directory of an EXIF block; what cannot be read counts as
    upright."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * n_entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == 0x0112:
                value = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], tiff, entry + 8)[
                    0
                ]
                return value if value in UPRIGHT else 1
    except (struct.error, KeyError):
        pass
    return 1


def _decode(data: bytes, header: _Header) -> Image.Image:
    """The pixels as Pillow stores them. The classes are called directly: Image.open would look for
    MPO frames."""
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
    _decode(data, header := _read_header(io.BytesIO(data)))
    return b"".join([data[start:stop] for start, stop in header.spans])


def _of_bits(data: bytes, bits: int) -> Image.Image:
    rgb, alpha = rgb_of_bits(_checked(data), bits)
    return _over_white(rgb, alpha) if alpha else rgb


def _damage(data: bytes, header: _Header) -> str | None:
    """What is wrong inside a JPEG's picture; of its headers the decoder is shown only what it
    needs, so none can warn."""
    if not data.startswith(JPEG_MAGIC):
        return None
    jpeg = b"".join(
        [data[start:stop] for start, stop in header.spans if data[start + 1] not in COLOUR]
    )
    warning = scan_warning(jpeg)
    return (
        tell_damage(jpeg, warning, np.asarray(to_rgb(_decode(data, header)))) if warning else None
    )


def _check_chunks(data: bytes, header: _Header) -> None:
    """Raise ValueError if a PNG chunk fails its CRC; Pillow looks at those before the pixels
    only."""
    view = memoryview(data)
    for start, stop in header.spans[1:]:
        if zlib.crc32(view[start + 4 : stop - 4]) != int.from_bytes(view[stop - 4 : stop], "big"):
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
