"""Adding a kind is one file: the one docs/sweep.md shows works as the built-in ones do."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sweeps import config, write_store
from test_sweep import assert_same_head, head_of, trained

from trainer.config.sections import HeadConfig
from trainer.heads import kinds
from trainer.heads.bank import HeadKind
from trainer.heads.kinds import density
from trainer.heads.outputs import softplus
from trainer.heads.regressor import Regressor
from trainer.loop.evaluate import predict_held_out
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.runs import RunFolder
from trainer.loop.sweep import run_sweep

PAGES = Path(__file__).parent.parent / "docs"
DOCS = (PAGES / "sweep.md").read_text()
KEYS = (PAGES / "config.md").read_text()
LINEAR = """
from trainer.heads.bank import HeadKind
from trainer.heads.trunk import output_tensors, outputs_of

class Linear(HeadKind):
    settings = ("normalize",)
    reads_patches = False
    floats_per_patch = 0

    def tensors(self, shape):
        return output_tensors(shape, shape.width)

    def reads(self, shape):
        return {name.rpartition(".")[0]: ["cls"] for name in self.tensors(shape)}

    def forward(self, bank, inputs):
        return outputs_of(bank, bank.each_point(inputs.mixed(bank.own_cls(inputs))))

KIND = Linear()
"""


@pytest.fixture
def documented(monkeypatch, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "mean_patch.py").write_text(code)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path / "kinds")])


def test_the_documented_kind_trains_is_exact_and_saves(documented, tmp_path):
    store = write_store(tmp_path / "f.h5")
    sweep = prepare_sweep(
        config(tmp_path, store, kind="[density, mean_patch]", mixup="[pooled, patches]"),
        "cpu",
        torch.float64,
    )
    p = len(sweep.config.points) - 1
    ours, g = head_of(trained(sweep, range(p + 1)), p)
    (alone,) = trained(Sweep.of(sweep.config, sweep.data, sweep.folds, sweep.splits[1:2]), [p])
    assert_same_head(ours, alone, 1, g, 0, 0)
    result = run_sweep(
        config(tmp_path, store, kind="[mean_patch]", lr="[1e-2]"),
        tmp_path / "runs",
        "cpu",
        progress=False,
    )
    assert (
        "shared_mlp.0.weight"
        in RunFolder(result.path / result.best).heads("last")["last_fold0.safetensors"]
    )
    assert np.isfinite(result.summary["score_last"][0])


@pytest.mark.parametrize("name", kinds.names())
def test_every_kind_says_what_it_reads_and_is_documented(name):
    kind = kinds.load(name)
    assert isinstance(kind, HeadKind | Regressor) and set(kind.settings) <= set(
        HeadConfig.model_fields
    )
    assert f"`{name}`" in DOCS
    (line,) = [line for line in KEYS.splitlines() if line.startswith("| `head.kind` ")]
    assert name in re.findall(r"\w+", line)


def test_a_kind_of_output_layers_alone_learns_classes_and_intervals_too(tmp_path, monkeypatch):
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "linear.py").write_text(LINEAR)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path / "kinds")])
    store = write_store(tmp_path / "f.h5")
    changes = {"kind": "[density, linear]", "lr": "[1e-2]", "intervals": 3}
    given = config(tmp_path, store, **changes)
    sweep = prepare_sweep(given, "cpu", torch.float64)
    ours, g = head_of(trained(sweep, range(2)), 1)
    (alone,) = trained(Sweep.of(sweep.config, sweep.data, sweep.folds, sweep.splits[1:2]), [1])
    assert_same_head(ours, alone, 1, g, 0, 0)
    # what it saves reads tokens as they are stored
    state = ours.averaged.head_state(0, g)
    row = sweep.data.store[int(sweep.splits[0].val_N[0])]
    cls_TD = torch.tensor(row.cls(0)).float()
    raw_T3 = cls_TD @ state["main_head.weight"].T + state["main_head.bias"]
    out = predict_held_out([ours.averaged], sweep.data, sweep.reader(), sweep.splits, 8)[0]
    masses_3 = out.values_GRNK[0, 0, int(sweep.splits[0].val_N[0]), :3]
    np.testing.assert_allclose(masses_3, softplus(raw_T3).sum(0), rtol=1e-4)
    run_sweep(given, tmp_path / "runs", "cpu", progress=False)


def test_a_kind_whose_outputs_start_far_from_the_means_is_told_of(tmp_path, store, monkeypatch):
    """Its layers have other names than those whose biases are known."""
    code = Path(density.__file__).read_text("utf-8").replace('"density', '"output')
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "renamed.py").write_text(code)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path / "kinds")])
    sweep = prepare_sweep(config(tmp_path, store, kind="[renamed]", lr="[1e-2]"), "cpu")
    with pytest.warns(UserWarning, match="renamed: it has none of main_head.bias"):
        sweep.trainers([0])
