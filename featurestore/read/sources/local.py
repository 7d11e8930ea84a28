"""What all stores on this machine have in common, mapped or not: rows that are read by pread."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from featurestore.disk.durable import pread_into
from featurestore.disk.page_cache import is_cached, read_ahead
from featurestore.disk.threads import Pool
from featurestore.disk.usable import usable_cpus
from featurestore.format.choose import open_layout
from featurestore.format.layout import Layout
from featurestore.read.files import OpenFiles
from featurestore.read.source import Row

MOST_THREADS = 4


class Local:
    """The part of a Source that `Mapped` and `Pread` share."""

    checks_rows = False
    n_begun = 1  # maps and descriptors outlive a fork: a child begins nothing anew
    manner = "read where they lie in the file"

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.path = layout.path
        self._n_views = len(layout.spec.tokens.views)
        self._patches = layout.extents.get("patches")
        self._files = OpenFiles(layout)

    @classmethod
    def open(cls, path: str | os.PathLike) -> Self:
        """The store at path, HDF5 file or Zarr folder."""
        return cls(open_layout(Path(path)))

    def __reduce__(self) -> tuple:
        return type(self).open, (str(self.path),)

    @property
    def address(self) -> str:
        return str(self.path.absolute())

    @property
    def folder(self) -> str:
        return str(self.path.absolute().parent)

    def place(self, image: int, view: int) -> str:
        if self._patches:
            path, offset, _ = self._patches.locate_row(image, view)
        else:
            path, offset, _ = self.layout.extents["cls"].locate(image)
        return f"{path} at byte {offset}"

    def will_need(self, rows: Sequence[Row]) -> int:
        """Have the kernel read rows into the page cache; how many were not there.

        A cold row of 9.2 MB takes 3 ms, a warm one 8 us: call it from another thread.
        """
        n_bytes = self._patches.array.row_bytes
        n_cold = 0
        for row in rows:
            with self._placed(row) as (fd, offset):
                if not is_cached(fd, offset, n_bytes):
                    n_cold += 1
                    read_ahead(fd, offset, n_bytes)
        return n_cold

    @cached_property
    def _n_threads(self) -> int:
        return min(MOST_THREADS, usable_cpus())

    def read_into(self, rows: Sequence[Row], out: np.ndarray) -> None:
        def read(row: Row, into: np.ndarray) -> None:
            with self._placed(row) as (fd, offset):
                pread_into(fd, into, offset)

        # pread frees the GIL, and a cold disk wants several requests
        with Pool(self._n_threads) as pool:
            list(pool.map(read, rows, out))

    @contextmanager
    def _placed(self, row: Row) -> Iterator[tuple[int, int]]:
        """File descriptor and offset of a row of patches."""
        path, offset, _ = self._patches.locate_row(*row)
        with self._files.opened(path) as fd:
            yield fd, offset

    def files(self) -> OpenFiles:
        return OpenFiles(self.layout)

    def refresh(self) -> None:
        """Nothing is kept: every read shows the files as they are."""

    def distrust(self) -> str:
        return ""

    def close(self) -> None:
        self._files.close()
