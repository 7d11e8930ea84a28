"""Which format a photograph has, by its content, and Pillow's decoder for it.

The decoders here are all that are ever called, each by its class: `Image.open` would try any.
"""

from importlib.util import find_spec
from typing import BinaryIO

from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

START_BYTES = 32
"""Of a file, enough to tell its format."""
READ = "JPEG, PNG, WebP, TIFF, BMP or, with pillow-heif, HEIC"
HEIF_PACKAGE = "pillow-heif"
DECODERS = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
}
MAGICS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    # what is refused by name
    b"GIF8": "GIF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"FUJIFILMCCD-RAW": "Fujifilm raw",
    b"IIRO": "Olympus raw",
    b"IIU\0": "Panasonic raw",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"PK\3\4": "ZIP",
    b"<": "HTML or XML",
}
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
OTHER_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "Canon raw"}
PREVIEW = 1
"""Bit of the TIFF tag NewSubfileType: the picture is a smaller copy of another one."""
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, DNG_VERSION = 254, 258, 50706


def kind_of(start: bytes) -> str:
    """JPEG, PNG, WebP, TIFF, BMP or HEIC; ValueError names any other format.

    start : the first START_BYTES of the file.
    """
    if not start:
        raise ValueError("the file is empty")
    found = _known_kind(start)
    if found in DECODERS or found == "HEIC":
        return found
    what = f"a {found} file" if found else f"of no known format, it starts with {start[:8]!r}"
    raise ValueError(f"{what}, whatever its name; save it as {READ}")


def can_read_heic() -> bool:
    """Whether pillow-heif is here, the extra `heif`."""
    return find_spec("pillow_heif") is not None


def opened(kind: str, file: BinaryIO) -> ImageFile:
    """Pillow's picture of a file of one of these formats; its pixels are not decoded yet.

    TIFF and HEIC pictures say their upright size, and are upright once decoded.
    """
    if kind == "HEIC":
        if not can_read_heic():
            raise ValueError(
                f"a HEIC photograph; `pip install {HEIF_PACKAGE}` lets it be read, or save it as "
                "JPEG"
            )
        from pillow_heif import HeifImageFile

        return HeifImageFile(file)

    image = DECODERS[kind](file)
    if kind == "TIFF":
        # many cameras' raw files are TIFFs, whose first picture is a preview
        tags = image.tag_v2
        if DNG_VERSION in tags or tags.get(NEW_SUBFILE_TYPE, 0) & PREVIEW:
            raise ValueError(f"a camera's raw file, which holds a preview first; save it as {READ}")
    return image


def _known_kind(start: bytes) -> str | None:
    if start[:4] == b"RIFF":
        return "WebP" if start[8:12] == b"WEBP" else "RIFF"
    if start[4:8] == b"ftyp":
        return _brand_of(start)
    for magic, kind in MAGICS.items():
        # HTML and XML may begin with blanks
        found = start.lstrip() if magic == b"<" else start
        if found.startswith(magic):
            return kind
    return None


def _brand_of(start: bytes) -> str:
    """Of a file in boxes (ISO/IEC 14496-12), whose first one names its brands."""
    length = int.from_bytes(start[:4], "big")
    end = min(length, len(start))
    # its major brand, a version that says nothing, then brands that it is compatible with
    brands = [start[8:12]]
    brands += [start[at : at + 4] for at in range(16, end, 4)]
    for brand in brands:
        if brand in OTHER_BRANDS:
            return OTHER_BRANDS[brand]
    return "HEIC" if any(brand in HEIC_BRANDS for brand in brands) else "video"
