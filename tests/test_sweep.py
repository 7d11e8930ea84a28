"""A head in a sweep is the head trained alone; nothing held out reaches it; what a sweep leaves."""

import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import biomass
from plain_heads import plain_masses
from preset import BY, TARGETS, csiro
from sweeps import TRAINED, as_found, config, train_epoch

from featurestore.disk.usable import Memory
from featurestore.errors import InputError, MismatchError
from trainer.data.dataset import TrainingData
from trainer.data.tokens import TokenReader
from trainer.loop.costs import measure_costs
from trainer.loop.evaluate import predict_held_out, score
from trainer.loop.grid import SweepConfig
from trainer.loop.plan import too_large
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.sweep import run_sweep
from trainer.score.metrics import weighted_r2


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return run_sweep(
        config(folder, store, epochs=30, repeats=2), folder / "runs", "cpu", progress=False
    )


def trained(sweep, points):
    """Trainers after all epochs, in float64."""
    trainers, reader = sweep.trainers(points), sweep.reader()
    for epoch in range(sweep.base.trainer.num_epochs):
        train_epoch(sweep, trainers, reader, epoch)
    return trainers


EVERYTHING = {
    "mixup": "[patches, pooled, same_site, none]",
    "alpha": "[0.4]",
    "space": "[raw, sqrt, log1p]",
    "intervals": "[0, 3]",
    "seed": "[0, 1]",
    "lr": "[3e-2]",
    "epochs": 6,
    "accumulate": 2,
    "repeats": 2,
}


def head_of(trainers, p):
    """The trainer and place that hold a point."""
    return next((t, t.points.index(p)) for t in trainers if p in t.points)


def assert_same_head(ours, theirs, q, g, q2, g2):
    for source in (lambda t: t.bank.tensors, lambda t: t.optimizer.average):
        for name, tensor in source(theirs).items():
            a, b = source(ours)[name][q, g].detach(), tensor[q2, g2].detach()
            assert (a - b).norm() <= 1e-9 * b.norm(), name


# with cls_gating and attention on normalised tokens: test-system
QUICK = [(kind, "false") for kind in TRAINED] + [("density", "true"), ("pooled_mlp", "true")]
LONG = [
    pytest.param(kind, "true", marks=pytest.mark.system) for kind in ("cls_gating", "attention")
]


