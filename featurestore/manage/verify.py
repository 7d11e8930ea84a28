"""Every byte of a store, once: which rows are not what was committed; and un-sealing those, so that
a build makes them again."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from featurestore.disk.durable import (
    crc32c,
    crc32c_append,
    crc32c_rows,
    file_sha256,
    locked,
    pread_into,
)
from featurestore.disk.threads import Pool
from featurestore.disk.urls import is_url
from featurestore.errors import InputError, StoreDamaged, UsageError
from featurestore.format.choose import metadata_crc
from featurestore.format.layout import Extent
from featurestore.photos.catalog import find_photographs
from featurestore.photos.images import find_damage
from featurestore.photos.jpeg import UNCHECKED, can_check
from featurestore.store import FeatureStore
from featurestore.write.writer import StoreWriter

PIECE = 1 << 20  # bytes read and summed at once: they stay in the cache between the two
READERS, AHEAD = 2, 6  # threads, and buffers of theirs
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: with a row, with an image when view is None, with the store when
    image is None."""

    image: int | None
    image_id: str
    view: str | None
    path: str
    offset: int
    what: str
    damage: bool = True
    """Whether the store is to blame, and un-sealing the image the cure."""

    def __str__(self) -> str:
        where = f"{self.image_id} {self.view or '(all views)'}: " if self.image is not None else ""
        return f"{where}{self.what} ({self.path} at byte {self.offset})"


@dataclass
class VerifyReport:
    """What `verify` found; true when nothing is wrong."""

    n_images: int
    n_sealed: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    """Seconds that the checksum waited for bytes."""
    faults: list[Fault] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.faults

    @property
    def damaged(self) -> list[int]:
        """Images that un-sealing would have made again."""
        return sorted(
            {fault.image for fault in self.faults if fault.damage and fault.image is not None}
        )

    def pace(self) -> str:
        """How fast it went, and what set the pace."""
        limit = "the disk" if self.waited_s > self.seconds / 2 else "the checksum"
        return (
            f"{self.n_bytes / 1e9:.3g} GB in {self.seconds:.2g} s, "
            f"{self.n_bytes / 1e9 / max(self.seconds, 1e-9):.2g} GB/s, "
            f"as fast as {limit} allows"
        )


def verify(
    store: FeatureStore, progress: Progress = lambda n_bytes: None, images: Path | None = None
) -> VerifyReport:
    """Check every sealed image: its seal, and each of its rows, value by value; unsealed images are
    counted as absent.

    Reads with pread, so rot, a cut file and a bad disk are all reported, never a crash.

    progress : told how many more bytes were read.
    images : folder the catalog's paths start from; photographs that changed since, or are damaged
        inside, are faults too.
    """
    _refuse_remote(store.path)
    store.refresh()
    sums = _Sums(store, VerifyReport(store.n_images), progress)
    report, start = sums.report, time.perf_counter()
    sums.run()
    store.refresh()  # a builder may have added images meanwhile
    report.faults += [
        *_row_faults(sums),
        *_seal_faults(store),
        *_catalog_faults(store),
        *_metadata_faults(store),
    ]
    report.seconds = time.perf_counter() - start
    if images:
        report.faults += _photograph_faults(store, images)
    report.faults.sort(key=lambda fault: -1 if fault.image is None else fault.image)
    return report


def repair(path: Path, progress: Progress = lambda n_bytes: None) -> VerifyReport:
    """Verify, and un-seal what is damaged, under the builder's lock: the next build makes those
    images again.

    Nothing else is changed. LockedError while a builder is at work.
    """
    _refuse_remote(path)
    with locked(path), FeatureStore.open(path) as store:
        report = verify(store, progress)
        StoreWriter(store.layout, store).unseal(report.damaged)
    return report


def _refuse_remote(path: Path | str) -> None:
    if is_url(path):
        raise UsageError(
            f"{path}: verify reads files where they lie; run it on the server's machine. (Rows "
            "that are fetched are "
            "compared with their checksums.)"
        )


@dataclass(frozen=True)
class Piece:
    """A part of a row of patches as bytes, and what follows the row."""

    values: np.ndarray
    tail: bytes
    is_finite: bool


