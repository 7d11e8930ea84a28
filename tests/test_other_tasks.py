"""Sweeps that learn other targets than the contest's: amounts, levels, shares and classes, some of
them not known for all photographs."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import biomass
from preset import BY
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, r2_score
from sklearn.model_selection import cross_val_predict
from sklearn.preprocessing import StandardScaler
from sweeps import write_store

from featurestore.errors import InputError
from predictor.members.member import Member, number_shares
from trainer.heads.kinds import logistic
from trainer.heads.regressor import inner_folds
from trainer.judge.baselines import fit_splits, predict_numbers
from trainer.loop import sweep as loop
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import prepare_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.sweep import run_sweep

pytestmark = pytest.mark.usefixtures("small_searches", "laid_out")
TASK = """
experiment: {{name: other, seed: 1}}
dataset: {{store: {store}}}
targets:
  yield_t: {{weight: 2, sum_of: [grain_t, straw_t]}}
  grain_t: {{}}
  straw_t: {{weight: 0}}
  ndvi: {{kind: level}}
  cover: {{kind: share}}
  crop: {{kind: class, auxiliary: true}}
  soil_c: {{kind: level, auxiliary: true}}
head: {{kind: {kinds}, features: [cls, mean], shared_hidden: 8, gate_hidden: 5, dropout: 0}}
loss: {{space: {space}}}
trainer: {{num_epochs: 12, batch_size: 8}}
optimization: {{lr: 3e-2, weight_decay: 1e-2, ema_decay: 0.9}}
inference: {{tta_indices: [0]}}
cv: {{n_folds: 3, groups: [farm]}}
"""
NUMBERS = ["yield_t", "grain_t", "straw_t", "ndvi", "cover", "soil_c"]


def other_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """What the tokens tell, under other names; no State, no date, no mass of the contest."""
    green, dead, clover = (
        frame[f"Dry_{name}_g"].to_numpy() for name in ("Green", "Dead", "Clover")
    )
    total = green + dead
    labels = frame[["image_id", "path"]].assign(
        farm=[f"F{i % 10}" for i in range(len(frame))],
        yield_t=total,
        grain_t=green,
        straw_t=dead,
        ndvi=np.tanh(clover / 4) - 0.5,
        cover=green / (total + 5),
        crop=np.where(green > dead, "rye", "oat"),
        soil_c=clover - 3,
    )
    labels.loc[3, "ndvi"] = np.nan
    labels.loc[[4, 9], "cover"] = np.nan
    labels.loc[5, "crop"] = ""
    return labels


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("other") / "f.h5", labels=other_labels)


def config(tmp_path, store, kinds="[pooled_mlp]", space="null", task=TASK) -> SweepConfig:
    path = tmp_path / "other.yaml"
    path.write_text(task.format(store=store, kinds=kinds, space=space))
    return SweepConfig.load(path)


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """Every kind of head and regressor, through the command."""
    folder = tmp_path_factory.mktemp("sweep")
    kinds = "[cls_gating, density, attention, pooled_mlp, ridge, gpr, svr, pls, hist_gbdt]"
    config(folder, store, kinds)
    biomass("train", "--config", folder / "other.yaml", "--out", folder / "runs", "--device", "cpu")
    (sweep,) = (folder / "runs").iterdir()
    return sweep


def test_every_kind_learns_them(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert not any(point["failed"] for point in summary["points"])
    board = pd.read_csv(finished / "summary.csv").set_index("name")["score_last"]
    assert np.isnan(board.pop("logistic"))  # it tells no numbers, which rank
    assert (board.drop("mean") > board["mean"]).all()
    assert {f"r2_{name}" for name in NUMBERS} <= set(pd.read_csv(finished / "summary.csv"))


def test_the_score_is_the_weighted_mean_of_each_targets_r2(finished):
    board = pd.read_csv(finished / "summary.csv").set_index("name")
    for run in finished.glob("0*"):
        oof = pd.read_csv(run / "oof.csv").query("weights == 'last'")
        r2 = []
        for name in ("yield_t", "grain_t", "ndvi", "cover"):
            known = oof.dropna(subset=f"true_{name}")
            r2.append(r2_score(known[f"true_{name}"], known[name]))
        assert board.loc[run.name, "score_last"] == pytest.approx(
            np.average(r2, weights=[2, 1, 1, 1])
        )


def test_predictions_obey_kinds_and_sums(finished):
    for run in [*finished.glob("0*"), *finished.glob("blend*")]:
        oof = pd.read_csv(run / "oof.csv")
        np.testing.assert_allclose(oof["yield_t"], oof["grain_t"] + oof["straw_t"], rtol=1e-12)
        assert (oof[["grain_t", "straw_t"]] >= 0).to_numpy().all() and oof["cover"].between(
            0, 1
        ).all()
        assert oof[[f"true_{name}" for name in NUMBERS]].isna().sum().sum() == len(
            oof[oof["image_id"].isin(["ID3", "ID4", "ID9"])]
        )
    assert (oof["ndvi"] < 0).any()
    trained = pd.read_csv(next(finished.glob("*pooled_mlp")) / "oof.csv")
    assert set(trained["predicted_crop"]) <= {"rye", "oat"}


def test_a_run_keeps_its_targets_and_the_words_of_classes(finished):
    run = next(finished.glob("*pooled_mlp"))
    kept = json.loads((run / "spec.json").read_text())["targets"]["each"]
    assert list(kept) == [*NUMBERS[:5], "crop", "soil_c"]
    assert kept["crop"]["values"] == ["oat", "rye"] and kept["yield_t"]["weight"] == 2


def test_a_label_that_is_not_known_changes_nothing_of_the_others(tmp_path, store):
    """A head's first step is that of a loss worked out by hand, over known labels alone."""
    sweep = prepare_sweep(config(tmp_path, store, space="raw"), "cpu", torch.float64)
    (trainer,), reader = sweep.trainers([0]), sweep.reader()
    batch = sweep.stream.batch(0, 0)
    shared = sweep.data.inputs(batch, reader.step(batch.rows_U2), [trainer.bank])
    inputs = trainer.inputs(shared[""], sweep.data, sweep.stream, batch, (0, 0), mixing=False)
    out = trainer.bank(inputs)
    found_QG = trainer.loss(out, inputs)
    values_NK = sweep.data.labels.values_NK.numpy()
    names = [target.name for target in sweep.data.targets.outputs]
    assert names == ["yield_t", "grain_t", "straw_t", "ndvi", "soil_c", "cover"]
    weights = [2, 1, 0, 1, 0.1, 1]
    for q, split in enumerate(sweep.splits):
        images = batch.images_QB[q]
        loss = 0
        for k, weight in enumerate(weights):
            train = values_NK[split.train_N, k]
            unit = np.nanstd(train)
            error = np.abs(out.values_QGBK[q, 0, :, k].detach().numpy() - values_NK[images, k])
            error = np.nan_to_num(error / unit)
            loss += weight * np.where(error < 1, error**2 / 2, error - 0.5).mean()
        word = sweep.data.catalog["crop"].to_numpy()[images]
        share = out.word_QGBC[q, 0].softmax(-1).detach().numpy()
        right = np.where(word == "oat", share[:, 0], share[:, 1])
        loss += 0.1 * np.where(word == "", 0, -np.log(right)).mean()
        assert found_QG[q, 0].item() == pytest.approx(loss)


