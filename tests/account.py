"""What an account meets whose files the modes protect: root reads and writes all, whatever they
say."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

VERSION_3 = 0x20080522  # of capget(2) and capset(2), Linux 2.6.26
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2


@contextmanager
def modes_count() -> Iterator[None]:
    """This thread, and threads it starts, without root's right to ignore modes."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice, for 64 bits
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    before = sets[0]
    sets[0] = before & ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    libc.capset(header, sets)
    try:
        yield
    finally:
        sets[0] = before
        libc.capset(header, sets)


@contextmanager
def unreadable(path: Path) -> Iterator[Path]:
    """A file or folder that this account may neither read nor look into; skips where the system
    lets it all the same."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with modes_count():
            if os.access(path, os.R_OK, effective_ids=True):
                pytest.skip("this system lets the account read a file of mode 0")
            yield path
    finally:
        path.chmod(mode)
