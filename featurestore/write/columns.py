"""The catalog's columns and cells as a store holds them."""

from typing import Any

import numpy as np
import pandas as pd

from featurestore.disk import durable
from featurestore.errors import InputError
from featurestore.format.spec import OWN_COLUMNS, Column, StoreSpec

STATUS_WIDTH = 16  # bytes; the longest of today's statuses takes seven


def catalog_columns(frame: pd.DataFrame, slack: float = 1.0) -> tuple[Column, ...]:
    """Columns of a catalog for this frame: our own, then the CSV's.

    slack : texts are as wide as the longest one times this.
    """
    fixed = {"sha256": 64, "status": STATUS_WIDTH}
    given = [name for name in frame.columns if name not in OWN_COLUMNS]
    columns = []
    for name in (*OWN_COLUMNS, *given):
        cells = frame[name] if name in frame else pd.Series([], dtype=object)
        is_number = name in frame and pd.api.types.is_numeric_dtype(cells)
        if is_number or name in ("width", "height"):
            columns.append(Column(name=name, kind="number"))
            continue
        longest = max((len(str(text).encode()) for text in cells), default=0)
        wanted = max(1, int(longest * slack))
        width = fixed.get(name) or durable.round_up(wanted, 8)
        columns.append(Column(name=name, kind="text", width=width))
    return tuple(columns)


def catalog_cells(spec: StoreSpec, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Encoded cells of each column for new images; what the frame does not have is NaN or empty."""
    missing = np.full(len(frame), np.nan)
    cells = {}
    for column in spec.columns:
        cells[column.name] = encode_column(column, frame.get(column.name, missing))
    return cells


def encode_column(column: Column, values: Any) -> np.ndarray:
    """Cells as the catalog holds them; InputError for a text too long for the column."""
    if column.kind == "number":
        return np.ascontiguousarray(values, "<f8")  # a DataFrame hands out strided columns
    # value != value is NaN: an empty column of the CSV
    encoded = [b"" if value != value else str(value).encode() for value in values]
    too_long = [text for text in encoded if len(text) > column.width]
    if too_long:
        raise InputError(
            f"{column.name}: {too_long[0].decode()!r} needs {len(too_long[0])} bytes, the store's "
            f"column has {column.width}; build another store"
        )
    padded = np.array(encoded, f"S{column.width}")
    return padded.view(np.uint8).reshape(len(encoded), column.width)
