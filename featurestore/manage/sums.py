"""The checksum of every row of a store, read with pread, a few pieces ahead."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from featurestore.disk.durable import (
    crc32c,
    crc32c_append,
    crc32c_rows,
)
from featurestore.disk.threads import Pool
from featurestore.errors import StoreDamaged
from featurestore.format.layout import Extent
from featurestore.read.reader import Reader

AHEAD = 4  # buffers that are read into, beside one for each reader

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Piece:
    """A part of a row of patches as bytes, and what follows the row."""

    values: np.ndarray
    tail: bytes
    is_finite: bool


class RowSums:
    """CRC-32C of every row of the images that have a seal.

    Array by array, in the order in which the format chains them.
    """

    def __init__(self, store: Reader, progress: Progress) -> None:
        self.store = store
        self.files = store.source.files()
        self._piece = self.files.piece_bytes
        self.n_bytes = 0
        self.waited_s = 0.0
        """Seconds that the checksum waited for bytes."""
        self._progress = progress
        self.sealed = np.flatnonzero(store.array("seal")[: store.n_images] != 0)
        self.crc_NV = np.zeros((store.n_images, len(store.view_names)), np.uint32)
        self.wrong: dict[tuple[int, int], str] = {}
        """What is wrong with a row, other than its sum."""

    def run(self) -> None:
        with Pool(self.files.n_readers) as readers:
            for name in ("cls", "patches", "pooled", "stats"):
                if name == "patches" and self.store.spec.has_patches:
                    self._sum_patches(readers)
                elif name != "patches":
                    self._sum_small(name)

    def _sum_small(self, name: str) -> None:
        """An array whose rows are small: as many images at once as make a piece."""
        extent = self.files.layout.extents[name]
        per_block = max(1, self._piece // extent.array.row_bytes)
        # blocks without a sealed image are left: they may be holes of a sparse file
        blocks = np.unique(self.sealed // per_block).tolist()
        for start in [block * per_block for block in blocks]:
            end = min(start + per_block, self.store.n_images)
            self._sum_block(extent, start, end)

    def _sum_block(self, extent: Extent, start: int, end: int) -> None:
        shape = end - start, self.crc_NV.shape[1]
        values = np.empty((*shape, *extent.array.row_shape[1:]), extent.array.dtype)
        began = time.perf_counter()
        try:
            self._pread(extent.paths[0], values, extent.locate(start)[1])
        except (OSError, StoreDamaged) as err:
            # halves again and again, until the images that cannot be read are found
            if end - start > 1:
                middle = (start + end) // 2
                self._sum_block(extent, start, middle)
                self._sum_block(extent, middle, end)
                return
            unread = [(start, view) for view in range(self.crc_NV.shape[1])]
            self.wrong |= dict.fromkeys(unread, f"cannot be read: {err}")
            return
        self._count(values.nbytes, time.perf_counter() - began)

        # goes on from the arrays before this one: a row has one sum over all of its parts
        crc_NV = self.crc_NV[start:end]
        rows = values.reshape(crc_NV.size, -1)
        crc_NV[...] = crc32c_rows(rows, start_N=crc_NV.ravel()).reshape(shape)
        if _non_finite(values):
            places = [place for place in np.ndindex(shape) if _non_finite(values[place])]
            rows = [(start + i, view) for i, view in places]
            self.wrong |= dict.fromkeys(rows, f"values of {extent.array.name} are not finite")

    def _sum_patches(self, readers: Pool) -> None:
        extent = self.files.layout.extents["patches"]
        n_views = self.crc_NV.shape[1]
        # what follows a row in Zarr, its own checksum and zeros, is read and checked too
        stride = extent.stride
        piece = self._piece
        sizes = [min(piece, stride - at) for at in range(0, stride, piece)]
        rows = [(int(i), v) for i in self.sealed for v in range(n_views)]
        places = (extent.locate_row(image, view)[:2] for image, view in rows)
        pieces = self._ahead(
            readers,
            (
                (path, offset + n * piece, size, extent.array.row_bytes - n * piece)
                for path, offset in places
                for n, size in enumerate(sizes)
            ),
        )
        append = crc32c_append(extent.array.row_bytes)
        for row in rows:
            crc = self._sum_row(row, extent, islice(pieces, len(sizes)))
            self.crc_NV[row] = append(int(self.crc_NV[row]), crc)

    def _sum_row(
        self,
        row: tuple[int, int],
        extent: Extent,
        pieces: Iterator[Piece | Exception],
    ) -> int:
        """CRC-32C of one row's patches, from pieces as they come.

        A piece's buffer is used again when the next one is taken.
        """
        crc = 0
        tail = b""
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
        self,
        readers: Pool,
        places: Iterator[tuple[Path, int, int, int]],
    ) -> Iterator[Piece | Exception]:
        """The piece at each place in turn, or why it cannot be had.

        A few are read meanwhile; a buffer is used again.
        """
        n_ahead = AHEAD + self.files.n_readers
        buffers = deque(np.empty(self._piece, np.uint8) for _ in range(n_ahead))
        waiting = deque()
        for path, offset, size, n_values in places:
            buffer = buffers[0][:size]
            waiting.append(readers.submit(self._read_piece, path, buffer, offset, n_values))
            buffers.rotate(-1)
            # one buffer is never read into: it holds the piece that the caller is still summing
            if len(waiting) == n_ahead - 1:
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

    def _read_piece(
        self,
        path: Path,
        buffer: np.ndarray,
        offset: int,
        n_values: int,
    ) -> Piece:
        """Bytes of a file, of which the first n_values are tokens.

        Looked through here, beside the thread that sums.
        """
        self._pread(path, buffer, offset)
        # in Zarr a piece may begin behind the row's last token, in what follows the row
        values = buffer[: max(0, n_values)]
        tail = buffer[len(values) :].tobytes()
        is_finite = not _non_finite(values.view(np.float16))
        return Piece(values, tail, is_finite)

    def _pread(self, path: Path, buffer: np.ndarray, offset: int) -> np.ndarray:
        self.files.read_into(path, buffer, offset)
        return buffer

    def _count(self, n_bytes: int, waited_s: float) -> None:
        self.n_bytes += n_bytes
        self.waited_s += waited_s
        self._progress(n_bytes)


def _non_finite(values: np.ndarray) -> bool:
    """Whether any value is infinite or no number, told at memory speed.

    Such bit patterns are the greatest of either sign.
    """
    info = np.finfo(values.dtype)
    signed = np.dtype(f"i{info.bits // 8}")
    unsigned = np.dtype(f"u{info.bits // 8}")
    infinity = int(np.array(np.inf, values.dtype).view(unsigned))
    return bool(values.size) and (
        int(values.view(signed).max()) >= infinity
        or int(values.view(unsigned).max()) >= infinity + (1 << (info.bits - 1))
    )
