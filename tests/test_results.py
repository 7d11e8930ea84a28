"""What a sweep says when it is done: refits, comparisons, honest estimates, rules, other tools'
folds."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import biomass
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from sweeps import config, write_store

from featurestore.errors import InputError
from featurestore.photos.catalog import TARGETS
from featurestore.photos.targets import CSIRO
from predictor.bundle.pack import chosen_runs
from trainer.loop import fits
from trainer.loop.bank_trainer import BankTrainer
from trainer.loop.checkpoint import Checkpoint
from trainer.loop.chosen import best_run
from trainer.loop.costs import measure_costs
from trainer.loop.fits import close_regressor
from trainer.loop.grid import SweepConfig, load_point
from trainer.loop.notes import Note
from trainer.loop.prepare import prepare_sweep
from trainer.loop.runs import RunFolder, SweepFolder
from trainer.loop.summary import finish
from trainer.loop.sweep import run_sweep, train_pass

pytestmark = pytest.mark.usefixtures("small_searches", "laid_out")
RULES = (
    "[{rule: wa_dead_zero}, {rule: clip, target: Dry_Total_g, high: 60}, {rule: factor, "
    "target: Dry_Clover_g, factor: 0.5}]"
)


@pytest.fixture(scope="module")
def mixed(store, tmp_path_factory):
    """Heads of every kind and regressors in one grid, repeats, then the best point on every
    image."""
    folder = tmp_path_factory.mktemp("mixed")
    kinds = (
        "[cls_gating, density, attention, pooled_mlp, ridge, kernel_ridge, svr, pls, gpr, "
        "hist_gbdt]"
    )
    config(folder, store, kind=kinds, lr="[3e-2, 1e-30]", epochs=10, repeats=2)
    out = biomass(
        "train",
        "--config",
        folder / "sweep.yaml",
        "--out",
        folder / "runs",
        "--fold",
        "all",
        "--device",
        "cpu",
    )
    return next((folder / "runs").iterdir()), out


@pytest.mark.parametrize("decay, is_told", [(0.997, True), (0.5, False)])
def test_averages_that_still_hold_the_first_weights_are_told(store, tmp_path, decay, is_told):
    sweep = config(tmp_path, store, kind="[density, ridge]", lr="[1e-2]", epochs=6)
    base = sweep.base.model_copy(
        update={"optimization": sweep.base.optimization.model_copy(update={"ema_decay": decay})}
    )
    prepared = prepare_sweep(replace(sweep, base=base), "cpu")
    told = (
        [f"ema_decay {decay:g} leaves {decay**prepared.n_batches:.0%} of the first weights"]
        if is_told
        else []
    )
    assert [
        remark.split(" in the averages")[0].removeprefix("optimization.")
        for remark in prepared.remarks
    ] == told
    assert ("\nnote     optimization.ema_decay" in str(measure_costs(prepared))) == is_told


def test_the_time_of_steps_counts_what_a_device_still_computes(store, tmp_path, monkeypatch):
    noted = BankTrainer.noted

    def waits(trainer):
        time.sleep(0.1)
        return noted(trainer)

    # the only place where the host waits for a device
    monkeypatch.setattr(BankTrainer, "noted", waits)
    sweep = config(tmp_path, store, kind="density", lr="[1e-2]", epochs=1)
    assert measure_costs(prepare_sweep(sweep, "cpu")).step_s > 0.1
    path = run_sweep(sweep, tmp_path / "runs", "cpu", progress=False).path
    (metrics,) = path.glob("001*/metrics.jsonl")
    assert json.loads(metrics.read_text())["train_s"] > 0.1


def test_kinds_of_all_sorts_share_a_leaderboard(mixed):
    path, out = mixed
    summary = pd.read_csv(path / "summary.csv")
    assert len(summary) == 4 * 2 + 6 + 2 + 2 and summary["score_last"].notna().all()
    kinds_and_blends = {"010_tiny__kind-kernel_ridge", "blend_equal", "blend_fitted"}
    assert kinds_and_blends | {"mean", "ridge"} <= set(summary["name"])
    assert (
        "told apart from the best" in out.stdout
        and "its choice never saw the reported fold" in out.stdout
    )
    pairs = pd.read_csv(path / "comparisons.csv")
    assert len(pairs) == 17 * 16 / 2 and (pairs["difference"] <= 0).all()
    assert summary["vs_best"].iloc[0] == 0 and (summary["vs_best"].iloc[1:-1] <= 0).all()
    assert len(list(path.glob("0*/oof.csv"))) == 14


def test_scores_that_do_not_rank_stand_behind_the_presets_own_columns(mixed):
    path, _ = mixed
    summary = pd.read_csv(path / "summary.csv", index_col="name")
    assert list(summary)[-3:] == ["r2", "rmse", "mae"] and summary.iloc[:, -3:].notna().all(
        axis=None
    )
    for run in (path / "ridge", next(path.glob("*svr")), path / "blend_equal"):
        oof = pd.read_csv(run / "oof.csv")
        found = {"r2": [], "rmse": [], "mae": []}
        for _, rows in oof.groupby("repeat"):
            truth, told = rows[[f"true_{name}" for name in TARGETS]], rows[list(TARGETS)]
            by = {"multioutput": [CSIRO[name].weight for name in TARGETS]}
            found["r2"].append(r2_score(truth, told, **by))
            found["rmse"].append(mean_squared_error(truth, told, **by) ** 0.5)
            found["mae"].append(mean_absolute_error(truth, told, **by))
        for name, values in found.items():
            assert summary.loc[run.name, name] == pytest.approx(np.mean(values)), name


def test_the_refitted_point_learned_from_every_image_and_predicts(mixed, store):
    path, _ = mixed
    chosen = json.loads((path / "summary.json").read_text())["chosen"]
    weighty = [n for n, s in zip(chosen["members"], chosen["shares"], strict=True) if s > 0]
    assert sorted(p.name for p in (path / "refit").iterdir()) == sorted([*weighty, "blend.json"])
    for member in weighty:
        refit, run = RunFolder(path / "refit" / member), RunFolder(path / member)
        ((name, head),) = refit.heads("last").items()
        assert name == "last_all.safetensors"
        assert (refit.config.cv.fold, run.config.cv.fold) == ("all", None)
        of_folds = next(iter(run.heads("last").values()))
        assert {k: v.dtype for k, v in head.items()} == {k: v.dtype for k, v in of_folds.items()}
    assert "nothing to resume" in biomass("train", "--resume", path, "--fold", "all", code=3).stderr


def test_a_refit_of_a_finished_sweep_equals_one_asked_for_at_once(tmp_path, store):
    config(tmp_path, store, kind="[cls_gating]", lr="[3e-2]")
    at_once = run_sweep(
        SweepConfig.load(tmp_path / "sweep.yaml", {"cv.fold": "all"}),
        tmp_path / "a",
        "cpu",
        progress=False,
    ).path
    later = run_sweep(
        SweepConfig.load(tmp_path / "sweep.yaml"), tmp_path / "b", "cpu", progress=False
    ).path
    biomass("train", "--resume", later, "--fold", "all")
    members = {path.name for path in (at_once / "refit").iterdir() if path.is_dir()}
    assert len(members) > 1  # a blend with the ridge beside the board
    for member in members:
        ours, theirs = (
            RunFolder(path / "refit" / member).heads("last")["last_all.safetensors"]
            for path in (at_once, later)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (at_once / "refit/blend.json").read_bytes() == (later / "refit/blend.json").read_bytes()


def test_every_run_keeps_a_config_that_loads(mixed):
    path, _ = mixed
    assert {load_point(file).head.kind for file in path.glob("*/config.yaml")} >= {
        "attention",
        "gpr",
        "hist_gbdt",
    }
    assert not list(path.glob("*hist_gbdt*/weights/*"))


def test_scores_of_seeds_differ_by_luck_alone(tmp_path, store):
    given = config(tmp_path, store, kind="[cls_gating]", lr="[3e-2]", seed="[0, 1, 2]")
    result = run_sweep(given, tmp_path / "runs", "cpu", False)
    points = result.summary.dropna(subset="head.seed")
    assert points["score_last"].nunique() == 3 and sorted(points["head.seed"]) == [0, 1, 2]


@pytest.fixture
def no_ridge(monkeypatch):
    """No ridge beside the board, so that the only kind has nothing to be blended with."""
    monkeypatch.setattr("trainer.loop.sweep.close_baselines", lambda *_: [])


def test_the_honest_estimate_is_that_of_the_saved_tables(tmp_path, store, no_ridge):
    """One point: no choice of points, so by the last epoch it is that point's score on the plain
    view."""
    config(tmp_path, store, kind="[density]", lr="[3e-2]")
    result = run_sweep(SweepConfig.load(tmp_path / "sweep.yaml"), tmp_path / "runs", "cpu", False)
    honest = json.loads((result.path / "summary.json").read_text())["honest"]
    assert honest["last"] == pytest.approx(result.summary["score_last"].iloc[0], abs=1e-9)
    best_plain = json.loads(
        (result.path / result.best / "metrics.jsonl").read_text().splitlines()[-1]
    )["score"]
    assert honest["plain"] == pytest.approx(best_plain, abs=1e-9)


def test_rules_are_judged_and_applied(tmp_path, store):
    given = config(tmp_path, store, kind="[cls_gating]", lr="[3e-2]", postprocess=RULES)
    result = run_sweep(given, tmp_path / "runs", "cpu", False)
    summary = json.loads((result.path / "summary.json").read_text())
    judged = summary["postprocess"]
    assert set(judged) == {
        "all",
        "none",
        "without wa_dead_zero",
        "without clip Dry_Total_g to 0..60",
        "without factor Dry_Clover_g x 0.5",
    }
    assert (
        judged["all"] == pytest.approx(result.summary["score_last"].iloc[0])
        and judged["all"] != judged["none"]
    )
    oof = pd.read_csv(result.path / result.best / "oof.csv")
    np.testing.assert_allclose(oof["Dry_Total_g"], oof["GDM_g"] + oof["Dry_Dead_g"], atol=1e-9)
    assert set(oof["predicted_State"]) <= {"Tas", "Vic", "NSW"}


def test_a_rule_no_head_can_follow_is_refused_before_any_step(tmp_path, store):
    config(tmp_path, store, postprocess="[{rule: wa_dead_zero}]")
    with pytest.raises(InputError, match="density tells none"):
        run_sweep(SweepConfig.load(tmp_path / "sweep.yaml"), tmp_path / "runs", "cpu", False)
    assert not (tmp_path / "runs").exists()


def test_a_clip_upside_down_is_refused(tmp_path, store):
    with pytest.raises(InputError, match="low 9 above high 3"):
        config(tmp_path, store, postprocess="[{rule: clip, target: GDM_g, low: 9, high: 3}]")


@pytest.mark.filterwarnings("default:.*more than one fold")
def test_another_tools_folds_are_taken_and_torn_sites_warned_of(tmp_path, store):
    config(tmp_path, store, kind="[density]", lr="[3e-2]")
    ids = [f"ID{i}" for i in range(30)]
    pd.DataFrame({"image_id": ids[::-1], "fold": np.arange(30) % 4, "note": "x"}).to_csv(
        tmp_path / "theirs.csv", index=False
    )
    arguments = [
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--folds",
        tmp_path / "theirs.csv",
        "--out",
        tmp_path / "runs",
    ]
    out = biomass(*arguments, "--device", "cpu")
    assert "10 sites in more than one fold" in out.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    kept = pd.read_csv(folder / "folds.csv").set_index("image_id")
    assert kept.loc["ID29", "r00"] == 0 and kept.loc["ID28", "r00"] == 1
    assert len(list(folder.glob("0*/weights/last_fold3.safetensors"))) == 1


def test_our_folds_given_back_are_the_same_sweep(tmp_path, store):
    config(tmp_path, store, kind="[density]", lr="[3e-2]", repeats=2)
    made = run_sweep(SweepConfig.load(tmp_path / "sweep.yaml"), tmp_path / "a", "cpu", False)
    theirs = SweepConfig.load(
        tmp_path / "sweep.yaml", {"cv.folds": made.path / "folds.csv", "cv.repeats": 1}
    )
    given = run_sweep(theirs, tmp_path / "b", "cpu", False)
    assert (made.path / "summary.csv").read_bytes() == (given.path / "summary.csv").read_bytes()


def test_states_and_dates_can_be_left_out(tmp_path, store):
    for groups, n_folds in (("state", 3), ("date", 3)):
        config(tmp_path, store, kind="[density]", lr="[3e-2]", n_folds=n_folds)
        result = run_sweep(
            SweepConfig.load(tmp_path / "sweep.yaml", {"cv.groups": groups}),
            tmp_path / groups,
            "cpu",
            False,
        )
        folds = pd.read_csv(result.path / "folds.csv")
        assert (folds.groupby("group")["r00"].nunique() == 1).all()
        assert result.summary["low"][0] == 0  # sites are drawn: groups are too few


def test_a_huge_grid_is_counted_and_asks_for_a_flag(tmp_path, store):
    numbers = ", ".join(str(i / 1000) for i in range(1, 1102))
    config(tmp_path, store, kind="[density]", lr=f"[{numbers}]")
    arguments = ["train", "--config", tmp_path / "sweep.yaml", "--device", "cpu"]
    assert (
        "a grid of 1101 points; if that is meant, add --yes"
        in biomass(*arguments, "--plan", code=2).stderr
    )


def test_the_plan_counts_regressors_and_time(tmp_path, store):
    config(tmp_path, store, kind="[density, ridge]")
    out = biomass("train", "--config", tmp_path / "sweep.yaml", "--device", "cpu", "--plan").stdout
    assert "heads    6 = 3 splits x 2 points, and 3 regressors" in out
    assert re.search(
        r"time     about \S+ m?s: a step takes \S+ m?s, a fit of ridge \S+ m?s here", out
    )


def test_the_plan_times_each_regressor_and_the_ridge_beside(tmp_path, store, monkeypatch):
    sweep = prepare_sweep(config(tmp_path, store, kind="[pls, ridge]", lr="[1e-2]"), "cpu")
    # the clock moves by a second in a fit and nowhere else
    clock = [0.0]
    original = fits.fit_splits
    monkeypatch.setattr(fits.time, "monotonic", lambda: clock[0])

    def slow(*arguments):
        clock[0] += 3600
        return original(*arguments)

    monkeypatch.setattr(fits, "fit_splits", slow)
    # 3 splits of pls, of ridge, of the ridge beside them
    said = "time     about 9 h: a fit of pls 60 min, a fit of ridge 60 min here"
    assert said in str(measure_costs(sweep))


@pytest.mark.filterwarnings("ignore:.*more than one fold")
def test_a_fold_the_table_does_not_have_is_refused(tmp_path, store):
    table = pd.DataFrame(
        {"image_id": [f"ID{i}" for i in range(30)], "fold": np.arange(30) % 10 % 7}
    )
    table.to_csv(tmp_path / "f.csv", index=False)
    config(tmp_path, store, kind="[density]", lr="[3e-2]")
    for fold, works in ((6, True), (7, False)):
        sweep = SweepConfig.load(
            tmp_path / "sweep.yaml", {"cv.folds": tmp_path / "f.csv", "cv.fold": fold}
        )
        if works:
            assert len(prepare_sweep(sweep, "cpu").splits) == 1
        else:
            with pytest.raises(InputError, match="no fold 7.*the 7 folds"):
                prepare_sweep(sweep, "cpu")


def test_what_is_for_reports_only_is_never_the_best(tmp_path, store, no_ridge):
    config(tmp_path, store, kind="[hist_gbdt, density]", lr="[1e-30]")
    result = run_sweep(
        SweepConfig.load(tmp_path / "sweep.yaml", {"cv.fold": "all"}),
        tmp_path / "runs",
        "cpu",
        False,
    )
    left_out = result.summary["name"][0]
    assert "hist_gbdt" in left_out and "density" in result.best
    assert (result.path / "refit" / result.best / "weights/last_all.safetensors").exists()
    said = []
    chosen = chosen_runs([result.path], "all", said.append)
    assert [run.path.name for run in chosen] == [result.best]
    assert said == [f"without {left_out}: failed, or for reports only"]


def test_differences_and_the_honest_estimate_are_of_what_can_be_chosen(tmp_path, store, no_ridge):
    result = run_sweep(
        config(tmp_path, store, kind="[hist_gbdt, density]", lr="[1e-30]"),
        tmp_path / "runs",
        "cpu",
        False,
    )
    summary = json.loads((result.path / "summary.json").read_text())
    rows = result.summary.set_index("name")
    assert (
        "hist_gbdt" in rows.index[0]
        and rows["vs_best"].iloc[0] > 0
        and rows.loc[result.best, "vs_best"] == 0
    )
    assert summary["honest"]["points"] == [result.best]
    assert summary["honest"]["last"] == pytest.approx(rows.loc[result.best, "score_last"])


def test_a_sweep_of_what_is_for_reports_only_has_no_best(tmp_path, store):
    result = run_sweep(config(tmp_path, store, kind="[hist_gbdt]"), tmp_path / "runs", "cpu", False)
    assert (
        result.best is None
        and result.notes[0] == "there is no best point: all failed, or are for reports only"
    )
    with pytest.raises(InputError, match="no best run: all points failed, or are for reports only"):
        best_run(result.path)


def test_sites_too_few_for_an_interval_are_counted(tmp_path, store):
    config(tmp_path, store)
    result = run_sweep(
        SweepConfig.load(tmp_path / "sweep.yaml", {"cv.fold": 1}), tmp_path / "runs", "cpu", False
    )
    held_out = pd.read_csv(result.path / "folds.csv").query("r00 == 1")["site"].nunique()
    assert result.summary["low"].isna().all()
    assert result.notes[0] == (
        "which points can be told apart from the best is not known: "
        f"{held_out} sites are held out, too few for an interval, which takes 6"
    )


def test_sites_that_share_a_photograph_are_drawn_as_one(tmp_path, store):
    sweep, folder = (
        prepare_sweep(config(tmp_path, store, kind="[ridge]"), "cpu"),
        SweepFolder.create(tmp_path, "copies"),
    )
    # ten sites in pairs
    catalog = sweep.data.catalog.assign(sha256=[f"{i // 2 if i < 10 else i:x}" for i in range(30)])
    sweep = replace(sweep, data=replace(sweep.data, catalog=catalog))
    fitted = close_regressor(sweep, 0, folder.run("ridge"), Note(folder.fit_note(0)))
    result = finish(sweep, folder, [fitted], [])
    assert "5 sites are held out" in result.notes[0] and np.isnan(result.summary["low"][0])


@pytest.mark.filterwarnings("ignore:.*3 sites for 3 photographs")
def test_ridge_that_cannot_be_fitted_is_left_out(tmp_path):
    three = write_store(tmp_path / "three.h5", n=3)
    with pytest.warns(
        UserWarning, match="ridge on all pooled rows, to compare with, is left out: 1 training rows"
    ):
        result = run_sweep(
            config(tmp_path, three, kind="[density]", n_folds=2), tmp_path / "runs", "cpu", False
        )
    assert result.summary["name"].tolist()[2:] == ["mean"]


def test_spellings_of_the_same_point_are_one(tmp_path, store):
    twice = config(
        tmp_path,
        store,
        kind="[pooled_mlp, ridge]",
        lr="[1e-2]",
        mixup="[patches, pooled]",
        seed="[0, 1]",
    )
    assert [point.head.kind for point in twice.points] == ["pooled_mlp", "pooled_mlp", "ridge"]


def test_a_moved_store_is_named_at_resume(tmp_path, store):
    config(tmp_path, store, kind="[density]", lr="[3e-2]")
    done = run_sweep(
        SweepConfig.load(tmp_path / "sweep.yaml"), tmp_path / "runs", "cpu", False
    ).path
    moved = tmp_path / "moved.h5"
    moved.write_bytes(store.read_bytes())
    plan = json.loads((done / "sweep.json").read_text())
    plan["base"]["dataset"]["store"] = str(tmp_path / "gone.h5")
    (done / "sweep.json").write_text(json.dumps(plan))
    assert "gone.h5" in biomass("train", "--resume", done, "--fold", "all", code=3).stderr
    assert (
        str(done / "refit")
        in biomass("train", "--resume", done, "--fold", "all", "--store", moved).stdout
    )


def test_tensorboard_is_asked_for_by_name_where_it_is_absent(tmp_path, store, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    config(tmp_path, store)
    with pytest.raises(InputError, match="pip install tensorboard"):
        run_sweep(
            SweepConfig.load(tmp_path / "sweep.yaml", {"trainer.tensorboard": True}),
            tmp_path / "runs",
            "cpu",
            False,
        )


def test_errors_noted_each_epoch_are_those_of_the_scores(tmp_path, store):
    """What every head noted while it trained, against the scores that its epochs were logged
    with."""
    sweep = prepare_sweep(config(tmp_path, store, epochs=3, repeats=2), "cpu")
    folder, points = SweepFolder.create(tmp_path, "noted"), range(4)
    runs = {p: folder.run(name) for p, name in enumerate(sweep.config.names)}
    trainers = train_pass(
        sweep, points, runs, Checkpoint(tmp_path / "checkpoint"), sweep.reader(), progress=False
    )

    truth_N5 = sweep.data.truth_NK[:, [2, 3, 4, 1, 0]]
    weight_N5 = np.broadcast_to([0.1, 0.1, 0.1, 0.2, 0.5], truth_N5.shape)
    spread = np.sum(weight_N5 * (truth_N5 - np.average(truth_N5, weights=weight_N5)) ** 2)
    for trainer in trainers:
        for g, p in enumerate(trainer.points):
            error_ERF = np.array(trainer.errors_QG)[:, :, g].reshape(3, 2, 3)
            by_errors_E = np.mean(1 - error_ERF.sum(2) / spread, 1)
            lines = (runs[p].path / "metrics.jsonl").read_text().splitlines()
            logged_E = [json.loads(line)["score"] for line in lines]
            assert by_errors_E == pytest.approx(logged_E, rel=1e-9)
            assert len(set(logged_E)) == 3