def test_regressors_learn_from_the_known_labels_alone(tmp_path, store):
    """Ridge by a target that is known everywhere is not moved by one that is not."""
    whole = run_sweep(config(tmp_path, store, "[ridge]"), tmp_path / "a", "cpu", progress=False)
    alone = TASK.replace("  cover: {{kind: share}}\n", "").replace("  ndvi: {{kind: level}}\n", "")
    given = config(tmp_path, store, "[ridge]", task=alone)
    fewer = run_sweep(given, tmp_path / "b", "cpu", progress=False)
    tables = [
        pd.read_csv(next(result.path.glob("0*")) / "oof.csv")[["yield_t", "soil_c"]]
        for result in (whole, fewer)
    ]
    np.testing.assert_allclose(*tables, rtol=1e-9)


def test_classes_alone_are_ranked_by_log_loss(tmp_path, store):
    task = TASK[: TASK.index("targets:")] + TASK[TASK.index("head:") :]
    task = task.replace("head:", "targets: {{crop: {{kind: class}}}}\nhead:")
    given = config(tmp_path, store, "[cls_gating, pooled_mlp, logistic]", task=task)
    result = run_sweep(given, tmp_path / "runs", "cpu", progress=False)
    board = result.summary.set_index("name")["score_last"]
    assert list(board.drop("mean")) == sorted(board.drop("mean"))
    assert board.iloc[0] < board["mean"] < 1
    run = result.path / next(name for name in board.index if "pooled" in name)
    oof = pd.read_csv(run / "oof.csv").query("weights == 'last' and true_crop == true_crop")
    assert board[run.name] == pytest.approx(
        log_loss(oof["true_crop"], oof["probability_crop_rye"], labels=["oat", "rye"])
    )
    assert accuracy_score(oof["true_crop"], oof["predicted_crop"]) > 0.7


