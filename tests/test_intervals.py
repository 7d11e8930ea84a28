"""Intervals from out-of-fold errors: what they promise of new sites, by drawn sites whose structure
is known."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from members import drawn_table, member, oof_table
from preset import TARGETS, csiro

from featurestore.errors import InputError, UsageError
from predictor.extras.blend import weighed
from predictor.extras.intervals import Intervals, site_quantile, within
from predictor.predictor import Predictor, predict
from trainer.loop.chosen import best_run


def drawn(
    rng: np.random.Generator, n_sites: int, site_sd: float = 1.0, most: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and sites: every site has an effect of its own that all its photographs share, and 1
    to `most` photographs."""
    site_N = np.repeat(np.arange(n_sites), rng.integers(1, most + 1, n_sites))
    effect_S = site_sd * rng.normal(size=n_sites)
    return np.abs(effect_S[site_N] + 0.5 * rng.normal(size=len(site_N))), site_N


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("site_sd", [0.0, 1.0, 3.0])
def test_new_sites_are_covered_at_the_level(level, site_sd):
    """Over 2000 draws of 19 known sites and a new one; photographs of a new site count together, as
    one site."""
    rng = np.random.default_rng(int(100 * level + site_sd))
    covered = []
    for _ in range(2000):
        score_N, site_N = drawn(rng, 20, site_sd)
        new = site_N == 19
        covered.append((score_N[new] <= site_quantile(score_N[~new], site_N[~new], level)).mean())
    se = np.std(covered) / np.sqrt(len(covered))
    assert np.mean(covered) >= level - 3 * se
    # and not by being wide: one site's weight more at most
    assert np.mean(covered) <= level + 1 / 20 + 3 * se


def test_photographs_as_the_unit_would_cover_too_little():
    """Large sites that err alike, small ones that err more: weighing photographs covers them too
    seldom, sites do not."""
    rng, by_site, by_image = np.random.default_rng(0), [], []
    for _ in range(500):
        size_S = rng.choice([1, 40], 20)
        site_N = np.repeat(np.arange(20), size_S)
        score_N = np.abs(rng.normal(size=20) * np.where(size_S == 1, 5, 1))[site_N]
        new = site_N == 19
        by_site.append((score_N[new] <= site_quantile(score_N[~new], site_N[~new], 0.8)).mean())
        by_image.append(
            (score_N[new] <= site_quantile(score_N[~new], np.arange((~new).sum()), 0.8)).mean()
        )
    assert np.mean(by_site) > 0.78 > 0.65 > np.mean(by_image)


def test_a_site_of_a_hundred_does_not_drown_one_of_one():
    score_N, site_N = np.r_[np.zeros(100), 5.0], np.r_[np.zeros(100), 1]
    # of three sites, the new one among them, the first is a third
    assert site_quantile(score_N, site_N, 1 / 3) == 0
    assert site_quantile(score_N, site_N, 0.34) == 5
    assert site_quantile(score_N, site_N, 0.67) == np.inf


def test_the_quantile_of_single_photographs_is_split_conformals():
    score_N = np.random.default_rng(0).permutation(np.arange(1.0, 20))
    assert site_quantile(score_N, np.arange(19), 0.9) == 18  # the ceil(.9 x 20)th of 19
    assert site_quantile(score_N, np.arange(19), 0.95) == 19
    assert site_quantile(score_N, np.arange(19), 0.96) == np.inf


def test_intervals_cover_new_photographs_and_widen_with_the_mass(tmp_path):
    intervals = Intervals.of([member(tmp_path / "run", drawn_table(0, 60))], 0.9)
    new = drawn_table(1, 3000, n_repeats=1)
    table = intervals.added(new[["image_id", *TARGETS]])
    inside = (
        pd.DataFrame(within(table, new[[f"true_{t}" for t in TARGETS]].to_numpy(), csiro()))
        .groupby(new["site"])
        .mean()
    )
    # sixty sites' quantile: their own luck is in it
    assert (inside.mean() > 0.85).all() and (inside.mean() < 0.98).all()
    assert (table[[f"{t}_low" for t in TARGETS]].to_numpy() >= 0).all()
    width = table["Dry_Total_g_high"] - table["Dry_Total_g"]
    np.testing.assert_allclose(width / np.sqrt(table["Dry_Total_g"] + 1), intervals.quantile_K[4])
    assert list(table)[6:8] == ["Dry_Green_g_low", "Dry_Green_g_high"]


def test_what_stands_in_for_a_photograph_has_the_intervals_of_the_mean(tmp_path):
    one = member(tmp_path / "run", drawn_table(0, 30))
    intervals = Intervals.of([one], 0.9)
    row = pd.DataFrame(
        {"image_id": ["A", "B"], **{t: one.training_mean_sd[0][k] for k, t in enumerate(TARGETS)}}
    )
    table = intervals.added(row, stand_ins={"B"})
    heads, mean = table["Dry_Total_g_high"] - table["Dry_Total_g"]
    assert mean == pytest.approx(intervals.mean_width_K[4]) and mean > 1.5 * heads


def test_residuals_are_of_predictions_averaged_over_repeats(tmp_path):
    truth_N5 = np.full((10, 5), 24.0)
    apart = np.array([[[4.0]], [[-4.0]]])
    noisy, shifted = (
        oof_table(truth_N5, truth_N5 + shift, range(10)) for shift in (apart, apart + 2)
    )
    assert Intervals.of([member(tmp_path / "noisy", noisy)], 0.9).quantile_K == pytest.approx(
        np.zeros(5)
    )
    assert Intervals.of([member(tmp_path / "shifted", shifted)], 0.9).quantile_K == pytest.approx(
        2 / np.sqrt(27)
    )


