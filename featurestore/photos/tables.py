"""What the cells of a table hold, and errors that name the lines at fault."""

import math
import re
from pathlib import Path

from featurestore.errors import InputError, list_some

MISSING = ("", "NA", "NaN", "null")
# 007 stays text, and so does an id of 16 digits or more, which a float64 would round
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d{0,14})(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


def check_separators(csv_path: Path, text: str) -> None:
    """InputError if a CSV's cells are separated by something else than commas.

    Decimal commas are named, too.
    """
    # by the header alone: cells of text may well hold such marks
    header = text.lstrip().split("\n", 1)[0]
    mark = next((mark for mark in ";\t|" if mark in header), None)
    if mark is None or "," in header:
        return
    cells = (cell.strip().strip('"') for line in text.splitlines() for cell in line.split(mark))
    decimal = next((cell for cell in cells if DECIMAL_COMMA.fullmatch(cell)), None)
    problem, remedy = f"its cells are separated by {mark!r}", "save it with commas"
    if decimal:
        problem += f", and its decimals by commas ({decimal!r})"
        remedy = (
            "save it with commas between cells and points in numbers (a spreadsheet does so in an "
            "English locale)"
        )
    raise InputError(f"{csv_path}: {problem}; {remedy}")


def number_in(cell: str) -> float | None:
    """The finite number a cell holds, NaN for a missing one, None for text."""
    if cell in MISSING:
        return math.nan
    number = float(cell) if NUMBER.fullmatch(cell) else math.inf
    return number if math.isfinite(number) else None


def error_listing(where: Path, problem: str, items: list[str], most: int = 20) -> InputError:
    return InputError(f"{where}: {problem}:{list_some(items, most)}")
