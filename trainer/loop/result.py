"""What a finished sweep found, as text and as values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.disk.terminal import fitting, hung, shortened

DROPPED = ("best_epoch", "score_best", "sd_last", "high", "low", "vs_best")
"""Columns of a board that a narrow terminal goes without, the first one first."""


@dataclass(frozen=True)
class SweepResult:
    """Where a sweep's folder is and what it found, best point first."""

    path: Path
    summary: pd.DataFrame
    best: str | None
    """Name of the first point that can be saved; None if all failed, or are for reports only."""
    chosen: dict[str, Any] | None
    """What `predict` takes: its name on the board, members and shares; None if there is none."""
    headline: str | None
    """What comes before the board: a regressor or a baseline beats the best trained head."""
    notes: list[str]
    """What a reader of the leaderboard has to know, a sentence each."""
    failed: dict[str, str] = field(default_factory=dict)
    """Names of the runs that failed, `refit` among them, and what happened at which step."""

    @property
    def all_failed(self) -> bool:
        """No point can be used."""
        # of the baselines beside them it says nothing
        names = self.summary.dropna(subset="failed")["name"]
        return all(name in self.failed for name in names)

    @property
    def refit(self) -> Path | None:
        """Folder of what was chosen, trained on every image, if it is there and did not fail."""
        folder = self.path / "refit"
        return folder if folder.exists() and "refit" not in self.failed else None

    def values(self) -> dict[str, Any]:
        """For machines: the board as rows of summary.csv, and where things are."""
        return {
            "path": self.path,
            "refit": self.refit,
            "best": self.best,
            "chosen": self.chosen,
            "board": self.summary.to_dict("records"),
            "headline": self.headline,
            "notes": self.notes,
            "failed": self.failed,
        }

    def table(self, width: int | None = None) -> str:
        """The leaderboard as text, below what is told first.

        width : columns of a terminal; None shows all there is.
        """
        columns = [
            "name",
            "score_last",
            "sd_last",
            "vs_best",
            "low",
            "high",
            "score_best",
            "best_epoch",
        ]
        # a sweep of regressors alone has no columns of the best epoch
        there = [c for c in columns if c in self.summary]
        filled = [c for c in there if self.summary[c].notna().any()]
        rows = fitting(filled, DROPPED, width, partial(self._rows, self.summary))
        too_many = max(map(len, rows.split("\n"))) - width if width else 0
        if too_many > 0:
            names = self.summary["name"].astype(str)
            longest = names.map(len).max()
            shown = names.map(partial(shortened, most=longest - too_many))
            rows = self._rows(self.summary.assign(name=shown), ["name", "score_last"])
        first = [hung(self.headline, width, 2)] if self.headline else []
        notes = [hung(note, width, 2) for note in self.notes]
        return "\n".join([*first, rows, *notes])

    @staticmethod
    def _rows(summary: pd.DataFrame, columns: Sequence[str]) -> str:
        shown = summary[list(columns)]
        return shown.to_string(index=False, na_rep="", float_format=lambda x: f"{x:.4f}")
