"""Archives: a smaller copy of a store's sealed images, for keeping and sending. Not mapped, not for
training: converted back.

An archive is a Zarr v3 group of the arrays that docs/format.md names, compressed by codecs of the
Zarr v3 registry, so any client reads it. Which images and views go in, and making a store of them
again, is `convert`'s.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import torch

from featurestore.backbone.moments import pool, row_stats
from featurestore.backbone.rounding import ErrorTally, dequantise, quantise
from featurestore.disk import durable
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.maps import refuse_too_many
from featurestore.disk.threads import lone_threads
from featurestore.errors import InputError, NoAccessError, StoreDamaged, UsageError, list_some
from featurestore.format.spec import OWN_COLUMNS, StoreSpec, TokenSpec
from featurestore.format.zarr import count_images, read_metadata
from featurestore.manage.archive_layout import (
    BLOCK_NAMES,
    MOST_CHUNK_BYTES,
    Codec,
    Scheme,
    check_array,
    check_attributes,
)
from featurestore.read.rows import ImageRows, bounded
from featurestore.store import FeatureStore, catalog_frame, seals
from featurestore.write.writer import encode_column, image_bytes, row_crcs

if TYPE_CHECKING:
    import zarr

# rounded while their float32 copies are in the cache: 20 ms a full-size row, all at once 78
VALUES_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class ArchiveReport:
    """What `write_archive` did; error is None where nothing was lost."""

    path: Path
    codec: str
    n_images: int
    seconds: float
    bytes_in: int
    bytes_out: int
    error: dict[str, float] | None

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.n_images} images in {self.seconds:.1f} s, "
            f"{_kept(self.bytes_in, self.bytes_out)}, "
            f"{_lost(self.codec, self.error)}"
        )


class Archive:
    """An archive open for reading; like a FeatureStore it has spec, catalog, sealed and
    rows(image)."""

    def __init__(self, path: Path, scheme: Scheme, attributes: dict, root: "zarr.Group") -> None:
        self.path, self.spec, self.codec = path, scheme.spec, scheme.codec
        self.error: dict[str, float] | None = attributes["error"]
        self.bytes_in, self.bytes_out = attributes["bytes_in"], attributes["bytes_out"]
        self._scheme, self._root = scheme, root
        self._block: tuple[int, dict[str, np.ndarray]] = (-1, {})

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Archive":
        """Open the archive at path; what its metadata says is checked before any array is read.

        InputError if it is something else or of a newer version; StoreDamaged if a file is missing
        or not as its spec says.
        """
        import zarr

        path = Path(os.path.abspath(path))
        attributes = read_metadata(path, "group").get("attributes", {})
        check_attributes(path, attributes)
        spec = StoreSpec.from_json(attributes["spec"], str(path))
        scheme = Scheme(attributes["codec"], spec, count_images(path))
        for array in scheme.arrays:
            check_array(path, array, scheme)
        if links := [str(each) for each in path.rglob("*") if each.is_symlink()]:
            raise StoreDamaged(
                f"{path}: holds links; an archive's own files are not followed "
                f"elsewhere:{list_some(links)}"
            )
        return cls(
            path,
            scheme,
            attributes,
            zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False),
        )

    @property
    def n_images(self) -> int:
        return self._scheme.n

    def __len__(self) -> int:
        return self.n_images

    @cached_property
    def catalog(self) -> pd.DataFrame:
        """One row an image, as the store's."""
        return catalog_frame(self.spec, self._cells)

    @cached_property
    def _cells(self) -> list[np.ndarray]:
        return [self._read(column.node) for column in self.spec.columns]

    @cached_property
    def _seal_N(self) -> np.ndarray:
        return self._read("seal")

    @cached_property
    def _crc_NV(self) -> np.ndarray:
        return self._read("crc32c")

    @property
    def sealed(self) -> np.ndarray:
        """Positions of the images whose tokens are here: all."""
        return np.arange(self.n_images)

    def row_crcs(self, image: int) -> np.ndarray:
        """(V,) uint32: CRC-32C of an image's rows as they were archived."""
        return self._crc_NV[image]

    def rows(self, image: int) -> ImageRows:
        """All of an image, decoded, as a store takes it; StoreDamaged, naming image and view, if it
        is not what was archived."""
        image = bounded(image, self.n_images, "image")
        small = {
            name: values[image % self._block_images]
            for name, values in self._block_of(image).items()
        }
        facts = {name: self.catalog[name][image] for name in OWN_COLUMNS[2:]}
        rows = ImageRows(
            small["cls"],
            self._patches(image, small) if self.spec.has_patches else None,
            small["pooled"],
            small["stats"],
            small.get("thumbs"),
            facts,
        )
        self._check(image, rows)
        return rows

    @property
    def _block_images(self) -> int:
        return self._root["cls"].chunks[0]

    def _block_of(self, image: int) -> dict[str, np.ndarray]:
        """All arrays but patches of the images written together with this one; the last block stays
        at hand."""
        number, size = image // self._block_images, self._block_images
        if self._block[0] != number:
            span = slice(number * size, (number + 1) * size)
            self._block = (
                number,
                {
                    array.name: self._read(array.name, span, f" of {self._name(image)} or near it")
                    for array in self._scheme.arrays
                    if array.name in BLOCK_NAMES
                },
            )
        return self._block[1]

    def _patches(self, image: int, small: dict[str, np.ndarray]) -> np.ndarray:
        """(V, T, P, D) float16."""
        try:
            stored = self._read("patches", image)
        except StoreDamaged:
            for view, name in enumerate(self.spec.tokens.view_names):
                self._read("patches", (image, view), f" of {self._name(image)}, view {name!r}")
            raise
        return _dequantised(stored, small["patches_scale"]) if self.codec == "int8" else stored

    def _check(self, image: int, rows: ImageRows) -> None:
        wrong = np.flatnonzero(row_crcs(rows) != self._crc_NV[image])
        if len(wrong):
            raise StoreDamaged(
                f"{self.path}: {self._name(image)}, view "
                f"{self.spec.tokens.view_names[wrong[0]]!r}: its bytes are "
                "not those archived (CRC-32C differs); take another copy of the archive"
            )
        cells = [column[image : image + 1] for column in self._cells]
        thumb = None if rows.thumb_HW3 is None else rows.thumb_HW3[None]
        if (
            seals(self.spec, image, cells, thumb, self._crc_NV[image : image + 1])[0]
            != self._seal_N[image]
        ):
            raise StoreDamaged(
                f"{self.path}: {self._name(image)}: its seal does not match its catalog row, "
                "thumbnail and "
                "checksums; take another copy of the archive"
            )

    def _name(self, image: int) -> str:
        return f"image {image} ({self.catalog['image_id'][image]})"

    def _read(self, name: str, key: Any = ..., what: str = "") -> np.ndarray:
        """Decoded values of an array; StoreDamaged if they cannot be had."""
        try:
            return np.asarray(self._root[name][key])
        except PermissionError as err:
            raise NoAccessError.of(err, self.path / name) from err
        except (ValueError, RuntimeError, OSError, KeyError) as err:
            # what zarr's codecs raise for rot and for cut files
            refuse_too_many(self.path / name, err)
            raise StoreDamaged(
                f"{self.path / name}{what}: cannot be decoded ({str(err).splitlines()[0][:200]}); "
                "take another "
                "copy of the archive"
            ) from err

    def __repr__(self) -> str:
        t = self.spec.tokens
        return (
            f"Archive {self.path}\n"
            f"  a compressed copy, not mapped: `biomass store convert {self.path} OUT.h5` makes a "
            "store of it\n"
            f"  {self.n_images} images x {len(t.views)} views\n"
            f"  codec    {_lost(self.codec, self.error)}; {_kept(self.bytes_in, self.bytes_out)}\n"
            f"  tokens   {t.n_tiles} tile(s) x (1 + {t.grid[0]} x {t.grid[1]}) x {t.width} "
            f"{t.dtype}\n"
            f"  backbone {t.model}, layers {list(t.layers)}, {t.crop} {t.tile_height} x "
            f"{t.tile_width}\n"
            f"  views    {', '.join(t.view_names)}"
        )


