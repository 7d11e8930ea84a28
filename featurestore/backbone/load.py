"""Loading a backbone: a new one, or the one that made a store's tokens."""

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.device import PRECISIONS, choose_device
from featurestore.backbone.forward import Forward
from featurestore.backbone.lane import lane_of
from featurestore.backbone.timm_model import (
    checked_layers,
    new_model,
    patch_size,
    patch_size_of,
    short,
    tried_model,
)
from featurestore.backbone.weights import (
    RANDOM,
    UNKNOWN_WEIGHTS,
    cached_weights,
    check_given,
    kept_weights,
    save_weights,
    saved_weights_path,
    weights_hash,
)
from featurestore.backbone.weights_file import model_with
from featurestore.disk.usable import check_memory
from featurestore.errors import InputError, MismatchError, list_some
from featurestore.format.spec import (
    AND,
    DECODE_RULES,
    StoreSpec,
    TokenSpec,
    ViewSpec,
    whole_rows,
)
from featurestore.photos.crop import Crop, plan_crop


class NoDownload(InputError):
    """timm's weights cannot be had; whoever asked for them knows what else there is."""


def load_backbone(
    model_name: str,
    weights: str | None,
    *,
    crop: str,
    image_size: int,
    views: Sequence[ViewSpec],
    aspect: float = 2.0,
    layers: Sequence[int] = (-1,),
    seed: int = 0,
    device: str = "cpu",
    precision: str = "fp32",
    keep_in: Path | None = None,
    bits: int | None = None,
    fit: str | None = None,
    batch: int | None = None,
) -> Backbone:
    """A backbone for new tokens, with mean, std and interpolation from the model's own data config.

    weights : None for timm's own (the demo backbone's are packaged, others are downloaded),
        "random" (seeded, with a warning), or a .safetensors file of the model.
    aspect : width / height of the photographs, for crop "whole".
    keep_in : folder to save the weights in, as they are hashed, before any rounding to `precision`.
    bits : of the values of 16-bit photographs, see `read_photograph`.
    batch : crops that go through the model at once, None is one photograph's.

    Raises InputError for an unknown model, one that is no vision transformer with a class token, or
    unusable weights; MemoryShortError if the weights do not fit in memory.
    """
    planned = plan_crop(crop, image_size, patch_size_of(model_name), "bicubic", aspect, fit)
    size = planned.height, planned.width
    # before any weights are fetched
    _check_memory(tried_model(model_name, size, tuple(layers)), model_name)
    try:
        model = _create(model_name, weights, size, seed)
    except NoDownload as err:
        raise InputError(
            f"{err}; on an offline machine give --weights FILE.safetensors (or --weights random to "
            "try things out)"
        ) from err
    spec = _token_spec(model, model_name, weights_hash(model), planned, views, layers, seed, bits)
    if keep_in:  # before they are cast: the hash is of the weights as they came
        save_weights(model.state_dict(), spec.weights_sha256, keep_in)
    return _on_device(model, spec, device, precision, batch)


def spec_without_weights(
    model_name: str,
    *,
    crop: str,
    image_size: int,
    views: Sequence[ViewSpec],
    aspect: float = 2.0,
    bits: int | None = None,
    fit: str | None = None,
) -> TokenSpec:
    """The spec of tokens that a model made elsewhere, by unknown weights: their hash is zeros."""
    planned = plan_crop(crop, image_size, patch_size_of(model_name), "bicubic", aspect, fit)
    size = planned.height, planned.width
    model = tried_model(model_name, size, (-1,))
    return _token_spec(model, model_name, UNKNOWN_WEIGHTS, planned, views, (-1,), 0, bits)


def _token_spec(
    model: nn.Module,
    model_name: str,
    weights_sha256: str,
    crop: Crop,
    views: Sequence[ViewSpec],
    layers: Sequence[int],
    seed: int,
    bits: int | None,
) -> TokenSpec:
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(model)
    return TokenSpec(
        model=model_name,
        weights_sha256=weights_sha256,
        layers=checked_layers(model, layers),
        crop=crop.kind,
        fit=crop.fit,
        tile_height=crop.height,
        tile_width=crop.width,
        interpolation=data["interpolation"],
        mean=data["mean"],
        std=data["std"],
        patch_size=patch_size(model),
        n_tiles=crop.n_tiles,
        width=model.num_features * len(layers),
        views=tuple(views),
        seed=seed,
        bits=bits,
    )


def backbone_of_store(
    spec: StoreSpec,
    weights: str | None,
    folders: Sequence[Path],
    option: str,
    device: str,
    precision: str | None = None,
    believes: bool = False,
    max_pixels: int | None = None,
) -> Backbone:
    """The backbone that made a store's tokens, for the same tokens again.

    weights : a .safetensors file, or "random". None takes the file that was kept beside the store,
        from the first of `folders` that has it; else random weights, if the store's were; else what
        timm downloaded to this machine earlier; else a download.
    option : of the command that was typed, by which weights can be given; messages name it.
    precision, max_pixels : None is the store's.
    believes : where nobody recorded the weights of the tokens, take a file that is given, with a
        warning; else a store of unknown weights is refused.

    Raises InputError or MismatchError if the installed timm or the weights are not those of the
    store, MemoryShortError if they do not fit in memory.
    """
    tokens = spec.tokens
    # a device of another kind gives other bits whatever its batches are
    is_kind = choose_device(device).type in spec.made_by.get("device", "").split(AND)
    batch = spec.batch if is_kind else None
    unknown = tokens.weights_sha256 == UNKNOWN_WEIGHTS
    if unknown:
        check_given(tokens.model, weights, option if believes else None)
    source = weights or kept_weights(spec, folders)
    given = device, precision or spec.precision, option, not unknown, batch
    try:
        _check_shapes(tokens)  # first: a download must not end in another width
        found = None
        cached = cached_weights(tokens.model) if source is None else None
        if cached:
            with suppress(InputError, MismatchError):  # it is of other weights of that model
                found = restore_backbone(tokens, cached, *given)
        if found is None:
            found = restore_backbone(tokens, source, *given)
    except NoDownload as err:
        there = [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]
        places = list_some(there)
        name = saved_weights_path(Path(), tokens.weights_sha256).name
        raise InputError(
            f"{err}; give the store's weights with {option} FILE.safetensors, or put {name} beside "
            f"the store. It was looked for in:{places or ' no folder that exists'}"
        ) from err
    except (InputError, MismatchError) as err:
        if advice := _newer_timm(spec.made_by):
            raise type(err)(f"{err} ({advice})") from err
        raise
    return replace(found, max_pixels=max_pixels or spec.max_pixels)


