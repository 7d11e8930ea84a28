"""Two runs, or blends, beside each other: on the photographs that both predicted out of fold.

A photograph that only one of them predicted tells nothing of their difference, and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.errors import InputError
from service.explore import sweeps
from service.explore.out_of_fold import Told, by_image, in_turn, told, with_targets
from trainer.judge.compare import compare
from trainer.score.metrics import CLASS_SCORES, LEAST_SHARE, Score, scored_classes

OF_NUMBERS = ("r2", "rmse")


@dataclass(frozen=True)
class Pair:
    """Rows that both tables have, a row a photograph, or a photograph and repeat."""

    about: pd.DataFrame
    """image_id, site and repeat."""
    told: dict[str, tuple[Told, Told]]
    """By target what a and b tell, of targets of both."""

    @property
    def has_words(self) -> bool:
        return all(each.true_word_N is not None for both in self.told.values() for each in both)


def photographs(
    a: Path,
    b: Path,
    target: str | None = None,
    wides: Sequence[pd.DataFrame | None] = (None, None),
) -> pd.DataFrame:
    """What both predict of each photograph and target, averaged over repeats; or of one target.

    wides : of each what `out_of_fold.by_image` made of it, averaged, where that is at hand.

    image_id, site, target, true, predicted_a, predicted_b, error_a, error_b, and where there are
    classes true_word, predicted_word_a and predicted_word_b.
    """
    pair = _paired(a, b, True, target, wides)
    told_a, told_b = zip(*pair.told.values(), strict=True)
    true = in_turn([each.true_N for each in told_a])
    predicted_a = in_turn([each.predicted_N for each in told_a])
    predicted_b = in_turn([each.predicted_N for each in told_b])
    columns = {
        "true": true,
        "predicted_a": predicted_a,
        "predicted_b": predicted_b,
        "error_a": predicted_a - true,
        "error_b": predicted_b - in_turn([each.true_N for each in told_b]),
    }
    if pair.has_words:
        columns["true_word"] = in_turn([each.true_word_N for each in told_a])
        columns["predicted_word_a"] = in_turn([each.predicted_word_N for each in told_a])
        columns["predicted_word_b"] = in_turn([each.predicted_word_N for each in told_b])
    about = pair.about[["image_id", "site"]]
    return with_targets(about, list(pair.told)).assign(**columns)


def scores(
    a: Path,
    b: Path,
    wides: Sequence[pd.DataFrame | None] = (None, None),
) -> pd.DataFrame:
    """Scores of both, first the one that ranks a's sweep, and how far apart they are.

    wides : of each what `out_of_fold.by_image` made of it, not averaged, where that is at hand.

    score, target (missing where all count), a, b, difference (b - a), low and high (95 %, of a
    paired bootstrap over sites; missing with few sites), apart, sd (of the difference over
    repeats), larger_is_better, n_images, n_sites, n_repeats. Repeats are paired by their numbers.

    Source: trainer.judge.compare.
    """
    pair = _paired(a, b, False, None, wides)
    place_M, ids_N = pd.factorize(pair.about["image_id"])
    repeat_M, repeats_R = pd.factorize(pair.about["repeat"], sort=True)
    at_2M = repeat_M, place_M
    # of each photograph's first row; numbers, as texts of every photograph take long to sort
    first_N = np.unique(place_M, return_index=True)[1]
    site_N = pd.factorize(pair.about["site"].iloc[first_N], sort=True)[0]
    shape_RN = len(repeats_R), len(ids_N)
    seed = sweeps.seed_of(a.parent)
    rows = []
    for by, target, names in _wanted(a, set(pair.told)):
        told_K2 = [pair.told[name] for name in names]
        truth_NK, prediction_GRNK = _arrays(told_K2, by, at_2M, shape_RN)
        # a is the reference, so what is said of b is its score less a's
        versus = compare(by, truth_NK, prediction_GRNK, site_N, 0, seed)[1]
        held_out_RN = ~np.isnan(prediction_GRNK).all((0, 3))
        counts_N = held_out_RN.any(0) & ~np.isnan(truth_NK).all(1)
        mean_G = [_mean(by, truth_NK, each, held_out_RN) for each in prediction_GRNK]
        about = {
            "score": by.name,
            "target": target,
            "a": mean_G[0],
            "b": mean_G[1],
            **vars(versus),
            "larger_is_better": by.larger_is_better,
            "n_images": int(counts_N.sum()),
            "n_sites": len(np.unique(site_N[counts_N])),
            "n_repeats": len(held_out_RN),
        }
        rows.append(about)
    return pd.DataFrame(rows)


def _paired(
    a: Path,
    b: Path,
    averaged: bool,
    target: str | None,
    wides: Sequence[pd.DataFrame | None],
) -> Pair:
    """What both tell of rows that both have; InputError for none, and where their truths differ."""
    key = ["image_id"] if averaged else ["image_id", "repeat"]
    tables = []
    for run, wide in zip((a, b), wides, strict=True):
        tables.append(by_image(run, averaged=averaged) if wide is None else wide)
    of_a, of_b = tables
    if not of_a[key].equals(of_b[key]):  # runs of one sweep have the same rows
        places = [table[key].assign(place=np.arange(len(table))) for table in tables]
        both = places[0].merge(places[1], on=key, suffixes=("_a", "_b"))
        of_a = of_a.iloc[both["place_a"]].reset_index(drop=True)
        of_b = of_b.iloc[both["place_b"]].reset_index(drop=True)
    told_a = told(a, of_a, target)
    told_b = told(b, of_b, target)
    found = {name: (each, told_b[name]) for name, each in told_a.items() if name in told_b}
    if of_a.empty or not found:
        raise InputError(
            f"{a.name!r} and {b.name!r} predicted no photograph and target in common; compare runs "
            "that learned from the same photographs"
        )
    other_MK = np.stack([_differs(*each) for each in found.values()], 1)
    if other_MK.any():
        row, k = np.argwhere(other_MK)[0]
        image_id = of_a["image_id"].iloc[row]
        raise InputError(
            f"{a.name!r} and {b.name!r} learned from other labels: of {other_MK.sum()} rows the "
            f"truth differs, first of {image_id}, {list(found)[k]}; compare runs of one table"
        )
    return Pair(of_a[["image_id", "site", "repeat"]], found)


def _differs(a: Told, b: Told) -> np.ndarray:
    """(M,) whether the truths of rows do."""
    other_M = ~np.isclose(a.true_N, b.true_N, equal_nan=True)
    if a.true_word_N is not None and b.true_word_N is not None:
        other_M |= a.true_word_N != b.true_word_N
    return other_M


def _wanted(a: Path, known: set[str]) -> list[tuple[Score, str | None, list[str]]]:
    """(score, target, targets that count) of each row; of targets that both predict."""
    targets = sweeps.targets_of(a)
    by = sweeps.score_of(a.parent, targets)
    classes = [target.name for target in scored_classes(targets)]
    weights = dict(zip([*targets.names, *classes], by.weights, strict=True))
    scored = {name: weight for name, weight in weights.items() if weight > 0}
    wanted: list[tuple[Score, str | None, list[str]]] = []
    if known.issuperset(scored):
        wanted.append((Score(by.name, tuple(scored.values())), None, list(scored)))
    foremost_first = sorted(targets.names, key=lambda name: name != targets.foremost.name)
    for name in foremost_first:
        wanted += [(Score(score, (1.0,)), name, [name]) for score in OF_NUMBERS]
    for target in sweeps.told_classes(targets):
        wanted += [(Score(score, (1.0,)), target.name, [target.name]) for score in CLASS_SCORES]
    return [each for each in wanted if known.issuperset(each[2])]


def _arrays(
    told_K2: list[tuple[Told, Told]],
    by: Score,
    at_2M: tuple[np.ndarray, np.ndarray],
    shape_RN: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) truths and (2, R, N, K) predictions, NaN where there are none.

    Of scores of classes a photograph's own loss, beside a truth of 0, as Score wants it.

    at_2M : repeat and photograph of each row.
    """
    truth_NK = np.full((shape_RN[1], len(told_K2)), np.nan)
    prediction_GRNK = np.full((2, *shape_RN, len(told_K2)), np.nan)
    for k, both in enumerate(told_K2):
        true_M = both[0].true_N
        # times 0, not 0: a truth that is not known stays NaN
        truth_NK[at_2M[1], k] = true_M * 0 if by.name in CLASS_SCORES else true_M
        for g, each in enumerate(both):
            prediction_GRNK[g, *at_2M, k] = _predicted(each, by)
    return truth_NK, prediction_GRNK


def _predicted(each: Told, by: Score) -> np.ndarray:
    """What a score takes of a run's rows of one target."""
    if by.name not in CLASS_SCORES:
        return each.predicted_N
    if by.name == "log_loss":
        return -np.log(np.maximum(each.predicted_N, LEAST_SHARE))
    is_wrong_M = (each.predicted_word_N != each.true_word_N).astype(float)
    return np.where(np.isnan(each.predicted_N), np.nan, is_wrong_M)


def _mean(
    by: Score,
    truth_NK: np.ndarray,
    prediction_RNK: np.ndarray,
    held_out_RN: np.ndarray,
) -> float:
    """A run's score, mean over the repeats that have one."""
    truth_RNK = np.where(held_out_RN[..., None], truth_NK, np.nan)
    scores_R: Any = np.atleast_1d(by(truth_RNK, prediction_RNK))
    known_R = np.isfinite(scores_R)
    return float(scores_R[known_R].mean()) if known_R.any() else float("nan")
