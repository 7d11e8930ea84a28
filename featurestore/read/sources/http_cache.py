"""Where a remote store's rows are kept: a sparse, bounded Zarr store on this machine.

The files used least recently are emptied.

Nothing here knows the network. A folder belongs to one process at a time, by its lock. What is
whole in it is not written down: a row is there if its bytes have their checksum.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from featurestore.disk.durable import crc32c, datasync, locked, pwrite, remove, round_up
from featurestore.disk.maps import with_room
from featurestore.disk.urls import CACHE
from featurestore.errors import BiomassError, InputError, LockedError, UsageError
from featurestore.format.choose import create_store, open_layout
from featurestore.format.layout import Layout
from featurestore.format.spec import Array, StoreSpec
from featurestore.format.zarr import rows_per_file

CACHE_BYTES = 20 * 10**9
# that a file without rows takes: a server that tells of millions of them must not have them made
FILE_BYTES = 4096
LEAST_FILES = 4  # of patches: those a batch reads must not take each other's place
OURS = re.compile(r"[0-9a-f]{32}-[0-9]{1,2}\.zarr")  # nothing else in that folder is ever removed
NO_SUM = ["", 0]  # stamp and CRC-32C of an array that takes its room, but is not whole
SLOTS = 64  # processes that read the same store on this machine, each from a folder of its own


class Cache:
    """A store like the remote one, with the rows and arrays that were fetched.

    For one thread at a time.

    key : what stores must share whose rows may be kept in one folder.
    most_bytes : bound of the whole folder `root`, what other processes are using now not counted.
    """

    def __init__(self, root: Path, key: str, spec: StoreSpec, n: int, most_bytes: int) -> None:
        check_bound(spec.arrays(n), most_bytes)
        self._held = ExitStack()
        self._most_bytes = most_bytes
        self._pid = os.getpid()
        self._complete: dict[int, int] = {}
        try:
            self.path = _slot(root, key, self._held)
            self.layout = _opened(self.path, spec, n)
            self._sums_path = self.path.with_suffix(".json")
            self._sums = _read_sums(self._sums_path)
            self._patches = self.layout.extents.get("patches")
            self._used = self._files_by_age()
            self._n_bytes = sum(map(_disk_bytes, self.layout.sizes))
            self._others = _others(root, self.path)
            self._make_room(0)  # the bound may have been another one
        except OSError as err:
            self._held.close()
            raise _unusable(root, err) from err
        except BaseException:
            self._held.close()
            raise

    def close(self) -> None:
        """Seal what is complete, and let another process have the folder.

        A forked child leaves it as it is.
        """
        with self._held, suppress(OSError, InputError):
            if os.getpid() == self._pid:
                self.seal()

    # -- rows of patches

    def use(self, image: int) -> int:
        """Number of the file that an image's patches lie in; it is the one that was used last."""
        file, _ = self._patches.locate_image(image)
        self._used[file] = self._used.pop(file, 0)  # a dict keeps the order of insertion
        return file

    def begun(self, image: int, view: int) -> bool:
        """Whether something was written of a row; whether it is whole, its checksum says."""
        path, offset, n_bytes = self._patches.locate_row(image, view)
        # the four bytes behind a row are its CRC-32C, zeros where nothing was written. Read, not
        # mapped: a hole may be in a tmpfs that is full
        with _in_use(self.path), with_room(path, lambda: open(path, "rb", buffering=0)) as file:
            return any(os.pread(file.fileno(), 4, offset + n_bytes))

    def write_row(self, image: int, view: int, tokens_TPD: np.ndarray, crc: int) -> list[int]:
        """Keep a row and its CRC-32C; numbers of the files that were emptied for it.

        Views of their maps stay as they are.
        """
        file = self.use(image)
        emptied = self._make_room(self._patches.stride, file)
        path, offset, _ = self._patches.locate_row(image, view)
        self._write(path, [tokens_TPD, crc.to_bytes(4, "little")], offset)
        self._used[file] += self._patches.stride
        self._n_bytes += self._patches.stride
        return emptied

    def _make_room(self, n_bytes: int, kept: int | None = None) -> list[int]:
        emptied: list[int] = []
        while self._n_bytes + sum(n for _, n in self._others) + n_bytes > self._most_bytes:
            oldest = next((file for file, n in self._used.items() if n and file != kept), None)
            if self._others:  # caches that nobody uses go before rows of this one
                _drop(self._others.pop(0)[0])
            elif oldest is None:
                break
            else:
                self._empty(oldest)
                emptied.append(oldest)
        return emptied

    def _empty(self, file: int) -> None:
        """Put a new sparse file in the place of one; whoever has the old one mapped keeps it."""
        path = self._patches.paths[file]
        extent = self._patches
        self.unseal(extent.images_in(file))
        end = extent.rows_in(file) * extent.stride
        size = self.layout.sizes[path]
        partial = path.with_name(path.name + ".partial")
        with _in_use(self.path):
            partial.write_bytes(b"")
            with open(path, "rb", buffering=0) as old:  # what follows the rows is kept
                self._write(partial, [os.pread(old.fileno(), size - end, end)], end)
            # neither synced nor durable: a cache that is torn is made anew
            os.replace(partial, path)
            found = os.stat(path)
        self.layout.inodes[path] = found.st_dev, found.st_ino
        self._n_bytes -= self._used[file]
        self._used[file] = 0

    def _files_by_age(self) -> dict[int, int]:
        """Bytes in each file of patches, that which was written least recently first."""
        paths = self._patches.paths if self._patches else ()
        by_age = sorted((os.stat(path).st_mtime_ns, file) for file, path in enumerate(paths))
        return {file: _disk_bytes(paths[file]) for _, file in by_age}

    # -- arrays that are kept whole

    def has_array(self, name: str, stamp: str) -> bool:
        """Whether all of an array is here as it was kept under this stamp."""
        extent = self.layout.extents[name]
        if self._sums.get(name, [None])[0] != stamp:
            return False
        with _in_use(self.path), open(extent.paths[0], "rb") as file:
            crc = 0
            for at in range(0, extent.array.n_bytes, 1 << 22):
                crc = crc32c(file.read(min(1 << 22, extent.array.n_bytes - at)), start=crc)
        return crc == self._sums[name][1]

    def write_array(
        self, name: str, blocks: Iterable[tuple[int, np.ndarray]], stamp: str
    ) -> list[int]:
        """Keep an array that comes in blocks with their offsets, in order.

        Returns the same as `write_row`.
        """
        extent = self.layout.extents[name]
        crc = 0
        emptied = []
        if name not in self._sums:  # else its room is taken already
            emptied = self._make_room(extent.array.n_bytes)
            self._n_bytes += extent.array.n_bytes
        self._sums[name] = NO_SUM  # until all of it is written
        self.unseal(range(self.layout.n))
        for offset, block in blocks:
            self._write(extent.paths[0], [block], extent.offset + offset)
            crc = crc32c(block, start=crc)
        self._sums[name] = [stamp, crc]
        self._write_sums()
        return emptied

    def forget_arrays(self, names: Iterable[str]) -> None:
        """These arrays are not here any more: one is not what was committed."""
        self._sums |= dict.fromkeys(self._sums.keys() & set(names), NO_SUM)
        self._write_sums()

    def _write_sums(self) -> None:
        partial = self._sums_path.with_suffix(".json.partial")
        with _in_use(self.path):
            partial.write_text(json.dumps(self._sums))
            os.replace(partial, self._sums_path)

    # -- seals: of the store that the folder is for anyone else

    def complete(self, image: int, seal: int) -> None:
        """All of an image is here."""
        self._complete[image] = seal

    def seal(self) -> None:
        """Make complete images readable where the folder is opened as a store.

        Their bytes are synced first.
        """
        if not self._complete:
            return
        # every file that holds something of these images
        extents = self.layout.extents.items()
        paths = {extent.paths[0] for name, extent in extents if name != "patches"}
        if self._patches:
            paths |= {self._patches.locate_row(image, 0)[0] for image in self._complete}
        for path in paths:
            with open(path, "rb") as file:
                datasync(file.fileno())
        path, _, _ = self.layout.extents["seal"].locate(0)
        for image, seal in sorted(self._complete.items()):
            self._write(
                path, [np.array([seal], "<u4")], self.layout.extents["seal"].locate(image)[1]
            )
        self._complete.clear()

    def unseal(self, images: range) -> None:
        """Images of which something is about to go."""
        for image in self._complete.keys() & set(images):
            del self._complete[image]
        path, offset, _ = self.layout.extents["seal"].locate(images.start)
        self._write(path, [bytes(4 * len(images))], offset)

    def _write(self, path: Path, buffers: list, offset: int) -> None:
        with _in_use(self.path):
            fd = with_room(path, lambda: os.open(path, os.O_WRONLY | os.O_CLOEXEC))
            try:
                pwrite(fd, buffers, offset)
            finally:
                os.close(fd)


