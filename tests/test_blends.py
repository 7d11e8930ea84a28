"""trainer.loop.blends: blends of a board, told a second time by loops over folds, scipy and plain
averages."""

from types import SimpleNamespace

import numpy as np
import pytest
from preset import BY, IN_TABLES, MASSES, WEIGHTS, csiro
from scipy.optimize import minimize

from trainer.data.stream import Split
from trainer.loop.blends import EQUAL, FITTED, blend_errors, blend_members, form_blends
from trainer.loop.results import PointResult, Prediction

N_IMAGES, N_REPEATS = 40, 2


def folds(n_folds: int) -> list[Split]:
    rng = np.random.default_rng(0)
    splits = []
    for repeat in range(N_REPEATS):
        fold_N = rng.permutation(N_IMAGES) % n_folds
        for fold in range(n_folds):
            held_out = np.flatnonzero(fold_N == fold)
            splits.append(Split(repeat, fold, np.flatnonzero(fold_N != fold), held_out))
    return splits


def drawn(n_folds: int, sds: dict[str, float]) -> tuple[SimpleNamespace, list[PointResult]]:
    """A sweep whose points err by noise, and whose masses always are in order: name, its kind and
    sd of its noise."""
    rng = np.random.default_rng(1)

    def in_order(parts_N3):
        green, dead, clover = np.moveaxis(parts_N3, -1, 0)
        by_name = {
            "Dry_Total_g": green + dead + clover,
            "GDM_g": green + clover,
            "Dry_Green_g": green,
            "Dry_Dead_g": dead,
            "Dry_Clover_g": clover,
        }
        return np.stack([by_name[name] for name in MASSES], -1)

    parts_N3 = rng.gamma(3, 10, (N_IMAGES, 3))
    truth_N5 = in_order(parts_N3)
    truth_N5[3, 2] = np.nan
    inference = SimpleNamespace(constraints="order", postprocess=[])
    results = []
    for index, (name, sd) in enumerate(sds.items()):
        noise = sd * rng.uniform(-1, 1, (N_REPEATS, N_IMAGES, 3))
        config = SimpleNamespace(head=SimpleNamespace(kind=name.split("-")[0]), inference=inference)
        raw_RN5 = in_order(np.maximum(parts_N3 + noise, 0.1))
        last = Prediction(raw_RN5, None, config, csiro())
        blank = np.zeros(0)
        results.append(PointResult(index, name, config, {"last": last}, blank, blank, blank))
    truth_table_NK = truth_N5[:, IN_TABLES]
    sweep = SimpleNamespace(
        splits=folds(n_folds),
        by=BY,
        scored_truth_NK=truth_table_NK,
        data=SimpleNamespace(truth_table_NK=truth_table_NK, targets=csiro()),
        scored=lambda values_NK, word_NC, images_N=None: values_NK,
    )
    return sweep, results


def best_shares(truth_N5, prediction_MN5):
    """By a general minimiser."""

    def error(share_M):
        difference = np.tensordot(share_M, prediction_MN5, 1) - truth_N5
        return np.nansum(np.array(WEIGHTS) * difference**2) / 1e3

    n = len(prediction_MN5)
    constraint = {"type": "eq", "fun": lambda share_M: share_M.sum() - 1}
    return minimize(
        error,
        np.full(n, 1 / n),
        bounds=[(0, 1)] * n,
        constraints=constraint,
        options={"ftol": 1e-14, "maxiter": 1000},
    ).x


KINDS = {"gpr-1": 9.0, "svr-1": 12.0, "gpr-2": 14.0, "pls-1": 40.0}


def test_blends_hold_the_best_point_of_each_kind():
    sweep, results = drawn(4, KINDS)
    equal, fitted = form_blends(sweep, results)
    for blend in (equal, fitted):
        assert [member.name for member in blend.members] == ["gpr-1", "svr-1", "pls-1"]
    masses_MRN5 = np.stack([m.held_out["last"].values_RNK for m in equal.members])
    np.testing.assert_allclose(equal.held_out["last"].values_RNK, masses_MRN5.mean(0))
    assert equal.share_M == pytest.approx([1 / 3] * 3) and fitted.share_M.sum() == pytest.approx(1)


