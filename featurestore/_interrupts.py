"""A signal that asked this process to stop, remembered: an exception raised by a handler can get lost, or come amid a change.

A handler runs wherever the main thread is. Inside a callback of foreign code (h5py opening a file: seen in 2 of 10 tries) its
SystemExit is dropped and work goes on; inside an optimiser's step it would leave half of the weights stepped. So long loops
ask again at points where nothing is half done, and may say that they alone do.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_code: int | None = None
_deferred = False
_way_on = ""


def interrupt(code: int | None) -> None:
    """Unwind with this exit code, now or at the next `check_interrupt`; None forgets an earlier one."""
    global _code
    _code = code
    if not _deferred:
        check_interrupt()


def is_deferred() -> bool:
    """Whether a signal waits for the next `check_interrupt`."""
    return _deferred


def check_interrupt() -> None:
    """Raise SystemExit if a signal has asked for it."""
    if _code is not None:
        raise SystemExit(_code)


def way_on() -> str:
    """How what is under way now can be taken up after a signal; empty where nothing can be."""
    return _way_on


@contextmanager
def deferred_interrupts(way_on: str = "") -> Iterator[None]:
    """In this block a signal unwinds at a `check_interrupt` only; `way_on` says how to go on afterwards."""
    global _deferred, _way_on
    _deferred, _way_on = True, way_on
    try:
        yield
    finally:
        _deferred, _way_on = False, ""
