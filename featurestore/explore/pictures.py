"""Patch tokens as pictures: colours by principal components, laid over the photograph.

Functions of an open store; `FeatureStore` and `ImageTokens` have a method for each. No torch.
"""

import numpy as np
from PIL import Image

from featurestore.errors import InputError, UsageError
from featurestore.format.spec import TokenSpec, ViewSpec
from featurestore.photos.padding import photo_patches
from featurestore.read.reader import Reader

SHOW_HEIGHT, SHOW_GAP = 256, 8  # pixels
GRAY = 128  # a colour that tells nothing
# a few outlying tokens (ViTs have them, Darcet et al. 2023) must not take the whole scale
PERCENTILES = (2, 98)


def pca(
    store: Reader,
    image: int | str,
    view: int | str = 0,
    scale: int = 1,
) -> np.ndarray:
    """The first three principal components of a photograph's patch tokens as red, green and blue.

    Tiles lie as in the photograph (halves: left | right), flips are undone, so pictures of all
    views can be laid over it. The loading of largest magnitude of a component is positive; its
    percentiles 2 and 98 become 0 and 255.

    Parameters
    ----------
    scale : pixels along each side of a patch.

    Returns (scale * h, scale * T * w, 3) uint8; gray where tokens do not differ, and in padding.
    InputError in a pooled store or for an image that is not sealed.
    """
    if scale < 1:
        raise UsageError(f"scale {scale}: pixels along a patch, 1 or more")
    i = store.index(image)
    v = store.view_index(view)
    grid_HWD = on_photograph(store.patches[i, v], store.spec.tokens, v)
    rgb_HW3 = colours(grid_HWD, photo_grid(store, i, v))
    return rgb_HW3.repeat(scale, 0).repeat(scale, 1)


def on_photograph(patches_TPD: np.ndarray, tokens: TokenSpec, view: int) -> np.ndarray:
    """(H, W, D): a row's patches where they lie on the photograph.

    Tiles are where the crop cut them; the view's flips and transpose are undone.
    """
    spec = tokens.views[view]
    # as the view left them: a transpose exchanged rows and columns
    h, w = tokens.grid[:: -1 if spec.transpose else 1]
    grid_ThwD = patches_TPD.reshape(-1, h, w, patches_TPD.shape[-1])
    return tokens.laid_out(upright_grid(grid_ThwD, spec))


def row_photo(store: Reader, image: int, view: int) -> np.ndarray | None:
    """`photo_patches` of a row of a store."""
    size = (store.array(f"catalog/{name}")[image] for name in ("width", "height"))
    return photo_patches(store.spec.tokens, store.spec.tokens.views[view], *size)


def photo_grid(store: Reader, image: int, view: int) -> np.ndarray | None:
    """(H, W) bool: where `on_photograph` has no padding; None where it has none at all."""
    photo_TP = row_photo(store, image, view)
    if photo_TP is None:
        return None
    return on_photograph(photo_TP[..., None], store.spec.tokens, view)[..., 0]


def upright_grid(grid_ThwD: np.ndarray, view: ViewSpec) -> np.ndarray:
    """What `views.make_view` did to each tile, undone: flips came last."""
    if view.hflip:
        grid_ThwD = np.flip(grid_ThwD, 2)
    if view.vflip:
        grid_ThwD = np.flip(grid_ThwD, 1)
    return grid_ThwD.swapaxes(1, 2) if view.transpose else grid_ThwD


