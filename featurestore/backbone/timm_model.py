"""A vision transformer of timm, and how its class and patch tokens are read.

Its weights are left to `backbone.py`.
"""

import difflib
import inspect
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from featurestore.disk.imports import quick_imports
from featurestore.errors import InputError

BY_FEATURES = ("Cait", "ConVit", "MultiScaleVit", "VOLO", "Xcit")
"""timm's classes that are read by `forward_features`, since their `forward_intermediates` returns
no class token.

The list is fixed here, whatever the installed timm offers: with another timm a store's tokens must
be read in the same way.
"""

CLASS_TOKEN = re.compile(r"(.*\.)?cls_token_?\d*")
EXAMPLES = "vit_huge_plus_patch16_dinov3 or vit_small_patch14_dinov2"


def new_model(model_name: str, arguments: dict[str, Any]) -> nn.Module:
    """A model of timm without a classifier.

    InputError for an unknown one, or one whose tokens cannot be read.
    """
    with quick_imports():
        import timm

        import featurestore.backbone.demo.model  # noqa: F401  once it is imported, timm knows the demo's backbone too

    try:
        model = timm.create_model(model_name, num_classes=0, **arguments)
    except (RuntimeError, TypeError) as err:
        if timm.is_model(model_name) and "img_size" not in str(err):
            raise
        raise InputError(f"{model_name}: {_unknown(model_name)}") from err
    if lacking := _lacking(model):
        raise InputError(
            f"{model_name}: {lacking}; try {EXAMPLES}, or another of docs/backbones.md"
        )
    return model


# a process may load one model several times: for each device, or in a notebook
@lru_cache(maxsize=8)
def tried_model(model_name: str, size: tuple[int, int], layers: tuple[int, ...]) -> nn.Module:
    """The model without weights, on the meta device, after a trial with one tile.

    size : height and width of the tile in pixels.

    Shapes alone are computed, so this takes a fraction of a second, whatever the model's size.

    Raises InputError if the model cannot be created at that size, fails, or gives other tokens than
    one class token and a grid of patches.
    """
    height, width = size
    try:
        with torch.device("meta"), torch.inference_mode():
            model = new_model(model_name, {"img_size": size}).eval()
            layers = checked_layers(model, layers)
            cls, patches = read_tokens(model, layers, torch.empty(1, 3, height, width))
    except InputError:
        raise
    except Exception as err:  # of whatever kind: it comes from inside a model that others wrote
        raise InputError(
            f"{model_name}: cannot be used, a trial with a tile of {height} x {width} pixels "
            f"failed ({type(err).__name__}: {short(err)}); "
            f"try the model's own image size, or {EXAMPLES}"
        ) from err
    n_patches = height // patch_size(model) * (width // patch_size(model))
    expected = (1, model.num_features), (1, n_patches, model.num_features)
    for cls_TD, patches_TPD in zip(cls, patches, strict=True):
        found = tuple(cls_TD.shape), tuple(patches_TPD.shape)
        if found != expected:
            raise InputError(
                f"{model_name}: cannot be used, class token and patches of a tile of {height} x "
                f"{width} pixels have the shapes {found}, expected {expected}; try {EXAMPLES}"
            )
    return model


def read_tokens(
    model: nn.Module,
    layers: Sequence[int],
    x_T3HW: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """Class tokens (T, D) and patch tokens (T, P, D) of each layer, after the final norm.

    Patches come row by row.
    """
    if type(model).__name__ in BY_FEATURES:
        tokens_TXD = model.forward_features(x_T3HW)
        return [tokens_TXD[:, 0]], [tokens_TXD[:, 1:]]
    out = model.forward_intermediates(
        x_T3HW,
        indices=list(layers),
        norm=True,
        output_fmt="NLC",
        return_prefix_tokens=True,
        intermediates_only=True,
    )
    # prefix tokens are the class token and then registers, if the model has some
    cls = [prefix_TXD[:, 0] for _, prefix_TXD in out]
    patches = [patches_TPD for patches_TPD, _ in out]
    return cls, patches


def patch_size(model: nn.Module) -> int:
    """Side in pixels of the square that a patch token stands for; InputError if it is none."""
    embed = getattr(model, "patch_embed", None)
    if hasattr(embed, "feat_ratio"):  # a stem of convolutions counts too
        height, width = embed.feat_ratio(as_scalar=False)
    else:
        height = width = model.feature_info[-1]["reduction"]
    if height != width:
        raise InputError(
            f"patches of {height} x {width} pixels; a model with square patches is needed"
        )
    return height


@lru_cache(maxsize=8)
def patch_size_of(model_name: str) -> int:
    """As `patch_size`, of a model that is created without its weights."""
    with torch.device("meta"):
        return patch_size(new_model(model_name, {}))


def checked_layers(model: nn.Module, layers: Sequence[int]) -> tuple[int, ...]:
    """Layers as given, if they exist, rise and are not named twice.

    timm returns them in the model's order.
    """
    kind = type(model).__name__
    if kind in BY_FEATURES:
        if tuple(layers) != (-1,):
            raise InputError(
                f"layers {list(layers)}: timm gives the class token of a {kind} after the last "
                "layer only; give -1"
            )
        return (-1,)
    n = len(model.blocks)
    positions = [layer % n if -n <= layer < n else None for layer in layers]
    if not positions or None in positions or positions != sorted(set(positions)):
        raise InputError(
            f"layers {list(layers)}: the model has {n}; give rising numbers from 0 to {n - 1}, or "
            "from the end, -1 the last"
        )
    return tuple(layers)


def short(err: Exception) -> str:
    """The first line of an error of others."""
    text = str(err).strip().splitlines()
    return text[0][:300] if text else type(err).__name__


def _lacking(model: nn.Module) -> str | None:
    """Why a model's tokens cannot be read, if so."""
    kind = type(model).__name__
    class_tokens = [name for name, _ in model.named_parameters() if CLASS_TOKEN.fullmatch(name)]
    if not class_tokens:
        return "not a vision transformer with a class token"
    if len(class_tokens) > 1:
        return (
            f"has {len(class_tokens)} class tokens, one for each scale "
            f"({', '.join(class_tokens)}), where one is needed"
        )
    if kind in BY_FEATURES:
        return None
    read = getattr(model, "forward_intermediates", None)
    if read is None or "return_prefix_tokens" not in inspect.signature(read).parameters:
        return f"timm gives no class token together with patch tokens of a {kind}"
    return None


def _unknown(model_name: str) -> str:
    import timm

    if timm.is_model(model_name):
        return (
            "takes no image size, so it is not a vision transformer; try vit_small_patch16_dinov3"
        )
    close = difflib.get_close_matches(model_name, timm.list_models(), 3, 0.4)
    advice = (
        f"did you mean {', '.join(close)}?"
        if close
        else "docs/backbones.md lists those that can be used"
    )
    return f"timm {timm.__version__} has no such model; {advice}"
