"""Which photographs are meant, and in what order: a table of those that pass a filter.

A row a sealed image, with its date, site and groups, and what a run predicts of it out of fold.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.errors import InputError, UsageError
from featurestore.format.spec import OWN_COLUMNS
from featurestore.photos.candidates import could_be_targets, known_cells
from featurestore.photos.columns import tidied, tidy
from featurestore.photos.dates import are_dates, parse_date
from featurestore.photos.sites import site_of
from featurestore.store import FeatureStore
from service.explore import out_of_fold

FIRST_DATE = "Sampling_Date"
SPLIT = re.compile(r"(?:(\d{1,6})\.)?(\d{1,6})", re.ASCII)
MOST_TOLD = 8  # values, in an error
SIGNS = ("high", "low")
ORDERS = ("position", "image_id", "date", "site", "fold", "true", "predicted", "error", "off")


@dataclass(frozen=True)
class Filter:
    """What photographs must be; None and () let all pass."""

    groups: tuple[tuple[str, str], ...] = ()
    """Columns of the catalog, and the value that each must have."""
    site: str | None = None
    first: str | None = None
    """The first day, e.g. 2015-07-21."""
    last: str | None = None
    sign: str | None = None
    """`high`: more is predicted than is true; `low`: less."""
    off: float | None = None
    """The least size of the error, in the target's unit."""
    lasso: tuple[float, ...] = ()
    """x and y of each corner of a polygon on the map."""
    among: tuple[str, ...] = ()
    """Ids; these alone, in this order unless another is wanted."""
    order: str = "position"
    """One of ORDERS; a minus before it turns it round."""

    @property
    def reads_errors(self) -> bool:
        return bool(self.sign or self.off is not None)


