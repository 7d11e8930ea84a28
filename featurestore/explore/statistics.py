"""Statistics of a store's tokens, from what was stored with each row: no token is read.

No pandas, so that `store stats` answers at once.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featurestore.disk.json_values import json_value
from featurestore.disk.terminal import fitting
from featurestore.format.spec import STATS
from featurestore.read.reader import Reader

COUNTS = ("count", "non_finite")


def stats(store: Reader) -> list[dict[str, Any]]:
    """Count, mean, std, min, max, mean norm and non-finite values of all sealed images.

    A row per view and token kind; NaN where no image is sealed.
    """
    kinds = ("cls", "patch") if store.spec.has_patches else ("cls",)
    sealed = store.sealed
    rows = []
    for view, name in enumerate(store.view_names):
        stats_NS = store.array("stats")[sealed, view]
        for kind in kinds:
            rows.append({"view": name, "tokens": kind, **merged(stats_NS, kind)})
    return rows


def stats_text(store: Reader, width: int | None = None) -> str:
    """The same as a table for a shell; in a narrow terminal without some columns."""
    rows = stats(store)
    dropped = ["count", "max", "min"]
    if not any(row["non_finite"] > 0 for row in rows):
        dropped.insert(0, "non_finite")
    return fitting(list(rows[0]), dropped, width, lambda columns: _table(rows, columns))


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    table = [list(columns)]
    for row in rows:
        cells = []
        for name in columns:
            value = row[name]
            digits = 0 if name in COUNTS else 6
            cells.append(value if isinstance(value, str) else f"{value:.{digits}f}")
        table.append(cells)

    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        padded = []
        for cell, width in zip(cells, widths, strict=True):
            padded.append(cell.rjust(width))
        lines.append(" ".join(padded))
    return "\n".join(lines)


def stats_json(store: Reader) -> str:
    """The same for machines."""
    return json.dumps(json_value(stats(store)))


def merged(stats_NS: np.ndarray, kind: str) -> dict[str, float]:
    """One row's statistics of many rows' moments (Chan et al. 1979, parallel variance)."""
    fields = {}
    for s, name in enumerate(STATS):
        if name.startswith(f"{kind}_"):
            fields[name.removeprefix(f"{kind}_")] = stats_NS[:, s]

    count = fields["count"].sum()
    if not count:
        names = ("count", "mean", "std", "min", "max", "norm", "non_finite")
        return dict.fromkeys(names, np.nan)

    mean = (fields["count"] * fields["mean"]).sum() / count
    # within rows, and between them: no token is read again
    between_N = fields["count"] * (fields["mean"] - mean) ** 2
    m2 = (fields["m2"] + between_N).sum()
    return {
        "count": count,
        "mean": mean,
        "std": np.sqrt(m2 / count),
        "min": fields["min"].min(),
        "max": fields["max"].max(),
        "norm": fields["norm"].mean(),
        "non_finite": fields["non_finite"].sum(),
    }
