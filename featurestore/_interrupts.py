"""A signal that asked this process to stop, remembered: an exception raised by a handler can get lost.

A handler runs wherever the main thread is. Inside a callback of foreign code (h5py opening a file: seen in 2 of 10 tries) its
SystemExit is dropped and work goes on. So long loops ask again, at points where nothing is half done.
"""

_code: int | None = None


def interrupt(code: int | None) -> None:
    """Unwind with this exit code, now or at the next `check_interrupt`; None forgets an earlier one."""
    global _code
    _code = code
    check_interrupt()


def check_interrupt() -> None:
    """Raise SystemExit if a signal has asked for it."""
    if _code is not None:
        raise SystemExit(_code)
