"""What a command says at its end: the next one, to be pasted."""

import shlex
import subprocess
from pathlib import Path

import pytest
from commands import TINY, biomass
from conftest import write_tiny
from sweeps import config

from featurestore import FeatureStore
from trainer.loop.grid import SweepConfig

OWN = "experiment: {name: own, seed: 1}\nhead: {kind: ridge}\noptimization: {lr: 1e-3, weight_decay: 0}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps(*arguments: object, code: int = 0) -> dict[str, str]:
    """The last lines of stderr, by their labels."""
    said = biomass(*arguments, code=code).stderr.splitlines()
    lines = [line.partition(": ") for line in said]
    labels = ("next", "look", "written")
    return {label: command for label, _, command in lines if label in labels}


def pasted(command: str) -> Path:
    """The config that a shell writes when a step is pasted, but for its last command."""
    write, _, train = command.rpartition("; ")
    subprocess.run(["sh", "-c", write], check=True)
    return Path(shlex.split(train)[3])


def test_a_plan_leads_to_the_same_command_without_it(pasture):
    build = ["store", "build", "--data", pasture, "--out", "f.h5", "--views", 1, *TINY]
    said = steps(*build, "--plan")["next"]
    assert shlex.split(said) == ["biomass", *map(str, build)]
    train = steps(*shlex.split(said)[1:])["next"]
    written = pasted(train)
    assert written.name == "first.yaml" and train.endswith("--config first.yaml --store f.h5")
    assert {point.head.kind for point in SweepConfig.load(written).points} == {"density", "ridge"}


def test_a_config_that_fits_the_store_is_named(store):
    Path("first.yaml").write_text(OWN)
    said = steps("store", "convert", store, "--out", "g.zarr")["next"]
    assert said == "biomass train --config first.yaml --store g.zarr"

    # of columns that this store has not
    Path("first.yaml").write_text(OWN + "targets: {wood_t: {}}\n")
    said = steps("store", "merge", store, "--out", "m.h5")["next"]
    assert pasted(said) == Path("first-2.yaml") and "wood_t" in Path("first.yaml").read_text()


def test_a_config_that_is_written_names_a_column(folder):
    write_tiny(folder / "f.h5")
    said = steps("store", "convert", "f.h5", "--out", "o.h5", "--tokens", "pooled")["next"]
    sweep = SweepConfig.load(pasted(said))
    assert list(sweep.base.targets) == ["Dry_Total_g"]
    assert {point.head.kind for point in sweep.points} == {"pooled_mlp", "ridge"}
    assert FeatureStore.open("o.h5").n_sealed == 5


def test_a_sweep_leads_to_predict_and_to_the_page(folder, store):
    config(folder, store, kind="[ridge]", lr="[1e-2]", epochs=1)
    (folder / "data").mkdir()
    train = ["train", "--config", "sweep.yaml", "--device", "cpu"]
    assert steps(*train, "--plan")["next"] == shlex.join(["biomass", *train])
    said = steps(*train)
    (sweep,) = Path("runs").iterdir()
    assert said["next"] == f"biomass predict --sweep {sweep} --data data"
    assert said["look"] == f"biomass store serve {store} --sweep {sweep} --data data"


def test_a_prediction_says_what_it_wrote_and_a_bundle_how_to_use_it(sweep, pasture):
    run = next(sweep.glob("005_*"))
    predict = ["predict", "--run", run, "--data", pasture, "--tta", 1, "--device", "cpu"]
    said = steps(*predict)
    assert said["written"] == "submission.csv, predictions.csv: 2 photographs"
    serve = f"biomass store serve --predictions predictions.csv --data {pasture}"
    assert said["look"] == serve
    part = biomass(*predict, "--part", "0/2", "--out", "P").stderr
    assert part.endswith(f"when all parts are there: biomass predict --merge P --data {pasture}\n")
    bundled = steps("bundle", run, "--out", "b")
    assert bundled["next"] == "biomass predict --bundle b --data data"
    assert steps("bundle", "check", "b") == bundled


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_programs_are_told_no_step(folder, option):
    write_tiny(folder / "f.h5")
    assert not steps("store", "merge", "f.h5", "--out", "m.h5", option)


def test_damage_leads_to_repair(folder):
    write_tiny(folder / "f.h5")
    _, offset, _ = FeatureStore.open("f.h5").layout.extents["cls"].locate(0)
    rotten = bytearray((folder / "f.h5").read_bytes())
    rotten[offset] ^= 1
    (folder / "f.h5").write_bytes(rotten)
    assert (
        "`biomass store verify f.h5 --repair` un-seals them"
        in biomass("store", "verify", "f.h5", code=4).stderr
    )


def test_a_store_leads_to_the_page_and_an_archive_to_a_store(folder):
    write_tiny(folder / "f.h5")
    assert steps("store", "info", "f.h5")["next"] == "biomass store serve f.h5"
    write_tiny(folder / "half.h5", seal=3)
    said = steps("store", "info", "half.h5")["next"]
    assert said == "to continue, run the command that began it once more"
    biomass("store", "convert", "f.h5", "--out", "a.zarr", "--codec", "zstd")
    said = steps("store", "info", "a.zarr")["next"]
    assert said == "biomass store convert a.zarr --out NAME.h5"
