"""featurestore.photos.targets, trainer.score: any targets, against accounts that know nothing of
ours."""

import numpy as np
import pandas as pd
import pytest
from preset import TARGETS, WEIGHTS, csiro
from scipy.optimize import nnls
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
)

from featurestore.errors import InputError
from featurestore.photos.labels import values_of, words_of
from featurestore.photos.targets import CSIRO, Targets
from trainer.data.stream import Split
from trainer.judge.compare import TargetSums, draw_sites
from trainer.score.constraints import constrained
from trainer.score.metrics import Score, class_columns

TREE = {
    "whole": {"weight": 0.5, "sum_of": ["a", "b", "rest"]},
    "rest": {"weight": 0.2, "sum_of": ["c", "d"]},
    "a": {"weight": 0.3},
    "b": {"weight": 0.1},
    "c": {"weight": 0.4},
    "d": {"weight": 0.0},
}
MIXED = {
    "height": {"kind": "level", "weight": 2},
    "mass": {},
    "cover": {"kind": "share", "weight": 0.5},
    "species": {"kind": "class", "auxiliary": True},
    "vigour": {"kind": "level", "auxiliary": True},
}


def test_the_preset_is_the_contest():
    assert CSIRO.names == TARGETS and CSIRO.weights == WEIGHTS
    assert Targets.from_json(csiro(["Tas"]).to_json()) == csiro(["Tas"])
    assert Score.of(None, CSIRO).name == "contest"


def test_weights_that_are_not_said_follow_from_what_is():
    targets = Targets.of(MIXED | {"spare": {"weight": 3, "loss_weight": 0.25}})
    told = {each.name: (each.weight, each.loss_weight) for each in targets.each}
    assert told["height"] == (2, 2) and told["mass"] == (1, 1) and told["spare"] == (3, 0.25)
    assert told["species"] == told["vigour"] == (0, 0.1)


def test_heads_compute_amounts_then_levels_then_shares():
    targets = Targets.of(MIXED)
    assert [each.name for each in targets.outputs] == ["mass", "height", "vigour", "cover"]
    assert targets.names == ("height", "mass", "cover", "vigour")
    assert targets.in_table_order(np.array([1, 2, 3, 4])).tolist() == [2, 1, 4, 3]
    assert targets.in_head_order(np.array([2, 1, 4, 3])).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "table, why",
    [
        ({"a": {"sum_of": ["b", "c"]}, "b": {}}, "targets.a.sum_of: c is no target"),
        ({"a": {"sum_of": ["b", "c"]}, "b": {}, "c": {"kind": "level"}}, "only amounts add up"),
        ({"a": {"sum_of": ["b"]}, "b": {}}, "two parts or more"),
        ({"a": {"sum_of": ["b", "c"]}, "b": {"sum_of": ["a", "d"]}, "c": {}, "d": {}}, "circle"),
        (
            {"a": {"sum_of": ["c", "d"]}, "b": {"sum_of": ["c", "d"]}, "c": {}, "d": {}},
            "a part of a already",
        ),
    ],
)
def test_sums_that_cannot_be_are_refused_by_name(table, why):
    with pytest.raises(InputError, match=why):
        Targets.of(table)


