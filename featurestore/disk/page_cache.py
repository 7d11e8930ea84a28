"""The kernel's page cache: whether a part of a file is in it, and reading it ahead."""

import os

# of more than a device's read-ahead or largest request the kernel silently reads the beginning
# alone
ADVISE_BYTES = 128 << 10


def is_cached(fd: int, offset: int, n_bytes: int) -> bool:
    """Whether a part of a file seems to be in the page cache.

    Looks at its first byte, which is evicted first, and its middle one, which a read around a
    neighbouring part does not bring.
    """
    byte = [bytearray(1)]
    try:
        return all(os.preadv(fd, byte, offset + at, os.RWF_NOWAIT) for at in (0, n_bytes // 2))
    except OSError:  # not there, or this file system cannot tell
        return False


def read_ahead(fd: int, offset: int, n_bytes: int) -> None:
    """Have the kernel read a part of a file into the page cache; comes back before it is there."""
    for at in range(0, n_bytes, ADVISE_BYTES):
        length = min(ADVISE_BYTES, n_bytes - at)
        os.posix_fadvise(fd, offset + at, length, os.POSIX_FADV_WILLNEED)
