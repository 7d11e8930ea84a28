"""Signals, a notebook's stop button and faults between two steps: what is done is kept, and goes on
to the same bits."""

import _thread
import errno
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import TINY, biomass
from safetensors.torch import load_file
from sweeps import config

from featurestore import FeatureStore
from featurestore.backbone.backbone import Backbone
from featurestore.disk.interrupts import COUNTED_ONCE, KILLING, patient_keyboard, stopped_by_signals
from featurestore.errors import InputError
from featurestore.manage.transfer import convert
from featurestore.read.reader import Reader
from featurestore.write.build import build_store
from featurestore.write.config import BuildConfig
from predictor.predictor import predict
from trainer.data.tokens import TokenReader
from trainer.loop import optimizer
from trainer.loop import sweep as module
from trainer.loop.bank_trainer import BankTrainer
from trainer.loop.chosen import best_run
from trainer.loop.grid import SweepConfig
from trainer.loop.resume import resume_sweep
from trainer.loop.runs import RunFolder
from trainer.loop.sweep import run_sweep

ROOT = Path(__file__).parent.parent


@pytest.fixture
def keyboard():
    """SIGINT as Python itself handles it, whatever runs the tests; and other signals as they
    were."""
    before = {number: signal.getsignal(number) for number in (*KILLING, *COUNTED_ONCE)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def given(store, tmp_path_factory) -> SweepConfig:
    return config(tmp_path_factory.mktemp("given"), store, lr="[1e-2]", epochs=3, accumulate=2)


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory) -> Path:
    return run_sweep(given, tmp_path_factory.mktemp("whole"), "cpu", progress=False).path


