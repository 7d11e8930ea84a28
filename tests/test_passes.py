"""Passes of a sweep that are trained on their own, by processes that share its folder alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import biomass
from sweeps import as_found, config

from featurestore.disk.durable import locked
from featurestore.errors import LockedError
from trainer.loop import sweep as loop
from trainer.loop.on_engine import pass_item
from trainer.loop.runs import SweepFolder

KINDS = "[cls_gating, density, ridge]"
PASSES = [[0], [1], [2, 3]]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def given(store, tmp_path_factory) -> Path:
    """The YAML of four points to train and a regressor; checkpoints at every epoch."""
    folder = tmp_path_factory.mktemp("given")
    config(folder, store, kind=KINDS, epochs=3)
    file = folder / "sweep.yaml"
    file.write_text(file.read_text().replace("epochs: 3", "epochs: 3, checkpoint_every: 1"))
    return file


def train(*arguments: object, code: int = 0):
    return biomass("train", *arguments, code=code)


def begin(given: Path, out: Path) -> Path:
    """A sweep's folder as it is laid out."""
    said = train(
        "--config", given, "--out", out, "--passes", len(PASSES), "--device", "cpu", "--begin"
    )
    return Path(said.stdout.strip())


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory) -> Path:
    """The same sweep by one process."""
    out = tmp_path_factory.mktemp("whole")
    train("--config", given, "--out", out, "--passes", len(PASSES), "--device", "cpu")
    (folder,) = out.iterdir()
    return folder


@pytest.fixture(scope="module")
def laid_out(given, tmp_path_factory) -> Path:
    return begin(given, tmp_path_factory.mktemp("begun"))


@pytest.fixture
def begun(laid_out, tmp_path) -> Path:
    return shutil.copytree(laid_out, tmp_path / "sweep")


@pytest.fixture
def trained(monkeypatch) -> list:
    """Points of each pass that is trained while a test runs, in order."""
    passes = []
    original = loop.train_pass

    def counted(sweep, points, *arguments):
        passes.append(list(points))
        return original(sweep, points, *arguments)

    monkeypatch.setattr(loop, "train_pass", counted)
    return passes


def contents(sweep: Path) -> dict[str, bytes]:
    """All that a sweep left, but for times."""
    found = {}
    for path in sweep.rglob("*"):
        name = str(path.relative_to(sweep))
        if path.name == "metrics.jsonl":
            records = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [record | {"train_s": None} for record in records]
        elif path.is_file() and path.suffix != ".lock":
            found[name] = as_found(path)
    return found


def test_begin_leaves_what_a_sweep_holds_before_its_first_step(given, tmp_path):
    arguments = ["--config", given, "--out", tmp_path, "--passes", 2, "--device", "cpu", "--begin"]
    said = train(*arguments)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["folds.csv", "sweep.json"]
    assert said.stdout == f"{folder}\n"
    assert said.stderr.splitlines()[1:] == [
        f"biomass train --resume {folder} --pass 0",
        f"biomass train --resume {folder} --pass 1",
        f"biomass train --resume {folder} --pass fits",
        "then finish with:",
        f"biomass train --resume {folder}",
    ]


def test_passes_trained_on_their_own_end_as_in_one_process(begun, whole, trained):
    for item in (2, "fits", 0, 1):
        train("--resume", begun, "--pass", item)
    # one that is trained is read
    train("--resume", begun, "--pass", 2)
    assert trained == [PASSES[2], PASSES[0], PASSES[1]]
    assert not (begun / "summary.json").exists()

    train("--resume", begun)
    assert len(trained) == len(PASSES)
    assert contents(begun) == contents(whole)
    assert [path.name for path in begun.glob("*.lock")] == ["sweep.lock"]


def test_S03_resume_trains_the_passes_that_are_missing_then_finishes(begun, whole, trained):
    train("--resume", begun, "--pass", 1)
    train("--resume", begun)
    assert trained == [PASSES[1], PASSES[0], PASSES[2]]
    assert contents(begun) == contents(whole)


KILLED = """
import os, signal, sys
from pathlib import Path
import trainer.loop.sweep as loop
from trainer.loop.resume import resume_pass
original, calls = loop.train_step, []
def killed(*arguments):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
loop.train_step = killed
resume_pass(Path(sys.argv[1]), 0, progress=False)
"""


