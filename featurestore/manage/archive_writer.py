"""Writing an archive, by blocks of whole images; it appears whole or not at all."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd

from featurestore.backbone.rounding import ErrorTally
from featurestore.disk import durable
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.refusals import write_errors
from featurestore.errors import InputError, UsageError
from featurestore.format.spec import StoreSpec, TokenSpec
from featurestore.manage.archive_layout import (
    BLOCK_NAMES,
    MOST_CHUNK_BYTES,
    Codec,
    Scheme,
)
from featurestore.read.reader import Reader
from featurestore.read.rows import ImageRows, row_crcs
from featurestore.read.seals import seals
from featurestore.write.columns import encode_column
from featurestore.write.writer import image_bytes

if TYPE_CHECKING:
    import zarr
from featurestore.manage.archive import Archive, ArchiveReport
from featurestore.manage.archive_int8 import rounded_rows


def write_archive(
    source: Reader | Archive,
    path: Path,
    codec: Codec,
    images: Sequence[int],
    views: Sequence[int] | None = None,
    progress: Callable[[int], object] = lambda n_bytes: None,
) -> ArchiveReport:
    """Keep images of a store or archive in a new archive, which appears whole or not at all.

    Parameters
    ----------
    codec : "zstd" gives back every bit. "int8" rounds patch tokens
        (featurestore.backbone.rounding); pooled rows and stats are taken from the rounded tokens,
        and the spec says so: it is another fingerprint.
    images : positions of sealed images, in the order they shall have.
    views : positions; None keeps all.
    progress : told how many more bytes of the source were archived.

    A few images' tokens are held at once. The source's rows are checked against their CRC-32C
    before they get a new one. Raises InputError if path cannot be an archive's or is taken, an
    image is not sealed, or int8 has no patches to round; StoreDamaged if the source has rotten.
    """
    start = time.monotonic()
    path = Path(path)
    _check_request(source, path, codec, images)
    # what the archive becomes when it is converted back
    tokens = source.spec.tokens.model_dump()
    if views is not None:
        tokens["views"] = tuple(tokens["views"][view] for view in views)
    if codec == "int8":
        tokens["dtype"] = "int8"
    spec = StoreSpec(**{**source.spec.model_dump(), "tokens": TokenSpec(**tokens)})
    scheme = Scheme(codec, spec, len(images))
    durable.check_writable(path.parent)
    advice = "nothing of it is left, the source is as it was; make room, or choose another place"
    with (
        durable.locked(path),
        write_errors(path, advice),
        durable.appears_whole(path) as partial,
    ):
        root, arrays = scheme.create(partial)
        tally = ErrorTally() if codec == "int8" else None
        crc_NV = _write_rows(arrays, scheme, _sources(source, images, views), tally, progress)
        _write_catalog(arrays, scheme, source.catalog.iloc[list(images)], crc_NV)
        bytes_in = image_bytes(scheme.spec) * scheme.n
        files = [file for file in partial.rglob("*") if file.is_file()]
        bytes_out = sum(file.stat().st_size for file in files)
        error = tally.error() if tally else None
        told = {"error": error, "bytes_in": bytes_in, "bytes_out": bytes_out}
        root.update_attributes(told | {"ratio": bytes_in / bytes_out})
    seconds = time.monotonic() - start
    return ArchiveReport(path, codec, scheme.n, seconds, bytes_in, bytes_out, error)


def check_archive_name(path: Path) -> None:
    """InputError unless an archive can have this name."""
    if path.suffix != ".zarr":
        raise InputError(
            f"{path}: an archive's name ends in .zarr: HDF5 reads zstd by a plugin only, Zarr v3 "
            "clients have it"
        )


def _check_request(
    source: Reader | Archive,
    path: Path,
    codec: Codec,
    images: Sequence[int],
) -> None:
    check_archive_name(path)
    if codec not in get_args(Codec):
        raise UsageError(f"codec {codec!r}: choose one of {', '.join(get_args(Codec))}")
    if path.exists():
        raise InputError(
            f"{path}: exists already; choose another name, an archive is never added to"
        )
    if not len(images) or len(set(images)) < len(images):
        raise InputError(
            f"{path}: {len(images)} images, {len(set(images))} different ones; "
            "name each once, and at least one"
        )
    t = source.spec.tokens
    if codec == "int8" and not source.spec.has_patches:
        raise InputError(
            f"{source.path}: a pooled store has no patch tokens to round; use codec zstd"
        )
    if t.n_tiles * t.n_patches * t.width * 2 > MOST_CHUNK_BYTES:
        raise InputError(
            f"{source.path}: a row is over 2 GB, more than one compressed chunk can hold; "
            "keep the store itself"
        )


def _sources(
    source: Reader | Archive,
    images: Sequence[int],
    views: Sequence[int] | None,
) -> Iterator[ImageRows]:
    """Rows of each image, its bytes checked."""
    if isinstance(source, Reader):
        # rot must not get a checksum of its own
        source = Reader(source.source, "first-touch")
    for image in images:
        rows = source.rows(image)
        if views is not None:
            at = list(views)
            patches = None if rows.patches_VTPD is None else rows.patches_VTPD[at]
            rows = replace(
                rows,
                cls_VTD=rows.cls_VTD[at],
                patches_VTPD=patches,
                pooled_VT5D=rows.pooled_VT5D[at],
                stats_VS=rows.stats_VS[at],
            )
        yield rows


def _write_rows(
    arrays: "dict[str, zarr.Array]",
    scheme: Scheme,
    sources: Iterator[ImageRows],
    tally: ErrorTally | None,
    progress: Callable[[int], object],
) -> np.ndarray:
    """Write all arrays of rows, block by block.

    Returns (N, V) uint32, the CRC-32C of the rows as they will be restored.
    """
    crc_NV = np.zeros((scheme.n, len(scheme.spec.tokens.views)), np.uint32)
    for block in _spans(0, scheme.n, scheme.per_block):
        small = scheme.buffers(BLOCK_NAMES, len(block))
        for span in _spans(block.start, block.stop, scheme.per_file):
            large = scheme.buffers(("patches",), len(span))
            # the span first: zip would take the next span's first image, and drop it
            for image, rows in zip(span, sources, strict=False):
                parts, crc_NV[image] = _encoded(scheme.spec, rows, tally)
                for name, values in parts.items():
                    if name in large:
                        large[name][image - span.start] = values
                    else:
                        small[name][image - block.start] = values
                progress(image_bytes(scheme.spec))
                check_interrupt()
            _put(arrays, large, span)
        _put(arrays, small, block)
    return crc_NV


def _spans(start: int, stop: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, stop)) for first in range(start, stop, size))


def _put(arrays: "dict[str, zarr.Array]", buffers: dict[str, np.ndarray], span: range) -> None:
    for name, values in buffers.items():
        arrays[name][span.start : span.stop] = values


def _encoded(
    spec: StoreSpec,
    rows: ImageRows,
    tally: ErrorTally | None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """An image's values by array of the archive, and its rows' CRC-32C (V,) when restored."""
    parts = {}
    if tally:
        rows, parts = rounded_rows(spec, rows, tally)
    elif spec.has_patches:
        parts["patches"] = rows.patches_VTPD
    parts |= {"cls": rows.cls_VTD, "pooled": rows.pooled_VT5D, "stats": rows.stats_VS}
    if spec.thumb:
        parts["thumbs"] = rows.thumb_HW3
    return parts, row_crcs(rows)


def _write_catalog(
    arrays: "dict[str, zarr.Array]",
    scheme: Scheme,
    frame: pd.DataFrame,
    crc_NV: np.ndarray,
) -> None:
    """The catalog, the checksums, and seals as they will be in the store of all these images."""
    cells = [encode_column(column, frame[column.name]) for column in scheme.spec.columns]
    for column, values in zip(scheme.spec.columns, cells, strict=True):
        arrays[column.node][...] = values
    arrays["crc32c"][...] = crc_NV
    thumbs = arrays["thumbs"] if scheme.spec.thumb else None
    # taken anew: a seal vouches for the position, and for rows as int8 gives them back
    seal_N = np.zeros(scheme.n, np.uint32)
    for span in _spans(0, scheme.n, scheme.per_block):
        at = slice(span.start, span.stop)
        seal_N[at] = seals(
            scheme.spec,
            span.start,
            [column[at] for column in cells],
            thumbs[at] if thumbs else None,
            crc_NV[at],
        )
    arrays["seal"][...] = seal_N
