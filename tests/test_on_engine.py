"""Commands with --engine: the same parts and passes, given to an engine, end in the same bytes.

The engine of these tests does one item after another in this process; `test_engine_ray.py` has Ray.
"""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from commands import TINY, biomass
from sweeps import as_found, config

from featurestore.disk.progress_lines import ProgressLines
from trainer.loop.runs import SweepFolder


class Engine:
    """What was given to an engine."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.addresses: list[str | None] = []
        self.devices: list[str] = []

    def run(self, task, items, *, devices, progress, address=None, **options):
        self.addresses.append(address)
        self.devices.append(devices[0])
        module, function = task.split(":")
        answers = {}
        for name, item in json.loads(json.dumps(items)).items():
            answers[name] = getattr(import_module(module), function)(**item, device="cpu")
            self.items.append(name)
            progress(name)
        return answers


@pytest.fixture
def engine(monkeypatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr("featurestore.engines.choose.ray.run", engine.run)
    monkeypatch.setattr("featurestore.engines.choose.ray.n_nodes", lambda: 3)
    return engine


def test_predict_gives_its_parts_to_an_engine(sweep, pasture, tmp_path, engine, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(pasture)
    ways = ["predict", "--sweep", sweep, "--data", "data", "--device", "cpu", "--tta", 1]
    biomass(*ways, "--out", "whole.csv")
    biomass(*ways, "--out", "s.csv", "--engine", "ray://10.0.0.1:6379", "--parts", 2)
    assert engine.items == ["part 0", "part 1"]
    assert engine.addresses == ["10.0.0.1:6379"] and engine.devices == ["cpu"]
    for end in (".csv", ".predictions.csv"):
        assert Path(f"s{end}").read_bytes() == Path(f"whole{end}").read_bytes()
    assert not Path("s.csv.parts").exists()


@pytest.mark.parametrize(
    "more, why",
    [
        (["--deadline", "1h"], "--deadline does not go with --engine"),
        (["--explain", "d"], "--explain does not go with --engine"),
        (["--oof"], "--oof does not go with --engine"),
        (["--part", "0/2"], "give one of --part, --merge and --engine"),
    ],
)
def test_what_an_engine_does_not_predict_is_refused(sweep, pasture, tmp_path, engine, more, why):
    ways = ["predict", "--sweep", sweep, "--data", pasture, "--out", tmp_path / "s.csv"]
    told = biomass(*ways, "--engine", "ray", *more, code=2)
    assert why in told.stderr and not engine.items


@pytest.mark.parametrize("name", ["f.h5", "f.zarr"])
def test_build_gives_its_parts_to_an_engine(pasture, tmp_path, engine, name):
    ways = ["store", "build", "--data", pasture, "--views", 1, *TINY]
    biomass(*ways, "--out", tmp_path / "whole" / name)
    biomass(*ways, "--out", tmp_path / name, "--engine", "ray", "--parts", 3)
    assert engine.items == ["part 0", "part 1", "part 2"] and engine.devices == ["cpu"]
    if name.endswith(".h5"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    told = biomass("store", "diff", tmp_path / name, tmp_path / "whole" / name)
    assert told.stdout == "no difference\n"
    assert not (tmp_path / f"{name}.parts").exists()


def test_train_gives_its_passes_to_an_engine(store, tmp_path, engine):
    config(tmp_path, store, kind="[cls_gating, density, ridge]", epochs=2)
    ways = ["train", "--config", tmp_path / "sweep.yaml", "--passes", 2, "--device", "cpu"]
    biomass(*ways, "--out", tmp_path / "whole")
    told = biomass(*ways, "--out", tmp_path / "shared", "--engine", "ray")
    assert engine.items == ["pass 0", "pass 1", "fits"] and engine.addresses == [None]
    (whole,), (shared,) = ((tmp_path / name).iterdir() for name in ("whole", "shared"))
    assert str(shared) in told.stdout
    kept = [path for path in whole.rglob("*") if path.suffix in (".csv", ".safetensors")]
    assert len(kept) > 20
    for path in kept:
        assert as_found(shared / path.relative_to(whole)) == as_found(path), path


def test_a_sweep_that_was_begun_goes_on_by_an_engine(store, tmp_path, engine, monkeypatch):
    config(tmp_path, store, kind="[cls_gating, density]", epochs=1)
    ways = ["--config", tmp_path / "sweep.yaml", "--passes", 2, "--device", "cpu"]
    told = biomass("train", *ways, "--out", tmp_path, "--begin")
    folder = Path(told.stdout.strip())
    biomass("train", "--resume", folder, "--pass", 0)
    # a line for each item, not one a minute
    monkeypatch.setitem(ProgressLines.__init__.__kwdefaults__, "mininterval", 0.0)
    said = biomass("train", "--resume", folder, "--engine", "ray").stderr
    assert engine.items == ["pass 1", "fits"] and SweepFolder(folder).is_finished
    # what is fitted is no pass
    assert re.findall(r"train: (.*? pass\w*)", said) == ["2 of 2 passes", "2 of 2 passes"]


def test_train_by_an_engine_leaves_no_part_to_be_asked_for(tmp_path, engine):
    (tmp_path / "sweep.yaml").write_text("")
    told = biomass(
        "train", "--config", tmp_path / "sweep.yaml", "--engine", "ray", "--begin", code=2
    )
    assert "leave out --plan, --begin and --pass" in told.stderr
