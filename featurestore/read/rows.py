"""Rows of a store by index and by name: what `store.patches` and `store["ID..."]` hand out."""

import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featurestore.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from featurestore.store import FeatureStore


@dataclass(frozen=True)
class ImageRows:
    """All rows of one image, C-contiguous, and the facts found while reading the photograph.

    cls_VTD, patches_VTPD (None in a pooled store) float16; pooled_VT5D float32 or float16; stats_VS
    float64; thumb_HW3 uint8 or None.
    """

    cls_VTD: np.ndarray
    patches_VTPD: np.ndarray | None
    pooled_VT5D: np.ndarray
    stats_VS: np.ndarray
    thumb_HW3: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Catalog cells: sha256, width, height, status."""


class RowArray:
    """`store.patches`: (N, V, T, P, D) float16, indexed as numpy's arrays are, by integers, slices,
    None and Ellipsis.

    All of one image, and what is sliced from it, is a view of the file; images of a slice are
    gathered into a copy.

    A view is read-only. torch does not know read-only memory: a write into
    `torch.from_numpy(store.patches[i, v])` ends the process (SIGSEGV). Write into `.clone()` of it.
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

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        before, image, rest = self._parted(key if isinstance(key, tuple) else (key,))
        if _is_integer(image):
            # one image, as if it were the only one: what numpy makes of the other indices is then
            # numpy's own
            return self._image(bounded(image, len(self), "image"), rest)[None][(*before, 0, *rest)]
        if not isinstance(image, slice) or not all(
            _is_integer(k) or k is None or isinstance(k, _SLICES) for k in rest
        ):
            raise IndexError(
                "patches of several images take integers and slices; gather other rows with "
                "store.take(rows)"
            )
        images = range(len(self))[image]
        empty_NVTPD = np.empty((0, *self.shape[1:]), self.dtype)
        rows = (
            np.stack([self._image(i, rest)[rest] for i in images])
            if images
            else empty_NVTPD[(slice(None), *rest)]
        )
        return rows[(*(k for k in before if k is None), ...)]

    def _parted(self, key: tuple) -> tuple[tuple, Any, tuple]:
        """A key as what comes before the image's index, that index, and what comes after."""
        n = sum(
            k is not None and k is not Ellipsis and not isinstance(k, bool | np.bool_) for k in key
        )
        if n > self.ndim:
            raise IndexError(
                f"too many indices for array: array is {self.ndim}-dimensional, but {n} were "
                "indexed"
            )
        if sum(k is Ellipsis for k in key) > 1:
            raise IndexError("an index can only have a single ellipsis ('...')")
        at = 0
        while at < len(key) and (key[at] is None or (key[at] is Ellipsis and n == self.ndim)):
            at += 1
        if at == len(key):
            return key, slice(None), ()
        # it stands for the images' axis, and in the rest for those that follow
        if key[at] is Ellipsis:
            return key[:at], slice(None), key[at:]
        return key[:at], key[at], key[at + 1 :]

    def _image(self, image: int, rest: tuple) -> np.ndarray:
        self._store.require(
            image, asked_views(rest, self.shape[1]) if self._store.check == "first-touch" else ()
        )
        return self._store.image_patches(image, rest)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "patches of all images lie in no one block of memory; take a copy, or one image"
            )
        return np.asarray(self[:], dtype)

    def __repr__(self) -> str:
        return (
            f"<patches {self.shape} {self.dtype}: image, view, tile, patch, channel; [i, v] is "
            "a view of the file>"
        )


