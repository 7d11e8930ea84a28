"""What a table of labels must hold to be learned from.

Five masses that add up, heights that are numbers.

`store build` and `doctor` say it of train.csv, `train` of a store's catalog; reading a CSV is
`catalog`'s business.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from featurestore.errors import InputError, list_some
from featurestore.photos.catalog import TARGETS
from featurestore.photos.tables import MISSING

SUMS = {"GDM_g": ("Dry_Green_g", "Dry_Clover_g"), "Dry_Total_g": ("GDM_g", "Dry_Dead_g")}
"""Each whole and its two parts. Predictions have the second part as the whole less the first."""
# dataset.balance_tolerance unless a config says otherwise
TOLERANCE_G, TOLERANCE_SHARE = 0.5, 0.01
ROUNDING_G = 0.15 + 1e-6  # three masses, each rounded to a tenth of a gram
HEIGHT = "Height_Ave_cm"


@dataclass(frozen=True)
class Imbalance:
    """A mass of one image that is not the sum of its parts, in grams."""

    image_id: str
    whole: str
    mass_g: float
    sum_g: float

    def __str__(self) -> str:
        return (
            f"{self.image_id}: {self.whole} is {self.mass_g:g}, {' + '.join(SUMS[self.whole])} is "
            f"{self.sum_g:g}"
        )


def masses_of(frame: pd.DataFrame, names: Sequence[str] = TARGETS) -> np.ndarray:
    """(N, 5) float64, grams, in the order of names.

    InputError for missing columns, and naming images without all masses.
    """
    if missing := [name for name in names if name not in frame]:
        raise InputError(
            f"no column {', '.join(missing)}, which training needs; put it in train.csv (if there "
            "is a store, `biomass store extend STORE NEW --data DIR --relabel` copies its tokens "
            "to one with these labels)"
        )
    masses_N5 = frame[list(names)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = frame["image_id"][~(np.isfinite(masses_N5) & (masses_N5 >= 0)).all(1)]
    if len(bad):
        raise InputError(
            f"{len(bad)} images lack a mass that is a number from 0:{list_some(list(bad))}"
        )
    return masses_N5


def unbalanced(
    frame: pd.DataFrame, grams: float = TOLERANCE_G, share: float = TOLERANCE_SHARE
) -> list[Imbalance]:
    """Every mass that is not the sum of its parts.

    Where one of the three is unknown, nothing is said.

    grams, share : how far the two may be apart, in grams and as a share of the larger one;
        whichever is more.
    """
    found = []
    for whole, (first, second) in SUMS.items():
        if not {whole, first, second} <= set(frame.columns):
            continue
        masses_N3 = (
            frame[[first, second, whole]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        )
        sum_N, whole_N = masses_N3[:, 0] + masses_N3[:, 1], masses_N3[:, 2]
        allowed_N = np.maximum(grams, share * np.maximum(whole_N, sum_N))
        for i in np.flatnonzero(np.abs(whole_N - sum_N) > allowed_N):  # of NaN nothing is true
            found.append(
                Imbalance(str(frame["image_id"].iloc[i]), whole, float(whole_N[i]), float(sum_N[i]))
            )
    return found


def what_acts(found: Sequence[Imbalance]) -> str:
    """Which constraint overrules the labels of these masses."""
    wholes = {each.whole for each in found}
    rests = " and ".join(
        f"{second} is predicted as {whole} - {first}"
        for whole, (first, second) in SUMS.items()
        if whole in wholes
    )
    return f"inference.constraints makes predictions add up: {rests}, whatever its label"


def heights_of(frame: pd.DataFrame) -> np.ndarray:
    """(N,) float64, cm; NaN where the height is not known or no number."""
    if HEIGHT not in frame:
        return np.full(len(frame), np.nan)
    height_N = pd.to_numeric(frame[HEIGHT], errors="coerce").to_numpy(np.float64)
    return np.where(np.isfinite(height_N), height_N, np.nan)


def height_remarks(frame: pd.DataFrame) -> Iterator[str]:
    """A sentence if there are heights that are neither numbers nor missing."""
    if HEIGHT not in frame or pd.api.types.is_numeric_dtype(frame[HEIGHT]):
        return
    cells = frame[HEIGHT].astype(str).str.strip()
    bad_N = np.isnan(heights_of(frame)) & ~cells.isin(MISSING).to_numpy()
    if bad_N.any():
        lines = [
            f"{image_id}: {cell!r}"
            for image_id, cell in zip(frame["image_id"][bad_N], cells[bad_N], strict=True)
        ]
        yield (
            f"{HEIGHT}: {len(lines)} cells are not numbers, so heads do not learn these "
            f"heights:{list_some(lines)}"
        )


def label_remarks(frame: pd.DataFrame) -> Iterator[str]:
    """What a person should know about the labels of a table, a sentence each.

    A store can be built all the same.
    """
    yield from balance_remarks(frame)
    yield from height_remarks(frame)
    yield from zero_remarks(frame)


def balance_remarks(frame: pd.DataFrame) -> Iterator[str]:
    """A sentence if masses are not the sum of their parts, by more than rounding."""
    if found := unbalanced(frame, ROUNDING_G, 0):
        n_refused = len(unbalanced(frame))
        limit = (
            f"{TOLERANCE_G:g} g or {TOLERANCE_SHARE:.0%}, whichever is more "
            "(dataset.balance_tolerance)"
        )
        train = (
            f"train refuses {n_refused} of them, which are"
            if n_refused
            else "train accepts them: none is"
        )
        yield (
            f"{len(found)} masses are not the sum of their parts; {what_acts(found)}; {train} off "
            f"by more than {limit}:{list_some([str(each) for each in found])}"
        )


def zero_remarks(frame: pd.DataFrame) -> Iterator[str]:
    """A sentence if there is nothing to weigh."""
    if (
        len(frame)
        and set(TARGETS) <= set(frame.columns)
        and (frame[list(TARGETS)] == 0).to_numpy().all()
    ):
        yield "all masses are 0: there is nothing to learn, and no score"


def warn_of_labels(frame: pd.DataFrame, where: object) -> None:
    """`label_remarks` as warnings."""
    for remark in label_remarks(frame):
        warnings.warn(f"{where}: {remark}", stacklevel=3)


def check_balance(
    frame: pd.DataFrame, where: object, grams: float, share: float, begun: bool = False
) -> None:
    """InputError listing the masses that are off by more than the tolerance.

    A warning for a sweep that has begun with them.
    """
    # before any head learns: constraints would change predictions where labels disagree with them
    found = unbalanced(frame, grams, share)
    if not found:
        return
    problem = (
        f"{where}: {len(found)} masses are not the sum of their parts, by more than "
        f"dataset.balance_tolerance ({grams:g} g or {share:.3g} of the mass, whichever is more); "
        f"{what_acts(found)}"
    )
    rows = list_some([str(each) for each in found])
    if not begun:
        raise InputError(
            f"{problem}. Correct train.csv, then `biomass store extend STORE NEW --data DIR "
            "--relabel` copies the tokens to a store with its labels; or raise the "
            f"tolerance:{rows}"
        )
    warnings.warn(
        f"{problem}; the sweep began with these labels, so it goes on:{rows}", stacklevel=3
    )
