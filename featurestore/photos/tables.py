"""A CSV file as a table of texts and numbers; every refusal names the lines at fault."""

import csv
import io
import math
import re
from pathlib import Path

import pandas as pd

from featurestore.errors import InputError, NoAccessError, list_some

LONG_COLUMNS = ("sample_id", "image_path", "target_name")
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


def read_table(csv_path: Path, may_be_empty: bool = False) -> pd.DataFrame:
    """All cells as stripped str in object columns; the index is each row's last line."""
    text = _read_text(csv_path)
    check_separators(csv_path, text)
    # not pandas' reader: it guesses types, so that 007 becomes 7, and gives no line numbers
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines, rows = [], []
    try:
        for row in reader:
            if row:  # csv gives [] for a blank line
                lines.append(reader.line_num)
                rows.append([cell.strip() for cell in row])
    except csv.Error as err:
        raise InputError(f"{csv_path}: line {reader.line_num}: not CSV: {err}") from err
    if len(rows) < (1 if may_be_empty else 2):
        raise InputError(f"{csv_path}: no rows; expected a header line and at least one image")
    _check_shape(csv_path, lines, rows)
    return pd.DataFrame(rows[1:], index=lines[1:], columns=rows[0], dtype=object)


def _read_text(csv_path: Path) -> str:
    try:
        # utf-8-sig: Excel writes a byte order mark, which would become part of the first name
        text = Path(csv_path).read_bytes().decode("utf-8-sig")
    except PermissionError as err:
        raise NoAccessError.of(err, csv_path) from err
    except OSError as err:
        raise InputError(
            f"{csv_path}: {err.strerror}; expected a CSV file with image_path, a row a photograph, "
            f"or with the contest's {', '.join(LONG_COLUMNS)}"
        ) from err
    except UnicodeDecodeError as err:
        raise InputError(
            f"{csv_path}: byte {err.start} is not UTF-8; save it as CSV UTF-8"
        ) from err
    if "\0" in text:  # no file name can hold one
        raise InputError(f"{csv_path}: holds NUL characters; save it as CSV UTF-8")
    return text


def _check_shape(csv_path: Path, lines: list[int], rows: list[list[str]]) -> None:
    header = rows[0]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        problem = f"{', '.join(twice)} twice" if any(twice) else "a column without a name"
        raise InputError(f"{csv_path}: the header has {problem}; give each column its own name")
    ragged = [
        f"line {line}: {len(row)} cells"
        for line, row in zip(lines, rows, strict=True)
        if len(row) != len(header)
    ]
    if ragged:
        raise error_listing(
            csv_path, f"the header has {len(header)} cells, these rows do not", ragged
        )


def number_in(cell: str) -> float | None:
    """The finite number a cell holds, NaN for a missing one, None for text."""
    if cell in MISSING:
        return math.nan
    number = float(cell) if NUMBER.fullmatch(cell) else math.inf
    return number if math.isfinite(number) else None


def error_listing(where: Path, problem: str, items: list[str], most: int = 20) -> InputError:
    return InputError(f"{where}: {problem}:{list_some(items, most)}")
