"""Pastures the demo backbone learns from: drawn squares, and the grams under each patch.

Seeds, sites and lights are others than the demo's: its seeds are small numbers, these are millions;
its light varies by a twentieth, this one by three times as much.
"""

import io
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import numpy as np
from PIL import Image

from featurestore.backbone.demo.drawing import (
    G_PER_CM2,
    JPEG_QUALITY,
    Photo,
    draw_photo,
    plan_pasture,
)
from featurestore.backbone.demo.leaves import QUADRAT_CM, RGB, Layer, leaf_cm2
from featurestore.photos.crop import Crop

MASSES = ["Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g"]
PER_SEED = 60  # photographs drawn of one seed: some eleven sites, of all States


@dataclass(frozen=True)
class Pastures:
    """N photographs as their two halves side by side, and what grows on them.

    pixels_NHW3 : (N, H, 2 H, 3) uint8.
    grams_NGhw : (N, 3, h, 2 h) float32, MASSES of each patch: of every leaf the part that lies
        there, hidden or not.
    """

    pixels_NHW3: np.ndarray
    grams_NGhw: np.ndarray


def draw_pastures(
    n: int,
    seed: int,
    side: int,
    patch: int,
    strange: bool,
    workers: int | None = None,
) -> Pastures:
    """Draw n photographs from `seed` on, in squares of `side` pixels.

    One seed gives one result, whatever `workers` is.
    """
    photos = [
        (first, photo)
        for first in range(seed, seed + -(-n // PER_SEED))
        for photo in plan_pasture(first, PER_SEED, 0)
    ][:n]
    draw = partial(_draw, side=side, patch=patch, strange=strange)
    if workers == 1:
        return _stacked(map(draw, photos))
    # not by fork, which would copy the locks of torch's threads, but not the threads
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return _stacked(pool.map(draw, photos, chunksize=8))


def _stacked(drawn: Iterable[tuple[np.ndarray, np.ndarray]]) -> Pastures:
    return Pastures(*(np.stack(arrays) for arrays in zip(*drawn, strict=True)))


def _draw(
    seed_and_photo: tuple[int, Photo],
    side: int,
    patch: int,
    strange: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """One photograph's pixels and grams."""
    seed, photo = seed_and_photo
    rng = np.random.default_rng([seed, 4, int(photo.image_id[2:])])
    layers, picture = draw_photo(rng, made_strange(rng, photo) if strange else photo)

    # through a file and back: the demo's photographs make that trip too, and lose as much
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=JPEG_QUALITY)
    photograph = np.asarray(Image.open(file).convert("RGB"))

    left, right = Crop("halves", side, side, "bicubic")(photograph)
    cells = side // patch
    grams_Ghw = np.stack([grams_per_patch(layers[name], cells) for name in MASSES])
    return np.concatenate([left, right], 1), grams_Ghw


def made_strange(rng: np.random.Generator, photo: Photo) -> Photo:
    """The same kinds of plants, often more, on a soil, in a tint and a light that no demo has."""
    site = photo.site
    masses_3 = np.array([photo.clover_g, photo.dead_g, photo.green_g])
    # the heaviest are the rarest
    clover_g, dead_g, green_g = masses_3 * min(rng.uniform(0.6, 2.2), 190 / masses_3.sum())
    return replace(
        photo,
        clover_g=clover_g,
        dead_g=dead_g,
        green_g=green_g,
        site=replace(
            site,
            soil_rgb=_tinted(rng, site.soil_rgb),
            green_rgb=_tinted(rng, site.green_rgb),
            brightness=rng.uniform(0.85, 1.15),
            contrast=rng.uniform(0.88, 1.12),
            warmth=rng.uniform(-0.09, 0.09),
        ),
    )


def _tinted(rng: np.random.Generator, rgb: RGB) -> RGB:
    return tuple(np.array(rgb) * rng.uniform(0.93, 1.07, 3))


def grams_per_patch(layer: Layer, cells: int) -> np.ndarray:
    """(cells, 2 cells) float32 grams; a leaf's mass is shared evenly by its outline's corners.

    A blade is as long as three patches; where its middle lies alone would be noise to a patch that
    sees its tip.
    """
    n_corners = layer.outline_SE2.shape[1]
    grams_S = G_PER_CM2 * leaf_cm2(layer.outline_SE2) / n_corners
    x_X, y_X = layer.outline_SE2.reshape(-1, 2).T
    grid, _, _ = np.histogram2d(
        y_X,
        x_X,
        (cells, 2 * cells),
        weights=np.repeat(grams_S, n_corners),
        range=((0, QUADRAT_CM[1]), (0, QUADRAT_CM[0])),
    )
    return grid.astype(np.float32)