def restore_backbone(
    spec: TokenSpec,
    weights: str | None,
    device: str,
    precision: str,
    option: str = "--weights",
    compares: bool = True,
    batch: int | None = None,
) -> Backbone:
    """The backbone that made tokens of this spec; MismatchError if the weights are others, unless
    they are not compared."""
    if spec.decode_rules != DECODE_RULES:
        raise MismatchError(
            f"photographs were decoded by rules {spec.decode_rules}, this program has "
            f"{DECODE_RULES}; use the biomass version that built the store"
        )
    model = _create(spec.model, weights, (spec.tile_height, spec.tile_width), spec.seed)
    found = weights_hash(model)
    if compares and found != spec.weights_sha256:
        raise MismatchError(
            f"{spec.model}: weights from {weights or 'timm'} have hash {found}, the tokens were "
            f"made with {spec.weights_sha256}; give the file that has them with {option}"
        )
    return _on_device(model, spec, device, precision, batch)


def _check_shapes(spec: TokenSpec) -> None:
    """MismatchError if the installed timm's model of that name gives other tokens.

    Asked before weights are fetched.

    MemoryShortError if its weights do not fit in memory.
    """
    model = tried_model(spec.model, (spec.tile_height, spec.tile_width), spec.layers)
    found = patch_size(model), model.num_features * len(spec.layers)
    if found != (spec.patch_size, spec.width):
        raise MismatchError(
            f"{spec.model}: here it has patches of {found[0]} pixels and width {found[1]}, the "
            f"tokens were made with patches of {spec.patch_size} and width {spec.width}; use the "
            "timm that made them"
        )
    _check_memory(model, spec.model)


def _check_memory(model: nn.Module, name: str) -> None:
    """MemoryShortError if the weights, first float32 in main memory, do not fit."""
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    advice = "free some memory, raise the limit or use a smaller backbone"
    check_memory(4 * n_parameters, f"{name}: a copy of its weights", advice)


def _newer_timm(made_by: Mapping[str, str]) -> str | None:
    """What to install, if tokens were made with a newer timm than is here."""
    import timm

    # a merged store may have been made by several: the newest of them knows the model
    there = max(made_by.get("timm", "").split(AND), key=_numbers)
    if _numbers(there) <= _numbers(timm.__version__):
        return None
    return (
        f"the tokens were made with timm {there} and torch {made_by.get('torch', 'unknown')}; here "
        f"are timm {timm.__version__} and torch {torch.__version__}: install timm {there} or newer"
    )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _on_device(
    model: nn.Module,
    spec: TokenSpec,
    device: str,
    precision: str,
    batch: int | None,
) -> Backbone:
    dtype = PRECISIONS[precision]
    place = choose_device(device)
    _cast(model, dtype)
    model = model.to(place).eval().requires_grad_(False)
    batch = whole_rows(batch or spec.n_tiles, spec.n_tiles)
    forward = Forward(model, spec.layers, batch)
    return Backbone(forward, spec, place, dtype, lane_of(place), batch)


def cast_backbone(backbone: Backbone, precision: str) -> Backbone:
    """A copy of a backbone that computes in another precision."""
    # of a copy: the caller compares the tokens of both
    model = copy.deepcopy(backbone.model)
    dtype = PRECISIONS[precision]
    _cast(model, dtype)
    forward = Forward(model, backbone.spec.layers, backbone.batch)
    return replace(backbone, forward=forward, dtype=dtype)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    for module in model.modules():
        # takes half precision with its own numbers in float32, and not with some of each
        if isinstance(module, _BatchNorm):
            continue
        buffers = module.named_buffers(recurse=False)
        biases = [buffer for name, buffer in buffers if name.endswith("bias")]
        # not the other buffers: rotary positions lose too much
        for tensor in [*module.parameters(recurse=False), *biases]:
            tensor.data = tensor.data.to(dtype)


def _create(
    model_name: str,
    weights: str | None,
    size: tuple[int, int],
    seed: int,
) -> nn.Module:
    """The model with its weights, on the CPU in float32."""
    if weights == RANDOM:
        warnings.warn(
            f"{model_name}: random weights (seed {seed}); the tokens know nothing about images",
            stacklevel=3,
        )
        # so that the caller's own draws go on as if this had drawn nothing
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return new_model(model_name, {"img_size": size})
    if weights is not None:
        return model_with(model_name, Path(weights), size)
    try:
        return new_model(model_name, {"img_size": size, "pretrained": True})
    except (OSError, RuntimeError, ValueError) as err:
        # hub, URL and file errors all are one of these
        raise NoDownload(f"{model_name}: its weights cannot be downloaded ({short(err)})") from err