@pytest.mark.parametrize("kind, normalize", QUICK + LONG)
def test_a_head_in_a_sweep_equals_the_same_head_alone(tmp_path, store, kind, normalize):
    """float64, 12 batches, dropout, averages, accumulation, repeats, every mixup, space, seed: 1e-9
    of each tensor's norm."""
    whole = prepare_sweep(
        config(tmp_path, store, kind=f"[{kind}]", normalize=normalize, **EVERYTHING),
        "cpu",
        torch.float64,
    )
    together, n_points = trained(whole, range(len(whole.config.points))), len(whole.config.points)
    for p in (1, n_points // 2, n_points - 1):
        q = 4
        one = Sweep.of(whole.config, whole.data, whole.folds, [whole.splits[q]])
        (alone,) = trained(one, [p])
        ours, g = head_of(together, p)
        assert alone.optimizer.n_done == 6 and len(ours.points) > 1
        assert_same_head(ours, alone, q, g, 0, 0)


def test_kinds_together_and_in_passes_give_the_same_heads(tmp_path, store):
    sweep = prepare_sweep(
        config(tmp_path, store, kind=f"[{', '.join(TRAINED)}]", mixup="[patches, pooled]"),
        "cpu",
        torch.float64,
    )
    points = range(len(sweep.config.points))
    together = trained(sweep, points)
    for part in (points[::2], points[1:2], points[3::2]):
        apart = trained(sweep, part)
        for p in part:
            (ours, g), (theirs, g2) = head_of(together, p), head_of(apart, p)
            for q in range(len(sweep.splits)):
                assert_same_head(ours, theirs, q, g, q, g2)


def test_the_order_of_points_and_folds_changes_no_head(tmp_path, store):
    forth = prepare_sweep(config(tmp_path, store, lr="[3e-2, 1e-2]"), "cpu", torch.float64)
    back = prepare_sweep(config(tmp_path, store, lr="[1e-2, 3e-2]"), "cpu", torch.float64)
    back = Sweep.of(back.config, back.data, back.folds, back.splits[::-1])
    ours, g = head_of(trained(forth, range(4)), 0)
    theirs, g2 = head_of(trained(back, range(4)), 1)
    assert_same_head(ours, theirs, 0, g, 2, g2)


@pytest.mark.parametrize("normalize", ["true", "false"], ids=["normalised", "as stored"])
@pytest.mark.parametrize("intervals", [0, 3], ids=["", "with intervals"])
def test_a_saved_head_is_a_plain_torch_module_with_equal_output(
    tmp_path, store, normalize, intervals
):
    changes = {
        "kind": f"[{', '.join(TRAINED)}]",
        "lr": "[1e-2]",
        "normalize": normalize,
        "intervals": intervals,
    }
    sweep = prepare_sweep(config(tmp_path, store, **changes), "cpu")
    for trainer in trained(sweep, range(len(TRAINED))):
        raw_GRN5 = predict_held_out(
            [trainer.averaged], sweep.data, sweep.reader(), sweep.splits, 8
        )[0].values_GRNK
        for q, split in enumerate(sweep.splits):
            i = split.val_N[2]
            row = sweep.data.store[int(i)]
            state = trainer.averaged.head_state(q, 0)
            with torch.no_grad():
                masses = plain_masses(
                    state, torch.tensor(row.cls(0)).float(), torch.tensor(row.patches(0)).float()
                )
            np.testing.assert_allclose(raw_GRN5[0, 0, i], masses.numpy(), rtol=1e-4, atol=1e-5)


def test_heads_learn_what_the_tokens_hold(finished):
    """What is needed to learn is test_learning's; this is how far thirty epochs come here: .68 and
    .61."""
    summary = finished.summary.set_index("name")
    fast = summary[summary["optimization.lr"] == 3e-2]
    assert len(fast) == 2 and (fast["score_last"] > 0.55).all() and fast["score_last"].max() > 0.64
    assert 0.15 < summary.loc["mean", "score_last"] < 0.3
    assert (fast["sd_last"] > 0).all()


def test_a_sweep_leaves_what_the_readme_lists(finished):
    files = {
        str(p.relative_to(finished.path))
        for p in finished.path.rglob("*")
        if p.is_file() and p.suffix != ".lock"
    }
    run = "001_tiny__kind-cls_gating__lr-0_03__weight_decay-0_01"
    assert {"folds.csv", "summary.csv", "summary.json", "leaderboard.png"} <= files
    assert {
        f"{run}/{name}"
        for name in (
            "config.yaml",
            "spec.json",
            "metrics.jsonl",
            "oof.csv",
            "training_curves.png",
            "weights/best_r00_fold0.safetensors",
            "weights/last_r01_fold2.safetensors",
        )
    } <= files
    assert len([f for f in files if f.startswith(run + "/weights")]) == 2 * 2 * 3
    assert len((finished.path / run / "metrics.jsonl").read_text().splitlines()) == 30


def test_the_oof_table_gives_the_score_of_the_summary(finished):
    best = json.loads((finished.path / "summary.json").read_text())["best"]
    oof = pd.read_csv(finished.path / best / "oof.csv").query("weights == 'last'")
    assert sorted(oof.query("repeat == 1")["image_id"]) == sorted(f"ID{i}" for i in range(30))
    by_repeat = [
        weighted_r2(part[[f"true_{t}" for t in TARGETS]].to_numpy(), part[list(TARGETS)].to_numpy())
        for _, part in oof.groupby("repeat")
    ]
    score = finished.summary.set_index("name").loc[best, "score_last"]
    assert np.mean(by_repeat) == pytest.approx(score, abs=1e-9)
    assert np.allclose(oof["GDM_g"], oof["Dry_Green_g"] + oof["Dry_Clover_g"], atol=1e-6)
    assert oof[list(TARGETS)].to_numpy().min() >= 0


def test_one_seed_one_result(tmp_path, store, finished):
    again = run_sweep(
        config(tmp_path, store, epochs=30, repeats=2), tmp_path / "runs", "cpu", progress=False
    )
    for name in ("folds.csv", "summary.csv", "summary.json"):
        assert as_found(again.path / name) == as_found(finished.path / name)


def with_trainer(given: SweepConfig, **keys) -> SweepConfig:
    """The config with some keys of its trainer section set."""
    trainer = given.base.trainer.model_copy(update=keys)
    return replace(given, base=given.base.model_copy(update={"trainer": trainer}))


def passes_of(given: SweepConfig) -> list[list[int]]:
    return prepare_sweep(given, "cpu").plan().passes


def test_points_share_as_few_passes_as_the_stated_memory_allows(tmp_path, store):
    given = config(tmp_path, store)
    assert passes_of(given) == [[0, 1, 2, 3]]
    for budget in (1.2e-4, 1e-4):
        plan = prepare_sweep(with_trainer(given, memory_gb=budget), "cpu").plan()
        assert len(plan.passes) > 1 and sum(plan.passes, []) == [0, 1, 2, 3]
        assert plan.pass_bytes <= budget * 1e9
    assert passes_of(with_trainer(given, memory_gb=1e-9)) == [[0], [1], [2], [3]]


def test_passes_do_not_depend_on_the_memory_that_is_free(tmp_path, store, monkeypatch):
    given = with_trainer(config(tmp_path, store), memory_gb=1e-4)
    before = passes_of(given)
    monkeypatch.setattr("trainer.loop.plan.usable_memory", lambda: Memory(1000, "a limit"))
    assert passes_of(given) == before


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_as_many_passes_are_made_as_are_asked_for(tmp_path, store, n):
    passes = passes_of(with_trainer(config(tmp_path, store), passes=n))
    assert len(passes) == n and sum(passes, []) == [0, 1, 2, 3] and all(passes)


def test_more_passes_than_points_are_refused(tmp_path, store):
    with pytest.raises(InputError, match=r"trainer.passes \(--passes\) 5: the grid has 4 points"):
        passes_of(with_trainer(config(tmp_path, store), passes=5))


def test_the_command_line_says_how_many_passes(tmp_path, store):
    config(tmp_path, store, epochs=1)
    arguments = ["train", "--config", tmp_path / "sweep.yaml", "--device", "cpu", "--passes", 2]
    assert "passes   2, " in biomass(*arguments, "--plan").stdout
    biomass(*arguments, "--out", tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "sweep.json").read_text())["passes"] == [[0, 1], [2, 3]]
    said = biomass("train", "--resume", folder, "--passes", 2, code=2).stderr
    assert "--resume takes folds, images and passes" in said


