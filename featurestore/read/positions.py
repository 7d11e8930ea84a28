"""Images, views and rows as a caller names them, turned into positions or refused."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore.errors import UsageError

PAIRS = (
    "give pairs of positions, (image, view), e.g. store.take([(3, 0), (7, 2)]); of some images' "
    "first view [(i, 0) for i in positions]"
)


def is_integer(index: Any) -> bool:
    """Whether numpy would take it as the index of one row: no mask, no array of several."""
    if isinstance(index, bool | np.bool_):
        return False
    if isinstance(index, np.ndarray) and (index.ndim or index.dtype == bool):
        return False
    try:
        operator.index(index)
    except TypeError:
        return False
    return True


def bounded(index: Any, n: int, what: str) -> int:
    """A position from 0; IndexError if there are not so many, UsageError for no integer.

    True and false are none.
    """
    if not is_integer(index):
        raise UsageError(
            f"{what} {index!r}: neither a name nor a position; give an id or an integer"
        )
    index = operator.index(index)
    if not -n <= index < n:
        raise IndexError(f"{what} {index} is out of bounds, there are {n}")
    return index % n  # as in numpy, -1 is the last


def pairs_of(rows_B2: Any) -> np.ndarray:
    """(B, 2) integers, pairs of image and view, as given; UsageError for anything else."""
    try:
        rows = np.asarray(rows_B2)
    except ValueError as err:  # of different lengths
        raise UsageError(f"rows: {err}; {PAIRS}") from err
    # numpy makes one axis of floats of an empty list: no rows, and no mistake
    if rows.size == 0 and rows.dtype != bool:
        return np.empty((0, 2), int)
    if rows.dtype == bool:
        raise UsageError(
            f"rows: a mask of shape {rows.shape}; {PAIRS}, of a mask of images and views "
            "np.argwhere(mask)"
        )
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu":
        raise UsageError(f"rows: {rows.dtype} of shape {rows.shape}; {PAIRS}")
    return rows


def views_of(key: tuple, n_views: int) -> Sequence[int]:
    """Positions of the views that an index of one image's patches touches.

    Of an index that numpy will refuse, none or all.
    """
    every = range(n_views)
    while key and key[0] is None:
        key = key[1:]
    if not key or key[0] is Ellipsis or isinstance(key[0], bool | np.bool_):
        return every

    first = key[0]
    if isinstance(first, slice):
        try:
            return every[first]
        except (TypeError, ValueError):  # a step of 0, say: numpy may find another fault first
            return every
    if is_integer(first):
        view = operator.index(first)
        return (view % n_views,) if -n_views <= view < n_views else ()
    try:
        return np.unique(np.arange(n_views)[first]).tolist()
    except IndexError:
        return every