def test_a_tree_of_sums_is_the_nearest_one_that_scipy_finds():
    targets = Targets.of(TREE)
    raw_NK = np.random.default_rng(0).normal(3, 6, (200, 6))
    found_NK = constrained(raw_NK, targets)
    parts = np.array(
        [[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    # what is not scored weighs a hundredth of the largest
    root_K = np.sqrt([0.5, 0.2, 0.3, 0.1, 0.4, 0.005])
    for raw_K, found_K in zip(raw_NK, found_NK, strict=True):
        leaves, _ = nnls(root_K[:, None] * parts, root_K * raw_K)
        np.testing.assert_allclose(found_K, parts @ leaves, atol=1e-7)
    whole, rest, a, b, c, d = found_NK.T
    assert (whole == a + b + rest).all() and (rest == c + d).all() and (found_NK >= 0).all()


def test_a_chain_of_other_names_is_balanced_as_the_contests():
    names = dict(zip(TARGETS, ("g", "d", "c", "m", "t"), strict=True))
    table = {}
    for target in CSIRO.predicted:
        parts = [names[part] for part in target.sum_of]
        table[names[target.name]] = {"weight": target.weight, "sum_of": parts}
    chain = Targets.of(table)
    raw_N5 = np.random.default_rng(0).normal(3, 6, (100, 5))
    theirs = constrained(raw_N5, CSIRO)
    order = [["t", "m", "g", "d", "c"].index(each.name) for each in chain.outputs]
    np.testing.assert_array_equal(constrained(raw_N5[:, order], chain), theirs)


def test_rows_that_are_nan_stay_nan_and_spoil_no_other():
    targets = Targets.of(TREE)
    raw_NK = np.random.default_rng(0).normal(3, 6, (5, 6))
    whole_NK = constrained(raw_NK, targets)
    raw_NK[2] = np.nan
    found_NK = constrained(raw_NK, targets)
    assert np.isnan(found_NK[2]).all()
    np.testing.assert_allclose(np.delete(found_NK, 2, 0), np.delete(whole_NK, 2, 0), atol=1e-9)


def test_levels_stay_as_they_are_and_shares_within_0_and_1():
    targets = Targets.of(MIXED)
    found = constrained(np.array([[-2.0, -3, -4, 1.5]]), targets)  # mass, height, vigour, cover
    assert found.tolist() == [[-3, 0, 1, -4]]


@pytest.mark.parametrize("name", ["r2", "rmse", "mae"])
def test_scores_of_numbers_are_those_of_sklearn(name):
    targets = Targets.of(MIXED)
    rng = np.random.default_rng(0)
    truth_NK = rng.normal(size=(30, 4))
    truth_NK[rng.random((30, 4)) < 0.2] = np.nan
    guess_NK = np.nan_to_num(truth_NK) + rng.normal(size=(30, 4))
    of_target = {
        "r2": r2_score,
        "rmse": mean_squared_error,
        "mae": mean_absolute_error,
    }[name]
    weights = np.array([2, 1, 0.5, 0])
    known = ~np.isnan(truth_NK)
    each = [of_target(truth_NK[k, i], guess_NK[k, i]) for i, k in enumerate(known.T)]
    expected = np.average(each, weights=weights)
    if name == "rmse":
        expected = expected**0.5
    by = Score.of(name, targets)
    assert by(truth_NK, guess_NK) == pytest.approx(expected)
    # and the same from the errors of two folds
    halves = [Split(0, f, np.arange(30)[f::2], np.arange(30)[1 - f :: 2]) for f in range(2)]
    errors_Q = by.split_errors(truth_NK, guess_NK[None], halves)
    assert by.of_errors(errors_Q.sum(), truth_NK) == pytest.approx(expected)
    assert by.larger_is_better == (name == "r2")


def test_a_target_that_does_not_vary_has_no_r2_and_the_others_count():
    targets = Targets.of({"a": {}, "b": {"weight": 9}})
    rng = np.random.default_rng(0)
    truth_NK = np.stack([rng.normal(size=9), np.full(9, 0.1)], 1)
    guess_NK = truth_NK + rng.normal(size=(9, 2))
    assert Score.of("r2", targets)(truth_NK, guess_NK) == pytest.approx(
        r2_score(truth_NK[:, 0], guess_NK[:, 0])
    )
    assert np.isnan(Score.of("r2", targets)(np.full((9, 2), np.nan), guess_NK))


def test_what_has_no_weight_may_be_nan_in_every_score():
    targets = Targets.of({"a": {}, "b": {"auxiliary": True}, "c": {"kind": "class"}})
    rng = np.random.default_rng(0)
    truth_NK = rng.normal(size=(20, 3)) * [1, 1, 0]
    guess_NK = truth_NK + rng.normal(size=(20, 3))
    guess_NK[:, 1:] = np.nan  # a regressor tells no class
    splits = [Split(0, 0, np.arange(10), np.arange(10, 20))]
    for name in ("contest", "r2", "rmse", "mae"):
        by = Score.of(name, targets)
        assert by.weights == (1, 0, 0) and np.isfinite(by(truth_NK, guess_NK))
        assert np.isfinite(by.split_errors(truth_NK, guess_NK[None], splits)).all()
    own = r2_score(truth_NK[:, 0], guess_NK[:, 0])
    assert Score.of("contest", targets)(truth_NK, guess_NK) == pytest.approx(own)


@pytest.mark.parametrize("name", ["log_loss", "accuracy"])
def test_scores_of_classes_are_those_of_sklearn(name):
    targets = Targets.of({"kind": {"kind": "class"}, "side": {"kind": "class", "auxiliary": True}})
    targets = targets.with_values({"kind": ["a", "b", "c"], "side": ["x", "y"]})
    rng = np.random.default_rng(0)
    word_N = rng.integers(0, 3, 40)
    true_NC = np.hstack([np.eye(3)[word_N], np.eye(2)[rng.integers(0, 2, 40)]])
    true_NC[7, :3] = 0  # not known
    share_NC = np.hstack([rng.dirichlet(np.ones(3), 40), rng.dirichlet(np.ones(2), 40)])
    by = Score.of(name, targets)
    losses_NW = class_columns(by, targets, true_NC, share_NC)
    truth_NW = np.where(np.isnan(losses_NW), np.nan, 0.0)
    known = np.delete(np.arange(40), 7)
    expected = log_loss(word_N[known], share_NC[known, :3])
    if name == "accuracy":
        expected = accuracy_score(word_N[known], share_NC[known, :3].argmax(1))
    assert losses_NW.shape == (40, 1) and by(truth_NW, losses_NW) == pytest.approx(expected)
    assert Score.of(None, targets).name == "log_loss"


@pytest.mark.parametrize("name", ["r2", "rmse", "mae"])
def test_scores_of_drawn_sites_are_those_of_their_images(name):
    by = Score(name, (2.0, 1.0, 0.0))
    rng = np.random.default_rng(0)
    site_N = rng.integers(0, 8, 50)
    truth_NK = rng.normal(size=(50, 3)) + site_N[:, None]
    truth_NK[rng.random((50, 3)) < 0.1] = np.nan
    guess_GRNK = np.nan_to_num(truth_NK) + rng.normal(size=(2, 3, 50, 3))
    sums = TargetSums.of(by, truth_NK, guess_GRNK, site_N)
    counts_BS = draw_sites(8, 20, seed=3)
    expected = []
    for counts_S in counts_BS:
        rows = np.concatenate([np.flatnonzero(site_N == s) for s in np.repeat(range(8), counts_S)])
        scores_GR = by(truth_NK[rows], guess_GRNK[:, :, rows])
        expected.append((scores_GR - scores_GR[1]).mean(1))
    np.testing.assert_allclose(sums.differences(counts_BS, 1), expected, atol=1e-9)


def catalog() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": ["A", "B", "C"],
            "mass": [1.5, np.nan, 0],
            "height": [-2.0, 3, 4],
            "cover": [0.0, 1, 0.5],
            "species": ["rye", "", "NA"],
            "vigour": ["1", "", "-3"],
        }
    )


def test_labels_may_be_missing():
    targets = Targets.of(MIXED).with_values({"species": ["oat", "rye"]})
    values_NK = values_of(catalog(), targets)  # mass, height, vigour, cover
    np.testing.assert_array_equal(
        values_NK, [[1.5, -2, 1, 0], [np.nan, 3, np.nan, 1], [0, 4, -3, 0.5]]
    )
    assert words_of(catalog(), targets).tolist() == [[0, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    "column, cell, why",
    [
        ("mass", -1.0, "targets.mass: 1 cell is not a number from 0, as an amount is"),
        ("cover", 1.5, "targets.cover: 1 cell is not a number from 0 to 1"),
        (
            "vigour",
            "tall",
            r"1 cell is not a number; words are of a class \(kind: class\):\n  C: 'tall'",
        ),
    ],
)
def test_labels_that_cannot_be_are_refused_by_target_and_image(column, cell, why):
    frame = catalog()
    frame.loc[2, column] = cell
    with pytest.raises(InputError, match=why):
        values_of(frame, Targets.of(MIXED))


def test_a_column_that_is_not_there_is_refused_with_those_that_are():
    told = r"targets.mass: the store has no such column; it has cover.*write targets: \{cover: "
    with pytest.raises(InputError, match=told):
        values_of(catalog().drop(columns="mass"), Targets.of(MIXED))
