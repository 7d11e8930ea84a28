"""Weights of other names, sizes and kinds are refused with a whole message; nothing is
unpickled."""

import shutil

import pytest
import timm
import torch
from commands import biomass
from safetensors.torch import save_file

from featurestore import FeatureStore
from featurestore.backbone.weights_file import model_with
from featurestore.errors import InputError

NAME = "vit_tiny_patch16_dinov3_qkvb"


@pytest.fixture(scope="module")
def state() -> dict:
    return timm.create_model(NAME, num_classes=0).state_dict()


def refusal(name: str, path, size: tuple[int, int] = (64, 64)) -> str:
    with pytest.raises(InputError) as caught:
        model_with(name, path, size)
    return str(caught.value)


def test_hf_weights_an_incomplete_file_is_told_what_is_missing(state, tmp_path):
    """By transformers' names, as the file has them."""
    theirs = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.patch_embeddings.weight": state["patch_embed.proj.weight"],
    }
    save_file(theirs, tmp_path / "model.safetensors")
    # q, k and v are three tensors there
    n = len(state) + 2 * 12
    assert refusal(NAME, tmp_path / "model.safetensors") == (
        f"{tmp_path}/model.safetensors: not whole weights of {NAME}: read as DINOv3 under "
        f"transformers' names, of {n} tensors {n - 2} are missing (embeddings.register_tokens, "
        "embeddings.patch_embeddings.bias, layer.0.layer_scale1.lambda1, ...); copy the file "
        "again, or give the backbone that these weights were made for"
    )


def test_hf_weights_the_message_names_where_timms_file_is(tmp_path):
    save_file({"layer.0.norm1.weight": torch.ones(384)}, tmp_path / "model.safetensors")
    told = refusal("vit_small_patch16_dinov3", tmp_path / "model.safetensors")
    assert "of 162 tensors 162 are missing (cls_token, reg_token, " in told
    assert "1 are left over (layer.0.norm1.weight)" in told
    assert told.endswith(
        "for example model.safetensors of timm/vit_small_patch16_dinov3.lvd1689m on huggingface.co"
    )


def test_an_incomplete_file_of_timms_names_is_told_all_that_is_wrong(state, tmp_path):
    wrong = {name: tensor for name, tensor in state.items() if name != "norm.bias"}
    wrong |= {"norm.weight": torch.ones(3), "norm.extra": torch.ones(3)}
    save_file(wrong, tmp_path / "w.safetensors")
    told = refusal(NAME, tmp_path / "w.safetensors")
    assert (
        f"of {len(state)} tensors 1 are missing (norm.bias), 1 are left over (norm.extra)" in told
    )
    assert "1 have another shape (size mismatch for norm.weight" in told


@pytest.mark.parametrize(
    "name", ["model.pth", "pytorch_model.bin", "renamed.safetensors", "no_suffix"]
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_hf_weights_pickles_are_refused_by_name_and_by_content(state, tmp_path, name, zipped):
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert f"run `biomass weights convert {tmp_path / name} " in refusal(NAME, tmp_path / name)


def test_hf_weights_a_file_called_as_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"")
    assert "it is a .pth file, which can hold a pickle" in refusal(NAME, tmp_path / "model.pth")


def test_hf_weights_a_cut_file_is_called_so(state, tmp_path):
    save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    assert "copy the file again" in refusal(NAME, tmp_path / "cut.safetensors")


def test_K6_fixed_position_embeddings_name_the_size_they_were_made_for(tmp_path):
    save_file(
        timm.create_model("convit_tiny", num_classes=0).state_dict(), tmp_path / "w.safetensors"
    )
    told = refusal("convit_tiny", tmp_path / "w.safetensors")
    assert "size mismatch for pos_embed" in told
    assert told.endswith("use the image size that the weights were made for, by timm's account 224")
    assert model_with("convit_tiny", tmp_path / "w.safetensors", (224, 224))


def test_weights_of_another_width_are_no_matter_of_image_size(state, tmp_path):
    save_file(
        {name: tensor[..., :-1].contiguous() for name, tensor in state.items()},
        tmp_path / "w.safetensors",
    )
    assert refusal(NAME, tmp_path / "w.safetensors").endswith("give the weights of this very model")


def test_K5_a_build_goes_on_with_the_weights_kept_beside_its_store(
    pasture, tmp_path, state, no_network
):
    """Nobody names weights: those of the store, rather than a download."""
    save_file(state, tmp_path / "w.safetensors")
    shutil.copytree(pasture, tmp_path / "data")
    command = [
        "store",
        "build",
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "f.h5",
        "--backbone",
        NAME,
        "--image-size",
        64,
        "--views",
        1,
    ]
    biomass(*command, "--weights", tmp_path / "w.safetensors", "--reserve", 1)
    before = FeatureStore.open(tmp_path / "f.h5").spec
    biomass(*command)
    assert FeatureStore.open(tmp_path / "f.h5").spec == before
