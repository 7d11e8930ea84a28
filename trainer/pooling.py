"""A @ T and T @ W over stored rows, forward and backward: the only code that touches tokens.

Heads see a row T only through a linear map, so all weights that touch a row are stacked and one multiplication serves every
head of the sweep. Mixing is linear too and commutes: it happens to the small results, a mixed image never exists.
Tokens get no gradient.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from featurestore.store import FeatureStore

CACHE_BYTES = 1 << 30  # converted rows of one step kept between forward, backward and banks, if they fit
L1_TARGET = 5  # half precision: rows are scaled to a sum of magnitudes in [32, 64): far from underflow and overflow


def compute_dtype(device: torch.device, use_amp: bool, parameters: torch.dtype) -> torch.dtype:
    """What tokens are multiplied in: the type the device is fastest at, conversion included.

    By what the device is, not by a trial: one config gives one result on one machine. CPUs with AVX-512 take float16 as
    it is stored, others are many times slower at it than at converting to float32.
    """
    if parameters != torch.float32 or not use_amp:
        return parameters
    if device.type == "cuda":
        return torch.float16
    return torch.float16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else torch.float32


class TokenReader:
    """Stored rows as tensors on a device: mapped on the CPU, copied once and kept on CUDA while they fit."""

    def __init__(self, store: FeatureStore, device: torch.device, dtype: torch.dtype) -> None:
        self.store, self.device, self.dtype = store, device, dtype
        self.n_bytes_read = 0
        self._resident: dict[tuple[int, int], Tensor] = {}
        # half of what is free; the other half is the heads' (trainer.plan)
        self._room = 0 if device.type == "cpu" else torch.cuda.mem_get_info(device)[0] // 2 - CACHE_BYTES

    def step(self, rows_U2: np.ndarray) -> "StepRows":
        return StepRows(self, rows_U2)

    def row(self, image: int, view: int) -> Tensor:
        """(T, P, D) float16 of one stored row; on the CPU a view of the file."""
        key = (int(image), int(view))
        if key in self._resident:
            return self._resident[key]
        mapped = torch.from_dlpack(self.store.patches[key])
        self.n_bytes_read += mapped.nbytes
        row = mapped.to(self.device)  # on the CPU this copies nothing
        if mapped.nbytes <= self._room:
            self._room -= mapped.nbytes
            self._resident[key] = row
        return row


class StepRows(Sequence):
    """The distinct rows of one step, converted to the compute type once if all fit in CACHE_BYTES, else at each use."""

    def __init__(self, reader: TokenReader, rows_U2: np.ndarray) -> None:
        self._reader, self._rows_U2 = reader, rows_U2
        self._converted: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows_U2)

    def __getitem__(self, u: int) -> Tensor:
        if u in self._converted:
            return self._converted[u]
        row = self._reader.row(*self._rows_U2[u]).to(self._reader.dtype)
        if len(self) * row.nbytes <= CACHE_BYTES:
            self._converted[u] = row
        return row


class Touches:
    """Which samples touch which row: for each row, the flat positions in a (Q, B, slots) array of rows (-1: none)."""

    def __init__(self, row_QBS: np.ndarray, device: torch.device) -> None:
        self.n_slots = row_QBS.shape[-1]
        flat = row_QBS.reshape(-1)
        order = np.argsort(flat, kind="stable")
        order = order[flat[order] >= 0]
        rows, starts = np.unique(flat[order], return_index=True)
        self.by_row = [(int(row), torch.from_numpy(entries).to(device)) for row, entries in
                       zip(rows, np.split(order, starts[1:]), strict=True)]


class _Attend(torch.autograd.Function):
    """Weighted sums over patches of each row that a sample touches."""

    @staticmethod
    def forward(ctx, w_QGBTP: Tensor, rows: Sequence[Tensor], touches: Touches) -> Tensor:
        q, g, b, t, p = w_QGBTP.shape
        w = w_QGBTP.permute(0, 2, 3, 1, 4).reshape(q * b, t, g, p)
        out = None
        for u, entries in touches.by_row:
            row_TPD = rows[u]
            a = w[entries // touches.n_slots].transpose(0, 1).reshape(t, -1, p)
            y = _matmul(a, row_TPD, w.dtype)
            if out is None:
                out = w.new_zeros(q * b * touches.n_slots, t, g, row_TPD.shape[-1])
            out[entries] = y.view(t, len(entries), g, -1).transpose(0, 1)
        ctx.rows, ctx.touches, ctx.shape = rows, touches, (q, g, b, t, p)
        return out.view(q, b, touches.n_slots, t, g, -1).permute(0, 4, 1, 2, 3, 5)

    @staticmethod
    def backward(ctx, dy_QGBSTD: Tensor) -> tuple:
        q, g, b, t, p = ctx.shape
        n_slots = ctx.touches.n_slots
        dy = dy_QGBSTD.permute(0, 2, 3, 4, 1, 5).reshape(q * b * n_slots, t, g, -1)
        dw = dy.new_zeros(q * b, t, g, p)
        for u, entries in ctx.touches.by_row:
            d = dy[entries].transpose(0, 1).reshape(t, len(entries) * g, -1)
            part = _matmul(d, ctx.rows[u].transpose(1, 2), dy.dtype)
            dw.index_add_(0, entries // n_slots, part.view(t, len(entries), g, p).transpose(0, 1))
        return dw.view(q, b, t, g, p).permute(0, 3, 1, 2, 4), None, None


class _Project(torch.autograd.Function):
    """Every patch of each sample's own row through its heads' linear maps."""

    @staticmethod
    def forward(ctx, w_QGDK: Tensor, rows: Sequence[Tensor], touches: Touches, b: int) -> Tensor:
        q, g, d, k = w_QGDK.shape
        w = w_QGDK.permute(0, 2, 1, 3).reshape(q, d, g * k)
        out = None
        for u, entries in touches.by_row:
            row_TPD = rows[u]
            t, p, _ = row_TPD.shape
            stacked = w[entries // b].transpose(0, 1).reshape(d, -1)
            y = _matmul_t(row_TPD.reshape(t * p, d), stacked, w.dtype)
            if out is None:
                out = w.new_zeros(q * b, t, p, g, k)
            out[entries] = y.view(t, p, len(entries), g, k).permute(2, 0, 1, 3, 4)
        ctx.rows, ctx.touches, ctx.shape = rows, touches, (q, g, d, k, b)
        return out.view(q, b, *out.shape[1:]).permute(0, 4, 1, 2, 3, 5)

    @staticmethod
    def backward(ctx, dy_QGBTPK: Tensor) -> tuple:
        q, g, d, k, b = ctx.shape
        t, p = dy_QGBTPK.shape[3:5]
        dy = dy_QGBTPK.permute(0, 2, 3, 4, 1, 5).reshape(q * b, t * p, g * k)
        dw = dy.new_zeros(q, d, g * k)
        for u, entries in ctx.touches.by_row:
            stacked = dy[entries].transpose(0, 1).reshape(t * p, -1)
            part = _matmul_t(ctx.rows[u].reshape(t * p, d).T, stacked, dy.dtype)
            dw.index_add_(0, entries // b, part.view(d, len(entries), g * k).transpose(0, 1))
        return dw.view(q, d, g, k).permute(0, 2, 1, 3), None, None, None


def attend(w_QGBTP: Tensor, rows: Sequence[Tensor], row_QBS: np.ndarray) -> Tensor:
    """Weighted sums over patches.

    Parameters
    ----------
    w_QGBTP : (Q, G, B, T, P), one weight row for each split, point, sample and tile.
    rows : the step's distinct rows, each (T, P, D).
    row_QBS : (Q, B, S) int, the rows each sample touches (its own; its partner's), -1 for none.

    Returns (Q, G, B, S, T, D) in w's dtype: w @ T[row] for each touched row; zeros for none.
    """
    return _Attend.apply(w_QGBTP, rows, Touches(row_QBS, w_QGBTP.device))


def project(w_QGDK: Tensor, rows: Sequence[Tensor], row_QB: np.ndarray) -> Tensor:
    """Linear maps of every patch: (Q, G, D, K) weights -> (Q, G, B, T, P, K), T[row] @ w; zeros where row is -1."""
    return _Project.apply(w_QGDK, rows, Touches(row_QB[..., None], w_QGDK.device), row_QB.shape[1])


def _matmul(a_TMK: Tensor, b_TKN: Tensor, out: torch.dtype) -> Tensor:
    """Batched product in b's type; in half precision the rows of a are scaled by powers of two, which is exact."""
    if b_TKN.dtype != torch.float16:
        return torch.bmm(a_TMK.to(b_TKN.dtype), b_TKN).to(out)
    scale = torch.exp2(L1_TARGET - a_TMK.abs().sum(-1, keepdim=True).clamp_min(1e-30).log2().floor())
    return torch.bmm((a_TMK * scale).half(), b_TKN).to(out) / scale


def _matmul_t(a_MK: Tensor, b_KN: Tensor, out: torch.dtype) -> Tensor:
    """Product in a's type; in half precision the columns of b are scaled by powers of two."""
    if a_MK.dtype != torch.float16:
        return (a_MK @ b_KN.to(a_MK.dtype)).to(out)
    scale = torch.exp2(L1_TARGET - b_KN.abs().sum(0, keepdim=True).clamp_min(1e-30).log2().floor())
    return (a_MK @ (b_KN * scale).half()).to(out) / scale
