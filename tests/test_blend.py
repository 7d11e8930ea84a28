"""Weights of an ensemble: the least squares on the simplex, and an honest word about what they
gain."""

import re

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from hypothesis import given, settings
from hypothesis import strategies as st
from members import drawn_table, member, oof_table
from preset import TARGETS
from scipy.optimize import minimize

from featurestore.errors import InputError
from predictor.extras.blend import blend_weights, weighed
from trainer.judge.simplex import simplex_weights
from trainer.score.metrics import weighted_r2


def members(tmp_path, seed: int, sds, n_sites: int = 30):
    """Members that err by noise of these sds, independently, on the same photographs."""
    rng = np.random.default_rng(seed)
    site_N = np.repeat(np.arange(n_sites), rng.integers(1, 8, n_sites))
    truth_N5 = rng.gamma(2, 15, (len(site_N), 5))
    return [
        member(
            tmp_path / f"m{i}",
            oof_table(truth_N5, truth_N5 + sd * rng.normal(size=(2, *truth_N5.shape)), site_N),
        )
        for i, sd in enumerate(sds)
    ]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_no_weights_on_the_simplex_are_better(seed, n_members):
    rng = np.random.default_rng(seed)
    error_XM = (
        rng.normal(size=(40, n_members)) + rng.normal(size=(40, 1)) + rng.normal(size=n_members)
    )
    gram_MM = error_XM.T @ error_XM
    w_M = simplex_weights(gram_MM)
    assert (w_M >= 0).all() and w_M.sum() == pytest.approx(1)
    found = minimize(
        lambda w: w @ gram_MM @ w,
        np.full(n_members, 1 / n_members),
        jac=lambda w: 2 * gram_MM @ w,
        method="SLSQP",
        bounds=[(0, 1)] * n_members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )
    assert w_M @ gram_MM @ w_M <= found.fun * (1 + 1e-6)


@pytest.mark.parametrize("copies", [2, 5])
def test_members_that_are_alike_share(copies):
    rng = np.random.default_rng(0)
    error_XM = np.repeat(rng.normal(size=(40, 1)), copies, axis=1)
    w_M = simplex_weights(error_XM.T @ error_XM)
    assert np.isfinite(w_M).all() and w_M.sum() == pytest.approx(1)
    assert simplex_weights(np.zeros((3, 3))).tolist() == pytest.approx([1 / 3] * 3)


def test_better_members_weigh_more_and_the_gain_is_there(tmp_path):
    """Errors that are independent: the best weights go with 1 / variance."""
    weights, text = blend_weights(members(tmp_path, 0, [2, 4, 20]), "fitted")
    assert weights == pytest.approx([0.8, 0.2, 0.008], abs=0.03)
    assert [float(x) for x in re.findall(r"(0\.\d{3}) m\d", text)] == pytest.approx(
        weights, abs=6e-4
    )
    equal, fitted, honest, gain = (float(x) for x in re.findall(r"[+-]?0\.\d{4}", text))
    assert (
        equal < honest <= fitted
        and gain == pytest.approx(honest - equal, abs=2e-4)
        and "30 sites" in text
    )


def test_equal_weights_are_told_the_same_figures(tmp_path):
    alike = members(tmp_path, 1, [2, 4])
    weights, text = blend_weights(alike, "equal")
    assert (
        weights == [0.5, 0.5]
        and text.splitlines()[1:] == blend_weights(alike, "fitted")[1].splitlines()[1:]
    )
    assert blend_weights(alike[:1], "fitted")[0] == [1.0]


def test_the_scores_are_the_contests_and_leave_sites_out(tmp_path):
    """Slowly, by the words: each site predicted by weights fitted on the others' photographs."""
    both = members(tmp_path, 2, [8, 9], n_sites=5)
    _, text = blend_weights(both, "fitted")
    tables = [
        each.oof.groupby("image_id")[[*TARGETS, *(f"true_{t}" for t in TARGETS)]].mean()
        for each in both
    ]
    site = (
        both[0].oof.drop_duplicates("image_id").set_index("image_id")["site"].loc[tables[0].index]
    )
    truth_N5 = tables[0][[f"true_{t}" for t in TARGETS]].to_numpy()
    first_N5, second_N5 = (table[list(TARGETS)].to_numpy() for table in tables)
    shares = np.linspace(0, 1, 2001)
    left_out_N5 = np.empty_like(truth_N5)
    for name in site.unique():
        other = (site != name).to_numpy()
        mixed = (
            shares[:, None, None] * first_N5[other] + (1 - shares[:, None, None]) * second_N5[other]
        )
        # the score's weights, without its denominator: the least weighted squared error
        share = shares[
            (((mixed - truth_N5[other]) ** 2) @ [0.1, 0.1, 0.1, 0.2, 0.5]).sum(1).argmin()
        ]
        left_out_N5[~other] = share * first_N5[~other] + (1 - share) * second_N5[~other]
    equal, honest = (
        weighted_r2(truth_N5, (first_N5 + second_N5) / 2),
        weighted_r2(truth_N5, left_out_N5),
    )
    found = [float(x) for x in re.findall(r"[+-]?0\.\d{4}", text)]
    assert [found[0], found[2], found[3]] == pytest.approx(
        [equal, honest, honest - equal], abs=1e-4
    )


