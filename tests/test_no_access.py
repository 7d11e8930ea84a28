"""A file that this account may not read is an error that says so: it is neither missing nor
damaged."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from account import unreadable
from commands import TINY, biomass
from conftest import tiny_frame, tiny_spec, write_tiny

from featurestore import FeatureStore
from featurestore.backbone.weights import kept_weights
from featurestore.errors import NoAccessError
from predictor import __main__ as program
from service.explore.pictures import photograph_jpeg
from trainer.loop.checkpoint import Checkpoint
from trainer.loop.chosen import best_run

CONFIG = """\
experiment: {name: small, seed: 3}
head: {kind: density}
optimization: {lr: 1e-2, weight_decay: 0.01}
inference: {tta_indices: [0]}
"""
SAID = "Permission denied: this account may not read"


def refused(path: Path, *arguments: object, code: int = 3) -> str:
    """What a command says while a file or folder may not be read."""
    with unreadable(path):
        said = biomass(*arguments, code=code).stderr
    assert path.name in said
    return said


@pytest.mark.parametrize("part", ["", "zarr.json", "cls/zarr.json", "cls/c", "patches/c/0/0/0/0/0"])
@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_L6_a_store_that_may_not_be_read_is_not_damaged(tmp_path, suffix, part):
    path = tmp_path / f"f.{suffix}"
    write_tiny(path)
    place = path / part if suffix == "zarr" else path
    assert SAID in refused(place, "store", "info", path)
    with unreadable(place), pytest.raises(NoAccessError, match="may not read it; ask its owner"):
        FeatureStore.open(path)


@pytest.mark.parametrize("command", ["convert", "extend", "merge"])
def test_L6_a_copy_says_which_store_may_not_be_read(tmp_path, command):
    source, out = tmp_path / "f.h5", tmp_path / "g.h5"
    write_tiny(source)
    arguments = [source, "--out", out] if command == "merge" else [source, out]
    assert SAID in refused(source, "store", command, *arguments)
    assert not out.exists()


@pytest.mark.parametrize(
    "name", ["config.yaml", "spec.json", "weights", "weights/last_fold0.safetensors", "oof.csv"]
)
def test_L6_a_run_that_may_not_be_read_is_not_damaged(sweep, pasture, tmp_path, name):
    run = best_run(sweep)
    out = ["--out", tmp_path / "s.csv", "--device", "cpu"]
    assert SAID in refused(
        run / name, "predict", "--data", pasture, "--run", run, *out, "--interval", 0.5
    )
    assert not os.listdir(tmp_path)


def test_L6_a_bundle_is_not_made_without_a_run_that_may_not_be_read(sweep, tmp_path):
    run = best_run(sweep)
    for place in (run, run / "weights"):
        assert SAID in refused(
            place, "bundle", sweep, "--points", "all", "--out", tmp_path / "bundle"
        )


@pytest.mark.parametrize("name", ["test.csv", "test"])
def test_L6_python_m_predictor_says_it_too(sweep, pasture, tmp_path, monkeypatch, capsys, name):
    arguments = [
        "--data",
        pasture,
        "--sweep",
        sweep,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("sys.argv", ["predictor", *map(str, arguments)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with unreadable(pasture / name), pytest.raises(SystemExit, match="3"):
        program.main()
    assert SAID in capsys.readouterr().err


def test_L6_no_option_goes_without_a_photograph_that_may_not_be_read(sweep, pasture, tmp_path):
    first, second = (
        sorted((pasture / "train").iterdir())[0],
        sorted((pasture / "test").iterdir())[0],
    )
    build = [
        "store",
        "build",
        "--data",
        pasture,
        "--out",
        tmp_path / "f.h5",
        "--views",
        1,
        *TINY,
        "--skip-missing",
    ]
    said = refused(first, *build)
    assert SAID in said and "--skip-missing" not in said
    predict = [
        "predict",
        "--data",
        pasture,
        "--sweep",
        sweep,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
    ]
    assert SAID in refused(second, *predict, "--on-error", "mean")
    assert not os.listdir(tmp_path)


def test_L6_photographs_in_a_folder_that_may_not_be_entered_are_not_missing(
    sweep, pasture, tmp_path
):
    predict = [
        "predict",
        "--data",
        pasture,
        "--sweep",
        sweep,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
    ]
    assert SAID in refused(pasture / "test", *predict)


def test_L6_the_page_shows_a_thumbnail_for_a_photograph_that_may_not_be_read(built, pasture):
    store = FeatureStore.open(built)
    with unreadable(pasture / store.catalog["path"][0]):
        assert photograph_jpeg(store, 0, pasture)[1] == "absent"


@pytest.mark.parametrize("option", ["--config", "--images", "--folds"])
def test_L6_train_says_which_of_its_files_may_not_be_read(store, tmp_path, option):
    for name in ("config", "images", "folds"):
        (tmp_path / name).write_text(CONFIG)
    given = [] if option == "--config" else [option, tmp_path / option[2:]]
    said = refused(
        tmp_path / option[2:],
        "train",
        "--config",
        tmp_path / "config",
        "--store",
        store,
        "--plan",
        *given,
    )
    assert SAID in said


def test_L6_a_path_behind_a_closed_folder_is_not_said_to_be_missing(sweep, pasture, tmp_path):
    shutil.copytree(sweep, tmp_path / "closed" / "sweep")
    with unreadable(tmp_path / "closed"):
        said = biomass(
            "predict", "--data", pasture, "--sweep", tmp_path / "closed" / "sweep", code=2
        ).stderr
    assert "this account may not look into its folder" in said and "does not exist" not in said


def test_L6_an_import_says_that_its_folder_may_not_be_read(tmp_path):
    (tmp_path / "npz").mkdir()
    assert SAID in refused(
        tmp_path / "npz", "store", "import", tmp_path / "npz", "--out", tmp_path / "f.h5"
    )


def test_L6_a_checkpoint_that_may_not_be_read_is_neither_damaged_nor_passed_over(tmp_path):
    path = tmp_path / "points0-1.safetensors"
    path.write_bytes(b"newest")
    with unreadable(path), pytest.raises(NoAccessError):
        Checkpoint(path).load([], SimpleNamespace(to_json=lambda: ""))


def test_L6_kept_weights_are_looked_for_past_a_folder_that_may_not_be_entered(tmp_path):
    spec = tiny_spec(tiny_frame())
    closed, beside = tmp_path / "closed", tmp_path / "beside"
    for folder in (closed, beside):
        folder.mkdir()
    (beside / f"backbone-{'0' * 16}.safetensors").touch()
    with unreadable(closed):
        assert kept_weights(spec, [closed / "store", beside]).startswith(str(beside))
