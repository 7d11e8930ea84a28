"""One store of a sweep: where its used images lie, their class tokens and pooled vectors, and the
moments of these."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.counts import count_of, for_count
from featurestore.errors import MismatchError, list_some
from featurestore.format.spec import POOLED, TokenSpec
from featurestore.photos.find import spelled_as
from featurestore.store import FeatureStore
from trainer.data.stream import Split

BLOCK_BYTES = 16 << 20
"""Converted to float64 at a time: a store may hold a million images, of which a sum is wanted."""

LEAST_STD = 1e-2
"""Of a channel's size: half precision holds ten bits, so what varies less is mostly rounding."""


@dataclass(frozen=True)
class UsedStore:
    """An open store, and the images of it that a sweep uses, which the sweep numbers from 0."""

    store: FeatureStore
    images_N: np.ndarray
    """Each one's position in the store."""
    check: bool = True
    """Compare every row with its checksum before it is used first."""

    @classmethod
    def beside(cls, path: Path | str, catalog: pd.DataFrame, check: bool = True) -> "UsedStore":
        """Another store of the photographs in a catalog.

        MismatchError for an image that it lacks, or made from another photograph.
        """
        store = FeatureStore.open(path)
        images_N = _same_images(store, catalog)
        return cls(store, images_N, check)

    @property
    def tokens(self) -> TokenSpec:
        return self.store.spec.tokens

    def stored(self, rows_U2: np.ndarray) -> np.ndarray:
        """The same rows, their images by position in the store."""
        images_U, views_U = rows_U2.T
        return np.stack([self.images_N[images_U], views_U], 1)

    def check_rows(self, stored_U2: np.ndarray, patches: bool) -> None:
        """StoreDamaged if a row about to be used is not what was committed; patches: its patch
        tokens are used too."""
        if self.check:
            self.store.check_rows(stored_U2, patches)

    def rows(self, name: str, rows_U2: np.ndarray) -> np.ndarray:
        """(U, T, ...) class tokens ("cls") or pooled vectors ("pooled") of some rows."""
        images_U, views_U = self.stored(rows_U2).T
        return self.store.array(name)[images_U, views_U]

    def photo(self, rows_U2: np.ndarray) -> np.ndarray | None:
        """(U, T, P) bool: which patches of some rows hold any of the photograph; None: all do."""
        t = self.tokens
        if t.fit != "pad":
            return None
        from featurestore.photos.padding import photo_patches  # no Pillow where nothing is padded

        photo_UTP = np.ones((len(rows_U2), t.n_tiles, t.n_patches), bool)
        width_N = self.store.array("catalog/width")
        height_N = self.store.array("catalog/height")
        for u, (image, view) in enumerate(self.stored(rows_U2).tolist()):
            key = width_N[image], height_N[image], view
            if key not in self._photos:  # there are few sizes, and many rows
                self._photos[key] = photo_patches(t, t.views[view], *key[:2])
            photo_TP = self._photos[key]
            if photo_TP is not None:
                photo_UTP[u] = photo_TP
        return photo_UTP

    @cached_property
    def _photos(self) -> dict[tuple, np.ndarray | None]:
        """`photo_patches` by width, height and view."""
        return {}

    def feature(self, name: str, view: int, images_n: np.ndarray) -> np.ndarray:
        """(n, D) float64 of some images, "cls" or a pooled vector, averaged over tiles."""
        stored_n = self.images_N[images_n]
        rows_n2 = np.stack([stored_n, np.full(len(stored_n), view)], 1)
        self.check_rows(rows_n2, patches=False)
        cls_NTD = self.store.array("cls")[:, view]
        pooled_NT5D = self.store.array("pooled")[:, view]
        return pooled_features(cls_NTD, pooled_NT5D, [name], stored_n)

    def moments(self, splits: Sequence[Split], part: str) -> tuple[np.ndarray, np.ndarray]:
        """Per split, mean and std (Q, D) of every channel of "patch", "cls" or a pooled vector,
        over its training images alone.

        From the stored pooled rows, so no patch token is read.
        """
        # over each split's training images: sums of their mean and of their mean square
        sums_Q2D = np.zeros((len(splits), 2, self.tokens.width))
        for block in _blocks(len(self.images_N), self.store.array("cls")[0].size):
            means_n2D = self._means(part, self.images_N[block])
            for q, split in enumerate(splits):
                train_N = split.train_N
                inside_N = (train_N >= block.start) & (train_N < block.stop)
                own_n2D = means_n2D[train_N[inside_N] - block.start]
                # the sum so far as the first row: images are added one after another, wherever
                # blocks end
                sums_Q2D[q] = np.concatenate([sums_Q2D[q][None], own_n2D]).sum(0)

        n_Q1 = np.array([[len(split.train_N)] for split in splits])
        mean_QD = sums_Q2D[:, 0] / n_Q1
        square_QD = sums_Q2D[:, 1] / n_Q1
        # rounding may make the difference negative; the last term keeps a channel of zeros
        variance_QD = np.maximum(square_QD - mean_QD**2, LEAST_STD**2 * square_QD + 1e-12)
        return mean_QD, np.sqrt(variance_QD)

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
        over_image = [each.mean((1, 2)) for each in (mean, square)]
        return np.stack(over_image, 1)

    def _vector(self, name: str, stored_n: np.ndarray) -> np.ndarray:
        """(n, V, T, D) one pooled vector."""
        # the vector first, as a view: only then are rows read
        vector_NVTD = self.store.array("pooled")[..., POOLED.index(name), :]
        return vector_NVTD[stored_n].astype(np.float64)


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
            of_block_nTD = vectors[name][images_n[block]].astype(np.float64)
            x_nMD[block, k] = of_block_nTD.mean(1)
    return x_nMD.reshape(len(images_n), -1)


def _blocks(n: int, size: int) -> Iterator[slice]:
    """Spans of n images, each of `size` float64 numbers, that are converted at once."""
    step = max(1, BLOCK_BYTES // (8 * size))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _same_images(store: FeatureStore, catalog: pd.DataFrame) -> np.ndarray:
    """Positions in the store of the catalog's images, which must be of the same photographs."""
    sealed_N = np.asarray(store.sealed)
    known = store.catalog["image_id"].iloc[sealed_N]
    position = dict(zip(known, sealed_N, strict=True))
    ids = spelled_as(catalog["image_id"].tolist(), known)
    if missing := [image_id for image_id in ids if image_id not in position]:
        raise MismatchError(
            f"{store.path}: lacks tokens of {count_of(len(missing), 'image')} that the first store "
            "of dataset.stores has; build them, or name the images that all stores have with "
            f"--images:{list_some(missing)}"
        )
    images_N = np.array([position[image_id] for image_id in ids])
    found = store.catalog["sha256"].iloc[images_N]
    # ids alone would not do: a photograph that was edited since keeps its id
    differ = []
    for image_id, theirs, ours in zip(ids, found, catalog["sha256"], strict=True):
        if theirs != ours:
            both = f"sha256 {theirs or 'unknown'}, in the first store {ours or 'unknown'}"
            differ.append(f"{image_id}: {both}")
    if differ:
        are = for_count(len(differ), "is", "are")
        raise MismatchError(
            f"{store.path}: {count_of(len(differ), 'image')} {are} of other photographs than in "
            "the first store of dataset.stores; build both from the same photographs:"
            f"{list_some(differ)}"
        )
    return images_N
