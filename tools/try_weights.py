"""Compare timm's models with transformers' in published shapes and print the table of
docs/weights.md.

    python tools/try_weights.py

Weights are random. Of models up to 400 million parameters the tokens of one photograph are
computed by both libraries; of larger ones names and shapes are compared, on torch's meta device.
"""

import timm
import torch
import transformers
from torch import nn

from featurestore.backbone.timm_model import read_tokens
from featurestore.backbone.transformers_names import renamed

MOST = 4e8  # parameters of a model that is computed
DINOV3 = {"num_register_tokens": 4, "patch_size": 16}
GATED = DINOV3 | {"use_gated_mlp": True, "hidden_act": "silu"}
NO_BIAS = {"query_bias": False, "value_bias": False}
QUICK, GELU = {"hidden_act": "quick_gelu"}, {"hidden_act": "gelu"}

# width, layers, heads, width of the MLP
SMALL, BASE = (384, 12, 6, 1536), (768, 12, 12, 3072)
LARGE, HUGE = (1024, 24, 16, 4096), (1280, 32, 16, 5120)
GIANT = (1536, 40, 24, 6144)

# on huggingface.co, timm's name, shape, patch, and the rest of transformers' config
MODELS = [
    ("facebook/dinov3-vits16-*", "vit_small_patch16_dinov3_qkvb", SMALL, 16, DINOV3),
    ("", "vit_small_patch16_dinov3", SMALL, 16, DINOV3 | NO_BIAS),
    ("facebook/dinov3-vits16plus-*", "vit_small_plus_patch16_dinov3_qkvb", SMALL, 16, GATED),
    ("facebook/dinov3-vitb16-*", "vit_base_patch16_dinov3_qkvb", BASE, 16, DINOV3),
    ("facebook/dinov3-vitl16-*", "vit_large_patch16_dinov3_qkvb", LARGE, 16, DINOV3),
    (
        "facebook/dinov3-vith16plus-*",
        "vit_huge_plus_patch16_dinov3_qkvb",
        (1280, 32, 20, 5120),
        16,
        GATED,
    ),
    (
        "facebook/dinov3-vit7b16-*",
        "vit_7b_patch16_dinov3",
        (4096, 40, 32, 8192),
        16,
        GATED | NO_BIAS,
    ),
    ("facebook/dinov2-small", "vit_small_patch14_dinov2", SMALL, 14, {}),
    ("facebook/dinov2-base", "vit_base_patch14_dinov2", BASE, 14, {}),
    ("facebook/dinov2-large", "vit_large_patch14_dinov2", LARGE, 14, {}),
    ("facebook/dinov2-giant", "vit_giant_patch14_dinov2", GIANT, 14, {"use_swiglu_ffn": True}),
    ("facebook/dinov2-with-registers-small", "vit_small_patch14_reg4_dinov2", SMALL, 14, {}),
    ("facebook/dinov2-with-registers-base", "vit_base_patch14_reg4_dinov2", BASE, 14, {}),
    (
        "facebook/dinov2-with-registers-giant",
        "vit_giant_patch14_reg4_dinov2",
        GIANT,
        14,
        {"use_swiglu_ffn": True},
    ),
    ("google/vit-base-patch16-224", "vit_base_patch16_224", BASE, 16, {"layer_norm_eps": 1e-6}),
    ("google/vit-base-patch32-384", "vit_base_patch32_384", BASE, 32, {"layer_norm_eps": 1e-6}),
    ("google/vit-large-patch16-224", "vit_large_patch16_224", LARGE, 16, {"layer_norm_eps": 1e-6}),
    ("google/vit-huge-patch14-224-in21k", "vit_huge_patch14_224", HUGE, 14, {}),
    ("openai/clip-vit-base-patch32", "vit_base_patch32_clip_quickgelu_224", BASE, 32, QUICK),
    ("openai/clip-vit-base-patch16", "vit_base_patch16_clip_quickgelu_224", BASE, 16, QUICK),
    ("openai/clip-vit-large-patch14", "vit_large_patch14_clip_quickgelu_224", LARGE, 14, QUICK),
    ("laion/CLIP-ViT-B-32-*", "vit_base_patch32_clip_224", BASE, 32, GELU),
    ("laion/CLIP-ViT-H-14-*", "vit_huge_patch14_clip_224", HUGE, 14, GELU),
]


def new_theirs(hub: str, shape: tuple, patch: int, side: int, more: dict) -> nn.Module:
    """Transformers' model of one row."""
    width, layers, heads, inner = shape
    config = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config |= {"image_size": side, "patch_size": patch} | more
    if "registers" in hub:
        kind = "Dinov2WithRegisters"
    elif "dinov2" in hub:
        kind = "Dinov2"
    elif "/vit" in hub:
        kind = "ViT"
    elif "clip" in hub.lower():
        kind = "CLIPVision"
    else:
        kind = "DINOv3ViT"
    if "Dinov2" not in kind:  # there it follows from the width
        config["intermediate_size"] = inner
    made = getattr(transformers, f"{kind}Config")(**config)
    return getattr(transformers, f"{kind}Model")(made).eval()


def difference(theirs: nn.Module, ours: nn.Module, side: int) -> float:
    """The largest between tokens after the final norm."""
    x_T3HW = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens_TXD = theirs(pixel_values=x_T3HW).last_hidden_state
        if hasattr(theirs, "post_layernorm"):
            tokens_TXD = theirs.post_layernorm(tokens_TXD)
        (cls_TD,), (patches_TPD,) = read_tokens(ours, [-1], x_T3HW)
    of_patches = (tokens_TXD[:, -patches_TPD.shape[1] :] - patches_TPD).abs().max()
    return max(float((tokens_TXD[:, 0] - cls_TD).abs().max()), float(of_patches))


def main() -> None:
    transformers.logging.set_verbosity_error()
    print("| on huggingface.co | `--backbone` | parameters, millions | tokens differ by |")
    print("| --- | --- | --- | --- |")
    for hub, name, shape, patch, more in MODELS:
        side = 4 * patch
        with torch.device("meta"):
            ours = timm.create_model(name, num_classes=0, img_size=side)
        n_parameters = sum(parameter.numel() for parameter in ours.parameters())
        computed = n_parameters <= MOST
        torch.manual_seed(0)
        with torch.device("cpu" if computed else "meta"):
            theirs = new_theirs(hub, shape, patch, side, more)
            ours = timm.create_model(name, num_classes=0, img_size=side).eval()
        found = renamed(theirs.state_dict(), ours)
        assert not found.missing and not found.left_over, (name, found.missing, found.left_over)
        ours.load_state_dict(found.tensors, assign=True)
        told = f"{difference(theirs, ours, side):.1e}" if computed else "(names and shapes alone)"
        place, millions = hub or "the same, where its biases are zero", n_parameters / 1e6
        print(f"| {place} | `{name}` | {millions:.0f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