def check_bound(arrays: list[Array], most_bytes: int) -> None:
    """UsageError if a cache could not hold all small arrays, and some files of patches.

    Nothing has been allocated yet.
    """
    small = sum(array.n_bytes for array in arrays if array.name != "patches")
    patches = next((array for array in arrays if array.name == "patches"), None)
    n_rows = min(patches.n_rows, LEAST_FILES * rows_per_file(patches)) if patches else 0
    n_files = -(-patches.n_rows // rows_per_file(patches)) if patches else 0
    least = (
        small + n_files * FILE_BYTES + (n_rows * round_up(patches.row_bytes + 4) if patches else 0)
    )
    if most_bytes < least:
        raise UsageError(
            f"cache_bytes {most_bytes}: less than the {least} bytes that this store's small arrays "
            "and some files of its patches take; give more"
        )


def _slot(root: Path, key: str, held: ExitStack) -> Path:
    """The first folder for this key that no process uses, locked."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(SLOTS):
        path = Path(os.path.realpath(root)) / f"{key}-{number}.zarr"
        try:
            held.enter_context(locked(path))
            return path
        except LockedError:
            continue
        except InputError as err:
            raise InputError(
                f"{root}: rows cannot be kept here; choose another folder with {CACHE} ({err})"
            ) from err
    raise LockedError(
        f"{root}: {SLOTS} processes use caches of this store; wait for one to end, or choose "
        f"another {CACHE}"
    )


def _opened(path: Path, spec: StoreSpec, n: int) -> Layout:
    """The cache that is there if it is sound, else a new one."""
    with suppress(BiomassError, OSError):
        layout = open_layout(path)
        if layout.n == n and layout.spec.to_json() == spec.to_json():
            return layout
    _drop_files(path)
    return create_store(path, spec, n)


def _others(root: Path, own: Path) -> list[tuple[Path, int]]:
    """Caches of other stores, and their bytes; that which was used least recently first."""

    def used_ns(path: Path) -> int:
        # a process writes its name into the lock when it takes a cache
        lock = path.with_name(path.name + ".lock")
        return lock.stat().st_mtime_ns if lock.exists() else 0

    inside = Path(os.path.realpath(root)).iterdir()
    found = [path for path in inside if OURS.fullmatch(path.name) and path != own]
    others = []
    for path in sorted(found, key=used_ns):
        files = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
        others.append((path, sum(map(_disk_bytes, files))))
    return others


def _drop(path: Path) -> None:
    """Remove another cache, unless a process is using it."""
    with suppress(BiomassError, OSError), locked(path):
        _drop_files(path)


def _drop_files(path: Path) -> None:
    remove(path.with_suffix(".json"))
    remove(path)


def _disk_bytes(path: Path) -> int:
    with suppress(FileNotFoundError):  # another process may have removed it
        # blocks, of 512 bytes whatever the file system: files are sparse, their size says nothing
        return os.stat(path).st_blocks * 512
    return 0


def _read_sums(path: Path) -> dict[str, list]:
    """Stamp and CRC-32C of each array that is here; none where the file is not what was written."""
    with suppress(OSError, ValueError, RecursionError):
        sums = json.loads(path.read_text())
        if isinstance(sums, dict) and all(
            isinstance(value, list) and len(value) == 2 for value in sums.values()
        ):
            return sums
    return {}


@contextmanager
def _in_use(path: Path) -> Iterator[None]:
    """What goes wrong with a cache that was sound when it was opened."""
    try:
        yield
    except FileNotFoundError as err:
        raise InputError(
            f"{path}: removed while its rows were in use; open the store again"
        ) from err
    except OSError as err:
        raise _unusable(path, err) from err


def _unusable(path: Path, err: OSError) -> InputError:
    free = f", {shutil.disk_usage(path).free / 1e9:.3g} GB are free there" if path.exists() else ""
    return InputError(
        f"{path}: rows cannot be kept here ({err.strerror}{free}); make room, choose another "
        f"folder with {CACHE}, or a smaller cache_bytes"
    )
