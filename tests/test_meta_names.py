"""Weights under Meta's own names, made by inverting timm's conversion of them."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file

from featurestore.backbone.weights import weights_hash
from featurestore.backbone.weights_file import model_with
from featurestore.errors import InputError

pytestmark = pytest.mark.usefixtures("shallow")
SIZE = 112, 112  # a multiple of 14 and 16
DINOV3 = (
    (r"^reg_token$", "storage_tokens"),
    (r"gamma_([12])$", r"ls\1.gamma"),
    (r"mlp\.fc1_g\.", "mlp.w1."),
    (r"mlp\.fc1_x\.", "mlp.w2."),
)


def drawn(name: str) -> torch.nn.Module:
    """A timm model none of whose tensors is as it begins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=0, img_size=SIZE)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.requires_grad_(False)


def as_dinov3(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """As Meta's DINOv3 names them, with what its files hold besides."""
    state, theirs = model.state_dict(), {}
    gated = any("fc1_g" in name for name in state)
    for name, tensor in state.items():
        if name.endswith(("q_bias", "v_bias")):
            continue
        for ours, other in DINOV3:
            name = re.sub(ours, other, name)
        theirs[name.replace("mlp.fc2.", "mlp.w3.") if gated else name] = tensor
    for i in range(len(model.blocks)):
        q, v = state[f"blocks.{i}.attn.q_bias"], state[f"blocks.{i}.attn.v_bias"]
        theirs[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.ones_like(q), v])
        theirs[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(3 * len(q))
    return theirs | {"mask_token": torch.ones(1, 384), "rope_embed.periods": torch.ones(16)}


def as_dinov2(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """As Meta's DINOv2 names them."""
    theirs = model.state_dict() | {"mask_token": torch.ones(1, model.embed_dim)}
    if "reg_token" not in theirs:
        return theirs
    theirs["register_tokens"] = theirs.pop("reg_token")
    of_class = torch.full((1, 1, model.embed_dim), 0.5)
    theirs["pos_embed"] = torch.cat([of_class, theirs["pos_embed"]], 1)
    theirs["cls_token"] = theirs["cls_token"] - of_class
    return theirs


@pytest.mark.parametrize(
    "name, as_meta",
    [
        ("vit_tiny_patch16_dinov3_qkvb", as_dinov3),
        ("vit_small_plus_patch16_dinov3_qkvb", as_dinov3),
        ("vit_small_patch14_dinov2", as_dinov2),
        ("vit_small_patch14_reg4_dinov2", as_dinov2),
    ],
    ids=["DINOv3", "DINOv3 gated", "DINOv2", "DINOv2 with registers"],
)
def test_metas_names_give_timms_model(name, as_meta, tmp_path, capsys):
    ours = drawn(name)
    save_file(as_meta(ours), tmp_path / "w.safetensors")
    found = model_with(name, tmp_path / "w.safetensors", SIZE)
    for key, tensor in ours.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], tensor, rtol=0, atol=1e-6)
    if "reg4" not in name:  # its class token is a sum, rounded
        assert weights_hash(found) == weights_hash(ours)
    assert capsys.readouterr().out == ""


def test_biases_that_timm_would_drop_are_refused_unless_they_are_zero(tmp_path):
    name = "vit_small_patch16_dinov3"
    with_biases = drawn(f"{name}_qkvb")
    theirs = as_dinov3(with_biases)
    save_file(theirs, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"attn.qkv.bias is not zero, .* --backbone {name}_qkvb"):
        model_with(name, tmp_path / "w.safetensors", SIZE)
    width = with_biases.embed_dim
    zeros = torch.cat([torch.zeros(width), torch.ones(width), torch.zeros(width)])  # k is masked
    theirs |= {key: zeros.clone() for key in theirs if key.endswith("qkv.bias")}
    save_file(theirs, tmp_path / "w.safetensors")
    found = model_with(name, tmp_path / "w.safetensors", SIZE).state_dict()
    assert all(torch.equal(found[key], with_biases.state_dict()[key]) for key in found)