def colours(grid_HWD: np.ndarray, photo_HW: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) uint8 by principal components; see `pca`. photo_HW : where padding is not."""
    if photo_HW is not None:
        rgb_HW3 = np.full((*photo_HW.shape, 3), GRAY, np.uint8)
        of_photo_1ND = grid_HWD[photo_HW][None]  # as one row of patches
        rgb_HW3[photo_HW] = colours(of_photo_1ND)[0]
        return rgb_HW3

    x_ND = grid_HWD.reshape(-1, grid_HWD.shape[-1])
    # the mean in float64 is exact, so what is constant becomes zero and not noise that would be
    # scaled up to colours
    mean_D = x_ND.mean(0, dtype=np.float64)
    centred_ND = x_ND.astype(np.float32) - mean_D.astype(np.float32)
    parts_NC = centred_ND @ components(centred_ND)
    low_C, high_C = np.percentile(parts_NC, PERCENTILES, axis=0)
    span_C = high_C - low_C
    # a component that hardly varies beside the first is noise, and stays gray
    tells_C = span_C > 1e-4 * max(span_C[0], np.finfo(np.float32).tiny)
    rgb_N3 = np.full((len(x_ND), 3), GRAY, np.uint8)
    share_NC = (parts_NC[:, tells_C] - low_C[tells_C]) / span_C[tells_C]
    rgb_N3[:, np.flatnonzero(tells_C)] = (255 * share_NC.clip(0, 1)).round()
    return rgb_N3.reshape(*grid_HWD.shape[:2], 3)


def components(x_ND: np.ndarray, extra: int = 8, rounds: int = 8) -> np.ndarray:
    """(D, 3 or fewer) float32: leading right singular vectors, signs fixed.

    Subspace iteration from a fixed start (Halko et al. 2011, algorithm 4.4): a full-size row takes
    a tenth of an SVD's time.
    """
    n = min(3 + extra, *x_ND.shape)
    start_Dn = np.random.default_rng(0).standard_normal((x_ND.shape[1], n))
    basis_Dn = start_Dn.astype(np.float32)
    for _ in range(rounds):
        # orthogonal again each time, or all columns would turn to the first component
        basis_Dn = np.linalg.qr(basis_Dn)[0]
        basis_Dn = np.linalg.qr(x_ND.T @ (x_ND @ basis_Dn))[0]
    turn_nn = np.linalg.svd(x_ND @ basis_Dn, full_matrices=False)[2]
    loadings_DC = basis_Dn @ turn_nn[:3].T
    # a singular vector's sign is arbitrary: the largest entry is made positive, on every machine
    place_C = np.abs(loadings_DC).argmax(0)
    largest_C = loadings_DC[place_C, range(loadings_DC.shape[1])]
    sign_C = np.where(largest_C < 0, -1, 1)
    return loadings_DC * sign_C.astype(np.float32)


def show(store: Reader, image: int | str, view: int | str = 0) -> Image.Image:
    """A picture about 256 pixels high: the thumbnail, and right of it the patch tokens.

    Tokens as colours, see `pca`. Whichever of the two there is.

    InputError if the store has neither, or the image is not sealed.
    """
    shown = pictures(store, store.index(image), store.view_index(view))
    parts = list(shown.values())  # of one height
    width = sum(part.width + SHOW_GAP for part in parts) - SHOW_GAP
    whole = Image.new("RGBA", (width, parts[0].height))  # any background shows through the gap
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + SHOW_GAP
    return whole


def pictures(store: Reader, image: int, view: int) -> dict[str, Image.Image]:
    """Thumbnail and tokens at one size, by the format that keeps each well and small."""
    store.require(image)
    pictures = {}
    n_rows = 1
    if store.spec.has_patches:
        tokens_HW3 = pca(store, image, view)
        n_rows = len(tokens_HW3)
    height = n_rows * max(1, round(SHOW_HEIGHT / n_rows))  # whole pixels a patch
    width = max(1, round(height * aspect(store, image)))
    if store.spec.thumb:
        pictures["JPEG"] = resized(store.array("thumbs")[image], width, height)
    if store.spec.has_patches:
        pictures["PNG"] = resized(tokens_HW3, width, height, Image.Resampling.NEAREST)
    if not pictures:
        raise InputError(
            f"{store.path}: neither thumbnails nor patch tokens are stored, there is nothing to "
            "show; build a store with one of them"
        )
    return pictures


def aspect(store: Reader, image: int) -> float:
    """Width / height of what tiles show of the photograph; thumbnails are of one shape."""
    t = store.spec.tokens
    if t.fit or t.crop == "center":
        rows, columns = t.tile_grid
        return columns * t.tile_width / (rows * t.tile_height)
    width, height = (float(store.array(f"catalog/{name}")[image]) for name in ("width", "height"))
    if not (width > 0 and height > 0):  # of imported tokens nobody may know
        width = t.n_tiles * t.tile_width
        height = t.tile_height
    # a catalog may say anything; a picture must stay a picture
    return min(max(width / height, 0.1), 10.0)


def resized(
    pixels_HW3: np.ndarray,
    width: int,
    height: int,
    method: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels_HW3)).resize((width, height), method)