def at_call(patch: pytest.MonkeyPatch, owner: object, name: str, count: int, then) -> None:
    """Call `then` before the count-th call of a function."""
    original, calls = getattr(owner, name), []

    def called(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            then()
        return original(*arguments, **options)

    patch.setattr(owner, name, called)


def fail() -> None:
    raise RuntimeError("a fault")


def checkpoints(out: Path) -> list[Path]:
    """Of passes; what regressors have fitted is noted beside them."""
    return list(out.glob("*/checkpoints/*points*.safetensors"))


def n_batches(checkpoint: Path) -> int:
    return int(load_file(checkpoint)["0/counts"][1])


def assert_goes_on(out: Path, whole: Path) -> None:
    """A stopped sweep ends with the heads and logs of the undisturbed one."""
    (folder,) = out.iterdir()
    resume_sweep(folder, progress=False)
    heads = sorted(whole.rglob("weights/*.safetensors"))
    assert heads
    for file in heads:
        assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes()
    for log in whole.rglob("metrics.jsonl"):
        n_lines = len(log.read_text().splitlines())
        assert len((folder / log.relative_to(whole)).read_text().splitlines()) == n_lines


FAULTS = {
    "reading rows": (TokenReader, "step", 7),
    "before a step": (module, "train_step", 4),
    "scoring an epoch": (module, "predict_held_out", 2),
    # of the second point: the first one's line is written
    "logging an epoch": (RunFolder, "log", 4),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_L1_an_exception_between_two_steps_leaves_a_checkpoint(given, whole, tmp_path, fault):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="a fault"):
        at_call(patch, *fault, fail)
        run_sweep(given, tmp_path, "cpu", progress=False)
    (checkpoint,) = checkpoints(tmp_path)
    assert n_batches(checkpoint) > 0
    assert_goes_on(tmp_path, whole)


def test_L1_a_full_disk_is_met_once_for_each_state(given, tmp_path, monkeypatch):
    """The state that could not be saved at an epoch's end is not tried again on the way out."""
    tried = []

    def full(tensors, *_):
        tried.append(len(tensors))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainer.loop.checkpoint.save_tensors", full)
    with pytest.raises(InputError, match="cannot be written"):
        run_sweep(given, tmp_path, "cpu", progress=False)
    assert len(tried) == 1


@pytest.mark.parametrize("owner, name", [(optimizer, "adamw"), (BankTrainer, "step")])
def test_L1_an_exception_amid_a_step_leaves_none(given, tmp_path, owner, name):
    """Half of the weights are stepped, or one of two banks: nothing to go on from."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="a fault"):
        at_call(patch, owner, name, 4, fail)
        run_sweep(given, tmp_path, "cpu", progress=False)
    assert not checkpoints(tmp_path)


# -- signals


@pytest.mark.parametrize("number", [*KILLING, *COUNTED_ONCE], ids=lambda number: number.name)
def test_L2_a_signal_ends_the_step_and_leaves_a_checkpoint(
    given, whole, tmp_path, keyboard, number
):
    config(tmp_path, given.base.dataset.store, lr="[1e-2]", epochs=3, accumulate=2)
    command = [
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    ]
    with pytest.MonkeyPatch.context() as patch:
        at_call(
            patch, module, "train_step", 3, lambda: [signal.raise_signal(number) for _ in range(3)]
        )
        said = biomass(*command, code=128 + number).stderr
    assert said.count("go on with:\nbiomass train --resume") == 1
    (checkpoint,) = checkpoints(tmp_path / "runs")
    assert n_batches(checkpoint) == 3
    assert_goes_on(tmp_path / "runs", whole)


@pytest.mark.parametrize("number", COUNTED_ONCE, ids=lambda number: number.name)
def test_L2_other_commands_end_at_once(built, tmp_path, keyboard, monkeypatch, number):
    """What is copied so far is kept."""
    at_call(monkeypatch, Reader, "rows", 3, lambda: signal.raise_signal(number))
    said = biomass("store", "convert", built, tmp_path / "f.zarr", code=128 + number).stderr
    typed = f"biomass store convert {built} {tmp_path / 'f.zarr'}"
    assert f"stopping; go on with:\n{typed}\n" in said
    assert FeatureStore.open(tmp_path / "f.zarr").n_sealed == 2


@pytest.mark.parametrize(
    "handler", [signal.SIG_IGN, lambda *_: None], ids=["nohup", "the user's own"]
)
def test_L2_a_signal_that_is_ignored_or_handled_is_left(keyboard, handler):
    for number in COUNTED_ONCE:
        signal.signal(number, handler)
    with stopped_by_signals():
        assert {signal.getsignal(number) for number in COUNTED_ONCE} == {handler}


REPEATED = """
import os, signal, sys
from featurestore.disk import interrupts
from featurestore.disk.interrupts import check_interrupt, deferred_interrupts, stopped_by_signals
interrupts.GRACE_S = float(sys.argv[1])
try:
    with stopped_by_signals(), deferred_interrupts():
        for name in sys.argv[2:]:
            os.kill(os.getpid(), getattr(signal, name))
        check_interrupt()
finally:
    for name in sys.argv[2:]:
        if name not in ("SIGINT", "SIGTERM"):
            os.kill(os.getpid(), getattr(signal, name))
"""
REPEATS = {
    "batch system": (10, "SIGUSR1 SIGUSR2 SIGXCPU SIGXCPU SIGHUP SIGHUP", 128 + signal.SIGUSR1),
    "then TERM": (0, "SIGUSR1 SIGUSR1 SIGTERM", 128 + signal.SIGUSR1),
    "TERM sent twice": (10, "SIGTERM SIGTERM", 128 + signal.SIGTERM),
    "TERM again after the grace": (0, "SIGTERM SIGHUP SIGTERM", -signal.SIGTERM),
    "INT after TERM": (0, "SIGTERM SIGINT", -signal.SIGINT),
}


@pytest.mark.parametrize("grace_s, names, code", REPEATS.values(), ids=REPEATS)
def test_L2_only_a_second_int_or_term_kills(grace_s, names, code):
    command = [sys.executable, "-c", REPEATED, str(grace_s), *names.split()]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == code


@pytest.mark.system
def test_L2_a_closed_terminal_leaves_a_checkpoint(given, tmp_path):
    """A real one: the kernel sends SIGHUP, and what is written to it fails from then on."""
    config(tmp_path, given.base.dataset.store, lr="[1e-2]", epochs=2000, accumulate=2)
    command = [
        "-m",
        "cli",
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    ]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, *map(str, command)])
    while not any(log.stat().st_size for log in tmp_path.glob("runs/*/*/metrics.jsonl")):
        os.read(terminal, 10_000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert checkpoints(tmp_path / "runs")


# -- KeyboardInterrupt in Python


def test_L3_a_stopped_cell_leaves_a_checkpoint(given, whole, tmp_path, keyboard, capsys):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_call(patch, module, "train_step", 3, _thread.interrupt_main)
        run_sweep(given, tmp_path, "cpu", progress=False)
    (folder,) = tmp_path.iterdir()
    assert (
        f"stopping after this step, once more interrupts at once; go on with:\nbiomass train --resume {folder}\n"
        in capsys.readouterr().err
    )
    (checkpoint,) = checkpoints(tmp_path)
    assert n_batches(checkpoint) == 3
    assert_goes_on(tmp_path, whole)


def test_L3_a_resumed_sweep_stops_as_well(given, whole, tmp_path, keyboard):
    for count in (3, 2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            at_call(patch, module, "train_step", count, _thread.interrupt_main)
            if count == 3:
                run_sweep(given, tmp_path, "cpu", progress=False)
            resume_sweep(*tmp_path.iterdir(), progress=False)
    assert sorted(map(n_batches, checkpoints(tmp_path))) == [3, 5]
    assert_goes_on(tmp_path, whole)


def test_L3_a_second_stop_interrupts_at_once(given, tmp_path, keyboard):
    """Amid the step: it is not ended, and nothing is left of it."""

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not at once")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_call(patch, module, "train_step", 3, twice)
        run_sweep(given, tmp_path, "cpu", progress=False)
    (checkpoint,) = checkpoints(tmp_path)
    assert n_batches(checkpoint) == 2


def test_L3_off_the_main_thread_no_handler_is_set(given, tmp_path, keyboard):
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        at_call(
            patch, module, "train_step", 3, lambda: seen.append(signal.getsignal(signal.SIGINT))
        )
        thread = threading.Thread(target=run_sweep, args=(given, tmp_path, "cpu", False))
        thread.start()
        thread.join()
    assert seen == [signal.default_int_handler] and list(tmp_path.glob("*/summary.json"))


def test_L3_a_handler_of_the_users_is_left(keyboard):
    told = []
    signal.signal(signal.SIGINT, lambda *_: told.append(1))
    with patient_keyboard("again"):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert told == [1, 1]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_L3_a_stop_that_comes_last_is_not_lost(keyboard):
    with pytest.raises(KeyboardInterrupt), patient_keyboard("again"):
        signal.raise_signal(signal.SIGINT)
    with patient_keyboard("again"):  # and only once
        pass


def test_L3_a_stopped_build_keeps_the_photograph_in_hand(
    pasture, built, tmp_path, keyboard, monkeypatch
):
    out = tmp_path / "features.h5"
    names = ("backbone", "image_size", "weights", "device", "precision")
    options = dict(zip(names, TINY[1::2], strict=True))
    build = BuildConfig.check(data=pasture, out=out, views="plain,hsv", **options)
    with pytest.warns(UserWarning, match="random weights"), pytest.raises(KeyboardInterrupt):
        at_call(monkeypatch, Backbone, "encode", 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        build_store(build, progress=False)
    assert FeatureStore.open(out).n_sealed == 2
    with pytest.warns(UserWarning, match="random weights"):
        build_store(build, progress=False)
    assert out.read_bytes() == built.read_bytes()


def test_L3_a_stopped_copy_keeps_the_image_in_hand(built, tmp_path, keyboard, monkeypatch):
    at_call(monkeypatch, Reader, "rows", 3, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        convert(built, tmp_path / "f.zarr")
    assert FeatureStore.open(tmp_path / "f.zarr").n_sealed == 3


def test_L3_a_stopped_prediction_keeps_the_photograph_in_hand(sweep, pasture, tmp_path, keyboard):
    made, kept, run = [], tmp_path / "kept", best_run(sweep)
    options = {"tta": 1, "progress": False, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_call(patch, Backbone, "encode", 1, _thread.interrupt_main)
        predict(run, pasture, keep=kept, **options)
    with pytest.MonkeyPatch.context() as patch:
        at_call(
            patch, Backbone, "encode", 1, lambda: made.append(len(kept.read_text().splitlines()))
        )
        table = predict(run, pasture, keep=kept, **options)
    assert made == [1] and not kept.exists()
    assert table.equals(predict(run, pasture, **options))