def test_S01_a_killed_workers_pass_ends_in_the_same_bits(begun, whole):
    command = [sys.executable, "-c", KILLED, begun]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert list(begun.glob("checkpoints/points*"))
    assert not list(begun.glob("checkpoints/results*"))

    train("--resume", begun, "--pass", 0)
    (run,) = begun.glob("001*")
    assert contents(run) == contents(whole / run.name)


def test_S02_the_second_worker_at_a_pass_exits_75_and_others_go_on(begun, trained):
    with locked(begun / "pass1"):
        said = train("--resume", begun, "--pass", 1, code=75).stderr
        train("--resume", begun, "--pass", 2)
    assert f"{begun}/pass1: locked by" in said and "wait until it has ended" in said
    assert trained == [PASSES[2]]


@pytest.mark.parametrize("item", ["pass2", "fits"])
def test_S04_resume_exits_75_where_another_process_is_at_a_pass(begun, trained, item):
    with locked(begun / item):
        said = train("--resume", begun, code=75).stderr
    assert f"{begun}/{item}: locked by" in said
    assert trained == []


def test_S04_no_pass_is_begun_while_the_sweep_is_finished(begun, monkeypatch):
    """What a finisher removes at the end must not be trained again."""
    finish = loop.finish

    def finish_beside_a_worker(*arguments):
        with pytest.raises(LockedError), locked(begun / "pass1"):
            pass
        return finish(*arguments)

    monkeypatch.setattr(loop, "finish", finish_beside_a_worker)
    train("--resume", begun)


def test_a_pass_that_is_trained_says_so(begun, whole, trained):
    shutil.rmtree(begun)
    finished = shutil.copytree(whole, begun)
    assert train("--resume", finished, "--pass", 2).stdout == f"{finished}: pass 2 is trained\n"
    assert contents(finished) == contents(whole)
    assert trained == []


@pytest.mark.parametrize("harm", ["a head", "the note"])
def test_what_has_changed_of_a_pass_is_made_again_from_its_checkpoint(begun, whole, harm):
    train("--resume", begun, "--pass", 2)
    (head,) = begun.glob("004*/weights/best_fold1.safetensors")
    note = SweepFolder(begun).pass_note(PASSES[2])
    harmed = head if harm == "a head" else note
    harmed.write_bytes(harmed.read_bytes()[:-1] + b"x")
    train("--resume", begun, "--pass", 2)
    expected = contents(whole)
    assert head.read_bytes() == expected[str(head.relative_to(begun))]


def test_K7_a_pass_of_other_settings_is_refused(begun):
    train("--resume", begun, "--pass", 2)
    for file in begun.glob("checkpoints/*points*"):
        file.unlink()
    plan = json.loads((begun / "sweep.json").read_text())
    plan["base"]["trainer"]["num_epochs"] = 2
    (begun / "sweep.json").write_text(json.dumps(plan))
    said = train("--resume", begun, "--pass", 0, code=5).stderr
    assert "results2-3.safetensors" in said
    assert "trainer.num_epochs was 3 and is 2 now" in said


@pytest.mark.parametrize(
    ("key", "value"), [("base", 7), ("axes", []), ("passes", [7]), ("device", None)]
)
def test_a_plan_that_was_edited_wrongly_is_refused_by_its_key(begun, key, value):
    plan = json.loads((begun / "sweep.json").read_text())
    (begun / "sweep.json").write_text(json.dumps(plan | {key: value}))
    for command in (["--pass", 0], []):
        said = train("--resume", begun, *command, code=3).stderr
        assert f"sweep.json: {key}: found {value!r}, expected " in said


def test_passes_that_are_not_there_are_refused(begun, given, tmp_path):
    said = train("--resume", begun, "--pass", 3, code=2).stderr
    assert "no pass 3 (--pass); there are 0 to 2 and fits" in said
    assert "number of a pass" in train("--resume", begun, "--pass", "-1", code=2).stderr
    assert "--fold all" in train("--resume", begun, "--pass", 0, "--fold", "all", code=2).stderr
    assert "add --resume" in train("--config", given, "--pass", 0, code=2).stderr
    arguments = ["--config", given, "--out", tmp_path / "runs", "--device", "cpu", "--begin"]
    said = train(*arguments, "--passes", 5, code=3).stderr
    assert "--passes) 5: the grid has 4 points to train" in said
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def engine(monkeypatch) -> list:
    """An engine that does item after item in this process; the names that it was given."""
    calls = []

    def run_items(task, items, *, devices, bar, **_):
        assert task == "trainer.loop.on_engine:pass_item"
        calls.append((list(items), devices))
        for item in json.loads(json.dumps(items)).values():
            pass_item(**item, device=devices[-1])
            bar.update()

    monkeypatch.setattr("trainer.loop.on_engine.run_items", run_items)
    # else processes share the threads, and sums are rounded otherwise
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    return calls


