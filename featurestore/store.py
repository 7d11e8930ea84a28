"""FeatureStore: the face of a store, for programs and notebooks. Reading only.

What it says and shows is made in `explore`, whole stores are gone through in `manage`; everything
else is the reader's.
"""

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featurestore.explore.photograph import ImageTokens
from featurestore.read.open import open_reader
from featurestore.read.reader import Reader

if TYPE_CHECKING:
    import pandas as pd

    from featurestore.manage.verify import VerifyReport

# What needs pandas or Pillow, or writes stores, is imported when it is first used: opening a store
# needs none of them.


class FeatureStore(Reader):
    """A store open for reading: cheap to open, safe to fork, pickled as address and fingerprint.

    check : "seal" trusts sealed bytes (rot is found by `verify`); "first-touch" also compares each
        row's CRC-32C once.
    """

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        check: Literal["seal", "first-touch"] = "seal",
        *,
        cache: str | os.PathLike | None = None,
        cache_bytes: int | None = None,
    ) -> "FeatureStore":
        """Open the store at path, HDF5 file or Zarr folder, or at a server's URL.

        A URL looks like http://host:port/v1/stores/name.

        cache, cache_bytes : of a URL, the folder in which fetched rows are kept ($BIOMASS_CACHE or
            ~/.cache/biomass), and how much of it they may take (20 GB).

        InputError if it is something else; StoreDamaged if a file is missing, cut or not as its
        spec says.
        """
        return open_reader(path, check, cache=cache, cache_bytes=cache_bytes, kind=cls)

    def __getitem__(self, image: int | str) -> ImageTokens:
        return ImageTokens(self, self.index(image))

    def __len__(self) -> int:
        return self.n_images

    def __contains__(self, image_id: object) -> bool:
        """Whether the catalog has an image of this id, sealed or not."""
        return image_id in self.images.positions

    def __repr__(self) -> str:
        from featurestore.explore.facts import store_text

        return store_text(self)

    def _repr_html_(self) -> str:
        from featurestore.explore.cards import store_html

        return store_html(self)

    def _ipython_key_completions_(self) -> list[str]:
        return self.image_ids

    def stats(self) -> "pd.DataFrame":
        """Count, mean, std, min, max, mean norm and non-finite values of all sealed images.

        A row per view and token kind; no token is read.
        """
        import pandas as pd

        from featurestore.explore.statistics import stats

        return pd.DataFrame(stats(self))

    def to_json(self) -> str:
        """Spec, fingerprint and counts, for machines."""
        from featurestore.explore.facts import store_json

        return store_json(self)

    def nearest(self, image: int | str, k: int = 5, view: int | str = 0) -> "pd.DataFrame":
        """The k sealed images most like this one by their class tokens.

        See featurestore.explore.neighbours.
        """
        from featurestore.explore.neighbours import nearest

        return nearest(self, image, k, view)

    def pca(self, image: int | str, view: int | str = 0, scale: int = 1) -> np.ndarray:
        """(H, W, 3) uint8: the photograph's patch tokens as colours, a patch a pixel.

        See featurestore.explore.pictures.
        """
        from featurestore.explore.pictures import pca

        return pca(self, image, view, scale)

    def to_xarray(self) -> Any:
        """The sealed images as an xarray.Dataset whose arrays are read when they are used.

        See featurestore.explore.xarray.
        """
        from featurestore.explore.xarray import dataset

        return dataset(self)

    def verify(self) -> "VerifyReport":
        """Read every byte once and report every bad row; see featurestore.manage.verify."""
        from featurestore.manage.verify import verify

        return verify(self)