def write_archive(
    source: FeatureStore | Archive,
    path: Path,
    codec: Codec,
    images: Sequence[int],
    views: Sequence[int] | None = None,
    progress: Callable[[int], object] = lambda n_bytes: None,
) -> ArchiveReport:
    """Keep images of a store, or of another archive, in a new archive, which appears whole or not
    at all.

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
    start, path = time.monotonic(), Path(path)
    _check_request(source, path, codec, images)
    scheme = Scheme(codec, _spec_of(source.spec, codec, views), len(images))
    durable.check_writable(path.parent)
    with durable.locked(path), _plain_os_errors(path), durable.appears_whole(path) as partial:
        root, arrays = scheme.create(partial)
        tally = ErrorTally() if codec == "int8" else None
        crc_NV = _write_rows(arrays, scheme, _sources(source, images, views), tally, progress)
        _write_catalog(arrays, scheme, source.catalog.iloc[list(images)], crc_NV)
        bytes_in = image_bytes(scheme.spec) * scheme.n
        bytes_out = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        error = tally.error() if tally else None
        root.update_attributes(
            {
                "error": error,
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "ratio": bytes_in / bytes_out,
            }
        )
    return ArchiveReport(
        path, codec, scheme.n, time.monotonic() - start, bytes_in, bytes_out, error
    )


def check_archive_name(path: Path) -> None:
    """InputError unless an archive can have this name."""
    if path.suffix != ".zarr":
        raise InputError(
            f"{path}: an archive's name ends in .zarr: HDF5 reads zstd by a plugin only, Zarr v3 "
            "clients have it"
        )


def _spec_of(spec: StoreSpec, codec: Codec, views: Sequence[int] | None) -> StoreSpec:
    """What the archive becomes when it is converted back."""
    tokens = spec.tokens.model_dump()
    if views is not None:
        tokens["views"] = tuple(tokens["views"][view] for view in views)
    if codec == "int8":
        tokens["dtype"] = "int8"
    return StoreSpec(**{**spec.model_dump(), "tokens": TokenSpec(**tokens)})


# -- writing


def _check_request(
    source: FeatureStore | Archive, path: Path, codec: Codec, images: Sequence[int]
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
            f"{path}: {len(images)} images, {len(set(images))} different ones; name each once, and "
            "at least one"
        )
    t = source.spec.tokens
    if codec == "int8" and not source.spec.has_patches:
        raise InputError(
            f"{source.path}: a pooled store has no patch tokens to round; use codec zstd"
        )
    if t.n_tiles * t.n_patches * t.width * 2 > MOST_CHUNK_BYTES:
        raise InputError(
            f"{source.path}: a row is over 2 GB, more than one compressed chunk can hold; keep the "
            "store itself"
        )


def _sources(
    source: FeatureStore | Archive, images: Sequence[int], views: Sequence[int] | None
) -> Iterator[ImageRows]:
    """Rows of each image, its bytes checked."""
    if isinstance(source, FeatureStore) and not source.is_remote:
        # rot must not get a checksum of its own
        source = FeatureStore(source.layout, "first-touch")
    for image in images:
        rows = source.rows(image)
        if views is not None:
            at = list(views)
            patches = None if rows.patches_VTPD is None else rows.patches_VTPD[at]
            rows = ImageRows(
                rows.cls_VTD[at], patches, rows.pooled_VT5D[at], rows.stats_VS[at], rows.thumb_HW3
            )
        yield rows


def _write_rows(
    arrays: "dict[str, zarr.Array]",
    scheme: Scheme,
    sources: Iterator[ImageRows],
    tally: ErrorTally | None,
    progress: Callable[[int], object],
) -> np.ndarray:
    """Write all arrays of rows, block by block; (N, V) uint32, the CRC-32C of the rows as they will
    be restored."""
    crc_NV = np.zeros((scheme.n, len(scheme.spec.tokens.views)), np.uint32)
    for block in _spans(0, scheme.n, scheme.per_block):
        small = scheme.buffers(BLOCK_NAMES, len(block))
        for span in _spans(block.start, block.stop, scheme.per_file):
            large = scheme.buffers(("patches",), len(span))
            for image, rows in zip(span, sources, strict=False):
                parts, crc_NV[image] = _encoded(scheme.spec, rows, tally)
                for name, values in parts.items():
                    buffer, first = (large, span.start) if name in large else (small, block.start)
                    buffer[name][image - first] = values
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
    spec: StoreSpec, rows: ImageRows, tally: ErrorTally | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """An image's values by array of the archive, and (V,) uint32, the CRC-32C of each of its rows
    as it will be restored."""
    parts = {}
    if tally:
        rows, parts = _rounded(spec, rows, tally)
    elif spec.has_patches:
        parts = {"patches": rows.patches_VTPD}
    parts |= {"cls": rows.cls_VTD, "pooled": rows.pooled_VT5D, "stats": rows.stats_VS}
    return parts | ({"thumbs": rows.thumb_HW3} if spec.thumb else {}), row_crcs(rows)


def _rounded(
    spec: StoreSpec, rows: ImageRows, tally: ErrorTally
) -> tuple[ImageRows, dict[str, np.ndarray]]:
    """An image's rows as an int8 archive gives them back, view by view, and what it keeps for
    that."""
    restored = ImageRows(
        rows.cls_VTD,
        np.empty_like(rows.patches_VTPD),
        np.empty(rows.pooled_VT5D.shape, spec.pooled_dtype),
        np.empty_like(rows.stats_VS),
        rows.thumb_HW3,
    )
    parts = {
        "patches": np.empty(rows.patches_VTPD.shape, np.int8),
        "patches_scale": np.empty(rows.patches_VTPD.shape[:-1], np.float32),
    }
    with lone_threads() as threads:
        tallies = list(
            threads.map(
                lambda v: _round_view(v, rows, restored, parts), range(len(rows.patches_VTPD))
            )
        )
    for each in tallies:  # in the views' order: the same archive, the same last digit
        tally.merge(each)
    return restored, parts


def _round_view(
    v: int, rows: ImageRows, restored: ImageRows, parts: dict[str, np.ndarray]
) -> ErrorTally:
    """Fill one view of `restored` and `parts`."""
    tally = ErrorTally()
    for tokens, q, scale, rounded in _blocks(
        rows.patches_VTPD[v],
        parts["patches"][v],
        parts["patches_scale"][v][..., None],
        restored.patches_VTPD[v],
    ):
        q[:], scale[:, 0] = quantise(tokens)
        rounded[:] = dequantise(q, scale[:, 0])
        tally.add(tokens, rounded)
    rounded_TPD = torch.from_numpy(restored.patches_VTPD[v])
    pooled_T5D = pool(rounded_TPD)
    restored.pooled_VT5D[v] = pooled_T5D
    restored.stats_VS[v] = row_stats(torch.from_dlpack(rows.cls_VTD[v]), rounded_TPD, pooled_T5D)
    return tally


def _dequantised(q_VTPD: np.ndarray, scale_VTP: np.ndarray) -> np.ndarray:
    """(V, T, P, D) float16."""
    tokens_VTPD = np.empty(q_VTPD.shape, np.float16)
    with lone_threads() as threads:
        list(threads.map(_dequantise_view, q_VTPD, scale_VTP[..., None], tokens_VTPD))
    return tokens_VTPD


def _dequantise_view(q_TPD: np.ndarray, scale_TP1: np.ndarray, tokens_TPD: np.ndarray) -> None:
    for q, scale, tokens in _blocks(q_TPD, scale_TP1, tokens_TPD):
        tokens[:] = dequantise(q, scale[:, 0])


def _blocks(*arrays_TPX: np.ndarray) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same few tokens of each array, as tensors that share its memory."""
    at_once = max(1, VALUES_AT_ONCE // arrays_TPX[0].shape[-1])
    return zip(
        *(torch.from_dlpack(array).flatten(0, 1).split(at_once) for array in arrays_TPX),
        strict=True,
    )


def _write_catalog(
    arrays: "dict[str, zarr.Array]", scheme: Scheme, frame: pd.DataFrame, crc_NV: np.ndarray
) -> None:
    """The catalog, the checksums, and seals as they will be in the store of all these images."""
    cells = [encode_column(column, frame[column.name]) for column in scheme.spec.columns]
    for column, values in zip(scheme.spec.columns, cells, strict=True):
        arrays[column.node][...] = values
    arrays["crc32c"][...] = crc_NV
    thumbs = arrays["thumbs"] if scheme.spec.thumb else None
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


@contextmanager
def _plain_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as err:
        raise NoAccessError.of(err, path, what="read or write") from err
    except OSError as err:
        raise InputError(
            f"{path}: writing failed: {err.strerror}; nothing of it is left, the source is as it "
            "was; "
            "make room, or choose another place"
        ) from err


def _kept(bytes_in: int, bytes_out: int) -> str:
    return f"{bytes_in / 1e9:.3g} GB in {bytes_out / 1e9:.3g} GB (ratio {bytes_in / bytes_out:.2f})"


def _lost(codec: str, error: dict[str, float] | None) -> str:
    if error is None:
        return f"{codec}, nothing lost"
    return (
        f"{codec}, patch tokens rounded by {error['rms_relative']:.2%} of their norm (rms; at most "
        f"{error['max_relative']:.2%}), single values by at most {error['max']:.3g}"
    )
