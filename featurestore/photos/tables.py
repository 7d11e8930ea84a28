"""What the cells of a table hold, and errors that name the lines at fault."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurestore.errors import InputError, list_some

MISSING = ("", "NA", "NaN", "null")
# 007 stays text, and so does an id of 16 digits or more, which a float64 would round
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d{0,14})(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)

# one match over a whole column: of a large table, one a cell took most of the time; `*+` keeps
# no way back, which would need memory for each cell
COLUMN_OF_NUMBERS = re.compile(
    rf"(?:(?:{NUMBER.pattern}|{'|'.join(MISSING)})\n)*+",
    re.ASCII,
)


def number_in(cell: str) -> float | None:
    """The finite number a cell holds, NaN for a missing one, None for text."""
    if cell in MISSING:
        return math.nan
    # 1e999 is infinite too, and so no number that can be reckoned with
    number = float(cell) if NUMBER.fullmatch(cell) else math.inf
    return number if math.isfinite(number) else None


def numbers_in(cells: Sequence[str]) -> np.ndarray | None:
    """The float64 numbers of a column's cells as `number_in` reads them, None where one is text."""
    column = "\n".join([*cells, ""])
    # a cell with a line break of its own is text, and would be read as two cells
    if column.count("\n") != len(cells) or not COLUMN_OF_NUMBERS.fullmatch(column):
        return None
    cell_N = np.array(cells, object)
    try:
        number_N = cell_N.astype(np.float64)
    except ValueError:  # NumPy knows `NaN` alone of the words for a missing number
        cell_N[np.isin(cell_N, MISSING)] = math.nan
        number_N = cell_N.astype(np.float64)
    return None if np.isinf(number_N).any() else number_N


def error_listing(where: Path, problem: str, items: list[str], most: int = 20) -> InputError:
    return InputError(f"{where}: {problem}:{list_some(items, most)}")
