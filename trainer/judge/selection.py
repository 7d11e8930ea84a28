"""What a selected point is worth: an estimate that is free of selection bias.

Arrays in, numbers out, in float64. Which point is trained on, saved and predicted with is decided
elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.stream import Split
from trainer.score.metrics import Score, held_out_of


@dataclass(frozen=True)
class HonestEstimate:
    """Scores of the selected point by `honest_estimate`, means over repeats, as plain values."""

    score: float
    """Of the point chosen by its last epoch."""
    sd: float
    """Over repeats; NaN for a single one."""
    score_epoch: float
    """Of the point and epoch chosen together."""
    sd_epoch: float
    per_repeat_R: list[float]
    per_repeat_epoch_R: list[float]
    chosen_G: list[int]
    """In how many splits each point was the choice."""
    chosen_epoch_G: list[int]
    """The same where the epoch was chosen too."""


def honest_estimate(
    by: Score,
    errors_EGQ: np.ndarray,
    truth_NK: np.ndarray,
    splits: Sequence[Split],
    others_EGQ: np.ndarray | None = None,
) -> HonestEstimate:
    """The score of choosing the best point, where each fold's choice is made without it.

    For every fold of a repeat the point with the least error on the repeat's other folds is chosen,
    and its error on this fold counts, pooled over the repeat's folds as the score is: of R2 that is
    1 - sum_f error(choice(f), f) / SST.

    It guards against the optimism of reporting the highest of many scores, or the best of many
    epochs, on the images that made it the highest. It does not guard against
    - what training leaks: heads of the other folds learned from this fold's images, so their
      errors, and with them the choice, are not independent of it. This is leaving a fold out of the
      selection, not nested cross-validation.
    - what people choose: a grid, a rule or a backbone tried because of earlier scores on these
      images.
    - a test set that differs from the training sites.
    It is about choosing so, not about one point: folds may choose differently, each from fewer
    images than the final choice has, which reads a little low.

    Parameters
    ----------
    errors_EGQ : (E epochs, G points, Q splits), from `Score.split_errors`, on the plain view. An
        epoch of a point that is not finite in every split is never chosen: that a head failed
        shows without looking at truths.
    truth_NK : (N, K), in the order of tables, NaN where unknown.
    splits : Q of them. With one fold a repeat there are no other folds, and the scores are NaN; so
        they are where nothing can be chosen or truths are all equal.
    others_EGQ : error by which the choice of a split is made, as `others_errors` adds it up, which
        None does. A blend has others: its shares are learned anew without the split. inf is never
        chosen.

    Ties go to the earlier epoch, then the earlier point.
    Source: Varma and Simon 2006, Bias in error estimation when using cross-validation for model
    selection, BMC Bioinformatics 7:91, for the bias and its cure by nesting; Tsamardinos, Greasidou
    and Borboudakis 2018, Bootstrapping the out-of-sample predictions for efficient and accurate
    cross-validation, Machine Learning 107, for choosing anew on part of the out-of-sample
    predictions and scoring on the rest without training again. They draw rows; here folds keep
    sites whole.
    """
    n_points = errors_EGQ.shape[1]
    if others_EGQ is None:
        others_EGQ = others_errors(errors_EGQ, splits)
    last_1GQ = errors_EGQ[-1:]
    choice_Q = _choices(last_1GQ, others_EGQ[-1:], splits)
    score_R = _scores(by, last_1GQ, choice_Q, truth_NK, splits)
    choice_epoch_Q = _choices(errors_EGQ, others_EGQ, splits)
    score_epoch_R = _scores(by, errors_EGQ, choice_epoch_Q, truth_NK, splits)
    return HonestEstimate(
        *_mean_and_sd(score_R),
        *_mean_and_sd(score_epoch_R),
        score_R.tolist(),
        score_epoch_R.tolist(),
        _how_often(choice_Q, n_points),
        _how_often(choice_epoch_Q, n_points),
    )


def other_folds(splits: Sequence[Split]) -> list[list[int]]:
    """Of each split, positions of the other folds of its repeat."""
    others = []
    for split in splits:
        same_repeat = [q for q, other in enumerate(splits) if other.repeat == split.repeat]
        others.append([q for q in same_repeat if splits[q].fold != split.fold])
    return others


def others_errors(errors_EGQ: np.ndarray, splits: Sequence[Split]) -> np.ndarray:
    """(E, G, Q) error over the other folds of each split's repeat."""
    totals = [errors_EGQ[..., others].sum(-1) for others in other_folds(splits)]
    return np.stack(totals, -1)


def _choices(
    errors_EGQ: np.ndarray,
    others_EGQ: np.ndarray,
    splits: Sequence[Split],
) -> np.ndarray:
    """(Q,) epoch * G + point of the least error over the repeat's other folds; -1 where none."""
    fails_EG = ~np.isfinite(errors_EGQ).all(-1)
    choice_Q = np.full(len(splits), -1)
    for q, others in enumerate(other_folds(splits)):
        if others and not fails_EG.all():
            # argmin takes the first of equals: the earlier epoch, then the earlier point
            error_EG = np.where(fails_EG, np.inf, others_EGQ[..., q])
            choice_Q[q] = error_EG.argmin()
    return choice_Q


def _scores(
    by: Score,
    errors_EGQ: np.ndarray,
    choice_Q: np.ndarray,
    truth_NK: np.ndarray,
    splits: Sequence[Split],
) -> np.ndarray:
    """(R,) score of each repeat where choice_Q[q] predicts split q; NaN where one is missing."""
    by_choice_XQ = errors_EGQ.reshape(-1, len(splits))
    error_Q = by_choice_XQ[choice_Q, np.arange(len(splits))]
    # without a choice, -1 took the last one
    error_Q = np.where(choice_Q < 0, np.nan, error_Q)
    repeat_Q = np.array([split.repeat for split in splits])
    scores = []
    for repeat in np.unique(repeat_Q):
        # pooled over the repeat's folds: a single fold may hold out too few images for a score
        own_truth_nK = truth_NK[held_out_of(splits, repeat)]
        scores.append(by.of_errors(error_Q[repeat_Q == repeat].sum(), own_truth_nK))
    return np.array(scores)


def _mean_and_sd(score_R: np.ndarray) -> tuple[float, float]:
    sd = float(score_R.std(ddof=1)) if len(score_R) > 1 else float("nan")
    return float(score_R.mean()), sd


def _how_often(choice_Q: np.ndarray, n_points: int) -> list[int]:
    return np.bincount(choice_Q[choice_Q >= 0] % n_points, minlength=n_points).tolist()
