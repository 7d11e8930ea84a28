"""Numbers of patch tokens on the photograph's grid, to be drawn over it: norms and similarities.

Grids are the whole photograph's: tiles side by side, the view's flips and transpose undone.
"""

from typing import Any

import numpy as np

from featurestore.errors import UsageError
from featurestore.explore.neighbours import Directions, most_similar
from featurestore.explore.pictures import on_photograph, photo_grid
from featurestore.store import FeatureStore

MOST_SIMILAR = 24
ROUND = 4  # decimals of what is drawn as colours


def on_grid(store: FeatureStore, image: int, view: int) -> np.ndarray:
    """(H, W, D) float16: a sealed row's patch tokens where they lie on the photograph; NaN in
    padding."""
    grid_HWD = on_photograph(store.patches[image, view], store.spec.tokens, view)
    photo_HW = photo_grid(store, image, view)
    if photo_HW is None:
        return grid_HWD
    return np.where(photo_HW[..., None], grid_HWD, np.float16(np.nan))


def norms(store: FeatureStore, image: int, view: int = 0) -> dict[str, Any]:
    """Norm of each patch token on the photograph's grid, row by row."""
    grid_HWD = on_grid(store, image, view).astype(np.float32)
    return _as_grid(np.linalg.norm(grid_HWD, axis=-1))


def similar(
    store: FeatureStore,
    image: int,
    patch: tuple[int, int],
    view: int = 0,
    k: int = 8,
    kept: Directions | None = None,
) -> dict[str, Any]:
    """Cosine of one patch with all patches of its photograph, and of the k nearest ones.

    patch : row and column on the photograph's grid. A row's tokens are in memory at a time, as
        float32. kept : see `featurestore.explore.neighbours.nearest`.
    UsageError for a patch that is not there or a k out of 0 to MOST_SIMILAR.
    """
    if not 0 <= k <= MOST_SIMILAR:
        raise UsageError(f"k={k}: number of other photographs, 0 to {MOST_SIMILAR}")
    own_HWD = on_grid(store, image, view).astype(np.float32)
    h, w = own_HWD.shape[:2]
    if not (0 <= patch[0] < h and 0 <= patch[1] < w):
        raise UsageError(
            f"patch={patch[0]},{patch[1]}: row 0 to {h - 1} and column 0 to {w - 1} of the "
            "photograph's grid"
        )
    token_D = own_HWD[patch]
    near = most_similar(store, image, k, view, kept)[0].tolist() if k else []
    found = []
    ids = store.catalog_rows(np.array(near, int))["image_id"]
    for other, image_id in zip(near, ids, strict=True):
        other_HWD = on_grid(store, other, view).astype(np.float32)
        cosine_HW = cosines(other_HWD, token_D)
        best = None
        at = None
        if np.isfinite(cosine_HW).any():  # nanargmax takes no grid of NaN alone
            row, column = np.unravel_index(np.nanargmax(cosine_HW), cosine_HW.shape)
            at = [int(row), int(column)]
            best = round(float(cosine_HW[row, column]), ROUND)
        other = {"image_id": image_id, "best": best, "at": at}
        found.append(other | _as_grid(cosine_HW))
    return _as_grid(cosines(own_HWD, token_D)) | {"others": found}


def cosines(grid_HWD: np.ndarray, token_D: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [-1, 1]; 0 where a token is, NaN where one is not finite."""
    x_PD = grid_HWD.reshape(-1, grid_HWD.shape[-1])
    own_P = np.sqrt(np.einsum("pd,pd->p", x_PD, x_PD))
    length_P = own_P * np.linalg.norm(token_D)
    with np.errstate(invalid="ignore"):  # what is not finite becomes NaN, and is said so
        cosine_P = x_PD @ token_D / np.maximum(length_P, np.finfo(np.float32).tiny)
    return cosine_P.clip(-1, 1).reshape(grid_HWD.shape[:2])


def _as_grid(values_HW: np.ndarray) -> dict[str, Any]:
    """A grid as rows, columns and values, row by row; null for what is not finite."""
    flat = values_HW.astype(np.float64).round(ROUND).ravel()
    is_finite = np.isfinite(flat)
    if not is_finite.all():
        flat = np.where(is_finite, flat, None)
    rows, columns = values_HW.shape
    return {
        "rows": rows,
        "columns": columns,
        "values": flat.tolist(),
    }
