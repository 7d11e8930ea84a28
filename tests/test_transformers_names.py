"""Weights of models that transformers made: the tokens of timm's model equal transformers' own."""

from functools import partial

import pytest
import timm
import torch
import transformers
from commands import biomass
from safetensors.torch import load_file, save_file
from timm.layers import LayerNorm, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from featurestore import FeatureStore
from featurestore.backbone.timm_model import read_tokens
from featurestore.backbone.transformers_names import renamed
from featurestore.backbone.weights import weights_hash
from featurestore.backbone.weights_file import model_with
from featurestore.errors import InputError

WIDTH, SIDE = 64, 64
TINY = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 160,
    "image_size": SIDE,
}
DINO2 = {name: value for name, value in TINY.items() if name != "intermediate_size"}
DINO2 |= {"patch_size": 16, "layerscale_value": 0.5}
DINO3 = TINY | {"patch_size": 16, "num_register_tokens": 4}
GATED = DINO3 | {"use_gated_mlp": True, "hidden_act": "silu"}
NO_BIAS = DINO3 | {"query_bias": False, "value_bias": False}
VIT = TINY | {"patch_size": 16}
CLIP = TINY | {"patch_size": 16, "hidden_act": "gelu"}

EVA = {
    "img_size": SIDE,
    "num_classes": 0,
    "dynamic_img_size": True,
    "embed_dim": WIDTH,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.5,
    "qkv_bias": True,
    "init_values": 0.5,
    "rope_type": "dinov3",
    "rope_temperature": 100,
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 4,
    "use_fc_norm": False,
    "norm_layer": partial(LayerNorm, eps=1e-5),
}
GATED_EVA = EVA | {"swiglu_mlp": True, "swiglu_align_to": 8}
PLAIN = {"img_size": SIDE, "num_classes": 0, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
SCALED = PLAIN | {"init_values": 0.5}
REGISTERS = SCALED | {"reg_tokens": 4, "no_embed_class": True}
# as transformers computes the width: 4 * 64 * 2 / 3, rounded up to 8
PACKED = SCALED | {"mlp_ratio": 2 * 176 / WIDTH, "mlp_layer": SwiGLUPacked, "act_layer": "silu"}
PRE_NORM = PLAIN | {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5)}

# title: transformers' class, its config's class and arguments, timm's class and arguments
MODELS = {
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", DINO3, Eva, EVA),
    "DINOv3 gated": ("DINOv3ViTModel", "DINOv3ViTConfig", GATED, Eva, GATED_EVA),
    "DINOv3 without biases": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        NO_BIAS,
        Eva,
        EVA | {"qkv_bias": False},
    ),
    "DINOv2": ("Dinov2Model", "Dinov2Config", DINO2, VisionTransformer, SCALED),
    "DINOv2 gated": (
        "Dinov2Model",
        "Dinov2Config",
        DINO2 | {"use_swiglu_ffn": True},
        VisionTransformer,
        PACKED,
    ),
    "DINOv2 with registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        DINO2,
        VisionTransformer,
        REGISTERS,
    ),
    "ViT": (
        "ViTModel",
        "ViTConfig",
        VIT | {"layer_norm_eps": 1e-6},
        VisionTransformer,
        PLAIN | {"mlp_ratio": 2.5},
    ),
    "CLIP": (
        "CLIPVisionModel",
        "CLIPVisionConfig",
        CLIP,
        VisionTransformer,
        PRE_NORM | {"mlp_ratio": 2.5},
    ),
}


def drawn(kind: str, config: str, arguments: dict) -> torch.nn.Module:
    """A model of transformers with random weights, none of them zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, config)(**arguments)).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.requires_grad_(False)


def saved(model: torch.nn.Module, folder) -> dict[str, torch.Tensor]:
    """The tensors of the file that transformers saves."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def same_tokens(theirs: torch.nn.Module, ours: torch.nn.Module, side: int = SIDE) -> bool:
    """Whether class and patch tokens after the final norm are equal within 1e-5."""
    x_T3HW = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens_TXD = theirs(pixel_values=x_T3HW).last_hidden_state
        if hasattr(theirs, "post_layernorm"):  # CLIP norms the class token alone, and later
            tokens_TXD = theirs.post_layernorm(tokens_TXD)
        (cls_TD,), (patches_TPD,) = read_tokens(ours.eval(), [-1], x_T3HW)
    torch.testing.assert_close(cls_TD, tokens_TXD[:, 0], rtol=0, atol=1e-5)
    n_patches = patches_TPD.shape[1]
    torch.testing.assert_close(patches_TPD, tokens_TXD[:, -n_patches:], rtol=0, atol=1e-5)
    return True


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize("title", MODELS)
def test_tokens_are_those_of_transformers(title, where, tmp_path):
    kind, config, arguments, timms, more = MODELS[title]
    theirs, ours = drawn(kind, config, arguments), timms(**more)
    state = saved(theirs, tmp_path) if where == "file" else theirs.state_dict()
    found = renamed(state, ours)
    assert (found.missing, found.left_over) == ([], [])
    ours.load_state_dict(found.tensors)
    assert same_tokens(theirs, ours)


@pytest.mark.parametrize("title", MODELS)
def test_each_tensor_that_a_file_lacks_is_named_as_the_file_would(title, tmp_path):
    kind, config, arguments, timms, more = MODELS[title]
    ours = timms(**more)
    whole = saved(drawn(kind, config, arguments), tmp_path)
    for name in whole:
        if "mask_token" in name or "pooler" in name:  # no token depends on them
            continue
        less = {each: tensor for each, tensor in whole.items() if each != name}
        assert name in renamed(less, ours).missing, name


