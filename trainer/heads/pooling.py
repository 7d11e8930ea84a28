"""A @ T and T @ W over stored rows, forward and backward: the only code that touches tokens.

Heads see a row T only through a linear map, so all weights that touch a row are stacked and one
multiplication serves every head of the sweep. Mixing is linear too and commutes: it happens to the
small results, a mixed image never exists. Tokens get no gradient.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = 2 << 20
"""Of a converted block of patches: it stays in the cache, a converted row (18 MB) does not."""

FEW = 16
"""Columns: with fewer, MKL multiplies from the other side up to six times as fast (2 columns: .1 ms
a block, not .6)."""

L1_TARGET = 5
"""In half precision columns are scaled to a sum of magnitudes in [32, 64), as a power of two: far
from underflow and overflow."""


class Touches:
    """For each row, where in a (Q, B, slots) array of rows (-1: none) samples touch it."""

    def __init__(self, row_QBS: np.ndarray, device: torch.device) -> None:
        self.n_slots = row_QBS.shape[-1]
        flat = row_QBS.reshape(-1)
        order = np.argsort(flat, kind="stable")
        order = order[flat[order] >= 0]
        rows, starts = np.unique(flat[order], return_index=True)
        self.by_row = [
            (int(row), torch.from_numpy(entries).to(device))
            for row, entries in zip(rows, np.split(order, starts[1:]), strict=True)
        ]


class _Attend(torch.autograd.Function):
    """Weighted sums over patches of each row that a sample touches."""

    @staticmethod
    def forward(
        ctx, w_QGBTP: Tensor, rows: Sequence[Tensor], touches: Touches, half: bool
    ) -> Tensor:
        q, g, b, t, p = w_QGBTP.shape
        w = w_QGBTP.permute(0, 2, 3, 1, 4).reshape(q * b, t, g, p)
        out = None  # its width is known with the first row
        for u, entries in touches.by_row:
            own = w[entries // touches.n_slots]
            a_TPM = own.permute(1, 3, 0, 2).reshape(t, p, -1)
            y_TDM = transposed_times(rows[u], a_TPM, half)
            if out is None:
                out = w.new_zeros(q * b * touches.n_slots, t, g, y_TDM.shape[1])
            y = y_TDM.unflatten(2, (len(entries), g))
            out[entries] = y.permute(2, 0, 3, 1)
        ctx.rows = rows
        ctx.touches = touches
        ctx.half = half
        ctx.shape = (q, g, b, t, p)
        out = out.view(q, b, touches.n_slots, t, g, -1)
        return out.permute(0, 4, 1, 2, 3, 5)

    @staticmethod
    def backward(ctx, dy_QGBSTD: Tensor) -> tuple:
        q, g, b, t, p = ctx.shape
        n_slots = ctx.touches.n_slots
        dy = dy_QGBSTD.permute(0, 2, 3, 4, 1, 5)
        dy = dy.reshape(q * b * n_slots, t, g, -1)
        dw = dy.new_zeros(q * b, t, g, p)
        for u, entries in ctx.touches.by_row:
            d_TMD = dy[entries].permute(1, 0, 2, 3)
            d_TMD = d_TMD.reshape(t, len(entries) * g, -1)
            dw_TPM = times(ctx.rows[u], d_TMD.transpose(1, 2), ctx.half)
            part = dw_TPM.view(t, p, len(entries), g).permute(2, 0, 3, 1)
            # one at a time: 18 ms of a core for a full-size step of 30 heads, index_add_ took 32
            for sample, each in zip((entries // n_slots).tolist(), part, strict=True):
                dw[sample] += each
        dw_QGBTP = dw.view(q, b, t, g, p).permute(0, 3, 1, 2, 4)
        return dw_QGBTP, None, None, None


class _Project(torch.autograd.Function):
    """Every patch of each sample's own row through its heads' linear maps."""

    @staticmethod
    def forward(
        ctx, w_QGDK: Tensor, rows: Sequence[Tensor], touches: Touches, b: int, half: bool
    ) -> Tensor:
        q, g, d, k = w_QGDK.shape
        w = w_QGDK.permute(0, 2, 1, 3).reshape(q, d, g * k)
        out = None  # the grid of patches is known with the first row
        for u, entries in touches.by_row:
            t, p, _ = rows[u].shape
            stacked = w[entries // b].transpose(0, 1).reshape(1, d, -1)
            y = times(rows[u], stacked.expand(t, -1, -1), half)
            if out is None:
                out = w.new_zeros(q * b, t, p, g, k)
            y = y.view(t, p, len(entries), g, k)
            out[entries] = y.permute(2, 0, 1, 3, 4)
        ctx.rows = rows
        ctx.touches = touches
        ctx.half = half
        ctx.shape = (q, g, d, k, b)
        out = out.view(q, b, *out.shape[1:])
        return out.permute(0, 4, 1, 2, 3, 5)

    @staticmethod
    def backward(ctx, dy_QGBTPK: Tensor) -> tuple:
        q, g, d, k, b = ctx.shape
        t, p = dy_QGBTPK.shape[3:5]
        dy = dy_QGBTPK.permute(0, 2, 3, 4, 1, 5)
        dy = dy.reshape(q * b, t, p, g * k)
        dw = dy.new_zeros(q, d, g * k)
        for u, entries in ctx.touches.by_row:
            d_TPM = dy[entries].permute(1, 2, 0, 3).reshape(t, p, -1)
            dw_DM = transposed_times(ctx.rows[u], d_TPM, ctx.half).sum(0)
            part = dw_DM.unflatten(1, (len(entries), g * k))
            for i, split in enumerate((entries // b).tolist()):
                dw[split] += part[:, i]
        dw_QGDK = dw.view(q, d, g, k).permute(0, 2, 1, 3)
        return dw_QGDK, None, None, None, None


def attend(
    w_QGBTP: Tensor, rows: Sequence[Tensor], row_QBS: np.ndarray, half: bool = False
) -> Tensor:
    """Weighted sums over patches.

    Parameters
    ----------
    w_QGBTP : (Q, G, B, T, P), one weight row for each split, point, sample and tile.
    rows : the step's distinct rows, each (T, P, D) as stored.
    row_QBS : (Q, B, S) int, the rows each sample touches (its own; its partner's), -1 for none.
    half : multiply in half precision, as rows are stored.

    Returns (Q, G, B, S, T, D) in w's dtype: w @ T[row] for each touched row; zeros for none.
    """
    return _Attend.apply(w_QGBTP, rows, Touches(row_QBS, w_QGBTP.device), half)


def project(
    w_QGDK: Tensor, rows: Sequence[Tensor], row_QB: np.ndarray, half: bool = False
) -> Tensor:
    """Linear maps of every patch: (Q, G, D, K) weights -> (Q, G, B, T, P, K), T[row] @ w; zeros
    where row is -1."""
    return _Project.apply(
        w_QGDK, rows, Touches(row_QB[..., None], w_QGDK.device), row_QB.shape[1], half
    )


def in_half(device: torch.device, use_amp: bool, parameters: torch.dtype) -> bool:
    """Whether tokens are multiplied in half precision: on CUDA; CPUs convert blocks of them faster
    than they multiply halves."""
    return device.type == "cuda" and use_amp and parameters == torch.float32


def times(row_TPD: Tensor, x_TDM: Tensor, half: bool) -> Tensor:
    """(T, P, M) = row @ x in x's dtype; with few columns a transposed x is faster."""
    if half:
        return _scaled_product(row_TPD, x_TDM)
    out_TPM = x_TDM.new_empty(*row_TPD.shape[:2], x_TDM.shape[2])
    for tile, part, block in _blocks(row_TPD, x_TDM.dtype):
        torch.mm(block, x_TDM[tile], out=out_TPM[tile, part])
    return out_TPM


def transposed_times(row_TPD: Tensor, x_TPM: Tensor, half: bool) -> Tensor:
    """(T, D, M) = row^T @ x in x's dtype."""
    if half:
        return _scaled_product(row_TPD.transpose(1, 2), x_TPM)
    t, _, d = row_TPD.shape
    m = x_TPM.shape[2]
    few = m < FEW
    out = x_TPM.new_zeros(t, *((m, d) if few else (d, m)))
    for tile, part, block in _blocks(row_TPD, x_TPM.dtype):
        x_PM = x_TPM[tile, part]
        if few:
            out[tile].addmm_(x_PM.T, block)
        else:
            out[tile].addmm_(block.T, x_PM)
    return out.transpose(1, 2) if few else out


def _blocks(row_TPD: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, slice, Tensor]]:
    """Tile, patches and their tokens converted, in blocks that stay in the cache.

    A full-size row (3600 x 1280) under 48 weights took 5.4 and 4.0 ms forward and backward on two
    AVX2 cores, conversion included; converted whole it took 12 to 14 ms each way, and 8 for the
    conversion.
    """
    _, p, d = row_TPD.shape
    size = min(p, max(16, BLOCK_BYTES // (d * dtype.itemsize)))
    buffer = row_TPD.new_empty(size, d, dtype=dtype)
    for tile, tokens_PD in enumerate(row_TPD):
        for start in range(0, p, size):
            part = slice(start, min(start + size, p))
            block = buffer[: part.stop - start]
            yield tile, part, block.copy_(tokens_PD[part])


def _scaled_product(a_TMK: Tensor, x_TKN: Tensor) -> Tensor:
    """a @ x in half precision; the columns of x are scaled by powers of two, which is exact."""
    size = x_TKN.abs().sum(1, keepdim=True).clamp_min(1e-30)
    scale = torch.exp2(L1_TARGET - size.log2().floor())
    return torch.bmm(a_TMK, (x_TKN * scale).half()).to(x_TKN.dtype) / scale
