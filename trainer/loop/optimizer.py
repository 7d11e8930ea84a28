"""AdamW over every head of a bank at once, each with its own rate and decay; moving averages."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Not the class torch.optim.AdamW: to construct it imports torch's compiler, sympy and triton, which
# takes as long as torch itself.
from torch.optim.adamw import adamw

from trainer.config.sections import PointConfig
from trainer.heads.bank import Bank
from trainer.heads.layout import HeadLayout
from trainer.heads.sending import on_device

BETAS = 0.9, 0.999
EPSILON = 1e-8
"""AdamW's, as torch has them."""


@dataclass(frozen=True, eq=False)
class _Part:
    """What AdamW steps as one tensor: a head's stretch of the buffers, and its moments there."""

    stretch: slice
    weights_n: Tensor
    grad_n: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)
    """step, exp_avg and exp_avg_sq; none before the first step."""

    def begin(self) -> None:
        """Moments of no step yet."""
        # float32 whatever the weights are: the fused step takes no other on a GPU
        self.moments["step"] = torch.zeros((), device=self.weights_n.device)
        self.moments["exp_avg"] = torch.zeros_like(self.weights_n)
        self.moments["exp_avg_sq"] = torch.zeros_like(self.weights_n)


@dataclass(frozen=True, eq=False)
class _Group:
    """Parts of one rate and decay, which take one call."""

    point: int
    """One of those that have this rate."""
    weight_decay: float
    parts: list[_Part] = field(default_factory=list)