class ImageTokens:
    """One photograph of a store: its labels and the tokens of its views, by view name or
    position."""

    def __init__(self, store: "FeatureStore", image: int) -> None:
        self._store, self._image = store, image

    @property
    def labels(self) -> pd.Series:
        return (
            self._store.catalog_rows(np.s_[self._image : self._image + 1])
            .iloc[0]
            .rename(self._image)
        )

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

    def pca(self, view: int | str = 0, scale: int = 1) -> np.ndarray:
        """(H, W, 3) uint8: the patch tokens as colours, see `FeatureStore.pca`."""
        return self._store.pca(self._image, view, scale)

    def show(self, view: int | str = 0) -> "Image":
        """A PIL picture: the thumbnail beside the patch tokens as colours. InputError if the store
        has neither."""
        from featurestore.explore.pictures import show

        return show(self._store, self._image, view)

    @property
    def thumb(self) -> np.ndarray:
        """(h, w, 3) uint8."""
        self._store.require(self._image)
        return self._store.array("thumbs")[self._image]

    def _small(self, name: str, view: int | str) -> np.ndarray:
        self._store.require(self._image)
        return self._store.array(name)[self._image, self._store.view_index(view)]

    def __len__(self) -> int:
        return len(self._store.view_names)

    def __getitem__(self, view: int | str) -> "RowView":
        return RowView(self, self._store.view_names[self._store.view_index(view)])

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._store.view_names)

    def __repr__(self) -> str:
        labels = self.labels
        return (
            f"{labels['image_id']}: views {', '.join(self._store.view_names)}\n{labels.to_string()}"
        )

    def _repr_html_(self) -> str:
        from featurestore.explore.pictures import image_html

        return image_html(self._store, self._image)


class RowView:
    """One view of a photograph, `store["ID..."]["hflip"]`: what ImageTokens gives for it, as
    attributes."""

    def __init__(self, image: ImageTokens, view: str) -> None:
        self._image, self.view = image, view

    @property
    def patches(self) -> np.ndarray:
        """(T, P, D) float16, zero copy, read-only."""
        return self._image.patches(self.view)

    @property
    def grid(self) -> np.ndarray:
        """(T, h, w, D) float16, zero copy, read-only."""
        return self._image.grid(self.view)

    @property
    def cls(self) -> np.ndarray:
        """(T, D) float16."""
        return self._image.cls(self.view)

    @property
    def pooled(self) -> np.ndarray:
        """(T, 5, D) float32."""
        return self._image.pooled(self.view)

    def show(self) -> "Image":
        """A PIL picture, see `ImageTokens.show`."""
        return self._image.show(self.view)

    def __repr__(self) -> str:
        return (
            f"<{self._image.labels['image_id']}, view {self.view!r}: .patches .grid .cls "
            ".pooled .show()>"
        )


def asked_views(asked: tuple, n_views: int) -> list[int]:
    """Positions of the views of an image that an index touches: those of an integer, a slice or a
    list; of all else, all."""
    first = next((key for key in asked if key is not None), Ellipsis)
    every = np.arange(n_views)
    if isinstance(first, bool | np.bool_) or first is Ellipsis:
        return every.tolist()
    try:
        return np.unique(every[first]).tolist()
    except IndexError:  # numpy says what is wrong with it, and needs no row for that
        return [] if np.ndim(first) == 0 else every.tolist()


_SLICES = (slice, type(Ellipsis))
PAIRS = (
    "give pairs of positions, (image, view), e.g. store.take([(3, 0), (7, 2)]); of some images' "
    "first view "
    "[(i, 0) for i in positions]"
)


def _is_integer(index: Any) -> bool:
    """Whether numpy would take it as the index of one row: no mask, no array of several."""
    if isinstance(index, bool | np.bool_) or (
        isinstance(index, np.ndarray) and (index.ndim or index.dtype == bool)
    ):
        return False
    try:
        operator.index(index)
    except TypeError:
        return False
    return True


def pairs_of(rows_B2: Any) -> np.ndarray:
    """(B, 2) integers, pairs of image and view, as given; UsageError for anything else."""
    try:
        rows = np.asarray(rows_B2)
    except ValueError as err:  # of different lengths
        raise UsageError(f"rows: {err}; {PAIRS}") from err
    if rows.size == 0 and rows.dtype != bool:
        return np.empty((0, 2), int)
    if rows.dtype == bool:
        raise UsageError(
            f"rows: a mask of shape {rows.shape}; {PAIRS}, of a mask of images and views "
            "np.argwhere(mask)"
        )
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu":
        raise UsageError(f"rows: {rows.dtype} of shape {rows.shape}; {PAIRS}")
    return rows


def bounded(index: Any, n: int, what: str) -> int:
    """A position from 0; IndexError if there are not so many, UsageError for what is no integer
    (true and false are none)."""
    if not _is_integer(index):
        raise UsageError(
            f"{what} {index!r}: neither a name nor a position; give an id or an integer"
        )
    index = operator.index(index)
    if not -n <= index < n:
        raise IndexError(f"{what} {index} is out of bounds, there are {n}")
    return index % n
