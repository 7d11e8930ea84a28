"""Long computations: few at a time, each once, results kept while valid and while there is room."""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pandas as pd
from starlette.requests import Request

from featurestore.disk.threads import Pool
from featurestore.disk.usable import usable_memory
from service.errors import ServiceError

SLOTS = 2
"""Computed at once, each by one thread."""

WAITING = 8
"""More than a page requests at once when nothing is kept yet."""

KEPT_BYTES = 1 << 30
"""Most bytes of results, unless usable memory / KEPT_SHARE is less."""

KEPT_SHARE = 4

WEIGHED = 10_000
"""Cells of a table's column whose texts are weighed, spread over it."""


async def run(request: Request, key: Hashable, function: Callable[[], Any]) -> Any:
    """What function() returns: kept from before, or computed in a thread.

    Requests for the same await one computation.

    key : names the work and what it was made from, e.g. `(opened.state, "stats")`. Its result is
        never made again while it is kept. Do not change what you get, others get it too.

    Raises ServiceError `busy` (503, Retry-After) when all SLOTS are taken by other work and WAITING
    more wait, and what function raises; an error is not kept.
    """
    return await request.app.state.computations.run(key, function)


class Computations:
    """The slots, the work under way and the results of one application."""

    def __init__(self) -> None:
        self.kept_bytes = min(KEPT_BYTES, usable_memory().n_bytes // KEPT_SHARE)
        self._pool = Pool(SLOTS, thread_name_prefix="computing")
        self._running: dict[Hashable, asyncio.Future] = {}
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    @property
    def n_running(self) -> int:
        return len(self._running)

    async def run(self, key: Hashable, function: Callable[[], Any]) -> Any:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        if key not in self._running:
            self._begin(key, function)
        # who waits may go; the others still want it
        result, _ = await asyncio.shield(self._running[key])
        return result

    def _begin(self, key: Hashable, function: Callable[[], Any]) -> None:
        # refused rather than queued without end: the client hears at once, and may ask again
        most = SLOTS + WAITING
        if self.n_running >= most:
            raise ServiceError(
                "busy",
                f"{most} long computations are under way or wait",
                "ask again in some seconds",
            )

        def weighed() -> tuple[Any, int]:
            # in the thread, too: to size a large table takes long
            result = function()
            return result, _size(result)

        future = asyncio.get_running_loop().run_in_executor(self._pool, weighed)
        self._running[key] = future
        future.add_done_callback(lambda done: self._finish(key, done))

    def _finish(self, key: Hashable, done: asyncio.Future) -> None:
        del self._running[key]
        if done.cancelled() or done.exception():
            return
        self._kept[key] = done.result()
        # those that were used longest ago go first: `run` moves what it finds to the end
        n_bytes = sum(size for _, size in self._kept.values())
        # the last one stays: who pages through a large table asks again at once
        while len(self._kept) > 1 and n_bytes > self.kept_bytes:
            _, (_, size) = self._kept.popitem(last=False)
            n_bytes -= size


def _size(result: Any) -> int:
    """Bytes of a result, roughly."""
    if isinstance(result, pd.DataFrame):
        return _frame_bytes(result)
    if isinstance(result, np.ndarray):
        return result.nbytes
    if isinstance(result, dict):
        return sum(map(_size, result.values()))
    if isinstance(result, list | tuple):
        return sum(map(_size, result))
    return sys.getsizeof(result)


def _frame_bytes(frame: pd.DataFrame) -> int:
    """A text that many cells hold is one object, and counts once.

    By some of the cells: of a catalog of a million photographs all of them took 4 s.
    """
    n_bytes = int(frame.memory_usage().sum())
    n = len(frame)
    some = np.linspace(0, n - 1, min(n, WEIGHED)).astype(int)
    for _, column in frame.items():
        if pd.api.types.is_numeric_dtype(column):
            continue
        different = column.iloc[some].unique()
        own = sum(map(sys.getsizeof, different))
        is_each_its_own = 2 * len(different) > len(some)
        n_bytes += own * n // len(some) if is_each_its_own else own
    return n_bytes
