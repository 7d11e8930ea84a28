"""Mapped files: those of all open stores that were used last, as many as the kernel allows.

A map takes a descriptor (Python keeps one beside it until 3.13) and one of vm.max_map_count places.
Whoever holds a view keeps its map alive: what is dropped here is forgotten, not unmapped.
"""

import errno
import itertools
import mmap
import os
import resource
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from featurestore.errors import InputError

TOO_MANY = {
    errno.EMFILE: "raise `ulimit -n`, or let go of rows and stores that are held",
    errno.ENFILE: "close files of other programs, or raise fs.file-max",
}
SHORT = TOO_MANY | {
    errno.ENOMEM: "let go of rows that are held, or raise vm.max_map_count or `ulimit -v`"
}
T = TypeVar("T")


@dataclass
class MappedFile:
    """A mapped file, and the arrays made of it: a row is asked for more often than they are."""

    map: mmap.mmap
    arrays: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)


_held: OrderedDict[tuple[int, Path], MappedFile] = OrderedDict()
_numbers = itertools.count()


class Maps:
    """The mapped files of one store, each mapped when it is asked for.

    open_file : gives a descriptor to read a file of the store by.
    """

    def __init__(self, open_file: Callable[[Path], int]) -> None:
        self._open_file = open_file
        # numbers are never given twice: an id of Python's would be, and find another store's maps
        self._number = next(_numbers)
        weakref.finalize(self, _forget, self._number)

    def get(self, path: Path) -> MappedFile:
        key = self._number, path
        try:
            _held.move_to_end(key)
            return _held[key]
        except KeyError:  # not mapped, or another thread has just dropped it
            pass
        fd = self._open_file(path)
        try:
            # shared and read-only: the kernel's overcommit refuses a private writable map of a
            # large store
            mapped = with_room(path, lambda: mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ))
        finally:
            os.close(fd)
        # two threads may have mapped it: both get the one that was kept first
        file = _held.setdefault(key, MappedFile(mapped))
        while len(_held) > most_maps() and not raise_file_limit():
            _held.popitem(last=False)
        return file

    def drop(self, path: Path) -> None:
        _held.pop((self._number, path), None)

    def clear(self) -> None:
        _forget(self._number)


def _forget(number: int) -> None:
    for key in [key for key in list(_held) if key[0] == number]:
        _held.pop(key, None)


def most_maps() -> int:
    """Half of what the kernel allows: of descriptors and maps, others are needed too."""
    soft, _ = _file_limits()
    return max(1, min(soft, _max_map_count()) // 2)


def _file_limits() -> tuple[int, int]:
    """How many files this process may open, and what it may raise that to.

    No more than it could map anyhow.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2 * _max_map_count()
    return tuple(
        most if limit == resource.RLIM_INFINITY else min(limit, most) for limit in (soft, hard)
    )


@lru_cache(1)
def _max_map_count() -> int:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 65_530  # Linux's own default


def raise_file_limit() -> bool:
    """Let this process open as many files as it may; whether that is more than before."""
    soft, hard = _file_limits()
    if soft < hard:
        # the hard limit stays as it is: whoever lowers it cannot raise it again
        _, own_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, own_hard))
    return soft < hard


def with_room(path: Path, take: Callable[[], T]) -> T:
    """What `take` gives; without room, once more after unused maps were dropped.

    InputError if there is none then.
    """
    try:
        return take()
    except OSError as err:
        if err.errno not in SHORT:
            raise
    raise_file_limit()
    _held.clear()  # of all stores; those in use are mapped again when they are next needed
    try:
        return take()
    except OSError as err:
        if err.errno not in SHORT:
            raise
        raise _refusal(path, err) from err


def refuse_too_many(path: Path | str, err: Exception) -> None:
    """InputError if that is why a file could not be read: nothing is wrong with the file then."""
    if isinstance(err, OSError) and err.errno in TOO_MANY:
        raise _refusal(path, err) from err


def _refusal(path: Path | str, err: OSError) -> InputError:
    return InputError(f"{path}: cannot be opened: {os.strerror(err.errno)}; {SHORT[err.errno]}")