def test_other_parts_of_a_model_are_left_out(tmp_path):
    """A classifier, and the text tower of CLIP."""
    text = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 64, "vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97}
    config = transformers.CLIPConfig(vision_config=CLIP, text_config=text)
    clip = transformers.CLIPModel(config)
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT))
    for model, more in ((clip, MODELS["CLIP"][4]), (vit, MODELS["ViT"][4])):
        found = renamed(saved(model, tmp_path), VisionTransformer(**more))
        assert (found.missing, found.left_over) == ([], [])


def test_biases_of_zero_may_be_left_out_and_others_not():
    """timm has DINOv3's models with biases of q and v, and without."""
    state = drawn(*MODELS["DINOv3"][:3]).state_dict()
    ours = Eva(**EVA | {"qkv_bias": False})
    assert len(renamed(state, ours).left_over) == 4  # of q and v in two layers
    zeros = {
        name: torch.zeros_like(tensor) if name.endswith(("q_proj.bias", "v_proj.bias")) else tensor
        for name, tensor in state.items()
    }
    assert renamed(zeros, ours).left_over == []


def test_a_bias_of_k_that_rotary_positions_would_see_is_left_over():
    state = drawn(*MODELS["DINOv3"][:2], DINO3 | {"key_bias": True}).state_dict()
    left_over = renamed(state, Eva(**EVA)).left_over
    assert sorted(left_over) == [f"model.layer.{i}.attention.k_proj.bias" for i in range(2)]


def test_a_file_of_either_naming_makes_one_hash_at_any_size(tmp_path):
    """timm resizes position embeddings of both."""
    name = "test_vit"
    ours = timm.create_model(name, num_classes=0)
    side = ours.patch_embed.img_size[0]
    shape = {"hidden_size": ours.embed_dim, "num_hidden_layers": len(ours.blocks)}
    shape |= {"num_attention_heads": 2, "image_size": side}
    hidden = ours.blocks[0].mlp.fc1.out_features
    shape |= {"intermediate_size": hidden, "patch_size": 16}
    theirs = drawn("ViTModel", "ViTConfig", shape)
    theirs.save_pretrained(tmp_path)
    ours.load_state_dict(renamed(theirs.state_dict(), ours).tensors)
    save_file(ours.state_dict(), tmp_path / "timm.safetensors")
    for size in ((side, side), (64, 96)):
        hashes = {
            weights_hash(model_with(name, tmp_path / file, size))
            for file in ("model.safetensors", "timm.safetensors")
        }
        assert len(hashes) == 1


def demo_sized(folder, **more: object) -> torch.nn.Module:
    """A model of transformers in the shape of the demo's backbone, saved in the folder."""
    shape = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3}
    model = drawn("DINOv3ViTModel", "DINOv3ViTConfig", DINO3 | shape | {"intermediate_size": 288})
    model.save_pretrained(folder, **more)
    return model


def test_hf_weights_a_store_is_built_with_the_file_as_transformers_saves_it(pasture, tmp_path):
    theirs = demo_sized(tmp_path)
    build = ["store", "build", "--data", pasture, "--image-size", 64, "--views", 1]
    build += ["--backbone", "vit_demo_patch16_dinov3"]
    weights = tmp_path / "model.safetensors"
    biomass(*build, "--out", tmp_path / "f.h5", "--weights", weights)
    spec = FeatureStore.open(tmp_path / "f.h5").spec
    ours = model_with("vit_demo_patch16_dinov3", weights, (64, 64))
    assert spec.tokens.weights_sha256 == weights_hash(ours)
    told = biomass("weights", "check", weights, "--store", tmp_path / "f.h5").output
    assert "names of transformers" in told and told.endswith(f"needed by {tmp_path}/f.h5\n")
    assert same_tokens(theirs, ours)


def test_a_model_in_several_files_is_read_by_its_index(tmp_path):
    theirs = demo_sized(tmp_path, max_shard_size="500KB")
    index = tmp_path / "model.safetensors.index.json"
    ours = model_with("vit_demo_patch16_dinov3", index, (SIDE, SIDE))
    assert same_tokens(theirs, ours)
    part = sorted(tmp_path.glob("model-0*.safetensors"))[0]
    with pytest.raises(InputError, match="a part of a model: give the file NAME.safetensors.index"):
        model_with("vit_demo_patch16_dinov3", part, (SIDE, SIDE))
    part.unlink()
    with pytest.raises(InputError, match=f"{part.name}: no such weights"):
        model_with("vit_demo_patch16_dinov3", index, (SIDE, SIDE))


def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(InputError, match="which is no file beside it"):
        model_with("vit_demo_patch16_dinov3", index, (SIDE, SIDE))
    index.write_text('{"weight_map": 3}')
    with pytest.raises(InputError, match="not the index of safetensors files"):
        model_with("vit_demo_patch16_dinov3", index, (SIDE, SIDE))


@pytest.mark.parametrize("act, name", [("quick_gelu", "clip"), ("gelu", "clip_quickgelu")])
def test_the_activation_of_clip_is_compared_with_its_config(act, name, shallow, tmp_path):
    shape = {"hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12}
    shape |= {"intermediate_size": 3072, "patch_size": 32, "hidden_act": act}
    with torch.device("meta"):
        theirs = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP | shape))
    state = {key: torch.zeros(value.shape) for key, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    theirs.config.save_pretrained(tmp_path)
    right = f"vit_base_patch32_{'clip' if name != 'clip' else 'clip_quickgelu'}_224"
    with pytest.raises(InputError, match=f"hidden_act {act}, .* --backbone {right}"):
        model_with(f"vit_base_patch32_{name}_224", tmp_path / "model.safetensors", (SIDE, SIDE))
