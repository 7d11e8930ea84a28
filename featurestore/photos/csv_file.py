"""A CSV file as a table of texts, however its cells are separated.

Every refusal names the lines at fault.
"""

import codecs
import csv
import functools
import io
import itertools
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.counts import count_of
from featurestore.disk.messages import say
from featurestore.errors import InputError, NoAccessError
from featurestore.photos.separators import SEPARATORS, separator_of, with_points
from featurestore.photos.tables import error_listing

LONG_COLUMNS = ("sample_id", "image_path", "target_name")
PATH_COLUMNS = ("image_path", "path")
TEXT_COLUMNS = {"image_id", *LONG_COLUMNS, *PATH_COLUMNS}
"""Columns that are never numbers, whatever their cells look like."""

BLOCK = 100
"""Rows that become parts of columns at once.

While a million lists of cells lived, Python looked for cycles among them for longer than it took to
read them.
"""


def read_table(csv_path: Path) -> pd.DataFrame:
    """All cells as stripped str in object columns; the index is each row's last line.

    Decimal commas have become points. What was recognised, beside commas and points, is said.
    """
    text = _read_text(csv_path)
    separator = separator_of(csv_path, text, PATH_COLUMNS)
    header, lines, columns = _read_columns(csv_path, text, separator)
    if not len(lines):
        raise InputError(f"{csv_path}: no rows; expected a header line and at least one image")
    cells = {}
    for name, column in zip(header, columns, strict=True):
        cells[name] = np.array(column, object)
    table = pd.DataFrame(cells, index=lines, dtype=object)
    table, had_commas = with_points(csv_path, table, separator, TEXT_COLUMNS)
    if separator != ",":
        decimals = " and decimal comma" if had_commas else ""
        _say_once(f"{csv_path}: read with separator {SEPARATORS[separator]}{decimals}")
    return table


@functools.cache
def _say_once(text: str) -> None:
    """A command may read a table more than once."""
    say(text)


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
        raise _other_encoding(csv_path, err) from err
    if "\0" in text:  # no file name can hold one
        raise InputError(f"{csv_path}: holds NUL characters, as UTF-16 does; save it as CSV UTF-8")
    return text


def _other_encoding(csv_path: Path, err: UnicodeDecodeError) -> InputError:
    raw, at = err.object, err.start
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return InputError(f"{csv_path}: is UTF-16 (`Unicode text`); save it as CSV UTF-8")
    line = raw.count(b"\n", 0, at) + 1
    letter = raw[at : at + 1].decode("cp1252", "replace")
    return InputError(
        f"{csv_path}: line {line}: byte {at} is not UTF-8 (in Windows-1252 it is {letter!r}); save "
        "it as CSV UTF-8"
    )


def _read_columns(
    csv_path: Path,
    text: str,
    separator: str,
) -> tuple[list[str], np.ndarray, list[list[str]]]:
    """The names of the columns, each row's last line, and the stripped cells of each column."""
    # a stream of bytes: one of text would take four bytes a character
    stream = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="")
    # not pandas' reader: it guesses types, so that 007 becomes 7, and gives no line numbers
    reader = csv.reader(stream, delimiter=separator, strict=True)
    try:
        # csv gives [] for a blank line
        header = [cell.strip() for cell in next(filter(None, reader), [])]
        _check_header(csv_path, header)
        lines = array("q")
        columns = [[] for _ in header]
        ragged = {}
        for numbers, rows in _blocks(reader, has_quotes='"' in text):
            if set(map(len, rows)) != {len(header)}:
                rows, numbers = _whole_rows(rows, numbers, len(header), ragged)
            lines.extend(numbers)
            _append(columns, rows)
    except csv.Error as err:
        raise InputError(f"{csv_path}: line {reader.line_num}: not CSV: {err}") from err
    if ragged:
        raise _uneven_rows(csv_path, header, ragged, separator)
    return header, np.array(lines), columns


def _blocks(
    reader: Any,
    has_quotes: bool,
) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
    """Rows of a CSV, BLOCK at once, behind the line that each ends in."""
    if has_quotes:  # a cell may have lines of its own
        numbered = ((reader.line_num, row) for row in reader)
        while block := list(islice(numbered, BLOCK)):
            yield [number for number, _ in block], [row for _, row in block]
        return
    last = reader.line_num
    while rows := list(islice(reader, BLOCK)):
        yield range(last + 1, last + 1 + len(rows)), rows
        last += len(rows)


def _whole_rows(
    rows: list[list[str]],
    numbers: Sequence[int],
    n_cells: int,
    ragged: dict[int, list[str]],
) -> tuple[list[list[str]], list[int]]:
    """Rows of so many cells and their lines, without blank ones; the others go into `ragged`."""
    whole = []
    lines = []
    for number, row in zip(numbers, rows, strict=True):
        if len(row) == n_cells:
            whole.append(row)
            lines.append(number)
        elif row:
            ragged[number] = [cell.strip() for cell in row]
    return whole, lines


def _append(columns: list[list[str]], block: list[list[str]]) -> None:
    for column, cells in zip(columns, zip(*block, strict=True), strict=False):
        stripped = list(map(str.strip, cells))
        # a photograph's rows follow each other: one text for its path, not five
        column.extend(map({}.setdefault, stripped, stripped))


def _check_header(csv_path: Path, header: list[str]) -> None:
    if not header:
        raise InputError(f"{csv_path}: no rows; expected a header line and at least one image")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        problem = f"{', '.join(twice)} twice" if any(twice) else "a column without a name"
        raise InputError(f"{csv_path}: the header has {problem}; give each column its own name")


def _uneven_rows(
    csv_path: Path,
    header: list[str],
    ragged: dict[int, list[str]],
    separator: str,
) -> InputError:
    """The error of rows, by their last line, that have more or fewer cells than the header."""
    problem = f"the header has {count_of(len(header), 'cell')}, these rows do not"
    if separator == "," and any(_has_split_number(row, header) for row in ragged.values()):
        problem += " (with decimal commas, separate the cells with ; or write points)"
    cells = [f"line {line}: {count_of(len(row), 'cell')}" for line, row in ragged.items()]
    return error_listing(csv_path, problem, cells)


def _has_split_number(row: list[str], header: list[str]) -> bool:
    """Whether a decimal comma may have made two cells of one."""
    if len(row) <= len(header):
        return False
    pairs = itertools.pairwise(row)
    return any(a.isdigit() and b.isdigit() for a, b in pairs)
