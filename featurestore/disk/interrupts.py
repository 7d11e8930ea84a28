"""A stop that was requested: noted at once, acted on where nothing is half done.

A command is stopped by a signal and ends by SystemExit, exit code 128 + number. In Python SIGINT
stops (a notebook's button), and KeyboardInterrupt is raised.

A handler runs wherever the main thread is. Inside a callback of foreign code (h5py opening a file:
seen in 2 of 10 tries) an exception that it raises is dropped and work goes on; inside an
optimiser's step it would leave half of the weights stepped. So long loops ask again at points where
nothing is half done, and may say that they alone do.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from featurestore.disk.messages import say_always

KILLING = (signal.SIGINT, signal.SIGTERM)
COUNTED_ONCE = (signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)
"""A closed terminal; a batch system's limits, of which the kernel repeats SIGXCPU every second."""
GRACE_S = 10  # in which a repeated signal is a scheduler's second copy of the same wish

_stop: Callable[[], BaseException] | None = None
_deferred = False
_way_on = ""


def check_interrupt() -> None:
    """Raise SystemExit or KeyboardInterrupt if a stop was requested.

    Signals are the main thread's: others are not stopped.
    """
    if _stop is not None and _on_main_thread():
        raise _stop()


@contextmanager
def deferred_interrupts(way_on: str = "") -> Iterator[None]:
    """In this block a stop waits for a `check_interrupt`; `way_on` says how to go on afterwards.

    A signal that no check met stops the command at its end, a KeyboardInterrupt in Python, as in
    `patient_keyboard`, at the end of the block.
    """
    global _deferred, _way_on
    if not _on_main_thread():
        yield
        return
    _deferred, _way_on = True, way_on
    try:
        with patient_keyboard(way_on):
            yield
    finally:
        _deferred, _way_on = False, ""


@contextmanager
def told_way_on(way_on: str) -> Iterator[None]:
    """In this block a stop comes at once, and says how to go on afterwards."""
    global _way_on
    _way_on = way_on
    try:
        yield
    finally:
        _way_on = ""


@contextmanager
def patient_keyboard(way_on: str) -> Iterator[None]:
    """The first KeyboardInterrupt waits for a `check_interrupt`, or the block's end.

    A second one comes at once.

    Only where SIGINT has Python's own handler: a command's or the user's is left, and so is an
    ignored signal. Handlers are put back. Off the main thread nothing is changed.
    """
    if not _on_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def note(_number: int, _frame: object) -> None:
        global _stop
        _stop = KeyboardInterrupt
        # a second one comes at once, and while the message is written too
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say_always(f"stopping after this step, once more interrupts at once{_then(way_on)}")

    signal.signal(signal.SIGINT, note)
    try:
        yield
        check_interrupt()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _forget()


@contextmanager
def stopped_by_signals(after: str = "") -> Iterator[None]:
    """For a command: the first signal unwinds, a second SIGINT or SIGTERM kills.

    Unwinding finishes or drops what is begun.

    Where unwinding waits for a checkpoint, a second one within GRACE_S is taken for the same wish:
    schedulers repeat theirs. A signal of COUNTED_ONCE is left to whoever ignores it (nohup) or
    handles it already.

    after : what a user can do after a signal, said when it comes; empty says what
        `deferred_interrupts` was told.
    """
    if not _on_main_thread():
        yield
        return
    handler = _Handler(after)
    unhandled = [each for each in COUNTED_ONCE if signal.getsignal(each) == signal.SIG_DFL]
    taken = [*KILLING, *unhandled]
    before = {each: signal.signal(each, handler) for each in taken}
    _forget()  # nobody asked this command to stop yet
    try:
        yield
        check_interrupt()
    finally:
        _forget()  # what runs in this process afterwards was not asked to stop
        for each, previous in before.items():
            if not handler.is_ending(each):
                signal.signal(each, previous)


class _Handler:
    """What a command does at each signal."""

    def __init__(self, after: str) -> None:
        self._after = after
        self._has_waited = False
        self._asked = False
        self._kills_from_s: float | None = None

    def is_ending(self, number: int) -> bool:
        """Whether the process ends, and must live until its exit code is known."""
        return self._asked and (self._has_waited or number in COUNTED_ONCE)

    def __call__(self, number: int, _frame: object) -> None:
        global _stop
        is_first = not self._asked
        self._asked = True
        self._has_waited |= _deferred
        if number in KILLING:
            self._kill_if_repeated(number)
        if not is_first:
            return
        _stop = partial(SystemExit, 128 + number)
        kills = f", once more after {GRACE_S} s kills" if _deferred else ""
        say_always(f"stopping{kills}{_then(self._after or _way_on)}")
        if not _deferred:
            check_interrupt()

    def _kill_if_repeated(self, number: int) -> None:
        now = time.monotonic()
        # where nothing waits for a checkpoint the next signal kills at once
        if self._kills_from_s is None:
            self._kills_from_s = now + (GRACE_S if self._has_waited else 0)
        elif now >= self._kills_from_s:
            # by the system's own action: a shell sees a process that the signal killed
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def go_on_with(command: str) -> str:
    """A way on: a command on a line of its own, to be pasted."""
    return f"go on with:\n{command}"


def _then(way_on: str) -> str:
    return f"; {way_on}" if way_on else ""


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _forget() -> None:
    global _stop
    _stop = None
