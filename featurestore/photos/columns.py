"""Columns of a catalog that tell photographs apart: there, filled, and in one spelling."""

from collections.abc import Iterable

import pandas as pd

from featurestore.counts import count_of
from featurestore.errors import InputError, list_some


def require_columns(frame: pd.DataFrame, columns: Iterable[str], key: str = "folds") -> None:
    """InputError for columns that a catalog lacks, or has no value of for some images.

    key : what needs them, a key of the config.
    """
    columns = list(columns)
    require_names(frame, columns, key)
    for column in columns:
        empty = is_empty(frame[column])
        if empty.any():
            ids = ids_of(frame)[empty].tolist()
            raise InputError(
                f"{key}: column {column} is empty for {count_of(len(ids), 'image')}; fill it in or "
                f"leave them out:{list_some(ids)}"
            )


def require_names(frame: pd.DataFrame, columns: Iterable[str], key: str) -> None:
    """InputError for columns that a catalog lacks."""
    absent = [column for column in columns if column not in frame]
    if absent:
        raise InputError(
            f"{key}: no column {', '.join(absent)} in the catalog, which has "
            f"{', '.join(frame.columns)}; put it in train.csv, then `biomass store extend STORE "
            "NEW --data DIR --relabel` copies the tokens to a store with it"
        )


def is_empty(cells: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(cells):
        return cells.isna()
    # each text once, since most columns have few
    blank = [text for text in cells.dropna().unique() if not str(text).strip()]
    return cells.isna() | cells.isin(blank)


def tidy(cell: object) -> str:
    """A cell as text, without spaces that nobody sees.

    A column of numbers alone is read as float64, 20150721.0 say.
    """
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return " ".join(str(cell).split())


def tidied(cells: pd.Series) -> pd.Series:
    """Each cell `tidy`; of a column of texts each text once, since most have few."""
    if pd.api.types.infer_dtype(cells, skipna=False) != "string":
        return cells.map(tidy)
    return cells.map({text: tidy(text) for text in cells.unique()})


def one_case(texts: pd.Series) -> pd.Series:
    """Texts that differ in letter case alone become the one of them that sorts first."""
    first: dict[str, str] = {}
    for text in sorted(texts.unique()):
        first.setdefault(text.casefold(), text)
    return texts.map({text: first[text.casefold()] for text in texts.unique()}).astype(str)


def ids_of(frame: pd.DataFrame) -> pd.Series:
    # tables in notebooks are often indexed by image
    ids = frame["image_id"] if "image_id" in frame else frame.index.to_series()
    return ids.astype(str)
