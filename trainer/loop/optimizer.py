"""AdamW over every head of a bank at once, each with its own rate and decay; moving averages."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trainer.config.sections import PointConfig
from trainer.heads.bank import Bank
from trainer.heads.layout import HeadLayout
from trainer.heads.sending import on_device


class BankOptimizer:
    """Steps all heads of a bank, whose tensors it lays into one buffer.

    A parameter of torch's AdamW is a head's stretch of that buffer, and a group holds those of one
    rate and decay, so a step takes as many calls as there are groups.
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

        self._parameters: list[tuple[nn.Parameter, slice]] = []
        groups: dict[tuple, dict] = {}
        for q in range(bank.n_splits):
            for g in range(len(points)):
                for stretch, decay in self._stretches(g):
                    parameter = nn.Parameter(self._weights_QGn[q, g, stretch])
                    parameter.grad = self._grad_QGn[q, g, stretch]
                    self._parameters.append((parameter, stretch))
                    group = {"params": [], "point": g, "weight_decay": decay}
                    groups.setdefault((self._schedule(g), decay), group)["params"].append(parameter)
        self.adamw = torch.optim.AdamW(list(groups.values()), fused=True)

    def _stretches(self, g: int) -> list[tuple[slice, float]]:
        """Parts of a head of point g, and the weight decay of each."""
        settings = self.points[g].optimization
        if settings.decay_biases:
            return [(slice(0, self.layout.n), settings.weight_decay)]
        weights = slice(0, self.layout.n_weights)
        others = slice(self.layout.n_weights, self.layout.n)
        parts = [(weights, settings.weight_decay), (others, 0.0)]
        return [(stretch, decay) for stretch, decay in parts if stretch.start < stretch.stop]

    def _schedule(self, g: int) -> tuple:
        """What the learning rate of a point follows from; points of one share their groups."""
        settings = self.points[g].optimization
        return settings.lr, settings.warmup_rate, settings.warmup_from_zero

    def step(self) -> None:
        """One step of every head, then of its moving average; gradients are zero afterwards."""
        for group in self.adamw.param_groups:
            group["lr"] = self.lr(group["point"])
        self.adamw.step()
        self._grad_QGn.zero_()
        self.n_done += 1
        self._update_average()

    def lr(self, g: int) -> float:
        """Learning rate of point g at the coming step: linear warm-up, then half a cosine to 0.

        Warm-up from zero is transformers' get_cosine_schedule_with_warmup.
        """
        settings = self.points[g].optimization
        warm = settings.warmup_rate * self.n_steps
        if self.n_done < warm and settings.warmup_from_zero:
            return settings.lr * self.n_done / warm
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
        for number, (parameter, within, size) in enumerate(self._tensors()):
            for key, values in self.adamw.state.get(parameter, {}).items():
                of_tensor = values.clone() if key == "step" else values[within].view(size)
                found[f"{number}/{key}"] = of_tensor
        return found

    def load_moments(self, found: dict[str, Tensor]) -> None:
        """Put `moments` back."""
        self.adamw.state.clear()
        if not found:
            return
        for number, (parameter, within, size) in enumerate(self._tensors()):
            state = self.adamw.state[parameter]
            if not state:
                state["step"] = found[f"{number}/step"].to(parameter.device, copy=True)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            for key in ("exp_avg", "exp_avg_sq"):
                state[key][within].view(size).copy_(found[f"{number}/{key}"])

    def sizes(self) -> list[tuple[int, ...]]:
        """Of each tensor of `moments`, by its number."""
        return [size for _, _, size in self._tensors()]

    def _tensors(self) -> Iterator[tuple[nn.Parameter, slice, tuple[int, ...]]]:
        """Parameter, place within it and size of each tensor, numbered as checkpoints do: of each
        head those that decay, then the others."""
        for parameter, stretch in self._parameters:
            for name, size in self.layout.sizes.items():
                start = self.layout.starts[name] - stretch.start
                if 0 <= start < stretch.stop - stretch.start:
                    yield parameter, slice(start, start + math.prod(size)), size

    def _update_average(self) -> None:
        """Move the average towards the weights; before its start, or if off, it equals them."""
        weights = []
        for point in self.points:
            settings = point.optimization
            start = settings.ema_start_ratio * self.n_steps + settings.ema_delay
            begun = settings.use_ema and self.n_done > start
            weights.append(1 - settings.average_decay(self.n_steps) if begun else 1.0)
        if weights != self._average_by:  # they hardly ever change: sent once
            weight_G1 = torch.tensor(weights, dtype=torch.float64)[:, None]
            weight_G1 = weight_G1.to(self._average_QGn.dtype)
            self._weight_G1 = on_device(weight_G1, self._average_QGn.device)
            self._average_by = weights
        self._average_QGn.lerp_(self._weights_QGn, self._weight_G1)
