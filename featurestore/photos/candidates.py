"""Which columns of a table could be targets, and the `targets:` block that says so in a config.

`store build` tells it of a new table, `train` of a catalog without targets.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import yaml

from featurestore.counts import count_of
from featurestore.format.spec import OWN_COLUMNS
from featurestore.photos.columns import tidy
from featurestore.photos.dates import are_dates
from featurestore.photos.tables import MISSING

MOST_CLASSES = 50


@dataclass(frozen=True)
class Candidate:
    """A column that could be a target."""

    name: str
    kind: str
    """`amount`, `level`, `share` or `class`, guessed from its cells; a config may say another."""
    n_known: int
    """Photographs that have a value."""
    n_images: int
    n_values: int
    """Different values."""

    def __str__(self) -> str:
        """E.g. `class of 4 values, 118 of 120 photographs`."""
        kind = f"class of {self.n_values} values" if self.kind == "class" else self.kind
        return f"{kind}, {count_of(self.n_known, 'photograph', self.n_images)}"


def could_be_targets(frame: pd.DataFrame) -> list[Candidate]:
    """Columns of a catalog that heads could learn, in its order.

    Numbers that are not all the same are a level where some are below 0, a share where all are
    within 0 to 1 and some are fractions, else an amount. Texts are a class if there are 2 to 50 of
    them and each stands for two photographs on average or more. Ids, paths, dates and running
    numbers are none.
    """
    found = []
    for name in frame.columns:
        if name in OWN_COLUMNS:
            continue
        cells = known_cells(frame[name])
        different = cells.unique()
        kind = _kind_of(cells, different)
        if kind:
            found.append(Candidate(name, kind, len(cells), len(frame), len(different)))
    return found


def known_cells(column: pd.Series) -> pd.Series:
    """Cells that hold a value, texts without spaces around them."""
    if pd.api.types.is_numeric_dtype(column):
        return column[np.isfinite(column)]
    cells = column.dropna().astype(str)
    # each text once, since most columns have few
    stripped = {text: text.strip() for text in cells.unique()}
    cells = cells.map(stripped).astype(str)
    return cells[~cells.isin(MISSING)]


def _kind_of(cells: pd.Series, different: Collection) -> str | None:
    """different : values of the cells, each once."""
    if len(different) < 2 or are_dates(map(tidy, different)):
        return None
    if not pd.api.types.is_numeric_dtype(cells):
        repeats = len(different) <= len(cells) / 2
        return "class" if repeats and len(different) <= MOST_CLASSES else None

    value_N = cells.to_numpy(np.float64)
    has_fractions = (value_N % 1 != 0).any()
    if len(value_N) > 2 and not has_fractions and (np.diff(value_N) == 1).all():
        return None  # a running number
    if (value_N < 0).any():
        return "level"
    return "share" if has_fractions and (value_N <= 1).all() else "amount"


def block_to_write(candidates: Sequence[Candidate]) -> str:
    """The `targets:` block of a config with these columns, a comment behind each."""
    lines = [_as_yaml(candidate, is_flow=None) for candidate in candidates]
    width = max(map(len, lines), default=0)
    commented = [
        f"  {line:<{width}}  # {candidate}"
        for line, candidate in zip(lines, candidates, strict=True)
    ]
    return "\n".join(["targets:", *commented])


def block_in_a_line(candidate: Candidate) -> str:
    """That block for one column: `targets: {mass: {}}`."""
    return f"targets: {_as_yaml(candidate, is_flow=True)}"


def _as_yaml(candidate: Candidate, is_flow: bool | None) -> str:
    settings = {} if candidate.kind == "amount" else {"kind": candidate.kind}
    # PyYAML knows which names need quotes, e.g. `yes` or `Height: cm`
    block = {candidate.name: settings}
    return yaml.safe_dump(
        block,
        default_flow_style=is_flow,
        allow_unicode=True,
        width=float("inf"),
    ).strip()
