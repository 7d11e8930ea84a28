"""K7: a sweep goes on only under the settings, labels, folds, tokens and passes that it began
with."""

import json
import shutil

import pandas as pd
import pytest
from commands import biomass
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sweeps import config, write_store

from featurestore.errors import MismatchError, StoreDamaged
from trainer.loop import checkpoint
from trainer.loop.grid import SweepConfig
from trainer.loop.identity import Identity
from trainer.loop.prepare import prepare_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.runs import SweepFolder
from trainer.loop.sweep import run_sweep


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """Two passes of two points, a regressor beside them; the checkpoints are kept as a stop would
    leave them."""
    folder = tmp_path_factory.mktemp("began")
    config(folder, store, kind="[density, ridge]", lr="[3e-2, 1e-2]", epochs=2)
    given = SweepConfig.load(folder / "sweep.yaml", {"trainer.passes": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepFolder, "remove_checkpoints", lambda _: None)
        return run_sweep(given, folder, "cpu", progress=False).path


@pytest.fixture
def stopped(finished, tmp_path):
    """The same before its leaderboard."""
    folder = shutil.copytree(finished, tmp_path / "stopped")
    for name in ("summary.json", "summary.csv"):
        (folder / name).unlink()
    return folder


def edit(folder, key, value):
    """A key of the base in sweep.json; `axes.KEY` for an axis."""
    plan = json.loads((folder / "sweep.json").read_text())
    kind, _, axis = key.partition(".")
    if kind == "axes":
        plan["axes"][axis] = value
    else:
        section, name = key.split(".")
        plan["base"][section][name] = value
    (folder / "sweep.json").write_text(json.dumps(plan))


def files_of(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def change_checkpoints(folder, change):
    """Rewrite the identity that each checkpoint keeps, or drop it (None), as a program of another
    time would have written it."""
    for file in folder.glob("checkpoints/*"):
        with safe_open(file, "pt") as opened:
            text = change(json.loads(opened.metadata()["identity"]))
        state = load_file(file)
        crc = checkpoint.checksum(sorted(state.items()), text or "")
        save_file(state, file, {"crc32c": crc} | ({"identity": text} if text else {}))


SETTINGS = {
    "a rate": ("axes.optimization.lr", [0.03, 0.02], "optimization.lr was 0.01 and is 0.02 now"),
    "the seed": ("experiment.seed", 6, "experiment.seed was 5 and is 6 now"),
    "epochs": ("trainer.num_epochs", 3, "trainer.num_epochs was 2 and is 3 now"),
    "views": ("inference.tta_indices", [0], r"inference.tta_indices was \[0, 2\] and is \[0\] now"),
}


@pytest.mark.parametrize("key, value, message", SETTINGS.values(), ids=SETTINGS)
def test_K7_an_edited_setting_is_refused_with_both_values(stopped, key, value, message):
    edit(stopped, key, value)
    before = files_of(stopped)
    with pytest.raises(MismatchError, match=message):
        resume_sweep(stopped, progress=False)
    assert files_of(stopped) == before


def test_K7_the_command_says_so_with_exit_code_5(stopped):
    edit(stopped, "experiment.seed", 6)
    said = biomass("train", "--resume", stopped, code=5).stderr
    assert "experiment.seed was 5 and is 6 now; bring that back, or remove" in said


def test_K7_what_moves_no_number_may_change(stopped, finished):
    for key, value in (
        ("experiment.name", "renamed"),
        ("trainer.checkpoint_every", 1),
        ("trainer.memory_gb", 4.0),
        ("head.queries", 7),  # these kinds have none
        ("cv.strata", []),  # folds are made
    ):
        edit(stopped, key, value)
    resumed, began = (
        pd.read_csv(path / "summary.csv").drop(columns="name")
        for path in (resume_sweep(stopped, progress=False).path, finished)
    )
    pd.testing.assert_frame_equal(resumed, began)


def test_K7_checkpoints_of_another_sweep_are_refused(stopped, store, tmp_path, monkeypatch):
    config(tmp_path, store, kind="[density, ridge]", lr="[5e-2, 4e-2]", epochs=2)
    monkeypatch.setattr(SweepFolder, "remove_checkpoints", lambda _: None)
    other = run_sweep(
        SweepConfig.load(tmp_path / "sweep.yaml", {"trainer.passes": 2}),
        tmp_path,
        "cpu",
        progress=False,
    ).path
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(other / "checkpoints", stopped / "checkpoints")
    with pytest.raises(MismatchError, match=r"points0-0.*optimization.lr was 0.05 and is 0.03 now"):
        resume_sweep(stopped, progress=False)


def test_K7_a_store_with_other_labels_is_refused(stopped, tmp_path):
    other = write_store(tmp_path / "other.h5", seed=1)
    said = biomass("train", "--resume", stopped, "--store", other, code=5).stderr
    assert "other.h5" in said and "the labels are not those that the sweep began with" in said


def test_K7_other_folds_are_refused(stopped):
    folds = pd.read_csv(stopped / "folds.csv")
    folds.assign(r00=(folds["r00"] + 1) % 3).to_csv(stopped / "folds.csv", index=False)
    with pytest.raises(
        MismatchError, match=r"folds.csv: the folds are not those that the sweep began with"
    ):
        resume_sweep(stopped, progress=False)


def test_K7_the_checkpoint_itself_knows_labels_folds_and_tokens(stopped, store, tmp_path):
    sweep = prepare_sweep(config(tmp_path, store, kind="[density]", lr="[1e-2]"), "cpu")
    now, saved = Identity.of(sweep, [0]), json.loads(Identity.of(sweep, [0]).to_json())
    for name in ("fingerprint", "pooled_dtype", "labels", "folds"):
        other = saved | {"facts": saved["facts"] | {name: "x"}}
        with pytest.raises(MismatchError, match=f"here: .*{name}.* the sweep began with"):
            now.check(Identity.from_json(json.dumps(other), tmp_path), "here", "do something")


@pytest.mark.parametrize(
    "passes, message",
    [
        ([[0, 1]], "of no pass in sweep.json"),
        ([[0]], r"grid has \[0, 1\] to train"),
        ([[1], [0]], None),
    ],
)
def test_K7_other_passes_are_refused(stopped, passes, message):
    plan = json.loads((stopped / "sweep.json").read_text())
    (stopped / "sweep.json").write_text(json.dumps(plan | {"passes": passes}))
    if message is None:  # the same passes in another order
        assert resume_sweep(stopped, progress=False).best
    else:
        with pytest.raises(MismatchError, match=message):
            resume_sweep(stopped, progress=False)


def test_K7_a_checkpoint_keeps_no_paths(stopped, store):
    for file in stopped.glob("checkpoints/*"):
        with safe_open(file, "pt") as opened:
            kept = json.loads(opened.metadata()["identity"])
        assert len(kept["points"]) == 1 and str(store.parent) not in json.dumps(kept)


def test_K7_a_checkpoint_of_more_points_says_which(store, tmp_path):
    sweep = prepare_sweep(config(tmp_path, store, kind="[density]", lr="[1e-2, 2e-2]"), "cpu")
    with pytest.raises(
        MismatchError,
        match=r"holds 2 points \(001_.*, 002_.*\), and this pass trains 1 point \(001_",
    ):
        Identity.of(sweep, [0]).check(Identity.of(sweep, [0, 1]), "here", "do something")


def test_K7_a_key_that_was_added_since_has_its_old_meaning(stopped):
    def without(identity):
        for point in identity["points"].values():
            del point["cv"]["tta"]
        return json.dumps(identity)

    change_checkpoints(stopped, without)
    kept = shutil.copytree(stopped, stopped.with_name("kept"))
    assert resume_sweep(stopped, progress=False).best
    edit(kept, "cv.tta", False)
    with pytest.raises(MismatchError, match="cv.tta was true and is false now"):
        resume_sweep(kept, progress=False)


def test_K7_a_checkpoint_of_before_is_taken_with_a_warning(stopped, finished):
    change_checkpoints(stopped, lambda _: None)
    with pytest.warns(UserWarning, match="made before checkpoints kept their settings"):
        resume_sweep(stopped, progress=False)
    assert (stopped / "summary.csv").read_bytes() == (finished / "summary.csv").read_bytes()


@pytest.mark.parametrize(
    "kept, flipped",
    [
        (rb"\"weight_decay\": 0.01", rb"\"weight_decay\": 0.41"),
        (rb"\"num_epochs\"", rb"\"num_epocis\""),
        (rb"\"order\"", rb"\"orddr\""),
    ],
    ids=["a number", "a key", "a choice"],
)
def test_K7_a_flipped_bit_of_the_settings_is_damage_not_another_setting(stopped, kept, flipped):
    for file in stopped.glob("checkpoints/*"):
        content = file.read_bytes()
        assert kept in content
        file.write_bytes(content.replace(kept, flipped))
    with pytest.raises(StoreDamaged, match="CRC-32C"):
        resume_sweep(stopped, progress=False)


def test_K7_a_refit_of_a_finished_sweep_is_of_its_own_settings(finished, tmp_path):
    for key, value, message in (
        ("experiment.seed", 6, "experiment.seed was 5 and is 6 now"),
        ("axes.optimization.lr", [0.031, 0.012], "has no point 00._tiny.* any more"),
    ):
        folder = shutil.copytree(finished, tmp_path / key)
        shutil.rmtree(folder / "checkpoints")
        edit(folder, key, value)
        summary = json.loads((folder / "summary.json").read_text())
        best = next(point["name"] for point in summary["points"] if "density" in point["name"])
        (folder / "summary.json").write_text(json.dumps(summary | {"best": best, "chosen": None}))
        with pytest.raises(MismatchError, match=message):
            resume_sweep(folder, "all", progress=False)
        assert not (folder / "refit").exists()


def test_K7_a_refit_of_a_sweep_of_before_is_warned_of(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "before")
    plan = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(
        json.dumps({k: v for k, v in plan.items() if k not in ("labels", "folds")})
    )
    with pytest.warns(UserWarning, match="made before sweeps kept digests of labels and folds"):
        assert resume_sweep(folder, "all", progress=False).best
    assert SweepFolder(folder).is_refitted


def test_a_checkpoints_tensors_have_the_names_they_always_had(stopped):
    """Sweeps that were stopped by an older program must go on."""
    first, *_ = sorted(stopped.glob("checkpoints/points*.safetensors"))
    parts = {name.split("/")[1] for name in load_file(first)}
    noted = {"best_score", "best_epoch", "failed", "losses", "errors", "counts"}
    assert parts == noted | {"weights", "grad", "average", "best", "adamw"}