@pytest.mark.parametrize(
    "option", [["--device", "cpu"], ["--out", "runs"], ["--yes"], ["--plan"], ["--fold", "1"]]
)
def test_options_that_a_resumed_sweep_has_its_own_of_are_refused(tmp_path, option):
    said = biomass("train", "--resume", tmp_path, *option, code=2).stderr
    assert f"leave out {' '.join(option) if option[0] == '--fold' else option[0]}" in said


def test_a_pass_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, store, monkeypatch
):
    monkeypatch.setattr("trainer.loop.plan.usable_memory", lambda: Memory(100_000, "a limit"))
    given = config(tmp_path, store)
    says = (
        r"trainer.memory_gb: the largest pass needs .* on cpu this process may use 0.0001 GB "
        r"\(a limit\); lower"
    )
    with pytest.raises(InputError, match=says):
        run_sweep(given, tmp_path / "runs", "cpu", progress=False)
    assert not (tmp_path / "runs").exists()
    assert "refused  trainer.memory_gb" in str(measure_costs(prepare_sweep(given, "cpu")))


def test_L5_with_a_memory_gb_below_what_is_usable_the_same_sweep_plans_within_it(
    tmp_path, store, monkeypatch
):
    given = config(tmp_path, store)
    whole = prepare_sweep(given, "cpu").plan()
    monkeypatch.setattr(
        "trainer.loop.plan.usable_memory", lambda: Memory(whole.pass_bytes - 1, "a limit")
    )
    assert too_large(whole, torch.device("cpu"))
    smaller = prepare_sweep(
        with_trainer(given, memory_gb=0.6 * whole.pass_bytes / 1e9), "cpu"
    ).plan()
    assert too_large(smaller, torch.device("cpu")) is None
    assert smaller.pass_bytes <= 0.6 * whole.pass_bytes


def test_L5_a_refit_of_a_regressor_on_all_images_is_counted(tmp_path, store):
    sweep = prepare_sweep(config(tmp_path, store, kind="[ridge]"), "cpu")
    of_folds = sweep.plan(refits=False).fit_bytes
    assert sweep.plan(refits=True).fit_bytes > of_folds == sweep.plan().fit_bytes


