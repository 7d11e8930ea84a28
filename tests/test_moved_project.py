"""Store, weights and runs were moved together: predict, bundle and resume find them without a
network or an option."""

import shutil
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
import timm
from commands import biomass, options_named, options_of
from safetensors.torch import save_file
from sweeps import write_store

from featurestore import FeatureStore
from trainer.loop.places import moved_places

NAME = "vit_tiny_patch16_dinov3_qkvb"
BUILD = ["--backbone", NAME, "--image-size", 64, "--views", 1, "--device", "cpu"]
RIDGE = """
experiment: {name: ridge, seed: 0}
head: {kind: ridge}
optimization: {lr: 1e-2, weight_decay: 0}
inference: {tta_indices: [0]}
cv: {n_folds: 2, groups: date}
"""


@pytest.fixture(scope="module")
def project(pasture, tmp_path_factory) -> Path:
    """data, stores/f.h5 with its weights, runs: as they lay when they were made. It is gone once it
    was moved."""
    folder = tmp_path_factory.mktemp("before") / "project"
    shutil.copytree(pasture, folder / "data")
    (folder / "stores").mkdir()
    save_file(timm.create_model(NAME, num_classes=0).state_dict(), folder.parent / "w.safetensors")
    (folder / "ridge.yaml").write_text(RIDGE)
    biomass(
        "store",
        "build",
        "--data",
        folder / "data",
        "--out",
        folder / "stores/f.h5",
        *BUILD,
        "--weights",
        folder.parent / "w.safetensors",
    )
    biomass(
        "train",
        "--config",
        folder / "ridge.yaml",
        "--store",
        folder / "stores/f.h5",
        "--out",
        folder / "runs",
    )
    return folder


@pytest.fixture(scope="module")
def moved(project, tmp_path_factory) -> Path:
    return Path(shutil.move(project, tmp_path_factory.mktemp("after") / "renamed"))


@pytest.fixture(scope="module")
def lost(moved, tmp_path_factory) -> Path:
    """Moved without the weights."""
    return Path(
        shutil.copytree(
            moved,
            tmp_path_factory.mktemp("lost") / "it",
            ignore=shutil.ignore_patterns("*.safetensors.lock", "backbone-*"),
        )
    )


def sweep_of(project: Path) -> Path:
    return next((project / "runs").iterdir())


def test_K5_a_moved_project_predicts_without_options_and_network(moved, tmp_path, no_network):
    biomass(
        "predict",
        "--data",
        moved / "data",
        "--sweep",
        sweep_of(moved),
        "--tta",
        1,
        "--out",
        tmp_path / "s.csv",
    )
    assert pd.read_csv(tmp_path / "s.csv").notna().all(axis=None)


def test_K5_a_moved_project_is_bundled(moved, tmp_path, no_network):
    licence = tmp_path / "licence.txt"
    licence.write_text("as it says")
    biomass(
        "bundle",
        sweep_of(moved),
        "--with-backbone",
        "--backbone-licence",
        licence,
        "--out",
        tmp_path / "bundle",
    )
    assert len(list((tmp_path / "bundle/backbone").glob("*.safetensors"))) == 1


@pytest.mark.filterwarnings("default:.*the sweep's store is")
def test_K5_a_moved_sweep_finds_its_store(moved, no_network):
    result = biomass("train", "--resume", sweep_of(moved), "--fold", "all")
    assert f"the sweep's store is {moved / 'stores/f.h5'}" in result.stderr


def test_K5_another_store_at_the_old_place_is_not_taken_for_the_sweeps(moved, tmp_path):
    from trainer.loop.places import find_store

    other, mine = tmp_path / "old/f.h5", tmp_path / "new/f.h5"
    other.parent.mkdir()
    mine.parent.mkdir()
    write_store(other)
    shutil.copy(moved / "stores/f.h5", mine)
    with pytest.warns(UserWarning, match="another store now"):
        assert find_store(
            str(other), mine.parent / "runs/S", FeatureStore.open(mine).spec.fingerprint
        ) == str(mine)


def test_K5_a_sweep_whose_store_is_nowhere_names_trains_own_option(moved, tmp_path):
    lone = shutil.copytree(sweep_of(moved), tmp_path / "runs/S")
    result = biomass("train", "--resume", lone, "--fold", "all", code=3)
    assert "no longer there" in result.stderr
    assert result.stderr.rstrip().endswith("name its place with --store")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """A cache of downloads, empty, and no hub beyond it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("command", ["predict", "bundle", "extend"])
def test_K5_weights_that_are_nowhere_are_asked_for_by_the_options_of_the_command(
    lost, tmp_path, hub, no_network, command
):
    """And it says where it looked; timm has no download of this model."""
    licence = tmp_path / "licence.txt"
    licence.write_text("as it says")
    option, arguments = {
        "predict": (
            "--backbone-weights",
            [
                "predict",
                "--data",
                lost / "data",
                "--sweep",
                sweep_of(lost),
                "--tta",
                1,
                "--out",
                tmp_path / "s.csv",
            ],
        ),
        "bundle": (
            "--backbone-weights",
            [
                "bundle",
                "make",
                sweep_of(lost),
                "--with-backbone",
                "--backbone-licence",
                licence,
                "--out",
                tmp_path / "b",
            ],
        ),
        "extend": (
            "--weights",
            [
                "store",
                "extend",
                lost / "stores/f.h5",
                lost / "stores/g.h5",
                "--data",
                lost / "data",
                "--views",
                2,
            ],
        ),
    }[command]
    told = biomass(*arguments, code=3).stderr
    assert f"give the store's weights with {option} FILE.safetensors" in told
    assert str(lost) in told.partition("It was looked for in:")[2]
    assert options_named(told) <= options_of(*map(str, arguments))


def test_K5_what_timm_downloaded_before_serves_without_a_network(
    moved, lost, tmp_path, hub, no_network
):
    """The cache as huggingface_hub lays it out, of a model that timm has on the hub; its weights
    are those of the store."""
    model, repo = "vit_tiny_patch16_224", timm.get_pretrained_cfg("vit_tiny_patch16_224").hf_hub_id
    snapshot = hub / f"models--{repo.replace('/', '--')}" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123")
    save_file(timm.create_model(model).state_dict(), snapshot / "model.safetensors")
    store = tmp_path / "f.h5"
    biomass(
        "store",
        "build",
        "--data",
        lost / "data",
        "--out",
        store,
        "--backbone",
        model,
        "--image-size",
        64,
        "--views",
        1,
        "--weights",
        snapshot / "model.safetensors",
        "--no-save-weights",
    )
    biomass("store", "extend", store, tmp_path / "g.h5", "--data", lost / "data", "--views", 2)
    assert FeatureStore.open(tmp_path / "g.h5").n_sealed == 6


def test_K5_ends_of_the_old_path_are_tried_from_the_run_upwards():
    assert moved_places(Path("/a/stores"), Path("/new/b")) == [
        Path(place)
        for place in (
            "/new/b",
            "/new/b/stores",
            "/new/b/a/stores",
            "/new",
            "/new/stores",
            "/new/a/stores",
        )
    ]
