"""What folds are balanced by: `cv.strata` as one number of each image."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from featurestore.errors import InputError
from featurestore.photos.columns import is_empty, one_case, require_names, tidy
from featurestore.photos.targets import CSIRO_STRATA

CONTEST = list(CSIRO_STRATA)
"""Of the contest, whose folds are balanced by them where `cv.strata` is null."""

MOST = 256  # folds cannot be balanced by more, and each takes memory for every group


def decided(strata: list[str] | None, frame: pd.DataFrame) -> list[str]:
    """`cv.strata` for a catalog, null written out."""
    if strata is not None:
        return strata
    return CONTEST if set(CONTEST) <= set(frame.columns) else []


def stratum_of(frame: pd.DataFrame, strata: Sequence[str], kinds: Mapping[str, str]) -> np.ndarray:
    """(N,) int, one number for each combination of what the columns' cells are.

    A class: each of its values. An amount: 0, or above it. A level or share: up to its median, or
    above it. A missing value is a stratum of its own.

    kinds : "amount", "level", "share" or "class", by column. Of another column text is a class, a
        number that is 0 somewhere and never negative an amount, any other number a level.

    InputError for a column that is missing or of another kind, or more than MOST combinations.
    """
    require_names(frame, strata, "cv.strata")
    if not strata:
        return np.zeros(len(frame), np.int64)

    codes = [_codes(frame[column], kinds.get(column)) for column in strata]
    # by the last column first, so that a draw of the contest's strata stays what it was
    codes_SN = np.array(codes[::-1])
    found, stratum_N = np.unique(codes_SN, axis=1, return_inverse=True)
    if found.shape[1] > MOST:
        raise InputError(
            f"cv.strata: {', '.join(strata)} make {found.shape[1]} strata of {len(frame)} images; "
            f"folds are balanced by {MOST} at most, name columns of fewer values"
        )
    return stratum_N.reshape(-1)


def _codes(cells: pd.Series, kind: str | None) -> np.ndarray:
    """(N,) int, one for each part that a column is split into."""
    is_number = pd.api.types.is_numeric_dtype(cells)
    if kind is None and is_number:
        kind = "amount" if cells.min() == 0 else "level"
    elif kind is None:
        kind = "class"
    if kind == "class":
        part_N = np.unique(one_case(cells.map(tidy)), return_inverse=True)[1]
    elif is_number:
        border = 0 if kind == "amount" else cells.median()
        part_N = (cells > border).to_numpy().astype(np.int64)
    else:
        raise InputError(
            f"cv.strata: {cells.name} is text, expected the numbers of a target of kind {kind}"
        )
    # after the comparisons, which put NaN at or below every border
    return np.where(is_empty(cells), -1, part_N)
