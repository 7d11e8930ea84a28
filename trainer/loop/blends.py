"""Blends on the board: averages of the best point of each kind, scored out of fold like a point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainer.data.stream import Split
from trainer.judge.selection import other_folds, squared_errors
from trainer.judge.simplex import error_gram, simplex_weights
from trainer.loop.prepare import Sweep
from trainer.loop.results import PointResult, Prediction
from trainer.score.metrics import in_targets_order

EQUAL, FITTED = "blend_equal", "blend_fitted"


@dataclass(frozen=True, eq=False)
class Blend:
    """Points that predict together, each by its share."""

    name: str
    members: list[PointResult]
    share_M: np.ndarray
    """With which all heads predict new photographs; summing to one."""
    share_QM: np.ndarray
    """Of each split: learned without what it holds out, which they are scored on."""
    held_out: dict[str, Prediction]
    """By `last` weights alone."""
    failure: ClassVar[None] = None
    failed: ClassVar[bool] = False
    n_by_space: ClassVar[None] = None

    def weighing(self) -> tuple[list[str], list[float]]:
        """Names and shares of the members that weigh something: the others need not run."""
        names = []
        shares = []
        for member, share in zip(self.members, self.share_M.tolist(), strict=True):
            if share > 0:
                names.append(member.name)
                shares.append(share)
        return names, shares


Row = PointResult | Blend
"""What the board ranks."""


@dataclass(frozen=True)
class BlendErrors:
    """What blends come to where nothing about them saw the fold that they are scored on, neither
    their members nor their shares; B blends, Q splits."""

    names: list[str]
    own_BQ: np.ndarray
    """Squared error on what the split holds out."""
    others_BQ: np.ndarray
    """On the other folds of its repeat, by which blends and points are chosen; inf where there are
    too few folds to tell."""


def blend_members(
    sweep: Sweep,
    choices: Sequence[PointResult],
    ridge: PointResult | None,
) -> list[PointResult]:
    """Who may be in a blend: points that can be saved and did not fail, and the ridge beside the
    board where none of them is one."""
    members = [r for r in choices if not r.failed]
    if not has_their_rules(sweep, ridge) or ridge.config.head.kind in _by_kind(members):
        return members
    return [*members, ridge]


def has_their_rules(sweep: Sweep, ridge: PointResult | None) -> bool:
    """Whether there is a ridge beside the board that predicts by the rules of the points: it knows
    no State, and goes without rules that need one."""
    return ridge is not None and ridge.config.inference == sweep.base.inference


def form_blends(sweep: Sweep, results: Sequence[PointResult]) -> list[Blend]:
    """The equal average of the best point of each kind, and the average with fitted shares.

    results : who may be in it, of each kind the best first. None where there are fewer than two
        kinds; no fitted one where a repeat has a single fold, which leaves nothing to learn shares
        from.
    """
    members = list(_by_kind(results).values())
    if len(members) < 2:
        return []
    n_members = len(members)
    equal_QM = np.full((len(sweep.splits), n_members), 1 / n_members)
    blends = [_blend(EQUAL, sweep, members, equal_QM[0], equal_QM)]

    others = other_folds(sweep.splits)
    if all(others):
        gram_QMM = _grams(sweep, members)
        shares = []
        for known in others:
            gram_MM = gram_QMM[known].sum(0)
            shares.append(simplex_weights(gram_MM))
        share_M = simplex_weights(gram_QMM.sum(0))
        fitted_QM = np.stack(shares)
        blends.append(_blend(FITTED, sweep, members, share_M, fitted_QM))
    return blends


def blend_errors(
    sweep: Sweep,
    results: Sequence[PointResult],
    names: Sequence[str],
) -> BlendErrors:
    """The same blends formed anew for every split: each kind's point is chosen by the other folds
    of the repeat, and shares are learned there; where a blend is judged by one of those folds, from
    the rest alone.

    results : who may be in them.
    """
    shape = (len(names), len(sweep.splits))
    own_BQ = np.full(shape, np.inf)
    others_BQ = np.full(shape, np.inf)
    others = other_folds(sweep.splits)
    if not names or not all(others):
        return BlendErrors(list(names), own_BQ, others_BQ)

    chosen_QM = _chosen_without(sweep, results, others)
    used = sorted(set().union(*chosen_QM))
    gram_QUU = _grams(sweep, [results[g] for g in used])
    truth_N5 = in_targets_order(sweep.data.truth_N5)
    for q, known in enumerate(others):
        members = [results[g] for g in chosen_QM[q]]
        at = [used.index(g) for g in chosen_QM[q]]
        gram_QMM = gram_QUU[:, at][:, :, at]
        for b, name in enumerate(names):
            if name == EQUAL:
                own_M = np.full(len(members), 1 / len(members))
                by_judge = dict.fromkeys(known, own_M)
            else:
                own_M = simplex_weights(gram_QMM[known].sum(0))
                by_judge = _shares_without_each(gram_QMM, known)

            own_BQ[b, q] = _error(truth_N5, members, own_M, sweep.splits[q])
            if by_judge:
                others_BQ[b, q] = 0
            for o, share_M in by_judge.items():
                others_BQ[b, q] += _error(truth_N5, members, share_M, sweep.splits[o])
    return BlendErrors(list(names), own_BQ, others_BQ)


def _chosen_without(
    sweep: Sweep,
    results: Sequence[PointResult],
    others: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Of each split, positions of each kind's best point by the other folds of its repeat."""
    truth_N5 = in_targets_order(sweep.data.truth_N5)
    errors = []
    for result in results:
        masses_RN5 = result.held_out["last"].masses_RN5
        errors.append(squared_errors(truth_N5, masses_RN5, sweep.splits))
    errors_GQ = np.stack(errors)

    position = {result.name: g for g, result in enumerate(results)}
    chosen = []
    for known in others:
        error_G = errors_GQ[:, known].sum(1)
        ranked = np.argsort(error_G, kind="stable")
        by_kind = _by_kind([results[g] for g in ranked])
        chosen.append([position[result.name] for result in by_kind.values()])
    return chosen


