"""What a sweep takes from a store besides patch tokens: labels, class tokens, channel moments."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featurestore.errors import InputError, MismatchError, list_some
from featurestore.format.spec import POOLED
from featurestore.photos.find import spelled_as
from featurestore.store import FeatureStore
from trainer.config.sections import PointConfig
from trainer.data.stream import Batch, Split
from trainer.heads.bank import HeadKind, Inputs
from trainer.heads.loss import Labels, labels_of
from trainer.heads.pooling import in_half

BLOCK_BYTES = 16 << 20
"""Converted to float64 at a time: a store may hold a million images, of which a sum is wanted."""

LEAST_STD = 1e-2
"""Of a channel's size: half precision holds ten bits, so what varies less is mostly rounding."""


@dataclass(frozen=True)
class TrainingData:
    """A store open for training, and its labels.

    Positions of images are those in `catalog`, which holds the images that are used.
    """

    store: FeatureStore
    images_N: np.ndarray
    """Each one's position in the store."""
    catalog: pd.DataFrame
    states: list[str]
    labels: Labels
    dtype: torch.dtype
    device: torch.device
    half: bool
    """Multiply tokens in half precision."""
    check: bool = True
    """Compare every row with its checksum before it is used first."""

    @classmethod
    def open(
        cls,
        path: Path | str,
        config: PointConfig,
        dtype: torch.dtype,
        device: torch.device,
        check: bool = True,
    ) -> "TrainingData":
        """InputError or MismatchError for a store that is unfinished or not what was expected."""
        store = FeatureStore.open(path)
        check_store(store, config)
        images_N = used_images(store, config.dataset.images)
        catalog = store.catalog.iloc[images_N].reset_index(drop=True)
        states = sorted({state for state in catalog.get("State", []) if state})
        return cls(
            store,
            images_N,
            catalog,
            states,
            labels_of(catalog, states, dtype, device),
            dtype,
            device,
            in_half(device, config.trainer.use_amp, dtype),
            check,
        )

    @property
    def n_images(self) -> int:
        return len(self.catalog)

    @property
    def truth_N5(self) -> np.ndarray:
        return self.labels.masses_N5.double().cpu().numpy()

    def stored(self, rows_U2: np.ndarray) -> np.ndarray:
        """The same rows, their images by position in the store."""
        return np.stack([self.images_N[rows_U2[:, 0]], rows_U2[:, 1]], 1)

    def cls_tokens(self, batch: Batch) -> Tensor:
        """(Q, B, T, D) class tokens of each sample's own row."""
        return self._own("cls", batch)

    def pooled_rows(self, batch: Batch) -> Tensor:
        """(Q, B, T, 5, D) pooled vectors of each sample's own row."""
        return self._own("pooled", batch)

    def _own(self, name: str, batch: Batch) -> Tensor:
        images_U, views_U = self.stored(batch.rows_U2).T
        rows_U = torch.from_numpy(self.store.array(name)[images_U, views_U])
        return rows_U.to(self.device, self.dtype)[torch.from_numpy(batch.own_QB)]

    def check_rows(self, stored_U2: np.ndarray, patches: bool) -> None:
        """StoreDamaged if a row about to be used is not what was committed; patches: its patch
        tokens are used too."""
        if self.check:
            self.store.check_rows(stored_U2, patches)

    def inputs(self, batch: Batch, rows: Sequence[Tensor], kinds: Collection[HeadKind]) -> Inputs:
        """A batch as banks of these kinds see it, unmixed; with pooled rows if one reads them.

        StoreDamaged, before any of them learns from it, if a row is not what was committed.
        """
        reads_patches = any(kind.reads_patches for kind in kinds)
        self.check_rows(self.stored(batch.rows_U2), reads_patches)
        reads_pooled = any(kind.reads_pooled for kind in kinds)
        return Inputs(
            rows,
            batch.own_QB,
            self.cls_tokens(batch),
            self.pooled_rows(batch) if reads_pooled else None,
            half=self.half,
        )

    def features(self, names: Sequence[str], view: int, images_n: np.ndarray) -> np.ndarray:
        """(n, F) float64 features of some images for a regressor, averaged over tiles."""
        stored_n = self.images_N[images_n]
        rows_n2 = np.stack([stored_n, np.full(len(stored_n), view)], 1)
        self.check_rows(rows_n2, patches=False)
        cls_NTD = self.store.array("cls")[:, view]
        pooled_NT5D = self.store.array("pooled")[:, view]
        return pooled_features(cls_NTD, pooled_NT5D, names, stored_n)

    def moments(
        self, splits: Sequence[Split], parts: Collection[str]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Per split, mean and std (Q, D) of every channel of "patch", "cls" or pooled vectors, over
        its training images alone.

        From the stored pooled rows, so no patch token is read.
        """
        moments = {}
        n_Q1 = np.array([[len(split.train_N)] for split in splits])
        for part in parts:
            # over each split's training images: sums of their mean and of their mean square
            sums_Q2D = np.zeros((len(splits), 2, self.store.spec.tokens.width))
            for block in _blocks(self.n_images, self.store.array("cls")[0].size):
                means_n2D = self._means(part, self.images_N[block])
                for q, split in enumerate(splits):
                    train_N = split.train_N
                    inside_N = (train_N >= block.start) & (train_N < block.stop)
                    own_n2D = means_n2D[train_N[inside_N] - block.start]
                    # the sum so far as the first row: images are added one after another, wherever
                    # blocks end
                    sums_Q2D[q] = np.concatenate([sums_Q2D[q][None], own_n2D]).sum(0)

            mean_QD = sums_Q2D[:, 0] / n_Q1
            square_QD = sums_Q2D[:, 1] / n_Q1
            # rounding may make the difference negative; the last term keeps a channel of zeros
            variance_QD = np.maximum(square_QD - mean_QD**2, LEAST_STD**2 * square_QD + 1e-12)
            moments[part] = self._tensor(mean_QD), self._tensor(np.sqrt(variance_QD))
        return moments

    def _means(self, part: str, stored_n: np.ndarray) -> np.ndarray:
        """(n, 2, D) each image's mean and mean square of a part, over views, tiles and patches."""
        views_V = np.arange(len(self.store.view_names))
        rows_nV2 = np.stack(np.meshgrid(stored_n, views_V, indexing="ij"), -1)
        self.check_rows(rows_nV2.reshape(-1, 2), patches=False)
        std = 0.0
        if part == "cls":
            mean = self.store.array("cls")[stored_n].astype(np.float64)
        elif part == "patch":  # of each row's patches; E[x^2] = mean^2 + std^2
            mean = self._vector("mean", stored_n)
            std = self._vector("std", stored_n)
        else:
            mean = self._vector(part, stored_n)
        square = mean**2 + std**2
        return np.stack([mean.mean((1, 2)), square.mean((1, 2))], 1)

    def _vector(self, name: str, stored_n: np.ndarray) -> np.ndarray:
        """(n, V, T, D) one pooled vector."""
        vector_NVTD = self.store.array("pooled")[..., POOLED.index(name), :]
        return vector_NVTD[stored_n].astype(np.float64)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=self.dtype, device=self.device)


