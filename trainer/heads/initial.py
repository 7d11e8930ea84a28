"""What heads begin with: the values of every tensor of a fresh bank."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from trainer.config.sections import PointConfig
from trainer.heads.bank import Bank
from trainer.heads.shape import HeadShape


def new_bank(
    shape: HeadShape,
    splits: Sequence,
    points: Sequence[PointConfig],
    dtype: torch.dtype,
    biases: Sequence[Mapping[str, np.ndarray]],
    moments: dict[str, tuple[Tensor, Tensor]] | None,
    device: torch.device,
    column_scale: tuple[Tensor, Tensor] | None = None,
) -> Bank:
    """Fresh heads, drawn by (seed, repeat, fold, tensor, head.seed): points of a split start alike.

    biases : for each split, values of the output biases; from zero they would take hundreds of
        steps to get there.
    """
    if biases[0] and not biases[0].keys() & shape.tensors().keys():
        warnings.warn(
            f"head.kind {shape.kind}: it has none of {', '.join(biases[0])}, so its predictions "
            "start far from the training means; name its output layers so (docs/design.md)",
            stacklevel=2,
        )
    seed = points[0].experiment.seed
    points_of_seed: dict[int, list[int]] = {}
    for g, point in enumerate(points):
        points_of_seed.setdefault(point.head.seed, []).append(g)
    # places of points, since one bank may hold points that begin in either way
    from_means = []
    from_zero = []
    for g, point in enumerate(points):
        if point.optimization.initial_biases == "means":
            from_means.append(g)
        if point.optimization.initial_weights == "zero":
            from_zero.append(g)

    tensors = {}
    for name, size in shape.tensors().items():
        # contiguous: a fused AdamW walks weight, gradient and moments as plain memory, whatever
        # their strides say
        shape_QG = len(splits), len(points), *size[::-1]
        tensor_QG = torch.empty(shape_QG, dtype=dtype, device=device)
        for q, split in enumerate(splits):
            address = (seed, split.repeat, split.fold)
            for own_seed, same in points_of_seed.items():
                values = _initial(name, size, shape, address, own_seed)
                # transposed: a bank's weights are (in, out), nn.Linear's (out, in)
                tensor_QG[q, same] = torch.tensor(values.T, dtype=dtype, device=device)
            if name in biases[q]:
                means = torch.tensor(biases[q][name], dtype=dtype, device=device)
                tensor_QG[q, from_means] = means
        if _weighs_outputs(name, biases[0]):
            tensor_QG[:, from_zero] = 0
        tensors[name] = tensor_QG.requires_grad_()
    rates = torch.tensor([point.head.dropout for point in points], dtype=dtype, device=device)
    return Bank(shape, tensors, rates, moments, column_scale)


def _weighs_outputs(name: str, biases: Collection[str]) -> bool:
    """Whether a tensor is the weight of an output layer: `main_head`, `state_head` and so on, or
    one whose bias begins at training means."""
    layer, part = name.rsplit(".", 1)
    return part == "weight" and (layer.endswith("_head") or f"{layer}.bias" in biases)


def _initial(
    name: str,
    size: tuple[int, ...],
    shape: HeadShape,
    address: tuple[int, ...],
    own: int,
) -> np.ndarray:
    """Defaults of nn.Linear and nn.LayerNorm: uniform within 1 / sqrt(fan in); ones and zeros."""
    weight = shape.tensors()[f"{name.rsplit('.', 1)[0]}.weight"]
    if len(weight) == 1:
        return np.full(size, float(name.endswith("weight")))
    # by the tensor's name: another layer beside it changes nothing of what is drawn here
    entropy = [*address, crc32(name.encode())]
    if own:  # seed 0 draws as heads did before there was `head.seed`
        entropy.append(own)
    rng = np.random.default_rng(entropy)
    return rng.uniform(-1, 1, size) / np.sqrt(weight[1])
