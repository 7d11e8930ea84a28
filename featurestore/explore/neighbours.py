"""Photographs that are alike, by their class tokens."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from featurestore.errors import UsageError
from featurestore.photos.candidates import could_be_targets
from featurestore.photos.targets import CSIRO, has_preset
from featurestore.read.reader import Reader

# of class tokens as float32 at a time: they stay in the cache, half the time of 16 MB
BLOCK_BYTES = 4 << 20


class Directions(NamedTuple):
    """Directions of photographs in one view, kept by who asks often."""

    images_N: np.ndarray
    direction_ND: np.ndarray
    """float32, zero where a mean over tiles is zero."""


def directions(store: Reader, view: int) -> Directions:
    """Those of all sealed images: 4 bytes a photograph and channel."""
    images_N = store.sealed
    direction_ND = np.empty((len(images_N), store.spec.tokens.width), np.float32)
    start = 0
    for block_nD in direction_blocks(store, images_N, view):
        direction_ND[start : start + len(block_nD)] = block_nD
        start += len(block_nD)
    return Directions(images_N, direction_ND)


def nearest(
    store: Reader,
    image: int | str,
    k: int = 5,
    view: int | str = 0,
    kept: Directions | None = None,
) -> pd.DataFrame:
    """The k sealed images whose class tokens in a view point where this one's do, itself left out.

    A photograph's direction is the mean over tiles of their unit vectors: a quadrat has no left and
    right, so its halves count alike and in any order. It is read in blocks: memory stays at some 30
    MB, whatever the number of images.

    kept : what `directions` made of this view, so that no token of another image is read.

    Returns a row an image, most similar first: image_id, similarity (cosine, in [-1, 1]), path, and
    the targets that the catalog has. Raises UsageError for k < 1, InputError if the image is not
    there or not sealed.
    """
    images_K, similarity_K = most_similar(store, image, k, view, kept)
    found = store.catalog_rows(images_K).assign(similarity=similarity_K)
    if has_preset(found.columns):
        labels = list(CSIRO.names)
    else:
        labels = [candidate.name for candidate in could_be_targets(store.catalog)]
    return found[["image_id", "similarity", "path", *labels]]


def most_similar(
    store: Reader,
    image: int | str,
    k: int = 5,
    view: int | str = 0,
    kept: Directions | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What `nearest` finds, as positions and cosines (float64): of no image a label is read."""
    if k < 1:
        raise UsageError(f"k {k}: number of images to return, 1 or more")
    i = store.index(image)
    v = store.view_index(view)
    store.require(i)
    images_N = store.sealed if kept is None else kept.images_N
    blocks = direction_blocks(store, images_N, v) if kept is None else [kept.direction_ND]
    (direction_1D,) = direction_blocks(store, np.array([i]), v)
    similar = [block_nD @ direction_1D[0] for block_nD in blocks]
    similarity_N = np.concatenate(similar).clip(-1, 1)

    is_other_N = images_N != i
    others_N = images_N[is_other_N]
    similarity_N = similarity_N[is_other_N]
    best_K = _greatest(similarity_N, k)
    return others_N[best_K], similarity_N[best_K].astype(float)


def _greatest(values_N: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k greatest values, ties in their order, NaN last."""
    candidates = np.arange(len(values_N))
    if k < len(values_N):
        # of a million, sorting all takes ten times as long
        least = -np.partition(-values_N, k - 1)[k - 1]
        if np.isfinite(least):
            candidates = np.flatnonzero(values_N >= least)
    order = np.argsort(-values_N[candidates], kind="stable")
    return candidates[order[:k]]


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
