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

from featurestore.counts import count_of, for_count
from featurestore.errors import InputError, list_some
from featurestore.format.spec import OWN_COLUMNS
from featurestore.photos.candidates import block_in_a_line, could_be_targets
from featurestore.photos.catalog import TARGETS
from featurestore.photos.columns import tidy
from featurestore.photos.tables import MISSING
from featurestore.photos.targets import CSIRO, CSIRO_HEIGHT, Target, Targets, has_preset

# dataset.balance_tolerance unless a config says otherwise
TOLERANCE_G, TOLERANCE_SHARE = 0.5, 0.01
ROUNDING_G = 0.15 + 1e-6  # three masses, each rounded to a tenth of a gram
HEIGHT = CSIRO_HEIGHT


@dataclass(frozen=True)
class Imbalance:
    """An amount of one image that is not the sum of its parts."""

    image_id: str
    whole: str
    parts: tuple[str, ...]
    mass_g: float
    sum_g: float

    def __str__(self) -> str:
        return (
            f"{self.image_id}: {self.whole} is {self.mass_g:g}, {' + '.join(self.parts)} is "
            f"{self.sum_g:g}"
        )


def values_of(frame: pd.DataFrame, targets: Targets) -> np.ndarray:
    """(N, K) float64 labels of `targets.outputs`; NaN where one is not known.

    InputError for missing columns, and naming images whose labels cannot be: a text, an amount
    below 0, a share outside 0..1; under the preset a mass that is not known.
    """
    if targets.preset:
        names = [target.name for target in targets.outputs[: targets.n_predicted]]
        return np.hstack([masses_of(frame, names), heights_of(frame)[:, None]])
    for target in targets.each:
        if target.name not in frame:
            there = ", ".join(name for name in frame if name not in OWN_COLUMNS)
            candidates = could_be_targets(frame)
            example = f"; write {block_in_a_line(candidates[0])}, say" if candidates else ""
            raise InputError(
                f"targets.{target.name}: the store has no such column; it has {there}{example}"
            )
    columns = [_numbers(frame, target) for target in targets.outputs]
    return np.stack(columns, 1) if columns else np.empty((len(frame), 0))


def words_of(frame: pd.DataFrame, targets: Targets) -> np.ndarray:
    """(N, C) float64 one-hot over each class's words, one class after another; all zero where it is
    not known."""
    columns = []
    for target in targets.classes:
        cells = class_cells(frame, target)
        columns += [cells == word for word in target.values]
        if not target.values:  # a head has an output all the same
            columns.append(np.zeros(len(frame)))
    if not columns:
        return np.empty((len(frame), 0))
    return np.stack(columns, 1).astype(np.float64)


def class_cells(frame: pd.DataFrame, target: Target) -> np.ndarray:
    """(N,) words of a class as text, empty where it is not known or there is no such column."""
    if target.name not in frame:
        return np.full(len(frame), "", object)
    column = frame[target.name]
    # of a table of numbers alone 20150721 is a float, and still a word of its own
    cells = column.map(lambda cell: tidy(cell) if isinstance(cell, float) else str(cell))
    is_missing = column.isna() | cells.str.strip().isin(MISSING)
    return cells.mask(is_missing, "").to_numpy(object)


def _numbers(frame: pd.DataFrame, target: Target) -> np.ndarray:
    """(N,) labels of a number, NaN where it is not known."""
    column = frame[target.name]
    value_N = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    # a text is refused, where a missing value is learned around
    texts = column.astype(str).str.strip()
    is_missing = column.isna() | texts.isin(MISSING)
    is_text_N = np.isnan(value_N) & ~is_missing.to_numpy()
    is_wrong_N = is_text_N | np.isinf(value_N)
    wanted = "a number"
    if target.kind == "amount":
        is_wrong_N |= value_N < 0
        wanted = "a number from 0, as an amount is; a level (kind: level) may be negative"
    elif target.kind == "share":
        is_wrong_N |= (value_N < 0) | (value_N > 1)
        wanted = "a number from 0 to 1, as a share is"
    if is_wrong_N.any():
        if is_text_N.any():
            wanted += "; words are of a class (kind: class)"
        pairs = zip(frame["image_id"][is_wrong_N], column[is_wrong_N], strict=True)
        rows = list_some([f"{image_id}: {cell!r}" for image_id, cell in pairs])
        n_wrong = int(is_wrong_N.sum())
        counted = f"{count_of(n_wrong, 'cell')} {for_count(n_wrong, 'is', 'are')}"
        raise InputError(f"targets.{target.name}: {counted} not {wanted}:{rows}")
    if np.isnan(value_N).all():
        raise InputError(
            f"targets.{target.name}: no image of the store has a label; leave it out, or add "
            "labels to the table"
        )
    return value_N


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
    numbers = frame[list(names)].apply(pd.to_numeric, errors="coerce")
    masses_N5 = numbers.to_numpy(np.float64)
    is_mass_N5 = np.isfinite(masses_N5) & (masses_N5 >= 0)
    bad = frame["image_id"][~is_mass_N5.all(1)]
    if len(bad):
        raise InputError(
            f"{count_of(len(bad), 'image')} {for_count(len(bad), 'lacks', 'lack')} a mass that is "
            f"a number from 0:{list_some(list(bad))}"
        )
    return masses_N5


