"""A sweep whose board the ridge beside its points leads: it is ranked, chosen, and predicts."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from preset import TARGETS

from predictor.bundle.bundle import load_members
from predictor.members.sweep_rows import outdone
from service.explore.sweeps import describe, plan
from trainer.loop.runs import SweepFolder
from trainer.score.metrics import weighted_r2

YAML = """
experiment: {{name: lazy, seed: 3}}
dataset: {{store: {store}}}
head: {{kind: {kind}, shared_hidden: 8, gate_hidden: 6}}
trainer: {{num_epochs: 1, batch_size: 4}}
optimization: {{lr: 1.0e-9, weight_decay: 0.01}}
inference: {{tta_indices: [0], postprocess: {rules}}}
cv: {{n_folds: 2, groups: date}}
"""
TRUE = [f"true_{name}" for name in TARGETS]


def trained(folder, store, kind="density", rules="[]"):
    """Heads that learn nothing."""
    (folder / "lazy.yaml").write_text(YAML.format(store=store, kind=kind, rules=rules))
    config = ["--config", folder / "lazy.yaml", "--out", folder / "runs"]
    biomass("train", *config, "--device", "cpu")
    return next((folder / "runs").iterdir())


@pytest.fixture(scope="module")
def sweep(built, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("lazy"), built)


def predicted(pasture, out, *options):
    given = ["--data", pasture, "--tta", 1, "--device", "cpu", "--out", out / "submission.csv"]
    said = biomass("predict", *given, *options).stderr
    return pd.read_csv(out / "predictions.csv"), said


def test_ridge_takes_its_place_on_the_board_and_others_are_compared_with_it(sweep):
    summary = json.loads((sweep / "summary.json").read_text())
    board = pd.read_csv(sweep / "summary.csv").set_index("name")
    assert board.index[0] == "ridge" and board.index[-1] == "mean"
    assert board.index.is_unique and "001_lazy" in board.index
    assert summary["chosen"] == {"name": "ridge", "members": ["ridge"], "shares": [1.0]}
    assert summary["best"] == "001_lazy"

    rows = {name: pd.read_csv(sweep / name / "oof.csv") for name in ("ridge", "blend_equal")}
    scores = {name: weighted_r2(r[TRUE], r[list(TARGETS)]) for name, r in rows.items()}
    apart = scores["blend_equal"] - scores["ridge"]
    assert board.loc["blend_equal", "vs_best"] == pytest.approx(apart) and apart < 0
    assert board.loc["ridge", "vs_best"] == 0 and pd.isna(board.loc["ridge", "failed"])
    # a choice for each fold may take it too
    assert summary["honest"]["points"] == ["001_lazy", "ridge"]
    assert [point["name"] for point in summary["points"]] == ["001_lazy"]
    assert set(summary["baselines"]) == {"mean", "ridge"}
    about = describe(sweep, plan(sweep))
    assert (about["chosen"], about["best"]) == ("ridge", "001_lazy")


def test_the_board_says_first_that_it_beats_the_best_head(sweep):
    board = pd.read_csv(sweep / "summary.csv").set_index("name")["score_last"]
    first = json.loads((sweep / "summary.json").read_text())["headline"]
    assert first == (
        f"ridge ({board['ridge']:.4f}) beats the best trained head, 001_lazy "
        f"({board['001_lazy']:.4f}); `biomass predict` takes ridge"
    )
    result = SweepFolder(sweep).result()
    assert result.table().startswith(f"{first}\n")
    assert describe(sweep, plan(sweep))["notes"][0] == first


def test_predict_takes_it_out_of_fold_and_with_intervals_too(sweep, pasture, tmp_path):
    table, said = predicted(pasture, tmp_path, "--sweep", sweep, "--interval", 0.5)
    assert "the ridge on this sweep's board, which it chose" in said
    assert (table["Dry_Total_g_low"] <= table["Dry_Total_g_high"]).all()
    by_run, _ = predicted(pasture, tmp_path, "--run", sweep / "ridge")
    assert table[list(TARGETS)].equals(by_run[list(TARGETS)])
    assert "scored better" not in said
    best, said = predicted(pasture, tmp_path, "--sweep", sweep, "--point", "best")
    assert "warning: ridge scored better on this sweep's board" in said
    assert "`--point ridge` takes it" in said
    assert not np.allclose(best["Dry_Total_g"], table["Dry_Total_g"])
    given = ["--oof", "--data", pasture, "--sweep", sweep, "--out", tmp_path / "o.csv"]
    said = biomass("predict", *given, "--device", "cpu").stderr
    assert str(sweep / "ridge" / "oof.csv") in said


def test_a_bundle_and_a_refit_are_of_it(sweep, pasture, tmp_path):
    biomass("bundle", sweep, "--out", tmp_path / "bundle")
    assert [member.name for member in load_members(tmp_path / "bundle")] == ["ridge"]
    said = biomass("bundle", sweep, "--points", "best", "--out", tmp_path / "best").stderr
    assert "warning: ridge scored better" in said and "`--points ridge` takes it" in said
    folder = shutil.copytree(sweep, tmp_path / "sweep")
    biomass("train", "--resume", folder, "--fold", "all")
    assert sorted(p.name for p in (folder / "refit").iterdir()) == ["blend.json", "ridge"]
    table, _ = predicted(pasture, tmp_path, "--run", folder / "refit")
    assert np.isfinite(table["Dry_Total_g"]).all()


def test_without_the_rules_of_the_points_it_stands_below_them(built, pasture, tmp_path):
    sweep = trained(tmp_path, built, "cls_gating", "[{rule: wa_dead_zero}]")
    board = pd.read_csv(sweep / "summary.csv")
    assert board["name"].tolist() == ["001_lazy", "mean", "ridge"]
    assert board["score_last"][2] > board["score_last"][0] and board["vs_best"][1:].isna().all()

    # what is taken by default loses to it, and not without a word
    first = SweepFolder(sweep).result().headline
    assert "; `biomass predict` takes 001_lazy" in first
    assert first.endswith("`biomass predict --point ridge` takes ridge")
    _, said = predicted(pasture, tmp_path, "--sweep", sweep)
    assert "warning: ridge scored better" in said
    (sweep / "ridge" / "config.yaml").unlink()  # as sweeps of before, which kept none
    assert "it was not kept" in predicted(pasture, tmp_path, "--sweep", sweep)[1]


def test_a_head_that_leads_needs_no_such_line(sweep, tmp_path):
    """Its score is in summary.csv, which the sentence at predict's time is made of."""
    copy = shutil.copytree(sweep, tmp_path / "sweep")
    board = pd.read_csv(copy / "summary.csv")
    board.loc[board["name"] == "001_lazy", "score_last"] = 0.99
    board.to_csv(copy / "summary.csv", index=False)
    assert outdone(copy, copy / "001_lazy") is None
    assert "ridge scored better" in outdone(sweep, sweep / "001_lazy")
