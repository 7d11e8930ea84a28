"""Rows of a store by index and by name: what `store.patches` and `store["ID..."]` hand out."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from featurestore.store import FeatureStore


@dataclass(frozen=True)
class ImageRows:
    """All rows of one image, C-contiguous, and the facts found while reading the photograph.

    cls_VTD, patches_VTPD (None in a pooled store) float16; pooled_VT5D float32 or float16; stats_VS float64; thumb_HW3 uint8 or
    None.
    """

    cls_VTD: np.ndarray
    patches_VTPD: np.ndarray | None
    pooled_VT5D: np.ndarray
    stats_VS: np.ndarray
    thumb_HW3: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Catalog cells: sha256, width, height, status."""


class RowArray:
    """`store.patches`: (N, V, T, P, D) float16, indexed as numpy's arrays are, by integers, slices, None and Ellipsis.

    All of one image, and what is sliced from it, is a view of the file; images of a slice are gathered into a copy.
    """

    def __init__(self, store: "FeatureStore") -> None:
        self._store, self._array = store, store.layout.extents["patches"].array
        self.dtype = np.dtype(self._array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._store.n_images, *self._array.shape[1:])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        image, *rest = self._expanded(key if isinstance(key, tuple) else (key,))
        if image is None:
            return self[tuple(rest)][None]
        if isinstance(image, int | np.integer):
            return self._image(bounded(image, len(self), "image"))[tuple(rest)]
        if not all(isinstance(k, int | np.integer | slice | None) for k in (image, *rest)):
            raise IndexError("patches of several images take integers and slices; gather other rows with store.take(rows)")
        images = range(len(self))[image]
        if not images:
            return np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]
        return np.stack([self._image(i)[tuple(rest)] for i in images])

    def _expanded(self, key: tuple) -> tuple:
        """A key whose first entry is the image's: an Ellipsis becomes the slices it stands for."""
        n = sum(k is not None and k is not Ellipsis for k in key)
        if n > self.ndim:
            raise IndexError(f"too many indices for array: array is {self.ndim}-dimensional, but {n} were indexed")
        if Ellipsis in [k for k in key if k is Ellipsis]:
            at = next(i for i, k in enumerate(key) if k is Ellipsis)
            key = (*key[:at], *(slice(None),) * (self.ndim - n), *key[at + 1:])
        return key or (slice(None),)

    def _image(self, image: int) -> np.ndarray:
        self._store.require(image)
        return self._store.image_patches(image)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("patches of all images lie in no one block of memory; take a copy, or one image")
        return np.asarray(self[:], dtype)

    def __repr__(self) -> str:
        return f"<patches {self.shape} {self.dtype}: image, view, tile, patch, channel; [i, v] is a view of the file>"


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
