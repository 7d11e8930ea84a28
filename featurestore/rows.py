"""Rows of a store by index and by name: what `store.patches` and `store["ID..."]` hand out."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from featurestore.store import FeatureStore


class RowArray:
    """`store.patches`: (N, V, T, P, D) float16, indexed by image and view; one row is a view of the file.

    Further indices go on within the row. Slices over images or views gather a copy.
    """

    def __init__(self, store: "FeatureStore") -> None:
        self._store, self._array = store, store.layout.extents["patches"].array
        self.dtype = np.dtype(self._array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._store.n_images, *self._array.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        key = key if isinstance(key, tuple) else (key,)
        image, view = (*key, slice(None))[:2]
        if isinstance(image, int | np.integer) and isinstance(view, int | np.integer):
            image, view = bounded(image, self.shape[0], "image"), bounded(view, self.shape[1], "view")
            self._store.require(image)
            row = self._store._patch_row(image, view)
            return row[key[2:]] if len(key) > 2 else row
        return self._rows(image, view, key[2:])

    def _rows(self, image: Any, view: Any, rest: tuple) -> np.ndarray:
        if not all(isinstance(k, int | np.integer | slice) for k in (image, view)):
            raise IndexError("patches take integers or slices for image and view; gather other rows with store.take(rows)")
        images, views = np.arange(self.shape[0])[image], np.arange(self.shape[1])[view]
        rows = np.empty((np.size(images), np.size(views), *self.shape[2:]), self.dtype)
        for (i, v), row in zip(itertools.product(np.ravel(images), np.ravel(views)), rows.reshape(-1, *self.shape[2:]),
                               strict=True):
            row[...] = self[int(i), int(v)]
        rows = rows.reshape(*np.shape(images), *np.shape(views), *self.shape[2:])
        return rows[(slice(None),) * (np.ndim(images) + np.ndim(views)) + rest]


class ImageTokens:
    """One photograph of a store: its labels and the tokens of its views, by view name or position."""

    def __init__(self, store: "FeatureStore", image: int) -> None:
        self._store, self._image = store, image

    @property
    def labels(self) -> pd.Series:
        return self._store.catalog.iloc[self._image]

    def patches(self, view: int | str = 0) -> np.ndarray:
        """(T, P, D) float16, zero copy, read-only."""
        return self._store.patches[self._image, self._store.view_index(view)]

    def grid(self, view: int | str = 0) -> np.ndarray:
        """(T, h, w, D) float16: the patches where they lie on each tile, zero copy."""
        patches_TPD = self.patches(view)
        return patches_TPD.reshape(len(patches_TPD), *self._store.spec.tokens.grid, -1)

    def cls(self, view: int | str = 0) -> np.ndarray:
        """(T, D) float16."""
        return self._small("cls", view)

    def pooled(self, view: int | str = 0) -> np.ndarray:
        """(T, 5, D) float32."""
        return self._small("pooled", view)

    @property
    def thumb(self) -> np.ndarray:
        """(h, w, 3) uint8."""
        self._store.require(self._image)
        return self._store.array("thumbs")[self._image]

    def _small(self, name: str, view: int | str) -> np.ndarray:
        self._store.require(self._image)
        return self._store.array(name)[self._image, self._store.view_index(view)]

    def __repr__(self) -> str:
        return f"{self.labels['image_id']}: views {', '.join(self._store.view_names)}\n{self.labels.to_string()}"


def bounded(index: Any, n: int, what: str) -> int:
    index = int(index)
    if not -n <= index < n:
        raise IndexError(f"{what} {index} is out of bounds, there are {n}")
    return index % n
