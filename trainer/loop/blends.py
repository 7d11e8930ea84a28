"""Blends on the board: averages of the best point of each kind, scored out of fold like a point."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from featurestore.photos.targets import Targets
from trainer.data.stream import Split
from trainer.heads import kinds
from trainer.judge.selection import other_folds
from trainer.judge.simplex import error_gram, shares_among, simplex_weights
from trainer.loop.baselines import tells_ranked
from trainer.loop.prepare import Sweep
from trainer.loop.results import PointResult, Prediction, scored_of
from trainer.score.metrics import CLASS_SCORES, held_out_of

EQUAL = "blend_equal"
FITTED = "blend_fitted"


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
    baseline: PointResult | None,
) -> list[PointResult]:
    """Who may be in a blend: points that can be saved and did not fail, and the baseline that is
    ranked where none of them is of its kind."""
    members = [r for r in choices if not r.failed]
    if not has_their_rules(sweep, baseline) or baseline.config.head.kind in _by_kind(members):
        return members
    return [*members, baseline]


def has_their_rules(sweep: Sweep, baseline: PointResult | None) -> bool:
    """Whether there is a baseline that predicts by the rules of the points: it knows no State, and
    goes without rules that need one."""
    return baseline is not None and baseline.config.inference == sweep.base.inference


def form_blends(sweep: Sweep, results: Sequence[PointResult]) -> list[Blend]:
    """The equal average of the best point of each kind, and the average with fitted shares.

    results : who may be in it, of each kind the best first. None where there are fewer than two
        kinds; no fitted one where fewer tell what ranks, or a repeat has a single fold, which
        leaves nothing to learn shares from.
    """
    members = list(_by_kind(results).values())
    if len(members) < 2:
        return []
    n_members = len(members)
    equal_QM = np.full((len(sweep.splits), n_members), 1 / n_members)
    blends = [_blend(EQUAL, sweep, members, equal_QM[0], equal_QM)]

    others = other_folds(sweep.splits)
    members = _fitted_members(sweep, members)
    if all(others) and len(members) > 1:
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
    # products of errors once for all splits, of the points that any split chose
    used = sorted(set().union(*chosen_QM))
    gram_QUU = _grams(sweep, [results[g] for g in used])
    for q, known in enumerate(others):
        position = {results[g].name: used.index(g) for g in chosen_QM[q]}
        each_kind = [results[g] for g in chosen_QM[q]]
        for b, name in enumerate(names):
            if name == EQUAL:
                members = each_kind
                own_M = np.full(len(members), 1 / len(members))
                by_judge = dict.fromkeys(known, own_M)
            else:
                members = _fitted_members(sweep, each_kind)
                at = [position[member.name] for member in members]
                gram_QMM = gram_QUU[:, at][:, :, at]
                own_M = simplex_weights(gram_QMM[known].sum(0))
                by_judge = _shares_without_each(gram_QMM, known)

            own_BQ[b, q] = _error(sweep, members, own_M, sweep.splits[q])
            # inf stays where nothing can judge, so that such a blend is never chosen
            if by_judge:
                others_BQ[b, q] = 0
            for o, share_M in by_judge.items():
                others_BQ[b, q] += _error(sweep, members, share_M, sweep.splits[o])
    return BlendErrors(list(names), own_BQ, others_BQ)


def _chosen_without(
    sweep: Sweep,
    results: Sequence[PointResult],
    others: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Of each split, positions of each kind's best point by the other folds of its repeat."""
    errors = []
    for result in results:
        scored_RNK = scored_of(sweep, result.held_out["last"])
        errors.append(sweep.by.split_errors(sweep.scored_truth_NK, scored_RNK, sweep.splits))
    errors_GQ = np.stack(errors)

    position = {result.name: g for g, result in enumerate(results)}
    chosen = []
    for known in others:
        error_G = errors_GQ[:, known].sum(1)
        # stable: of equal errors the first on the board, on every machine
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
    """Of some images of a repeat, as an ensemble predicts: raw numbers averaged by share over the
    members that tell numbers, classes over those that tell classes; constraints and rules come
    after.

    Its arrays are (1, n, ...).
    """
    raw = []
    told = []
    telling = []
    tells_numbers = []
    for m, member in enumerate(members):
        prediction = member.held_out["last"]
        tells_numbers.append(kinds.tells_numbers(member.config.head.kind))
        raw.append(prediction.raw_RNK[repeat, images_n])
        if prediction.word_RNC is not None:
            telling.append(m)
            told.append(prediction.word_RNC[repeat, images_n])

    raw_nK = np.tensordot(shares_among(share_M, tells_numbers), np.stack(raw), 1)
    word_1nC = None
    telling_M = share_M[telling]
    if telling_M.sum() > 0:
        word_nC = np.average(told, axis=0, weights=telling_M)
        word_1nC = word_nC[None]
    like = members[0].held_out["last"]
    return Prediction(raw_nK[None], word_1nC, members[0].config, like.targets)


