"""What a sweep takes from a store besides patch tokens: checks, labels, class tokens, channel moments."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featurestore.errors import InputError, MismatchError
from featurestore.store import FeatureStore
from trainer.config import PointConfig
from trainer.heads import Inputs
from trainer.loss import Labels, labels_of
from trainer.stream import Batch, Split

LEAST_STD = 1e-2  # of a channel's size: half precision holds ten bits of a value, what varies less is mostly rounding


@dataclass(frozen=True)
class TrainingData:
    """A store open for training, and its labels; every image of it is used."""

    store: FeatureStore
    catalog: pd.DataFrame
    states: list[str]
    labels: Labels
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def open(cls, path: Path, config: PointConfig, dtype: torch.dtype, device: torch.device) -> "TrainingData":
        """InputError or MismatchError, before any step, for a store that is unfinished or not what the config expects."""
        store = FeatureStore.open(path)
        check_store(store, config)
        catalog = store.catalog
        states = sorted({state for state in catalog.get("State", []) if state})
        return cls(store, catalog, states, labels_of(catalog, states, dtype, device), dtype, device)

    @property
    def n_images(self) -> int:
        return len(self.catalog)

    @property
    def truth_N5(self) -> np.ndarray:
        return self.labels.masses_N5.double().cpu().numpy()

    def cls_tokens(self, batch: Batch) -> Tensor:
        """(Q, B, T, D) class tokens of each sample's own row."""
        rows_UTD = self.store.raw.cls[batch.rows_U2[:, 0], batch.rows_U2[:, 1]]
        return torch.from_numpy(rows_UTD).to(self.device, self.dtype)[torch.from_numpy(batch.own_QB)]

    def inputs(self, batch: Batch, rows: Sequence[Tensor]) -> Inputs:
        """A batch as a bank sees it, unmixed."""
        return Inputs(rows, batch.own_QB, self.cls_tokens(batch))

    def moments(self, splits: Sequence[Split]) -> dict[str, Tensor]:
        """Per split, mean and std (Q, D) of every channel of patches and of class tokens, over its training images alone.

        From the stored pooled rows, so no patch token is read.
        """
        pooled = self.store.pooled[..., :2, :].astype(np.float64)  # mean and std
        parts = {"": (pooled[..., 0, :], pooled[..., 1, :]), "cls_": (self.store.cls.astype(np.float64), 0.0)}
        moments = {}
        for prefix, (mean, std) in parts.items():
            first_ND, second_ND = mean.mean((1, 2)), (mean**2 + std**2).mean((1, 2))
            mean_QD = np.stack([first_ND[s.train_N].mean(0) for s in splits])
            square_QD = np.stack([second_ND[s.train_N].mean(0) for s in splits])
            variance_QD = np.maximum(square_QD - mean_QD**2, LEAST_STD**2 * square_QD + 1e-12)
            moments[f"{prefix}mean"], moments[f"{prefix}std"] = self._tensor(mean_QD), self._tensor(np.sqrt(variance_QD))
        return moments

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=self.dtype, device=self.device)


def check_store(store: FeatureStore, config: PointConfig) -> None:
    """MismatchError with both values where the config names something else than the store holds; all images must be sealed."""
    t = store.spec.tokens
    found = {"backbone.model_name": t.model, "backbone.hidden_dim": t.width, "backbone.num_patches": t.n_patches,
             "dataset.img_size": min(t.tile_height, t.tile_width), "dataset.num_aug_patterns": len(t.views)}
    for key, value in found.items():
        section, name = key.split(".")
        wanted = getattr(getattr(config, section), name)
        if wanted not in (None, value):
            raise MismatchError(f"{store.path}: {key} is {value!r}, the config says {wanted!r}; change one of the two")
    if not store.spec.has_patches:
        raise MismatchError(f"{store.path}: a pooled store; heads need patch tokens")
    if beyond := [i for i in config.inference.tta_indices if i >= len(t.views)]:
        raise InputError(f"inference.tta_indices: {beyond}, the store's {len(t.views)} views are numbered from 0")
    store.require_all()
