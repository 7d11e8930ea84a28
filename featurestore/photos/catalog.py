"""From train.csv or test.csv, long or wide, to one row an image; and from its paths to files that
exist.

Opening the photographs is `images`'s business, what the columns mean is the trainer's.
"""

import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd

from featurestore.errors import InputError, NoAccessError, list_some
from featurestore.format.spec import OWN_COLUMNS

TARGETS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
"""The contest's targets in grams, the order of every K axis that holds all five: GDM = Green +
Clover, Total = GDM + Dead."""
LONG_COLUMNS = ("sample_id", "image_path", "target_name")
MISSING = ("", "NA", "NaN", "null")
# 007 stays text, and so does an id of 16 digits or more, which a float64 would round
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d{0,14})(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


def read_catalog(csv_path: Path, may_be_empty: bool = False) -> pd.DataFrame:
    """One row an image, in the order of first appearance.

    A CSV is long (sample_id, image_path, target_name and perhaps target, a row per image and
    target) or wide (image_path or path, perhaps image_id, else the stem of `plain_path`, a row per
    image).

    Returns
    -------
    Columns image_id and path (str, as written), then the CSV's other columns, then for a long CSV
    with targets one float64 column per target_name. A column is float64, empty cells and NA, NaN,
    null as NaN, if all its other cells are plain finite numbers; else it is object, holding str as
    written and "" for an empty cell.

    Raises InputError, naming file and line or image, for what cannot be read or contradicts itself.
    """
    table = _read_table(csv_path, may_be_empty)
    if _is_long(table):
        return _from_long(csv_path, _with_ids(csv_path, table))
    return _from_wide(csv_path, table)


def target_rows(csv_path: Path) -> pd.DataFrame:
    """The rows of a long CSV as it has them: sample_id, image_id, target_name (str), for a
    submission in its order.

    Of a wide CSV all TARGETS of each image, as a long one would have them. Raises InputError for
    everything `read_catalog` refuses but a table without rows, and for a row that comes more than
    once.
    """
    table = _read_table(csv_path, may_be_empty=True)
    if not _is_long(table):
        ids = _from_wide(csv_path, table)["image_id"].tolist()
        return pd.DataFrame(
            [(f"{image_id}__{target}", image_id, target) for image_id in ids for target in TARGETS],
            columns=["sample_id", "image_id", "target_name"],
            dtype=object,
        )
    table = _with_ids(csv_path, table)
    _from_long(csv_path, table)
    _check_once(csv_path, table["sample_id"])
    return table[["sample_id", "image_id", "target_name"]].reset_index(drop=True)


def plain_path(path: str) -> str:
    """The path with `/` where Windows writes a backslash, and with composed letters (NFC) where
    macOS takes umlauts apart."""
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def spelled_as(ids: Iterable[str], known: Collection[str]) -> list[str]:
    """Ids as `known` spells them, where they differ in what `plain_path` makes equal: ids that were
    stems of paths as written."""
    ids, known = list(ids), dict.fromkeys(known)
    own = set(ids)
    other = {_plain_id(each): each for each in known if each not in own}
    return [each if each in known else other.get(_plain_id(each), each) for each in ids]


def in_spelling_of(frame: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The frame with ids and paths as a store's catalog has them, where they differ in spelling
    alone."""
    ids = spelled_as(frame["image_id"], known["image_id"])
    path_of = dict(zip(known["image_id"], known["path"], strict=True))
    paths = []
    for image_id, path in zip(ids, frame["path"], strict=True):
        there = path_of.get(image_id, path)
        paths.append(there if plain_path(there) == plain_path(path) else path)
    return frame.assign(image_id=np.array(ids, object), path=np.array(paths, object))


def _plain_id(image_id: str) -> str:
    return plain_path(image_id.rsplit("\\", 1)[-1])


def find_photographs(
    frame: pd.DataFrame,
    root: Path,
    outside: bool = False,
    missing: bool = False,
    allow: str = "",
    without: str = "",
) -> list[Path]:
    """The resolved file of each image, in the frame's order; `frame` is what `read_catalog`
    returned.

    A path that is not there as written is looked for as `plain_path`, whichever way the file's own
    name is composed. Raises InputError listing every path that is absolute, has `..` or leads out
    of root through a symlink, unless `outside` allows them; and listing every file that is not
    there, unless `missing` does. allow, without : options of the command that was typed, if it has
    some, by which photographs may lie outside, and by which it goes without missing ones.
    """
    home = os.path.realpath(root)
    listings: dict[str, dict[str, str]] = {}
    found, astray = [], []
    for path in frame["path"]:
        is_there = os.path.lexists(os.path.join(home, path))
        spelled = path if is_there else plain_path(path)
        file = Path(
            os.path.realpath(
                os.path.join(home, path) if is_there else _composed(home, spelled, listings)
            )
        )
        absolute = os.path.isabs(spelled) or PureWindowsPath(spelled).is_absolute()
        if absolute or ".." in PurePosixPath(spelled).parts or not file.is_relative_to(home):
            astray.append(f"{path} -> {file}")
        found.append(file)
    if astray and not outside:
        raise _error(
            root,
            f"{len(astray)} of {len(found)} photographs lie outside; use relative paths below it"
            f"{f', or allow it with {allow}' if allow else ''}",
            astray,
            most=len(astray),
        )
    gone = [path for path, file in zip(frame["path"], found, strict=True) if not _is_file(file)]
    if gone and not missing:
        raise _error(
            root,
            f"{len(gone)} of {len(found)} photographs are missing; is this the folder that the "
            "paths "
            f"start from?{f' ({without} goes without them)' if without else ''}",
            gone,
            most=len(gone),
        )
    return found


def _is_file(path: Path) -> bool:
    """Whether there is such a file; NoAccessError where a folder above it does not let this account
    know."""
    try:
        return path.is_file()
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err


def _composed(home: str, path: str, listings: dict[str, dict[str, str]]) -> str:
    """The file that a plain path means below a folder whose names may be decomposed; listings : of
    folders, to be used again."""
    place = home
    for part in PurePosixPath(path).parts:
        if part != ".." and not os.path.lexists(os.path.join(place, part)):
            if place not in listings:
                try:
                    names = os.listdir(place) if os.path.isdir(place) else []
                except PermissionError as err:
                    raise NoAccessError.of(err, place) from err
                listings[place] = {unicodedata.normalize("NFC", name): name for name in names}
            part = listings[place].get(part, part)
        place = os.path.join(place, part)
    return place


def check_separators(csv_path: Path, text: str) -> None:
    """InputError if a CSV's cells are separated by something else than commas; it says so of
    decimal commas, too."""
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
            "save it with commas between cells and points in numbers (a spreadsheet does so "
            "in an English locale)"
        )
    raise InputError(f"{csv_path}: {problem}; {remedy}")


def _read_table(csv_path: Path, may_be_empty: bool = False) -> pd.DataFrame:
    """All cells as stripped str in object columns; the index is the line in the file where each row
    ends."""
    text = _read_text(csv_path)
    check_separators(csv_path, text)
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
        text = Path(csv_path).read_bytes().decode("utf-8-sig")
    except PermissionError as err:
        raise NoAccessError.of(err, csv_path) from err
    except OSError as err:
        raise InputError(
            f"{csv_path}: {err.strerror}; expected a CSV file with image_path, a row a photograph, "
            "or with the "
            f"contest's {', '.join(LONG_COLUMNS)}"
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
        raise _error(csv_path, f"the header has {len(header)} cells, these rows do not", ragged)


def _is_long(table: pd.DataFrame) -> bool:
    return "sample_id" in table.columns or "target_name" in table.columns


def _need(csv_path: Path, table: pd.DataFrame, names: Iterable[str]) -> None:
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise InputError(
            f"{csv_path}: no column {', '.join(missing)}; found {', '.join(table.columns)}; a long "
            "CSV "
            f"needs {', '.join(LONG_COLUMNS)}, a wide one image_path or path"
        )


def _with_ids(csv_path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """A long table with the image_id that each sample_id starts with."""
    _need(csv_path, table, LONG_COLUMNS)
    _check_names(csv_path, [*_metadata(table), *table["target_name"].unique()])
    rows = list(zip(table.index, table["sample_id"], table["target_name"], strict=True))
    ids = [sample_id.removesuffix(f"__{target}") for _, sample_id, target in rows]
    bad = [
        f"line {line}: sample_id {sample_id!r}, target_name {target!r}"
        for (line, sample_id, target), image_id in zip(rows, ids, strict=True)
        if image_id in ("", sample_id) or not target
    ]
    if bad:
        raise _error(csv_path, "sample_id must be the image's id, `__` and target_name", bad)
    return table.assign(image_id=np.array(ids, object))


def _check_once(csv_path: Path, sample_ids: pd.Series) -> None:
    """As `_check_ids` of a wide CSV: a submission would have a row of that name twice."""
    twice = sample_ids[sample_ids.duplicated(keep=False)]
    if len(twice):
        problem = (
            "these rows come more than once, and each needs a sample_id of its own; remove "
            "the copies"
        )
        raise _error(
            csv_path, problem, [f"line {line}: {sample_id}" for line, sample_id in twice.items()]
        )


def _metadata(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name not in (*LONG_COLUMNS, "target")]


def _check_names(csv_path: Path, names: list[str]) -> None:
    """Names that become columns beside ours."""
    clashing = sorted({name for name in names if name in OWN_COLUMNS or names.count(name) > 1})
    if clashing:
        raise InputError(
            f"{csv_path}: {', '.join(clashing)}: a catalog has a column of that name already; "
            "rename it"
        )


def _from_long(csv_path: Path, table: pd.DataFrame) -> pd.DataFrame:
    _check_paths(csv_path, table)
    metadata = [name for name in _metadata(table) if name != "image_id"]
    for name in ("image_path", *metadata):
        _check_agreement(csv_path, table, name)
    first = table.drop_duplicates("image_id")
    frame = _assemble(first["image_id"], first["image_path"], first[metadata])
    if "target" not in table.columns:
        return frame
    return frame.join(_targets(csv_path, table), on="image_id")


def _check_agreement(csv_path: Path, table: pd.DataFrame, name: str) -> None:
    """All rows of an image must say the same about it."""
    pairs = table[["image_id", name]].drop_duplicates()
    torn = pairs[pairs["image_id"].duplicated(keep=False)].groupby("image_id", sort=False)[name]
    if len(torn):
        raise _error(
            csv_path,
            f"rows of the same image differ in {name}",
            [f"{image_id}: {' | '.join(values)}" for image_id, values in torn],
        )


def _targets(csv_path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """One float64 column per target, indexed by image_id; NaN where an image has no such row or an
    empty cell."""
    grams = table[["image_id", "target_name"]].assign(
        target=_grams(csv_path, table["target"], table["sample_id"])
    )
    grams = grams.drop_duplicates()
    torn = grams[grams.duplicated(["image_id", "target_name"], keep=False)]
    if len(torn):
        raise _error(
            csv_path,
            "the same sample has several targets",
            [
                f"line {line}: {table['sample_id'][line]} = {gram}"
                for line, gram in torn["target"].items()
            ],
        )
    wide = grams.pivot(index="image_id", columns="target_name", values="target")
    return wide[list(grams["target_name"].unique())].rename_axis(columns=None)


def _grams(csv_path: Path, cells: pd.Series, owners: pd.Series) -> np.ndarray:
    """Masses as float64, NaN for a missing one; `owners` name the rows in the error."""
    grams = [_number(cell) for cell in cells]
    bad = [
        f"line {line}: {owner}: {cell!r}"
        for line, owner, cell, gram in zip(cells.index, owners, cells, grams, strict=True)
        if gram is None or gram < 0
    ]
    if bad:
        raise _error(
            csv_path,
            f"{cells.name} must be a finite number of grams, 0 or more, with a decimal point",
            bad,
        )
    return np.array(grams, np.float64)


def _from_wide(csv_path: Path, table: pd.DataFrame) -> pd.DataFrame:
    path_column = "image_path" if "image_path" in table.columns else "path"
    _need(csv_path, table, [path_column])
    _check_paths(csv_path, table.rename(columns={path_column: "image_path"}))
    metadata = table.drop(columns=[path_column, "image_id"], errors="ignore")
    _check_names(csv_path, list(metadata.columns))
    paths = table[path_column]
    ids = (
        table["image_id"]
        if "image_id" in table.columns
        else paths.map(lambda path: PurePosixPath(plain_path(path)).stem)
    )
    _check_ids(csv_path, ids, paths)
    for name in metadata.columns.intersection(TARGETS):
        _grams(csv_path, metadata[name], ids)
    return _assemble(ids, paths, metadata)


def _check_paths(csv_path: Path, table: pd.DataFrame) -> None:
    empty = [f"line {line}" for line in table.index[table["image_path"] == ""]]
    if empty:
        raise _error(csv_path, "rows without the path of a photograph", empty)


def _check_ids(csv_path: Path, ids: pd.Series, paths: pd.Series) -> None:
    bad = ids.duplicated(keep=False) | (ids == "")
    if bad.any():
        raise _error(
            csv_path,
            "each image needs an image_id of its own (without that column it is the file's stem)",
            [f"line {line}: {ids[line]!r}: {paths[line]}" for line in ids.index[bad]],
        )


def _assemble(ids: pd.Series, paths: pd.Series, metadata: pd.DataFrame) -> pd.DataFrame:
    columns = {"image_id": ids.to_numpy(object), "path": paths.to_numpy(object)}
    columns |= {name: _typed(metadata[name]) for name in metadata.columns}
    return pd.DataFrame(
        {name: pd.Series(cells, dtype=cells.dtype) for name, cells in columns.items()}
    )


def _typed(cells: Iterable[str]) -> np.ndarray:
    """float64 if every cell is a number or missing, else the str as they are: pandas would make
    them its own type."""
    numbers = [_number(cell) for cell in cells]
    return np.array(list(cells), object) if None in numbers else np.array(numbers, np.float64)


def _number(cell: str) -> float | None:
    """The finite number a cell holds, NaN for a missing one, None for text."""
    if cell in MISSING:
        return math.nan
    number = float(cell) if NUMBER.fullmatch(cell) else math.inf
    return number if math.isfinite(number) else None


def _error(where: Path, problem: str, items: list[str], most: int = 20) -> InputError:
    return InputError(f"{where}: {problem}:{list_some(items, most)}")