def unbalanced(
    frame: pd.DataFrame,
    grams: float = TOLERANCE_G,
    share: float = TOLERANCE_SHARE,
    targets: Targets = CSIRO,
) -> list[Imbalance]:
    """Every amount that is not the sum of its parts.

    Where one of them is unknown, nothing is said.

    grams, share : how far the two may be apart, in grams and as a share of the larger one;
        whichever is more.
    """
    found = []
    for whole, parts in targets.sums.items():
        if not {whole, *parts} <= set(frame.columns):
            continue
        numbers = frame[[*parts, whole]].apply(pd.to_numeric, errors="coerce")
        *parts_N, whole_N = numbers.to_numpy(np.float64).T
        sum_N = np.sum(parts_N, 0)
        allowed_N = np.maximum(grams, share * np.maximum(whole_N, sum_N))
        is_off_N = np.abs(whole_N - sum_N) > allowed_N  # of NaN nothing is true
        for i in np.flatnonzero(is_off_N):
            image_id = str(frame["image_id"].iloc[i])
            found.append(
                Imbalance(
                    image_id,
                    whole,
                    parts,
                    float(whole_N[i]),
                    float(sum_N[i]),
                )
            )
    return found


def what_acts(found: Sequence[Imbalance], targets: Targets = CSIRO) -> str:
    """Which constraint overrules the labels of these amounts."""
    wholes = {each.whole for each in found}
    if not targets.preset:
        return f"predictions add up: {', '.join(wholes)} is predicted as the sum of its parts"
    rests = " and ".join(
        f"{second} is predicted as {whole} - {first}"
        for whole, (first, second) in targets.sums.items()
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
            f"{HEIGHT}: {count_of(len(lines), 'cell')} "
            f"{for_count(len(lines), 'is no number', 'are no numbers')}, so heads do not learn "
            f"these heights:{list_some(lines)}"
        )


def label_remarks(frame: pd.DataFrame) -> Iterator[str]:
    """What a person should know about the contest's labels, a sentence each.

    Nothing of a table without its five masses: what is learned of it, and which sums should hold,
    its config will say. A store can be built all the same.
    """
    if has_preset(frame.columns):
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
            f"train refuses {n_refused} of them, {for_count(n_refused, 'which is', 'which are')}"
            if n_refused
            else "train accepts them: none is"
        )
        yield (
            f"{count_of(len(found), 'mass')} {_no_sum(len(found))}; {what_acts(found)}; {train} "
            f"off by more than {limit}:{list_some([str(each) for each in found])}"
        )


def _no_sum(n: int) -> str:
    return for_count(n, "is not the sum of its parts", "are not the sum of their parts")


def zero_remarks(frame: pd.DataFrame) -> Iterator[str]:
    """A sentence if there is nothing to weigh."""
    if len(frame) and (frame[list(TARGETS)] == 0).to_numpy().all():
        yield "all masses are 0: there is nothing to learn, and no score"


def warn_of_labels(frame: pd.DataFrame, where: object) -> None:
    """`label_remarks` as warnings."""
    for remark in label_remarks(frame):
        warnings.warn(f"{where}: {remark}", stacklevel=3)


def check_balance(
    frame: pd.DataFrame,
    where: object,
    grams: float,
    share: float,
    begun: bool = False,
    targets: Targets = CSIRO,
) -> None:
    """InputError listing the masses that are off by more than the tolerance.

    A warning for a sweep that has begun with them.
    """
    # before any head learns: constraints would change predictions where labels disagree with them
    found = unbalanced(frame, grams, share, targets)
    if not found:
        return
    amount, unit = ("mass", " g") if targets.preset else ("amount", "")
    problem = (
        f"{where}: {count_of(len(found), amount)} {_no_sum(len(found))}, by more than "
        f"dataset.balance_tolerance ({grams:g}{unit} or {share:.3g} of the sum, whichever is "
        f"more); {what_acts(found, targets)}"
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