def test_logistic_regression_is_sklearns(tmp_path, store):
    """On the features and rows of its split, with the strength that is best where inner folds hold
    sites out."""
    task = TASK[: TASK.index("targets:")] + TASK[TASK.index("head:") :]
    task = task.replace(
        "head:", "targets: {{crop: {{kind: class}}, grain_t: {{auxiliary: true}}}}\nhead:"
    )
    sweep = prepare_sweep(config(tmp_path, store, "[logistic]", task=task), "cpu", torch.float64)
    point = sweep.config.points[0]
    states, raw = fit_splits(sweep.data, sweep.folds, sweep.splits, point, [0])
    word_N = sweep.data.catalog["crop"].to_numpy()
    x_NF = sweep.data.features(["cls", "mean"], 0, np.arange(30))
    for split, state in zip(sweep.splits, states, strict=True):
        known = split.train_N[word_N[split.train_N] != ""]
        scaler = StandardScaler().fit(x_NF[known])
        x_nF, word_n = scaler.transform(x_NF[known]), word_N[known]
        inner = inner_folds(sweep.folds["site"].to_numpy()[known])
        models = [LogisticRegression(C=c, max_iter=10_000, tol=1e-8) for c in logistic.STRENGTHS]
        held_out = [
            cross_val_predict(model, x_nF, word_n, cv=inner, method="predict_proba")
            for model in models
        ]
        best = models[np.argmin([log_loss(word_n, shares) for shares in held_out])]
        guess = best.fit(x_nF, word_n).predict_proba(scaler.transform(x_NF[split.val_N]))
        told_n3 = raw[0][0, split.val_N]
        np.testing.assert_allclose(told_n3[:, 1:], guess, atol=1e-3)
        grain = sweep.data.catalog["grain_t"].to_numpy()[split.train_N].mean()
        np.testing.assert_allclose(told_n3[:, 0], grain)
        np.testing.assert_array_equal(
            predict_numbers(point, sweep.data.targets, state, x_NF[split.val_N]), told_n3
        )


def test_blends_take_each_target_from_those_that_tell_it(tmp_path, store):
    """Logistic regression tells the training mean of numbers, which counts in no blend."""
    given = config(tmp_path, store, "[pooled_mlp, ridge, logistic]")
    sweep = run_sweep(given, tmp_path / "runs", "cpu", progress=False).path
    runs = {kind: next(sweep.glob(f"0*{kind}")) for kind in ("pooled_mlp", "ridge", "logistic")}
    tables = {kind: pd.read_csv(run / "oof.csv") for kind, run in runs.items()}
    own = tables["pooled_mlp"].query("weights == 'last'").reset_index(drop=True)
    equal = pd.read_csv(sweep / "blend_equal" / "oof.csv")
    levels = ["ndvi", "soil_c"]  # no sum moves them
    np.testing.assert_allclose(equal[levels], (own[levels] + tables["ridge"][levels]) / 2)
    shares = ["probability_crop_oat", "probability_crop_rye"]
    np.testing.assert_allclose(equal[shares], (own[shares] + tables["logistic"][shares]) / 2)
    members = json.loads((sweep / "blend_fitted" / "blend.json").read_text())["members"]
    assert sorted(members) == sorted(f"../{runs[kind].name}" for kind in ("pooled_mlp", "ridge"))

    loaded = [Member.load(run) for run in runs.values()]
    assert number_shares(loaded).tolist() == [0.5, 0.5, 0]
    # in runs of before, whose blends were scored so, the mean counts
    heads = [
        {name.replace("stand_in_K", "means"): tensor for name, tensor in head.items()}
        for head in loaded[2].heads
    ]
    of_before = [*loaded[:2], replace(loaded[2], heads=heads)]
    assert number_shares(of_before).tolist() == [1, 1, 1]