def test_several_devices_train_a_pass_each_at_a_time(given, whole, tmp_path, engine):
    arguments = ["--config", given, "--out", tmp_path, "--passes", len(PASSES)]
    train(*arguments, "--device", "cpu,cpu")
    assert engine == [(["pass 0", "pass 1", "pass 2", "fits"], ["cpu", "cpu"])]
    (folder,) = tmp_path.iterdir()
    plan = json.loads((folder / "sweep.json").read_text())
    assert plan.pop("devices") == ["cpu", "cpu"]
    found = contents(folder)
    expected = contents(whole)
    assert plan == json.loads(expected.pop("sweep.json"))
    assert {name: found[name] for name in expected} == expected


def test_several_devices_need_several_passes_of_one_kind(given, tmp_path):
    arguments = ["--config", given, "--out", tmp_path / "runs", "--device"]
    said = train(*arguments, "cpu,cpu", "--passes", 1, code=2).stderr
    assert "there is one pass in all; add --passes 2" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("kind", "rates", "advice"),
    [
        ("cls_gating", "[3e-2, 1e-2]", "one pass in all; add --passes 2, or name one device"),
        ("cls_gating", "3e-2", "one pass in all; name one device"),
        ("ridge", "3e-2", "no pass over the tokens; name one device"),
    ],
)
def test_devices_are_advised_as_many_passes_as_there_are_points(
    store, tmp_path, kind, rates, advice
):
    config(tmp_path, store, kind=kind, lr=rates)
    said = train("--config", tmp_path / "sweep.yaml", "--device", "cpu,cpu,cpu", code=2).stderr
    assert f"there is {advice}\n" in said


def test_S04_a_second_command_starts_no_worker_at_a_sweep_that_has_some(given, tmp_path, engine):
    """It would be turned away at a pass, and end the first one's count of tries."""
    arguments = ["--config", given, "--passes", 3, "--device", "cpu,cpu", "--begin"]
    folder = Path(train(*arguments, "--out", tmp_path).stdout.strip())
    with locked(folder / "sweep"):
        said = train("--resume", folder, code=75).stderr
    assert f"{folder}/sweep: locked by" in said
    assert engine == []


def n_epochs(out: Path) -> int:
    """Lines of all logs, of which a restart drops some."""
    return sum(len(log.read_text().splitlines()) for log in out.glob("*/0*/metrics.jsonl"))


@pytest.mark.system
def test_S01_workers_of_devices_that_are_killed_and_stopped_end_in_the_same_bits(given, tmp_path):
    """Each worker is killed once; then the command is stopped, and goes on as it says."""
    longer = tmp_path / "longer.yaml"
    text = given.read_text().replace("epochs: 3, checkpoint_every: 1", "epochs: 70")
    longer.write_text(text.replace("epochs: 70", "epochs: 70, checkpoint_every: 5"))
    arguments = ["--config", longer, "--passes", 2]
    train(*arguments, "--device", "cpu", "--out", tmp_path / "whole")
    (whole,) = (tmp_path / "whole").iterdir()

    out = tmp_path / "runs"
    command = [sys.executable, "-m", "cli", "train", *map(str, arguments), "--out", str(out)]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
    driver = subprocess.Popen(
        [*command, "--device", "cpu,cpu"], env=environment, stderr=subprocess.PIPE, text=True
    )
    while n_epochs(out) < 40:  # each pass has a checkpoint
        time.sleep(0.02)
    # of all threads: the engine's start them
    tasks = Path(f"/proc/{driver.pid}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    time.sleep(1)
    before = n_epochs(out)
    while n_epochs(out) <= before:
        time.sleep(0.02)
    driver.send_signal(signal.SIGTERM)
    _, said = driver.communicate()

    (folder,) = out.iterdir()
    assert len(children) == 2 and said.count("it is started again") == 2
    assert driver.returncode == 143
    assert f"go on with:\nbiomass train --resume {folder}\n" in said
    train("--resume", folder)
    found = contents(folder)
    for name, content in contents(whole).items():
        # the workers render pictures
        if name != "sweep.json" and not name.endswith(".png"):
            assert found[name] == content, name
    assert not (folder / "tries").exists()