def test_L5_a_resumed_sweep_that_does_not_fit_is_refused_before_it_goes_on(
    tmp_path, store, monkeypatch
):
    given = config(tmp_path, store, kind="[ridge, cls_gating]", epochs=1)
    whole = run_sweep(given, tmp_path / "runs", "cpu", progress=False).path
    trained = prepare_sweep(given, "cpu").plan().pass_bytes
    monkeypatch.setattr("trainer.loop.plan.usable_memory", lambda: Memory(1000, "a limit"))
    # the refit alone is left of a finished sweep
    with pytest.raises(InputError, match="free memory, or go on where there is more"):
        resume_sweep(whole, "all", progress=False)
    assert not (whole / "refit").exists()

    (whole / "summary.json").unlink()
    monkeypatch.setattr("trainer.loop.plan.usable_memory", lambda: Memory(trained - 1, "a limit"))
    with pytest.raises(InputError, match="the largest pass needs .* go on where there is more"):
        resume_sweep(whole, progress=False)


def test_L5_a_fit_that_does_not_fit_is_refused_too(tmp_path, store, monkeypatch):
    monkeypatch.setattr("trainer.loop.plan.usable_memory", lambda: Memory(1000, "a limit"))
    with pytest.raises(
        InputError,
        match=r"head.features: the largest fit of a regressor needs .* 1e-06 GB \(a limit\)",
    ):
        run_sweep(config(tmp_path, store, kind="[ridge]"), tmp_path / "runs", "cpu", progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_step_reads_each_row_once_for_all_heads(tmp_path, store):
    sweep = prepare_sweep(config(tmp_path, store), "cpu")
    reader = sweep.reader()
    train_epoch(sweep, sweep.trainers(range(4)), reader, 0)
    rows = sum(len(sweep.stream.batch(0, s).rows_U2) for s in range(sweep.stream.n_steps))
    assert reader.n_bytes_read == rows * 2 * 6 * 7 * 2


def test_mapped_rows_are_not_copied_on_their_way_to_torch(store):
    data = TrainingData.open(config(store.parent, store).base, torch.float32, torch.device("cpu"))
    reader = TokenReader(data.store, data.device)
    assert reader.step([(3, 1)])[0].data_ptr() == data.store.patches[3, 1].ctypes.data


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("backbone.hidden_dim", 8, "hidden_dim is 7, the config says 8"),
        (
            "backbone.model_name",
            "vit_other",
            "model_name is 'made_up', the config says 'vit_other'",
        ),
        ("dataset.num_aug_patterns", 20, "num_aug_patterns is 3, the config says 20"),
    ],
)
def test_a_store_of_something_else_is_refused_with_both_values(
    tmp_path, store, key, value, message
):
    config(tmp_path, store)
    with pytest.raises(MismatchError, match=message):
        prepare_sweep(SweepConfig.load(tmp_path / "sweep.yaml", {key: value}), "cpu")


def test_labels_that_are_no_masses_are_refused_by_id(tmp_path):
    from trainer.heads.loss import labels_of

    catalog = pd.DataFrame(
        {
            "image_id": ["A", "B"],
            "Dry_Total_g": [1, -2.0],
            "GDM_g": [1, 1.0],
            "Dry_Green_g": [1, 1.0],
            "Dry_Dead_g": [0, 0.0],
            "Dry_Clover_g": [0, 0.0],
        }
    )
    with pytest.raises(InputError, match="1 image lacks.*\n  B"):
        labels_of(catalog, csiro(), torch.float32, torch.device("cpu"))
    with pytest.raises(InputError, match="no column GDM_g"):
        labels_of(catalog.drop(columns="GDM_g"), csiro(), torch.float32, torch.device("cpu"))


def test_one_fold_alone_gives_the_heads_of_the_whole(tmp_path, store):
    whole = trained(prepare_sweep(config(tmp_path, store), "cpu", torch.float64), [0])[0]
    one = SweepConfig.load(tmp_path / "sweep.yaml", {"cv.fold": 2})
    part = trained(prepare_sweep(one, "cpu", torch.float64), [0])[0]
    for name, tensor in part.averaged.tensors.items():
        assert torch.allclose(
            tensor[0, 0], whole.averaged.tensors[name][2, 0], rtol=1e-9, atol=1e-12
        )


def test_train_command_prints_a_leaderboard_and_a_plan(tmp_path, store):
    config(tmp_path, store, epochs=2)
    arguments = [
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--store",
        store,
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    ]
    plan = biomass(*arguments, "--plan").stdout
    assert "heads    12 = 3 splits x 4 points" in plan and not (tmp_path / "runs").exists()
    result = biomass(*arguments, "--fold", 1)
    assert "kind-density" in result.stdout and "ridge" in result.stdout
    assert len(list((tmp_path / "runs").glob("*/0*/weights/last_fold1.safetensors"))) == 4