def test_an_ensembles_errors_are_those_of_its_average(tmp_path):
    truth_N5 = np.full((10, 5), 24.0)
    high, low = (
        member(tmp_path / name, oof_table(truth_N5, truth_N5[None] + shift, range(10)))
        for name, shift in (("high", 3.0), ("low", -1.0))
    )
    assert Intervals.of([high, low.weighing(3)], 0.9).quantile_K == pytest.approx(np.zeros(5))
    assert Intervals.of([high, low], 0.9).quantile_K == pytest.approx(1 / np.sqrt(26))


def test_members_of_other_photographs_or_labels_are_refused(tmp_path):
    table = drawn_table(0, 12)
    first = member(tmp_path / "a", table)
    fewer = member(tmp_path / "b", table[table["image_id"] != "ID0"])
    with pytest.raises(
        InputError,
        match=f"a {table['image_id'].nunique()}, b {table['image_id'].nunique() - 1}, of which",
    ):
        Intervals.of([first, fewer], 0.8)
    other = member(
        tmp_path / "c", table.assign(true_GDM_g=table["true_GDM_g"] + (table["image_id"] == "ID3"))
    )
    with pytest.raises(
        InputError, match="a and c learned other truths or sites of 1 photographs.*\n  ID3"
    ):
        Intervals.of([first, other], 0.8)


def test_levels_that_cannot_be_are_refused(tmp_path):
    few = member(tmp_path / "few", drawn_table(0, 9))
    assert np.isfinite(Intervals.of([few], 0.9).quantile_K).all()
    with pytest.raises(
        InputError,
        match=r"--interval 0\.91: 9 sites with a known Dry_Green_g support .* 9 / 10 = 0\.900",
    ):
        Intervals.of([few], 0.91)
    for level in (0, 1, 90, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            Intervals.of([few], level)


def test_what_is_known_of_one_target_at_few_sites_supports_little(tmp_path):
    table = drawn_table(0, 9)
    clover = member(
        tmp_path / "run",
        table.assign(true_Dry_Clover_g=table["true_Dry_Clover_g"].where(table["site"] < "s2")),
    )
    assert Intervals.of([clover], 0.6).n_sites == 2
    with pytest.raises(
        InputError, match=r"2 sites with a known Dry_Clover_g support levels up to 2 / 3"
    ):
        Intervals.of([clover], 0.9)


def test_a_head_that_failed_gives_no_intervals(tmp_path):
    table = drawn_table(0, 9)
    failed = member(tmp_path / "run", table.assign(GDM_g=table["GDM_g"].where(table.index > 0)))
    with pytest.raises(InputError, match="1 out-of-fold predictions are not finite.*\n  ID0"):
        Intervals.of([failed], 0.8)


def test_predict_adds_intervals_or_refuses_before_the_work(sweep, pasture, tmp_path):
    out = tmp_path / "s.csv"
    options = ["--data", pasture, "--sweep", sweep, "--out", out, "--device", "cpu", "--tta", 1]
    biomass("predict", *options, "--interval", 0.5)
    wide = pd.read_csv(tmp_path / "s.predictions.csv")
    assert list(wide)[11:] == [f"{target}_{end}" for target in TARGETS for end in ("low", "high")]
    for target in TARGETS:
        assert (wide[f"{target}_low"] >= 0).all() and (wide[f"{target}_low"] <= wide[target]).all()
        assert (wide[f"{target}_high"] >= wide[target]).all()
    from_python = predict(
        best_run(sweep), pasture, tta=1, progress=False, interval=0.5, device="cpu"
    )
    np.testing.assert_allclose(from_python[list(wide)[1:]], wide[list(wide)[1:]], atol=1e-6)
    out.unlink()
    assert (
        "support levels up to" in biomass("predict", *options, "--interval", 0.9, code=3).stderr
        and not out.exists()
    )


def test_ways_to_predict_whose_errors_are_not_known_are_refused(sweep, pasture, tmp_path):
    options = [
        "predict",
        "--data",
        pasture,
        "--sweep",
        sweep,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
        "--tta",
        1,
        "--interval",
        0.5,
    ]
    said = biomass(*options, "--average", "median", "--constraints", "clip", code=2).stderr
    assert (
        "constraints 'order' alone; leave out --interval, or --average median and --constraints "
        "clip" in said
    )
    assert not (tmp_path / "s.csv").exists()
    biomass(*options, "--average", "mean", "--constraints", "order")


def test_a_bundle_gives_its_runs_intervals(sweep, pasture, tmp_path):
    runs = sorted(sweep.glob("00[25]*"))
    biomass("bundle", *runs, "--blend", "fitted", "--out", tmp_path / "b")
    by_bundle, by_runs = (
        Predictor.load(each, device="cpu", weigh=weigh).intervals(0.5)
        for each, weigh in ((tmp_path / "b", None), (runs, partial(weighed, how="fitted", say=str)))
    )
    np.testing.assert_array_equal(by_bundle.quantile_K, by_runs.quantile_K)
    biomass(
        "predict",
        "--data",
        pasture,
        "--bundle",
        tmp_path / "b",
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
        "--tta",
        1,
        "--interval",
        0.5,
    )
    assert "Dry_Total_g_high" in pd.read_csv(tmp_path / "s.predictions.csv")


def test_heads_without_an_out_of_fold_table_have_none(tmp_path):
    refit = member(tmp_path / "refit", drawn_table(0, 9))
    (tmp_path / "refit" / "oof.csv").unlink()
    with pytest.raises(
        InputError, match="--interval needs .* refit has no oof.csv.* Leave --interval out"
    ):
        Intervals.of([refit], 0.5)