class BankOptimizer:
    """Steps all heads of a bank, whose tensors it lays into one buffer.

    A part is a head's stretch of that buffer, and a group holds those of one rate and decay, so a
    step takes as many calls as there are groups.
    """

    def __init__(self, bank: Bank, points: Sequence[PointConfig], n_steps: int) -> None:
        self.bank = bank
        self.points = points
        self.n_steps = n_steps
        self.n_done = 0
        self.layout = HeadLayout.of(bank.shape.tensors())
        self._weights_QGn = self.layout.buffer(bank.tensors)
        self._grad_QGn = torch.zeros_like(self._weights_QGn)
        self._average_QGn = self._weights_QGn.clone()
        self.average = self.layout.views(self._average_QGn)
        self._average_by: list[float] = []
        # in place from here on: replacing a tensor would unhook it from the buffer
        for name, weight in self.layout.views(self._weights_QGn).items():
            bank.tensors[name] = weight.requires_grad_()
        for name, grad in self.layout.views(self._grad_QGn).items():
            bank.tensors[name].grad = grad

        self._parts: list[_Part] = []
        groups: dict[tuple, _Group] = {}
        for q in range(bank.n_splits):
            for g, point in enumerate(points):
                settings = point.optimization
                schedule = settings.lr, settings.warmup_rate, settings.warmup_from_zero
                for stretch, decay in self._stretches(g):
                    weights_n = self._weights_QGn[q, g, stretch]
                    part = _Part(stretch, weights_n, self._grad_QGn[q, g, stretch])
                    self._parts.append(part)
                    # one call takes one rate, which follows from the schedule, and one decay
                    group = groups.setdefault((schedule, decay), _Group(g, decay))
                    group.parts.append(part)
        self._groups = list(groups.values())

    def _stretches(self, g: int) -> list[tuple[slice, float]]:
        """Parts of a head of point g, and the weight decay of each."""
        settings = self.points[g].optimization
        if settings.decay_biases:
            return [(slice(0, self.layout.n), settings.weight_decay)]
        # the layout has all weights in front, so what decays is one stretch
        weights = slice(0, self.layout.n_weights)
        others = slice(self.layout.n_weights, self.layout.n)
        parts = [(weights, settings.weight_decay), (others, 0.0)]
        return [(stretch, decay) for stretch, decay in parts if stretch.start < stretch.stop]

    def step(self) -> None:
        """One step of every head, then of its moving average; gradients are zero afterwards."""
        for group in self._groups:
            self._step_group(group)
        self._grad_QGn.zero_()
        self.n_done += 1
        self._update_average()

    def _step_group(self, group: _Group) -> None:
        for part in group.parts:
            if not part.moments:
                part.begin()
        adamw(
            [part.weights_n for part in group.parts],
            [part.grad_n for part in group.parts],
            [part.moments["exp_avg"] for part in group.parts],
            [part.moments["exp_avg_sq"] for part in group.parts],
            [],  # the greatest exp_avg_sq so far, which AMSGrad alone has
            [part.moments["step"] for part in group.parts],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.lr(group.point),
            weight_decay=group.weight_decay,
            eps=EPSILON,
            maximize=False,
        )

    def lr(self, g: int) -> float:
        """Learning rate of point g at the coming step: linear warm-up, then half a cosine to 0.

        Warm-up from zero is transformers' get_cosine_schedule_with_warmup.
        """
        settings = self.points[g].optimization
        warm = settings.warmup_rate * self.n_steps
        if self.n_done < warm and settings.warmup_from_zero:
            return settings.lr * self.n_done / warm
        # counted from 1: a first rate of 0 would spend a step on nothing
        if self.n_done < warm:
            return settings.lr * (self.n_done + 1) / (math.floor(warm) + 1)
        part = math.pi * (self.n_done - warm) / max(1, self.n_steps - warm)
        return settings.lr * (1 + math.cos(part)) / 2

    def averages(self) -> Tensor:
        """(Q, G, n) a copy of every head's averages."""
        return self._average_QGn.clone()

    def keep_best(self, best_QGn: Tensor, better_QG: Tensor) -> None:
        """Copy the averages of some heads into another buffer of this layout."""
        is_better_QG1 = better_QG.to(best_QGn.device)[..., None]
        torch.where(is_better_QG1, self._average_QGn, best_QGn, out=best_QGn)

    def moments(self) -> dict[str, Tensor]:
        """AdamW's of every tensor of every head, as checkpoints name them; none before its first
        step."""
        found = {}
        for number, (part, within, size) in enumerate(self._tensors()):
            for key, values in part.moments.items():
                of_tensor = values.clone() if key == "step" else values[within].view(size)
                found[f"{number}/{key}"] = of_tensor
        return found

    def load_moments(self, found: dict[str, Tensor]) -> None:
        """Put `moments` back."""
        for part in self._parts:
            part.moments.clear()
        if not found:
            return
        for number, (part, within, size) in enumerate(self._tensors()):
            if not part.moments:
                part.begin()
                # checkpoints keep a count for each tensor; those of a part step together
                part.moments["step"].copy_(found[f"{number}/step"])
            for key in ("exp_avg", "exp_avg_sq"):
                part.moments[key][within].view(size).copy_(found[f"{number}/{key}"])

    def sizes(self) -> list[tuple[int, ...]]:
        """Of each tensor of `moments`, by its number."""
        return [size for _, _, size in self._tensors()]

    def _tensors(self) -> Iterator[tuple[_Part, slice, tuple[int, ...]]]:
        """Part, place within it and size of each tensor, numbered as checkpoints do: of each
        head those that decay, then the others."""
        for part in self._parts:
            stretch = part.stretch
            for name, size in self.layout.sizes.items():
                start = self.layout.starts[name] - stretch.start
                if 0 <= start < stretch.stop - stretch.start:
                    yield part, slice(start, start + math.prod(size)), size

    def _update_average(self) -> None:
        """Move the average towards the weights; before its start, or if off, it equals them."""
        weights = []
        for point in self.points:
            settings = point.optimization
            start = settings.ema_start_ratio * self.n_steps + settings.ema_delay
            begun = settings.use_ema and self.n_done > start
            # a weight of 1 copies
            weights.append(1 - settings.average_decay(self.n_steps) if begun else 1.0)
        if weights != self._average_by:  # they hardly ever change: sent once
            weight_G1 = torch.tensor(weights, dtype=torch.float64)[:, None]
            weight_G1 = weight_G1.to(self._average_QGn.dtype)
            self._weight_G1 = on_device(weight_G1, self._average_QGn.device)
            self._average_by = weights
        self._average_QGn.lerp_(self._weights_QGn, self._weight_G1)
