"""Rows of patch tokens by index, as numpy's arrays are indexed: what `store.patches` hands out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurestore.disk import durable
from featurestore.errors import InputError
from featurestore.read.catalog import Catalog
from featurestore.read.positions import bounded, is_integer, views_of
from featurestore.read.source import Source


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

    @property
    def photo_size(self) -> tuple[float, float]:
        """Width and height of the photograph, as the catalog has them."""
        return self.facts["width"], self.facts["height"]


def row_crcs(rows: ImageRows, patch_crc_V: Sequence[int] | None = None) -> np.ndarray:
    """(V,) uint32: CRC-32C of each row's bytes in the order cls, patches, pooled, stats.

    patch_crc_V : those of the patches alone, if they are known.
    """
    crc_V = durable.crc32c_rows(rows.cls_VTD)
    if rows.patches_VTPD is not None:
        append = durable.crc32c_append(rows.patches_VTPD[0].nbytes)
        if patch_crc_V is None:
            patch_crc_V = [durable.crc32c(row) for row in rows.patches_VTPD]
        both = zip(crc_V.tolist(), patch_crc_V, strict=True)
        crcs = [append(cls_crc, patch_crc) for cls_crc, patch_crc in both]
        crc_V = np.array(crcs, np.uint32)
    return durable.crc32c_rows(rows.pooled_VT5D, rows.stats_VS, start_N=crc_V)


class RowArray:
    """`store.patches`: (N, V, T, P, D) float16, indexed as numpy's arrays are.

    By integers, slices, None and Ellipsis.

    All of one image, and what is sliced from it, is a view of the file; images of a slice are
    gathered into a copy.

    A view is read-only. torch does not know read-only memory: a write into
    `torch.from_numpy(store.patches[i, v])` ends the process (SIGSEGV). Write into `.clone()` of it.

    require : raises unless these views of an image may be handed out.
    """

    def __init__(
        self,
        source: Source,
        catalog: Catalog,
        require: Callable[[int, Sequence[int]], None],
    ) -> None:
        self._source = source
        self._catalog = catalog
        self._require = require
        self._array = source.layout.extents["patches"].array
        self.dtype = np.dtype(self._array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._catalog.n_images, *self._array.shape[1:])

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
        # one row, by far the commonest key, comes without what other keys need: half the time
        if isinstance(key, tuple) and len(key) == 2 and type(key[0]) is type(key[1]) is int:
            image, view = key
            if 0 <= image < self._catalog.n_images and 0 <= view < self._array.shape[1]:
                self._require(image, (view,))
                return self._source.patches(image, (view,))[view]

        before, image, rest = self._parted(key if isinstance(key, tuple) else (key,))
        if is_integer(image):
            # one image, as if it were the only one: what numpy makes of the other indices is then
            # numpy's own
            image = bounded(image, len(self), "image")
            only_1VTPD = self._image(image, rest)[None]
            return only_1VTPD[(*before, 0, *rest)]

        takes_rest = all(is_integer(k) or k is None or isinstance(k, _SLICES) for k in rest)
        if not isinstance(image, slice) or not takes_rest:
            raise IndexError(
                "patches of several images take integers and slices; gather other rows with "
                "store.take(rows)"
            )

        images = range(len(self))[image]
        if images:
            rows = np.stack([self._image(i, rest)[rest] for i in images])
        else:
            # np.stack takes no empty list, and the rest still says which shape there is
            none_0VTPD = np.empty((0, *self.shape[1:]), self.dtype)
            rows = none_0VTPD[(slice(None), *rest)]

        # an Ellipsis among what comes before stands for no axis here: all axes are indexed then
        new_axes = [k for k in before if k is None]
        return rows[(*new_axes, ...)]

    def _parted(self, key: tuple) -> tuple[tuple, Any, tuple]:
        """A key as what comes before the image's index, that index, and what comes after."""
        # a bool adds an axis, as None does, and indexes none
        of_no_axis = [k is None or k is Ellipsis or isinstance(k, bool | np.bool_) for k in key]
        n = len(key) - sum(of_no_axis)
        # these two messages are numpy's own words
        if n > self.ndim:
            raise IndexError(
                "too many indices for array: "
                f"array is {self.ndim}-dimensional, but {n} were indexed"
            )
        if sum(k is Ellipsis for k in key) > 1:
            raise IndexError("an index can only have a single ellipsis ('...')")

        at = 0
        while at < len(key):
            # without an axis left to stand for, an ellipsis indexes none either
            indexes_none = key[at] is None or (key[at] is Ellipsis and n == self.ndim)
            if not indexes_none:
                break
            at += 1
        if at == len(key):
            return key, slice(None), ()
        # it stands for the images' axis, and in the rest for those that follow
        if key[at] is Ellipsis:
            return key[:at], slice(None), key[at:]
        return key[:at], key[at], key[at + 1 :]

    def _image(self, image: int, rest: tuple) -> np.ndarray:
        """(V, T, P, D) of one image, with the views that the rest of a key touches."""
        views = views_of(rest, self._array.shape[1])
        self._require(image, views)
        return self._source.patches(image, views)

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


_SLICES = (slice, type(Ellipsis))


def require_patches(source: Source) -> None:
    """InputError for a pooled store."""
    if not source.layout.spec.has_patches:
        raise InputError(
            f"{source.path}: a pooled store, it holds no patch tokens; build one with them"
        )
