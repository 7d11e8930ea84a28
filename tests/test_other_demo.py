"""`biomass demo --task other` in small: an amount, a level and a class of farms through build,
train, predict, bundle and page."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from sklearn.metrics import accuracy_score, log_loss, r2_score
from test_scripts import documented, printed

from featurestore.backbone.demo.fields import draw_fields
from predictor.other_demo import CONFIG, run_other_demo

pytestmark = pytest.mark.filterwarnings("ignore:.*each photograph is held out on its own")
COLUMNS = ["image_id", "yield_t_ha", "ndvi", "yield_t_ha_sd", "ndvi_sd"]


def predict_here(bundle: Path, *arguments: object) -> None:
    """By the bundle in this process: that the same wheel predicts in one of its own is
    test_run_demo's."""
    biomass("predict", "--bundle", bundle, *arguments)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's folder, and what it told a program."""
    out = tmp_path_factory.mktemp("other") / "demo"
    small = CONFIG.replace("num_epochs: 60", "num_epochs: 2")
    small = small.replace("lr: [1e-2, 3e-3]", "lr: 1e-2")
    small += "inference: {tta_indices: [0]}\n"
    small = small.replace("groups: [farm]", "groups: [farm], n_folds: 2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("predictor.other_demo.IMAGE_SIZE", 64)
        patch.setattr("predictor.other_demo.VIEWS", "1")
        patch.setattr("predictor.other_demo.run_wheel", predict_here)
        patch.setattr("predictor.other_demo.CONFIG", small)
        shrunk = partial(run_other_demo, n_train=16, n_test=6)
        patch.setattr("predictor.other_demo.run_other_demo", shrunk)
        told = printed("demo", "--task", "other", "--out", out)
    return out, told


@pytest.fixture(scope="module")
def sweep(demo):
    (folder,) = (demo[0] / "runs").iterdir()
    return folder


def test_every_step_leaves_its_files(demo, sweep):
    out, told = demo
    train = pd.read_csv(out / "data/train.csv")
    assert list(train) == ["image_path", "farm", "date", "yield_t_ha", "ndvi", "crop"]
    assert train["ndvi"].isna().any() and train["yield_t_ha"].gt(0).all()
    test, truth = (pd.read_csv(out / f"data/{name}.csv") for name in ("test", "test_truth"))
    assert list(test) == ["image_path"]
    assert not set(truth["farm"]) & set(train["farm"])
    table = pd.read_csv(out / "predictions.csv")
    ends = [f"{name}_{end}" for name in ("yield_t_ha", "ndvi") for end in ("low", "high")]
    assert list(table) == [*COLUMNS, "crop", "crop_probability", *ends]
    assert not (out / "submission.csv").exists()
    board = pd.read_csv(sweep / "summary.csv")
    assert {"ridge", "blend_equal"} <= set(board["name"])
    biomass("bundle", "check", out / "bundle")
    assert set(told) < documented("demo") and told["by_bundle"] is True
    places = {Path(place) for place in told.values() if isinstance(place, str)}
    assert len(places) == 8 and all(place.exists() for place in places)


def test_the_scores_are_those_of_the_table(demo):
    out, told = demo
    table, truth = pd.read_csv(out / "predictions.csv"), pd.read_csv(out / "data/test_truth.csv")
    assert [f"test/{name}.jpg" for name in table["image_id"]] == list(truth["image_path"])
    scores = [r2_score(truth[name], table[name]) for name in ("yield_t_ha", "ndvi")]
    scores.append(accuracy_score(truth["crop"], table["crop"]))
    names = ["R2 of yield_t_ha", "R2 of ndvi", "accuracy of crop"]
    assert told["scores"] == pytest.approx(dict(zip(names, scores, strict=True)))


def test_a_bundle_speaks_of_its_own_targets(demo):
    bundle = demo[0] / "bundle"
    for spec in bundle.glob("runs/*/spec.json"):
        each = json.loads(spec.read_text())["targets"]["each"]
        assert list(each) == ["yield_t_ha", "ndvi", "crop"]
        assert each["crop"]["values"] == ["clover", "mixture", "ryegrass"]
    texts = [(bundle / name).read_text() for name in ("README.md", "predict.ipynb")]
    for text in texts:
        assert "yield_t_ha, ndvi, crop" in text and "predictions.csv" in text
        for word in ("masses", "submission.csv", "pasture", "grams"):
            assert word not in text


def test_a_run_alone_that_tells_no_classes_says_so_and_a_sweep_adds_the_one_that_does(
    demo, sweep, tmp_path
):
    base = ["predict", "--data", demo[0] / "data", "--device", "cpu", "--tta", 1]
    tables = {}

    def predicted(name, *given):
        said = biomass(*base, *given, "--out", tmp_path / f"{name}.csv").stderr
        tables[name] = pd.read_csv(tmp_path / f"{name}.csv", index_col="image_id")
        return said

    said = predicted("alone", "--run", sweep / "ridge")
    assert list(tables["alone"]) == COLUMNS[1:]
    assert "no prediction of crop: heads of ridge tell no classes; add --run SWEEP/logistic" in said
    said = predicted("logistic", "--run", sweep / "logistic")
    assert "the training mean stands for yield_t_ha, ndvi: heads of logistic tell no" in said

    density = next(sweep.glob("*density*")).name
    for row in ("ridge", density):
        said = predicted(row, "--sweep", sweep, "--point", row)
        assert f"beside them {sweep / 'logistic'}" in said and "no prediction" not in said
        classes = ["crop", "crop_probability"]
        assert list(tables[row]) == [*COLUMNS[1:], *classes]
        pd.testing.assert_frame_equal(tables[row][classes], tables["logistic"][classes])
    numbers = COLUMNS[1:]
    pd.testing.assert_frame_equal(tables["ridge"][numbers], tables["alone"])


def test_training_photographs_are_predicted_as_the_sweep_scored_them(demo, sweep, tmp_path):
    out = tmp_path / "oof.csv"
    base = ["predict", "--data", demo[0] / "data", "--device", "cpu", "--oof"]
    biomass(*base, "--sweep", sweep, "--point", "blend_equal", "--out", out)
    assert len(pd.read_csv(out)) == 16


def test_a_photograph_that_is_lost_gets_the_mean_and_no_word(demo, sweep, tmp_path):
    data = demo[0] / "data"
    lost = pd.concat(
        [pd.read_csv(data / "test.csv")[:1], pd.DataFrame({"image_path": ["test/no.jpg"]})]
    )
    lost.to_csv(tmp_path / "some.csv", index=False)
    base = ["predict", "--data", data, "--csv", tmp_path / "some.csv", "--device", "cpu"]
    base += ["--tta", 1, "--on-error", "mean", "--interval", 0.5]
    out = tmp_path / "predictions.csv"
    biomass(*base, "--sweep", sweep, "--point", "blend_equal", "--out", out, code=6)
    row = pd.read_csv(out).set_index("image_id").loc["no"]
    train = pd.read_csv(data / "train.csv")
    for name in ("yield_t_ha", "ndvi"):
        assert row[name] == pytest.approx(train[name].mean(), abs=1e-6)
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert pd.isna(row["crop"]) and np.isnan(row["crop_probability"])


def test_heads_of_every_image_predict_too(demo, sweep, tmp_path):
    out, _ = demo
    command = ["train", "--config", out / "other.yaml", "--store", out / "features.h5"]
    biomass(*command, "--fold", "all", "--out", tmp_path / "runs")
    (again,) = (tmp_path / "runs").iterdir()
    base = ["predict", "--data", out / "data", "--device", "cpu", "--tta", 1]
    biomass(*base, "--run", again / "refit", "--out", tmp_path / "predictions.csv")
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 6


def test_the_service_answers_for_its_sweep(demo, sweep):
    pytest.importorskip("starlette")
    from served import client_of

    client = client_of(demo[0] / "features.h5", sweeps=[sweep])
    told = client.get(f"/v1/sweeps/{sweep.name}").json()
    board = pd.read_csv(sweep / "summary.csv")
    assert told["finished"] and told["chosen"] in set(board["name"])
    assert told["n_images"] == 16


def test_one_seed_draws_the_same_fields(tmp_path):
    for workers, folder in ((1, "a"), (2, "b")):
        draw_fields(tmp_path / folder, 3, 4, 2, workers)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 3 + 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_classes_alone_are_predicted_too(demo, tmp_path):
    out, _ = demo
    settings = CONFIG[: CONFIG.index("targets:")] + "targets: {crop: {kind: class}}\n"
    settings += "head: {kind: [pooled_mlp, logistic]}\ntrainer: {num_epochs: 2, batch_size: 8}\n"
    settings += "optimization: {lr: 1e-2, weight_decay: 1e-2}\ninference: {tta_indices: [0]}\n"
    settings += "cv: {groups: [farm], n_folds: 2}\n"
    (tmp_path / "alone.yaml").write_text(settings)
    given = ["--store", next(out.glob("*.h5")), "--out", tmp_path / "runs", "--device", "cpu"]
    biomass("train", "--config", tmp_path / "alone.yaml", *given)
    (sweep,) = (tmp_path / "runs").iterdir()
    predict = ["predict", "--sweep", sweep, "--data", out / "data", "--device", "cpu", "--tta", 1]
    points = [path.name for path in sweep.glob("0*")]
    for point in [*points, "blend_equal"]:
        biomass(*predict, "--point", point, "--out", tmp_path / "p.csv")
        table = pd.read_csv(tmp_path / "p.csv")
        assert list(table) == ["image_id", "crop", "crop_probability"]
        assert table["crop"].notna().all() and table["crop_probability"].between(0, 1).all()
    for option in (["--oof"], ["--interval", 0.5]):
        refused = biomass(*predict[:-2], "--out", tmp_path / "p.csv", *option, code=2)
        assert "these heads predict classes alone" in refused.stderr


@pytest.fixture(scope="module")
def of_crops(demo, tmp_path_factory):
    """A sweep that ranks classes, and whose heads learn nothing: the logistic run leads it."""
    folder = tmp_path_factory.mktemp("crops")
    settings = CONFIG[: CONFIG.index("targets:")]
    settings += "targets: {crop: {kind: class}, yield_t_ha: {auxiliary: true}}\n"
    settings += "head: {kind: pooled_mlp, shared_hidden: 8}\n"
    settings += "trainer: {num_epochs: 1, batch_size: 8}\n"
    settings += "optimization: {lr: 1e-9, weight_decay: 1e-2}\ninference: {tta_indices: [0]}\n"
    settings += "cv: {groups: none, n_folds: 4}\n"
    (folder / "crops.yaml").write_text(settings)
    given = ["--store", next(demo[0].glob("*.h5")), "--out", folder / "runs", "--device", "cpu"]
    said = biomass("train", "--config", folder / "crops.yaml", *given, "--fold", "all").stdout
    (sweep,) = (folder / "runs").iterdir()
    return sweep, said


def test_logistic_leads_a_board_of_classes_and_ridge_tells_the_numbers_beside(of_crops):
    sweep, said = of_crops
    board = pd.read_csv(sweep / "summary.csv", index_col="name")
    assert board.index[0] == "logistic" and set(board.index[-2:]) == {"mean", "ridge"}
    assert {"blend_equal", "blend_fitted"} <= set(board.index)
    oof = {name: pd.read_csv(sweep / name / "oof.csv") for name in ("logistic", "ridge")}
    own = oof["logistic"]
    words = ["clover", "mixture", "ryegrass"]
    shares = own[[f"probability_crop_{word}" for word in words]]
    loss = log_loss(own["true_crop"], shares, labels=words)
    assert board.loc["logistic", "score_last"] == pytest.approx(loss)
    right = accuracy_score(own["true_crop"], own["predicted_crop"])
    assert board.loc["logistic", "accuracy"] == pytest.approx(right)
    r2 = r2_score(oof["ridge"]["true_yield_t_ha"], oof["ridge"]["yield_t_ha"])
    ridge = board.loc["ridge"]
    assert ridge["r2_yield_t_ha"] == pytest.approx(r2) and np.isnan(ridge["score_last"])
    assert np.isnan(board.loc["logistic", "r2_yield_t_ha"])

    summary = json.loads((sweep / "summary.json").read_text())
    members = ["logistic", "ridge"]
    assert summary["chosen"] == {"name": "logistic", "members": members, "shares": [1.0, 1.0]}
    assert set(summary["baselines"]) == {"mean", "logistic", "ridge"}
    assert summary["honest"]["points"][-1] == "logistic"
    assert "logistic tells no numbers: predict takes yield_t_ha from ridge" in said


def test_what_it_chose_predicts_by_sweep_bundle_and_refit(demo, of_crops, tmp_path):
    sweep, _ = of_crops
    base = ["predict", "--data", demo[0] / "data", "--device", "cpu", "--tta", 1, "--out"]
    biomass("bundle", sweep, "--out", tmp_path / "bundle")
    ways = {
        "sweep": ["--sweep", sweep],
        "bundle": ["--bundle", tmp_path / "bundle"],
        "refit": ["--run", sweep / "refit"],
        "logistic": ["--run", sweep / "logistic"],
        "ridge": ["--run", sweep / "ridge"],
    }
    tables = {}
    for name, given in ways.items():
        biomass(*base, tmp_path / f"{name}.csv", *given)
        tables[name] = pd.read_csv(tmp_path / f"{name}.csv")
    pd.testing.assert_frame_equal(tables["sweep"], tables["bundle"])
    pd.testing.assert_frame_equal(
        tables["sweep"], tables["ridge"].join(tables["logistic"].iloc[:, -2:])
    )
    assert list(tables["refit"]) == list(tables["sweep"])
    assert tables["refit"].notna().all(axis=None)
    members = json.loads((sweep / "refit" / "blend.json").read_text())["members"]
    assert members == ["logistic", "ridge"]


def test_intervals_and_shares_of_an_ensemble_are_of_those_that_tell_numbers(
    demo, of_crops, tmp_path
):
    sweep, _ = of_crops
    base = ["predict", "--data", demo[0] / "data", "--device", "cpu", "--tta", 1]
    base += ["--interval", 0.5]
    both = ["--run", sweep / "logistic", "--run", sweep / "ridge"]
    biomass(*base, "--run", sweep / "ridge", "--out", tmp_path / "ridge.csv")
    ridge = pd.read_csv(tmp_path / "ridge.csv")
    for name, given in {"plain": [], "fitted": ["--blend", "fitted"]}.items():
        biomass(*base, *both, *given, "--out", tmp_path / f"{name}.csv")
        table = pd.read_csv(tmp_path / f"{name}.csv")
        pd.testing.assert_frame_equal(table[list(ridge)], ridge)
        assert table["crop"].notna().all()
