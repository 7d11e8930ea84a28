"""Two runs, or blends, beside each other: on the photographs that both predicted out of fold.

A photograph that only one of them predicted tells nothing of their difference, and is left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.errors import InputError
from service.explore import sweeps
from service.explore.out_of_fold import by_image, by_target
from trainer.judge.compare import compare
from trainer.score.metrics import CLASS_SCORES, LEAST_SHARE, Score, scored_classes

KEY = ["image_id", "target"]
WORDS = ["true_word", "predicted_word"]
OF_NUMBERS = ("r2", "rmse")


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
    both = _joined(a, b, True, target, wides)
    columns = ["image_id", "site", "target", "true"]
    columns += ["predicted_a", "predicted_b", "error_a", "error_b"]
    # classes may be told by one of them alone
    columns += [name for name in (*WORDS, "predicted_word_b") if name in both]
    return both[columns].rename(columns={"predicted_word": "predicted_word_a"})


def scores(a: Path, b: Path) -> pd.DataFrame:
    """Scores of both, first the one that ranks a's sweep, and how far apart they are.

    score, target (missing where all count), a, b, difference (b - a), low and high (95 %, of a
    paired bootstrap over sites; missing with few sites), apart, sd (of the difference over
    repeats), larger_is_better, n_images, n_sites, n_repeats. Repeats are paired by their numbers.

    Source: trainer.judge.compare.
    """
    both = _joined(a, b, False)
    images = both.drop_duplicates("image_id")
    sites_N = images["site"].to_numpy(str)
    seed = sweeps.seed_of(a.parent)
    rows = []
    for by, target, names in _wanted(a, set(both["target"])):
        truth_NK, prediction_GRNK = _arrays(both, images["image_id"], names, by)
        # a is the reference, so what is said of b is its score less a's
        versus = compare(by, truth_NK, prediction_GRNK, sites_N, 0, seed)[1]
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
            "n_sites": len(set(sites_N[counts_N])),
            "n_repeats": len(held_out_RN),
        }
        rows.append(about)
    return pd.DataFrame(rows)


def _joined(
    a: Path,
    b: Path,
    averaged: bool,
    target: str | None = None,
    wides: Sequence[pd.DataFrame | None] = (None, None),
) -> pd.DataFrame:
    """Rows that both tables have; columns of b alone end in _b."""
    tables = []
    for run, wide in zip((a, b), wides, strict=True):
        wide = by_image(run, averaged=averaged) if wide is None else wide
        tables.append(by_target(run, wide, target))
    key = KEY if averaged else [*KEY, "repeat"]
    both = tables[0].merge(tables[1], on=key, suffixes=("", "_b"))
    if both.empty:
        raise InputError(
            f"{a.name!r} and {b.name!r} predicted no photograph and target in common; compare runs "
            "that learned from the same photographs"
        )
    other = ~np.isclose(both["true"], both["true_b"], equal_nan=True)
    if "true_word" in both and "true_word_b" in both:
        other |= both["true_word"] != both["true_word_b"]
    if other.any():
        first = both[other].iloc[0]
        raise InputError(
            f"{a.name!r} and {b.name!r} learned from other labels: of {other.sum()} rows the truth "
            f"differs, first of {first['image_id']}, {first['target']}; compare runs of one table"
        )
    return both.rename(columns={"predicted": "predicted_a", "error": "error_a"})


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
    both: pd.DataFrame,
    images: pd.Series,
    names: list[str],
    by: Score,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) truths and (2, R, N, K) predictions, NaN where there are none.

    Of scores of classes a photograph's own loss, beside a truth of 0, as Score wants it.
    """
    n_of = {image_id: n for n, image_id in enumerate(images)}
    repeats = sorted(both["repeat"].unique())
    truth_NK = np.full((len(images), len(names)), np.nan)
    prediction_GRNK = np.full((2, len(repeats), *truth_NK.shape), np.nan)
    for k, name in enumerate(names):
        rows = both[both["target"] == name]
        n_M = rows["image_id"].map(n_of).to_numpy()
        r_M = np.searchsorted(repeats, rows["repeat"])
        true_M = rows["true"].to_numpy(float)
        # times 0, not 0: a truth that is not known stays NaN
        truth_NK[n_M, k] = true_M * 0 if by.name in CLASS_SCORES else true_M
        for g in range(2):
            prediction_GRNK[g, r_M, n_M, k] = _predicted(rows, by, "ab"[g])
    return truth_NK, prediction_GRNK


def _predicted(rows: pd.DataFrame, by: Score, which: str) -> np.ndarray:
    """What a score takes of a run's rows of one target."""
    predicted_M = rows[f"predicted_{which}"].to_numpy(float)
    if by.name not in CLASS_SCORES:
        return predicted_M
    if by.name == "log_loss":
        return -np.log(np.maximum(predicted_M, LEAST_SHARE))
    word = rows["predicted_word" if which == "a" else "predicted_word_b"]
    is_wrong_M = (word != rows["true_word"]).to_numpy(float)
    return np.where(np.isnan(predicted_M), np.nan, is_wrong_M)


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