def listed(
    store: FeatureStore,
    run: Path | None = None,
    target: str | None = None,
    fold: str | None = None,
    wide: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """image_id, position, date, site, fold, true, predicted, error of every sealed image.

    run : whose out-of-fold predictions stand beside, averaged over repeats. target : of the run, or
        without one a number of the catalog. fold : what one fold held out alone: `2`, or `1.2` of
        repeat 1. wide : of the run what `out_of_fold.by_image` made, averaged unless a fold names a
        repeat; None reads it. Where there are classes also true_word and predicted_word. NaN, or no
        text, where something is not known.
    """
    catalog = _of_sealed(store)
    table = pd.DataFrame(
        {
            "image_id": catalog["image_id"],
            "position": store.sealed,
            "date": dates(catalog),
            "site": _sites(catalog),
        }
    ).reset_index(drop=True)
    true = pd.Series(np.nan, table.index)
    if target in catalog and pd.api.types.is_numeric_dtype(catalog[target]):
        true = pd.Series(catalog[target].to_numpy(float), table.index)
    if run is None:
        return table.assign(fold="", true=true, predicted=np.nan, error=np.nan)

    predicted = _predicted(run, target, fold, wide)
    predicted = predicted.rename(columns={"site": "site_of_run"}).set_index("image_id")
    joined = table.join(predicted, on="image_id")
    texts = [name for name in ("fold", "true_word", "predicted_word") if name in joined]
    joined[texts] = joined[texts].fillna("")
    # the catalog knows labels and sites of photographs that the run did not learn from
    joined["true"] = joined["true"].fillna(true)
    site = joined.pop("site_of_run")
    joined["site"] = site.where(site.notna(), joined["site"])
    return joined[joined["fold"] != ""].reset_index(drop=True) if fold else joined


def _of_sealed(store: FeatureStore) -> pd.DataFrame:
    """The catalog that the store has decoded already, of sealed images."""
    return store.catalog.iloc[store.sealed].reset_index(drop=True)


def _predicted(
    run: Path,
    target: str | None,
    fold: str | None,
    wide: pd.DataFrame | None,
) -> pd.DataFrame:
    """What a run predicts of a target: image_id, site, fold, true, predicted, error."""
    repeat, number = split_of(fold)
    if wide is None:
        wide = out_of_fold.by_image(run, averaged=repeat is None)
    rows = out_of_fold.by_target(run, out_of_fold.held_out(wide, repeat, number), target)
    is_known = rows["fold"].notna()
    name = rows["fold"].fillna(-1).astype(int).astype(str)
    if repeat is not None:
        name = f"{repeat}." + name
    rows = rows.assign(fold=name.where(is_known, "all"))
    return rows.drop(columns=["target", "repeat"])


def split_of(fold: str | None) -> tuple[int | None, int | None]:
    """Repeat and fold of `1.2`, or the fold alone of `2`."""
    if fold is None:
        return None, None
    found = SPLIT.fullmatch(fold)
    if not found:
        raise UsageError(f"fold={fold[:20]!r}: 2, or 1.2 (fold 2 of repeat 1), was expected")
    return found[1] and int(found[1]), int(found[2])


def chosen(
    table: pd.DataFrame,
    catalog: pd.DataFrame,
    wanted: Filter,
    place_N2: np.ndarray | None = None,
) -> pd.DataFrame:
    """Rows of `listed` that pass, in the order that is wanted; what is not known comes last, and
    is left out of an order by errors.

    catalog : of the whole store. place_N2 : where the map has each row, for a lasso.

    InputError for a column that the catalog lacks, and for a value that no photograph has.
    """
    passes = pd.Series(True, table.index)
    for column, value in wanted.groups:
        if column not in catalog:
            raise InputError(f"in.{column}: the catalog has no such column")
        cells = catalog[column].astype(str)
        stripped = {text: text.strip() for text in cells.unique()}
        _require(f"in.{column}", value, set(stripped.values()))
        spelled = [text for text, word in stripped.items() if word == value]
        passes &= cells.iloc[table["position"]].isin(spelled).to_numpy()
    if wanted.site is not None:
        _require("site", wanted.site, table["site"].unique())
        passes &= table["site"] == wanted.site
    if wanted.first is not None:
        passes &= table["date"] >= wanted.first
    # no text is a day that is not known; it comes before every day, so the first day leaves it out
    if wanted.last is not None:
        passes &= (table["date"] <= wanted.last) & (table["date"] != "")
    if wanted.sign is not None:
        passes &= table["error"] > 0 if wanted.sign == "high" else table["error"] < 0
    if wanted.off is not None:
        passes &= table["error"].abs() >= wanted.off
    if wanted.lasso:
        passes &= inside(place_N2, np.reshape(wanted.lasso, (-1, 2)))
    if wanted.among:
        passes &= table["image_id"].isin(wanted.among)
    found = _ordered(table[passes], wanted.order)
    if wanted.among and wanted.order == "position":
        place = {image_id: k for k, image_id in enumerate(wanted.among)}
        found = found.sort_values("image_id", key=lambda ids: ids.map(place))
    return found.reset_index(drop=True)


def _require(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        some = ", ".join(sorted(known)[:MOST_TOLD])
        raise InputError(f"{key}: no photograph has {value[:40]!r}; there is {some}")


def _ordered(table: pd.DataFrame, order: str) -> pd.DataFrame:
    name = order.removeprefix("-")
    keys = table["error"].abs() if name == "off" else table[name]
    if not pd.api.types.is_numeric_dtype(keys):
        keys = keys.where(keys != "")  # missing ones come last, whichever way it is sorted
    if name in ("off", "error"):
        keys = keys.dropna()
    ascending = not order.startswith("-")
    return table.loc[keys.sort_values(ascending=ascending, kind="stable").index]


def inside(place_N2: np.ndarray, corner_C2: np.ndarray) -> np.ndarray:
    """(N,) whether each place lies within a polygon, by how often a line to the right crosses it.

    Source: Shimrat 1962, Algorithm 112, Communications of the ACM 5(8).
    """
    x_N, y_N = place_N2.T
    is_in_N = np.zeros(len(place_N2), bool)
    following_C2 = np.roll(corner_C2, -1, 0)
    for (x0, y0), (x1, y1) in zip(corner_C2, following_C2, strict=True):
        if y0 == y1:  # a line to the right does not cross what is parallel to it
            continue
        spans_N = (y0 > y_N) != (y1 > y_N)
        crossing_N = x0 + (y_N - y0) * (x1 - x0) / (y1 - y0)
        is_in_N ^= spans_N & (x_N < crossing_N)
    return is_in_N


# -- what can be chosen


def choices(store: FeatureStore, table: pd.DataFrame) -> dict[str, Any]:
    """What a filter may ask for: photographs by group and value, sites, first and last day."""
    catalog = _of_sealed(store)
    known = table["date"][table["date"] != ""]
    groups = {}
    for name in group_columns(catalog):
        counts = known_cells(catalog[name]).value_counts()
        groups[name] = counts.sort_index().to_dict()
    return {
        "groups": groups,
        "sites": sorted(set(table["site"].unique()) - {""}),
        "dates": [known.min(), known.max()] if len(known) else [],
    }


def group_columns(catalog: pd.DataFrame) -> list[str]:
    """Columns whose words could group photographs."""
    # numbers are no classes: their values need not be counted
    texts = catalog.select_dtypes(exclude="number")
    return [each.name for each in could_be_targets(texts) if each.kind == "class"]


def date_column(catalog: pd.DataFrame) -> str | None:
    """The column that tells days: the preset's, else the first that holds nothing but dates."""
    others = catalog.columns.difference(OWN_COLUMNS, sort=False)
    for name in sorted(others, key=lambda name: name != FIRST_DATE):
        if pd.api.types.is_numeric_dtype(catalog[name]):
            continue
        cells = known_cells(catalog[name])
        if len(cells) and are_dates(map(tidy, cells.unique())):
            return name
    return None


def dates(catalog: pd.DataFrame) -> np.ndarray:
    """(N,) the day of each image as 2015-07-21; no text where it is not known for certain."""
    column = date_column(catalog)
    if column is None:
        return np.full(len(catalog), "", object)
    written = tidied(catalog[column].fillna("").astype(str))
    # each spelling once: there are few days, and many photographs
    days = {text: parse_date(text).day for text in written.unique()}
    iso = {text: day.isoformat() if day else "" for text, day in days.items()}
    return written.map(iso).to_numpy(object)


def _sites(catalog: pd.DataFrame) -> np.ndarray:
    try:
        return site_of(catalog).to_numpy(object)
    except InputError:
        return np.full(len(catalog), "", object)


def beside(
    table: pd.DataFrame,
    image_id: str,
    run: Path | None,
    target: str | None,
) -> Mapping[str, Any]:
    """Where an image stands in a list: at (None if it is not in it), n, previous, next and its row.

    From an image that is not in the list the next one is its first. run, target : whose errors
        stand in the row, which tells them.
    """
    ids = table["image_id"].tolist()
    at = ids.index(image_id) if image_id in ids else None
    following = 0 if at is None else at + 1
    row = None
    if at is not None:
        row = table.iloc[at].to_dict() | {"run": run and run.name, "target": target}
    return {
        "at": at,
        "n": len(ids),
        "previous": ids[at - 1] if at else None,
        "next": ids[following] if following < len(ids) else None,
        "row": row,
    }
