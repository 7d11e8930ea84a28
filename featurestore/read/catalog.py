"""The catalog of a store: which images it has, their ids, and the columns of the CSV."""

import difflib
from bisect import bisect
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import InputError
from featurestore.format.spec import StoreSpec
from featurestore.read.positions import bounded
from featurestore.read.source import Source

if TYPE_CHECKING:
    import pandas as pd

# difflib takes some 10 us a name: of more, only those that begin like the one that is not there are
# compared
MANY_NAMES = 5000


class Catalog:
    """The catalog as it was when each part of it was first asked for, until `forget`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._spec = source.layout.spec

    @cached_property
    def n_images(self) -> int:
        """Images in the catalog, sealed or not; reserved rows are not counted."""
        return count_images(self._source.array("catalog/image_id"))

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """One row an image, in store order."""
        return self.rows(np.s_[: self.n_images])

    def rows(self, images: slice | np.ndarray) -> "pd.DataFrame":
        """Some images alone, read anew."""
        cells = [self._source.array(column.node)[images] for column in self._spec.columns]
        return catalog_frame(self._spec, cells)

    @cached_property
    def ids(self) -> list[str]:
        return texts(self._source.array("catalog/image_id")[: self.n_images])

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of each image by its id."""
        return dict(zip(self.ids, range(self.n_images), strict=True))

    def index(self, image: int | str) -> int:
        """Position of an image given by id or position."""
        if not isinstance(image, str):
            return bounded(image, self.n_images, "image")
        if image not in self.positions:
            raise InputError(f"{self._source.path}: no image {image!r}; {suggest(image, self.ids)}")
        return self.positions[image]

    def forget(self) -> None:
        """Read everything anew when it is next asked for."""
        for name in ("n_images", "frame", "ids", "positions"):
            self.__dict__.pop(name, None)


def count_images(ids_NW: np.ndarray) -> int:
    """Images in the catalog, up to the first place without an id.

    What follows was never finished.
    """
    used_N = ids_NW[:, 0] != 0
    return len(used_N) if used_N.all() else int(np.argmin(used_N))


def catalog_frame(spec: StoreSpec, cells: list[np.ndarray]) -> "pd.DataFrame":
    """One row an image, from the catalog's columns as stored."""
    import pandas as pd  # not at the top: .2 s that what asks for no table need not wait

    columns = {}
    for column, values in zip(spec.columns, cells, strict=True):
        columns[column.name] = texts(values) if column.kind == "text" else np.array(values)
    return pd.DataFrame(columns)


def texts(cells_NW: np.ndarray) -> list[str]:
    """Cells of a text column, W bytes each, decoded."""
    width = cells_NW.shape[1]
    cells = np.ascontiguousarray(cells_NW).view(f"S{width}")[:, 0].tolist()
    different = set(cells)
    if len(different) > len(cells) / 2:
        return _decoded(cells)
    # a text that many cells hold is decoded once, and one object
    known = dict(zip(different, _decoded(different), strict=True))
    return [known[cell] for cell in cells]


def _decoded(cells: Collection[bytes]) -> list[str]:
    try:
        return list(map(bytes.decode, cells))
    except UnicodeDecodeError:
        # a rotten byte must not keep the catalog from being read; the image's seal tells of it
        return [cell.decode(errors="replace") for cell in cells]


def row_name(source: Source, image: int, view: int) -> str:
    """A row's name and where it lies, for messages."""
    image_id = texts(source.array("catalog/image_id")[[image]])[0]
    name = source.layout.spec.tokens.view_names[view]
    return f"{source.place(image, view)}: image {image} ({image_id}), view {name!r}"


def suggest(name: str, names: list[str]) -> str:
    """What to say of a name that is not among names: those like it, or a few of them."""
    if len(names) > MANY_NAMES:
        ordered = sorted(names)
        at = bisect(ordered, name)
        names = ordered[max(0, at - MANY_NAMES // 2) : at + MANY_NAMES // 2]
    close = difflib.get_close_matches(name, names, 3, 0.5)
    return f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(names[:3])}, ..."
