"""optimization.initial_weights: where the output layers of trained heads begin."""

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from preset import TARGETS
from safetensors.numpy import load_file
from sweeps import write_store

OUTPUTS = {
    "density": ["density"],
    "cls_gating": ["main_head", "state_head", "height_head", "aux_head", "interval_head"],
}
YAML = """
experiment: {name: start, seed: 3}
head: {kind: [density, cls_gating, ridge], gate_hidden: 5, shared_hidden: 6, dropout: 0}
loss: {intervals: 3}
trainer: {num_epochs: 1, batch_size: 8}
optimization: {lr: 1.0e-9, weight_decay: 0, initial_weights: [drawn, zero]}
inference: {tta_indices: [0], constraints: clip}
cv: {n_folds: 2}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """At a rate of almost 0, so that heads stay where they begin."""
    folder = tmp_path_factory.mktemp("initial")
    store = write_store(folder / "f.h5")
    (folder / "start.yaml").write_text(YAML)
    given = ["--config", folder / "start.yaml", "--store", store, "--out", folder / "runs"]
    biomass("train", *given, "--device", "cpu")
    return next((folder / "runs").iterdir())


def runs_of(sweep, kind):
    (drawn,) = sweep.glob(f"0*{kind}*weights-drawn")
    (zero,) = sweep.glob(f"0*{kind}*weights-zero")
    return drawn, zero


@pytest.mark.parametrize("kind", OUTPUTS)
def test_only_the_weights_of_outputs_begin_at_zero(sweep, kind):
    drawn, zero = (
        load_file(run / "weights/last_fold1.safetensors") for run in runs_of(sweep, kind)
    )
    weights = {f"{layer}.weight" for layer in OUTPUTS[kind]}
    assert drawn.keys() == zero.keys() and weights <= drawn.keys()
    for name in drawn:
        if name in weights:
            assert np.abs(drawn[name]).max() > 0.1 and np.abs(zero[name]).max() < 1e-6, name
        elif kind == "cls_gating":
            np.testing.assert_allclose(zero[name], drawn[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_from_zero_every_photograph_is_predicted_at_the_training_mean(sweep, kind):
    drawn, zero = (
        pd.read_csv(run / "oof.csv").query("weights == 'last'") for run in runs_of(sweep, kind)
    )
    for fold, rows in zero.groupby("fold"):
        learned = zero[zero["fold"] != fold]
        mean_5 = learned[[f"true_{name}" for name in TARGETS]].mean()
        for name in TARGETS:
            np.testing.assert_allclose(rows[name], mean_5[f"true_{name}"], rtol=1e-4)
    assert drawn["Dry_Total_g"].nunique() > 20


def test_a_regressor_has_no_start_to_choose(sweep):
    assert len(list(sweep.glob("0*ridge*"))) == 1
