"""Work on stored rows that is begun before they are asked for."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from featurestore.disk.threads import Pool
from featurestore.read.source import Row


class Ahead:
    """Work on rows that is begun before they are asked for: in order, in groups, by one thread, so
    many at a time.

    work : takes the rows of a group.
    n_most : rows begun and not yet asked for, at most; while a step has fewer rows, so many.
    """

    def __init__(self, work: Callable[[list[Row]], Any], n_group: int, n_most: int) -> None:
        self._work = work
        self._n_group = n_group
        self._n_most = n_most
        self._n_window = n_most  # of the step under way
        self._waiting: dict[Row, None] = {}  # in order
        self._begun: dict[Row, Future] = {}
        self._pool = Pool(1, "read-ahead")

    def begin(self, rows: Sequence[Row]) -> None:
        """These rows are wanted now, in this order; others that were expected are forgotten."""
        wanted = set(rows)
        self._begun = {row: future for row, future in self._begun.items() if row in wanted}
        self._n_window = min(self._n_most, max(1, len(rows)))
        self._waiting = {}
        self.expect(rows)

    def expect(self, rows: Iterable[Row]) -> None:
        """These come after the others."""
        self._waiting |= {row: None for row in rows if row not in self._begun}
        self._start()

    def has_begun(self, row: Row) -> bool:
        """Whether the row was handed over; one that waits for room in the window was not."""
        return row in self._begun

    def take(self, row: Row) -> Any:
        """What work gave for the row's group, waited for; None for a row that was not begun. An
        error of the work is raised."""
        self._waiting.pop(row, None)
        future = self._begun.pop(row, None)
        self._start()
        return None if future is None else future.result()

    def at_once(self, rows: list[Row]) -> Any:
        """The same work for rows that were not begun, after what is under way."""
        for row in rows:
            self._waiting.pop(row, None)
        return self._pool.submit(self._work, rows).result()

    def _start(self) -> None:
        """Hand over whole groups while they fit the window, four a window or more; a hand-over for
        each row would cost more."""
        while self._waiting:
            n = min(self._n_group, len(self._waiting), -(-self._n_window // 4))
            if len(self._begun) + n > self._n_window:
                return
            group = list(itertools.islice(self._waiting, n))
            future = self._pool.submit(self._work, group)
            for row in group:
                del self._waiting[row]
                self._begun[row] = future
