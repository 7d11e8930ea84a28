"""Columns of a table that heads read beside a photograph: which, and a row of them as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from featurestore.errors import InputError, list_some
from featurestore.format.spec import OWN_COLUMNS
from featurestore.photos.candidates import MOST_CLASSES, known_cells
from featurestore.photos.labels import class_cells
from featurestore.photos.tables import MISSING
from featurestore.photos.targets import Target, Targets

KEY = "head.columns"


@dataclass(frozen=True)
class InputColumn:
    """One column: numbers, or words of a class."""

    name: str
    words: tuple[str, ...] = ()
    """Of a class, in order; of a number none."""

    @property
    def width(self) -> int:
        """Channels that it becomes."""
        return len(self.words) or 1

    def encoded(self, frame: pd.DataFrame, where: Path | str) -> np.ndarray:
        """(N, width) float64: the number, NaN where it is not known; or a 1 at the row's word, all
        zeros for a word that is not among them.

        InputError naming rows where a number is a text.
        """
        if self.words:
            cells = class_cells(frame, Target(self.name, "class"))
            return np.stack([cells == word for word in self.words], 1).astype(np.float64)
        column = frame[self.name]
        value_N = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
        is_missing_N = column.isna() | column.astype(str).str.strip().isin(MISSING)
        is_wrong_N = ~np.isfinite(value_N) & ~is_missing_N.to_numpy()
        if is_wrong_N.any():
            pairs = zip(frame["image_id"][is_wrong_N], column[is_wrong_N], strict=True)
            raise InputError(
                f"{where}: {KEY}: {self.name} must be a number, as where heads learned:"
                + list_some([f"{image_id}: {cell!r}" for image_id, cell in pairs])
            )
        return value_N[:, None]


@dataclass(frozen=True)
class InputColumns:
    """All of a head's, in its order; none is the rule."""

    each: tuple[InputColumn, ...] = ()

    @classmethod
    def of(
        cls,
        catalog: pd.DataFrame,
        names: Sequence[str],
        targets: Targets,
        where: Path | str,
    ) -> Self:
        """As a catalog has them: a column of texts is a class, with the words there are.

        InputError for a column that is missing, a target, of nothing known or of too many words.
        """
        return cls(tuple(_column_of(catalog, name, targets, where) for name in names))

    @classmethod
    def from_json(cls, value: Any, names: Sequence[str], where: Path) -> Self:
        """As a run's file tells them; InputError unless they are those that its config names."""
        are_lists = isinstance(value, dict) and all(isinstance(w, list) for w in value.values())
        if are_lists and list(value) == list(names):
            return cls(tuple(InputColumn(name, tuple(value[name])) for name in names))
        raise InputError(f"{where}: columns: not those of {KEY} in config.yaml; copy the run again")

    def to_json(self) -> dict[str, Any]:
        return {column.name: list(column.words) for column in self.each}

    def __bool__(self) -> bool:
        return bool(self.each)

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.each]

    @property
    def width(self) -> int:
        """Channels C of a row."""
        return sum(column.width for column in self.each)

    @cached_property
    def is_number_C(self) -> np.ndarray:
        """Which channels are numbers; the others are words."""
        numbers = [not column.words for column in self.each]
        widths = [column.width for column in self.each]
        return np.repeat(np.array(numbers, bool), widths)

    def encoded(self, frame: pd.DataFrame, where: Path | str) -> np.ndarray:
        """(N, C) float64 rows of a table, as `InputColumn.encoded`, one column after another.

        InputError, naming the table, for columns that it lacks.
        """
        if absent := [name for name in self.names if name not in frame]:
            raise InputError(
                f"{where}: no column {', '.join(absent)}, which the heads read beside the "
                f"photographs ({KEY} of their config); add it, or choose heads without it"
            )
        parts = [column.encoded(frame, where) for column in self.each]
        # with an empty one: without columns there would be nothing to stack
        return np.hstack([np.empty((len(frame), 0)), *parts])

    def scale(self, x_nC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(C,) center and factor of channels by a training fold's rows: a number is brought to mean
        0 and std 1, a word stays 0 or 1. What the fold never varies counts for nothing."""
        mean_C = means(x_nC)
        known_nC = np.where(np.isnan(x_nC), mean_C, x_nC)
        varies_C = known_nC.max(0) > known_nC.min(0)
        std_C = np.where(varies_C, known_nC.std(0), 1.0)
        factor_C = np.where(self.is_number_C, 1 / std_C, 1.0)
        return np.where(self.is_number_C, mean_C, 0.0), np.where(varies_C, factor_C, 0.0)


NO_COLUMNS = InputColumns()


def means(x_nC: np.ndarray) -> np.ndarray:
    """(C,) mean of each channel over rows that have it; 0 where none has."""
    n_known_C = (~np.isnan(x_nC)).sum(0)
    return np.nansum(x_nC, 0) / np.maximum(n_known_C, 1)


def filled(x_NF: np.ndarray, mean_C: Sequence[float]) -> np.ndarray:
    """Features whose last C are of columns, a training fold's mean for what is not known."""
    if not len(mean_C):
        return x_NF
    first = x_NF.shape[1] - len(mean_C)
    x_NC = x_NF[:, first:]
    known_NC = np.where(np.isnan(x_NC), mean_C, x_NC)
    return np.hstack([x_NF[:, :first], known_NC])


def _column_of(
    catalog: pd.DataFrame,
    name: str,
    targets: Targets,
    where: Path | str,
) -> InputColumn:
    learned = [target.name for target in targets.each]
    if name in learned:
        remedy = "leave it out of one of the two"
        if targets.preset:
            remedy = "leave it out, or name all targets but it in `targets` (docs/targets.md)"
        raise InputError(
            f"{KEY}: {name} is a target, and heads would read what they are to tell; {remedy}"
        )
    if name not in catalog or name in OWN_COLUMNS:
        others = [each for each in catalog if each not in (*OWN_COLUMNS, *learned)]
        there = ", ".join(others) or "no other"
        raise InputError(f"{KEY}: {where} has no column {name} to read; it has {there}")
    if known_cells(catalog[name]).empty:
        raise InputError(f"{KEY}: {where}: no photograph has a value of {name}; leave it out")
    if pd.api.types.is_numeric_dtype(catalog[name]):
        return InputColumn(name)
    words = sorted({cell for cell in class_cells(catalog, Target(name, "class")) if cell})
    if len(words) > MOST_CLASSES:
        raise InputError(
            f"{KEY}: {where}: {name} has {len(words)} different texts, {words[0]!r} among them; "
            f"a class has {MOST_CLASSES} at most, and a number is a number in every row"
        )
    return InputColumn(name, tuple(words))