def test_a_stopped_sweep_goes_on_to_the_same_tables(tmp_path, store, monkeypatch):
    given = config(tmp_path, store, "[pooled_mlp, ridge]")
    whole = run_sweep(given, tmp_path / "whole", "cpu", progress=False)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "close_baselines", stop)
        patch.setattr(loop, "close_regressor", stop)
        run_sweep(given, tmp_path / "stopped", "cpu", progress=False)
    (stopped,) = (tmp_path / "stopped").iterdir()
    resume_sweep(stopped, "cpu", progress=False)
    for table in sorted(whole.path.glob("*/oof.csv")):
        assert (stopped / table.parent.name / "oof.csv").read_bytes() == table.read_bytes()


@pytest.mark.parametrize(
    "change, why",
    [
        (("loss: {{space: {space}}}", "loss: {{main_weights: [1, 1, 1]}}"), "loss.main_weights"),
        (("[farm]}}", "[farm]}}\nscore: accuracy"), "score: accuracy is of classes"),
        (
            ("tta_indices: [0]", "tta_indices: [0], constraints: clip"),
            "inference.constraints: clip",
        ),
        (("grain_t: {{}}", "grain_t: {{kind: heavy}}"), "targets"),
        (("farm", "field"), "cv.groups"),
    ],
)
def test_what_does_not_go_with_other_targets_is_refused_by_key(tmp_path, store, change, why):
    with pytest.raises(InputError, match=why):
        prepare_sweep(config(tmp_path, store, task=TASK.replace(*change)), "cpu")


def test_without_targets_the_block_to_write_is_shown(tmp_path, store):
    task = TASK[: TASK.index("targets:")] + TASK[TASK.index("head:") :]
    with pytest.raises(InputError) as refused:
        prepare_sweep(config(tmp_path, store, task=task), "cpu")
    text = str(refused.value)
    block = text[text.index("\ntargets:") :]
    path = tmp_path / "with.yaml"
    path.write_text(task.format(store=store, kinds="[ridge]", space="null") + block)
    targets = prepare_sweep(SweepConfig.load(path), "cpu").data.targets
    assert {"yield_t", "ndvi", "crop"} <= {target.name for target in targets.each}
    assert BY.name == "contest"


def test_other_scores_and_the_confusion_of_classes_stand_beside(finished):
    board = pd.read_csv(finished / "summary.csv").set_index("name")
    own = board.drop("logistic")  # which tells no numbers
    assert own["rmse"].notna().all() and (own["contest"] < 1).all()
    summary = json.loads((finished / "summary.json").read_text())
    point = next(point for point in summary["points"] if "pooled_mlp" in point["name"])
    told = point["last"]["classes"]["crop"]
    oof = pd.read_csv(finished / point["name"] / "oof.csv").query("weights == 'last'")
    known = oof.dropna(subset="true_crop")
    truth, guess = known["true_crop"], known["predicted_crop"]
    assert told["words"] == ["oat", "rye"]
    assert told["confusion"] == confusion_matrix(truth, guess).tolist()
    assert told["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert told["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert board.loc[point["name"], "f1_crop"] == pytest.approx(told["macro_f1"])
    squares = [np.nanmean((oof[f"true_{n}"] - oof[n]) ** 2) for n in NUMBERS]
    expected = np.average(squares, weights=[2, 1, 0, 1, 1, 0]) ** 0.5
    assert board.loc[point["name"], "rmse"] == pytest.approx(expected)
