"""Small stores in each shape the format has, and what every array of them holds, known from what
was put, not from a read."""

import struct
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
from conftest import tiny_frame, tiny_rows, tiny_spec

from featurestore import open_writer
from featurestore.format.spec import StoreSpec
from featurestore.read.rows import ImageRows

KINDS = ("whole", "growing", "pooled")
# minus zero, subnormal ones, the greatest
ODD_HALVES = np.array([-0.0, 6e-8, -6e-5, 65504, 1 / 3], np.float16)


def write_kind(path: Path, kind: str) -> dict[str, np.ndarray]:
    """Write a store of five images; every array as any client must read it, but for the checksum of
    the metadata.

    whole : all arrays, all images. growing : three images are sealed, two are not yet, and there is
        room for two more.
    pooled : class tokens and vectors in float16 alone, no thumbnails.
    """
    frame = tiny_frame().assign(**{"N/ha é": np.arange(5) / 7})
    whole = spec = tiny_spec(frame)
    if kind == "pooled":
        spec = spec.changed(has_patches=False, pooled_dtype="float16", thumb=None)
    n_sealed, reserve = (3, 2) if kind == "growing" else (5, 0)
    rows = [_rows_of(spec, tiny_rows(whole, i)) for i in range(n_sealed)]
    with open_writer(path, spec, frame, reserve) as writer:
        for image, each in enumerate(rows):
            writer.put(image, each)
    return _held(spec, frame, rows, 5 + reserve)


def sealed_images(held: dict[str, np.ndarray]) -> list[int]:
    return np.flatnonzero(held["seal"]).tolist()


def _rows_of(spec: StoreSpec, rows: ImageRows) -> ImageRows:
    rows.cls_VTD[0, 0, :5] = ODD_HALVES
    if spec.has_patches:
        rows.patches_VTPD[1, 1, 2, :5] = ODD_HALVES
        return rows
    return replace(
        rows, patches_VTPD=None, pooled_VT5D=rows.pooled_VT5D.astype(np.float16), thumb_HW3=None
    )


def _held(spec: StoreSpec, frame, rows: list[ImageRows], room: int) -> dict[str, np.ndarray]:
    held = {
        a.name: np.zeros(a.shape, a.dtype) for a in spec.arrays(room) if a.name != "metadata_crc32c"
    }
    for column in spec.columns:
        missing = "" if column.kind == "text" else np.nan
        facts = [row.facts for row in rows] + [{}] * (len(frame) - len(rows))
        cells = (
            frame[column.name]
            if column.name in frame
            else [fact.get(column.name, missing) for fact in facts]
        )
        held[column.node][: len(frame)] = (
            cells if column.kind == "number" else [_text(cell, column.width) for cell in cells]
        )
    for i, row in enumerate(rows):
        values = {
            "cls": row.cls_VTD,
            "patches": row.patches_VTPD,
            "pooled": row.pooled_VT5D,
            "stats": row.stats_VS,
        }
        there = {name: value for name, value in values.items() if value is not None}
        for name, value in there.items():
            held[name][i] = value
        held["crc32c"][i] = [
            _crc(*(value[v] for value in there.values())) for v in range(len(spec.tokens.views))
        ]
        if spec.thumb:
            held["thumbs"][i] = row.thumb_HW3
        parts = [held[c.node][i] for c in spec.columns] + [
            held[name][i] for name in ("thumbs", "crc32c") if name in held
        ]
        held["seal"][i] = _crc(spec.fingerprint.encode(), struct.pack("<Q", i), *parts) or 1
    return held


def _text(text: str, width: int) -> list[int]:
    return list(text.encode().ljust(width, b"\0"))


def _crc(*parts: np.ndarray | bytes) -> int:
    return google_crc32c.value(
        b"".join(bytes(part) if isinstance(part, bytes) else part.tobytes() for part in parts)
    )
