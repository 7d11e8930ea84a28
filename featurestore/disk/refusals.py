"""What the system refuses, as errors of ours: files, descriptors, threads, temporary files."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.disk.threads import not_started
from featurestore.errors import (
    NO_ROOM,
    BiomassError,
    InputError,
    MemoryShortError,
    NoAccessError,
)

NO_TEMPORARY = "No usable temporary directory"
"""How tempfile's error begins where there is no such folder."""
MAKE_ROOM = (
    "make room there and start again; a sweep that had begun goes on by `biomass train --resume "
    "SWEEP`"
)
SET_TMPDIR = (
    "torch needs one writable folder for temporary files: "
    "set TMPDIR to one, such as the output's folder"
)
NEED_LESS = (
    "free memory, or need less at once (`biomass train` takes more --passes, `store build` a "
    "smaller --batch)"
)


def as_ours(err: Exception) -> BiomassError | None:
    """The error that tells a user what happened and what to do; None for a bug.

    A bug stays a traceback.
    """
    if isinstance(err, BiomassError):
        return err
    if isinstance(err, PermissionError) and err.filename is not None:
        return NoAccessError.of(err, what="read or write")
    if isinstance(err, OSError) and err.errno in (errno.EMFILE, errno.ENFILE):
        from featurestore.disk.maps import TOO_MANY  # with numpy, for which --help does not wait

        where = err.filename or "a file could not be opened"
        return InputError(f"{where}: {err.strerror}; {TOO_MANY[err.errno]}")
    if isinstance(err, OSError) and err.errno in NO_ROOM:
        # of two files, the second is what a copy writes
        where = err.filename2 or err.filename or "a file could not be written"
        return InputError(f"{where}: {err.strerror}; {MAKE_ROOM}")
    if isinstance(err, FileNotFoundError) and NO_TEMPORARY in str(err.strerror):
        return InputError(f"{err.strerror}; {SET_TMPDIR}")
    return not_started(err)


def memory_short(err: Exception) -> MemoryShortError | None:
    """The same for memory that a device, or the system, did not give; None for another error.

    Not among `as_ours`: a worker that ran out of it ends, and its part is tried again.
    """
    text = str(err)
    # torch's by its name: a command that needs no torch must not import it
    is_torch = type(err).__name__ == "OutOfMemoryError" or "can't allocate memory" in text
    if not is_torch and not isinstance(err, MemoryError):
        return None
    said = text.splitlines()[0] if text else "out of memory"
    return MemoryShortError(f"{said}; {NEED_LESS}")


@contextmanager
def write_errors(path: Path, advice: str) -> Iterator[None]:
    """What the system says while something is written at path, as an error of ours.

    advice : what became of what was written, and what to do.
    """
    try:
        yield
    except PermissionError as err:
        raise NoAccessError.of(err, path, what="read or write") from err
    except OSError as err:
        raise InputError(f"{path}: writing failed: {err.strerror}; {advice}") from err
