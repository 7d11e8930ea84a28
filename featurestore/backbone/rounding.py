"""Rounding tokens to eight bits, as an int8 archive keeps them.

Predict rounds its own tokens so for heads that were trained on one.

One pair of functions, in single operations that IEEE 754 defines, so that every device rounds a
token to the same bits.
"""

import torch
from torch import Tensor

LEVELS = 127
ERROR_FIELDS = {"max", "rms", "max_relative", "rms_relative"}


def quantise(tokens_XD: Tensor) -> tuple[Tensor, Tensor]:
    """(..., D) float16 -> q (..., D) int8 and scale (...) float32.

    scale = the greatest absolute value of a token / 127, and q = round(token / scale).

    Halves are rounded to even. A token of zeros has scale 0 and q 0. Of an integer multiple of the
    scale nothing is lost: quantising what `dequantise` returned gives the same token again.
    """
    x = tokens_XD.float()
    # as x.abs().amax(), without a copy of x
    greatest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    # by a Python number, CUDA would multiply with a rounded 1/127
    scale = greatest / torch.full_like(greatest, LEVELS)
    divisor = torch.where(scale > 0, scale, 1)
    q = (x / divisor).round_().to(torch.int8)
    return q, scale.squeeze(-1)


def dequantise(q_XD: Tensor, scale_X: Tensor) -> Tensor:
    """(..., D) float16: the product q * scale in float32, rounded once."""
    return (q_XD.float() * scale_X.unsqueeze(-1)).half()


def int8_rounded(tokens_XD: Tensor) -> Tensor:
    """(..., D) float16 -> float16: the tokens as an int8 archive gives them back."""
    return dequantise(*quantise(tokens_XD))


class ErrorTally:
    """What rounding cost, gathered over many tokens."""

    def __init__(self) -> None:
        self._max = self._max_relative = 0.0
        self._square = self._square_relative = 0.0
        self._n_values = self._n_tokens = 0

    def add(self, tokens_XD: Tensor, rounded_XD: Tensor) -> None:
        """Tokens before and after."""
        tokens = tokens_XD.float()
        off = rounded_XD.float().sub_(tokens)
        off_X = torch.linalg.vector_norm(off, dim=-1).double()
        norm_X = torch.linalg.vector_norm(tokens, dim=-1).double()
        relative_X = off_X / torch.where(norm_X > 0, norm_X, 1)  # a token of zeros loses nothing
        self._max = max(self._max, float(off.max()), -float(off.min()))
        self._max_relative = max(self._max_relative, float(relative_X.max()))
        self._square += float(off_X.square().sum())
        self._square_relative += float(relative_X.square().sum())
        self._n_values += off.numel()
        self._n_tokens += relative_X.numel()

    def merge(self, other: "ErrorTally") -> None:
        """Add what another one gathered."""
        self._max = max(self._max, other._max)
        self._max_relative = max(self._max_relative, other._max_relative)
        for name in ("_square", "_square_relative", "_n_values", "_n_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def error(self) -> dict[str, float]:
        """ERROR_FIELDS: greatest and root mean square error of values, then of tokens.

        A token's error is the norm of its change relative to its own norm.
        """
        return {
            "max": self._max,
            "rms": (self._square / max(1, self._n_values)) ** 0.5,
            "max_relative": self._max_relative,
            "rms_relative": (self._square_relative / max(1, self._n_tokens)) ** 0.5,
        }
