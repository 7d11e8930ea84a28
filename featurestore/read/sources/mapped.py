"""Files of this machine, mapped: arrays and rows are views of the page cache, nothing is copied."""

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurestore.disk.maps import Maps
from featurestore.format.layout import Extent, Layout
from featurestore.read.sources.local import Local


class Mapped(Local):
    """A Source whose files are mapped when they are first used. Maps live as long as a view does.

    A file that is cut while it is mapped ends the process with SIGBUS; `Pread` raises instead.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self._maps = Maps(layout.open_file)

    def array(self, name: str) -> np.ndarray:
        return self._in_file(name, 0)

    def patches(self, image: int, views: Sequence[int]) -> np.ndarray:
        file, within = self._patches.locate_image(image)
        rows = self._in_file("patches", file)
        # all views, whichever are asked for: a view of the map costs nothing until it is touched
        return rows[within : within + self._n_views]

    def patches_crc(self, image: int, view: int) -> int:
        path, offset, n_bytes = self._patches.locate_row(image, view)
        end = offset + n_bytes
        # a shard keeps the CRC-32C of a row behind it, as a u4
        return int.from_bytes(self._maps.get(path).map[end : end + 4], "little")

    def _in_file(self, name: str, file: int) -> np.ndarray:
        """(rows in the file, *row shape), a strided view of the file's map."""
        extent = self.layout.extents[name]
        mapped = self._maps.get(extent.paths[file])
        if (name, file) not in mapped.arrays:
            mapped.arrays[name, file] = array_of(extent, file, mapped.map)
        return mapped.arrays[name, file]

    def forget(self, path: Path) -> None:
        """Map a file anew when it is next used: another one has taken its name."""
        self._maps.drop(path)

    def close(self) -> None:
        super().close()
        self._maps.clear()


def array_of(extent: Extent, file: int, mapped: mmap.mmap) -> np.ndarray:
    """The rows of an array that lie in one file."""
    row_shape = extent.array.row_shape
    dtype = np.dtype(extent.array.dtype)
    # bytes from one element to the next along each axis within a row, the last axis first
    within_row = [dtype.itemsize]
    for length in row_shape[:0:-1]:
        within_row.append(within_row[-1] * length)
    inner = within_row[::-1] if row_shape else []

    shape = (extent.rows_in(file), *row_shape)
    return np.ndarray(shape, dtype, mapped, extent.offset, (extent.stride, *inner))
