"""Weights under the names that transformers gives them, renamed as timm names them.

Families: DINOv3, DINOv2 (with registers or without), ViT, and the image tower of CLIP. Names are
those of transformers 4.56 to 5.24, in files and in `state_dict()`. The library is not needed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Names = dict[str, tuple[str, ...]]  # timm's name to theirs; the first is the one in files


@dataclass(frozen=True)
class Family:
    """One kind of model in transformers."""

    title: str
    layers: tuple[str, ...]
    """What stands before the number of a layer."""
    outside: Names
    inside: Names
    """Names within a layer."""


@dataclass(frozen=True)
class Renamed:
    """Tensors under timm's names, and what does not fit a timm model, under transformers' names."""

    family: str
    tensors: dict[str, Tensor]
    n_expected: int
    missing: list[str]
    left_over: list[str]


ATTENTION: Names = {
    "attn.q": ("attention.attention.query", "attention.q_proj"),
    "attn.k": ("attention.attention.key", "attention.k_proj"),
    "attn.v": ("attention.attention.value", "attention.v_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
}
DINO: Names = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "ls1.gamma": ("layer_scale1.lambda1",),
    "ls2.gamma": ("layer_scale2.lambda1",),
}
OUTSIDE: Names = {
    "cls_token": ("embeddings.cls_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "reg_token": ("embeddings.register_tokens",),
    "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
    "norm": ("layernorm",),
}

DINOV3 = Family(
    "DINOv3",
    ("layer", "model.layer"),
    {
        "cls_token": ("embeddings.cls_token",),
        "reg_token": ("embeddings.register_tokens",),
        "patch_embed.proj": ("embeddings.patch_embeddings",),
        "norm": ("norm",),
    },
    DINO
    | {
        "attn.q": ("attention.q_proj",),
        "attn.k": ("attention.k_proj",),
        "attn.v": ("attention.v_proj",),
        "attn.proj": ("attention.o_proj",),
        "mlp.fc1_g": ("mlp.gate_proj",),
        "mlp.fc1_x": ("mlp.up_proj",),
        "mlp.fc2": ("mlp.down_proj",),
    },
)
DINOV2 = Family(
    "DINOv2",
    ("encoder.layer",),
    OUTSIDE,
    DINO
    | ATTENTION
    | {
        "mlp.fc1": ("mlp.fc1", "mlp.weights_in"),
        "mlp.fc1_g": ("mlp.gate_proj",),
        "mlp.fc1_x": ("mlp.up_proj",),
        "mlp.fc2": ("mlp.fc2", "mlp.weights_out", "mlp.down_proj"),
    },
)
VIT = Family(
    "ViT",
    ("encoder.layer", "layers"),
    OUTSIDE,
    ATTENTION
    | {
        "norm1": ("layernorm_before",),
        "norm2": ("layernorm_after",),
        "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
        "mlp.fc2": ("output.dense", "mlp.fc2"),
    },
)
CLIP = Family(
    "CLIP",
    ("encoder.layers",),
    {
        "cls_token": ("embeddings.class_embedding",),
        "pos_embed": ("embeddings.position_embedding.weight",),
        "patch_embed.proj": ("embeddings.patch_embedding",),
        "norm_pre": ("pre_layrnorm",),  # their spelling
        "norm": ("post_layernorm",),
    },
    {
        "norm1": ("layer_norm1",),
        "norm2": ("layer_norm2",),
        "attn.q": ("self_attn.q_proj",),
        "attn.k": ("self_attn.k_proj",),
        "attn.v": ("self_attn.v_proj",),
        "attn.proj": ("self_attn.out_proj",),
        "mlp.fc1": ("mlp.fc1",),
        "mlp.fc2": ("mlp.fc2",),
    },
)
FAMILIES = DINOV3, DINOV2, VIT, CLIP

EMBEDDINGS = re.compile(r"((?:.*\.)?)embeddings\.(?:cls_token|class_embedding|patch_embedding)")
NOT_USED = (
    "embeddings.mask_token",
    "embeddings.position_ids",
    "rope_embeddings.",
    "pooler.",
    "classifier.",
)
"""What stands beside a tower and makes no token of a photograph."""

JOINED = {
    "attn.qkv.weight": ("attn.q.weight", "attn.k.weight", "attn.v.weight"),
    "attn.qkv.bias": ("attn.q.bias", "attn.k.bias", "attn.v.bias"),
    "attn.q_bias": ("attn.q.bias",),
    "attn.v_bias": ("attn.v.bias",),
    "gamma_1": ("ls1.gamma",),
    "gamma_2": ("ls2.gamma",),
}
"""Names within a block of timm's that consist of differently named parts."""


def is_theirs(names: Iterable[str]) -> bool:
    """Whether names are those of an image tower in transformers."""
    return any(EMBEDDINGS.match(name) for name in names)


