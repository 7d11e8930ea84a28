"""Which timm model a file of weights is of, and the hash it gives there."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from featurestore.backbone.timm_model import new_model
from featurestore.backbone.transformers_names import is_theirs, renamed
from featurestore.backbone.weights import weights_hash
from featurestore.backbone.weights_file import load_state, model_with, shapes, without_classifier
from featurestore.errors import InputError

SIZES = {
    96: ("demo",),
    192: ("tiny",),
    384: ("small",),
    512: ("medium",),
    640: ("betwixt",),
    768: ("base",),
    1024: ("large",),
    1280: ("huge",),
    1408: ("giant",),
    1536: ("giant",),
    1664: ("gigantic",),
    4096: ("7b",),
}
"""Words of timm's names by the width of tokens; without them each model would have to be made."""

CLASS_TOKEN = re.compile(r"(?:.*\.)?(?:cls_token|class_embedding)")
REGISTERS = re.compile(r"(?:.*\.)?(?:reg_token|register_tokens|storage_tokens)")
WITH_REGISTERS = re.compile(r"dinov3|_reg\d|sapiens2|lingbot")  # in names of timm's models
PATCHES = re.compile(r"(?:.*\.)?(?:patch_embed|conv1).*weight")
OF_A_BLOCK = re.compile(r"(?:.*\.)?(?:blocks|layers?|resblocks)\.(\d+)\.")


@dataclass(frozen=True)
class Fit:
    """A timm model that a file is whole for."""

    model: str
    size: tuple[int, int]
    """Height and width in pixels, at which the hash was taken."""
    any_size: bool
    """Whether the hash is the same at any size: the model has no position embeddings to resize."""
    weights_sha256: str

    def __str__(self) -> str:
        height, width = self.size
        at = "any size" if self.any_size else f"{height} x {width}"
        return f"{self.model} at {at}, hash {self.weights_sha256}"


def is_backbone(names: Iterable[str]) -> bool:
    """Whether tensors of these names can be a vision transformer's: one is its class token."""
    return any(CLASS_TOKEN.fullmatch(name) for name in names)


def naming(names: Iterable[str]) -> str:
    """Whose names these are."""
    if is_theirs(names):
        return "transformers"
    if "storage_tokens" in names or "mask_token" in names:
        return "Meta"
    return "timm" if "cls_token" in names else "others"


def fit(path: Path, model_name: str, size: tuple[int, int] | None = None) -> Fit:
    """How a file fits one model; InputError, naming what is missing, if it does not.

    size : height and width in pixels; None is the model's own.
    """
    if size is None:
        own = _without_weights(model_name).pretrained_cfg["input_size"]
        size = own[-2], own[-1]
    model = model_with(model_name, path, size)
    any_size = getattr(model, "pos_embed", None) is None
    return Fit(model_name, size, any_size, weights_hash(model))


def fits(path: Path) -> list[Fit]:
    """The models of timm that a file is whole for, at their own image size.

    They are looked for among names with the file's patch size and a word for its width. Models that
    need position embeddings resized are left out where there are others.
    """
    state = load_state(path)
    found: list[tuple[str, bool]] = []
    for name in _candidates(state):
        try:
            resized = _resized(state, _without_weights(name))
        except InputError:  # a model that has no class token, say
            continue
        if resized is not None:
            found.append((name, resized))
    exact = [name for name, resized in found if not resized]
    several = []
    for name in exact or [name for name, _ in found]:
        try:
            several.append(fit(path, name))
        except InputError:  # of Meta's names only the trial tells
            continue
    return several


def _candidates(state: Mapping[str, Tensor]) -> list[str]:
    """timm's models whose names speak of the file's width and patch size."""
    import timm

    import featurestore.backbone.demo.model  # noqa: F401  then timm knows it too

    widths = []
    patches = []
    for name, tensor in state.items():
        if CLASS_TOKEN.fullmatch(name):
            widths.append(tensor.numel())
        if PATCHES.fullmatch(name) and tensor.ndim == 4:
            patches.append(tensor.shape)
    if not widths or not patches:
        return []
    has_registers = any(REGISTERS.fullmatch(name) for name in state)
    patch = f"_patch{patches[0][-1]}_"
    words = SIZES.get(widths[0], ())
    return [
        name
        for name in timm.list_models()
        if patch in f"{name}_"  # a name may end with its patch size
        and any(f"_{word}_" in name for word in words)
        and has_registers == bool(WITH_REGISTERS.search(name))
    ]


def _without_weights(model_name: str) -> nn.Module:
    with torch.device("meta"):
        return new_model(model_name, {})


def _resized(state: Mapping[str, Tensor], model: nn.Module) -> bool | None:
    """Whether position embeddings would be resized; None if the file is not the model's.

    For Meta's names, which timm converts when it loads, the number of blocks has to do.
    """
    expected = shapes(model.state_dict())
    if is_theirs(state):
        ours = renamed(state, model)
        if ours.missing or ours.left_over:
            return None
        found = shapes(ours.tensors)
    elif naming(state) == "timm":
        found = shapes(without_classifier(model, state))
    else:
        return False if _n_blocks(state) == _n_blocks(expected) else None
    positions = found.pop("pos_embed", None), expected.pop("pos_embed", None)
    return positions[0] != positions[1] if found == expected else None


def _n_blocks(names: Iterable[str]) -> int:
    numbers = [int(match[1]) for name in names if (match := OF_A_BLOCK.match(name))]
    return max(numbers, default=-1) + 1
