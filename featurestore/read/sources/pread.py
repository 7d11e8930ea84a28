"""Files of this machine, read and never mapped.

One that is cut while it is read is an error, where a map ends in SIGBUS.
"""

import operator
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from featurestore.disk.durable import pread_into
from featurestore.format.layout import Extent, Layout
from featurestore.read.positions import is_integer
from featurestore.read.sources.local import Local

PART_BYTES = 4096  # a part of each row is read alone if it has as much


class Pread(Local):
    """A Source that reads what is asked for, each time, by pread. No byte is mapped or kept.

    `array` and `patches` check at each read that the file is the one that was opened and is not cut
    (StoreDamaged); other reads go by descriptors that were checked when they were first used.
    """

    def array(self, name: str) -> "FileArray":
        return FileArray(self.layout, self.layout.extents[name], 0)

    def patches(self, image: int, views: Sequence[int]) -> np.ndarray:
        file, within = self._patches.locate_image(image)
        rows = FileArray(self.layout, self._patches, file)
        if len(views) == self._n_views:
            return rows[within : within + self._n_views]

        # the other views take no memory: they are not touched
        patches_VTPD = np.empty((self._n_views, *rows.shape[1:]), rows.dtype)
        for view in views:
            patches_VTPD[view] = rows[within + view]
        return patches_VTPD

    def patches_crc(self, image: int, view: int) -> int:
        path, offset, n_bytes = self._patches.locate_row(image, view)
        crc = np.empty(1, "<u4")
        with self._files.opened(path) as fd:
            pread_into(fd, crc, offset + n_bytes)
        return int(crc[0])


class FileArray:
    """(n, *row shape) of a file, with as much of numpy's indexing as a reader uses.

    Every index is a read.

    The first index (integer, slice, or array of positions) chooses rows; the others are applied to
    what was read.
    """

    def __init__(self, layout: Layout, extent: Extent, file: int) -> None:
        self._layout = layout
        self._extent = extent
        self._path = extent.paths[file]
        self.shape = (extent.rows_in(file), *extent.array.row_shape)
        self.dtype = np.dtype(extent.array.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = index if isinstance(index, tuple) else (index,)
        n = len(self)
        is_one = is_integer(first)
        if is_one:
            rows = [range(n)[operator.index(first)]]  # a range refuses what is out of bounds
        elif isinstance(first, slice):
            rows = range(n)[first]
        else:
            rows = _in_order(np.asarray(first), n)

        if rest and is_integer(rest[0]) and self._part_bytes >= PART_BYTES:
            # store.cls[i, v], say: of a row of all views the one that is meant
            part = range(self.shape[1])[operator.index(rest[0])]
            read = self._read(rows, self.shape[2:], part * self._part_bytes)
            rest = rest[1:]
        else:
            read = self._read(rows, self.shape[1:], 0)
        return read[(0 if is_one else slice(None), *rest)]

    @property
    def _part_bytes(self) -> int:
        """Bytes of a row's part by the second axis."""
        return self._extent.array.row_bytes // self.shape[1] if len(self.shape) > 1 else 0

    def _read(self, rows: "range | list[int]", shape: tuple[int, ...], skip: int) -> np.ndarray:
        """(len(rows), *shape): of each row what begins `skip` bytes into it.

        Neighbours that touch come in one read.
        """
        read = np.empty((len(rows), *shape), self.dtype)
        stride = self._extent.stride
        n_bytes = read.nbytes // max(1, len(rows))
        # only whole rows without padding between them lie as they will in the buffer
        touching = stride == n_bytes

        # opened for each read: so a file that was replaced or cut is found out
        fd = self._layout.open_file(self._path)
        try:
            for at, n in _runs(rows, touching):
                offset = self._extent.offset + rows[at] * stride + skip
                pread_into(fd, read[at : at + n], offset)
        finally:
            os.close(fd)
        return read


def _in_order(index: np.ndarray, n: int) -> "range | list[int]":
    """Rows that an array of positions, or a mask, chooses; a range where they are one run."""
    is_plain = index.dtype.kind in "iu" and index.ndim == 1 and index.size
    if not (is_plain and index.min() >= 0 and index.max() < n):
        index = np.arange(n)[index]  # as numpy reads it, and refuses it
    # most are all of a store, or a block of them: a list of a million rows takes long to look at
    if index.ndim == 1 and index.size and (np.diff(index) == 1).all():
        return range(int(index[0]), int(index[-1]) + 1)
    return index.tolist()


def _runs(rows: "range | list[int]", touching: bool) -> list[tuple[int, int]]:
    """Where each run of consecutive rows begins, and its length.

    A run is one row unless rows touch on disk.
    """
    if not len(rows):
        return []
    if touching and isinstance(rows, range) and rows.step == 1:
        return [(0, len(rows))]
    if not touching:
        return [(at, 1) for at in range(len(rows))]

    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts = [0, *breaks.tolist(), len(rows)]
    return [(start, end - start) for start, end in pairwise(starts)]
