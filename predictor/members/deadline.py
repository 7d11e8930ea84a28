"""Time left, and views that fit into it: a late prediction takes fewer views, not none."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from featurestore.counts import count_of
from featurestore.disk.durations import duration
from featurestore.disk.messages import say
from featurestore.format.spec import ViewSpec

MARGIN = 0.95  # of the time left is planned: writing, and the last photograph, take some too
LEVELS = (8, 4, 2, 1)
RECENT = 20  # photographs, the last ones alone: a machine gets slower when others use it too


@dataclass
class Clock:
    """What is left of a time budget; None has no end. Views fall from the last on: those given
    first are the most worth."""

    budget_s: float | None
    n_left: int
    """Photographs still to do, each once per backbone."""
    say: Callable[[str], object] = say
    n_at_once: int = 1
    """Devices that work side by side."""
    start: float = field(default_factory=time.monotonic)
    _views_s: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    _level: int = 0

    def views(self, views: Sequence[ViewSpec]) -> Sequence[ViewSpec]:
        """As many of the views, in order, as the photographs left can have."""
        if self.budget_s is None or not self._views_s:
            return views
        n_views = sum(n for n, _ in self._views_s)
        view_s = sum(seconds for _, seconds in self._views_s) / n_views / self.n_at_once
        left_s = (self.budget_s - (time.monotonic() - self.start)) * MARGIN
        levels = [n for n in (len(views), *LEVELS) if n <= len(views)]
        fits = [n for n in levels if n * view_s * self.n_left <= left_s]
        # late rather than without a prediction: one view where not even that fits
        n = max(fits, default=1)
        if self._level and n < self._level:
            self.say(
                f"{duration(left_s)} left for {count_of(self.n_left, 'photograph')} "
                f"at {duration(view_s)} a view: {count_of(n, 'view')} each from here on"
            )
        if not fits and self._level != 1:
            self.say("not even one view each fits the deadline; going on with one")
        self._level = n
        return views[:n]

    def done(self, n_views: int, seconds: float) -> None:
        """A photograph was finished."""
        self.n_left -= 1
        if n_views:  # not one that the journal had
            self._level = self._level or n_views
            self._views_s.append((n_views, seconds))
