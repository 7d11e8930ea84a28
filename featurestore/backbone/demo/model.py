"""`vit_demo_patch16_dinov3`: a small model of timm's DINOv3 kind with packaged weights.

Importing this makes timm know it.

timm then treats it as any model of its own, with a file where others have an address to download
from.
"""

from functools import partial
from pathlib import Path

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva

NAME = "vit_demo_patch16_dinov3"
WEIGHTS = Path(__file__).with_name(f"{NAME}.safetensors")
# the side of a square the weights were trained on; rotary positions take others too
PIXELS, PATCH = 192, 16

default_cfgs = generate_default_cfgs(
    {
        f"{NAME}.pasture": {
            "file": str(WEIGHTS),
            "num_classes": 0,
            "input_size": (3, PIXELS, PIXELS),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def vit_demo_patch16_dinov3(pretrained: bool = False, **kwargs) -> Eva:
    """timm's vit_tiny_patch16_dinov3_qkvb, narrower and of 4 blocks.

    Its layer scales let it learn in an hour.
    """
    arguments = {
        "img_size": PIXELS,
        "patch_size": PATCH,
        "dynamic_img_size": True,
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 3,
        "mlp_ratio": 3,
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
    return build_model_with_cfg(Eva, NAME, pretrained, **(arguments | kwargs))