def test_shares_of_a_fold_are_learned_on_the_other_folds_of_its_repeat():
    sweep, results = drawn(4, KINDS)
    _, fitted = form_blends(sweep, results)
    truth_N5 = sweep.data.truth_table_NK
    masses_MRN5 = np.stack([m.held_out["last"].values_RNK for m in fitted.members])
    for split, share_M in zip(sweep.splits, fitted.share_QM, strict=True):
        own_MN5 = masses_MRN5[:, split.repeat]
        expected_M = best_shares(truth_N5[split.train_N], own_MN5[:, split.train_N])
        assert share_M == pytest.approx(expected_M, abs=1e-4)
        np.testing.assert_allclose(
            fitted.held_out["last"].values_RNK[split.repeat, split.val_N],
            np.tensordot(share_M, own_MN5[:, split.val_N], 1),
        )
    # what is saved learned from all rows of both repeats
    twice_N5 = np.concatenate([truth_N5] * N_REPEATS)
    all_MX5 = masses_MRN5.reshape(len(fitted.members), -1, 5)
    assert fitted.share_M == pytest.approx(best_shares(twice_N5, all_MX5), abs=1e-4)


def test_a_lone_kind_is_not_blended():
    sweep, results = drawn(4, KINDS)
    assert form_blends(sweep, [results[0], results[2]]) == []


def test_members_did_not_fail_and_ridge_beside_stands_in_for_one_of_the_grid():
    sweep, results = drawn(4, KINDS | {"ridge-1": 9.0, "ridge": 8.0})
    sweep.base = SimpleNamespace(inference=results[0].config.inference)
    failed = PointResult(**(vars(results[1]) | {"failure": "diverged"}))
    *points, ridge_point, beside = [results[0], failed, *results[2:]]

    def names(choices, ridge):
        return [member.name for member in blend_members(sweep, choices, ridge)]

    assert names(points, beside) == ["gpr-1", "gpr-2", "pls-1", "ridge"]
    assert names([*points, ridge_point], beside) == ["gpr-1", "gpr-2", "pls-1", "ridge-1"]
    assert names(points, None) == ["gpr-1", "gpr-2", "pls-1"]
    sweep.base.inference = SimpleNamespace(constraints="order", postprocess=["a rule"])
    assert names(points, beside) == ["gpr-1", "gpr-2", "pls-1"]


def test_one_fold_alone_leaves_nothing_to_learn_shares_from():
    sweep, results = drawn(4, KINDS)
    sweep.splits = sweep.splits[:1]
    assert [blend.name for blend in form_blends(sweep, results)] == [EQUAL]


def test_honest_errors_saw_their_fold_neither_in_members_nor_in_shares():
    # a-1 and a-2 err alike, so that folds disagree which is better
    sweep, results = drawn(4, {"gpr-1": 12.0, "svr-1": 12.5, "gpr-2": 12.0, "pls-1": 15.0})
    truth_N5 = sweep.data.truth_table_NK
    masses_GRN5 = np.stack([r.held_out["last"].values_RNK for r in results])
    found = blend_errors(sweep, results, [EQUAL, FITTED])

    def error(share_M, members, repeat, images):
        blended = np.tensordot(share_M, masses_GRN5[members][:, repeat, images], 1)
        return np.nansum(np.array(WEIGHTS) * (blended - truth_N5[images]) ** 2)

    chosen_a = set()
    for q, split in enumerate(sweep.splits):
        others = [s for s in sweep.splits if s.repeat == split.repeat and s.fold != split.fold]
        by_others = [
            sum(error(np.ones(1), [g], s.repeat, s.val_N) for s in others) for g in range(4)
        ]
        members = sorted([0 if by_others[0] <= by_others[2] else 2, 1, 3])
        chosen_a.add(0 in members)
        third = np.full(3, 1 / 3)
        masses_MN5 = masses_GRN5[members][:, split.repeat]
        own_M = best_shares(truth_N5[split.train_N], masses_MN5[:, split.train_N])
        expected_own = [error(s, members, split.repeat, split.val_N) for s in (third, own_M)]
        judged = [0.0, 0.0]
        for other in others:
            rest = np.setdiff1d(split.train_N, other.val_N)
            rest_M = best_shares(truth_N5[rest], masses_MN5[:, rest])
            for b, share_M in enumerate((third, rest_M)):
                judged[b] += error(share_M, members, split.repeat, other.val_N)
        np.testing.assert_allclose(found.own_BQ[:, q], expected_own, rtol=1e-3)
        np.testing.assert_allclose(found.others_BQ[:, q], judged, rtol=1e-3)
    assert chosen_a == {True, False}


def test_two_folds_are_too_few_to_judge_a_fitted_blend():
    sweep, results = drawn(2, KINDS)
    found = blend_errors(sweep, results, [EQUAL, FITTED])
    assert np.isfinite(found.others_BQ[0]).all() and np.isinf(found.others_BQ[1]).all()
