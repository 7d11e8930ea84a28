"""What tokens are multiplied in: chosen once, kept with the sweep, and not what it predicts in."""

import json
import shutil
import threading
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from plain_heads import plain_masses
from preset import csiro
from safetensors.torch import load_file
from sweeps import config, write_store

from featurestore import FeatureStore
from featurestore.errors import InputError
from trainer.config.sections import TrainerConfig
from trainer.heads.crew import spread
from trainer.heads.tokens import Multiply, StepTokens
from trainer.loop import multiply as choosing
from trainer.loop import resume
from trainer.loop.multiply import choose_multiply
from trainer.loop.resume import resume_sweep
from trainer.loop.runs import SweepFolder
from trainer.loop.sweep import run_sweep
from trainer.score.constraints import constrained

# not every CPU has bf16: whether that is said is tested apart
pytestmark = pytest.mark.filterwarnings("ignore:.*this CPU emulates it")

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
LARGE = (1, 3600, 1280)
SMALL = (2, 144, 96)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("multiply") / "features.h5")


@pytest.mark.parametrize(
    "settings, device, dtype, row, expected",
    [
        ({"multiply": "bf16x2"}, CPU, torch.float32, SMALL, "bf16x2"),
        ({"multiply": "float32"}, CUDA, torch.float32, LARGE, "float32"),
        ({}, CPU, torch.float32, SMALL, "float32"),
        ({}, CPU, torch.float64, LARGE, "float32"),
        ({"use_amp": False}, CPU, torch.float32, LARGE, "float32"),
        ({"use_amp": False}, CUDA, torch.float32, LARGE, "float32"),
        ({}, CUDA, torch.float32, LARGE, "float16"),
        ({}, CUDA, torch.float64, LARGE, "float32"),
    ],
)
def test_a_choice_that_needs_no_probe(monkeypatch, settings, device, dtype, row, expected):
    monkeypatch.setattr(choosing, "has_fast_bf16", lambda: True)
    monkeypatch.setattr(choosing, "_fastest", None)
    assert choose_multiply(TrainerConfig(**settings), device, dtype, row) == expected


@pytest.mark.parametrize("flag, allowed", [(False, {"float32"}), (True, {"float32", "bf16"})])
def test_full_size_rows_on_a_cpu_are_probed_where_it_has_bf16(monkeypatch, flag, allowed):
    monkeypatch.setattr(choosing, "has_fast_bf16", lambda: flag)
    assert choose_multiply(TrainerConfig(), CPU, torch.float32, (1, 700, 1280)) in allowed


def test_every_choice_has_a_name_in_the_config():
    for name in get_args(Multiply):
        assert TrainerConfig(multiply=name).multiply == name


@pytest.fixture(scope="module")
def in_bf16(store, tmp_path_factory) -> Path:
    """A sweep that learned in bf16, its checkpoints kept."""
    folder = tmp_path_factory.mktemp("bf16")
    given = config(folder, store, multiply="bf16", lr="[1e-2]", epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepFolder, "remove_checkpoints", lambda _: None)
        return run_sweep(given, folder / "runs", "cpu", progress=False).path


@pytest.fixture
def stopped(in_bf16, tmp_path) -> Path:
    """The same before its leaderboard."""
    path = shutil.copytree(in_bf16, tmp_path / "stopped")
    for name in ("summary.json", "summary.csv"):
        (path / name).unlink()
    return path


def test_what_learned_in_bf16_predicts_in_float32(in_bf16, store):
    """Out-of-fold tables are those of plain heads; products in bf16 would be off by 1e-3."""
    opened = FeatureStore.open(store)
    targets = csiro(["Tas", "Vic", "NSW"])
    position = {image: i for i, image in enumerate(opened.catalog["image_id"])}
    for run in sorted(in_bf16.glob("00*")):
        oof = pd.read_csv(run / "oof.csv").query("weights == 'last'")
        for fold, of_fold in oof.groupby("fold"):
            state = load_file(run / "weights" / f"last_fold{fold}.safetensors")
            double = {name: tensor.double() for name, tensor in state.items()}
            for row in of_fold.head(4).to_dict("records"):
                i = position[row["image_id"]]
                views = []
                for view in (0, 2):
                    tokens = (opened.cls[i, view], opened.patches[i, view])
                    views.append(plain_masses(double, *(torch.tensor(x).double() for x in tokens)))
                plain = torch.stack(views).mean(0).detach().numpy()
                expected = constrained(plain[None], targets)[0]
                found = [row[name] for name in targets.names]
                assert found == pytest.approx(expected, rel=2e-5, abs=1e-5)


