"""trainer.score.metrics: scores against numbers worked out by hand, constraints against solvers
that know nothing of ours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from preset import TARGETS, WEIGHTS
from sklearn.isotonic import IsotonicRegression

from trainer.score.constraints import CONSTRAINTS, clip_constraint, order_constraint
from trainer.score.metrics import target_r2, weighted_r2

TRUTH = np.array([[1.0, 0, 0, 1, 1], [0, 0, 0, 0, 4]])
GRAMS = st.floats(-200, 200)


def test_weighted_r2_by_hand():
    # Mean = (.1 * 1 + .2 * 1 + .5 * (1 + 4)) / 2 = 1.4; denominator = sum w y^2 - 2 * 1.4^2 = 8.8 -
    # 3.92 = 4.88.
    # errors .5 * 1 + .1 * 1 + .2 * 4 = 1.4
    prediction = TRUTH + np.array([[0, 0, 0, 0, 1], [1, 0, 0, 2, 0]])
    assert weighted_r2(TRUTH, prediction) == pytest.approx(1 - 1.4 / 4.88)


def test_weighted_r2_of_the_weighted_mean_is_zero():
    assert weighted_r2(TRUTH, np.full((2, 5), 1.4)) == pytest.approx(0)


def test_weighted_r2_is_not_the_mean_of_targets():
    # errors .1 * .5 + .2 * .5 + .5 * 4.5 = 2.4
    own_means = np.broadcast_to(TRUTH.mean(axis=0), TRUTH.shape)
    assert weighted_r2(TRUTH, own_means) == pytest.approx(1 - 2.4 / 4.88)
    assert np.nanmax(target_r2(TRUTH, own_means)) == 0


def test_unknown_truth_does_not_count():
    truth = np.array([[np.nan, np.nan, np.nan, 1, 1], [np.nan, 0, np.nan, 2, 4]])
    # Weights .1 + .2 + .2 + .5 + .5 = 1.5, mean = 3.1 / 1.5; denominator = 9.5 - 3.1^2 / 1.5; error
    # .5 * 1.
    prediction = np.array([[9.0, 9, 9, 1, 2], [9, 0, 9, 2, 4]])
    assert weighted_r2(truth, prediction) == pytest.approx(1 - 0.5 / (9.5 - 3.1**2 / 1.5))


@pytest.mark.parametrize(
    "truth",
    [np.full((3, 5), 0.1), np.full((3, 5), np.nan), np.empty((0, 5))],
    ids=["constant", "unknown", "no rows"],
)
def test_nothing_to_explain_is_nan(truth):
    assert np.isnan(weighted_r2(truth, np.zeros(truth.shape)))
    assert np.isnan(target_r2(truth, np.zeros(truth.shape))).all()


def test_one_image_has_a_score_over_its_targets():
    assert (
        weighted_r2(TRUTH[:1], TRUTH[:1]) == 1 and np.isnan(target_r2(TRUTH[:1], TRUTH[:1])).all()
    )


def test_a_prediction_of_nan_is_no_score():
    assert np.isnan(weighted_r2(TRUTH, np.full((2, 5), np.nan)))


def test_target_r2_by_hand():
    prediction = TRUTH + np.array([[0.5, 1, 0, 0, 3], [0.5, 0, 0, 0, 0]])
    assert target_r2(TRUTH, prediction) == pytest.approx([0, np.nan, np.nan, 1, -1], nan_ok=True)


@pytest.mark.parametrize("score", [weighted_r2, target_r2], ids=lambda score: score.__name__)
def test_a_batch_is_its_members(score):
    rng = np.random.default_rng(0)
    truth, batch = rng.normal(size=(7, 5)), rng.normal(size=(2, 3, 7, 5))
    expected = [[score(truth, batch[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(score(truth, batch), expected, rtol=1e-12)


def test_a_score_is_a_plain_float():
    assert isinstance(weighted_r2(TRUTH.astype(np.float32), TRUTH.astype(np.float32)), float)


def test_a_stretched_axis_is_refused():
    with pytest.raises(ValueError, match=r"truth is \(2, 5\), prediction is \(1, 5\)"):
        weighted_r2(TRUTH, TRUTH[:1])


def test_order_constraint_by_hand():
    # Total 1 < GDM 8 pool to (.5 * 1 + .2 * 8) / .7 = 3; Green -1 is clipped.
    assert order_constraint([1.0], [8.0], [-1.0])[0] == pytest.approx([0, 0, 3, 3, 3])


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (9, 3), elements=GRAMS))
def test_order_constraint_is_isotonic_regression(raw):
    weights = [WEIGHTS[TARGETS.index(name)] for name in ("Dry_Total_g", "GDM_g", "Dry_Green_g")]
    solver = IsotonicRegression(increasing=False, y_min=0)
    expected = [solver.fit_transform([0, 1, 2], row, sample_weight=weights) for row in raw]
    np.testing.assert_allclose(order_constraint(*raw.T)[:, [4, 3, 0]], expected, atol=1e-9)


def test_no_ordered_triple_is_nearer():
    grid = np.arange(0, 5, 0.25)
    total, gdm, green = np.meshgrid(grid, grid, grid, indexing="ij")
    ordered = np.stack([total, gdm, green], -1)[(total >= gdm) & (gdm >= green)]
    for raw in np.random.default_rng(1).uniform(-1, 5, (50, 3)):
        found = order_constraint(*raw[:, None])[0, [4, 3, 0]]
        distance = ((ordered - raw) ** 2) @ [0.5, 0.2, 0.1]
        assert ((found - raw) ** 2) @ [0.5, 0.2, 0.1] <= distance.min() + 1e-12


def test_clip_constraint_by_hand():
    assert clip_constraint([1.0, 9], [8.0, 5], [-1.0, 6]).tolist() == [
        [0, 0, 8, 8, 8],
        [6, 3, 0, 6, 9],
    ]


@pytest.mark.parametrize("name", CONSTRAINTS)
@given(raw=arrays(np.float64, (4, 3), elements=GRAMS))
def test_constraints_hold(name, raw):
    green, dead, clover, gdm, total = CONSTRAINTS[name](*raw.T).T
    assert (green >= 0).all() and (gdm >= green).all() and (total >= gdm).all()
    assert (dead >= 0).all() and (clover >= 0).all()
    np.testing.assert_allclose([green + clover, gdm + dead], [gdm, total], atol=1e-9)


@pytest.mark.parametrize("name", CONSTRAINTS)
@given(raw=arrays(np.float64, (4, 3), elements=st.floats(0, 200)))
def test_masses_in_order_keep_every_bit(name, raw):
    green, gdm, total = np.sort(raw, axis=1).T
    assert (
        CONSTRAINTS[name](total, gdm, green)[:, [0, 3, 4]] == np.stack([green, gdm, total], 1)
    ).all()


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_keep_leading_axes_and_nan(name):
    gdm = np.ones((2, 3, 7))
    gdm[1, 2, 3] = np.nan
    constrained = CONSTRAINTS[name](np.full((2, 3, 7), 2.0), gdm, np.ones((2, 3, 7)))
    assert constrained.shape == (2, 3, 7, 5) and np.argwhere(
        np.isnan(constrained).any(-1)
    ).tolist() == [[1, 2, 3]]


def test_equal_truths_below_zero_have_no_r2_beside_one_that_is_unknown():
    truth_N5 = np.full((3, 5), -1.5)
    truth_N5[2] = np.nan
    assert np.isnan(target_r2(truth_N5, np.zeros((3, 5)))).all()
