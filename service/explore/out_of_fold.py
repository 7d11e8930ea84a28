"""Predictions of a run for what its heads never saw, as long tables: a row a photograph and target.

Of a class `predicted` is the probability of the true word, beside a `true` of 1; the words stand
beside them.
"""

import functools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.disk.tables import find_table
from featurestore.errors import InputError
from featurestore.photos.targets import Target, Targets
from service.explore.sweeps import (
    Stamp,
    blend_names,
    run_names,
    stamp,
    targets_of,
    targets_of_sweep,
    told_classes,
)
from trainer.loop.baselines import LOGISTIC

# the leaderboard ranks by the last; the epoch of the best was chosen by the fold that scores it
WEIGHTS = ("last", "best")
KEPT_SWEEPS = 4  # whose averaged predictions stay in memory
ABOUT = ("run", "image_id", "site", "repeat", "fold")


@dataclass(frozen=True)
class Told:
    """Truths and predictions of one target, a value a row of `by_image`."""

    true_N: np.ndarray
    predicted_N: np.ndarray
    true_word_N: np.ndarray | None
    """No text of a number; None where the table tells no class."""
    predicted_word_N: np.ndarray | None


def oof(
    run: Path,
    weights: str | None = None,
    averaged: bool = False,
    target: str | None = None,
) -> pd.DataFrame:
    """Out-of-fold predictions, a row per repeat, image and target.

    image_id, site, repeat, fold, target, true, predicted, error; where there are classes also
    true_word and predicted_word.

    weights : whose rows, `best` or `last`; None takes `last` where there are some.
    averaged : over repeats; of several, repeat and fold are missing then.
    target : of this one alone; None of all.

    error is predicted - true, in the target's unit; missing where the truth is.
    """
    return by_target(run, by_image(run, weights, averaged), target)


def by_image(run: Path, weights: str | None = None, averaged: bool = False) -> pd.DataFrame:
    """The same with a row per repeat and image, a column a target, as the run's table has it."""
    targets = targets_of(run)
    wide = _wide(run, targets, weights)
    if averaged and wide["repeat"].nunique() > 1:
        first = wide.groupby("image_id", sort=False)[["site"]].first()
        means = _means(wide, targets)
        wide = first.join(means).reset_index().assign(repeat=np.nan, fold=np.nan)
    return wide


def by_target(run: Path, wide: pd.DataFrame, target: str | None = None) -> pd.DataFrame:
    """What `oof` gives of rows of `by_image`."""
    return _long(wide, told(run, wide, target))


def told(run: Path, wide: pd.DataFrame, target: str | None = None) -> dict[str, Told]:
    """By target what rows of `by_image` tell; or of one target alone."""
    targets = targets_of(run)
    found = _told(wide, targets, target)
    if run.name == LOGISTIC:  # its numbers are the training means
        return {name: each for name, each in found.items() if name not in targets.names}
    return found


def known_targets(run: Path, wide: pd.DataFrame) -> list[str]:
    """The targets of which a run tells the error of some photograph."""
    targets = targets_of(run)
    numbers = [] if run.name == LOGISTIC else targets.names
    of_number = {name: [name, f"true_{name}"] for name in numbers}
    of_class = {target.name: _shares(target) for target in told_classes(targets)}
    found = []
    for name, columns in (of_number | of_class).items():
        if set(columns) <= set(wide) and wide[columns].notna().all(axis=1).any():
            found.append(name)
    return found


def held_out(wide: pd.DataFrame, repeat: int | None, fold: int | None) -> pd.DataFrame:
    """Rows of `by_image` that one fold held out; None is each."""
    if repeat is not None:
        wide = wide[wide["repeat"] == repeat]
    return wide if fold is None else wide[wide["fold"] == fold]


def predictions(sweep: Path, image_id: str) -> list[dict[str, Any]]:
    """Predictions for an image by heads that never saw it, a mean over repeats.

    Of runs and blends, the weightiest target of each first.
    What has no out-of-fold table, or not the image, is left out, and classes where none are told;
    numbers of `logistic`, which are the training means, too.
    """
    names = [*run_names(sweep), *blend_names(sweep)]
    stamps = [stamp(find_table(sweep / name / "oof.csv")) for name in names]
    table = _averaged(tuple(stamps))
    if image_id not in table.index:
        return []
    targets = targets_of_sweep(sweep)
    rows = table.loc[[image_id]].reset_index()
    long = _long(rows, _told(rows, targets))
    is_number = long["target"].isin(targets.names)
    long = long[(long["run"] != LOGISTIC) | ~is_number]
    # of each run the weightiest target first
    is_other = long["target"] != targets.foremost.name
    long = long.assign(is_other=is_other).sort_values(["run", "is_other"], kind="stable")
    columns = ["run", "target", "true", "predicted"]
    if "predicted_word" in long:
        columns += ["true_word", "predicted_word"]
        names = [target.name for target in told_classes(targets)]
        long = long[~long["target"].isin(names) | (long["predicted_word"] != "")]
    return long[columns].to_dict("records")


def _told(wide: pd.DataFrame, targets: Targets, only: str | None = None) -> dict[str, Told]:
    """By target what rows of any run tell."""
    with_shares = [each for each in told_classes(targets) if set(_shares(each)) <= set(wide)]
    none_N = np.full(len(wide), "", object) if with_shares else None
    found = {}
    for name in targets.names:
        if only in (None, name):
            true_N = wide[f"true_{name}"].to_numpy(float)
            found[name] = Told(true_N, wide[name].to_numpy(float), none_N, none_N)
    for target in with_shares:
        if only not in (None, target.name):
            continue
        share_NW = wide[_shares(target)].to_numpy(float)
        word_N = wide[f"true_{target.name}"].to_numpy(object)
        is_true_NW = word_N[:, None] == np.array(target.values, object)
        is_known_N = is_true_NW.any(1)
        of_true_N = (share_NW * is_true_NW).sum(1)
        found[target.name] = Told(
            true_N=np.where(is_known_N, 1.0, np.nan),
            predicted_N=np.where(is_known_N, of_true_N, np.nan),
            true_word_N=word_N,
            predicted_word_N=_most_probable(target, share_NW),
        )
    return found


