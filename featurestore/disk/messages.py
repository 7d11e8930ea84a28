"""Messages and progress bars on stderr. One that cannot be written is lost; the work goes on.

Who reads them may end first (`2>&1 | tee log` at Ctrl-C, an ssh line that drops), or the log's disk
may be full.
"""

import errno
import faulthandler
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from featurestore.disk.progress_lines import ProgressLines

if TYPE_CHECKING:
    from featurestore.disk.bars import Bar

READER_GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, a terminal that was closed
# ValueError: closed; RuntimeError: in a handler, amid another write
LOST = (OSError, ValueError, RuntimeError)

_is_quiet = False


@contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """In this block no progress is shown and `say` keeps to what must be known."""
    global _is_quiet
    before = _is_quiet
    _is_quiet = wanted
    try:
        yield
    finally:
        _is_quiet = before


def say(text: str) -> None:
    """One message on stderr; where `quiet` is wanted, warnings alone."""
    if not _is_quiet or text.startswith("warning: "):
        say_always(text)


def say_always(text: str) -> None:
    """One message on stderr."""
    if sys.stderr is not None:  # print would take stdout
        with suppress(*LOST):
            print(text, file=sys.stderr, flush=True)


def show_crashes() -> None:
    """Have a crash show its line on stderr.

    SIGBUS, where a mapped store was modified, is no exception that could be caught.
    """
    if not faulthandler.is_enabled():
        with suppress(OSError, RuntimeError):  # stderr is closed, or no file
            faulthandler.enable()


def new_bar(
    title: str, total: int, unit: str, progress: bool = True, **options: Any
) -> "Bar | ProgressLines":
    """Progress on stderr: a bar at a terminal and in a notebook, else a line a minute.

    Options as tqdm has them. Nothing is shown without `progress`, where `quiet` is wanted, or
    where the environment has TQDM_DISABLE=1.
    """
    # "0" would disable tqdm too, which is not what it says
    is_wanted = progress and not _is_quiet and os.environ.get("TQDM_DISABLE", "") in ("", "0")
    if not is_wanted or sys.stderr is None or not total:
        return ProgressLines(lambda _text: None, title, total, unit, **options)
    # a notebook's stream is no file, and shows bars
    if isinstance(sys.stderr, io.TextIOWrapper) and not _is_terminal(sys.stderr):
        return ProgressLines(say, title, total, unit, **options)
    from featurestore.disk.bars import Bar  # imports tqdm

    return Bar(desc=title, total=total, unit=unit, file=_Lossy(sys.stderr), **options)


def _is_terminal(file: TextIO) -> bool:
    try:
        return file.isatty()
    except ValueError:  # it is closed
        return False


class _Lossy:
    """A text file that drops what it cannot write."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with suppress(*LOST):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(*LOST):
            self._file.flush()

    def __eq__(self, other: object) -> bool:
        return other is self._file  # tqdm takes the terminal's width if it writes to stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def open_missing_descriptors() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed.

    Otherwise a data file or a socket takes its place, and whatever complains writes there.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


def secure_standard_streams() -> None:
    """For a command, once at its start: no print, warning or bar can end it, whoever writes it.

    On stderr whatever cannot be written is lost. Stdout holds results: they are lost only where
    their reader has gone; a full disk is still an error. Streams that somebody has put in place of
    the process's own are left. A path whose name is not UTF-8 is printed on stdout as the bytes
    that it is.
    """
    given = sys.stdout, sys.stderr
    open_missing_descriptors()
    if given[0] in (None, sys.__stdout__):
        buffer = io.BufferedWriter(_Unread(1, "w", closefd=False))
        sys.stdout = _text(buffer, sys.stdout, line_buffering=sys.stdout.isatty())
    if given[1] in (None, sys.__stderr__):
        # no buffer, whose lock would refuse a signal handler that writes amid another write
        unbuffered = _Lost(2, "w", closefd=False)
        sys.stderr = _text(unbuffered, sys.stderr, write_through=True)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")


def _text(buffer: Any, like: TextIO, **options: bool) -> io.TextIOWrapper:
    like.flush()
    return io.TextIOWrapper(buffer, like.encoding, like.errors, **options)


class _Unread(io.FileIO):
    """Drops bytes that nobody can read any more."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as err:
            is_file = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
            if is_file or err.errno not in READER_GONE:
                raise
            return len(data)


class _Lost(io.FileIO):
    """Drops bytes that cannot be written."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        with suppress(OSError):
            while left and (n_bytes := super().write(left)):
                left = left[n_bytes:]
        return len(data)
