"""Progress at a terminal: tqdm's bar."""

from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """tqdm's, at 100 % once its block has ended without an error."""

    def __exit__(self, error: Any, *more: Any) -> None:
        # totals are known before the work: a seal, or a row that was skipped, moves no bar
        if error is None and not self.disable:
            self.n = self.total
        super().__exit__(error, *more)
