"""How a CSV separates its cells and writes its decimals, told by the text, or refused.

A spreadsheet of a country with decimal commas saves `;` between cells and `16,3` in them.
"""

import csv
import re
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from featurestore.errors import InputError
from featurestore.photos.tables import MISSING, NUMBER, error_listing

SEPARATORS = {",": "comma", ";": ";", "\t": "tab"}
"""Marks between cells, and what they are called."""
# 0,5 and 12,25e1, as NUMBER has them with a point
WITH_COMMA = re.compile(r"[+-]?(?:(?:0|[1-9]\d{0,14}),\d+|,\d+)(?:[eE][+-]?\d+)?", re.ASCII)
# 1,234 or 1.234: perhaps 1.234, perhaps 1234
PERHAPS_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)

LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def separator_of(csv_path: Path, text: str, names: Collection[str]) -> str:
    """The mark between a CSV's cells: the one that leaves a name of `names` whole in the header.

    InputError if two marks do, or where the cells are separated by `|`.
    """
    headers = {mark: _header(text, mark) for mark in SEPARATORS}
    fitting = [mark for mark, cells in headers.items() if set(names) & set(cells)]
    several = [mark for mark in fitting if len(headers[mark]) > 1]
    if len(several) > 1:
        marks = " or ".join(repr(mark) for mark in several)
        raise InputError(
            f"{csv_path}: line 1: {', '.join(headers[several[0]])}: cells may be separated by "
            f"{marks}; take the other mark out of the names of the columns"
        )
    if fitting:
        return (several or fitting)[0]
    # no name is known: whoever needs one says which columns were found
    mark = max(headers, key=lambda mark: len(headers[mark]))
    if len(headers[mark]) == 1 and "|" in headers[mark][0]:
        raise InputError(
            f"{csv_path}: its cells are separated by '|'; save it with commas, semicolons or tabs"
        )
    return mark


def _header(text: str, mark: str) -> list[str]:
    # blank lines may precede it, of which csv gives an empty row
    start = re.match(r"[\r\n ]*", text).end()
    # line by line: a stream of text takes four bytes a character
    lines = (line[0] for line in LINE.finditer(text, start))
    reader = csv.reader(lines, delimiter=mark)
    try:
        return [cell.strip() for cell in next(reader, [])]
    except csv.Error:
        return []


def with_points(
    csv_path: Path,
    table: pd.DataFrame,
    separator: str,
    texts: Collection[str],
) -> tuple[pd.DataFrame, bool]:
    """The table with decimal points, and whether it had decimal commas.

    table : stripped str, its index the lines; texts : columns that are never numbers.

    A comma is a decimal comma in columns where most cells are numbers then. InputError, naming
    columns and lines, where a number can be read in two ways: commas that separate cells as well,
    commas beside points, and marks that may all be of thousands.
    """
    columns = {name: table[name] for name in table.columns if name not in texts}
    # "1,2" may name two plots: with commas between cells it is kept where any cell is a text
    least = 1.0 if separator == "," else 0.5
    commas = _marked_numbers(columns, ",", least)
    if commas and separator == ",":
        raise error_listing(
            csv_path,
            "commas in numbers, where commas separate the cells too, may be of decimals or of "
            "thousands; write decimals with a point and thousands without a mark, or separate the "
            "cells with ;",
            _examples(commas),
        )
    points = _marked_numbers(columns, ".", least) if commas or separator == ";" else {}
    if commas and points:
        raise error_listing(
            csv_path,
            "some numbers have a decimal comma, others a decimal point; write all of them in one "
            "way",
            [*_examples(commas), *_examples(points)],
        )
    _refuse_thousands(csv_path, commas or points)
    if not commas:
        return table, False
    table = table.copy()
    for name, cells in commas.items():
        table.loc[cells.index, name] = [cell.replace(",", ".") for cell in cells]
    return table, True


def _marked_numbers(columns: dict[str, pd.Series], mark: str, least: float) -> dict[str, pd.Series]:
    """Numbers with the mark in them, by column, where at least this share of cells are numbers."""
    found = {}
    for name, cells in columns.items():
        if mark not in "".join(cells):  # quickly passed, as nearly all columns are
            continue
        has_mark = cells.map(lambda cell: mark in cell)
        known = cells[~cells.isin(MISSING)]
        is_number = known.map(
            lambda cell: bool(NUMBER.fullmatch(cell) or WITH_COMMA.fullmatch(cell))
        )
        if is_number.mean() >= least:
            found[name] = known[is_number & has_mark]
    return {name: cells for name, cells in found.items() if len(cells)}


def _refuse_thousands(csv_path: Path, marked: dict[str, pd.Series]) -> None:
    cells = [cell for column in marked.values() for cell in column]
    if cells and all(PERHAPS_THOUSANDS.fullmatch(cell) for cell in cells):
        raise error_listing(
            csv_path,
            f"{cells[0]} may be a number with three decimals or a thousand, and so may all others; "
            "write thousands without a mark, or separate the cells with commas and write decimals "
            "with a point",
            _examples(marked),
        )


def _examples(marked: dict[str, pd.Series]) -> list[str]:
    """The first cell of each column."""
    return [f"line {cells.index[0]}: {name}: {cells.iloc[0]!r}" for name, cells in marked.items()]
