"""Which photographs are one site: one visit, State and date, what cross-validation keeps together.

A visit that is spelled in two ways would be held out apart from itself, and scores would read too
high. So spellings are merged where that is certain, refused where a date can be read in two ways,
and else told.
"""

import itertools
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.counts import count_of, for_count
from featurestore.errors import InputError, list_some
from featurestore.format.spec import OWN_COLUMNS
from featurestore.photos.columns import is_empty, one_case, require_columns, tidied
from featurestore.photos.dates import are_dates, dates_of, month_of, no_dates_among, parse_date

SITE_COLUMNS = ("State", "Sampling_Date")


def site_of(frame: pd.DataFrame) -> pd.Series:
    """State + "_" + Sampling_Date of each image: one visit, what cross-validation keeps together.

    A date is written as the contest does, 2015/7/21, however it is spelled. Raises InputError as
    `shared_values`.
    """
    return shared_values(frame, SITE_COLUMNS).rename("site")


def shared_values(frame: pd.DataFrame, columns: Iterable[str], key: str = "folds") -> pd.Series:
    """A label of each image, equal where images share the values of all columns: North_2015/7/21.

    Spaces, and where letter case differs all but the spelling that sorts first (NSW, nsw), make no
    difference. A column that holds nothing but dates is read as `dates_of` reads Sampling_Date.

    key : of the config, to name in the InputError for a column that is missing or empty for an
        image, or holds a date that can be read in two ways.
    """
    columns = list(dict.fromkeys(columns))
    require_columns(frame, columns, key)
    parts = pd.DataFrame({column: _values_of(frame, column) for column in columns})
    labels = parts[columns[0]]
    for column in columns[1:]:
        labels = labels + "_" + parts[column]
    if labels.nunique() < len(parts.drop_duplicates()):
        # a_b and c would be the same as a and b_c
        rows = parts.itertuples(index=False, name=None)
        labels = pd.Series([json.dumps(row) for row in rows], parts.index)
    return labels


def _values_of(frame: pd.DataFrame, column: str) -> pd.Series:
    texts = tidied(frame[column])
    if column == "Sampling_Date" or are_dates(texts.unique()):
        return dates_of(frame, column)
    return one_case(texts)


def possible_groups(frame: pd.DataFrame) -> list[str]:
    """Columns of text that could say which photographs belong together: each value is, on average,
    of two images at least, and there is more than one."""
    possible = []
    for column in frame.columns.difference(OWN_COLUMNS, sort=False):
        cells = frame[column]
        if pd.api.types.is_numeric_dtype(cells) or is_empty(cells).any():
            continue
        if 2 <= cells.nunique() <= len(cells) / 2:
            possible.append(column)
    return possible


def joined_sites(site: Iterable[str], catalog: pd.DataFrame) -> np.ndarray:
    """(N,) site of each image, whoever made the folds.

    Sites that hold copies of one photograph (`sha256`, if known) are one.
    """
    return np.array(share_copies(site, digests_of(catalog)))


def has_sites(frame: pd.DataFrame) -> bool:
    """Whether a catalog has State and Sampling_Date, of some image at least."""
    absent = [
        column for column in SITE_COLUMNS if column not in frame or is_empty(frame[column]).all()
    ]
    return not absent


def count_sites(frame: pd.DataFrame) -> int | None:
    """How many sites the images are of; None where that cannot be told.

    `doubts_about_sites` may say why.
    """
    try:
        return site_of(frame).nunique()
    except InputError:
        return None


def doubts_about_sites(frame: pd.DataFrame) -> list[str]:
    """What a person should look at before folds are made, a message each.

    Dates that are refused, texts among dates, sites that look alike.

    Nothing is said of a frame without State or Sampling_Date: its folds come from elsewhere.
    """
    if not has_sites(frame):
        return []
    try:
        require_columns(frame, SITE_COLUMNS)
        sites = pd.DataFrame({column: _values_of(frame, column) for column in SITE_COLUMNS})
    except InputError as err:
        return [str(err)]
    doubts = []
    if texts := no_dates_among(frame, "Sampling_Date"):
        # kept as they are: sites of stores that are there must not change
        doubts.append(
            f"Sampling_Date: {count_of(len(texts), 'cell', len(frame))} "
            f"{for_count(len(texts), 'is no date', 'are no dates')}; each such text counts as a "
            "day of its own, and scores read too high where other rows are of the same visit; "
            f"write dates as 2015-07-21:{list_some(texts)}"
        )
    pairs = sites.drop_duplicates().sort_values(list(SITE_COLUMNS))
    # a warning only: photographs of two farms may well have been taken on one day
    alike = _alike(list(pairs.itertuples(index=False, name=None)))
    if alike:
        doubts.append(
            f"sites that look alike ({count_of(len(alike), 'pair')}) are held out apart, so scores "
            "read too high where they are one visit; spell State and Sampling_Date (2015-07-21) in "
            f"one way:{list_some(alike)}"
        )
    return doubts


