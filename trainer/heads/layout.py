"""All tensors of a bank in one buffer, a head after another: what is done to every weight is done
to the buffer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

ALIGNED = 16
"""Values: every tensor begins at a multiple of so many, as kernels of a device like it."""


@dataclass(frozen=True)
class HeadLayout:
    """Where each tensor lies in a head's stretch of a (Q, G, n) buffer: weights, then the rest."""

    sizes: dict[str, tuple[int, ...]]
    """Of each tensor in a bank, (in, out) for weights, in the order of the kind."""
    starts: dict[str, int]
    n_weights: int
    """Values of the stretch before the first bias, or LayerNorm's weight."""
    n: int

    @classmethod
    def of(cls, saved: Mapping[str, tuple[int, ...]]) -> Self:
        """saved : sizes as in nn.Linear, (out, in)."""
        sizes = {name: size[::-1] for name, size in saved.items()}
        weights = [name for name, size in sizes.items() if len(size) > 1]
        others = [name for name in sizes if name not in weights]
        starts = {}
        end = 0
        n_weights = 0
        for name in weights + others:
            starts[name] = end
            end += -(-math.prod(sizes[name]) // ALIGNED) * ALIGNED
            if name in weights:
                n_weights = end
        return cls(sizes, starts, n_weights, end)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Each tensor of a (..., n) buffer, (..., *size), which shares its memory."""
        found = {}
        for name, size in self.sizes.items():
            start = self.starts[name]
            stretch = buffer[..., start : start + math.prod(size)]
            found[name] = stretch.unflatten(-1, size)
        return found

    def buffer(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new buffer that holds these tensors, (Q, G, *size) each; 0 between them."""
        first = next(iter(tensors.values()))
        buffer = first.new_zeros(*first.shape[:2], self.n)
        with torch.no_grad():
            for name, view in self.views(buffer).items():
                view.copy_(tensors[name])
        return buffer
