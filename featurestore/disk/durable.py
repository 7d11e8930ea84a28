"""The only durable writes: checksums, pwrite, sync, files that appear whole, the lock.

Nothing else in the project syncs, renames or locks, so the order of a crash-safe commit can be
read, and tested, here.
"""

import errno
import fcntl
import hashlib
import json
import math
import mmap
import os
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from featurestore.disk.threads import Pool
from featurestore.errors import NO_ROOM, InputError, LockedError, StoreDamaged

PAGE = 4096  # on which rows begin: the format's number, whatever this machine's pages are
SYNCS_AT_ONCE = 8


def round_up(n: int, unit: int = PAGE) -> int:
    return -(-n // unit) * unit


def crc32c(*buffers: "np.ndarray | bytes", start: int = 0) -> int:
    """CRC-32C (Castagnoli, RFC 3720) of C-contiguous buffers one after another; no copy."""
    import google_crc32c  # zarr brings it; predict, which never checks a store, runs without

    for buffer in buffers:  # the extension takes arrays and bytes, not memoryviews
        start = google_crc32c.extend(start, np.frombuffer(buffer, np.uint8))
    return start


def crc32c_rows(*parts_NX: np.ndarray, start_N: np.ndarray | None = None) -> np.ndarray:
    """(N,) uint32: CRC-32C of each row's bytes, the parts' rows one after another.

    Parts are C-contiguous within a row.
    """
    from google_crc32c import extend

    crc_N = np.empty(len(parts_NX[0]), np.uint32)
    bytes_NX = []
    for part in parts_NX:
        if part.flags.c_contiguous:
            bytes_NX.append(part.reshape(len(crc_N), -1).view(np.uint8))
        else:  # every second row of an array, say: a row alone has no gaps
            bytes_NX.append([row.reshape(-1).view(np.uint8) for row in part])
    for i, rows in enumerate(zip(*bytes_NX, strict=True)):
        crc = 0 if start_N is None else int(start_N[i])
        for row in rows:
            crc = extend(crc, row)
        crc_N[i] = crc
    return crc_N


@lru_cache(64)
def crc32c_append(n_bytes: int) -> Callable[[int, int], int]:
    """A function (crc of A, crc of B) -> crc of A and B, for any B of n_bytes.

    Nothing is read again.

    CRC is linear over GF(2): appending n zero bytes is a 32 x 32 matrix of bits, made by squaring
    that of one byte (as zlib's crc32_combine does).
    """
    result = [1 << bit for bit in range(32)]  # the identity
    power, zero = None, crc32c(bytes(1))
    while n_bytes:
        if power:
            power = [_times(power, column) for column in power]
        else:
            # a zero byte's CRC is linear in the CRC before it, once what it is from 0 is taken off
            power = [crc32c(bytes(1), start=1 << bit) ^ zero for bit in range(32)]
        if n_bytes & 1:
            result = [_times(power, column) for column in result]
        n_bytes >>= 1
    return lambda crc_a, crc_b: _times(result, crc_a) ^ crc_b


def _times(columns: list[int], vector: int) -> int:
    """A matrix of bits, given by its columns, times a vector of 32 bits."""
    product = 0
    for column in columns:
        if vector & 1:
            product ^= column
        vector >>= 1
    return product


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def page_aligned(shape: tuple[int, ...], dtype: "np.dtype | str") -> np.ndarray:
    """An uninitialised array that begins on a page."""
    # a map of no file; where NumPy's own arrays begin is malloc's choice
    n_values = math.prod(shape)
    n_bytes = max(1, n_values * np.dtype(dtype).itemsize)  # there is no map of nothing
    pages = mmap.mmap(-1, n_bytes)
    return np.frombuffer(pages, dtype, n_values).reshape(shape)


def pwrite(fd: int, buffers: list["np.ndarray | bytes"], offset: int) -> None:
    """Write all bytes of the buffers at the offset; the kernel may take fewer at a time."""
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    while views:
        written = os.pwritev(fd, views, offset)
        offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views and written:
            views[0] = views[0][written:]


def pread_into(fd: int, buffer: np.ndarray, offset: int) -> None:
    """Fill a C-contiguous array from the file; StoreDamaged, never zeros, if it ends early."""
    view = memoryview(buffer).cast("B")
    while len(view):
        n = os.preadv(fd, [view], offset)
        if n == 0:
            raise StoreDamaged(
                f"file ends at byte {offset}, {len(view)} more were expected; "
                "it was cut after opening"
            )
        view = view[n:]
        offset += n


def datasync(fd: int) -> None:
    """Make what was written to a file of fixed size durable."""
    os.fdatasync(fd)  # a size that does not change is no metadata to wait for


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable."""
    # a new name lies in the folder's own data, which a sync of the file leaves out
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(path: Path) -> None:
    """Make a new file, or a new folder with all it holds, durable, before it gets its name."""
    if not path.is_dir():
        _sync([path])
        return
    # each waits for the disk: a new store's 100 files and folders took 150 ms one after another,
    # 20 ms so; their order does not matter, as none has its name yet
    paths = [path]
    for folder, folders, files in os.walk(path):
        paths += [os.path.join(folder, name) for name in folders + files]
    with Pool(SYNCS_AT_ONCE) as pool:
        for _ in pool.map(_sync, [paths[k::SYNCS_AT_ONCE] for k in range(SYNCS_AT_ONCE)]):
            pass


def _sync(paths: Sequence[Path | str]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def publish(partial: Path, path: Path) -> None:
    """Give a file or folder its name, once it and all it holds are durable."""
    sync_tree(partial)
    rename(partial, path)


def rename(there: Path, path: Path) -> None:
    """Give a file or folder whose content is durable another name, durably."""
    os.replace(there, path)
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def appears_whole(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """Hand out `NAME.partial`, which gets its name when the block ends well.

    It is synced before that, and removed after an error; litter of a killed process on the next
    try. Also for folders, as long as the final name is free. partial : another name for it.
    """
    partial = partial or path.with_name(path.name + ".partial")
    remove(partial)
    try:
        yield partial
        publish(partial, path)
    except BaseException as err:  # a stop by Ctrl-C leaves nothing half-made either
        remove(partial)
        if isinstance(err, OSError) and err.errno in NO_ROOM:
            err.filename = err.filename or str(path)  # a write does not know where it writes
        raise


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file that appears whole or not at all."""
    with appears_whole(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def copy_whole(source: Path, path: Path) -> None:
    """Copy a file; the copy appears whole.

    Onto itself, it gives a file that has other names bytes of its own.
    """
    with appears_whole(path) as partial:
        shutil.copyfile(source, partial)


def link_or_copy(source: Path, path: Path) -> bool:
    """Give a file that never changes a second name, or copy it; whether it was linked.

    It is copied where no link can be made, as to another file system. A file that is there stays.
    """
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    except OSError:  # another file system, or one without links
        copy_whole(source, path)
        return False
    return True


def check_free(folder: Path, n_bytes: int, instead: str = "") -> None:
    """InputError if the folder's file system cannot hold so many more bytes.

    Checked early because stores are sparse, and would fail late.

    instead : what else the command that was typed can do.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise InputError(
            f"{folder}: {n_bytes / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; make "
            f"room, or choose another place{f', or {instead}' if instead else ''}"
        )


def check_writable(folder: Path) -> None:
    """InputError if nothing can be created in the folder; made if missing."""
    probe = folder / ".biomass-probe"
    try:
        new = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        # a store that is durable must not be lost with the folder that it was put into
        for each in new:
            sync_folder(each.parent)
        probe.unlink(missing_ok=True)  # of one that was killed, perhaps somebody else's
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except OSError as err:
        told = f"{folder}: cannot write there ({err.strerror}); choose another place"
        raise InputError(told) from err


_held: set[int] = set()  # descriptors of locks this process holds


def _drop_locks_in_child() -> None:
    """Close the lock in a forked child, which would hold it after the builder is gone."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_drop_locks_in_child)


@contextmanager
def locked(
    path: Path,
    wait: bool = False,
    needed: bool = True,
    command: str | None = None,
    shared: bool = False,
) -> Iterator[None]:
    """Hold the writer's lock of `path`, a kernel flock on `NAME.lock` beside it.

    LockedError names the holder, unless `wait` waits for it.

    The kernel releases it with the process, so a stale file never blocks (and is left: unlinking it
    would race). It is not a lock on the store itself: libhdf5 locks what it opens, and ours there
    would keep every h5py reader out.
    needed : False goes on where the file system has no locks.
    command : what the user runs, if it has --wait and --no-lock to advise.
    shared : beside others that share it, and nobody who does not.
    """
    path = Path(os.path.realpath(path))  # one lock for all names of a store
    lock = path.with_name(path.name + ".lock")
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as err:
        raise InputError(
            f"{lock}: cannot be opened to write ({err.strerror}); "
            "you need permission to write there"
        ) from err
    _held.add(fd)
    try:
        _flock(fd, lock, wait, needed, command, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        # who holds it is for people: a full disk must not keep a repair out
        with suppress(OSError):
            os.ftruncate(fd, 0)
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.ctime(),
            }
            pwrite(fd, [json.dumps(holder).encode()], 0)
        yield
    finally:
        if fd in _held:
            _held.remove(fd)
            os.close(fd)


def _flock(fd: int, lock: Path, wait: bool, needed: bool, command: str | None, kind: int) -> None:
    try:
        # flock, not lockf: closing any other descriptor of the file would end a POSIX lock
        fcntl.flock(fd, kind | (0 if wait else fcntl.LOCK_NB))
    except OSError as err:
        if err.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            if not needed:
                return
            unlocked = f", or `{command} --no-lock` if nobody else writes there" if command else ""
            raise InputError(
                f"{lock}: this file system has no locks ({err.strerror}); write to a local disk"
                f"{unlocked}"
            ) from err
        holder = os.pread(fd, 1000, 0).decode(errors="replace") or "another process"
        waiting = f" (`{command} --wait` does)" if command else ""
        raise LockedError(
            f"{lock.with_suffix('')}: locked by {holder}; stop it, or wait until it has ended"
            f"{waiting}"
        ) from err


class Claims:
    """What processes of this machine that share a folder agree on: who does what, and a number.

    A claim ends with its process, however that ends. Threads of one process hold theirs together,
    and so do not keep each other out.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _held.add(self._fd)

    def close(self) -> None:
        if self._fd in _held:
            _held.remove(self._fd)
            os.close(self._fd)

    @contextmanager
    def claimed(self, what: int) -> Iterator[None]:
        """Hold one claim, by a number from 0 on; wait while another process holds it."""
        self._lock(fcntl.F_WRLCK, what)
        try:
            yield
        finally:
            self._lock(fcntl.F_UNLCK, what)

    def _lock(self, kind: int, what: int) -> None:
        # struct flock of 64-bit Linux. Of the open file: the kernel finds deadlocks among the other
        # sort that are none, since it knows processes and not their threads
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, what, 1, 0)
        with suppress(OSError):  # without such locks processes do the same twice
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLKW, request)

    @property
    def number(self) -> int:
        """The number they share, 0 at first."""
        return int.from_bytes(os.pread(self._fd, 8, 0), "little")

    @number.setter
    def number(self, value: int) -> None:
        os.pwrite(self._fd, value.to_bytes(8, "little"), 0)
