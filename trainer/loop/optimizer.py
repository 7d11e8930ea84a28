"""AdamW over every head of a bank at once, each with its own rate and decay; moving averages."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.config.sections import PointConfig
from trainer.heads.bank import Bank


class BankOptimizer:
    """Steps a bank's stacked tensors head by head in one fused call.

    torch steps parameters, so each head's slice of a stacked tensor is one, sharing storage with
    it, and its gradient is a slice of the stacked gradient; a group a head carries its learning
    rate and weight decay.
    """

    def __init__(self, bank: Bank, points: Sequence[PointConfig], n_steps: int) -> None:
        self.bank = bank
        self.points = points
        self.n_steps = n_steps
        self.n_done = 0
        for tensor in bank.tensors.values():
            # in place from here on: replacing it would unhook the slices
            tensor.grad = torch.zeros_like(tensor)
        groups = []
        for q in range(bank.n_splits):
            for g, point in enumerate(points):
                settings = point.optimization
                decayed = [
                    name
                    for name, size in bank.shape.tensors().items()
                    # a bias, or a LayerNorm's weight
                    if settings.decay_biases or len(size) > 1
                ]
                others = [name for name in bank.tensors if name not in decayed]
                for names, decay in ((decayed, settings.weight_decay), (others, 0.0)):
                    if names:
                        group = {
                            "params": [_slice(bank.tensors[name], q, g) for name in names],
                            "point": g,
                            "lr": settings.lr,
                            "weight_decay": decay,
                        }
                        groups.append(group)
        self.adamw = torch.optim.AdamW(groups, fused=True)
        self.average = {name: tensor.detach().clone() for name, tensor in bank.tensors.items()}

    def step(self) -> None:
        """One step of every head, then of its moving average; gradients are zero afterwards."""
        for group in self.adamw.param_groups:
            group["lr"] = self.lr(group["point"])
        self.adamw.step()
        for tensor in self.bank.tensors.values():
            tensor.grad.zero_()
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

    def _update_average(self) -> None:
        """Move the average towards the weights; before its start, or if off, it equals them."""
        weights = []
        for point in self.points:
            settings = point.optimization
            start = settings.ema_start_ratio * self.n_steps + settings.ema_delay
            begun = settings.use_ema and self.n_done > start
            weights.append(1 - settings.average_decay(self.n_steps) if begun else 1.0)
        weight_G = torch.tensor(weights, dtype=torch.float64)
        with torch.no_grad():
            for name, tensor in self.bank.tensors.items():
                average = self.average[name]
                axes = (1, -1, *(1,) * (tensor.dim() - 2))
                average.lerp_(tensor, weight_G.to(tensor).view(axes))


def _slice(tensor: Tensor, q: int, g: int) -> nn.Parameter:
    parameter = nn.Parameter(tensor.detach()[q, g])
    parameter.grad = tensor.grad[q, g]
    return parameter
