"""Threads that fetch rows in the background."""

import queue
import threading
import weakref
from concurrent.futures import Future
from contextlib import suppress

from featurestore.disk.threads import starting
from featurestore.errors import NoThreadError


class FetchThreads:
    """Threads that fetch rows in the order of the requests.

    Daemons: what nobody waits for must not keep a program from ending.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._begun = False

    def submit(self, method: weakref.WeakMethod, *arguments: int) -> Future:
        """Have a method called, if its object is still there by then."""
        if not self._begun:
            self._begin()
        future: Future = Future()
        self._tasks.put((future, method, arguments))
        return future

    def _begin(self) -> None:
        """Start the threads, or as many as the system starts; NoThreadError if that is none."""
        for _ in range(self._n):
            thread = threading.Thread(
                target=_work,
                args=(self._tasks,),
                name="fetch-rows",
                daemon=True,
            )
            try:
                with starting():
                    thread.start()
            except NoThreadError:
                # fewer threads fetch more slowly, and no worse
                if self._begun:
                    return
                raise
            self._begun = True

    def stop(self) -> None:
        """End; what was not begun is cancelled."""
        with suppress(queue.Empty):
            while (task := self._tasks.get_nowait()) is not None:
                task[0].cancel()
        # one for each thread: whoever takes it ends
        for _ in range(self._n):
            self._tasks.put(None)


def _work(tasks: queue.SimpleQueue) -> None:
    while (task := tasks.get()) is not None:
        future, method, arguments = task
        call = method()
        if call is not None and future.set_running_or_notify_cancel():
            try:
                future.set_result(call(*arguments))
            except BaseException as err:  # whoever waits for the row gets it
                future.set_exception(err)
        # a thread that waits for its next task must not keep the source alive
        del task, future, method, call
