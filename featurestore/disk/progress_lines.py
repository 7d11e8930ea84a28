"""Progress where there is no terminal: a line a minute, as a log keeps it."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from featurestore.counts import count_of
from featurestore.disk.durations import duration

EVERY_S = 60.0


class ProgressLines:
    """Says how far the work is, with tqdm's methods."""

    def __init__(
        self,
        say: Callable[[str], None],
        title: str,
        total: int,
        unit: str,
        *,
        initial: int = 0,
        iterable: Iterable[Any] = (),
        mininterval: float = EVERY_S,
        unit_scale: bool = False,
    ) -> None:
        """unit_scale : counts are bytes, and said in GB."""
        self.n = initial
        self.total = total
        self._say = say
        self._title = title
        self._unit = unit
        self._initial = initial
        self._iterable = iterable
        self._every_s = mininterval
        self._in_gb = unit_scale
        self._notes: Mapping[str, str] = {}
        self._start = time.monotonic()
        self._last = self._start

    def update(self, n: int = 1) -> None:
        """So much more is done."""
        self.n += n
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            self._say(self._line(now - self._start))

    def set_postfix(self, notes: Mapping[str, str], refresh: bool = True) -> None:
        """What the next line says beside the count."""
        self._notes = notes

    def _line(self, passed_s: float) -> str:
        if self._in_gb:
            count = f"{self.n / 1e9:.3g} of {self.total / 1e9:.3g} GB"
        else:
            count = count_of(self.n, self._unit, self.total)
        parts = [f"{self._title}: {count}", f"{duration(passed_s)} so far"]
        # what was there at the start says nothing of the speed
        done = self.n - self._initial
        left = max(self.total - self.n, 0)
        if done > 0:
            parts.append(f"about {duration(passed_s / done * left)} to go")
        parts += [f"{name} {value}" for name, value in self._notes.items()]
        return ", ".join(parts)

    def close(self) -> None:
        """Nothing is left to be closed."""

    def __iter__(self) -> Iterator[Any]:
        for each in self._iterable:
            yield each
            self.update()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *_: object) -> None:
        pass
