"""Photographs that are alike, by their class tokens."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from featurestore.errors import UsageError
from featurestore.photos.candidates import could_be_targets
from featurestore.photos.targets import CSIRO, has_preset
from featurestore.read.reader import Reader

# of class tokens as float32 at a time: they stay in the cache, half the time of 16 MB
BLOCK_BYTES = 4 << 20


def nearest(
    store: Reader,
    image: int | str,
    k: int = 5,
    view: int | str = 0,
) -> pd.DataFrame:
    """The k sealed images whose class tokens in a view point where this one's do, itself left out.

    A photograph's direction is the mean over tiles of their unit vectors: a quadrat has no left and
    right, so its halves count alike and in any order. It is read in blocks: memory stays at some 30
    MB, whatever the number of images.

    Returns a row an image, most similar first: image_id, similarity (cosine, in [-1, 1]), path, and
    the targets that the catalog has. Raises UsageError for k < 1, InputError if the image is not
    there or not sealed.
    """
    if k < 1:
        raise UsageError(f"k {k}: number of images to return, 1 or more")
    i = store.index(image)
    v = store.view_index(view)
    store.require(i)
    others_N = store.sealed[store.sealed != i]
    (direction_1D,) = direction_blocks(store, np.array([i]), v)
    similar = [block_nD @ direction_1D[0] for block_nD in direction_blocks(store, others_N, v)]
    # of no block at all there is no array to put together
    none = np.empty(0, np.float32)
    similarity_N = np.concatenate([none, *similar]).clip(-1, 1)

    best = np.argsort(-similarity_N, kind="stable")[:k]  # ties in store order
    found = store.catalog_rows(others_N[best])
    found = found.assign(similarity=similarity_N[best].astype(float))
    if has_preset(store.catalog.columns):
        labels = list(CSIRO.names)
    else:
        labels = [candidate.name for candidate in could_be_targets(store.catalog)]
    return found[["image_id", "similarity", "path", *labels]]


def direction_blocks(store: Reader, images_N: np.ndarray, view: int) -> Iterator[np.ndarray]:
    """(n, D) float32 directions of photographs, a block of images at a time, see `nearest`.

    Zero where a mean over tiles is zero.
    """
    t = store.spec.tokens
    cls_NVTD = store.array("cls")
    block = max(1, BLOCK_BYTES // (4 * t.n_tiles * t.width))
    for start in range(0, len(images_N), block):
        some = images_N[start : start + block]
        cls_nTD = cls_NVTD[some, view].astype(np.float32)
        # of each tile first, so that no tile counts more for its longer token
        mean_nD = _unit(cls_nTD).mean(1)
        yield _unit(mean_nD)


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.maximum(norm, np.finfo(np.float32).tiny)