def _long(wide: pd.DataFrame, told: Mapping[str, Told]) -> pd.DataFrame:
    """The same with a row for each target."""
    each_N = list(told.values())
    long = with_targets(wide[[name for name in ABOUT if name in wide]], list(told))
    true = in_turn([each.true_N for each in each_N])
    predicted = in_turn([each.predicted_N for each in each_N])
    long = long.assign(true=true, predicted=predicted, error=predicted - true)
    if not each_N or each_N[0].true_word_N is None:
        return long
    return long.assign(
        true_word=in_turn([each.true_word_N for each in each_N]),
        predicted_word=in_turn([each.predicted_word_N for each in each_N]),
    )


def with_targets(about: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Each row once for each target, a row's targets one after another."""
    repeated = about.loc[about.index.repeat(len(names))].reset_index(drop=True)
    return repeated.assign(target=np.tile(np.array(names, object), len(about)))


def in_turn(columns: Sequence[np.ndarray]) -> np.ndarray:
    """(N * K,): of K columns of N values a row's values one after another."""
    return np.stack(columns, 1).reshape(-1) if columns else np.empty(0)


def _most_probable(target: Target, share_NW: np.ndarray) -> np.ndarray:
    """(N,) words; empty where a run tells none."""
    is_told_N = np.isfinite(share_NW).all(1)
    most_N = np.where(is_told_N, np.nan_to_num(share_NW).argmax(1), 0)
    return np.where(is_told_N, np.array(target.values, object)[most_N], "")


def _shares(target: Target) -> list[str]:
    """Columns with the probabilities of a class's words."""
    return [f"probability_{target.name}_{word}" for word in target.values]


def _numbers(targets: Targets) -> list[str]:
    """Columns that every run's table has, of numbers."""
    return [*targets.names, *(f"true_{name}" for name in targets.names)]


def _means(wide: pd.DataFrame, targets: Targets) -> pd.DataFrame:
    """Numbers by image_id, averaged over repeats, and the true words."""
    shares = [name for target in told_classes(targets) for name in _shares(target)]
    there = [name for name in (*_numbers(targets), *shares) if name in wide]
    words = [f"true_{target.name}" for target in told_classes(targets)]
    words = [name for name in words if name in wide]
    if wide["repeat"].nunique() < 2:
        return wide.set_index("image_id")[[*there, *words]]
    by_image = wide.groupby("image_id", sort=False)
    means = by_image[there].mean()
    return means.join(by_image[words].first()) if words else means


def _wide(run: Path, targets: Targets, weights: str | None) -> pd.DataFrame:
    """oof.csv's rows of chosen weights, as they are."""
    where = f"run {run.name!r} of sweep {run.parent.name!r}"
    numbers = _numbers(targets)
    shares = [name for target in told_classes(targets) for name in _shares(target)]
    texts = ["weights", "image_id", "site", *(f"predicted_{each.name}" for each in targets.classes)]
    texts += [f"true_{target.name}" for target in targets.classes]
    try:
        # a site or a word may be called NA: only numbers can be missing
        table = pd.read_csv(
            find_table(run / "oof.csv"),
            dtype=dict.fromkeys(texts, str),
            keep_default_na=False,
            na_values=dict.fromkeys([*numbers, *shares], ["", "nan"]),
        )
    except FileNotFoundError as err:
        raise InputError(
            f"{where} has no out-of-fold table: it is not finished, or learned on every image"
        ) from err
    except PermissionError as err:
        raise InputError(
            f"{where}: the server's account may not read its out-of-fold table; allow it"
        ) from err
    except (OSError, ValueError) as err:  # pandas' own errors of CSVs are ValueErrors
        raise InputError(f"{where}: its out-of-fold table cannot be read; train it again") from err
    needed = ("weights", "repeat", "image_id", "site", "fold", *numbers)
    missing = [name for name in needed if name not in table]
    if missing:
        raise InputError(
            f"{where}: its out-of-fold table lacks {', '.join(missing)}; train it again"
        )
    there = [name for name in (*numbers, *shares) if name in table]
    try:
        table = table.astype(dict.fromkeys(there, float))
    except ValueError as err:
        raise InputError(
            f"{where}: its out-of-fold table holds what is no number ({err}); train it again"
        ) from err
    kinds = [which for which in WEIGHTS if (table["weights"] == which).any()]
    which = weights or next(iter(kinds), "last")
    if weights and weights not in kinds:
        raise InputError(f"{where} has no {weights} weights; it has {', '.join(kinds) or 'none'}")
    is_wanted = table.pop("weights") == which
    return table[is_wanted].reset_index(drop=True)


@functools.lru_cache(KEPT_SWEEPS)
def _averaged(stamps: tuple[Stamp, ...]) -> pd.DataFrame:
    """Numbers and truths of a sweep's runs by image_id, sorted, averaged over repeats.

    Of the runs whose table can be read.

    By the stamps of their tables: what changed is read again.
    """
    found = []
    for path, *_ in stamps:
        with suppress(InputError):
            run = Path(path).parent
            targets = targets_of(run)
            means = _means(_wide(run, targets, None), targets)
            found.append(means.assign(run=run.name))
    if not found:
        return pd.DataFrame(columns=["run"])
    return pd.concat(found).sort_index(kind="stable")
