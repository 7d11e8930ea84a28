"""A sweep that is killed, stopped or spoiled ends where an undisturbed one does, or says what it
lost."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from safetensors.torch import load_file
from sweeps import as_found, config, train_epoch, write_store

from featurestore.disk.interrupts import check_interrupt
from featurestore.errors import StoreDamaged
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import prepare_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.runs import RunFolder
from trainer.loop.sweep import run_sweep

ROOT = Path(__file__).parent.parent
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
import trainer.loop.sweep
from trainer.loop.grid import SweepConfig
from trainer.loop.identity import Identity
module, owner, name, count = sys.argv[3].split(":")
holder = importlib.import_module(module)
holder = getattr(holder, owner) if owner else holder
original, calls = getattr(holder, name), []
def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
setattr(holder, name, killed)
trainer.loop.sweep.run_sweep(SweepConfig.load(Path(sys.argv[1])), Path(sys.argv[2]), "cpu", progress=False)
"""
POINTS = {
    "before the first step": "trainer.loop.sweep::train_step:1",
    "in a step of the optimiser": "trainer.loop.optimizer::adamw:5",
    "in the second pass": "trainer.loop.sweep::train_step:18",
    "writing a checkpoint": "trainer.loop.checkpoint::save_tensors:2",
    "between two checkpoints": "trainer.loop.checkpoint::appears_whole:2",
    "saving heads": "trainer.loop.runs::save_tensors:6",
    "fitting regressors": "trainer.loop.sweep::close_regressor:1",
    "closing the last bank": "trainer.loop.sweep::close_bank:2",
    "ranking": "trainer.loop.sweep::finish:1",
}


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """An undisturbed sweep: two kinds of heads, a regressor, accumulation across epochs,
    checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    config(folder, store, kind="[cls_gating, density, ridge]", lr="[1e-2]", epochs=7, accumulate=4)
    text = (
        (folder / "sweep.yaml")
        .read_text()
        .replace("num_epochs: 7", "num_epochs: 7, checkpoint_every: 3, passes: 2")
    )
    (folder / "sweep.yaml").write_text(text)
    return run_sweep(
        SweepConfig.load(folder / "sweep.yaml"), folder / "runs", "cpu", progress=False
    ).path


def assert_same_sweep(found: Path, whole: Path):
    names = {"summary.json", "spec.json", "config.yaml"}
    kept = [p for p in whole.rglob("*") if p.suffix in {".safetensors", ".csv"} or p.name in names]
    blends, ridge = 2, 3 + 3
    assert len(kept) == 4 + 2 * (3 + 6) + (3 + 3) + blends + ridge
    for file in kept:
        assert as_found(found / file.relative_to(whole)) == as_found(file), file
    assert not list(found.rglob("checkpoints")) and not list(found.rglob("*.partial"))
    for log in whole.rglob("metrics.jsonl"):
        epochs = [
            json.loads(line)["epoch"]
            for line in (found / log.relative_to(whole)).read_text().splitlines()
        ]
        assert epochs == list(range(len(epochs))) and len(epochs) == len(
            log.read_text().splitlines()
        )


# the rest: test-system
SHORT = {"in a step of the optimiser"}


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, id=name, marks=[] if name in SHORT else pytest.mark.system)
        for name, point in POINTS.items()
    ],
)
def test_a_killed_sweep_resumes_to_the_same_bits(tmp_path, whole, point):
    command = [sys.executable, "-c", KILLED, whole.parent.parent / "sweep.yaml", tmp_path, point]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert not (folder / "summary.json").exists()
    resume_sweep(folder, progress=False)
    assert_same_sweep(folder, whole)


STOPPED = """
import sys
import trainer.loop.sweep
from cli import main
train_step, calls = trainer.loop.sweep.train_step, []
def waiting(*arguments):
    calls.append(1)
    if len(calls) == 8:
        print("the signals may come", flush=True)
        sys.stdin.read()
    return train_step(*arguments)
trainer.loop.sweep.train_step = waiting
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def stopped(store, tmp_path_factory):
    """A sweep that SIGTERM stopped amid its epochs, its exit status and what it said."""
    folder = tmp_path_factory.mktemp("stopped")
    config(folder, store, kind="[cls_gating, density, ridge]", lr="[1e-2]", epochs=7)
    command = [
        "-c",
        STOPPED,
        "train",
        "--config",
        folder / "sweep.yaml",
        "--out",
        folder / "runs",
        "--device",
        "cpu",
    ]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe
    )
    process.stdout.readline()
    for _ in range(2):  # as schedulers do
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    _, message = process.communicate()
    return next((folder / "runs").iterdir()), process.returncode, message.decode()


def test_sigterm_sent_twice_leaves_a_checkpoint_and_143(stopped):
    folder, code, message = stopped
    assert code == 143 and f"go on with:\nbiomass train --resume {folder}\n" in message
    assert list(folder.glob("checkpoints/*.safetensors")) and not (folder / "summary.json").exists()


