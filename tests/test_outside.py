"""Photographs that are links to another folder: refused by name, and taken where a command is told
so."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from commands import biomass

from featurestore.errors import InputError
from featurestore.photos.data_folder import check_data
from predictor.predictor import predict
from trainer.loop.chosen import best_run


@pytest.fixture
def linked(pasture, tmp_path) -> Path:
    """The pasture, whose photographs lie on a shared disk."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.csv", "test.csv"):
        shutil.copy(pasture / name, data)
    for name in ("train", "test"):
        shutil.copytree(pasture / name, tmp_path / "shared" / name)
        (data / name).symlink_to(tmp_path / "shared" / name)
    return data


def test_L11_predict_takes_linked_photographs_when_told(sweep, pasture, linked, tmp_path):
    command = ["predict", "--sweep", sweep, "--device", "cpu", "--tta", 1, "--data"]
    refused = biomass(*command, linked, "--out", tmp_path / "s.csv", code=3)
    assert "lie outside" in refused.stderr and "--allow-outside" in refused.stderr
    biomass(*command, linked, "--out", tmp_path / "s.csv", "--allow-outside")
    biomass(*command, pasture, "--out", tmp_path / "plain.csv")
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()


def test_L11_predict_oof_takes_linked_photographs_when_told(sweep, linked, tmp_path):
    command = [
        "predict",
        "--oof",
        "--sweep",
        sweep,
        "--device",
        "cpu",
        "--data",
        linked,
        "--out",
        tmp_path / "oof.csv",
    ]
    assert "--allow-outside" in biomass(*command, code=3).stderr
    biomass(*command, "--allow-outside")
    assert len(pd.read_csv(tmp_path / "oof.csv"))


def test_L11_the_api_takes_linked_photographs_when_told(sweep, linked):
    with pytest.raises(InputError, match="lie outside"):
        predict(best_run(sweep), linked, 1, progress=False, device="cpu")
    table = predict(best_run(sweep), linked, 1, progress=False, device="cpu", allow_outside=True)
    assert table["Dry_Total_g"].notna().all()


@pytest.mark.system
def test_L11_python_m_predictor_takes_linked_photographs_when_told(sweep, linked, tmp_path):
    out = tmp_path / "s.csv"
    command = [
        sys.executable,
        "-m",
        "predictor",
        "--data",
        linked,
        "--sweep",
        sweep,
        "--device",
        "cpu",
        "--tta",
        1,
    ]
    subprocess.run(
        [*map(str, command), "--out", str(out), "--allow-outside"], check=True, capture_output=True
    )
    assert len(pd.read_csv(out)) == len(pd.read_csv(linked / "test.csv"))


def test_L11_doctor_names_the_command_that_reads_each_table(linked):
    said = {check.name: check.found for check in check_data(linked)}
    assert "`biomass store build --allow-outside`" in said["train photos"]
    assert "`biomass predict --allow-outside`" in said["test photos"]
