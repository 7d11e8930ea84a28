"""A store as an xarray.Dataset with named axes, each array read where it is used."""

from typing import Any

import numpy as np

from featurestore.errors import UsageError
from featurestore.format.spec import POOLED, STATS
from featurestore.read.positions import views_of
from featurestore.read.reader import Reader

try:
    import xarray as xr
    from xarray.backends import BackendArray
    from xarray.core import indexing
except ModuleNotFoundError as err:
    if err.name != "xarray":
        raise
    raise UsageError(
        "to_xarray: xarray is not installed; pip install xarray (or biomass[xarray])"
    ) from err

NAMES = ("cls", "patches", "pooled", "stats", "thumbs")


class StoredArray(BackendArray):
    """One array of a store behind xarray's lazy indexing; pickled as the store's path."""

    def __init__(self, store: Reader, name: str) -> None:
        self._store = store
        self._name = name
        array = store.layout.extents[name].array
        self.shape = (store.n_images, *array.shape[1:])
        self.dtype = np.dtype(array.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(
            key,
            self.shape,
            indexing.IndexingSupport.OUTER,
            self._read,
        )

    def _read(self, key: tuple) -> np.ndarray:
        """Index each axis by its own integer, slice or array; a view if there is no array."""
        image, *rest = key
        one = isinstance(image, int | np.integer)
        if one:
            images = [int(image)]
        elif isinstance(image, np.ndarray):
            images = image.tolist()
        else:
            images = range(self.shape[0])[image]

        if self._name == "patches" or self._store.check == "first-touch":
            for each in images:
                self._store.require(each)
        if self._name != "patches":
            return _outer(self._store.array(self._name), key)
        if not images:
            nothing = np.empty((0, *self.shape[1:]), self.dtype)
            return _outer(nothing, (slice(None), *rest))
        views = views_of(tuple(rest), self.shape[1])
        source = self._store.source
        rows = [_outer(source.patches(each, views), rest) for each in images]
        return rows[0] if one else np.stack(rows)


def _outer(array: np.ndarray, key: Any) -> np.ndarray:
    """Apply integers and slices first, which read nothing; then arrays, views before channels."""
    first = [slice(None) if isinstance(k, np.ndarray) else k for k in key]
    array = array[tuple(first)]
    axis = 0
    for k in key:
        if isinstance(k, np.ndarray):
            array = array.take(k, axis)  # each axis by itself, as xarray's outer indexing wants
        # an integer's axis is gone already
        axis += not isinstance(k, int | np.integer)
    return array


def dataset(store: Reader) -> xr.Dataset:
    """Tokens, statistics and thumbnails of the sealed images.

    The catalog's columns are coordinates of `image`.

    Nothing is read before it is asked for: `.isel(image=3, view=1)` reads one row of patches, and
    what is not patches comes as views of the file. Images that are not sealed are left out; `image`
    says which are there. A column named like one of the arrays or axes is called catalog_NAME.
    """
    sealed = store.sealed
    if len(sealed) and len(sealed) == sealed[-1] + 1:
        sealed = slice(0, len(sealed))  # a slice of a map is a view
    arrays = {}
    for array in store.spec.arrays(store.n_images):
        if array.name in NAMES:
            arrays[array.name] = array.dims
    lazy = {
        name: xr.Variable(dims, indexing.LazilyIndexedArray(StoredArray(store, name)))
        for name, dims in arrays.items()
    }
    depends_on = store.spec.tokens.model_dump(mode="json", exclude={"views"})
    return xr.Dataset(
        {name: variable.isel(image=sealed) for name, variable in lazy.items()},
        _coordinates(store, sealed),
        {"store": str(store.path), "fingerprint": store.spec.fingerprint, **depends_on},
    )


def _coordinates(store: Reader, images: slice | np.ndarray) -> dict[str, Any]:
    """Names of images, views, poolings and statistics; a patch's place; the catalog."""
    t = store.spec.tokens
    catalog = store.catalog.iloc[images]
    row, column = np.divmod(np.arange(t.n_patches), t.grid[1])
    own = {
        "image": catalog["image_id"].to_numpy(object),
        "view": list(t.view_names),
        "pooling": list(POOLED),
        "stat": list(STATS),
    }
    if store.spec.has_patches:
        own |= {"patch_row": ("patch", row), "patch_column": ("patch", column)}
    taken = {*own, *NAMES, "tile", "patch", "channel", "thumb_row", "thumb_column", "colour"}
    columns = {
        name: values.to_numpy(object if values.dtype.kind not in "fi" else None)
        for name, values in catalog.items()
        if name != "image_id"
    }
    return own | {
        f"catalog_{name}" if name in taken else name: ("image", values)
        for name, values in columns.items()
    }
