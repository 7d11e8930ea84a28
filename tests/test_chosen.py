"""What a sweep chose, point or blend: predicted with, bundled, explained, and predicted out of fold
as the board scored it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from preset import TARGETS

from featurestore.errors import InputError
from predictor.bundle.bundle import load_members
from predictor.members.sweep_rows import row_of
from trainer.loop.chosen import chosen_run
from trainer.score.metrics import weighted_r2

TRUE = [f"true_{name}" for name in TARGETS]


@pytest.fixture(scope="module")
def blended(sweep, tmp_path_factory) -> Path:
    """The small sweep as if its equal blend came first."""
    copy = shutil.copytree(sweep, tmp_path_factory.mktemp("blended") / sweep.name)
    summary = json.loads((copy / "summary.json").read_text())
    (equal,) = [blend for blend in summary["blends"] if blend["name"] == "blend_equal"]
    summary["chosen"] = {name: equal[name] for name in ("name", "members", "shares")}
    (copy / "summary.json").write_text(json.dumps(summary))
    return copy


def predicted(pasture, out, *options, code=0) -> tuple[pd.DataFrame, str]:
    given = ["--data", pasture, "--tta", 1, "--device", "cpu", "--out", out / "submission.csv"]
    said = biomass("predict", *given, *options, code=code).stderr
    return pd.read_csv(out / "predictions.csv", dtype={"image_id": str}), said


def test_the_board_holds_blends_and_the_ridge_beside_it_is_a_run(sweep):
    summary = json.loads((sweep / "summary.json").read_text())
    table = pd.read_csv(sweep / "summary.csv").set_index("name")
    assert summary["chosen"]["name"] == table.index[0]
    for blend in summary["blends"]:
        assert len(blend["members"]) == 6 and sum(blend["shares"]) == pytest.approx(1)
        assert blend["last"]["per_repeat_R"] == [
            pytest.approx(table.loc[blend["name"], "score_last"])
        ]
    for name in ("blend_equal", "blend_fitted", "ridge"):
        rows = pd.read_csv(sweep / name / "oof.csv")
        score = weighted_r2(rows[TRUE], rows[list(TARGETS)])
        assert score == pytest.approx(table.loc[name, "score_last"], abs=1e-9)
    assert (sweep / "ridge" / "weights" / "last_fold1.safetensors").is_file()
    assert set(summary["honest"]["blends"]) == {"blend_equal", "blend_fitted"}


@pytest.mark.parametrize("name", ["blend_equal", "blend_fitted"])
def test_a_blend_predicts_out_of_fold_what_the_board_scored(sweep, pasture, tmp_path, name):
    out = tmp_path / "o.csv"
    given = ["--oof", "--data", pasture, "--sweep", sweep, "--point", name, "--out", out]
    said = biomass("predict", *given, "--device", "cpu").stderr
    assert str(sweep / name / "oof.csv") in said
    known = pd.read_csv(sweep / name / "oof.csv")
    ours = pd.read_csv(out)
    assert ours["image_id"].tolist() == known["image_id"].tolist()
    np.testing.assert_allclose(ours[list(TARGETS)], known[list(TARGETS)], rtol=1e-4, atol=1e-3)
    refused = biomass("predict", *given, "--epoch", "best", code=3).stderr
    assert "scored by last weights alone" in refused


def test_the_chosen_blend_predicts_unless_a_point_is_named(blended, pasture, tmp_path):
    best = json.loads((blended / "summary.json").read_text())["best"]
    table, said = predicted(pasture, tmp_path, "--sweep", blended)
    assert "the chosen blend of this sweep" in said and f"0.167 {best}" in said
    runs = sorted(blended.glob("00*"))
    ensemble, _ = predicted(pasture, tmp_path, *[word for run in runs for word in ("--run", run)])
    np.testing.assert_allclose(table[list(TARGETS)], ensemble[list(TARGETS)], rtol=1e-6, atol=2e-6)

    by_name, said = predicted(pasture, tmp_path, "--sweep", blended, "--point", best)
    assert "that was asked for" in said
    alone, _ = predicted(pasture, tmp_path, "--run", blended / best)
    assert by_name.equals(alone)
    assert predicted(pasture, tmp_path, "--sweep", blended, "--point", "best")[0].equals(alone)
    assert row_of(blended, best[:3]) == blended / best
    with pytest.raises(
        InputError, match="points begin with blend_; give more of the name:\n  blend"
    ):
        row_of(blended, "blend_")
    with pytest.raises(InputError, match="no point ''; it has"):
        row_of(blended, "")
    unknown = ["--sweep", blended, "--point", "gone"]
    assert "no point gone; it has" in predicted(pasture, tmp_path, *unknown, code=3)[1]
    wrong = ["--run", blended / best, "--point", "best"]
    assert "--point names a row" in predicted(pasture, tmp_path, *wrong, code=2)[1]


def test_a_sweep_of_before_blends_predicts_with_its_best_run(blended, tmp_path):
    copy = shutil.copytree(blended, tmp_path / "old")
    summary = json.loads((copy / "summary.json").read_text())
    del summary["chosen"]
    (copy / "summary.json").write_text(json.dumps(summary))
    assert chosen_run(copy) == copy / summary["best"]


def test_intervals_and_pictures_of_a_chosen_blend(blended, pasture, tmp_path):
    options = ["--sweep", blended, "--interval", 0.5, "--explain", tmp_path / "seen"]
    table, _ = predicted(pasture, tmp_path, *options)
    assert (table["Dry_Total_g_low"] <= table["Dry_Total_g_high"]).all()
    assert (tmp_path / "seen" / "report.html").is_file()


def test_best_weights_of_a_blend_are_its_regressors_only_ones(blended, pasture, tmp_path):
    predicted(pasture, tmp_path, "--sweep", blended, "--epoch", "best")
    regressor = blended / "005_small__kind-ridge"
    best, _ = predicted(pasture, tmp_path, "--run", regressor, "--epoch", "best")
    assert best.equals(predicted(pasture, tmp_path, "--run", regressor)[0])


def test_a_bundle_holds_what_was_chosen_with_its_shares(blended, pasture, tmp_path):
    biomass("bundle", blended, "--epoch", "best", "--out", tmp_path / "b")
    members = load_members(tmp_path / "b")
    assert [m.weight for m in members] == [pytest.approx(1 / 6)] * 6
    weights = {m.config.head.kind: m.weights for m in members}
    assert weights["density"] == "best" and weights["ridge"] == "last"
    again = load_members(tmp_path / "b", weights="best")
    assert [m.weights for m in again] == [m.weights for m in members]
    biomass("bundle", blended, "--points", "best", "--out", tmp_path / "c")
    assert len(load_members(tmp_path / "c")) == 1
    biomass("bundle", blended, "--points", "ridge", "--out", tmp_path / "d")
    assert [m.name for m in load_members(tmp_path / "d")] == ["ridge"]


def test_a_refit_is_every_member_of_what_was_chosen_with_its_share(blended, pasture, tmp_path):
    """Two members, to be quick: one by steps and one fitted, of which no mass is negative;
    predicted with and bundled."""
    folder = shutil.copytree(blended, tmp_path / "sweep")
    summary = json.loads((folder / "summary.json").read_text())
    members = [name for name in summary["chosen"]["members"] if "gating" in name or "gpr" in name]
    summary["chosen"] |= {"members": members, "shares": [0.25, 0.75]}
    (folder / "summary.json").write_text(json.dumps(summary))

    biomass("train", "--resume", folder, "--fold", "all")
    table, _ = predicted(pasture, tmp_path, "--run", folder / "refit")
    alone = [predicted(pasture, tmp_path, "--run", folder / "refit" / name)[0] for name in members]
    mean = 0.25 * alone[0]["Dry_Total_g"] + 0.75 * alone[1]["Dry_Total_g"]
    np.testing.assert_allclose(table["Dry_Total_g"], mean, rtol=1e-5)

    biomass("bundle", folder / "refit", "--out", tmp_path / "bundle")
    bundled, _ = predicted(pasture, tmp_path, "--bundle", tmp_path / "bundle")
    assert bundled[list(TARGETS)].equals(table[list(TARGETS)])


def test_a_refit_made_before_there_were_blends_stays_a_run(blended, pasture, tmp_path):
    folder = shutil.copytree(blended, tmp_path / "sweep")
    summary = json.loads((folder / "summary.json").read_text())
    density = next(name for name in summary["chosen"]["members"] if "density" in name)
    summary |= {"best": density, "chosen": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    biomass("train", "--resume", folder, "--fold", "all")
    by_name, _ = predicted(pasture, tmp_path, "--run", folder / "refit")

    # as it was laid out then: the run's files in refit/ itself
    (folder / "refit" / "blend.json").unlink()
    (folder / "refit" / density).rename(tmp_path / "run")
    (folder / "refit").rmdir()
    (tmp_path / "run").rename(folder / "refit")
    again, _ = predicted(pasture, tmp_path, "--run", folder / "refit")
    assert again.equals(by_name)
    said = biomass("train", "--resume", folder, "--fold", "all", code=3).stderr
    assert "nothing to resume" in said
