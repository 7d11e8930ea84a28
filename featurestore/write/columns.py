"""The catalog's columns and cells as a store holds them."""

from typing import Any

import numpy as np
import pandas as pd

from featurestore.disk import durable
from featurestore.errors import InputError
from featurestore.format.spec import OWN_COLUMNS, Column, StoreSpec

STATUS_WIDTH = 16


def catalog_columns(frame: pd.DataFrame, slack: float = 1.0) -> tuple[Column, ...]:
    """Columns of a catalog for this frame: our own, then the CSV's; texts as wide as the longest,
    times slack."""
    fixed = {"sha256": 64, "status": STATUS_WIDTH}
    columns = []
    for name in [*OWN_COLUMNS, *(c for c in frame.columns if c not in OWN_COLUMNS)]:
        if name in ("width", "height") or (
            name in frame and pd.api.types.is_numeric_dtype(frame[name])
        ):
            columns.append(Column(name=name, kind="number"))
        else:
            longest = (
                max((len(str(text).encode()) for text in frame[name]), default=0)
                if name in frame
                else 0
            )
            width = fixed.get(name) or durable.round_up(max(1, int(longest * slack)), 8)
            columns.append(Column(name=name, kind="text", width=width))
    return tuple(columns)


def catalog_cells(spec: StoreSpec, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Encoded cells of each column for new images; what the frame does not have is NaN or empty."""
    return {
        column.name: encode_column(
            column, frame[column.name] if column.name in frame else np.full(len(frame), np.nan)
        )
        for column in spec.columns
    }


def encode_column(column: Column, values: Any) -> np.ndarray:
    """Cells as the catalog holds them; InputError for a text that does not fit the column's fixed
    width."""
    if column.kind == "number":
        return np.ascontiguousarray(values, "<f8")  # a DataFrame hands out strided columns
    # NaN: an empty column of the CSV
    encoded = [b"" if value != value else str(value).encode() for value in values]
    if too_long := [text for text in encoded if len(text) > column.width]:
        raise InputError(
            f"{column.name}: {too_long[0].decode()!r} needs {len(too_long[0])} bytes, the store's "
            f"column has {column.width}; build another store"
        )
    return np.array(encoded, f"S{column.width}").view(np.uint8).reshape(len(encoded), column.width)