def _fitted_members(sweep: Sweep, members: Sequence[PointResult]) -> list[PointResult]:
    """Those whose shares are fitted: what ranks is theirs to tell."""
    return [member for member in members if tells_ranked(sweep.by, member.config.head.kind)]


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
    raw_RNK = np.full_like(like.raw_RNK, np.nan)
    word_RNC = None
    for split, own_M in zip(sweep.splits, share_QM, strict=True):
        part = blended(members, own_M, split.repeat, split.val_N)
        raw_RNK[split.repeat, split.val_N] = part.raw_RNK[0]
        if part.word_RNC is None:
            continue
        if word_RNC is None:
            n_words = part.word_RNC.shape[-1]
            word_RNC = np.full((*raw_RNK.shape[:2], n_words), np.nan)
        word_RNC[split.repeat, split.val_N] = part.word_RNC[0]
    prediction = Prediction(raw_RNK, word_RNC, like.config, like.targets)
    return Blend(name, members, share_M, share_QM, {"last": prediction})


def _grams(sweep: Sweep, members: Sequence[PointResult]) -> np.ndarray:
    """(Q, M, M) products of the members' errors on what each split holds out.

    Of classes those are the errors of probabilities, whatever ranks.
    """
    predictions = [member.held_out["last"] for member in members]
    grams = []
    for split in sweep.splits:
        at = split.repeat, split.val_N
        if sweep.by.name in CLASS_SCORES:
            truth_nL = sweep.true_words_NC[split.val_N]
            told = [each.word_RNC[at] for each in predictions]
            weight_L = word_weights(sweep.data.targets)
        else:
            truth_nL = sweep.data.truth_table_NK[split.val_N]
            told = [each.values_RNK[at] for each in predictions]
            weight_L = squared_weights(sweep, split.repeat)
        grams.append(error_gram(truth_nL, np.stack(told), weight_L))
    return np.stack(grams)


def word_weights(targets: Targets) -> np.ndarray:
    """(C,) what an error of each word's probability weighs: as its class in the score."""
    weights = []
    for target, own in zip(targets.classes, targets.word_slices, strict=True):
        weights += [target.weight] * (own.stop - own.start)
    return np.array(weights)


def squared_weights(sweep: Sweep, repeat: int) -> np.ndarray:
    """(K,) what a squared error of each number weighs: as in the score, by absolute errors as in
    the mean of R2."""
    by = replace(sweep.by, name="r2") if sweep.by.name == "mae" else sweep.by
    weight_K = by.error_weights(sweep.scored_truth_NK[held_out_of(sweep.splits, repeat)])
    return weight_K[: sweep.data.targets.n_predicted]


def _error(
    sweep: Sweep,
    members: Sequence[PointResult],
    share_M: np.ndarray,
    split: Split,
) -> float:
    """Error of a blend on what a split holds out."""
    prediction = blended(members, share_M, split.repeat, split.val_N)
    truth_NK = sweep.scored_truth_NK
    weight_K = sweep.by.error_weights(truth_NK[held_out_of(sweep.splits, split.repeat)])
    scored_1nK = sweep.scored(prediction.values_RNK, prediction.word_RNC, split.val_N)
    error_n = sweep.by.errors(truth_NK[split.val_N], scored_1nK[0], weight_K)
    return float(error_n.sum())
