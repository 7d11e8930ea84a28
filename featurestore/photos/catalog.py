"""From train.csv or test.csv, long or wide, to one row an image.

And from its paths to files that exist.

Opening the photographs is `images`'s business, what the columns mean is the trainer's.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from featurestore.errors import InputError
from featurestore.format.spec import OWN_COLUMNS
from featurestore.photos.csv_file import LONG_COLUMNS, read_table
from featurestore.photos.find import normalise_path
from featurestore.photos.tables import error_listing, number_in, numbers_in
from featurestore.photos.targets import CSIRO

TARGETS = CSIRO.names
"""The contest's targets in grams, the order of every K axis that holds all five: GDM = Green +
Clover, Total = GDM + Dead."""


def read_catalog(csv_path: Path) -> pd.DataFrame:
    """One row an image, in the order of first appearance.

    A CSV is long (sample_id, image_path, target_name and perhaps target, a row per image and
    target) or wide (image_path or path, perhaps image_id, else the stem of `normalise_path`, a row
    per image).

    Returns
    -------
    Columns image_id and path (str, as written), then the CSV's other columns, then for a long CSV
    with targets one float64 column per target_name. A column is float64, empty cells and NA, NaN,
    null as NaN, if all its other cells are plain finite numbers; else it is object, holding str as
    written and "" for an empty cell. Decimal commas are read as points.

    Raises InputError, naming file and line or image, for what cannot be read or contradicts itself.
    """
    table = read_table(csv_path)
    if _is_long(table):
        return _from_long(csv_path, _with_ids(csv_path, table))
    return _from_wide(csv_path, table)


@dataclass(frozen=True)
class ToPredict:
    """A test.csv: its images, and the rows of its submission, as `read_catalog` and `target_rows`
    have them."""

    images: pd.DataFrame
    rows: pd.DataFrame
    is_long: bool
    """The file itself has a row for each image and target."""


def read_test(csv_path: Path) -> ToPredict:
    """A test.csv.

    Raises InputError for all that `read_catalog` or `target_rows` refuses.
    """
    table = read_table(csv_path)
    columns = ["sample_id", "image_id", "target_name"]
    if _is_long(table):
        table = _with_ids(csv_path, table)
        images = _from_long(csv_path, table)
        # as with a wide CSV's image_id: a submission would have a row of that name twice
        twice = table["sample_id"][table["sample_id"].duplicated(keep=False)]
        if len(twice):
            raise error_listing(
                csv_path,
                "these rows come more than once, and each needs a sample_id of its own; "
                "remove the copies",
                [f"line {line}: {sample_id}" for line, sample_id in twice.items()],
            )
        return ToPredict(images, table[columns].reset_index(drop=True), True)
    images = _from_wide(csv_path, table)
    ids = images["image_id"].to_numpy()
    sample_ids = [f"{image_id}__{target}" for image_id in ids for target in TARGETS]
    cells = sample_ids, np.repeat(ids, len(TARGETS)), list(TARGETS) * len(ids)
    rows = pd.DataFrame(dict(zip(columns, cells, strict=True)), dtype=object)
    return ToPredict(images, rows, False)


def target_rows(csv_path: Path) -> pd.DataFrame:
    """The rows of a long CSV in its order: sample_id, image_id, target_name (str).

    A submission follows them.

    Of a wide CSV all TARGETS of each image, as a long one would have them. Raises InputError for
    everything `read_catalog` refuses, and for a row that comes more than once.
    """
    return read_test(csv_path).rows


def _is_long(table: pd.DataFrame) -> bool:
    # a wide table may have sample_ids of its own
    columns = set(table.columns)
    return "target_name" in columns or {"sample_id", "target"} <= columns


def _need(csv_path: Path, table: pd.DataFrame, names: Iterable[str]) -> None:
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise InputError(
            f"{csv_path}: no column {', '.join(missing)}; found {', '.join(table.columns)}; a long "
            f"CSV needs {', '.join(LONG_COLUMNS)}, a wide one image_path or path"
        )


def _with_ids(csv_path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """A long table with the image_id that each sample_id starts with."""
    _need(csv_path, table, LONG_COLUMNS)
    _check_names(csv_path, [*_metadata(table), *table["target_name"].unique()])
    sample_id_N = table["sample_id"].to_numpy()
    target_N = table["target_name"].to_numpy()
    suffixes = {target: f"__{target}" for target in table["target_name"].unique()}
    pairs = zip(sample_id_N, target_N, strict=True)
    ids = (sample_id.removesuffix(suffixes[target]) for sample_id, target in pairs)
    # one text for all rows of an image: copies of a million images' take .3 GB
    known: dict[str, str] = {}
    id_N = np.array([known.setdefault(image_id, image_id) for image_id in ids], object)
    is_bad_N = (id_N == "") | (id_N == sample_id_N) | (target_N == "")
    if is_bad_N.any():
        bad = [
            f"line {line}: sample_id {sample_id!r}, target_name {target!r}"
            for line, sample_id, target in zip(
                table.index[is_bad_N],
                sample_id_N[is_bad_N],
                target_N[is_bad_N],
                strict=True,
            )
        ]
        raise error_listing(csv_path, "sample_id must be the image's id, `__` and target_name", bad)
    return table.assign(image_id=id_N)


def _metadata(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name not in (*LONG_COLUMNS, "target")]


def _check_names(csv_path: Path, names: list[str]) -> None:
    """Names that become columns beside ours."""
    clashing = sorted({name for name in names if name in OWN_COLUMNS or names.count(name) > 1})
    if clashing:
        raise InputError(
            f"{csv_path}: {', '.join(clashing)}: a catalog has a column of that name already (its "
            f"own are {', '.join(OWN_COLUMNS)}, of the photograph); rename it, e.g. to "
            f"plant_{clashing[0]}"
        )


def _from_long(csv_path: Path, table: pd.DataFrame) -> pd.DataFrame:
    _check_paths(csv_path, table)
    metadata = [name for name in _metadata(table) if name != "image_id"]
    is_first_N = ~table["image_id"].duplicated().to_numpy()
    first = table[is_first_N]
    image_N = pd.Index(first["image_id"]).get_indexer(table["image_id"])
    for name in ("image_path", *metadata):
        # compared with the image's first row: a table of pairs would be hashed once a column
        if (first[name].to_numpy()[image_N] != table[name].to_numpy()).any():
            raise _disagreement(csv_path, table, name)
    frame = _assemble(first["image_id"], first["image_path"], first[metadata])
    if "target" not in table.columns:
        return frame
    return frame.join(_targets(csv_path, table), on="image_id")


def _disagreement(csv_path: Path, table: pd.DataFrame, name: str) -> InputError:
    """The error of images whose rows do not say the same."""
    pairs = table[["image_id", name]].drop_duplicates()
    several = pairs[pairs["image_id"].duplicated(keep=False)]
    torn = several.groupby("image_id", sort=False)[name]
    return error_listing(
        csv_path,
        f"rows of the same image differ in {name}",
        [f"{image_id}: {' | '.join(values)}" for image_id, values in torn],
    )


def _targets(csv_path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """One float64 column per target, indexed by image_id.

    NaN where an image has no such row or an empty cell.
    """
    is_mass_N = table["target_name"].isin(TARGETS)
    numbers = _numbers(csv_path, table["target"], table["sample_id"], is_mass_N)
    values = table[["image_id", "target_name"]].assign(target=numbers)
    # the same row twice does no harm
    values = values.drop_duplicates()
    torn = values[values.duplicated(["image_id", "target_name"], keep=False)]
    if len(torn):
        raise error_listing(
            csv_path,
            "the same sample has several targets",
            [
                f"line {line}: {table['sample_id'][line]} = {value}"
                for line, value in torn["target"].items()
            ],
        )
    wide = values.pivot(index="image_id", columns="target_name", values="target")
    return wide[list(values["target_name"].unique())].rename_axis(columns=None)


def _numbers(
    csv_path: Path,
    cells: pd.Series,
    owners: pd.Series,
    is_mass_N: pd.Series,
) -> np.ndarray:
    """Cells as float64, NaN for a missing one; `owners` name the rows in the error.

    is_mass_N : whether a cell is one of the contest's masses, which are never negative.
    """
    number_N = numbers_in(cells)
    if number_N is not None and not (is_mass_N.to_numpy() & (number_N < 0)).any():
        return number_N
    bad = []
    for line, owner, cell, is_mass in zip(cells.index, owners, cells, is_mass_N, strict=True):
        number = number_in(cell)
        if number is None or (is_mass and number < 0):
            bad.append(f"line {line}: {owner}: {cell!r}")
    limit = ", a mass 0 or more" if is_mass_N.any() else ""
    raise error_listing(csv_path, f"{cells.name} must be a finite number{limit}", bad)


def _from_wide(csv_path: Path, table: pd.DataFrame) -> pd.DataFrame:
    names = set(table.columns)
    path_column = "path" if "path" in names and "image_path" not in names else "image_path"
    _need(csv_path, table, [path_column])
    _check_paths(csv_path, table.rename(columns={path_column: "image_path"}))
    metadata = table.drop(columns=[path_column, "image_id"], errors="ignore")
    _check_names(csv_path, list(metadata.columns))
    paths = table[path_column]
    if "image_id" in table.columns:
        ids = table["image_id"]
    else:
        ids = paths.map(lambda path: PurePosixPath(normalise_path(path)).stem)
    bad = ids.duplicated(keep=False) | (ids == "")
    if bad.any():
        raise error_listing(
            csv_path,
            "each image needs an image_id of its own (without that column it is the file's stem)",
            [f"line {line}: {ids[line]!r}: {paths[line]}" for line in ids.index[bad]],
        )

    # with all five a table is the contest's; one of them alone may be anything, a difference too
    if set(TARGETS) <= set(metadata.columns):
        all_are = pd.Series(True, metadata.index)
        masses = {name: _numbers(csv_path, metadata[name], ids, all_are) for name in TARGETS}
        metadata = metadata.assign(**masses)
    return _assemble(ids, paths, metadata)


def _check_paths(csv_path: Path, table: pd.DataFrame) -> None:
    empty = [f"line {line}" for line in table.index[table["image_path"] == ""]]
    if empty:
        raise error_listing(csv_path, "rows without the path of a photograph", empty)


def _assemble(ids: pd.Series, paths: pd.Series, metadata: pd.DataFrame) -> pd.DataFrame:
    columns = {"image_id": ids.to_numpy(object), "path": paths.to_numpy(object)}
    for name in metadata.columns:
        cells = metadata[name]
        if cells.dtype == np.float64:  # masses, which were read for their check
            columns[name] = cells.to_numpy()
            continue
        number_N = numbers_in(cells)
        columns[name] = cells.to_numpy(object) if number_N is None else number_N
    # with the type: pandas would make strings its own
    return pd.DataFrame(
        {name: pd.Series(cells, dtype=cells.dtype) for name, cells in columns.items()}
    )
