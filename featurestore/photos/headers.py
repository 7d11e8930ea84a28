"""Headers of JPEG and PNG files: size, orientation, and which bytes make the pixels."""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image

MAX_PIXELS = 80_000_000  # 240 MB as RGB; below Pillow's own warning limit of 89.5 million
TAIL_BYTES = 1 << 16  # read first for a JPEG's end: few files have more behind it
JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
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
class Header:
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
                f"{self.width} x {self.height} pixels; "
                f"between 1 and {MAX_PIXELS:,} are read, shrink it"
            )

    @property
    def upright_size(self) -> tuple[int, int]:
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(fp: BinaryIO) -> Header:
    start = fp.read(len(PNG_MAGIC))
    if not start:
        raise ValueError("the file is empty")
    if start == PNG_MAGIC:
        return _png_header(fp)
    if start.startswith(JPEG_MAGIC):
        return _jpeg_header(fp)
    raise ValueError(
        f"neither JPEG nor PNG, whatever its name: it starts with {start!r}; "
        "save it as one of the two"
    )


def _jpeg_header(fp: BinaryIO) -> Header:
    """Follow the segments up to the scan (ITU-T T.81, B.1).

    APP0 and APP14 say how colour is coded, the rest may go.
    """
    fp.seek(2)
    frame, orientation, spans = None, None, [(0, 2)]
    while (marker := _next_marker(fp)) != 0xDA:  # SOS: the scan follows
        # TEM, RSTn, SOI and EOI have no length behind them
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:
            continue
        start = fp.tell()
        stop = start + struct.unpack(">H", _read(fp, 2))[0]
        # a frame header (SOFn); among these codes DHT, JPG and DAC are none
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack(">BHH", _read(fp, 5))
        elif marker == 0xE1 and orientation is None and fp.read(6) == b"Exif\0\0":
            orientation = _orientation(_read(fp, stop - fp.tell()))
        # of APPn and COM only those that say how colour is coded
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            spans.append((start - 2, stop))
        fp.seek(stop)
    scan = fp.tell()
    _find_end_of_jpeg(fp, scan)
    if frame is None:
        raise ValueError("JPEG without a frame header; it is damaged, export it again")
    bits, height, width = frame
    return Header(width, height, bits, orientation or 1, (*spans, (scan - 2, None)))


def _next_marker(fp: BinaryIO) -> int:
    """The code of the next marker; fill bytes and stray ones before it are skipped."""
    while True:
        while _read(fp, 1) != b"\xff":
            pass
        while (code := _read(fp, 1)) == b"\xff":
            pass
        if code != b"\0":  # ff 00 is a byte of data
            return code[0]


def _find_end_of_jpeg(fp: BinaryIO, scan: int) -> None:
    """ValueError if no end-of-image marker follows the scan.

    Phones append whole videos, so it is looked for twice.
    """
    size = fp.seek(0, os.SEEK_END)
    for start in (max(scan, size - TAIL_BYTES), scan):
        fp.seek(start)
        if b"\xff\xd9" in fp.read():
            return
    raise ValueError(f"cut short: {size} bytes and no JPEG end-of-image marker; copy it again")


def _png_header(fp: BinaryIO) -> Header:
    """Follow the chunks to the end (PNG 3rd edition, 5.3).

    Critical chunks and tRNS make the pixels; others may go.
    """
    frame, orientation, kind, spans = None, 1, b"", [(0, 8)]
    while kind != b"IEND":
        start = fp.tell()
        length, kind = struct.unpack(">I4s", _read(fp, 8))
        if kind == b"IHDR":
            frame = struct.unpack(">IIB", _read(fp, 9))
        elif kind == b"eXIf":
            orientation = _orientation(_read(fp, length))
        stop = start + 12 + length  # length, kind and CRC take four bytes each
        # a capital first letter marks a critical chunk
        if kind[:1].isupper() or kind == b"tRNS":
            spans.append((start, stop))
        fp.seek(stop - 1)
        _read(fp, 1)  # a seek goes past the end of a file unnoticed, a read does not
    if frame is None:
        raise ValueError("PNG without IHDR; it is damaged, export it again")
    return Header(*frame, orientation, tuple(spans))


def _read(fp: BinaryIO, n: int) -> bytes:
    data = fp.read(n)
    if len(data) < n:
        raise ValueError(
            "cut short: "
            f"it ends at byte {fp.tell()}, in the middle of its header or data; copy it again"
        )
    return data


def _orientation(tiff: bytes) -> int:
    """Orientation 1 to 8 from the first directory of an EXIF block; upright if unreadable."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * n_entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == 0x0112:
                # SHORT by the standard; some writers take BYTE or LONG
                code = {1: "B", 3: "H", 4: "I"}[kind]
                (value,) = struct.unpack_from(order + code, tiff, entry + 8)
                return value if value in UPRIGHT else 1
    except (struct.error, KeyError):
        pass
    return 1
