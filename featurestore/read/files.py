"""Open files of a store that lies on this machine."""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from featurestore.disk.durable import pread_into
from featurestore.format.choose import metadata_crc
from featurestore.format.layout import Layout

# files that one store keeps open to read them by; of more, each is opened for each read
MOST_OPEN = 64


class OpenFiles:
    """Descriptors to read a store's files by.

    A store of few files keeps them open until `close`, or until nobody holds it any more. Safe to
    use from several threads until it is closed.
    """

    piece_bytes = 1 << 20  # they stay in the CPU's cache until they are summed
    n_readers = 2

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._fds: dict[Path, int] = {}
        # plain numbers: nothing else would close those of a store that is let go
        weakref.finalize(self, _close_all, self._fds)

    @contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        """The descriptor of one file; StoreDamaged if it was replaced or cut."""
        if len(self.layout.sizes) > MOST_OPEN:
            fd = self.layout.open_file(path)
            try:
                yield fd
            finally:
                os.close(fd)
            return

        if path not in self._fds:
            fd = self.layout.open_file(path)
            if self._fds.setdefault(path, fd) != fd:  # a thread that reads ahead was faster
                os.close(fd)
        yield self._fds[path]

    def read_into(self, path: Path, buffer: np.ndarray, offset: int) -> None:
        with self.opened(path) as fd:
            pread_into(fd, buffer, offset)

    def size(self, path: Path) -> int:
        return os.stat(path).st_size

    def metadata_crc(self) -> int:
        return metadata_crc(self.layout)

    def close(self) -> None:
        _close_all(self._fds)


def _close_all(fds: dict[Path, int]) -> None:
    while fds:
        os.close(fds.popitem()[1])
