"""The spaces that masses are compared in (trainer.heads.loss.SPACES for tensors)."""

from collections.abc import Callable

import numpy as np

SPACES: dict[str, tuple[Callable, Callable]] = {
    "raw": (lambda y: y, lambda z: z),
    "log1p": (np.log1p, np.expm1),
    "sqrt": (np.sqrt, lambda z: np.maximum(z, 0) ** 2),
}
"""Grams to what a regressor is fitted on, and back."""


def grams(space: str, z: np.ndarray) -> np.ndarray:
    """Back to grams, 0 at least; infinite where a wild guess is."""
    _, back = SPACES[space]
    with np.errstate(over="ignore"):
        return np.maximum(back(z), 0)
