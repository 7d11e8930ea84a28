"""One photograph of a store, by name: what `store["ID..."]` and `store["ID..."]["hflip"]` are."""

from typing import TYPE_CHECKING

import numpy as np

from featurestore.read.reader import Reader

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image


class ImageTokens:
    """One photograph of a store: its labels, and its views' tokens by name or position."""

    def __init__(self, store: Reader, image: int) -> None:
        self._store = store
        self._image = image

    @property
    def labels(self) -> "pd.Series":
        frame = self._store.catalog_rows(np.s_[self._image : self._image + 1])
        return frame.iloc[0].rename(self._image)

    def patches(self, view: int | str = 0) -> np.ndarray:
        """(T, P, D) float16, zero copy, read-only."""
        return self._store.patches[self._image, self._store.view_index(view)]

    def grid(self, view: int | str = 0) -> np.ndarray:
        """(T, h, w, D) float16: the patches where they lie on each tile, zero copy."""
        patches_TPD = self.patches(view)
        return patches_TPD.reshape(len(patches_TPD), *self._store.spec.tokens.grid, -1)

    def photo(self, view: int | str = 0) -> np.ndarray:
        """(T, P) bool: which patches hold any of the photograph; all, but with `--fit pad`."""
        from featurestore.explore.pictures import row_photo

        photo_TP = row_photo(self._store, self._image, self._store.view_index(view))
        t = self._store.spec.tokens
        return np.ones((t.n_tiles, t.n_patches), bool) if photo_TP is None else photo_TP

    def cls(self, view: int | str = 0) -> np.ndarray:
        """(T, D) float16."""
        return self._vector("cls", view)

    def pooled(self, view: int | str = 0) -> np.ndarray:
        """(T, 5, D) float32."""
        return self._vector("pooled", view)

    def _vector(self, name: str, view: int | str) -> np.ndarray:
        self._store.require(self._image)
        return self._store.array(name)[self._image, self._store.view_index(view)]

    @property
    def thumb(self) -> np.ndarray:
        """(h, w, 3) uint8."""
        self._store.require(self._image)
        return self._store.array("thumbs")[self._image]

    def pca(self, view: int | str = 0, scale: int = 1) -> np.ndarray:
        """(H, W, 3) uint8: the patch tokens as colours, see `FeatureStore.pca`."""
        from featurestore.explore.pictures import pca

        return pca(self._store, self._image, view, scale)

    def show(self, view: int | str = 0) -> "Image":
        """A PIL picture: the thumbnail beside the patch tokens as colours.

        InputError if the store has neither.
        """
        from featurestore.explore.pictures import show

        return show(self._store, self._image, view)

    def __len__(self) -> int:
        return len(self._store.view_names)

    def __getitem__(self, view: int | str) -> "RowView":
        return RowView(self, self._store.view_names[self._store.view_index(view)])

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._store.view_names)

    def __repr__(self) -> str:
        labels = self.labels
        views = ", ".join(self._store.view_names)
        return f"{labels['image_id']}: views {views}\n{labels.to_string()}"

    def _repr_html_(self) -> str:
        from featurestore.explore.cards import image_html

        return image_html(self._store, self._image)


class RowView:
    """One view, `store["ID..."]["hflip"]`: what ImageTokens gives for it, as attributes."""

    def __init__(self, image: ImageTokens, view: str) -> None:
        self._image = image
        self.view = view

    @property
    def patches(self) -> np.ndarray:
        """(T, P, D) float16, zero copy, read-only."""
        return self._image.patches(self.view)

    @property
    def grid(self) -> np.ndarray:
        """(T, h, w, D) float16, zero copy, read-only."""
        return self._image.grid(self.view)

    @property
    def photo(self) -> np.ndarray:
        """(T, P) bool, see `ImageTokens.photo`."""
        return self._image.photo(self.view)

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
            f"<{self._image.labels['image_id']}, view {self.view!r}: .patches .grid .photo "
            ".cls .pooled .show()>"
        )
