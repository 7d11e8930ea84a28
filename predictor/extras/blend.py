"""Shares of an ensemble's members: equal, or fitted on their out-of-fold tables, with what that
gains out of fold."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from predictor.members.member import Member
from predictor.members.oof import OutOfFold, check_held_out, without_table
from trainer.judge.simplex import error_gram, simplex_weights
from trainer.score.metrics import Score

Blend = Literal["equal", "fitted"]


def blend_weights(members: Sequence[Member], how: Blend) -> tuple[list[float], str]:
    """A weight for each member, summing to one, and a text that says what they are and what fitting
    gains out of fold.

    Fitted weights are the non-negative ones that sum to one with the best score out of fold:
    `simplex_weights`.

    Photographs that some members do not have are left out, which the text says. Each counts once,
    its repeats averaged: heads of all repeats predict together. InputError as `OutOfFold.of`, and
    for a fitted weight of a member without such a table.
    """
    equal_M = np.full(len(members), 1 / len(members))
    if len(members) == 1:
        return equal_M.tolist(), "one member: nothing to weigh"
    if how == "equal" and without_table(members):
        # a refit: what fitting would gain is not known
        return equal_M.tolist(), _shares(members, equal_M)
    check_held_out(members, "--blend fitted")
    notes: list[str] = []
    oof = OutOfFold.of(members, notes.append)
    by = _score_of(members)
    weight_K = by.error_weights(oof.truth_NK)
    grams = []
    for site in np.unique(oof.site_N):
        here = oof.site_N == site
        grams.append(error_gram(oof.truth_NK[here], oof.prediction_MNK[:, here], weight_K))
    gram_SMM = np.array(grams)
    fitted_M = simplex_weights(gram_SMM.sum(0))
    chosen_M = fitted_M if how == "fitted" else equal_M
    gain = _gain(by, oof, equal_M, fitted_M, gram_SMM)
    return chosen_M.tolist(), "\n".join([_shares(members, chosen_M), *notes, gain])


def weighed(members: Sequence[Member], how: Blend, say: Callable[[str], object]) -> list[Member]:
    """The members with those weights, without those that weigh nothing: their heads need not run.
    Weights are of members that tell numbers. `say` is told the text."""
    telling = []
    others = []
    for member in members:
        among = telling if member.tells_numbers else others
        among.append(member)
    if not telling:
        telling, others = others, []

    weights, text = blend_weights(telling, how)
    say(text)
    together = []
    for member, weight in zip(telling, weights, strict=True):
        if weight > 0:
            together.append(member.weighing(weight))
    # those of classes alone stand beside them, each like one of them
    share = 1 / len(telling)
    together += [member.weighing(share) for member in others]
    return together


def _score_of(members: Sequence[Member]) -> Score:
    """What ranks the members' numbers; of absolute errors the mean of R2, which is of squares."""
    first = members[0]
    by = Score.of(first.config.score, first.targets)
    name = by.name if by.name in ("contest", "r2", "rmse") else "r2"
    weights = first.targets.weights if any(first.targets.weights) else by.weights
    return Score(name, weights)


def _shares(members: Sequence[Member], weight_M: np.ndarray) -> str:
    told = []
    for weight, member in zip(weight_M, members, strict=True):
        told.append(f"{weight:.3f} {member.name}")
    return f"weights: {', '.join(told)}"


def _gain(
    by: Score,
    oof: OutOfFold,
    equal_M: np.ndarray,
    fitted_M: np.ndarray,
    gram_SMM: np.ndarray,
) -> str:
    """Scores of both kinds of weights, and of weights fitted without the site they score."""
    equal = float(by(oof.truth_NK, oof.combined(equal_M)))
    fitted = float(by(oof.truth_NK, oof.combined(fitted_M)))
    known = (
        f"out-of-fold score: equal weights {equal:.4f}; fitted {fitted:.4f} on the photographs "
        "they were fitted on"
    )
    if len(gram_SMM) < 2:
        return f"{known}; one {oof.unit} alone does not say what they are worth elsewhere"
    honest = float(by(oof.truth_NK, left_out(oof, gram_SMM)))
    return (
        f"{known}, {honest:.4f} where each of {len(gram_SMM)} {oof.unit}s is predicted by weights "
        f"fitted without it: fitting gains {honest - equal:+.4f}"
    )


def left_out(oof: OutOfFold, gram_SMM: np.ndarray) -> np.ndarray:
    """(N, K): each site's photographs combined by weights fitted on the other sites."""
    # products of errors add up over sites: the others' are the total less the site's own
    total_MM = gram_SMM.sum(0)
    prediction_NK = np.empty_like(oof.truth_NK)
    for gram_MM, site in zip(gram_SMM, np.unique(oof.site_N), strict=True):
        here = oof.site_N == site
        weight_M = simplex_weights(total_MM - gram_MM)
        prediction_NK[here] = oof.combined(weight_M)[here]
    return prediction_NK