def test_noise_makes_fitting_look_better_than_it_is(tmp_path):
    """Ten members of one worth and few sites: what is fitted gains on its own photographs, and
    loses elsewhere."""
    text = blend_weights(members(tmp_path, 3, [5] * 10, n_sites=4), "fitted")[1]
    equal, fitted, honest, gain = (float(x) for x in re.findall(r"[+-]?0\.\d{4}", text))
    assert fitted > equal > honest and gain < 0


def test_photographs_that_some_members_lack_are_left_out_and_said(tmp_path):
    table = drawn_table(0, 8)
    n = table["image_id"].nunique()
    both = [
        member(tmp_path / "a", table),
        member(tmp_path / "b", table[table["image_id"] != "ID0"]),
    ]
    _, text = blend_weights(both, "fitted")
    assert f"a {n}, b {n - 1}, of which {n - 1} are in all and count" in text
    with pytest.raises(InputError, match="of which 0 are in all"):
        blend_weights(
            [both[1], member(tmp_path / "c", table[table["image_id"] == "ID0"])], "fitted"
        )


def test_unknown_truths_do_not_count(tmp_path):
    table = drawn_table(0, 8)
    wrong = table.assign(Dry_Dead_g=table["Dry_Dead_g"].where(table["site"] != "s1", 1000.0))
    known = {"true_Dry_Dead_g": table["true_Dry_Dead_g"].where(table["site"] != "s1")}
    pair = [
        member(tmp_path / "a", table.assign(**known)),
        member(tmp_path / "b", wrong.assign(**known)),
    ]
    equal, fitted, honest = re.findall(r"0\.\d{4}", blend_weights(pair, "fitted")[1])[:3]
    assert equal == fitted == honest  # alike wherever anything is known


def test_one_site_says_nothing_of_others(tmp_path):
    text = blend_weights(members(tmp_path, 0, [2, 4], n_sites=1), "fitted")[1]
    assert "one site alone" in text


def test_predict_says_the_gain_and_uses_the_weights(sweep, pasture, tmp_path):
    runs = [argument for run in sorted(sweep.glob("00[25]*")) for argument in ("--run", run)]
    tables = {}
    for how in ("equal", "fitted"):
        out = tmp_path / how / "s.csv"
        out.parent.mkdir()
        said = biomass(
            "predict",
            "--data",
            pasture,
            *runs,
            "--out",
            out,
            "--device",
            "cpu",
            "--tta",
            1,
            "--blend",
            how,
        ).stderr
        assert re.search(
            r"weights: 0|1\.\d{3} 002.*, .* 005.*\nout-of-fold score: equal weights", said
        )
        tables[how] = pd.read_csv(out.with_suffix(".predictions.csv"))
    assert re.findall(r"([01]\.\d{3}) 00[25]", said) != ["0.500", "0.500"]
    assert not np.allclose(tables["equal"]["Dry_Total_g"], tables["fitted"]["Dry_Total_g"])


def test_a_member_that_weighs_nothing_need_not_run(tmp_path):
    both = members(tmp_path, 0, [2, 4])
    shifted = member(
        tmp_path / "far", both[0].oof.assign(**{t: both[0].oof[t] + 50 for t in TARGETS})
    )
    said: list[str] = []
    assert [each.name for each in weighed([shifted, *both], "fitted", said.append)] == ["m0", "m1"]
    assert "0.000 far" in said[0]


def test_without_out_of_fold_tables_shares_are_equal_or_refused(tmp_path):
    both = [*members(tmp_path, 0, [2]), member(tmp_path / "refit", drawn_table(0, 9))]
    (tmp_path / "refit" / "oof.csv").unlink()
    assert blend_weights(both, "equal") == ([0.5, 0.5], "weights: 0.500 m0, 0.500 refit")
    with pytest.raises(InputError, match="--blend fitted needs .* refit has no oof.csv"):
        blend_weights(both, "fitted")


def test_a_bundles_members_can_be_weighed_anew(sweep, pasture, tmp_path):
    runs = sorted(sweep.glob("00[25]*"))
    biomass("bundle", *runs, "--out", tmp_path / "b")
    options = ["--data", pasture, "--device", "cpu", "--tta", 1, "--blend", "fitted"]
    by_runs = [word for run in runs for word in ("--run", run)]
    said = [
        biomass("predict", *options, *source, "--out", tmp_path / f"{i}.csv").stderr
        for i, source in enumerate((by_runs, ["--bundle", tmp_path / "b"]))
    ]
    assert [re.findall("weights: .*", each) for each in said] == [
        re.findall("weights: .*", said[0])
    ] * 2
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()


def test_members_that_are_almost_alike_are_blended():
    """scipy below 1.15 gave up on a third of such ensembles."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        error_N = rng.normal(size=50)
        errors_MN = error_N + 1e-10 * rng.normal(size=(4, 50))
        weight_M = simplex_weights(errors_MN @ errors_MN.T)
        assert (weight_M >= 0).all() and weight_M.sum() == pytest.approx(1)
