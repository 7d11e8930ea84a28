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
from trainer.heads.regressor import Regressor
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.runs import RunFolder
from trainer.loop.sweep import run_sweep

DOCS = (Path(__file__).parent.parent / "docs" / "sweep.md").read_text()


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


def test_a_kind_whose_outputs_start_far_from_the_means_is_told_of(tmp_path, store, monkeypatch):
    """Its layers have other names than those whose biases are known."""
    code = Path(density.__file__).read_text("utf-8").replace('"density', '"output')
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "renamed.py").write_text(code)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path / "kinds")])
    sweep = prepare_sweep(config(tmp_path, store, kind="[renamed]", lr="[1e-2]"), "cpu")
    with pytest.warns(UserWarning, match="renamed: it has none of main_head.bias"):
        sweep.trainers([0])
