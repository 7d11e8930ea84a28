"""Layers that kinds of heads share: the trunk, and the outputs behind it or behind other features.

Names and shapes are those of plain torch.nn modules (docs/sweep.md).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.heads.bank import Bank, Inputs, Outputs
from trainer.heads.outputs import numbers_over_tiles, output_layers
from trainer.heads.shape import HeadShape


def trunk_tensors(shape: HeadShape, n_in: int) -> dict[str, tuple[int, ...]]:
    """Tensors of `trunk`, which reads n_in channels, and those of columns behind them."""
    n_hidden = shape.shared_hidden
    shared = linear_tensors({"shared_mlp.0": (n_hidden, n_in + shape.columns.width)})
    norm = {f"shared_mlp.1.{part}": (n_hidden,) for part in ("weight", "bias")}
    return shared | output_tensors(shape, n_hidden) | norm


def output_tensors(shape: HeadShape, n_in: int) -> dict[str, tuple[int, ...]]:
    """Tensors of `outputs_of`, which reads n_in features."""
    layers = {layer.name: (layer.width, n_in) for layer in output_layers(shape.targets)}
    if shape.n_intervals:
        layers["interval_head"] = (shape.targets.n_amounts * shape.n_intervals, n_in)
    return linear_tensors(layers)


def linear_tensors(layers: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Weight and bias of nn.Linear layers given as (out, in)."""
    tensors = {}
    for name, (n_out, n_in) in layers.items():
        tensors[f"{name}.weight"] = (n_out, n_in)
        tensors[f"{name}.bias"] = (n_out,)
    return tensors


def trunk(bank: Bank, inputs: Inputs, *parts_QGBTI: Tensor) -> Outputs:
    """Shared layer (linear, LayerNorm, GELU, dropout) over channels in parts, then `outputs_of`.

    Each tile reads the columns of its photograph behind its own channels.
    """
    parts = list(parts_QGBTI)
    if bank.shape.columns:
        columns = bank.columns(inputs)[:, :, :, None]
        parts.append(columns.expand(*parts[0].shape[:4], -1))
    shared = bank.linear("shared_mlp.0", *parts)
    scale = bank.tensor("shared_mlp.1.weight")[:, :, None, None]
    shift = bank.tensor("shared_mlp.1.bias")[:, :, None, None]
    normed = F.layer_norm(shared, shared.shape[-1:]) * scale + shift
    features = F.gelu(normed)
    if inputs.dropout_QGBTS is not None:  # training
        rate = bank.rate_G.view(1, -1, 1, 1, 1)
        # the draws are shared, each point has its own rate; scaled, so that the mean stays
        features = features * ((inputs.dropout_QGBTS >= rate) / (1 - rate))
    return outputs_of(bank, features)


def outputs_of(bank: Bank, features: Tensor) -> Outputs:
    """A layer for each output over (Q, G, B, T, F) features, then amounts summed over tiles and the
    rest averaged."""
    raw: dict[str, list[Tensor]] = {}
    for layer in bank.shape.layers:
        raw.setdefault(layer.kind, []).append(bank.linear(layer.name, features))
    words = [of_layer.mean(3) for of_layer in raw.pop("class", [])]
    if raw:
        values = numbers_over_tiles(bank.shape.targets, raw)
    else:  # classes alone
        values = features.new_zeros(*features.shape[:3], 0)
    word = torch.cat(words, -1) if words else None
    if not bank.shape.n_intervals:
        return Outputs(values, word)
    intervals = bank.linear("interval_head", features).mean(3)
    return Outputs(values, word, intervals.unflatten(-1, (-1, bank.shape.n_intervals)))
