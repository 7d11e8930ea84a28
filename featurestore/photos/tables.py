"""What the cells of a table hold, and errors that name the lines at fault."""

import math
import re
from pathlib import Path

from featurestore.errors import InputError, list_some

MISSING = ("", "NA", "NaN", "null")
# 007 stays text, and so does an id of 16 digits or more, which a float64 would round
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d{0,14})(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def number_in(cell: str) -> float | None:
    """The finite number a cell holds, NaN for a missing one, None for text."""
    if cell in MISSING:
        return math.nan
    number = float(cell) if NUMBER.fullmatch(cell) else math.inf
    return number if math.isfinite(number) else None


def error_listing(where: Path, problem: str, items: list[str], most: int = 20) -> InputError:
    return InputError(f"{where}: {problem}:{list_some(items, most)}")
