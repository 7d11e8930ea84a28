"""The output layers of heads: which targets each computes, and what their numbers mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from featurestore.photos.targets import (
    CSIRO_HEIGHT,
    CSIRO_MAIN,
    CSIRO_OTHERS,
    Kind,
    Target,
    Targets,
)

PRESET_LAYERS = {
    "main_head": CSIRO_MAIN,
    "state_head": ("State",),
    "height_head": (CSIRO_HEIGHT,),
    "aux_head": CSIRO_OTHERS,
}


@dataclass(frozen=True)
class OutputLayer:
    """A linear layer after the trunk: numbers of one kind side by side, or one class."""

    name: str
    targets: tuple[Target, ...]

    @property
    def kind(self) -> Kind:
        return self.targets[0].kind

    @property
    def width(self) -> int:
        """Its outputs: one a number, one a word of a class."""
        if self.kind == "class":
            return self.targets[0].n_words
        return len(self.targets)


def output_layers(targets: Targets) -> list[OutputLayer]:
    """All layers of a task; under the preset those of the head that this project started from."""
    if targets.preset:
        return [
            OutputLayer(name, tuple(targets[each] for each in columns))
            for name, columns in PRESET_LAYERS.items()
        ]
    layers = [
        OutputLayer(f"{kind}_head", targets.of_kind(kind))
        for kind in ("amount", "level", "share")
        if targets.of_kind(kind)
    ]
    layers += [OutputLayer(f"class_{i}_head", (each,)) for i, each in enumerate(targets.classes)]
    return layers


def layers_by_kind(targets: Targets) -> list[OutputLayer]:
    """The same in the order that heads compute them in: amounts, classes, levels, shares.

    Gradients of the trunk are added up in the reverse order: another one rounds otherwise.
    """
    order = ("amount", "class", "level", "share")
    return sorted(output_layers(targets), key=lambda layer: order.index(layer.kind))


def numbers_over_tiles(targets: Targets, raw: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """(Q, G, B, K) numbers of photographs in the order of `targets.outputs`: amounts add up over
    tiles, what describes the whole photograph is averaged.

    raw : by kind, in the order of `layers_by_kind`, (Q, G, B, T, n) of its layers.
    """
    numbers = []
    for kind, parts in raw.items():
        values_QGBTK = of_patches(kind, targets, torch.cat(parts, -1))
        numbers.append(values_QGBTK.sum(3) if kind == "amount" else values_QGBTK.mean(3))
    return numbers[0] if len(numbers) == 1 else torch.cat(numbers, -1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to two units of the last place; on a CPU in a third of torch's time."""
    return _Softplus.apply(x) if x.device.type == "cpu" else F.softplus(x)


class _Softplus(torch.autograd.Function):
    """Torch's log1p takes ten times as long as its log: log1p(u) = log(w) u / (w - 1), w = 1 + u,
    in which the rounding of w cancels. Source: Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, section 1.14.1."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        epsilon = torch.finfo(x.dtype).eps
        small = x.abs().neg_().exp_()
        whole = small + 1
        rounded = whole - 1
        # of values not 0 the least is epsilon
        log = whole.log_().mul_(small).div_(rounded.clamp_min_(epsilon))
        # Where 1 + u is 1, the logarithm is u, which is at most half of epsilon; elsewhere it is
        # larger. `torch.where` would take as long as the logarithm.
        torch.maximum(log, small.clamp_max_(epsilon / 2), out=log)
        return log.add_(x.clamp_min(0))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.sigmoid().mul_(grad)


def of_patches(kind: str, targets: Targets, raw_K: Tensor) -> Tensor:
    """Raw outputs as what they mean: amounts from 0, shares in 0..1, levels as they are; the
    preset's height from 0."""
    if kind == "share":
        return raw_K.sigmoid()
    if kind == "amount" or targets.preset:
        return softplus(raw_K)
    return raw_K


def word_probabilities(targets: Targets, word_C: Tensor) -> Tensor:
    """(..., C) probabilities from logits, which sum to 1 over each class's words."""
    shares = [word_C[..., own].softmax(-1) for own in targets.word_slices]
    return torch.cat(shares, -1)
