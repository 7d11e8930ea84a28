"""What a sweep takes from a store besides patch tokens: checks, labels, class tokens, channel moments."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featurestore.errors import InputError, MismatchError
from featurestore.spec import POOLED
from featurestore.store import FeatureStore
from trainer.config import PointConfig
from trainer.heads import Inputs
from trainer.loss import Labels, labels_of
from trainer.pooling import in_half
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
    half: bool
    """Multiply tokens in half precision."""

    @classmethod
    def open(cls, path: Path, config: PointConfig, dtype: torch.dtype, device: torch.device) -> "TrainingData":
        """InputError or MismatchError, before any step, for a store that is unfinished or not what the config expects."""
        store = FeatureStore.open(path)
        check_store(store, config)
        catalog = store.catalog
        states = sorted({state for state in catalog.get("State", []) if state})
        return cls(store, catalog, states, labels_of(catalog, states, dtype, device), dtype, device,
                   in_half(device, config.trainer.use_amp, dtype))

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

    def pooled_rows(self, batch: Batch) -> Tensor:
        """(Q, B, T, 5, D) pooled vectors of each sample's own row."""
        rows_UT5D = self.store.raw.pooled[batch.rows_U2[:, 0], batch.rows_U2[:, 1]]
        return torch.from_numpy(rows_UT5D).to(self.device, self.dtype)[torch.from_numpy(batch.own_QB)]

    def inputs(self, batch: Batch, rows: Sequence[Tensor], pooled: bool) -> Inputs:
        """A batch as a bank sees it, unmixed; with pooled rows if any bank reads them."""
        return Inputs(rows, batch.own_QB, self.cls_tokens(batch), self.pooled_rows(batch) if pooled else None, half=self.half)

    def features(self, names: Sequence[str], view: int) -> np.ndarray:
        """(N, F) float64 of every image, averaged over tiles: what regressors are fitted on, and predict from."""
        return pooled_features(self.store.cls[:, view], self.store.pooled[:, view], names)

    def moments(self, splits: Sequence[Split], parts: Collection[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per split, mean and std (Q, D) of every channel of "patch", "cls" or pooled vectors, over its training images alone.

        From the stored pooled rows, so no patch token is read.
        """
        moments = {}
        for part in parts:
            first_ND, second_ND = self._means(part)
            mean_QD = np.stack([first_ND[s.train_N].mean(0) for s in splits])
            square_QD = np.stack([second_ND[s.train_N].mean(0) for s in splits])
            variance_QD = np.maximum(square_QD - mean_QD**2, LEAST_STD**2 * square_QD + 1e-12)
            moments[part] = self._tensor(mean_QD), self._tensor(np.sqrt(variance_QD))
        return moments

    def _means(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) each image's mean and mean square of a part, over views and tiles (and patches)."""
        if part == "cls":
            mean, std = self.store.cls.astype(np.float64), 0.0
        elif part == "patch":
            mean, std = (self.store.pooled[..., POOLED.index(name), :].astype(np.float64) for name in ("mean", "std"))
        else:
            mean, std = self.store.pooled[..., POOLED.index(part), :].astype(np.float64), 0.0
        return mean.mean((1, 2)), (mean**2 + std**2).mean((1, 2))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=self.dtype, device=self.device)


def pooled_features(cls_NTD: np.ndarray, pooled_NT5D: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(N, F) the named vectors one after another, float64, averaged over tiles."""
    vectors = {"cls": cls_NTD} | {name: pooled_NT5D[:, :, i] for i, name in enumerate(POOLED)}
    return np.concatenate([np.asarray(vectors[name], np.float64).mean(1) for name in names], 1)


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
