"""Who may read what a command leaves: the umask alone says so."""

import os
from pathlib import Path

import pytest
import torch
from commands import biomass
from conftest import write_tiny
from sweeps import DEFAULTS, YAML, write_store

from featurestore.backbone.weights import save_weights
from featurestore.disk.tensor_file import save_tensors

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def shared_with_a_group():
    """The umask of people who share a folder: a file that somebody makes, the others may change."""
    before = os.umask(0o002)
    yield
    os.umask(before)


EXPECTED = 0o664


def modes(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in files}


def test_L6_weights_follow_the_umask(tmp_path):
    save_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert modes(tmp_path) == {"a.safetensors": EXPECTED}


def test_L6_a_store_its_lock_and_its_weights_follow_the_umask(store_path):
    write_tiny(store_path)
    save_weights({"a": torch.ones(3)}, "0" * 64, store_path.parent)
    found = modes(store_path.parent)
    assert set(found.values()) == {EXPECTED}
    assert {f"{store_path.name}.lock", f"backbone-{'0' * 16}.safetensors"} <= set(found)


def test_L6_copies_of_a_store_follow_the_umask(tmp_path):
    source, out = tmp_path / "f.h5", tmp_path / "made"
    write_tiny(source)
    source.chmod(0o600)
    biomass("store", "convert", source, out / "f.zarr")
    biomass("store", "convert", source, out / "archive.zarr", "--codec", "zstd")
    biomass("store", "merge", source, "--out", out / "merged.h5")
    biomass("store", "extend", source, out / "extended.h5", "--reserve", 2)
    assert set(modes(out).values()) == {EXPECTED}


def test_L6_a_sweep_follows_the_umask(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.loop.runs.SweepFolder.remove_checkpoints", lambda _: None)
    values = DEFAULTS | {
        "store": write_store(tmp_path / "f.h5"),
        "kind": "[density, ridge]",
        "lr": 1e-2,
        "dropout": 0,
        "epochs": 2,
        "n_folds": 2,
    }
    text = YAML.format(**values).replace("num_epochs", "checkpoint_every: 1, num_epochs")
    (tmp_path / "sweep.yaml").write_text(text)
    biomass(
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--out",
        tmp_path / "runs",
        "--fold",
        "all",
        "--device",
        "cpu",
    )
    found = modes(tmp_path / "runs")
    assert set(found.values()) == {EXPECTED}
    assert {"weights", "checkpoints"} <= {Path(name).parent.name for name in found}


def test_L6_a_prediction_and_a_bundle_follow_the_umask(sweep, pasture, tmp_path):
    made = tmp_path / "made"
    biomass("bundle", sweep, "--out", made / "bundle", "--with-backbone")
    biomass(
        "predict",
        "--data",
        pasture,
        "--sweep",
        sweep,
        "--out",
        made / "s.csv",
        "--device",
        "cpu",
        "--tta",
        1,
        "--explain",
        made / "pictures",
    )
    assert set(modes(made).values()) == {EXPECTED}


def test_L6_nothing_but_save_tensors_calls_safetensors_to_write():
    packages = ("featurestore", "trainer", "predictor", "service")
    sources = [path for name in packages for path in (ROOT / name).rglob("*.py")]
    callers = [path.name for path in sources if "save_file(" in path.read_text()]
    assert callers == ["tensor_file.py"]