class _Sums:
    """CRC-32C of every row of the images that have a seal, array by array in the order the format
    chains them."""

    def __init__(self, store: FeatureStore, report: VerifyReport, progress: Progress) -> None:
        self.store, self.report, self._progress = store, report, progress
        self.sealed = np.flatnonzero(store.array("seal")[: store.n_images] != 0)
        self.crc_NV = np.zeros((store.n_images, len(store.view_names)), np.uint32)
        self.wrong: dict[tuple[int, int], str] = {}
        """What is wrong with a row, other than its sum."""
        report.n_sealed = len(self.sealed)

    def run(self) -> None:
        with Pool(READERS) as readers:
            for name in ("cls", "patches", "pooled", "stats"):
                if name == "patches" and self.store.spec.has_patches:
                    self._sum_patches(readers)
                elif name != "patches":
                    self._sum_small(name)

    def _sum_small(self, name: str) -> None:
        """An array whose rows are small: as many images at once as make a piece."""
        extent = self.store.layout.extents[name]
        per_block = max(1, PIECE // extent.array.row_bytes)
        for start in np.unique(self.sealed // per_block) * per_block:
            self._sum_block(extent, int(start), min(int(start) + per_block, self.store.n_images))

    def _sum_block(self, extent: Extent, start: int, end: int) -> None:
        shape = end - start, self.crc_NV.shape[1]
        values = np.empty((*shape, *extent.array.row_shape[1:]), extent.array.dtype)
        began = time.perf_counter()
        try:
            self._pread(extent.paths[0], values, extent.locate(start)[1])
        except (OSError, StoreDamaged) as err:
            self._halve(extent, start, end, err)
            return
        self._count(values.nbytes, time.perf_counter() - began)
        crc_NV = self.crc_NV[start:end]
        crc_NV[...] = crc32c_rows(values.reshape(crc_NV.size, -1), start_N=crc_NV.ravel()).reshape(
            shape
        )
        if _non_finite(values):
            odd = [(start + i, v) for i, v in np.ndindex(shape) if _non_finite(values[i, v])]
            self.wrong.update(dict.fromkeys(odd, f"values of {extent.array.name} are not finite"))

    def _halve(self, extent: Extent, start: int, end: int, err: Exception) -> None:
        """Find the images of a block that cannot be read."""
        if end - start == 1:
            self.wrong.update(
                {(start, view): f"cannot be read: {err}" for view in range(self.crc_NV.shape[1])}
            )
            return
        middle = (start + end) // 2
        self._sum_block(extent, start, middle)
        self._sum_block(extent, middle, end)

    def _sum_patches(self, readers: Pool) -> None:
        extent, n_views = self.store.layout.extents["patches"], self.crc_NV.shape[1]
        # what follows a row in Zarr, its own checksum and zeros, is read and checked too
        stride = extent.stride
        sizes = [min(PIECE, stride - at) for at in range(0, stride, PIECE)]
        rows = [(int(i), v) for i in self.sealed for v in range(n_views)]
        places = (extent.locate(i * n_views + v)[:2] for i, v in rows)
        pieces = self._ahead(
            readers,
            (
                (path, offset + n * PIECE, size, extent.array.row_bytes - n * PIECE)
                for path, offset in places
                for n, size in enumerate(sizes)
            ),
        )
        append = crc32c_append(extent.array.row_bytes)
        for row in rows:
            crc = self._sum_row(row, extent, islice(pieces, len(sizes)))
            self.crc_NV[row] = append(int(self.crc_NV[row]), crc)

    def _sum_row(
        self, row: tuple[int, int], extent: Extent, pieces: Iterator[Piece | Exception]
    ) -> int:
        """CRC-32C of one row's patches, from pieces as they come; what one holds is gone when the
        next is asked for."""
        crc, tail = 0, b""
        for piece in pieces:
            if isinstance(piece, Exception):
                self.wrong[row] = f"cannot be read: {piece}"
                continue
            crc = crc32c(piece.values, start=crc)
            tail += piece.tail
            if not piece.is_finite:
                self.wrong[row] = "values of patches are not finite"
        if (
            extent.row_crc
            and row not in self.wrong
            and tail != crc.to_bytes(4, "little") + bytes(len(tail) - 4)
        ):
            self.wrong[row] = "its chunk checksum, or the zeros that follow it, changed"
        return crc

    def _ahead(
        self, readers: Pool, places: Iterator[tuple[Path, int, int, int]]
    ) -> Iterator[Piece | Exception]:
        """The piece at each place in turn, or why it cannot be had, a few being read meanwhile; a
        buffer is used again."""
        buffers, waiting = deque(np.empty(PIECE, np.uint8) for _ in range(AHEAD)), deque()
        for path, offset, size, n_values in places:
            waiting.append(
                readers.submit(self._read_piece, path, buffers[0][:size], offset, n_values)
            )
            buffers.rotate(-1)
            if len(waiting) == AHEAD - 1:
                yield self._wait(waiting.popleft())
        while waiting:
            yield self._wait(waiting.popleft())

    def _wait(self, future: Future[Piece]) -> Piece | Exception:
        began = time.perf_counter()
        try:
            piece = future.result()
        except (OSError, StoreDamaged) as err:
            return err
        self._count(len(piece.values) + len(piece.tail), time.perf_counter() - began)
        return piece

    def _read_piece(self, path: Path, buffer: np.ndarray, offset: int, n_values: int) -> Piece:
        """Bytes of a file, of which the first n_values are tokens; looked through here, beside the
        thread that sums."""
        self._pread(path, buffer, offset)
        values = buffer[:n_values]
        return Piece(
            values, buffer[len(values) :].tobytes(), not _non_finite(values.view(np.float16))
        )

    def _pread(self, path: Path, buffer: np.ndarray, offset: int) -> np.ndarray:
        with self.store.opened(path) as fd:
            pread_into(fd, buffer, offset)
        return buffer

    def _count(self, n_bytes: int, waited_s: float) -> None:
        self.report.n_bytes += n_bytes
        self.report.waited_s += waited_s
        self._progress(n_bytes)


def _non_finite(values: np.ndarray) -> bool:
    """Whether any value is infinite or no number: such bit patterns are the greatest of either
    sign, at memory speed."""
    info = np.finfo(values.dtype)
    signed, unsigned = np.dtype(f"i{info.bits // 8}"), np.dtype(f"u{info.bits // 8}")
    infinity = int(np.array(np.inf, values.dtype).view(unsigned))
    return bool(values.size) and (
        int(values.view(signed).max()) >= infinity
        or int(values.view(unsigned).max()) >= infinity + (1 << (info.bits - 1))
    )


def _row_faults(sums: _Sums) -> Iterator[Fault]:
    store = sums.store
    # not of the others: holes are not touched
    differs_SV = sums.crc_NV[sums.sealed] != store.array("crc32c")[sums.sealed]
    differs = {
        (int(sums.sealed[i]), int(view)): "its bytes are not those committed (CRC-32C differs)"
        for i, view in np.argwhere(differs_SV)
    }
    sealed = set(sums.sealed.tolist())
    for (image, view), what in sorted((differs | sums.wrong).items()):
        if image not in sealed:  # read along with its neighbours
            continue
        path, offset, _ = store.layout.row_parts(image, view)[1 if store.spec.has_patches else 0]
        yield Fault(
            image, store.catalog["image_id"][image], store.view_names[view], str(path), offset, what
        )


def _seal_faults(store: FeatureStore) -> Iterator[Fault]:
    seal_N, extent = store.array("seal"), store.layout.extents["seal"]
    for image in np.setdiff1d(np.flatnonzero(seal_N[: store.n_images] != 0), store.sealed).tolist():
        path, offset, _ = extent.locate(image)
        yield Fault(
            image,
            store.catalog["image_id"][image],
            None,
            str(path),
            offset,
            "its seal does not match its catalog row, thumbnail and checksums",
        )
    for image in (np.flatnonzero(seal_N[store.n_images :] != 0) + store.n_images).tolist():
        path, offset, _ = extent.locate(image)
        yield Fault(
            image,
            f"image {image}",
            None,
            str(path),
            offset,
            "sealed, but an id at or before it is gone",
        )


def _catalog_faults(store: FeatureStore) -> Iterator[Fault]:
    """A place in use always has a path: a bit that flipped in a free place's id puts it in use
    without one."""
    for image in np.flatnonzero(store.array("catalog/path")[: store.n_images, 0] == 0).tolist():
        path, offset, _ = store.layout.extents["catalog/image_id"].locate(image)
        yield Fault(
            image,
            store.catalog["image_id"][image],
            None,
            str(path),
            offset,
            "it has an id, but no path",
        )


def _metadata_faults(store: FeatureStore) -> Iterator[Fault]:
    path, offset, _ = store.layout.extents["metadata_crc32c"].locate(0)
    if metadata_crc(store.layout) != store.array("metadata_crc32c")[0]:
        yield Fault(
            None,
            "",
            None,
            str(path),
            offset,
            "the metadata is not what was laid out, by rot or another program; "
            "no row suffers: `biomass store convert` makes a new store of them",
        )
    for file, start, n_bytes in store.layout.padding:
        buffer = np.empty(n_bytes, np.uint8)
        with store.opened(file) as fd:
            pread_into(fd, buffer, start)
        if buffer.any():
            yield Fault(
                None,
                "",
                None,
                str(file),
                start + int(np.argmax(buffer != 0)),
                "its padding is not zero",
            )


def _photograph_faults(store: FeatureStore, root: Path) -> Iterator[Fault]:
    """Photographs that are gone, have other bytes than those the tokens were made of, or were
    damaged when they were encoded."""
    if not can_check():
        warnings.warn(UNCHECKED, stacklevel=3)
    catalog = store.catalog.iloc[store.sealed]
    files = find_photographs(catalog, root, outside=True, missing=True)
    for image, image_id, file, sha256 in zip(
        catalog.index, catalog["image_id"], files, catalog["sha256"], strict=True
    ):
        if not file.is_file():
            yield Fault(image, image_id, None, str(file), 0, "its photograph is missing", False)
        elif sha256 and file_sha256(file) != sha256:
            # of imported tokens' photographs nobody may know
            yield Fault(
                image,
                image_id,
                None,
                str(file),
                0,
                "its photograph changed since it was encoded",
                False,
            )
        elif damage := _damage_of(file):
            yield Fault(image, image_id, None, str(file), 0, f"its photograph is {damage}", False)


def _damage_of(photograph: Path) -> str | None:
    """Damage inside a photograph; None also for a format that only the program knew whose tokens
    were imported."""
    try:
        return find_damage(photograph)
    except InputError:
        return None
