"""`biomass weights list` and `check`: which backbone a file is whole for, and which store needs it."""

import json
import shutil

import pytest
import timm
import torch
from commands import TINY, biomass
from safetensors.torch import save_file
from test_meta_names import as_dinov3

from featurestore import FeatureStore
from featurestore.backbone.demo.model import NAME as DEMO
from featurestore.backbone.demo.model import WEIGHTS as DEMO_WEIGHTS
from featurestore.backbone.weights import UNKNOWN_WEIGHTS

TINY_NAME = "vit_tiny_patch16_dinov3_qkvb"


@pytest.fixture(scope="module")
def folder(pasture, tmp_path_factory):
    """A store of a user's weights and one of the demo's, that file, its twin, and others."""
    folder = tmp_path_factory.mktemp("weights")
    state = timm.create_model(TINY_NAME, num_classes=0).state_dict()
    save_file(state, folder / "mine.safetensors")
    (folder / "deep").mkdir()
    meta = as_dinov3(timm.create_model(TINY_NAME, num_classes=0))
    save_file(meta, folder / "deep/other.safetensors")
    save_file({"head.weight": torch.ones(3)}, folder / "head.safetensors")
    torch.save(state, folder / "old.pth")
    (folder / "broken.h5").write_bytes(b"nothing")
    (folder / "cut.safetensors").write_bytes(b"nothing")
    build = ["store", "build", "--data", pasture, "--views", 1, "--image-size", 64]
    tiny = ["--backbone", TINY_NAME, "--weights", folder / "mine.safetensors"]
    biomass(*build, *tiny, "--out", folder / "tiny.h5")
    biomass(*build, "--backbone", DEMO, "--out", folder / "deep/demo.zarr", "--no-save-weights")
    return folder


def hash_of(store) -> str:
    return FeatureStore.open(store).spec.tokens.weights_sha256


def test_files_and_the_stores_that_need_them_are_listed(folder):
    found = json.loads(biomass("weights", "list", folder, "--json").output)
    files = {file["path"]: file for file in found["files"]}
    tiny = hash_of(folder / "tiny.h5")
    kept = folder / f"backbone-{tiny[:16]}.safetensors"
    other = folder / "deep/other.safetensors"
    assert set(files) == {str(kept), str(folder / "mine.safetensors"), str(other)}
    for path in (kept, folder / "mine.safetensors"):
        file = files[str(path)]
        assert file["needed_by"] == [str(folder / "tiny.h5")]
        assert [fit["weights_sha256"] for fit in file["fits"]] == [tiny]
    assert files[str(other)]["needed_by"] == []
    assert files[str(other)]["names"] == "Meta"
    assert [fit["model"] for fit in files[str(other)]["fits"]] == [TINY_NAME]

    stores = {store["path"]: store for store in found["stores"]}
    assert set(stores) == {str(folder / "tiny.h5"), str(folder / "deep/demo.zarr")}
    assert stores[str(folder / "tiny.h5")]["where"] == f"{kept}, {folder / 'mine.safetensors'}"
    assert stores[str(folder / "deep/demo.zarr")]["where"] == "in the program"
    assert found["pickles"] == [str(folder / "old.pth")]


def test_the_list_is_told_in_words(folder):
    told = biomass("weights", "list", folder).output
    assert f"{folder}/mine.safetensors: 22.0 MB, 186 tensors, names of timm\n" in told
    assert f"  whole for {TINY_NAME} at any size, hash {hash_of(folder / 'tiny.h5')}\n" in told
    assert f"  needed by {folder}/tiny.h5\n" in told
    assert f"{folder}/old.pth: made by torch.save; `biomass weights convert` it" in told
    assert told.endswith("3 files of weights, 2 stores\n")


def test_a_store_whose_weights_are_not_there_says_where_they_come_from(folder, built, tmp_path):
    shutil.copy(built, tmp_path / "random.h5")
    shutil.copy(folder / "tiny.h5", tmp_path)
    told = biomass("weights", "list", tmp_path).output
    assert f"{tmp_path}/random.h5: " in told and "\n  random: drawn again\n" in told
    assert "\n  not here: give the file by --weights or --backbone-weights\n" in told
    assert told.endswith("0 files of weights, 2 stores\n")


def test_an_empty_folder_lists_nothing(tmp_path):
    assert biomass("weights", "list", tmp_path).output == "0 files of weights, 0 stores\n"


def test_a_file_is_compared_with_a_store(folder):
    command = "weights", "check", folder / "mine.safetensors"
    told = biomass(*command, "--store", folder / "tiny.h5").output
    assert told.endswith(f"  needed by {folder}/tiny.h5\n")
    other = biomass("weights", "check", folder / "deep/other.safetensors", "--json").output
    assert json.loads(other)["fits"][0]["weights_sha256"] not in (told, UNKNOWN_WEIGHTS)
    of_store = "--store", folder / "tiny.h5"
    refused = biomass("weights", "check", folder / "deep/other.safetensors", *of_store, code=5)
    assert "its tokens were made with other weights" in refused.stderr
    refused = biomass(*command, "--store", folder / "deep/demo.zarr", code=3)
    assert f"not whole weights of {DEMO}" in refused.stderr


def test_the_demos_own_file_is_recognised():
    told = biomass("weights", "check", DEMO_WEIGHTS, "--json").output
    (found,) = json.loads(told)["fits"]
    assert (found["model"], found["any_size"]) == (DEMO, True)


def test_the_size_counts_where_position_embeddings_are_resized(tmp_path):
    """A model whose name has no word for its width is compared when it is named."""
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    command = "weights", "check", tmp_path / "w.safetensors"
    assert "give --backbone NAME" in biomass(*command, code=3).stderr
    hashes = set()
    for size in ([], ["--image-size", 64]):
        told = biomass(*command, "--backbone", "test_vit", *size, "--json").output
        (found,) = json.loads(told)["fits"]
        assert not found["any_size"]
        hashes.add(found["weights_sha256"])
    assert len(hashes) == 2


def test_what_is_no_weights_file_is_refused(folder):
    for name, why in {"old.pth": "biomass weights convert", "cut.safetensors": "copy the"}.items():
        assert why in biomass("weights", "check", folder / name, code=3).stderr
    mine = folder / "mine.safetensors"
    store = "--store", folder / "tiny.h5"
    assert "--store says" in biomass("weights", "check", mine, *store, *TINY[:2], code=2).stderr
    assert "give both" in biomass("weights", "check", mine, "--image-size", 64, code=2).stderr
