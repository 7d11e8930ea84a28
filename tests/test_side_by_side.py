"""Banks of small rows compute side by side: what they learn is what they learn in turn."""

import _thread
import json
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from sweeps import TRAINED, config, write_store

from featurestore.errors import InputError
from trainer.heads.bank import Bank
from trainer.heads.crew import side_by_side
from trainer.loop import sweep as loop
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import prepare_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.sweep import run_sweep

# machines have fewer CPUs than four
pytestmark = pytest.mark.filterwarnings("ignore:.*the sweep began with 4 threads")


@contextmanager
def threads(n: int):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def four_threads():
    with threads(4):
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("side") / "features.h5")


@pytest.fixture
def computing(monkeypatch):
    """Threads in which banks computed, and with how many of torch's."""
    seen = set()
    original = Bank.__call__

    def noting(bank, inputs):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return original(bank, inputs)

    monkeypatch.setattr(Bank, "__call__", noting)
    return seen


def heads_of(folder):
    """Every tensor of every head."""
    found = {}
    for file in sorted(folder.glob("*/weights/*.safetensors")):
        for name, tensor in load_file(file).items():
            found[f"{file.relative_to(folder)}/{name}"] = tensor
    return found


def assert_equal_heads(left, right) -> None:
    found, expected = heads_of(left), heads_of(right)
    assert found.keys() == expected.keys() and found
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def in_turn(store, tmp_path_factory):
    """A sweep of every kind, by one thread."""
    folder = tmp_path_factory.mktemp("turn")
    with threads(1):
        return run_sweep(settings(folder, store), folder, "cpu", progress=False).path


def settings(folder, store, **changes):
    config(folder, store, kind=f"[{', '.join(TRAINED)}]", lr="[1e-2]", epochs=2)
    return SweepConfig.load(folder / "sweep.yaml", changes)


