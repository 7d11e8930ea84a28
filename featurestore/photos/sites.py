"""Which photographs are one site: one visit, State and date, what cross-validation keeps together.

A visit that is spelled in two ways would be held out apart from itself, and scores would read too
high. So spellings are merged where that is certain, refused where a date can be read in two ways,
and else told.
"""

import itertools
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.errors import InputError, list_some

SITE_COLUMNS = ("State", "Sampling_Date")
MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
CENTURIES = range(1900, 2100)
"""Years in which eight digits in a row are taken for a date."""

TIME = re.compile(
    r"(?:\s+|(?<=\d)[tT])"  # 2015-07-21 10:00, 2015-07-21T10:00
    r"\d{1,2}(?::\d{2}){1,2}(?:[.,]\d+)?"
    r"(?:\s*[aApP]\.?[mM]\.?)?"
    r"\s*(?:[zZ]|UTC|GMT|[+-]\d{2}:?\d{2})?$"
)
YEAR_FIRST = re.compile(r"(\d{4})([-/._:])(\d{1,2})\2(\d{1,2})")  # cameras write colons
# the digits behind are a time
COMPACT = re.compile(r"(\d{4})(\d{2})(\d{2})(?:[tT]?\d{4}(?:\d{2})?[zZ]?)?")
YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})")
DAY_MONTH_NAME = re.compile(r"(\d{1,2})(?:st|nd|rd|th)?[\s./-]*([a-z]+)[\s.,/-]*(\d{4})")
MONTH_NAME_DAY = re.compile(r"([a-z]+)[\s./-]*(\d{1,2})(?:st|nd|rd|th)?[\s,]+(\d{4})")


def site_of(frame: pd.DataFrame) -> pd.Series:
    """State + "_" + Sampling_Date of each image: one visit, what cross-validation keeps together.

    A date is written as the contest does, 2015/7/21, however it is spelled; see `date_of` and
    `state_of`. Raises InputError if a column is missing or empty for an image, or a date can be
    read in two ways.
    """
    require_columns(frame, SITE_COLUMNS)
    return (state_of(frame) + "_" + date_of(frame)).rename("site")


def state_of(frame: pd.DataFrame) -> pd.Series:
    """State of each image; where letter case differs (NSW, nsw), the one that sorts first.

    InputError as `site_of`.
    """
    require_columns(frame, ["State"])
    return _one_case(frame["State"].map(_tidy))


def date_of(frame: pd.DataFrame) -> pd.Series:
    """Sampling_Date of each image, without time, in one spelling.

    2015/7/21 for 2015-07-21 10:00, 20150721, 21/7/2015 and 21 July 2015.

    A day and month up to 12 before the year (3/4/2015) keep their order, and other text is taken as
    it is, in one letter case. Raises InputError as `site_of`, and if such a day and month could be
    swapped: 3/4/2015 beside 2015/4/3 or 2015/3/4, or beside 4/3/2015 where some dates begin with
    the day and some with the month.
    """
    require_columns(frame, ["Sampling_Date"])
    written = frame["Sampling_Date"].map(_tidy)
    parsed = written.map({text: parse_date(text) for text in written.unique()})
    # one visit as two sites would put its photographs into two folds: better no folds at all
    _refuse_swappable(frame, written, parsed)
    return _one_case(parsed.map(str))


def joined_sites(site: Iterable[str], catalog: pd.DataFrame) -> np.ndarray:
    """(N,) site of each image, whoever made the folds.

    Sites that hold copies of one photograph (`sha256`, if known) are one.
    """
    return np.array(share_copies(site, digests_of(catalog)))