def pooled_features(
    cls_NTD: np.ndarray,
    pooled_NT5D: np.ndarray,
    names: Sequence[str],
    images_n: np.ndarray | None = None,
) -> np.ndarray:
    """(n, F) float64: the named vectors of some images or all, joined and averaged over tiles.

    M = len(names), F = M D. What is not named is not read; the result apart, one block of a vector
    is in memory.
    """
    vectors = {"cls": cls_NTD}
    for i, name in enumerate(POOLED):
        vectors[name] = pooled_NT5D[:, :, i]
    images_n = np.arange(len(cls_NTD)) if images_n is None else images_n
    x_nMD = np.empty((len(images_n), len(names), cls_NTD.shape[-1]))
    for k, name in enumerate(names):
        for block in _blocks(len(images_n), cls_NTD[0].size if len(cls_NTD) else 1):
            x_nMD[block, k] = vectors[name][images_n[block]].astype(np.float64).mean(1)
    return x_nMD.reshape(len(images_n), -1)


def _blocks(n: int, size: int) -> Iterator[slice]:
    """Spans of n images, each of `size` float64 numbers, that are converted at once."""
    step = max(1, BLOCK_BYTES // (8 * size))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def used_images(store: FeatureStore, ids: Sequence[str] = ()) -> np.ndarray:
    """Store positions of the images to learn from, in store order.

    ids : those of some images alone. Without any, all but those its build was told to go without,
        which a warning names.

    InputError for an image that is not built yet, ids that have no tokens, or where no image is
    left.
    """
    if ids:
        sealed_N = np.asarray(store.sealed)
        known = store.catalog["image_id"].iloc[sealed_N]
        ids = spelled_as(ids, known)
        if unknown := sorted(set(ids) - set(known)):
            raise InputError(
                f"{store.path}: has no such images, or no tokens of them (dataset.images, "
                f"--images):{list_some(unknown)}"
            )
        return sealed_N[known.isin(ids).to_numpy()]

    skipped = store.skipped
    images_N = np.setdiff1d(np.arange(store.n_images), skipped)
    for image in np.setdiff1d(images_N, store.sealed):
        store.require(int(image))
    if not len(images_N):
        raise InputError(
            f"{store.path}: no image to learn from, {len(skipped)} were skipped; build again with "
            "their photographs"
        )
    if skipped:
        ids = store.catalog["image_id"][skipped].tolist()
        warnings.warn(
            f"{store.path}: {len(skipped)} of {store.n_images} images have no tokens and are left "
            f"out, their photographs were missing or damaged when it was built:{list_some(ids, 5)}",
            stacklevel=2,
        )
    return images_N


def check_store(store: FeatureStore, config: PointConfig) -> None:
    """MismatchError with both values where the config names something else than the store holds."""
    tokens = store.spec.tokens
    found = {
        "backbone.model_name": tokens.model,
        "backbone.hidden_dim": tokens.width,
        "backbone.num_patches": tokens.n_patches,
        "dataset.img_size": min(tokens.tile_height, tokens.tile_width),
        "dataset.num_aug_patterns": len(tokens.views),
    }
    for key, value in found.items():
        section, name = key.split(".")
        wanted = getattr(getattr(config, section), name)
        if wanted not in (None, value):
            raise MismatchError(
                f"{store.path}: {key} is {value!r}, the config says {wanted!r}; "
                "change one of the two"
            )
    n_views = len(tokens.views)
    if beyond := [i for i in config.inference.tta_indices if i >= n_views]:
        names = ", ".join(view.name for view in tokens.views)
        raise InputError(
            f"inference.tta_indices: {beyond}, the store has {n_views} views, numbered from 0 "
            f"({names}); name some of these, inference: {{tta_indices: [0]}} say"
        )
