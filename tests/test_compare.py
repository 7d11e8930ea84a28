"""trainer.judge.compare: the arithmetic on sums against drawing images, the intervals against data
whose truth is known."""

from functools import partial

import numpy as np
import pytest
from preset import BY

from trainer.judge import compare as comparing
from trainer.judge.compare import LEAST_SITES, SiteSums, draw_sites, interval_levels
from trainer.score.metrics import weighted_r2

compare = partial(comparing.compare, BY)
compare_pairs = partial(comparing.compare_pairs, BY)


def pasture(seed: int, n_sites: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Truth (N, 5) and site of each image; sites of 1 to 9 images, alike within."""
    rng = np.random.default_rng(seed)
    site_N = np.repeat(np.arange(n_sites), rng.integers(1, 10, n_sites))
    green, dead, clover = (
        rng.gamma(2, [14, 6, 4], (n_sites, 3))[site_N] * rng.gamma(8, 1 / 8, (len(site_N), 3))
    ).T
    return np.stack([green, dead, clover, green + clover, green + clover + dead], 1), site_N


def predictions(
    truth_N5: np.ndarray, site_N: np.ndarray, seed: int, sd: float, n_repeats: int = 1
) -> np.ndarray:
    """(R, N, 5) that err by whole sites, which repeats share, and by image."""
    rng = np.random.default_rng([seed, 1])
    by_site_S5 = rng.normal(0, sd, (site_N.max() + 1, 5))
    return truth_N5 + by_site_S5[site_N] + rng.normal(0, sd / 2, (n_repeats, *truth_N5.shape))


def two_points(seed: int, sds: tuple[float, float], n_sites: int = 30) -> tuple:
    truth_N5, site_N = pasture(seed, n_sites)
    return (
        truth_N5,
        np.stack([predictions(truth_N5, site_N, seed + 1000 * i, sd) for i, sd in enumerate(sds)]),
        site_N,
    )


def slow_differences(truth_N5, prediction_GRN5, site_N, counts_BS) -> np.ndarray:
    """(B, G) by gathering the images of every drawn site and scoring each repeat."""
    scores = []
    for counts_S in counts_BS:
        rows = np.concatenate(
            [np.flatnonzero(site_N == s) for s in np.repeat(np.arange(len(counts_S)), counts_S)]
        )
        held_out = ~np.isnan(prediction_GRN5[0][:, rows])
        truth = np.where(held_out, truth_N5[rows], np.nan)
        scores.append(np.nanmean(weighted_r2(truth, prediction_GRN5[:, :, rows]), 1))
    return np.array(scores) - np.array(scores)[:, [1]]


def test_sums_are_the_scores_of_drawn_images():
    truth, site = pasture(0, 11)
    prediction = np.stack([predictions(truth, site, g, 6 + g) for g in range(3)])
    counts = draw_sites(11, 40, seed=3)
    expected = slow_differences(truth, prediction, site, counts)
    np.testing.assert_allclose(
        SiteSums.of(BY, truth, prediction, site).differences(counts, 1), expected, atol=1e-12
    )


def test_repeats_that_hold_out_different_images_are_scored_on_their_own():
    truth, site = pasture(0, 11)
    truth[5, 2] = np.nan  # a mass nobody knows
    prediction = np.stack([predictions(truth, site, g, 6 + g, n_repeats=2) for g in range(3)])
    prediction[:, 0, site < 4] = prediction[:, 1, site > 8] = np.nan
    counts = draw_sites(11, 40, seed=3)
    expected = slow_differences(truth, prediction, site, counts)
    np.testing.assert_allclose(
        SiteSums.of(BY, truth, prediction, site).differences(counts, 1), expected, atol=1e-12
    )


def test_the_difference_is_that_of_the_scores():
    truth, site = pasture(0)
    prediction = np.stack([predictions(truth, site, g, 6 + g, n_repeats=3) for g in range(2)])
    score_GR = weighted_r2(truth, prediction)
    found = compare(truth, prediction, site, 0, seed=0)[1]
    assert found.difference == pytest.approx(score_GR[1].mean() - score_GR[0].mean(), abs=1e-12)
    assert found.sd == pytest.approx((score_GR[1] - score_GR[0]).std(ddof=1), rel=1e-9)


def test_a_real_difference_is_told_apart():
    _, worse = compare(*two_points(0, (5, 15)), reference=0, seed=0)
    assert worse.apart and worse.low < worse.difference < worse.high < 0


def test_noise_is_not_told_apart():
    _, other = compare(*two_points(0, (10, 10)), reference=0, seed=0)
    assert not other.apart and other.low < 0 < other.high


def test_intervals_hold_the_truth_as_often_as_they_say():
    level = [
        compare(*two_points(seed, (8, 8)), reference=0, seed=seed, n_resamples=400)[1]
        for seed in range(200)
    ]
    # .95 +- three standard errors, .02 below for skew
    assert 0.90 <= np.mean([not c.apart for c in level]) <= 0.98


def test_images_of_a_site_are_no_independent_evidence():
    # Ten times the photographs of the same visits, with the same errors, say nothing new.
    truth, prediction, site = two_points(0, (8, 9))
    once = compare(truth, prediction, site, 0, seed=0)
    tenfold = compare(
        np.tile(truth, (10, 1)), np.tile(prediction, (10, 1)), np.tile(site, 10), 0, seed=0
    )
    assert tenfold[1].low == pytest.approx(once[1].low) and tenfold[1].high == pytest.approx(
        once[1].high
    )


def test_the_order_of_images_and_the_names_of_sites_do_not_matter():
    truth, prediction, site = two_points(0, (8, 9))
    order = np.random.default_rng(0).permutation(len(site))
    names = np.array([f"Tas_{s:02d}" for s in site])
    found = compare(truth[order], prediction[:, :, order], names[order], 0, seed=0)[1]
    assert found.low == pytest.approx(compare(truth, prediction, site, 0, seed=0)[1].low)


def test_identical_points_differ_by_nothing():
    truth, prediction, site = two_points(0, (8, 8))
    found = compare(truth, np.stack([prediction[0], prediction[0]]), site, 0, seed=0)
    assert [(c.difference, c.low, c.high, c.apart) for c in found] == [(0, 0, 0, False)] * 2


def test_one_seed_one_result():
    data = two_points(0, (8, 9))
    first, again, other = (compare(*data, reference=0, seed=seed)[1] for seed in (4, 4, 5))
    assert (first.low, first.high) == (again.low, again.high) != (other.low, other.high)


@pytest.mark.parametrize("n_sites", [1, 2, LEAST_SITES - 1])
def test_few_sites_tell_nothing_apart(n_sites):
    _, worse = compare(*two_points(0, (1, 30), n_sites), reference=0, seed=0)
    assert worse.difference < 0 and not worse.apart and np.isnan([worse.low, worse.high]).all()


def test_a_site_without_known_truths_is_none():
    truth, prediction, site = two_points(0, (1, 30), LEAST_SITES)
    truth[site == 2] = np.nan
    assert np.isnan(compare(truth, prediction, site, 0, seed=0)[1].low)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_point_that_failed_is_not_compared(value):
    truth, prediction, site = two_points(0, (5, 15))
    failed = prediction[1].copy()
    failed[0, site == 3] = value
    same, worse, nothing = compare(truth, np.stack([*prediction, failed]), site, 0, seed=0)
    assert (
        np.isnan([nothing.difference, nothing.low, nothing.high, nothing.sd]).all()
        and not nothing.apart
    )
    assert same.difference == 0 and worse.apart


def test_a_reference_that_failed_leaves_nothing_to_compare_with():
    truth, prediction, site = two_points(0, (5, 15))
    prediction[0, 0, 3] = np.nan
    found = compare(truth, prediction, site, 0, seed=0)
    assert np.isnan([c.difference for c in found]).all() and not any(c.apart for c in found)


def test_equal_truths_are_no_score():
    _, prediction, site = two_points(0, (5, 15))
    _, other = compare(np.full(prediction.shape[2:], 0.1), prediction, site, 0, seed=0)
    assert np.isnan([other.difference, other.low]).all() and not other.apart


def test_one_repeat_has_no_spread():
    assert np.isnan(compare(*two_points(0, (5, 15)), reference=0, seed=0)[1].sd)


def test_draws_are_as_many_sites_as_there_are():
    counts = draw_sites(7, 50, seed=0)
    assert (
        counts.shape == (50, 7)
        and (counts.sum(1) == 7).all()
        and (counts == draw_sites(7, 50, seed=0)).all()
    )


def test_levels_go_to_those_of_a_normal():
    assert interval_levels(10**6) == pytest.approx((0.025, 0.975), abs=1e-5)
    # t of 29 degrees 2.0452, times sqrt(30 / 29)
    assert interval_levels(30)[0] == pytest.approx(0.0188, abs=1e-4)


def test_fields_are_plain_numbers():
    assert {
        type(value)
        for value in vars(compare(*two_points(0, (5, 15)), reference=0, seed=0)[1]).values()
    } == {float, bool}


def test_pairs_are_what_each_comparison_says():
    truth_N5, site_N = pasture(1)
    points = np.stack([predictions(truth_N5, site_N, seed, 3.0, n_repeats=2) for seed in range(4)])
    pairs = compare_pairs(truth_N5, points, site_N, seed=7)
    assert list(pairs) == [(a, b) for a in range(4) for b in range(a + 1, 4)]
    assert pairs[1, 3] == compare(truth_N5, points, site_N, 1, seed=7)[3]


def test_of_many_sites_some_are_drawn_together(monkeypatch):
    """The difference is the same, its interval nearly: groups are as independent as sites."""
    truth, points, site = two_points(1, (6, 6.5), n_sites=900)
    monkeypatch.setattr(comparing, "MOST_DRAWN", 300)
    (_, grouped) = compare(truth, points, site, 0, seed=0)
    monkeypatch.undo()
    (_, alone) = compare(truth, points, site, 0, seed=0)
    assert grouped.difference == pytest.approx(alone.difference, abs=1e-12)
    widths = [each.high - each.low for each in (grouped, alone)]
    assert widths[0] == pytest.approx(widths[1], rel=0.15) and widths[0] != widths[1]


def test_memory_does_not_grow_with_images_times_sites():
    """A matrix of 100,000 images x 25,000 sites would have 20 GB."""
    n = 100_000
    truth_N5 = np.random.default_rng(0).gamma(2, 5, (n, 5))
    points_GRN5 = np.stack([truth_N5 + 1, truth_N5 * 1.1])[:, None]
    sums = SiteSums.of(BY, truth_N5, points_GRN5, np.arange(n) % 25_000)
    assert sums.n_sites == comparing.MOST_DRAWN
    np.testing.assert_allclose(sums.error_GRS[0].sum(), n * np.sum(BY.weights), rtol=1e-9)
