"""Photographs in two dimensions, by the directions of their class tokens.

A map to look at: like ones lie beside each other.
"""

import importlib
import importlib.util
from collections.abc import Callable

import numpy as np
import pandas as pd

from featurestore.errors import UsageError
from featurestore.explore.neighbours import direction_blocks
from featurestore.explore.pictures import components
from featurestore.store import FeatureStore
from service.errors import ServiceError

# photographs that principal components are taken of, spread over the store: 50 MB at 1280 channels
SAMPLE = 10_000
# sealed images: minutes, and all their directions in memory
MOST = {"tsne": 20_000, "umap": 100_000}
FEWEST = 4  # t-SNE and UMAP need neighbours
DIGITS = 5


def image_map(store: FeatureStore, method: str = "pca", view: int = 0) -> pd.DataFrame:
    """image_id, position, x and y of every sealed image; one store, one map.

    NaN where its class token is not finite.

    method : `pca`, in blocks, whatever the number of images; `tsne` and `umap` up to MOST.
    UsageError for another method or too many images; ServiceError `not-installed`, naming the
    package, if a library is missing.
    """
    if method not in METHODS:
        raise UsageError(f"method={method}: choose {', '.join(METHODS)}")
    images_N = store.sealed
    if len(images_N) > MOST.get(method, len(images_N)):
        raise UsageError(
            f"method={method}: {len(images_N):,} sealed images, up to {MOST[method]:,} are drawn; "
            "use method=pca"
        )
    place_N2 = METHODS[method](store, images_N, view).astype(np.float64)
    place_N2 = place_N2.round(DIGITS) + 0.0  # -0 is 0
    ids = np.array(store.image_ids, object)[images_N]
    return pd.DataFrame(
        {"image_id": ids, "position": images_N, "x": place_N2[:, 0], "y": place_N2[:, 1]}
    )


def _pca(store: FeatureStore, images_N: np.ndarray, view: int) -> np.ndarray:
    """(N, 2): by the first two principal components, the largest loading of each positive."""
    n = len(images_N)
    spread = np.linspace(0, n - 1, min(n, SAMPLE)).astype(int)
    some_N = images_N[spread]
    sample_MD = _directions(store, some_N, view)
    sample_MD = sample_MD[np.isfinite(sample_MD).all(1)]
    place_N2 = np.full((len(images_N), 2), np.nan, np.float32)
    if not len(sample_MD):
        return place_N2
    # summed in float64, as float32 would lose digits over 10,000 rows
    mean_D = sample_MD.mean(0, dtype=np.float64).astype(np.float32)
    axes_DC = components(sample_MD - mean_D)[:, :2]
    start = 0
    for block_nD in direction_blocks(store, images_N, view):
        own = slice(start, start + len(block_nD))
        place_N2[own] = 0  # a store of one channel has one component
        place_N2[own, : axes_DC.shape[1]] = (block_nD - mean_D) @ axes_DC
        start = own.stop
    place_N2[~np.isfinite(place_N2).all(1)] = np.nan
    return place_N2


def _tsne(store: FeatureStore, images_N: np.ndarray, view: int) -> np.ndarray:
    tsne = _class("sklearn.manifold", "TSNE", "scikit-learn")

    def embed(x_ND: np.ndarray) -> np.ndarray:
        perplexity = min(30.0, (len(x_ND) - 1) / 3)  # scikit-learn wants less than the photographs
        return tsne(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(x_ND)

    return _embedded(store, images_N, view, embed)


def _umap(store: FeatureStore, images_N: np.ndarray, view: int) -> np.ndarray:
    umap = _class("umap", "UMAP", "umap-learn")

    def embed(x_ND: np.ndarray) -> np.ndarray:
        n = min(15, len(x_ND) - 1)
        # one thread: with a seed umap takes no more, and warns of others
        return umap(n_neighbors=n, metric="cosine", random_state=0, n_jobs=1).fit_transform(x_ND)

    return _embedded(store, images_N, view, embed)


METHODS = {"pca": _pca, "umap": _umap, "tsne": _tsne}
PACKAGES = {"umap": "umap", "tsne": "sklearn"}
"""What each needs beside this program."""


def offered() -> list[str]:
    """The methods whose packages are installed; none is imported."""
    return [name for name in METHODS if name not in PACKAGES or _is_there(PACKAGES[name])]


def _is_there(package: str) -> bool:
    try:
        found = importlib.util.find_spec(package)
    except ValueError:
        return False
    # a folder of that name on the path is a package too, an empty one
    return found is not None and found.origin is not None


def _embedded(
    store: FeatureStore,
    images_N: np.ndarray,
    view: int,
    embed: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """(N, 2): what `embed` makes of all directions that are finite."""
    x_ND = _directions(store, images_N, view)
    finite_N = np.isfinite(x_ND).all(1)
    if finite_N.sum() < FEWEST:
        raise UsageError(
            f"{finite_N.sum()} images with finite class tokens are too few for this method, "
            f"{FEWEST} or more are needed; use method=pca"
        )
    place_N2 = np.full((len(images_N), 2), np.nan)
    place_N2[finite_N] = embed(x_ND[finite_N])
    return place_N2


def _directions(store: FeatureStore, images_N: np.ndarray, view: int) -> np.ndarray:
    empty_0D = np.empty((0, store.spec.tokens.width), np.float32)
    return np.concatenate([empty_0D, *direction_blocks(store, images_N, view)])


def _class(module: str, name: str, package: str) -> type:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as err:
        # a folder of that name on the path is a module too, an empty one
        raise ServiceError(
            "not-installed",
            f"this map needs {package}, which is not installed where the server runs",
            f"pip install {package}, or take method=pca",
        ) from err
