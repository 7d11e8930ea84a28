"""Where a remote store's rows are kept: a sparse, bounded Zarr store on this machine.

The files used least recently are emptied. Nothing here knows the network.

Processes that share a folder put the same bytes in the same places, take turns to write, and put a
new file in the place of one that they empty: whoever has the old one mapped keeps it.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from featurestore.disk.durable import Claims, crc32c, datasync, pwrite, round_up
from featurestore.disk.maps import with_room
from featurestore.errors import InputError, UsageError
from featurestore.format.layout import Layout
from featurestore.format.spec import Array, StoreSpec
from featurestore.format.zarr import rows_per_file
from featurestore.read.sources.cache_folder import (
    disk_bytes,
    drop,
    in_use,
    other_caches,
    take_own,
    unusable,
)

CACHE_BYTES = 20 * 10**9
# that a file without rows takes: a server that tells of millions of them must not have them made
FILE_BYTES = 4096
LEAST_FILES = 4  # of patches: those a batch reads must not take each other's place
NO_SUM = ["", 0]  # stamp and CRC-32C of an array that takes its room, but is not whole
TURN = 0  # the claim of whoever writes; those of arrays and rows follow
SPARE = 32  # a file more is emptied than must be if less than one in so many bytes would be free
TOUCH_NS = 1_000_000_000  # between marks that tell other processes of a file's use

Take = Callable[[Path, str, StoreSpec, int, ExitStack], tuple[Layout, bool]]


class Cache:
    """A store like the remote one, with the rows and arrays that were fetched.

    For one thread at a time.

    key : what stores must share whose rows may be kept in one folder.
    most_bytes : bound of the whole folder `root`, what other processes are using now not counted.
    take : `take_own` or `take_shared`, of cache_folder.
    """

    def __init__(
        self,
        root: Path,
        key: str,
        spec: StoreSpec,
        n: int,
        most_bytes: int,
        take: Take = take_own,
    ) -> None:
        check_bound(spec.arrays(n), most_bytes)
        self._held = ExitStack()
        self._most_bytes = most_bytes
        self._pid = os.getpid()
        self._complete: dict[int, int] = {}
        self._used_ns: dict[int, int] = {}
        try:
            self.layout, is_alone = take(root, key, spec, n, self._held)
            self.path = self.layout.path
            self._sums_path = self.path.with_suffix(".json")
            # the number that its holders share is how many bytes of the disk the folder takes
            self._claims = Claims(self.path.with_suffix(".claims"))
            self._held.callback(self._claims.close)
            self._arrays = list(self.layout.extents)
            self._patches = self.layout.extents.get("patches")
            self._others = other_caches(root, self.path)
            with self._turn():
                if is_alone:
                    self._count_anew()
                self._make_room(0)  # the bound may have been another one
        except OSError as err:
            self._held.close()
            raise unusable(root, err) from err
        except BaseException:
            self._held.close()
            raise

    def close(self) -> None:
        """Seal what is complete, and let another process have the folder.

        A forked child leaves it as it is.
        """
        # seals are for others who open the folder: rows are found here by their checksums
        with self._held, suppress(OSError, InputError):
            if os.getpid() == self._pid:
                self.seal()

    # -- what processes that share the folder agree on

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with in_use(self.path), self._claims.claimed(TURN):
            yield

    def fetching_row(self, image: int, view: int) -> AbstractContextManager:
        """While a row is fetched: other processes wait, and then find it here."""
        row = image * self._patches.array.shape[1] + view
        return self._claims.claimed(1 + len(self._arrays) + row)

    def fetching_array(self, name: str) -> AbstractContextManager:
        return self._claims.claimed(1 + self._arrays.index(name))

    # -- rows of patches

    def use(self, image: int) -> int:
        """Number of the file that an image's patches lie in; it is the one that was used last."""
        file, _ = self._patches.locate_image(image)
        now = time.time_ns()
        if now - self._used_ns.get(file, 0) > TOUCH_NS:
            with in_use(self.path):
                os.utime(self._patches.paths[file])
        self._used_ns[file] = now
        return file

    def replaced(self, image: int) -> list[int]:
        """Number of the file of an image's patches, if another process put a new one there."""
        file, _ = self._patches.locate_image(image)
        path = self._patches.paths[file]
        with in_use(self.path):
            found = os.stat(path)
        inode = found.st_dev, found.st_ino
        if inode == self.layout.inodes[path]:
            return []
        self.layout.inodes[path] = inode
        self._forget_complete(file)
        return [file]

    def begun(self, image: int, view: int) -> bool:
        """Whether something was written of a row; whether it is whole, its checksum says."""
        path, offset, n_bytes = self._patches.locate_row(image, view)
        # the four bytes behind a row are its CRC-32C, zeros where nothing was written. Read, not
        # mapped: a hole may be in a tmpfs that is full
        with in_use(self.path), with_room(path, lambda: open(path, "rb", buffering=0)) as file:
            return any(os.pread(file.fileno(), 4, offset + n_bytes))

    def write_row(
        self,
        image: int,
        view: int,
        tokens_TPD: np.ndarray,
        crc: int,
    ) -> list[int]:
        """Keep a row and its CRC-32C; numbers of the files that were emptied for it.

        Views of their maps stay as they are.
        """
        file = self.use(image)
        with self._turn():
            emptied = self._make_room(self._patches.stride, file) + self.replaced(image)
            path, offset, _ = self._patches.locate_row(image, view)
            self._write(path, [tokens_TPD, crc.to_bytes(4, "little")], offset)
            self._claims.number += self._patches.stride
        return emptied

    def _make_room(self, n_bytes: int, kept: int | None = None) -> list[int]:
        most = self._most_bytes - n_bytes
        while self._others and self._claims.number + sum(n for _, n in self._others) > most:
            drop(self._others.pop(0)[0])  # caches that nobody uses go before rows of this one
        if self._claims.number <= most:
            return []

        # each row that is written adds to the number, one that was here before too: the files may
        # hold less than it tells
        self._count_anew()
        if self._claims.number <= most:
            return []

        emptied: list[int] = []
        enough = most - self._most_bytes // SPARE  # counting takes a system call a file
        for file in self._oldest_first():
            if self._claims.number > enough and file != kept:
                self._claims.number -= self._empty(file)
                emptied.append(file)
        return emptied

    def _count_anew(self) -> None:
        self._claims.number = sum(map(disk_bytes, self.layout.sizes))

    def _oldest_first(self) -> list[int]:
        """Files of patches that hold something, that which was used least recently first."""
        found = {}
        for file, path in enumerate(self._patches.paths if self._patches else ()):
            status = os.stat(path)
            if status.st_blocks * 512 > FILE_BYTES:
                found[file] = max(status.st_mtime_ns, self._used_ns.get(file, 0))
        return sorted(found, key=found.get)

    def _empty(self, file: int) -> int:
        """Put a new sparse file in the place of one; how many bytes that frees.

        Whoever has the old one mapped keeps it.
        """
        path = self._patches.paths[file]
        extent = self._patches
        # before a row goes: a seal must not stand for a row that is not there
        self._forget_complete(file)
        self._unseal(extent.images_in(file))

        before = disk_bytes(path)
        end = extent.rows_in(file) * extent.stride
        size = self.layout.sizes[path]
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(b"")
        with open(path, "rb", buffering=0) as old:  # what follows the rows is kept
            tail = os.pread(old.fileno(), size - end, end)
            self._write(partial, [tail], end)
        # neither synced nor durable: a cache that is torn is made anew
        os.replace(partial, path)
        found = os.stat(path)
        self.layout.inodes[path] = found.st_dev, found.st_ino
        return before - disk_bytes(path)

    # -- arrays that are kept whole

    def has_array(self, name: str, stamp: str) -> bool:
        """Whether all of an array is here as it was kept under this stamp."""
        extent = self.layout.extents[name]
        kept_stamp, kept_crc = self._sums().get(name, NO_SUM)
        if kept_stamp != stamp:
            return False
        with in_use(self.path), open(extent.paths[0], "rb") as file:
            crc = 0
            for at in range(0, extent.array.n_bytes, 1 << 22):
                n_left = extent.array.n_bytes - at
                crc = crc32c(file.read(min(1 << 22, n_left)), start=crc)
        return crc == kept_crc

    def write_array(
        self,
        name: str,
        blocks: Iterable[tuple[int, np.ndarray]],
        stamp: str,
    ) -> list[int]:
        """Keep an array that comes in blocks with their offsets, in order.

        Returns the same as `write_row`.
        """
        extent = self.layout.extents[name]
        emptied = []
        with self._turn():
            if name not in self._sums():  # else its room is taken already
                emptied = self._make_room(extent.array.n_bytes)
                self._claims.number += extent.array.n_bytes
            self._keep_sums({name: NO_SUM})  # until all of it is written
            self._complete.clear()
            self._unseal(range(self.layout.n))

        crc = 0
        for offset, block in blocks:
            self._write(extent.paths[0], [block], extent.offset + offset)
            crc = crc32c(block, start=crc)
        with self._turn():
            self._keep_sums({name: [stamp, crc]})
        return emptied

    def forget_arrays(self, names: Iterable[str]) -> None:
        """These arrays are not here any more: one is not what was committed."""
        with self._turn():
            self._keep_sums(dict.fromkeys(self._sums().keys() & set(names), NO_SUM))

    def _sums(self) -> dict[str, list]:
        """Stamp and CRC-32C of each array that is here.

        None where the file is not what was written.
        """
        with suppress(OSError, ValueError, RecursionError):
            sums = json.loads(self._sums_path.read_text())
            if isinstance(sums, dict) and all(
                isinstance(value, list) and len(value) == 2 for value in sums.values()
            ):
                return sums
        return {}

    def _keep_sums(self, changed: dict[str, list]) -> None:
        partial = self._sums_path.with_suffix(".json.partial")
        partial.write_text(json.dumps(self._sums() | changed))
        os.replace(partial, self._sums_path)

    # -- seals: of the store that the folder is for anyone else

    def complete(self, image: int, seal: int) -> None:
        """All of an image is here."""
        self._complete[image] = seal

    def _forget_complete(self, file: int) -> None:
        for image in self._complete.keys() & set(self._patches.images_in(file)):
            del self._complete[image]

    def seal(self) -> None:
        """Make complete images readable where the folder is opened as a store.

        Their bytes are synced first.
        """
        with self._turn():
            # what another process emptied meanwhile is complete no longer
            for image in list(self._complete):
                self.replaced(image)
            if not self._complete:
                return
            # every file that holds something of these images
            extents = self.layout.extents.items()
            paths = {extent.paths[0] for name, extent in extents if name != "patches"}
            paths |= {self._patches.locate_row(image, 0)[0] for image in self._complete}
            for path in paths:
                with open(path, "rb") as file:
                    datasync(file.fileno())
            for image, seal in sorted(self._complete.items()):
                path, offset, _ = self.layout.extents["seal"].locate(image)
                self._write(path, [np.array([seal], "<u4")], offset)
            self._complete.clear()

    def _unseal(self, images: range) -> None:
        """Images of which something is about to go."""
        path, offset, _ = self.layout.extents["seal"].locate(images.start)
        self._write(path, [bytes(4 * len(images))], offset)

    def _write(self, path: Path, buffers: list, offset: int) -> None:
        with in_use(self.path):
            fd = with_room(path, lambda: os.open(path, os.O_WRONLY | os.O_CLOEXEC))
            try:
                pwrite(fd, buffers, offset)
            finally:
                os.close(fd)


def check_bound(arrays: list[Array], most_bytes: int) -> None:
    """UsageError if a cache could not hold all small arrays, and some files of patches.

    Nothing has been allocated yet.
    """
    least = sum(array.n_bytes for array in arrays if array.name != "patches")
    patches = next((array for array in arrays if array.name == "patches"), None)
    if patches:
        per_file = rows_per_file(patches)
        n_files = -(-patches.n_rows // per_file)
        n_rows = min(patches.n_rows, LEAST_FILES * per_file)
        row_bytes = round_up(patches.row_bytes + 4)  # its CRC-32C lies behind it
        least += n_files * FILE_BYTES + n_rows * row_bytes
    if most_bytes < least:
        raise UsageError(
            f"cache_bytes {most_bytes}: less than the {least} bytes that this store's small arrays "
            "and some files of its patches take; give more"
        )