def test_a_signal_before_there_is_a_sweep_promises_nothing(tmp_path, store, monkeypatch):
    """With a folder's name it is tested above; here the store is being opened."""
    config(tmp_path, store)
    monkeypatch.setattr(
        "trainer.loop.begin.prepare_sweep", lambda *_, **__: signal.raise_signal(signal.SIGINT)
    )
    said = biomass(
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
        code=130,
    ).stderr
    assert said == "stopping\n" and not (tmp_path / "runs").exists()


def test_a_refit_asked_of_a_finished_sweep_is_gone_on_with_in_the_same_way(
    whole, store, tmp_path, monkeypatch
):
    """By what was typed beside --resume too, which the sweep's folder does not keep."""
    folder = shutil.copytree(whole, tmp_path / "a sweep")
    monkeypatch.setattr(
        "trainer.loop.sweep._refit",
        lambda *_: signal.raise_signal(signal.SIGINT) or check_interrupt(),
    )
    for options in ([], ["--store", store, "--no-check"]):
        typed = ["train", "--resume", folder, *options, "--fold", "all"]
        said = biomass(*typed, code=130).stderr
        assert f"; go on with:\n{shlex.join(map(str, ['biomass', *typed]))}\n" in said


REPEATED = """
import os, signal
from featurestore.commands.running import one_line_errors
from featurestore.disk.interrupts import check_interrupt, deferred_interrupts
try:
    with one_line_errors(), deferred_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        check_interrupt()
finally:
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_that_is_repeated_while_the_process_ends_counts_once():
    done = subprocess.run(
        [sys.executable, "-c", REPEATED], cwd=ROOT, stderr=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 143


def test_a_stopped_sweep_goes_on_to_the_same_heads(stopped):
    folder, *_ = stopped
    given = SweepConfig.load(folder.parent.parent / "sweep.yaml")
    uninterrupted = run_sweep(given, folder.parent.parent / "whole", "cpu", False).path
    assert "ridge" in biomass("train", "--resume", folder).stdout
    assert_same_sweep(folder, uninterrupted)


def test_a_finished_sweep_or_another_store_is_not_resumed(tmp_path, whole):
    assert "finished" in biomass("train", "--resume", whole, code=3).stderr
    assert "give it alone" in biomass("train", "--resume", whole, "--plan", code=2).stderr
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    (stopped / "summary.json").unlink()
    plan = json.loads((stopped / "sweep.json").read_text())
    (stopped / "sweep.json").write_text(json.dumps(plan | {"fingerprint": "f" * 64}))
    assert "the sweep began with ffff" in biomass("train", "--resume", stopped, code=5).stderr


def test_a_second_trainer_on_a_sweep_is_refused(tmp_path, whole):
    from featurestore.disk.durable import locked

    taken = shutil.copytree(whole, tmp_path / "taken")
    (taken / "summary.json").unlink()
    with locked(taken / "sweep"):
        said = biomass("train", "--resume", taken, code=75).stderr
    assert "taken" in said and "wait until it has ended" in said and "store build" not in said


# -- a store that is cut or replaced while a sweep reads it


def disturbed(folder: Path, store: Path, disturb) -> tuple[int, str]:
    """Exit status and stderr of `biomass train` over a store that is disturbed once a few epochs
    are done."""
    config(folder, store, kind="[cls_gating, density]", lr="[1e-2]", epochs=30)
    text = (
        (folder / "sweep.yaml")
        .read_text()
        .replace("num_epochs: 30", "num_epochs: 30, checkpoint_every: 2")
    )
    (folder / "sweep.yaml").write_text(text)
    command = [
        "-m",
        "cli",
        "train",
        "--config",
        folder / "sweep.yaml",
        "--out",
        folder / "runs",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while (
        sum(len(log.read_text().splitlines()) for log in folder.glob("runs/*/*/metrics.jsonl")) < 8
    ):
        time.sleep(0.01)
    disturb()
    _, message = process.communicate(timeout=60)
    return process.returncode, message.decode()


def left(sweep: Path) -> dict[Path, bytes]:
    files = [
        p
        for p in sweep.rglob("*")
        if p.suffix in {".safetensors", ".csv"} or p.name == "summary.json"
    ]
    return {p.relative_to(sweep): as_found(p) for p in files}


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert disturbed(folder, store, lambda: None)[0] == 0
    return left(next((folder / "runs").iterdir()))


@pytest.mark.system
@pytest.mark.parametrize("cut", ["features.h5", "features.zarr/patches/c/0/0/0/0/0"])
def test_a_sweep_whose_store_is_cut_shows_the_line_and_can_be_resumed(tmp_path, undisturbed, cut):
    """R03. And once the store is back, the sweep ends where it would have."""
    path, file = write_store(tmp_path / cut.split("/")[0]), tmp_path / cut
    whole = file.read_bytes()
    code, message = disturbed(tmp_path, path, lambda: os.truncate(file, 0))
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in message and "cli.py" in message
    file.write_bytes(whole)
    biomass("train", "--resume", folder)
    assert left(folder) == undisturbed


@pytest.mark.system
@pytest.mark.parametrize("name", ["features.h5", "features.zarr"])
def test_a_store_that_is_replaced_is_read_to_the_end(tmp_path, undisturbed, name):
    """R10. Maps and descriptors are those of the store that was opened."""
    path, other = write_store(tmp_path / name), write_store(tmp_path / f"other_{name}", seed=1)

    def replace() -> None:
        path.rename(tmp_path / f"old_{name}")
        other.rename(path)
        if path.is_dir():
            shutil.rmtree(tmp_path / f"old_{name}")

    code, message = disturbed(tmp_path, path, replace)
    assert code == 0, message
    assert left(next((tmp_path / "runs").iterdir())) == undisturbed


def test_a_store_replaced_before_its_tokens_are_opened_is_refused(tmp_path):
    """An HDF5 store is one file, which preparing opens: the test above tells what becomes of it."""
    path = write_store(tmp_path / "features.zarr")
    sweep = prepare_sweep(config(tmp_path, path), "cpu")
    trainers = sweep.trainers(range(4))
    path.rename(tmp_path / "old.zarr")
    write_store(path, seed=1)
    with pytest.raises(StoreDamaged, match="replaced or cut since the store was opened"):
        train_epoch(sweep, trainers, sweep.reader(), 0)


@pytest.fixture(scope="module")
def diverged(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diverged")
    return run_sweep(
        config(folder, store, kind="[cls_gating]", lr="[1e30, 1e-2]"),
        folder / "runs",
        "cpu",
        progress=False,
    )


def first_without_a_loss(folder: Path, store: Path) -> dict[str, int]:
    """By fold, the first batch at which the loss of a head alone, at the rate that spoils it, is
    not finite."""
    alone = prepare_sweep(config(folder, store, kind="[cls_gating]", lr="[1e30]"), "cpu")
    (trainer,), reader = alone.trainers([0]), alone.reader()
    for epoch in range(alone.base.trainer.num_epochs):
        train_epoch(alone, [trainer], reader, epoch)
    finite_NQ = np.isfinite(trainer.noted())[:, :, 0]
    return {
        f"r00_fold{q}": int(np.flatnonzero(~finite_N)[0]) for q, finite_N in enumerate(finite_NQ.T)
    }


def test_a_head_that_fails_is_marked_with_its_batch_and_not_ranked(diverged, store, tmp_path):
    summary = json.loads((diverged.path / "summary.json").read_text())
    good, bad = summary["points"]
    assert summary["best"] == good["name"] and good["failed_at_batch"] == {}
    assert bad["last"]["per_repeat_R"] == [None]
    assert (
        bad["failed_at_batch"] == first_without_a_loss(tmp_path, store)
        and len(bad["failed_at_batch"]) == 3
    )
    assert diverged.failed == {bad["name"]: bad["failed"]}
    assert f"failed, not ranked: {bad['name']}: {bad['failed']}" in diverged.notes
    steps = min(bad["failed_at_batch"].values())
    assert bad["failed"].startswith(
        f"its loss was no longer finite after {steps} of 8 steps (3 of 3 heads failed)"
    )
    assert "lr-1e_30" in bad["name"] or "1e+30" in bad["name"]


def test_a_head_that_failed_tells_no_state(diverged):
    (run,) = diverged.path.glob("001*")
    last = pd.read_csv(run / "oof.csv").query("weights == 'last'")
    assert last["Dry_Total_g"].isna().all() and last["predicted_State"].isna().all()


def test_a_refit_where_all_failed_is_refused(diverged, store, tmp_path):
    config(tmp_path, store, kind="[cls_gating]", lr="[1e30]")
    arguments = [
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--fold",
        "all",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    ]
    assert "no point can be refitted" in biomass(*arguments, code=3).stderr
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 1


def test_a_head_that_fails_leaves_the_others_as_they_are(diverged, store, tmp_path):
    alone = run_sweep(
        config(tmp_path, store, kind="[cls_gating]", lr="[1e-2]"),
        tmp_path / "runs",
        "cpu",
        progress=False,
    )
    ours, theirs = (
        RunFolder(result.path / result.best).heads("last") for result in (diverged, alone)
    )
    for name in theirs:
        assert all(
            np.allclose(ours[name][t], theirs[name][t], rtol=1e-5, atol=1e-7) for t in theirs[name]
        )
    (run,) = diverged.path.glob("001*")
    assert not list(run.glob("weights/last*"))
    for file in run.glob("weights/best*"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())
