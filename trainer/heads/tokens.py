"""The rows of a step, and products of weights with them: the only code that touches tokens.

Weights stand on the left, (M, N) @ (N, D): where they are few MKL multiplies from this side up to
eight times as fast (2 weights: .07 ms a block, not .6), where they are many as fast.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from trainer.heads.crew import spread

BLOCK_BYTES = 2 << 20
"""Of a converted block of patches: it stays in the cache, a converted row (18 MB) does not."""

SMALL_BYTES = 1 << 19
"""Of a converted row: smaller ones are gathered on a CPU too, where one call for all of them costs
less than the copy."""

GATHERED_BYTES = 1 << 30
"""Of rows as stored that are gathered at once."""

L1_TARGET = 6
"""In half precision weights are scaled to a sum of magnitudes in [32, 64), as a power of two: far
from underflow and overflow."""

Multiply = Literal["float32", "float16", "bf16", "bf16x2"]
"""What tokens and weights are multiplied in; sums and results are float32. `bf16x2` computes what
rounding a product to bf16 loses by a second one."""


def of_device(device: torch.device, use_amp: bool, parameters: torch.dtype) -> Multiply:
    """What predictions are multiplied in, and sweeps that did not choose: halves on CUDA."""
    in_half = device.type == "cuda" and use_amp and parameters == torch.float32
    return "float16" if in_half else "float32"


@runtime_checkable
class GatheredRows(Protocol):
    """Rows that know best how they come together; (T, P, D) each."""

    shape: torch.Size
    """Of a row; it is known before any is read."""
    dtype: torch.dtype
    device: torch.device

    def gathered(self, own: slice) -> Tensor:
        """(U, T, P, D) some of them, in one tensor that is only read."""


class StepTokens:
    """The distinct rows of a step, (T, P, D) each as stored, to be multiplied by weights.

    On a device, and on a CPU where rows are small, they are gathered into one buffer, and one
    product serves all; full-size rows on a CPU are multiplied one after another, in blocks.

    rows : tensors, or `GatheredRows`.
    dtype : of weights and results; `float32` means this.
    """

    def __init__(
        self,
        rows: Sequence[Tensor],
        dtype: torch.dtype,
        multiply: Multiply = "float32",
    ) -> None:
        self._rows = rows
        self._dtype = dtype
        self._multiply = multiply
        factors = {"float32": dtype, "float16": torch.float16}
        self._factor = factors.get(multiply, torch.bfloat16)

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def shape(self) -> torch.Size:
        """(T, P, D) of a row."""
        return self._like.shape

    def under(self, w_UTMP: Tensor, counts_U: Sequence[int]) -> Tensor:
        """(U, T, M, D) sums over the patches of each row and tile, under M weights.

        counts_U : weights that count of each row; what comes of the others is not defined.
        """
        if self.is_gathered:
            return self._of_all(w_UTMP, lambda x_VPD: x_VPD)

        out_UTMD = w_UTMP.new_zeros(*w_UTMP.shape[:3], self.shape[2])
        w_UTMP = w_UTMP.to(self._factor)

        def add(row: tuple[int, Tensor]) -> None:
            u, row_TPD = row
            m = counts_U[u]
            for tile, part, block in self._blocks(row_TPD):
                w_MP = w_UTMP[u, tile, :m, part]
                self._add_product(out_UTMD[u, tile, :m], w_MP, block)

        spread(add, enumerate(self._rows))
        return out_UTMD

    def through(self, w_UTMD: Tensor, counts_U: Sequence[int]) -> Tensor:
        """(U, T, M, P) products of M weights with every patch of each row and tile; as `under`."""
        if self.is_gathered:
            return self._of_all(w_UTMD, lambda x_VPD: x_VPD.transpose(1, 2))

        out_UTMP = w_UTMD.new_zeros(*w_UTMD.shape[:3], self.shape[1])
        w_UTMD = w_UTMD.to(self._factor)

        def put(row: tuple[int, Tensor]) -> None:
            u, row_TPD = row
            m = counts_U[u]
            for tile, part, block in self._blocks(row_TPD):
                w_MD = w_UTMD[u, tile, :m]
                self._add_product(out_UTMP[u, tile, :m, part], w_MD, block.T)

        spread(put, enumerate(self._rows))
        return out_UTMP

    def _of_all(self, w_UTMN: Tensor, as_factor: Callable[[Tensor], Tensor]) -> Tensor:
        """(U, T, M, K) products with the tiles of all rows together.

        as_factor : what (V, P, D) tiles are multiplied as, (V, N, K).
        """
        parts = []
        for own, x_VPD in self._buffers():
            w_VMN = w_UTMN[own].flatten(0, 1)
            parts.append(_product(w_VMN, as_factor(x_VPD), self._multiply))
        y_VMK = parts[0] if len(parts) == 1 else torch.cat(parts)
        return y_VMK.unflatten(0, w_UTMN.shape[:2])

    def _add_product(self, out_MK: Tensor, w_MN: Tensor, x_NK: Tensor) -> None:
        if self._factor == out_MK.dtype:
            out_MK.addmm_(w_MN, x_NK)
            return
        y_MK = torch.mm(w_MN, x_NK)
        out_MK += y_MK
        if self._multiply == "bf16x2":
            # the product less what it was rounded to: what rounding has lost
            out_MK += torch.addmm(y_MK, w_MN, x_NK, beta=-1)

    def gather(self) -> bool:
        """Gather all rows now, and not at the first product; False where they do not come together
        in one buffer."""
        if not self.is_gathered or len(self) > self._n_most:
            return False
        self._first_tiles  # noqa: B018
        return True

    @cached_property
    def is_gathered(self) -> bool:
        """Whether one product serves all rows."""
        if self._like.device.type != "cpu" or self._multiply == "float16":
            return True
        return self.shape.numel() * self._dtype.itemsize <= SMALL_BYTES

    @cached_property
    def _like(self) -> GatheredRows | Tensor:
        """Something of each row's shape, dtype and device."""
        return self._rows if isinstance(self._rows, GatheredRows) else self._rows[0]

    def _buffers(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows gathered, and their tiles as (V, P, D): all, or some at a time."""
        for start in range(0, len(self), self._n_most):
            own = slice(start, start + self._n_most)
            yield own, self._first_tiles if start == 0 else self._gather(own)

    @property
    def _n_most(self) -> int:
        """Rows that are gathered at once."""
        row_bytes = self.shape.numel() * self._like.dtype.itemsize
        return max(1, GATHERED_BYTES // row_bytes)

    @cached_property
    def _first_tiles(self) -> Tensor:
        """(U T, P, D), for all products of the step."""
        return self._gather(slice(self._n_most))

    def _gather(self, own: slice) -> Tensor:
        if isinstance(self._rows, GatheredRows):
            x_UTPD = self._rows.gathered(own)
        else:
            x_UTPD = torch.stack(self._rows[own])
        return x_UTPD.flatten(0, 1).to(self._factor)

    def _blocks(self, row_TPD: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        """Tile, patches and their tokens converted, in blocks that stay in the cache.

        A full-size row (3600 x 1280) under 48 weights took 5.4 and 4.0 ms forward and backward on
        two AVX2 cores, conversion included; converted whole it took 12 to 14 ms each way, and 8 for
        the conversion.
        """
        _, p, d = row_TPD.shape
        size = min(p, max(16, BLOCK_BYTES // (d * self._dtype.itemsize)))
        buffer = row_TPD.new_empty(size, d, dtype=self._dtype)
        rounded = None
        if self._factor != self._dtype:
            rounded = row_TPD.new_empty(size, d, dtype=self._factor)
        for tile, tokens_PD in enumerate(row_TPD):
            for start in range(0, p, size):
                part = slice(start, min(start + size, p))
                block = buffer[: part.stop - start].copy_(tokens_PD[part])
                if rounded is not None:
                    # by way of float32: from float16 at once it takes five times as long
                    block = rounded[: part.stop - start].copy_(block)
                yield tile, part, block


def _product(w_VMN: Tensor, x_VNK: Tensor, multiply: Multiply) -> Tensor:
    """w @ x in w's dtype; in float16 rows of w are scaled by powers of two, which is exact."""
    if multiply == "float32":
        return torch.bmm(w_VMN, x_VNK)
    if multiply == "float16":
        size = torch.linalg.vector_norm(w_VMN, 1, 2, keepdim=True).clamp_min(1e-30)
        scale = torch.exp2(L1_TARGET - torch.frexp(size).exponent)
        scaled = torch.mul(w_VMN, scale, out=torch.empty_like(w_VMN, dtype=torch.float16))
        return torch.bmm(scaled, x_VNK) / scale
    rounded = w_VMN.to(torch.bfloat16)
    y_VMK = torch.bmm(rounded, x_VNK)
    if multiply == "bf16":
        return y_VMK.to(w_VMN.dtype)
    # the product less what it was rounded to: what rounding has lost
    rest_VMK = torch.baddbmm(y_VMK, rounded, x_VNK, beta=-1)
    return y_VMK.to(w_VMN.dtype) + rest_VMK
