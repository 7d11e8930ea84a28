"""A message names the options of the command that was typed, or a whole command."""

import shutil
from pathlib import Path

import pytest
from commands import biomass, options_named, options_of
from conftest import write_tiny

from featurestore import FeatureStore
from featurestore.disk.durable import locked


@pytest.fixture
def data(pasture, tmp_path) -> Path:
    """The photographs of test.csv and the last of train.csv are gone."""
    folder = shutil.copytree(pasture, tmp_path / "data")
    shutil.rmtree(folder / "test")
    return folder


def told(*arguments: object, code: int) -> str:
    text = biomass(*arguments, code=code).stderr
    assert options_named(text) <= options_of(*map(str, arguments))
    return text


def test_K5_predict_advises_its_own_option_for_missing_photographs(sweep, data, tmp_path):
    text = told("predict", "--data", data, "--sweep", sweep, "--out", tmp_path / "s.csv", code=3)
    assert "(--on-error mean goes without them)" in text


@pytest.mark.parametrize("command", ["extend", "convert", "merge"])
def test_K5_a_locked_store_is_told_without_builds_options(tmp_path, command):
    write_tiny(tmp_path / "a.h5")
    out = ["--out", tmp_path / "b.h5"] if command == "merge" else [tmp_path / "b.h5"]
    with locked(tmp_path / "b.h5"):
        assert "locked by" in told("store", command, tmp_path / "a.h5", *out, code=75)


@pytest.mark.parametrize("command", ["extend", "convert", "merge"])
def test_K5_a_full_disk_is_told_without_builds_options(tmp_path, command, monkeypatch):
    write_tiny(tmp_path / "a.h5")
    out = ["--out", tmp_path / "b.h5"] if command == "merge" else [tmp_path / "b.h5"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    assert "make room, or choose another place" in told(
        "store", command, tmp_path / "a.h5", *out, code=3
    )


@pytest.mark.parametrize("command", ["extend", "convert", "merge"])
def test_K5_a_place_that_cannot_be_written_and_other_tokens_name_no_option(tmp_path, command):
    write_tiny(tmp_path / "a.h5")
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "b.h5"
    told(
        "store",
        command,
        tmp_path / "a.h5",
        *(["--out", out] if command == "merge" else [out]),
        code=3,
    )


def test_K5_damage_met_by_merge_is_told_by_whole_commands(tmp_path):
    write_tiny(tmp_path / "a.h5")
    layout = FeatureStore.open(tmp_path / "a.h5").layout
    file, offset, _ = layout.extents["patches"].locate(0)
    with open(file, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 1]))
    text = told("store", "merge", tmp_path / "a.h5", "--out", tmp_path / "b.h5", code=4)
    assert "`biomass store convert --skip-damaged`" in text
