"""`predict --oof` over the training photographs says what the sweep's oof.csv says, for every kind
of head."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from PIL import Image
from preset import TARGETS

from featurestore.backbone.backbone import Backbone
from predictor.parity import TOLERANCE

CONFIG = """
experiment: {{name: parity, seed: 3}}
dataset: {{store: {store}}}
head: {{kind: [{kinds}], gate_hidden: 6, shared_hidden: 8, normalize: true}}
trainer: {{num_epochs: 3, batch_size: 4}}
optimization: {{lr: 1e-2, weight_decay: 0.01}}
inference: {{tta_indices: [1, 0], constraints: {constraints}, postprocess: [{rules}]}}
cv: {{n_folds: 2, groups: date, {cv}}}
"""


def train(
    folder: Path,
    store: Path,
    kinds: str,
    constraints: str = "order",
    rules: str = "",
    cv: str = "repeats: 2",
    *options: object,
) -> list[Path]:
    """Runs of a small sweep."""
    config = folder / "sweep.yaml"
    config.write_text(
        CONFIG.format(store=store, kinds=kinds, constraints=constraints, rules=rules, cv=cv)
    )
    biomass("train", "--config", config, "--out", folder / "runs", "--device", "cpu", *options)
    return sorted((folder / "runs").glob("*/00*"))


def oof(
    run: Path, data: Path, out: Path, *options: object, code: int = 0
) -> tuple[pd.DataFrame, str]:
    """The table that `predict --oof` writes, and what it says."""
    said = biomass(
        "predict",
        "--oof",
        "--data",
        data,
        "--run",
        run,
        "--out",
        out,
        "--device",
        "cpu",
        *options,
        code=code,
    ).stderr
    return pd.read_csv(out, dtype={"image_id": str}), said


def check(
    run: Path,
    data: Path,
    out: Path,
    *options: object,
    weights: str = "last",
    which: str = "weights == weights",
):
    """That it is oof.csv again: the same rows, masses within the tolerance; returns them."""
    table, said = oof(run, data, out, "--epoch", weights, *options)
    known = (
        pd.read_csv(run / "oof.csv")
        .query("weights == @weights")
        .query(which)
        .reset_index(drop=True)
    )
    columns = ["weights", "repeat", "image_id", "site", "fold", *(f"true_{t}" for t in TARGETS)]
    pd.testing.assert_frame_equal(table[columns], known[columns])
    np.testing.assert_allclose(table[list(TARGETS)], known[list(TARGETS)], **TOLERANCE)
    predicted, swept = re.search(r"score: (\S+) predicted, (\S+) in oof.csv", said).groups()
    assert float(predicted) == pytest.approx(float(swept), rel=2e-6, abs=2e-5)
    assert not list(out.parent.glob("*.progress"))
    return table


def test_kinds_with_states_two_repeats_and_the_rule_for_wa(built, pasture, tmp_path):
    runs = train(
        tmp_path,
        built,
        "cls_gating, attention, pooled_mlp",
        "clip",
        "{rule: wa_dead_zero}, {rule: factor, target: GDM_g, factor: 1.1}",
    )
    assert len(runs) == 3
    for run in runs:
        for weights in ("last", "best"):
            assert len(check(run, pasture, tmp_path / "o.csv", weights=weights)) == 12
    oof = pd.concat(pd.read_csv(run / "oof.csv") for run in runs)
    ruled = oof.query("predicted_State == 'WA'")
    # so the rule was asked, by the States of the same heads and views
    assert len(ruled) and (ruled["Dry_Dead_g"] == 0).all()


@pytest.mark.system
def test_density_and_regressors_two_repeats(built, pasture, tmp_path):
    rules = "{rule: clip, target: Dry_Total_g, high: 40}"
    runs = train(tmp_path, built, "density, ridge, kernel_ridge, svr, pls, gpr", rules=rules)
    assert len(runs) == 6
    for run in runs:
        table = check(run, pasture, tmp_path / "o.csv")
        assert table["Dry_Total_g"].max() <= 40 + 1e-9


def test_the_plain_view_alone(built, pasture, tmp_path):
    (run,) = train(tmp_path, built, "density", cv="tta: false")
    check(run, pasture, tmp_path / "o.csv")


def test_a_run_of_one_fold_and_a_choice_of_folds(built, pasture, sweep, tmp_path):
    (run,) = train(tmp_path, built, "density", cv="fold: 1")
    assert set(check(run, pasture, tmp_path / "o.csv")["fold"]) == {1}
    run = next(sweep.glob("001*"))
    assert set(
        check(run, pasture, tmp_path / "o.csv", "--only-folds", 0, which="fold == 0")["fold"]
    ) == {0}
    # a head is one head, however often it is named
    check(run, pasture, tmp_path / "o.csv", "--only-folds", "1,0,0")


def test_the_default_output_is_no_submission(sweep, pasture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    biomass("predict", "--oof", "--data", pasture, "--sweep", sweep, "--device", "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["oof_predictions.csv"]


def test_a_photograph_that_changed_is_a_mismatch(sweep, pasture, tmp_path):
    data = shutil.copytree(pasture, tmp_path / "data")
    path = next((data / "train").iterdir())
    Image.open(path).point(lambda x: 255 - x).save(path)
    run = next(sweep.glob("002*"))
    table, said = oof(run, data, tmp_path / "o.csv", code=5)
    assert "more than 0.001 g" in said and "have changed" in said
    known = pd.read_csv(run / "oof.csv").query("weights == 'last'")
    apart = ~np.isclose(table[list(TARGETS)], known[list(TARGETS)], **TOLERANCE).all(1)
    assert table["image_id"][apart].tolist() == [path.stem]


def test_what_has_no_held_out_photographs_is_refused(built, pasture, sweep, tmp_path):
    train(tmp_path, built, "density", "order", "", "repeats: 1", "--fold", "all")
    refit = next((tmp_path / "runs").glob("*/refit"))
    options = ["--oof", "--data", pasture, "--device", "cpu", "--out", tmp_path / "o.csv"]
    assert "learned on every image" in biomass("predict", "--run", refit, *options, code=3).stderr
    biomass("bundle", refit, "--out", tmp_path / "b")
    for source in (["--run", refit], ["--bundle", tmp_path / "b"]):
        for option in (["--interval", 0.5], ["--on-error", "mean"]):
            said = biomass("predict", *source, *options[1:], *option, code=3).stderr
            assert (
                f"{option[0]}" in said
                and "has no oof.csv: heads of a refit learned on every image" in said
                and "predict with the sweep's points" in said
            )
    runs = [argument for run in sorted(sweep.glob("00[12]*")) for argument in ("--run", run)]
    assert "compares one run" in biomass("predict", *runs, *options, code=3).stderr
    assert not (tmp_path / "o.csv").exists()


def test_images_that_train_csv_lacks_are_named(sweep, pasture, tmp_path):
    data = shutil.copytree(pasture, tmp_path / "data")
    table = pd.read_csv(data / "train.csv", dtype=str, keep_default_na=False)
    gone = table["sample_id"][0].split("__")[0]
    table[~table["sample_id"].str.startswith(gone)].to_csv(data / "train.csv", index=False)
    stderr = biomass(
        "predict",
        "--oof",
        "--data",
        data,
        "--sweep",
        sweep,
        "--device",
        "cpu",
        "--out",
        tmp_path / "o.csv",
        code=3,
    ).stderr
    assert "lacks 1 image that the run held out" in stderr and gone in stderr


def test_what_the_run_says_by_itself_is_refused_by_name(sweep, pasture, tmp_path):
    given = {
        "--tta": 4,
        "--average": "mean",
        "--constraints": "clip",
        "--on-error": "fail",
        "--deadline": "1h",
        "--interval": 0.5,
        "--blend": "equal",
        "--explain": tmp_path / "seen",
    }
    options = ["predict", "--oof", "--data", pasture, "--sweep", sweep, "--out", tmp_path / "o.csv"]
    said = biomass(*options, *(word for pair in given.items() for word in pair), code=2).stderr
    assert f"leave {', '.join(given)} out, or --oof" in said
    assert "leave --average out" in biomass(*options, "--average", "median", code=2).stderr
    assert not list(tmp_path.iterdir())


def test_a_bundle_says_its_runs_table_again(sweep, pasture, tmp_path):
    run = next(sweep.glob("002*"))
    biomass("bundle", run, "--epoch", "best", "--only-folds", 1, "--out", tmp_path / "b")
    biomass(
        "predict",
        "--oof",
        "--data",
        pasture,
        "--bundle",
        tmp_path / "b",
        "--out",
        tmp_path / "o.csv",
        "--device",
        "cpu",
    )
    known = pd.read_csv(run / "oof.csv").query("weights == 'best' and fold == 1")
    table = pd.read_csv(tmp_path / "o.csv")
    assert table["image_id"].tolist() == known["image_id"].tolist()
    np.testing.assert_allclose(table[list(TARGETS)], known[list(TARGETS)], **TOLERANCE)


def test_it_goes_on_with_resume(sweep, pasture, tmp_path, monkeypatch):
    """Stopped when all is done but the table."""
    made, encode, stop = [], Backbone.encode, type("Stop", (Exception,), {})
    with monkeypatch.context() as patch:
        patch.setattr("predictor.parity.write_whole", lambda *_: (_ for _ in ()).throw(stop))
        with pytest.raises(stop):
            oof(next(sweep.glob("002*")), pasture, tmp_path / "o.csv")
    monkeypatch.setattr(
        Backbone, "encode", lambda self, rows: made.append(rows) or encode(self, rows)
    )
    check(next(sweep.glob("002*")), pasture, tmp_path / "o.csv", "--continue")
    assert not made


def test_the_table_it_is_compared_with_is_not_written_over(sweep, pasture):
    run = next(sweep.glob("002*"))
    known = (run / "oof.csv").read_bytes()
    said = biomass(
        "predict", "--oof", "--data", pasture, "--run", run, "--out", run / "oof.csv", code=2
    ).stderr
    assert "would be written over" in said and (run / "oof.csv").read_bytes() == known