def has_sites(frame: pd.DataFrame) -> bool:
    """Whether a catalog has State and Sampling_Date, of some image at least."""
    absent = [
        column for column in SITE_COLUMNS if column not in frame or _is_empty(frame[column]).all()
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

    Dates that are refused, sites that look alike.

    Nothing is said of a frame without State or Sampling_Date: its folds come from elsewhere.
    """
    if not has_sites(frame):
        return []
    try:
        sites = pd.DataFrame({"state": state_of(frame), "day": date_of(frame)})
    except InputError as err:
        return [str(err)]
    pairs = sites.drop_duplicates().sort_values(["state", "day"])
    # a warning only: photographs of two farms may well have been taken on one day
    alike = _alike(list(pairs.itertuples(index=False, name=None)))
    if not alike:
        return []
    return [
        f"sites that look alike ({len(alike)} pairs) are held out apart, so scores read too high "
        "where they are one visit; spell State and Sampling_Date (2015-07-21) in one "
        f"way:{list_some(alike)}"
    ]


def warn_of_sites(frame: pd.DataFrame, source: Path | str) -> None:
    """Warn of `doubts_about_sites`; source : where the frame is from."""
    for doubt in doubts_about_sites(frame):
        warnings.warn(f"{source}: {doubt}", stacklevel=3)


def require_columns(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """InputError for what folds need and a catalog lacks, or has no value of for some images."""
    columns = list(columns)
    absent = [column for column in columns if column not in frame]
    if absent:
        raise InputError(
            f"no column {', '.join(absent)} in the catalog, which has {', '.join(frame.columns)}; "
            "folds need it: put it in train.csv, then `biomass store extend STORE NEW --data DIR "
            "--relabel` copies the tokens to a store with it"
        )
    for column in columns:
        empty = _is_empty(frame[column])
        if empty.any():
            ids = _ids(frame)[empty].tolist()
            raise InputError(
                f"column {column} is empty for {len(ids)} images; fill it in or leave them out:"
                + list_some(ids)
            )


def _is_empty(cells: pd.Series) -> pd.Series:
    return cells.isna() | (cells.astype(str).str.strip() == "")


def digests_of(catalog: pd.DataFrame) -> Iterable[str]:
    """sha256 of each image's photograph, "" where it is not known."""
    return catalog["sha256"] if "sha256" in catalog else [""] * len(catalog)


def share_copies(group: Iterable[str], digests: Iterable[str]) -> list[str]:
    """Groups joined wherever they hold the same photograph (union-find).

    Named by the first of their names.
    """
    parent = {name: name for name in group}
    holder: dict[str, str] = {}
    for name, digest in zip(group, digests, strict=True):
        # an image that was missing has no digest, and is no copy of another
        if isinstance(digest, str) and digest:
            first, second = sorted(
                [_root(parent, name), _root(parent, holder.setdefault(digest, name))]
            )
            parent[second] = first
    return [_root(parent, name) for name in group]


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        name = parent[name]
    return name


@dataclass(frozen=True)
class ParsedDate:
    """A date as far as its spelling tells it."""

    text: str
    """Its one spelling: 2015/7/21 of a certain date, else what was written, without time."""
    day: date | None = None
    """Of a certain date."""
    day_first: bool | None = None
    """Whether what was written began with the day; None where it did not begin with the one or the
    other for certain."""
    swappable: tuple[int, int, int] | None = None
    """Two numbers up to 12 before the year, and the year."""

    def __str__(self) -> str:
        return self.text


def parse_date(text: str) -> ParsedDate:
    """What a cell of Sampling_Date says."""
    text = TIME.sub("", text)
    if found := YEAR_LAST.fullmatch(text):
        first, second, year = map(int, found.group(1, 3, 4))
        by_day, by_month = _day(year, second, first), _day(year, first, second)
        if by_day and by_month and by_day != by_month:
            return ParsedDate(f"{first}/{second}/{year}", swappable=(first, second, year))
        if by_day or by_month:
            # 5/5/2015 is certain, and tells nothing of the order
            same = by_day == by_month
            return _certain(by_day or by_month, None if same else by_day is not None)
        return ParsedDate(text)

    day = None
    if found := YEAR_FIRST.fullmatch(text):
        day = _day(*found.group(1, 3, 4))
    elif found := COMPACT.fullmatch(text):
        day = _day(*found.groups()) if int(found[1]) in CENTURIES else None
    elif found := DAY_MONTH_NAME.fullmatch(text.lower()):
        day = _day(found[3], _month(found[2]), found[1])
    elif found := MONTH_NAME_DAY.fullmatch(text.lower()):
        day = _day(found[3], _month(found[1]), found[2])
    return _certain(day) if day else ParsedDate(text)


def _certain(day: date, day_first: bool | None = None) -> ParsedDate:
    return ParsedDate(f"{day.year}/{day.month}/{day.day}", day, day_first)


def _day(year: str | int, month: str | int, day: str | int) -> date | None:
    """None if there is no such day: 2015/21/7 may be meant the other way round."""
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None


def _month(name: str) -> int:
    """1 to 12 by an English name or at least its first three letters, 0 for another word."""
    fitting = [
        number
        for number, month in enumerate(MONTHS, 1)
        if len(name) >= 3 and month.startswith(name)
    ]
    return fitting[0] if fitting else 0


def _refuse_swappable(frame: pd.DataFrame, written: pd.Series, parsed: pd.Series) -> None:
    """InputError naming each date of which another spelling of the same day may be there."""
    dates = set(parsed)
    certain = {each.day for each in dates if each.day}
    swappable = {each.swappable for each in dates if each.swappable}
    both_orders = {True, False} <= {each.day_first for each in dates}
    beside: dict[str, str] = {}
    for first, second, year in sorted(swappable):
        twins = [
            str(_certain(day))
            for day in (_day(year, second, first), _day(year, first, second))
            if day in certain
        ]
        if both_orders and (second, first, year) in swappable:
            twins.append(f"{second}/{first}/{year}")
        if twins:
            beside[f"{first}/{second}/{year}"] = " and ".join(twins)
    if beside:
        of_text = defaultdict(list)
        for image_id, text, each in zip(_ids(frame), written, parsed, strict=True):
            if str(each) in beside:
                of_text[text, str(each)].append(image_id)
        lines = [
            f"{text} ({ids[0]}{f' and {len(ids) - 1} more' if len(ids) > 1 else ''}) beside "
            f"{beside[name]}"
            for (text, name), ids in of_text.items()
        ]
        raise InputError(
            "Sampling_Date: day and month of these dates could be swapped, so one visit may be two "
            "sites; write all dates of train.csv as 2015-07-21 (a store that is there takes them "
            f"by `biomass store extend STORE NEW --data DIR --relabel`):{list_some(lines)}"
        )


def _one_case(texts: pd.Series) -> pd.Series:
    """Texts that differ in letter case alone become the one of them that sorts first."""
    return texts.groupby(texts.str.casefold()).transform("min")


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
    numbers = [int(word) if word.isdigit() else _month(word) for word in words]
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
    ways = {"certain" if parse_date(day).day else re.sub(r"\d+", "0", day) for day in (a, b)}
    return len(ways) > 1


def _may_be_one_state(a: str, b: str) -> bool:
    """Whether two names may be one State.

    They differ in punctuation alone (N.S.W.), or one may abbreviate the other: Tas, WA, Qld.
    """
    short, long = sorted((re.sub(r"[\W_]", "", name.casefold()) for name in (a, b)), key=len)
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


def _tidy(cell: object) -> str:
    """A cell as text, without spaces that nobody sees.

    A column of numbers alone is read as float64, 20150721.0 say.
    """
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return " ".join(str(cell).split())


def _ids(frame: pd.DataFrame) -> pd.Series:
    # tables in notebooks are often indexed by image
    ids = frame["image_id"] if "image_id" in frame else frame.index.to_series()
    return ids.astype(str)
