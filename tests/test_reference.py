"""docs/config.md is what the models say; its least config is one."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from commands import biomass

from trainer.config.reference import reference
from trainer.config.sections import OptimizationConfig, forgetting
from trainer.loop.grid import SweepConfig
from trainer.loop.optimizer import BankOptimizer
from trainer.loop.prepare import prepare_sweep

PAGE = Path(__file__).parent.parent / "docs/config.md"
(LEAST,) = re.findall("```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_is_the_models_own():
    assert PAGE.read_text() == reference(), "python -m trainer.config.reference > docs/config.md"
    assert all(
        len(line.split(" | ")) >= 3 and line.rstrip(" |").endswith(".")
        for line in reference().splitlines()
        if line.startswith("| `")
    )


def test_its_least_config_is_one(tmp_path):
    (tmp_path / "least.yaml").write_text(LEAST)
    assert len(SweepConfig.load(tmp_path / "least.yaml").points) == 3  # ridge has no learning rate


@pytest.mark.parametrize("epochs", [1, 20, 200])
def test_its_least_config_trains_without_a_remark_on_its_own_defaults(tmp_path, store, epochs):
    (tmp_path / "least.yaml").write_text(LEAST)
    changes = {"dataset.store": store, "trainer.num_epochs": epochs}
    assert prepare_sweep(SweepConfig.load(tmp_path / "least.yaml", changes), "cpu").remarks == []


def test_its_least_config_ends_without_a_warning(tmp_path, store):
    short = "trainer: {num_epochs: 3}\ncv: {n_folds: 2}\n"
    (tmp_path / "least.yaml").write_text(LEAST + short)
    said = biomass(
        "train",
        "--config",
        tmp_path / "least.yaml",
        "--store",
        store,
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    )
    assert "warning" not in said.stderr and "ema_decay" not in said.stdout
    # of the four plain flips the store has three, and the sweep keeps which they were
    (sweep,) = (tmp_path / "runs").iterdir()
    kept = [json.loads((sweep / "sweep.json").read_text())["base"]]
    kept += [yaml.safe_load(path.read_text()) for path in sweep.glob("*/config.yaml")]
    assert len(kept) > 3
    assert all(each["inference"]["tta_indices"] == [0, 1, 2] for each in kept)


def test_short_trainings_forget_their_first_weights_and_long_ones_are_as_before():
    for n_steps in (1, 50, 1500):
        assert forgetting(n_steps) ** n_steps == pytest.approx(0.01) and forgetting(n_steps) < 0.997
    for n_steps in (1533, 1600, 10**6):
        assert forgetting(n_steps) == 0.997
    # as every saved sweep has it
    explicit = OptimizationConfig(lr=1e-3, weight_decay=0.0, ema_decay=0.997)
    assert explicit.average_decay(10) == 0.997


def test_the_average_follows_that_decay(tmp_path, store):
    (tmp_path / "least.yaml").write_text(
        LEAST.replace("[1e-3, 3e-3]", "1e-3").replace("density, ridge", "density")
    )
    given = SweepConfig.load(
        tmp_path / "least.yaml", {"dataset.store": store, "inference.tta_indices": [0]}
    )
    (trainer,) = prepare_sweep(given, "cpu").trainers([0])
    optimizer = BankOptimizer(trainer.bank, trainer.configs, 10)
    weight = next(iter(trainer.bank.tensors.values()))
    weight.data.zero_()
    for average in optimizer.average.values():
        average.fill_(1.0)
    optimizer.n_done = 5  # past the start of the average
    optimizer._update_average()
    assert next(iter(optimizer.average.values())).unique().item() == pytest.approx(0.01 ** (1 / 10))


def test_steps_are_counted_in_float32_whatever_the_weights_are(tmp_path, store):
    """AdamW's fused kernel takes no other count on a GPU, and checkpoints hold no other."""
    (tmp_path / "least.yaml").write_text(LEAST.replace("density, ridge", "density"))
    given = SweepConfig.load(
        tmp_path / "least.yaml", {"dataset.store": store, "inference.tta_indices": [0]}
    )
    (trainer,) = prepare_sweep(given, "cpu", torch.float64).trainers([0])
    trainer.optimizer.step()
    moments = trainer.optimizer.moments()
    assert moments["0/step"].dtype == torch.float32 and moments["0/step"] == 1
    assert moments["0/exp_avg"].dtype == torch.float64
