"""K8: a sweep with points that failed says which, at which step, and by its exit code that a part
is missing."""

import json

import numpy as np
import pytest
import torch
from commands import biomass
from sweeps import config

from trainer.loop.resume import resume_sweep
from trainer.loop.runs import SweepFolder
from trainer.loop.sweep import run_sweep

pytestmark = pytest.mark.usefixtures("laid_out")


def train(folder, store, *arguments, code, **changes):
    """What `biomass train` says, and the folder it leaves."""
    config(folder, store, **({"kind": "[cls_gating]", "epochs": 2} | changes))
    said = biomass(
        "train",
        "--config",
        folder / "sweep.yaml",
        "--out",
        folder / "runs",
        "--device",
        "cpu",
        *arguments,
        code=code,
    )
    return said, next((folder / "runs").iterdir())


def failures(folder):
    points = json.loads((folder / "summary.json").read_text())["points"]
    return {point["name"]: point["failed"] for point in points if point["failed"]}


@pytest.mark.parametrize(
    "fold", [(), ("--fold", "0"), ("--fold", "all")], ids=["every fold", "one fold", "refitted"]
)
def test_K8_a_point_that_fails_is_named_with_its_step_and_the_exit_code_is_6(tmp_path, store, fold):
    said, folder = train(tmp_path, store, *fold, code=6, lr="[1e-2, 1e30]")
    ((name, why),) = failures(folder).items()
    assert "1e+30" in name and " of 4 steps" in why
    assert (
        f"warning: {name} failed: {why}" in said.stderr
        and f"failed, not ranked: {name}: {why}" in said.stdout
    )
    assert SweepFolder(folder).is_refitted == (fold[1:] == ("all",))


def test_K8_a_sweep_whose_points_all_failed_has_exit_code_3_and_its_folder(
    tmp_path, store, rendered
):
    said, folder = train(tmp_path, store, code=3, lr="[1e30, 1e31]")
    assert len(failures(folder)) == 2 and "every point failed" in said.stdout
    assert all(f"warning: {name} failed: its loss" in said.stderr for name in failures(folder))
    assert (folder / "leaderboard.png").exists()


def test_K8_a_refit_of_failed_points_is_refused_with_their_steps(tmp_path, store):
    said, folder = train(tmp_path, store, "--fold", "all", code=3, lr="[1e30]")
    ((name, why),) = failures(folder).items()
    assert "no point can be refitted" in said.stderr and f"{name}: {why}" in said.stderr


def test_K8_a_resumed_sweep_remembers_what_failed(tmp_path, store):
    _, folder = train(tmp_path, store, code=6, lr="[1e-2, 1e30]")
    told = failures(folder)
    assert resume_sweep(folder, "all", progress=False).failed == told
    (folder / "summary.json").unlink()
    assert biomass("train", "--resume", folder, code=6).stderr.count("failed: its loss") == 1


def test_K8_a_finished_sweep_of_before_tells_the_steps_it_kept(tmp_path, store):
    _, folder = train(tmp_path, store, code=6, lr="[1e-2, 1e30]")
    (name,) = failures(folder)
    text = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(
        "\n".join(line for line in text.splitlines() if '"failed":' not in line)
    )
    assert (
        SweepFolder(folder).result().failed[name].startswith("its loss was no longer finite after ")
    )


def test_K8_points_that_failed_are_not_counted_among_those_told_apart(tmp_path, store, monkeypatch):
    result = run_sweep(
        config(tmp_path, store, kind="[cls_gating]", lr="[1e-2, 1.1e-2, 1e30]"),
        tmp_path,
        "cpu",
        False,
    )
    assert " of 3 other points and blends cannot be told apart" in result.notes[0]
    monkeypatch.setattr("trainer.loop.sweep.close_baselines", lambda *_: [])
    alone = run_sweep(
        config(tmp_path, store, kind="[cls_gating]", lr="[1e-2, 1e30]"), tmp_path, "cpu", False
    )
    assert alone.notes[0] == "there is no other point to compare the best with"


def test_K8_many_failures_are_counted_in_the_notes_and_named_in_the_summary(
    tmp_path, store, monkeypatch
):
    monkeypatch.setattr("trainer.loop.sentences.MOST_NOTED", 1)
    result = run_sweep(
        config(tmp_path, store, kind="[density]", lr="[1e30, 2e30, 3e30]", epochs=1),
        tmp_path,
        "cpu",
        False,
    )
    noted = [note for note in result.notes if note.startswith("failed, not ranked")]
    assert result.all_failed and len(result.failed) == len(failures(result.path)) == 3
    assert len(noted) == 2 and noted[-1] == "failed, not ranked: 2 more, which summary.json names"


def test_K8_a_regressor_that_cannot_be_fitted_leaves_the_others(tmp_path, store, monkeypatch):
    def without_solution(*_):
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr("trainer.heads.kinds.gpr.Gpr._fit", without_solution)
    said, folder = train(tmp_path, store, code=6, kind="[gpr, pls]", lr="[1e-2]")
    ((name, why),) = failures(folder).items()
    assert "gpr" in name and "gpr: its equations have no solution on" in why
    assert "pls" in json.loads((folder / "summary.json").read_text())["best"]
    assert (
        not list((folder / name).glob("weights/*"))
        and f"warning: {name} failed: {why}" in said.stderr
    )


def test_K8_a_regressor_that_predicts_infinite_masses_has_failed(tmp_path, store, monkeypatch):
    monkeypatch.setattr(
        "trainer.heads.kinds.pls.Pls._predict", lambda *given: np.full((len(given[2]), 5), 1e6)
    )
    result = run_sweep(
        config(tmp_path, store, kind="[pls, ridge]", lr="[1e-2]", space="log1p"),
        tmp_path,
        "cpu",
        False,
    )
    assert result.failed == {
        "001_tiny__kind-pls": "it predicts numbers that are not finite; choose another loss.space, "
        "or leave "
        "the kind out"
    }


def test_K8_a_refit_that_fails_is_told_beside_the_sweeps_own_result(tmp_path, store, monkeypatch):
    _, folder = train(tmp_path, store, code=0, lr="[1e-2]")
    monkeypatch.setattr(
        "trainer.heads.bank.Bank.head_state", lambda *_: {"w": torch.tensor([float("nan")])}
    )
    said = biomass("train", "--resume", folder, "--fold", "all", code=6)
    (told,) = [line for line in said.stderr.splitlines() if "refit failed" in line]
    assert told.endswith("its loss was no longer finite after 4 of 4 steps; lower optimization.lr")
    assert "score_last" in said.stdout and str(folder / "refit") not in said.stdout
