"""Folders whose names are not UTF-8, as an older disk or another system's archive leaves them:
every command works there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from commands import TINY, biomass
from conftest import SWEEP, write_tiny
from served import client_of
from sweeps import as_found, config, write_store

from featurestore.disk.tensor_file import readable_name
from predictor.predictor import predict
from trainer.loop.chosen import best_run, chosen_run
from trainer.loop.grid import SweepConfig
from trainer.loop.newest import newest_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.runs import RunFolder
from trainer.loop.sweep import run_sweep

LATIN = os.fsdecode(b"caf\xe9")


@pytest.fixture
def odd(tmp_path) -> Path:
    folder = tmp_path / LATIN
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def project(pasture, tmp_path_factory) -> Path:
    """Photographs, a store and a sweep in such a folder."""
    folder = tmp_path_factory.mktemp("odd") / LATIN
    shutil.copytree(pasture, folder / "data")
    store = folder / "features.h5"
    biomass("store", "build", "--data", folder / "data", "--out", store, "--views", 1, *TINY)
    text = SWEEP.format(store="unused.h5").replace(
        "[cls_gating, density, attention, pooled_mlp, ridge, gpr]", "density"
    )
    (folder / "small.yaml").write_text(text)
    command = [
        "train",
        "--config",
        folder / "small.yaml",
        "--store",
        store,
        "--out",
        folder / "runs",
    ]
    biomass(*command, "--fold", "all", "--device", "cpu")
    return folder


@pytest.mark.filterwarnings("ignore:.*random weights:UserWarning")
def test_L9_train_and_predict_work_there(project, tmp_path):
    data, (sweep, _) = project / "data", newest_sweep(project / "runs")
    assert LATIN in str(RunFolder(best_run(sweep)).store_folder)
    biomass(
        "predict",
        "--data",
        data,
        "--sweep",
        sweep,
        "--out",
        project / "s.csv",
        "--device",
        "cpu",
        "--tta",
        1,
    )
    biomass(
        "predict",
        "--data",
        data,
        "--sweep",
        sweep,
        "--oof",
        "--out",
        project / "oof.csv",
        "--device",
        "cpu",
    )
    moved = shutil.copytree(project, tmp_path / "plain")
    run = chosen_run(newest_sweep(moved / "runs")[0])
    predicted = predict(run, moved / "data", 1, progress=False, device="cpu")
    written = pd.read_csv(project / "s.predictions.csv")
    assert written["Dry_Total_g"].tolist() == pytest.approx(
        predicted["Dry_Total_g"].tolist(), abs=1e-5
    )


def test_L9_a_bundle_is_made_and_predicts_there(project):
    sweep, _ = newest_sweep(project / "runs")
    biomass("bundle", sweep, "--out", project / "bundle", "--with-backbone")
    biomass("bundle", "check", project / "bundle")
    arguments = ["--data", project / "data", "--device", "cpu", "--tta", 1]
    biomass("predict", "--bundle", project / "bundle", *arguments, "--out", project / "b.csv")
    assert len(pd.read_csv(project / "b.csv"))


@pytest.mark.parametrize("suffix", ["h5", pytest.param("zarr", marks=pytest.mark.system)])
def test_L9_stores_are_copied_and_examined_there(odd, torch_untried, suffix):
    source = odd / f"f.{suffix}"
    write_tiny(source)
    biomass("store", "convert", source, odd / "g.h5")
    biomass("store", "convert", source, odd / "archive.zarr", "--codec", "zstd")
    biomass("store", "merge", source, "--out", odd / "m.zarr")
    biomass("store", "extend", source, odd / "e.h5", "--reserve", 1)
    biomass("store", "verify", odd / "m.zarr")
    biomass("store", "diff", source, odd / "g.h5")
    assert json.loads(biomass("doctor", source, "--json").stdout)


def test_L9_a_sweep_resumes_there_from_its_checkpoint(odd, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.loop.runs.SweepFolder.remove_checkpoints", lambda _: None)
    config(tmp_path, Path("unused.h5"), kind="density", lr="[1e-2]", epochs=2)
    given = SweepConfig.load(tmp_path / "sweep.yaml", {"dataset.store": write_store(odd / "f.h5")})
    sweep = run_sweep(given, odd / "runs", "cpu", progress=False).path
    whole = as_found(sweep / "summary.json")
    (sweep / "summary.json").unlink()
    assert (sweep / "checkpoints").is_dir()
    resume_sweep(sweep)
    assert as_found(sweep / "summary.json") == whole


def test_L9_the_service_shows_what_lies_there(odd, project):
    store = odd / f"{LATIN}.h5"
    write_tiny(store)
    sweep, _ = newest_sweep(project / "runs")
    client = client_of(store, sweeps=[sweep])
    assert [each["name"] for each in client.get("/v1/stores").json()["stores"]] == ["caf?"]
    assert client.get("/v1/stores/caf%3F").status_code == 200
    assert client.get(f"/v1/sweeps/{sweep.name}").json()["finished"]


def test_L9_a_path_is_printed_as_the_bytes_that_it_is(odd):
    write_tiny(odd / "f.h5")
    # as every command prints; this one needs no torch
    command = [sys.executable, "-m", "cli", "store", "info", odd / "f.h5"]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=strict, capture_output=True, check=True)
    assert os.fsencode(odd / "f.h5") in done.stdout


def test_L9_safetensors_is_given_a_name_that_it_takes(odd, tmp_path):
    (odd / "a.safetensors").write_bytes(b"what is there")
    with readable_name(odd / "a.safetensors") as name:
        assert str(name).isascii() and name.read_bytes() == b"what is there"
    with readable_name(tmp_path / "é.safetensors") as name:
        assert name == tmp_path / "é.safetensors"