def renamed(state: Mapping[str, Tensor], model: nn.Module) -> Renamed:
    """Transformers' weights under the names that a timm model expects.

    Tensors of other parts, as of a text tower or a classifier, are left out. Shapes are not
    compared: timm can resize position embeddings.
    """
    # what stands before the names of the image tower, as `vit.` or `vision_model.`
    prefixes = Counter(match[1] for name in state if (match := EMBEDDINGS.match(name)))
    prefix = prefixes.most_common(1)[0][0]
    # a file does not say whose it is: the family that knows the most of its names
    family = max(FAMILIES, key=lambda each: len(_parts(state, prefix, each)))
    parts = _parts(state, prefix, family)
    tensors: dict[str, Tensor] = {}
    missing: list[str] = []
    used: set[str] = set()
    n_expected = 0
    for name in model.state_dict():
        needed = _needed(name, parts)
        n_expected += len(needed)
        used.update(needed)
        lacking = [part for part in needed if part not in parts]
        missing += [prefix + _their_name(part, state, prefix, family) for part in lacking]
        if not lacking:
            found = [state[parts[part]] for part in needed]
            tensors[name] = found[0] if len(found) == 1 else torch.cat(found)

    known = set(parts.values())
    left_over = [
        name
        for name in state
        if name.startswith(prefix)
        and not name.removeprefix(prefix).startswith(NOT_USED)
        and name not in known
    ]
    for part in parts.keys() - used:
        # a bias of zeros can be left out: timm knows models without it
        needless = re.search(r"attn\.[qkv]\.bias$", part) and not state[parts[part]].any()
        if not needless:
            left_over.append(parts[part])

    _fit_embeddings(tensors, model)
    return Renamed(family.title, tensors, n_expected, missing, left_over)


def _parts(names: Iterable[str], prefix: str, family: Family) -> dict[str, str]:
    """Names of the file by timm's names of the parts, as `blocks.0.attn.q.weight`."""
    outside = {theirs: ours for ours, all in family.outside.items() for theirs in all}
    inside = {theirs: ours for ours, all in family.inside.items() for theirs in all}
    layers = "|".join(re.escape(each) for each in family.layers)
    in_layer = re.compile(rf"(?:{layers})\.(\d+)\.(.+)")
    parts = {}
    for name in names:
        if not name.startswith(prefix):
            continue
        inner = name.removeprefix(prefix)
        match = in_layer.fullmatch(inner)
        known, before = (inside, f"blocks.{match[1]}.") if match else (outside, "")
        inner = match[2] if match else inner
        if inner in known:
            parts[before + known[inner]] = name
            continue
        stem, _, kind = inner.rpartition(".")
        if stem in known and kind in ("weight", "bias"):
            parts[f"{before}{known[stem]}.{kind}"] = name
    return parts


def _needed(name: str, parts: Mapping[str, str]) -> list[str]:
    """The parts that one tensor of timm's consists of."""
    block, inner = _split(name)
    if inner in JOINED:
        return [block + part for part in JOINED[inner]]
    if inner in ("mlp.fc1.weight", "mlp.fc1.bias") and name not in parts:
        kind = inner.removeprefix("mlp.fc1.")
        # of a gated MLP timm has one matrix, the gate's rows before the others
        gate = f"{block}mlp.fc1_g.{kind}"
        up = f"{block}mlp.fc1_x.{kind}"
        if up in parts:
            return [gate, up] if gate in parts else [up]
    return [name]


def _split(name: str) -> tuple[str, str]:
    """Which block a name of timm's is of, as `blocks.0.`, and the name within it."""
    match = re.fullmatch(r"(blocks\.\d+\.)?(.+)", name)
    return match[1] or "", match[2]


def _their_name(
    part: str,
    names: Iterable[str],
    prefix: str,
    family: Family,
) -> str:
    """How a file would name a part that it lacks; timm's name if the family has no such part."""
    block, inner = _split(part)
    known = family.inside if block else family.outside
    stem, kind = inner, ""
    if inner not in known:
        stem, _, kind = inner.rpartition(".")
    if stem == "mlp.fc1" and stem not in known:
        stem = "mlp.fc1_x"
    if stem not in known:
        return part
    text = "\n".join(names)
    theirs = _in_use([f".{each}." for each in known[stem]], text).strip(".")
    if block:
        before = _in_use([f"{prefix}{each}." for each in family.layers], text)
        theirs = f"{before.removeprefix(prefix)}{block.split('.')[1]}.{theirs}"
    return f"{theirs}.{kind}" if kind else theirs


def _in_use(spellings: Sequence[str], text: str) -> str:
    """The spelling that the file's names have, else the first."""
    return next((each for each in spellings if each in text), spellings[0])


def _fit_embeddings(tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Class token and position embeddings in the shapes that timm has them."""
    if "cls_token" in tensors:
        tensors["cls_token"] = tensors["cls_token"].reshape(1, 1, -1)
    if "pos_embed" not in tensors:
        return
    position = tensors["pos_embed"]
    position = position if position.ndim == 3 else position[None]
    if getattr(model, "no_embed_class", False) and "cls_token" in tensors:
        # timm adds positions to patches alone; summed in float32, as timm's own files were made
        tensors["cls_token"] = tensors["cls_token"].float() + position[:, :1].float()
        position = position[:, 1:]
    tensors["pos_embed"] = position