@pytest.fixture
def stopped(store, tmp_path, monkeypatch):
    """A sweep of the same that four threads began, stopped within its second epoch."""
    calls = []
    original = loop.train_step

    def stopping(sweep, trainers, reader, epoch, step):
        if (epoch, step) == (1, 1):
            raise KeyboardInterrupt
        calls.append(step)
        original(sweep, trainers, reader, epoch, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", stopping)
        run_sweep(settings(tmp_path, store), tmp_path, "cpu", progress=False)
    (path,) = tmp_path.glob("*_tiny")
    return path


def test_banks_learn_alike_in_turn_and_side_by_side(in_turn, store, tmp_path, computing):
    path = run_sweep(settings(tmp_path, store), tmp_path, "cpu", progress=False).path
    assert json.loads((path / "sweep.json").read_text())["side_by_side"] is True
    # of four banks each learns by one of four threads; best and last weights predict in turn
    here = threading.get_ident(), 4
    assert here in computing and len(computing) > 2
    assert {n for _, n in computing - {here}} == {1}
    # one thread computes operations of this size, whoever calls them
    assert_equal_heads(path, in_turn)


def test_a_stopped_sweep_goes_on_side_by_side(stopped, in_turn, computing):
    with threads(1):  # not the number that it began with
        resume_sweep(stopped, progress=False)
    assert {n for _, n in computing} == {1, 4} and len(computing) > 2
    assert_equal_heads(stopped, in_turn)


def test_a_sweep_of_before_goes_on_in_turn(stopped, in_turn, computing):
    plan = json.loads((stopped / "sweep.json").read_text())
    del plan["side_by_side"]
    (stopped / "sweep.json").write_text(json.dumps(plan))
    resume_sweep(stopped, progress=False)
    assert computing == {(threading.get_ident(), 4)}
    assert_equal_heads(stopped, in_turn)


def test_what_is_not_true_or_false_is_refused(stopped):
    plan = json.loads((stopped / "sweep.json").read_text())
    (stopped / "sweep.json").write_text(json.dumps(plan | {"side_by_side": "no"}))
    with pytest.raises(InputError, match="sweep.json: side_by_side: found 'no', expected true or"):
        resume_sweep(stopped, progress=False)


def test_a_bank_that_fails_leaves_the_last_whole_state(in_turn, store, tmp_path, monkeypatch):
    """The others have learned from the batch by then."""
    original = Bank.__call__
    calls = []

    def failing(bank, inputs):
        if bank.shape.kind == TRAINED[-1] and torch.is_grad_enabled():
            calls.append(bank)
            if len(calls) == 4:  # the second step of the second epoch
                raise MemoryError("no room")
        return original(bank, inputs)

    given = settings(tmp_path, store, **{"trainer.checkpoint_every": 1})
    with monkeypatch.context() as patch, pytest.raises(MemoryError, match="no room"):
        patch.setattr(Bank, "__call__", failing)
        run_sweep(given, tmp_path, "cpu", progress=False)
    (path,) = tmp_path.glob("*_tiny")
    original_step = loop.train_step
    steps = []

    def noting(sweep, trainers, reader, epoch, step):
        steps.append((epoch, step))
        original_step(sweep, trainers, reader, epoch, step)

    monkeypatch.setattr(loop, "train_step", noting)
    resume_sweep(path, progress=False)
    assert steps == [(1, 0), (1, 1)]
    assert_equal_heads(path, in_turn)


def test_work_side_by_side_has_this_threads_modes_and_its_part_of_the_threads():
    weight = torch.ones(2, requires_grad=True)
    seen = []
    met = threading.Barrier(2)

    def work(item: int) -> None:
        met.wait(60)  # nobody would pass it alone
        y = item * weight
        seen.append((item, y.requires_grad, y.is_inference(), torch.get_num_threads()))

    side_by_side(work, [1, 2])
    with torch.inference_mode():
        side_by_side(work, [3, 4])
    modes = {1: (True, False), 2: (True, False), 3: (False, True), 4: (False, True)}
    assert {item: (grad, inference) for item, grad, inference, _ in seen} == modes
    assert {n for *_, n in seen} == {2}
    assert torch.get_num_threads() == 4


def test_an_exception_is_raised_when_all_have_ended():
    ended = []
    first_failed = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            first_failed.set()
            raise ValueError("bank 0")
        first_failed.wait(60)
        ended.append(item)

    with pytest.raises(ValueError, match="bank 0"):
        side_by_side(work, range(3))
    assert sorted(ended) == [1, 2]


def test_an_interrupt_is_raised_when_all_have_ended():
    ended = []
    interrupted = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            _thread.interrupt_main()
            interrupted.set()
        interrupted.wait(60)
        time.sleep(0.2)  # this thread is in its wait by then, or raises before it
        ended.append(item)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(3))
    assert sorted(ended) == [0, 1, 2]


def test_rows_that_do_not_come_together_are_read_by_one_thread(
    store, tmp_path, monkeypatch, computing
):
    monkeypatch.setattr("trainer.heads.tokens.GATHERED_BYTES", 1)  # a row at a time
    path = run_sweep(settings(tmp_path, store), tmp_path, "cpu", progress=False).path
    assert json.loads((path / "sweep.json").read_text())["side_by_side"] is True
    assert computing == {(threading.get_ident(), 4)}


@pytest.mark.parametrize("small_bytes, expected", [(0, False), (1 << 19, True)])
def test_large_rows_are_computed_in_turn(store, tmp_path, monkeypatch, small_bytes, expected):
    monkeypatch.setattr("trainer.loop.threads.SMALL_BYTES", small_bytes)
    assert prepare_sweep(settings(tmp_path, store), "cpu").data.side_by_side is expected


def test_heads_that_read_no_patches_are_computed_side_by_side(store, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.loop.threads.SMALL_BYTES", 0)
    given = config(tmp_path, store, kind="pooled_mlp")
    assert prepare_sweep(given, "cpu").data.side_by_side