@pytest.mark.parametrize(
    "change, code, message",
    [
        ("head: {kind: cls_gatling}", 3, "cls_gatling"),
        ("trainer: {num_epoch: 3}", 3, "did you mean trainer.num_epochs"),
        ("trainer: {batch_size: [8, 16]}", 3, "cannot be a grid axis"),
        ("optimization: {lr: []}", 3, "no values"),
    ],
)
def test_bad_configs_stop_with_one_line(tmp_path, store, change, code, message):
    path = tmp_path / "bad.yaml"
    base = {
        "experiment": "{name: x, seed: 0}",
        "head": "{kind: density}",
        "optimization": "{lr: 1e-3, weight_decay: 0}",
    }
    key, value = change.split(": ", 1)
    path.write_text("".join(f"{k}: {v}\n" for k, v in (base | {key: value}).items()))
    assert (
        message
        in biomass(
            "train", "--config", path, "--store", store, "--out", tmp_path / "r", code=code
        ).stderr
    )
    assert not (tmp_path / "r").exists()


def test_a_head_that_diverged_spoils_its_points_score(store, tmp_path):
    sweep = prepare_sweep(config(tmp_path, store, repeats=2), "cpu")
    truth = sweep.data.truth_table_NK
    prediction = np.stack([truth + 1, truth + 1])
    state = sweep.data.catalog["State"]
    assert np.isfinite(score(BY, TARGETS, truth, prediction, sweep.splits, state).mean)
    one = [s for s in sweep.splits if s.fold == 1]
    partly = np.full_like(prediction, np.nan)
    for s in one:
        partly[s.repeat, s.val_N] = prediction[s.repeat, s.val_N]
    assert np.isfinite(score(BY, TARGETS, truth, partly, one, state).mean)
    prediction[0, one[0].val_N] = np.nan
    assert np.isnan(score(BY, TARGETS, truth, prediction, sweep.splits, state).mean)


def test_lost_or_damaged_heads_are_named(tmp_path, finished):
    from trainer.loop.runs import RunFolder

    run = shutil.copytree(
        finished.path / "001_tiny__kind-cls_gating__lr-0_03__weight_decay-0_01", tmp_path / "run"
    )
    assert len(RunFolder(run).heads("last")) == 6
    (run / "weights/last_r01_fold2.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="last_r01_fold2.safetensors: damaged"):
        RunFolder(run).heads("last")
    (run / "weights/last_r01_fold2.safetensors").unlink()
    with pytest.raises(InputError, match="no last weights last_r01_fold2.safetensors"):
        RunFolder(run).heads("last")


def test_a_point_without_mixup_does_not_choose_it_for_the_others(tmp_path, store):
    """Points that are off stand in a bank with those that mix; they must not lend it their idle
    kind of mixup."""
    config(tmp_path, store, kind="[cls_gating]", lr="[3e-2]", mixup="[same_site, patches]")
    text = (tmp_path / "sweep.yaml").read_text().replace("enabled: true", "enabled: [false, true]")
    (tmp_path / "sweep.yaml").write_text(text)
    sweep = prepare_sweep(SweepConfig.load(tmp_path / "sweep.yaml"), "cpu", torch.float64)
    assert len(sweep.config.points) == 3
    together = trained(sweep, range(3))
    for p in range(3):
        (ours, g), (theirs, g2) = head_of(together, p), head_of(trained(sweep, [p]), p)
        assert_same_head(ours, theirs, 0, g, 0, g2)


def test_the_banks_of_a_pass_are_gone_before_the_next_one_begins(tmp_path, store, monkeypatch):
    """Passes are as large as memory allows: two of them at once would not fit."""
    alive = []

    def counted(checkpoint, trainers, _identity):
        alive.append([sum(ref() is not None for ref in alive_refs), len(trainers)])
        alive_refs.extend(weakref.ref(trainer) for trainer in trainers)

    alive_refs: list = []
    monkeypatch.setattr("trainer.loop.checkpoint.Checkpoint.load", counted)
    run_sweep(
        with_trainer(config(tmp_path, store, epochs=1), passes=3),
        tmp_path / "runs",
        "cpu",
        progress=False,
    )
    assert len(alive) > 1 and [before for before, _ in alive] == [0] * len(alive)
