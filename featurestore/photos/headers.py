"""Headers of photographs: size, orientation, and which bytes make the pixels.

JPEG and PNG are parsed here, since Pillow cannot say from headers that such a file was cut short,
warns of broken EXIF (in threads nobody can catch a warning), and does not compare the checksums of
a PNG's pixels. Of other formats Pillow tells all that is needed.
"""

import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from featurestore.format.spec import MAX_PIXELS
from featurestore.photos.kinds import BITS_PER_SAMPLE, START_BYTES, kind_of, opened
from featurestore.photos.limits import MOST_SCANS, check_parts, check_pixels
from featurestore.photos.picture import EXCHANGED, UPRIGHT

TAIL_BYTES = 1 << 16  # read first for a JPEG's end: few files have more behind it
# of a scan's data: a marker that is neither a stuffed zero nor a restart
NEXT_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
SCAN, END = 0xDA, 0xD9


@dataclass(frozen=True)
class Header:
    """What precedes the pixels; width and height as stored, bits of one sample.

    kind : the format, as `kinds.kind_of` names it.
    """

    kind: str
    width: int
    height: int
    bits: int
    orientation: int
    spans: tuple[tuple[int, int | None], ...]
    """The bytes that make the pixels, as slices of the file. Pillow is shown nothing else, so
    broken EXIF, MPO or APNG data can neither warn, nor refuse, nor choose another frame."""

    @property
    def upright_size(self) -> tuple[int, int]:
        size = self.width, self.height
        return size[::-1] if self.orientation in EXCHANGED else size


def read_header(fp: BinaryIO, max_pixels: int = MAX_PIXELS) -> Header:
    """ValueError for a file that is no photograph, is cut short, or has too many pixels."""
    kind = kind_of(fp.read(START_BYTES))
    fp.seek(0)
    if kind == "JPEG":
        header = _jpeg_header(fp)
    elif kind == "PNG":
        header = _png_header(fp)
    else:
        header = _header_by_pillow(kind, fp)
    check_pixels(header.width, header.height, max_pixels)
    return header


def check_scans(jpeg: bytes, header: Header) -> None:
    """ValueError for a JPEG of more scans than any encoder writes."""
    at, n_scans = header.spans[-1][0], 0
    while found := NEXT_MARKER.search(jpeg, at):
        at, code = found.end(), found[1][0]
        if code == END:
            return
        n_scans += code == SCAN
        if n_scans > MOST_SCANS:
            raise ValueError(f"more than {MOST_SCANS} scans; export it again, best not progressive")
        if code != 0x01:  # TEM has no length behind it
            at += int.from_bytes(jpeg[at : at + 2], "big")


def _header_by_pillow(kind: str, fp: BinaryIO) -> Header:
    image = opened(kind, fp)
    bits, orientation = 8, 1
    if kind == "TIFF":
        bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (8,)))
    if kind == "WebP":
        # the block of EXIF, with or without the name before it
        exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
        orientation = _orientation(exif)
    return Header(kind, *image.size, bits, orientation, ((0, None),))


def _jpeg_header(fp: BinaryIO) -> Header:
    """Follow the segments up to the scan (ITU-T T.81, B.1).

    APP0 and APP14 say how colour is coded, the rest may go.
    """
    fp.seek(2)
    frame, orientation, spans, n_parts = None, None, [(0, 2)], 0
    while (marker := _next_marker(fp)) != SCAN:
        check_parts(n_parts := n_parts + 1)
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
    spans.append((scan - 2, None))
    return Header("JPEG", width, height, bits, orientation or 1, tuple(spans))


def _next_marker(fp: BinaryIO) -> int:
    """The code of the next marker; fill bytes and stray ones before it are skipped."""
    n_stray = 0
    while True:
        while _read(fp, 1) != b"\xff":
            check_parts(n_stray := n_stray + 1)
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
    fp.seek(8)
    frame, orientation, kind, spans = None, 1, b"", [(0, 8)]
    while kind != b"IEND":
        check_parts(len(spans))
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
    return Header("PNG", *frame, orientation, tuple(spans))


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
