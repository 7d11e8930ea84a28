"""L14: a sweep goes on with the number of threads that it began with, which decides how torch
rounds sums."""

import json
import shutil
import warnings

import pytest
import torch
from commands import biomass
from sweeps import config, write_store

from trainer.loop import resume, sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.sweep import run_sweep
from trainer.loop.threads import same_threads


@pytest.fixture(autouse=True)
def three_threads():
    """A number that no machine starts with."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def began(tmp_path_factory):
    """A sweep that began with three threads and was stopped before its leaderboard."""
    folder, before = tmp_path_factory.mktemp("began"), torch.get_num_threads()
    given = config(folder, write_store(folder / "features.h5"), kind="density", epochs=1)
    torch.set_num_threads(3)
    path = run_sweep(given, folder, "cpu", progress=False).path
    torch.set_num_threads(before)
    for name in ("summary.json", "summary.csv"):
        (path / name).unlink()
    return path


@pytest.fixture
def stopped(began, tmp_path):
    return shutil.copytree(began, tmp_path / "stopped")


@pytest.fixture
def seen(monkeypatch):
    """Threads at each step, and when the store is read for the first time."""
    found = set()
    for module, name in ((resume, "prepare_sweep"), (sweep, "train_step")):
        original = getattr(module, name)

        def noting(*arguments, original=original, **options):
            found.add(torch.get_num_threads())
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, noting)
    monkeypatch.setattr("trainer.loop.threads.usable_cpus", lambda: 4)
    return found


def change(folder, **keys):
    """Keys of sweep.json; None takes one out."""
    plan = json.loads((folder / "sweep.json").read_text()) | keys
    kept = {key: value for key, value in plan.items() if value is not None}
    (folder / "sweep.json").write_text(json.dumps(kept))


def test_L14_a_sweep_keeps_its_number_of_threads(began):
    assert json.loads((began / "sweep.json").read_text())["threads"] == 3


def test_L14_it_goes_on_with_that_number_and_sets_back_the_own(stopped, seen):
    torch.set_num_threads(1)
    resume_sweep(stopped, progress=False)
    assert (seen, torch.get_num_threads()) == ({3}, 1)


def test_L14_a_refit_of_a_finished_sweep_takes_that_number(stopped, seen):
    resume_sweep(stopped, progress=False)
    torch.set_num_threads(1)
    seen.clear()
    resume_sweep(stopped, "all", progress=False)
    assert (seen, torch.get_num_threads()) == ({3}, 1)


def test_L14_a_sweep_of_before_goes_on_with_the_own_number(stopped, seen):
    change(stopped, threads=None)
    torch.set_num_threads(2)
    resume_sweep(stopped, progress=False)
    assert seen == {2}


@pytest.mark.filterwarnings("default:.*the sweep began with")
def test_L14_more_threads_than_cpus_are_set_with_a_warning(stopped, seen):
    change(stopped, threads=5)
    said = biomass("train", "--resume", stopped).stderr
    assert "sweep.json: the sweep began with 5 threads and goes on with as many" in said
    assert "only 4 CPUs are usable here" in said and seen == {5}


@pytest.mark.filterwarnings("default:.*the sweep began with")
@pytest.mark.parametrize("kept", ["two", 0, -1, 2.5, 1 << 40], ids=str)
def test_L14_a_number_that_cannot_be_set_is_warned_of(stopped, seen, kept):
    change(stopped, threads=kept)
    said = biomass("train", "--resume", stopped).stderr
    assert f"sweep.json: the sweep began with {kept!r} threads, which torch cannot set here" in said
    assert "it goes on with 3" in said and seen == {3}


def test_L14_the_own_number_is_back_after_an_error(tmp_path):
    with warnings.catch_warnings(), pytest.raises(KeyError):
        warnings.simplefilter("ignore")  # of a machine with one CPU
        with same_threads(2, tmp_path):
            raise KeyError
    assert torch.get_num_threads() == 3
