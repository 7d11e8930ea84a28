"""An independent account of the stream: what each sample of a split is at each step.

Imports nothing of the trainer. Addresses are those of docs/sweep.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class PlainSplit:
    """A fold of a repeat, by the folds each image is held out in."""

    repeat: int
    fold: int
    fold_N: np.ndarray

    @cached_property
    def train_N(self) -> np.ndarray:
        return np.flatnonzero(self.fold_N != self.fold)

    @cached_property
    def val_N(self) -> np.ndarray:
        return np.flatnonzero(self.fold_N == self.fold)


@dataclass(frozen=True)
class PlainStream:
    """What is one for all splits."""

    seed: int
    n_views: int
    n_folds: int
    batch_size: int
    site_N: np.ndarray

    @property
    def n_steps(self) -> int:
        """S = floor(N (1 - 1/F) / B), in whole numbers."""
        n = len(self.site_N)
        return (n * (self.n_folds - 1) // self.n_folds) // self.batch_size

    def batch(self, split: PlainSplit, epoch: int, step: int) -> Mapping[str, np.ndarray]:
        """Image, view, both kinds of partner and uniform of every sample."""
        order, view_N = self._epoch(epoch)
        kept = [image for image in order if split.fold_N[image] != split.fold]
        first = step * len(kept) // self.n_steps
        image_B = np.array([kept[(first + i) % len(kept)] for i in range(self.batch_size)])

        rng = np.random.default_rng([self.seed, 1, epoch, step, split.repeat, split.fold])
        partner_B, uniform_B = rng.permutation(self.batch_size), rng.random(self.batch_size)
        key_B = rng.random(self.batch_size)
        return {
            "image": image_B,
            "view": view_N[image_B],
            "partner": partner_B,
            "site_partner": self._within_sites(self.site_N[image_B], key_B),
            "uniform": uniform_B,
        }

    def dropout(
        self, split: PlainSplit, epoch: int, step: int, shape: tuple[int, ...], head_seed: int
    ) -> np.ndarray:
        """Uniforms of the shared layer; a head's own seed is part of the address unless it is 0."""
        own = [head_seed] if head_seed else []
        rng = np.random.default_rng([self.seed, 2, epoch, step, split.repeat, split.fold, *own])
        return rng.random(shape, np.float32)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The common order of the images, and the view each is shown under."""
        rng = np.random.default_rng([self.seed, 0, epoch])
        order = rng.permutation(len(self.site_N))
        return order, rng.integers(self.n_views, size=len(self.site_N))

    @staticmethod
    def _within_sites(site_B: np.ndarray, key_B: np.ndarray) -> np.ndarray:
        """The n-th sample of a site is mixed with the one whose key is the n-th of that site."""
        partner_B = np.arange(len(site_B))
        for site in set(site_B):
            members = np.flatnonzero(site_B == site)
            partner_B[members] = sorted(members, key=lambda i: key_B[i])
        return partner_B