def warn_of_sites(frame: pd.DataFrame, source: Path | str) -> None:
    """Warn of `doubts_about_sites`; source : where the frame is from."""
    for doubt in doubts_about_sites(frame):
        warnings.warn(f"{source}: {doubt}", stacklevel=3)


def digests_of(catalog: pd.DataFrame) -> Iterable[str]:
    """sha256 of each image's photograph, "" where it is not known."""
    return catalog["sha256"] if "sha256" in catalog else [""] * len(catalog)


def copies_told(image_ids: Iterable[str], digests: Iterable[str]) -> str | None:
    """What to say where photographs are the same to the byte, "" being an unknown digest."""
    ids_of_digest = defaultdict(list)
    for image_id, digest in zip(image_ids, digests, strict=True):
        if digest:
            ids_of_digest[digest].append(image_id)
    same = [" = ".join(ids) for ids in ids_of_digest.values() if len(ids) > 1]
    if not same:
        return None
    return (
        "photographs with the same bytes under several ids; folds will keep them "
        f"together:{list_some(same)}"
    )


def share_copies(group: Iterable[str], digests: Iterable[str]) -> list[str]:
    """Groups joined wherever they hold the same photograph (union-find).

    Named by the first of their names.
    """
    parent = {name: name for name in group}
    holder: dict[str, str] = {}
    for name, digest in zip(group, digests, strict=True):
        # an image that was missing has no digest, and is no copy of another
        if isinstance(digest, str) and digest:
            twin = holder.setdefault(digest, name)
            first, second = sorted([_root(parent, name), _root(parent, twin)])
            parent[second] = first
    return [_root(parent, name) for name in group]


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        name = parent[name]
    return name


def _alike(sites: list[tuple[str, str]]) -> list[str]:
    """Pairs of sites (State, date) that may be one, `a | b` each."""
    by_state, by_day = defaultdict(list), defaultdict(list)
    for state, day in sites:
        by_state[state, _numbers_or_words(day)].append(day)
        by_day[day].append(state)
    alike = []
    for (state, _), days in by_state.items():
        pairs = itertools.combinations(days, 2)
        alike += [f"{state}_{a} | {state}_{b}" for a, b in pairs if _may_be_one_day(a, b)]
    for day, states in by_day.items():
        pairs = itertools.combinations(states, 2)
        alike += [f"{a}_{day} | {b}_{day}" for a, b in pairs if _may_be_one_state(a, b)]
    return alike


def _numbers_or_words(day: str) -> tuple:
    """Equal for dates that may be the same.

    Those of the same three numbers in any order (15 is 2015), or of the same words.
    """
    words = re.findall(r"\d+|[^\W\d_]+", day.casefold())
    numbers = [int(word) if word.isdigit() else month_of(word) for word in words]
    if len(numbers) == 3 and all(numbers):
        return tuple(sorted(number % 100 for number in numbers))
    return tuple(words)


def _may_be_one_day(a: str, b: str) -> bool:
    """Whether two dates with equal numbers or words may be one.

    Not if both are certain, or are written in one way (3/4/2015 and 4/3/2015).
    """
    # of two years, whatever the rest
    years = [re.findall(r"\d{4}", day) for day in (a, b)]
    if all(years) and years[0] != years[1]:
        return False

    ways = set()
    for day in (a, b):
        is_certain = parse_date(day).day is not None
        ways.add("certain" if is_certain else re.sub(r"\d+", "0", day))
    return len(ways) > 1


def _may_be_one_state(a: str, b: str) -> bool:
    """Whether two names may be one State.

    They differ in punctuation alone (N.S.W.), or one may abbreviate the other: Tas, WA, Qld.
    """
    letters_alone = [re.sub(r"[\W_]", "", name.casefold()) for name in (a, b)]
    short, long = sorted(letters_alone, key=len)
    if short == long:
        return True
    # letters of the short name in the order of the long one's: `in` takes them from the iterator.
    # At least two letters shorter, so that no slip of one letter counts
    letters = iter(long)
    return (
        short.isalpha()
        and len(short) >= 2
        and len(long) >= len(short) + 2
        and long[0] == short[0]
        and all(letter in letters for letter in short)
    )