def _shares_without_each(
    gram_QMM: np.ndarray,
    known: Sequence[int],
) -> dict[int, np.ndarray]:
    """Of each known split, shares that are learned on the others; of none where it is alone."""
    if len(known) < 2:
        return {}
    shares = {}
    for judge in known:
        rest = [o for o in known if o != judge]
        gram_MM = gram_QMM[rest].sum(0)
        shares[judge] = simplex_weights(gram_MM)
    return shares


def blended(
    members: Sequence[PointResult],
    share_M: np.ndarray,
    repeat: int,
    images_n: np.ndarray,
) -> Prediction:
    """Of some images of a repeat, as an ensemble predicts: raw masses averaged by share, States
    over the members that tell them; constraints and rules come after.

    Its arrays are (1, n, ...).
    """
    raw = []
    told = []
    telling = []
    states: Sequence[str] = []
    for m, member in enumerate(members):
        prediction = member.held_out["last"]
        raw.append(prediction.raw_RN5[repeat, images_n])
        if prediction.state_RNC is not None:
            telling.append(m)
            told.append(prediction.state_RNC[repeat, images_n])
            states = prediction.states

    raw_n5 = np.tensordot(share_M, np.stack(raw), 1)
    state_1nC = None
    telling_M = share_M[telling]
    if telling_M.sum() > 0:
        state_nC = np.average(told, axis=0, weights=telling_M)
        state_1nC = state_nC[None]
    return Prediction(raw_n5[None], state_1nC, members[0].config, states)


def _by_kind(ranked: Sequence[PointResult]) -> dict[str, PointResult]:
    """The first point of each kind."""
    first: dict[str, PointResult] = {}
    for result in ranked:
        first.setdefault(result.config.head.kind, result)
    return first


def _blend(
    name: str,
    sweep: Sweep,
    members: list[PointResult],
    share_M: np.ndarray,
    share_QM: np.ndarray,
) -> Blend:
    like = members[0].held_out["last"]
    raw_RN5 = np.full_like(like.raw_RN5, np.nan)
    state_RNC = None
    states: Sequence[str] = []
    for split, own_M in zip(sweep.splits, share_QM, strict=True):
        part = blended(members, own_M, split.repeat, split.val_N)
        raw_RN5[split.repeat, split.val_N] = part.raw_RN5[0]
        if part.state_RNC is None:
            continue
        if state_RNC is None:
            states = part.states
            state_RNC = np.full((*raw_RN5.shape[:2], len(states)), np.nan)
        state_RNC[split.repeat, split.val_N] = part.state_RNC[0]
    prediction = Prediction(raw_RN5, state_RNC, like.config, states)
    return Blend(name, members, share_M, share_QM, {"last": prediction})


def _grams(sweep: Sweep, members: Sequence[PointResult]) -> np.ndarray:
    """(Q, M, M) products of the members' errors on what each split holds out."""
    truth_N5 = in_targets_order(sweep.data.truth_N5)
    masses = [member.held_out["last"].masses_RN5 for member in members]
    masses_MRN5 = np.stack(masses)
    grams = []
    for split in sweep.splits:
        truth_n5 = truth_N5[split.val_N]
        masses_Mn5 = masses_MRN5[:, split.repeat, split.val_N]
        grams.append(error_gram(truth_n5, masses_Mn5))
    return np.stack(grams)


def _error(
    truth_N5: np.ndarray,
    members: Sequence[PointResult],
    share_M: np.ndarray,
    split: Split,
) -> float:
    """Squared error of a blend on what a split holds out."""
    prediction = blended(members, share_M, split.repeat, split.val_N)
    all_of_them = Split(
        repeat=0,
        fold=split.fold,
        train_N=split.train_N,
        val_N=np.arange(len(split.val_N)),
    )
    error_1 = squared_errors(truth_N5[split.val_N], prediction.masses_RN5, [all_of_them])
    return float(error_1[0])