def test_a_sweep_goes_on_with_what_it_began_with(stopped, monkeypatch):
    plan = json.loads((stopped / "sweep.json").read_text())
    assert plan["multiply"] == "bf16"
    monkeypatch.setattr(choosing, "has_fast_bf16", lambda: True)
    seen = []
    original = resume.prepare_sweep

    def noted(*arguments, **options):
        sweep = original(*arguments, **options)
        seen.append(sweep.data.multiply)
        return sweep

    monkeypatch.setattr(resume, "prepare_sweep", noted)
    resume_sweep(stopped, progress=False)
    assert seen == ["bf16"]


def test_a_cpu_without_bf16_warns_that_it_emulates(stopped, monkeypatch):
    monkeypatch.setattr(choosing, "has_fast_bf16", lambda: False)
    with pytest.warns(UserWarning, match="products in bf16, which this CPU emulates: it is slow"):
        resume_sweep(stopped, progress=False)


def test_halves_on_a_cpu_are_warned_of_too(stopped, monkeypatch):
    """A sweep that began on a GPU."""
    monkeypatch.setattr(choosing, "has_fast_bf16", lambda: True)
    change_plan(stopped, multiply="float16")
    with pytest.warns(UserWarning, match="products in float16, which this CPU emulates"):
        resume_sweep(stopped, progress=False)
    with pytest.warns(UserWarning, match="multiply: float16: this CPU emulates it"):
        choose_multiply(TrainerConfig(multiply="float16"), CPU, torch.float32, SMALL)


def change_plan(path: Path, **changes) -> None:
    """Other values in sweep.json; None removes a key."""
    plan = json.loads((path / "sweep.json").read_text()) | changes
    kept = {key: value for key, value in plan.items() if value is not None}
    (path / "sweep.json").write_text(json.dumps(kept))


def test_a_sweep_of_before_goes_on_in_float32_and_says_that_bits_differ(stopped):
    change_plan(stopped, multiply=None)
    with pytest.warns(UserWarning, match="sums are added in another order from here on"):
        resume_sweep(stopped, progress=False)


def test_an_unknown_one_is_refused_by_name(stopped):
    change_plan(stopped, multiply="int4")
    with pytest.raises(InputError, match="multiply 'int4': expected one of float32, float16"):
        resume_sweep(stopped, progress=False)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_threads_take_row_after_row_each_with_one_thread_of_torch(three_threads):
    seen = []

    def work(item: int) -> None:
        seen.append((item, threading.get_ident(), torch.get_num_threads()))
        assert not torch.is_grad_enabled()

    spread(work, range(40))
    assert sorted(item for item, _, _ in seen) == list(range(40))
    assert {n for _, _, n in seen} == {1}
    assert threading.get_ident() not in {thread for _, thread, _ in seen}
    assert torch.get_num_threads() == 3


def test_an_exception_is_raised_once_nobody_works_any_more(three_threads):
    ended = []

    def work(item: int) -> None:
        if item == 2:
            raise ValueError("row 2")
        ended.append(item)

    with pytest.raises(ValueError, match="row 2"):
        spread(work, range(100))
    before = len(ended)
    assert before < 99
    spread(int, range(3))
    assert len(ended) == before


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr("trainer.heads.tokens.SMALL_BYTES", 0)
    rng = np.random.default_rng(0)
    rows = [torch.from_numpy(rng.normal(size=(1, 300, 64))).half() for _ in range(7)]
    w_UTMP = torch.from_numpy(rng.normal(size=(7, 1, 9, 300))).float()
    found = []
    before = torch.get_num_threads()
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        found.append(StepTokens(rows, torch.float32).under(w_UTMP, [9] * 7))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
