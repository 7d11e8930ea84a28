"""The rows of a step, and products of weights with them: the only code that touches tokens.

Weights stand on the left, (M, N) @ (N, D): where they are few MKL multiplies from this side up to
eight times as fast (2 weights: .07 ms a block, not .6), where they are many as fast.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

BLOCK_BYTES = 2 << 20
"""Of a converted block of patches: it stays in the cache, a converted row (18 MB) does not."""

SMALL_BYTES = 2 << 20
"""Of a converted row: smaller ones are gathered on a CPU too, where one call for all of them costs
less than the copy."""

GATHERED_BYTES = 1 << 30
"""Of rows as stored that are gathered at once."""

L1_TARGET = 6
"""In half precision weights are scaled to a sum of magnitudes in [32, 64), as a power of two: far
from underflow and overflow."""


def in_half(device: torch.device, use_amp: bool, parameters: torch.dtype) -> bool:
    """Whether tokens are multiplied in half precision: on CUDA; CPUs convert blocks of them faster
    than they multiply halves."""
    return device.type == "cuda" and use_amp and parameters == torch.float32


class StepTokens:
    """The distinct rows of a step, (T, P, D) each as stored, to be multiplied by weights.

    On a device, and on a CPU where rows are small, they are gathered into one buffer, and one
    product serves all; full-size rows on a CPU are multiplied one after another, in blocks.

    dtype : of weights and results; half: multiply in half precision, as rows are stored.
    """

    def __init__(self, rows: Sequence[Tensor], dtype: torch.dtype, half: bool = False) -> None:
        self._rows = rows
        self._dtype = dtype
        self._half = half

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def shape(self) -> torch.Size:
        """(T, P, D) of a row."""
        return self._rows[0].shape

    def under(self, w_UTMP: Tensor, counts_U: Sequence[int]) -> Tensor:
        """(U, T, M, D) sums over the patches of each row and tile, under M weights.

        counts_U : weights that count of each row; what comes of the others is not defined.
        """
        if self.is_gathered:
            parts = []
            for own, x_VPD in self._buffers():
                parts.append(_product(w_UTMP[own].flatten(0, 1), x_VPD, self._half))
            return _joined(parts).unflatten(0, w_UTMP.shape[:2])

        out_UTMD = w_UTMP.new_zeros(*w_UTMP.shape[:3], self.shape[2])
        for u, m in enumerate(counts_U):
            for tile, part, block in self._blocks(u):
                out_UTMD[u, tile, :m].addmm_(w_UTMP[u, tile, :m, part], block)
        return out_UTMD

    def through(self, w_UTMD: Tensor, counts_U: Sequence[int]) -> Tensor:
        """(U, T, M, P) products of M weights with every patch of each row and tile; as `under`."""
        if self.is_gathered:
            parts = []
            for own, x_VPD in self._buffers():
                x_VDP = x_VPD.transpose(1, 2)
                parts.append(_product(w_UTMD[own].flatten(0, 1), x_VDP, self._half))
            return _joined(parts).unflatten(0, w_UTMD.shape[:2])

        out_UTMP = w_UTMD.new_empty(*w_UTMD.shape[:3], self.shape[1])
        for u, m in enumerate(counts_U):
            for tile, part, block in self._blocks(u):
                torch.mm(w_UTMD[u, tile, :m], block.T, out=out_UTMP[u, tile, :m, part])
        return out_UTMP

    @cached_property
    def is_gathered(self) -> bool:
        """Whether one product serves all rows."""
        if self._rows[0].device.type != "cpu" or self._half:
            return True
        return self.shape.numel() * self._dtype.itemsize <= SMALL_BYTES

    def _buffers(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows gathered, and their tiles as (V, P, D): all, or some at a time."""
        n_most = max(1, GATHERED_BYTES // self._rows[0].nbytes)
        if len(self) <= n_most:
            yield slice(len(self)), self._all_tiles
            return
        for start in range(0, len(self), n_most):
            own = slice(start, start + n_most)
            yield own, self._gather(own)

    @cached_property
    def _all_tiles(self) -> Tensor:
        """(U T, P, D), for all products of the step."""
        return self._gather(slice(len(self)))

    def _gather(self, own: slice) -> Tensor:
        x_UTPD = torch.stack([self._rows[u] for u in range(len(self))[own]])
        tiles = x_UTPD.flatten(0, 1)
        return tiles if self._half else tiles.to(self._dtype)

    def _blocks(self, u: int) -> Iterator[tuple[int, slice, Tensor]]:
        """Tile, patches and their tokens converted, in blocks that stay in the cache.

        A full-size row (3600 x 1280) under 48 weights took 5.4 and 4.0 ms forward and backward on
        two AVX2 cores, conversion included; converted whole it took 12 to 14 ms each way, and 8 for
        the conversion.
        """
        row_TPD = self._rows[u]
        _, p, d = row_TPD.shape
        size = min(p, max(16, BLOCK_BYTES // (d * self._dtype.itemsize)))
        buffer = row_TPD.new_empty(size, d, dtype=self._dtype)
        for tile, tokens_PD in enumerate(row_TPD):
            for start in range(0, p, size):
                part = slice(start, min(start + size, p))
                block = buffer[: part.stop - start]
                yield tile, part, block.copy_(tokens_PD[part])


def _product(w_VMN: Tensor, x_VNK: Tensor, half: bool) -> Tensor:
    """w @ x in w's dtype; in half precision rows of w are scaled by powers of two, which is
    exact."""
    if not half:
        return torch.bmm(w_VMN, x_VNK)
    size = torch.linalg.vector_norm(w_VMN, 1, 2, keepdim=True).clamp_min(1e-30)
    scale = torch.exp2(L1_TARGET - torch.frexp(size).exponent)
    scaled = torch.mul(w_VMN, scale, out=torch.empty_like(w_VMN, dtype=torch.float16))
    return torch.bmm(scaled, x_VNK) / scale


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
