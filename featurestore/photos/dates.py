"""What a cell says of a date, and a column of dates in one spelling."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

import pandas as pd

from featurestore.errors import InputError, list_some
from featurestore.photos.columns import ids_of, one_case, tidied

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


def dates_of(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column's date of each image, without time, in one spelling.

    2015/7/21 for 2015-07-21 10:00, 20150721, 21/7/2015 and 21 July 2015.

    A day and month up to 12 before the year (3/4/2015) keep their order, and other text is taken as
    it is, in one letter case. Raises InputError if such a day and month could be swapped: 3/4/2015
    beside 2015/4/3 or 2015/3/4, or beside 4/3/2015 where some dates begin with the day and some
    with the month.
    """
    written = tidied(frame[column])
    parsed = {text: parse_date(text) for text in written.unique()}
    # one visit as two sites would put its photographs into two folds: better no folds at all
    _refuse_swappable(frame, column, written, parsed)
    return one_case(written.map({text: str(each) for text, each in parsed.items()}).astype(str))


def are_dates(texts: Iterable[str]) -> bool:
    """Whether each of them is a date."""
    return all(parse_date(text).is_date for text in texts)


def no_dates_among(frame: pd.DataFrame, column: str) -> list[str]:
    """Cells that are no dates in a column where most are, `image_id: 'yesterday'` each."""
    written = tidied(frame[column])
    is_text = {text: not parse_date(text).is_date for text in written.unique()}
    is_text_N = written.map(is_text).to_numpy(bool)
    # where most cells are texts the column is meant as one
    if 2 * is_text_N.sum() >= len(frame):
        return []
    pairs = zip(ids_of(frame)[is_text_N], written[is_text_N], strict=True)
    return [f"{image_id}: {text!r}" for image_id, text in pairs]


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

    @property
    def is_date(self) -> bool:
        """Whether it is a date at all, in whatever order."""
        return bool(self.day or self.swappable)


def parse_date(text: str) -> ParsedDate:
    """What a cell says of a date."""
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
        day = _day(found[3], month_of(found[2]), found[1])
    elif found := MONTH_NAME_DAY.fullmatch(text.lower()):
        day = _day(found[3], month_of(found[1]), found[2])
    return _certain(day) if day else ParsedDate(text)


def _certain(day: date, day_first: bool | None = None) -> ParsedDate:
    return ParsedDate(f"{day.year}/{day.month}/{day.day}", day, day_first)


def _day(year: str | int, month: str | int, day: str | int) -> date | None:
    """None if there is no such day: 2015/21/7 may be meant the other way round."""
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None


def month_of(name: str) -> int:
    """1 to 12 by an English name or at least its first three letters, 0 for another word."""
    fitting = [
        number
        for number, month in enumerate(MONTHS, 1)
        if len(name) >= 3 and month.startswith(name)
    ]
    return fitting[0] if fitting else 0


def _refuse_swappable(
    frame: pd.DataFrame,
    column: str,
    written: pd.Series,
    parsed: Mapping[str, ParsedDate],
) -> None:
    """InputError naming each date of which another spelling of the same day may be there."""
    dates = set(parsed.values())
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
        for image_id, text in zip(ids_of(frame), written, strict=True):
            name = str(parsed[text])
            if name in beside:
                of_text[text, name].append(image_id)
        lines = []
        for (text, name), ids in of_text.items():
            more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
            lines.append(f"{text} ({ids[0]}{more}) beside {beside[name]}")
        raise InputError(
            f"{column}: day and month of these dates could be swapped, so one visit may be two "
            "sites; write all dates of train.csv as 2015-07-21 (a store that is there takes them "
            f"by `biomass store extend STORE NEW --data DIR --relabel`):{list_some(lines)}"
        )
