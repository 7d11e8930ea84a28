"""Looking at a store from a shell or a notebook: what it says of itself, tokens as pictures,
photographs that are alike.

Functions of an open store; `FeatureStore` and `ImageTokens` have a method for each. Reading only,
and no torch.
"""

import base64
import io
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from featurestore.errors import BiomassError, InputError, UsageError
from featurestore.format.spec import POOLED, TokenSpec, ViewSpec
from featurestore.photos.catalog import TARGETS

if TYPE_CHECKING:
    from featurestore.store import FeatureStore

CARD_THUMBS, CARD_THUMB_HEIGHT = 8, 60
CARD_STATS_ROWS = 8  # of more, the table is folded
SHOW_HEIGHT, SHOW_GAP = 256, 8  # pixels
# of class tokens as float32 at a time: they stay in the cache, half the time of 16 MB
BLOCK_BYTES = 4 << 20
GRAY = 128  # a colour that tells nothing
# a few outlying tokens (ViTs have them, Darcet et al. 2023) must not take the whole scale
PERCENTILES = (2, 98)


# -- what it says of itself


def facts(store: "FeatureStore") -> dict[str, str]:
    """What one asks first of a store; nothing is read but ids, states and seals, no seal is
    checked."""
    t, n = store.spec.tokens, store.n_images
    rounded = "" if t.dtype == "float16" else f", patches rounded to {t.dtype}"
    rows = (
        f"1 + {t.grid[0]} x {t.grid[1]}" if store.spec.has_patches else f"1 + {len(POOLED)} pooled"
    )
    return {
        "images": f"{n} images x {len(t.views)} views, {store.n_sealed} sealed / {n} total, "
        f"{_n_skipped(store)} skipped, "
        f"room for {store.layout.n}",
        "tokens": f"{t.n_tiles} tile(s) x ({rows}) x {t.width} float16{rounded}"
        + ("" if store.spec.has_patches else "; pooled only, no patch tokens"),
        "size": _size_text(store.size_bytes),
        "backbone": f"{t.model}, layers {list(t.layers)}",
        "tiles": f"{t.crop}, {t.tile_height} x {t.tile_width} pixels, {t.grid[0]} x {t.grid[1]} "
        f"patches of {t.patch_size}"
        + (f"; 16-bit photographs read as {t.bits} bits" if t.bits else ""),
        "views": ", ".join(t.view_names),
        "fingerprint": store.spec.fingerprint[:12],
    }


def store_text(store: "FeatureStore") -> str:
    """The facts, one a line."""
    return "\n".join(
        [
            f"FeatureStore {store.path}",
            *(f"  {name:<11}  {text}" for name, text in facts(store).items()),
        ]
    )


def _n_skipped(store: "FeatureStore") -> int:
    cells_NW = np.ascontiguousarray(store.array("catalog/status")[: store.n_images])
    status_N = cells_NW.view(f"S{cells_NW.shape[1]}")[:, 0]
    return int(
        np.count_nonzero(
            (status_N != b"") & (status_N != b"ok") & (store.array("seal")[: store.n_images] == 0)
        )
    )


def _size_text(n_bytes: int) -> str:
    unit = next((power for power in (9, 6, 3) if n_bytes >= 10**power), 0)
    return f"{n_bytes / 10**unit:.3g} {({9: 'GB', 6: 'MB', 3: 'kB', 0: 'bytes'})[unit]}"


def store_html(store: "FeatureStore") -> str:
    """A notebook's card: facts, some thumbnails, statistics. It needs nothing from outside and sets
    no colours."""
    stats = store.stats()
    table = _table(stats.columns, stats.to_numpy(object))
    unfolded = " open" if len(stats) <= CARD_STATS_ROWS else ""
    return _card(
        f"FeatureStore {store.path}",
        _facts_table(facts(store))
        + _thumb_strip(store)
        + f"<details{unfolded}><summary>statistics of the sealed images</summary>{table}</details>",
    )


def image_html(store: "FeatureStore", image: int) -> str:
    """A notebook's card of one image: its picture, or why there is none, and its labels."""
    labels = store[image].labels
    try:
        shown = "".join(
            f'<img src="{_data_uri(picture, kind)}" style="max-width:100%">'
            for kind, picture in _pictures(store, image, 0).items()
        )
    except BiomassError as err:
        shown = f"<div>{escape(str(err))}</div>"
    shown = f'<div style="display:flex;flex-wrap:wrap;gap:{SHOW_GAP}px">{shown}</div>'
    return _card(
        f"{labels['image_id']}: views {', '.join(store.view_names)}",
        shown + _facts_table(labels.to_dict()),
    )


def _card(title: str, body: str) -> str:
    return (
        '<div style="border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:.6em '
        '.9em;max-width:max-content">'
        f'<div style="font-weight:600;margin-bottom:.4em">{escape(title)}</div>{body}</div>'
    )


def _facts_table(pairs: dict[str, Any]) -> str:
    rows = (
        '<tr style="background:none"><td style="text-align:left;opacity:.65;padding:0 1.2em 0 '
        f'0">{escape(str(name))}</td>'
        f'<td style="text-align:left;padding:0">{_cell(value)}</td></tr>'
        for name, value in pairs.items()
    )
    return f'<table style="border:none;margin:.3em 0">{"".join(rows)}</table>'


def _table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    lines = [
        "".join(
            f'<th style="text-align:right;padding:0 .6em">{escape(str(name))}</th>' for name in head
        )
    ]
    lines += [
        "".join(f'<td style="text-align:right;padding:0 .6em">{_cell(cell)}</td>' for cell in row)
        for row in rows
    ]
    body = "".join(f'<tr style="background:none">{line}</tr>' for line in lines)
    return (
        f'<table style="border:none;margin:.3em 0;font-variant-numeric:tabular-nums">{body}</table>'
    )


def _cell(value: Any) -> str:
    """A value as HTML text; whole numbers, which the catalog and counts hold as floats, without a
    point."""
    if isinstance(value, float):
        value = f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return escape(str(value))


def _thumb_strip(store: "FeatureStore") -> str:
    """Thumbnails of some sealed images, spread over the store."""
    if not store.spec.thumb or not len(store.sealed):
        return ""
    some = np.unique(np.linspace(0, len(store.sealed) - 1, CARD_THUMBS).round().astype(int))
    images = [_thumb_image(store, image) for image in store.sealed[some].tolist()]
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px;margin:.5em 0">{"".join(images)}</div>'


def _thumb_image(store: "FeatureStore", image: int) -> str:
    """One <img>; the id shows under the mouse."""
    height, width = store.spec.thumb
    small = _resized(
        store.array("thumbs")[image],
        max(1, round(width * CARD_THUMB_HEIGHT / height)),
        CARD_THUMB_HEIGHT,
    )
    name = escape(_ids(store, [image])[0])
    return (
        f'<img src="{_data_uri(small, "JPEG")}" alt="{name}" title="{name}" '
        f'style="height:{CARD_THUMB_HEIGHT}px">'
    )


def _ids(store: "FeatureStore", images: Any) -> list[str]:
    return store.catalog_rows(np.asarray(images))["image_id"].tolist()


def _data_uri(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


# -- tokens as pictures


def pca(store: "FeatureStore", image: int | str, view: int | str = 0, scale: int = 1) -> np.ndarray:
    """The first three principal components of a photograph's patch tokens as red, green and blue.

    Tiles lie as in the photograph (halves: left | right), flips are undone, so pictures of all
    views can be laid over it. The loading of largest magnitude of a component is positive; its
    percentiles 2 and 98 become 0 and 255.

    Parameters
    ----------
    scale : pixels along each side of a patch.

    Returns (scale * h, scale * T * w, 3) uint8; gray where tokens do not differ. InputError in a
    pooled store or for an image that is not sealed.
    """
    if scale < 1:
        raise UsageError(f"scale {scale}: pixels along a patch, 1 or more")
    i, v = store.index(image), store.view_index(view)
    return (
        colours(on_photograph(store.patches[i, v], store.spec.tokens, v))
        .repeat(scale, 0)
        .repeat(scale, 1)
    )


def on_photograph(patches_TPD: np.ndarray, tokens: TokenSpec, view: int) -> np.ndarray:
    """(H, W, D): a row's patches where they lie on the photograph, tiles side by side, the view's
    flips and transpose undone."""
    spec = tokens.views[view]
    h, w = tokens.grid[:: -1 if spec.transpose else 1]
    return np.concatenate(
        upright_grid(patches_TPD.reshape(-1, h, w, patches_TPD.shape[-1]), spec), axis=1
    )


def upright_grid(grid_ThwD: np.ndarray, view: ViewSpec) -> np.ndarray:
    """What `views.make_view` did to each tile, undone: flips came last."""
    if flips := [axis for axis, flip in ((2, view.hflip), (1, view.vflip)) if flip]:
        grid_ThwD = np.flip(grid_ThwD, flips)
    return grid_ThwD.swapaxes(1, 2) if view.transpose else grid_ThwD


def colours(grid_HWD: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 by principal components; see `pca`."""
    x_ND = grid_HWD.reshape(-1, grid_HWD.shape[-1])
    # the mean in float64 is exact, so what is constant becomes zero and not noise that would be
    # scaled up to colours
    centred_ND = x_ND.astype(np.float32) - x_ND.mean(0, dtype=np.float64).astype(np.float32)
    parts_NC = centred_ND @ components(centred_ND)
    low_C, high_C = np.percentile(parts_NC, PERCENTILES, axis=0)
    span_C = high_C - low_C
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
    basis_Dn = np.random.default_rng(0).standard_normal((x_ND.shape[1], n)).astype(np.float32)
    for _ in range(rounds):
        basis_Dn = np.linalg.qr(x_ND.T @ (x_ND @ np.linalg.qr(basis_Dn)[0]))[0]
    turn_nn = np.linalg.svd(x_ND @ basis_Dn, full_matrices=False)[2]
    loadings_DC = basis_Dn @ turn_nn[:3].T
    largest_C = loadings_DC[np.abs(loadings_DC).argmax(0), range(loadings_DC.shape[1])]
    return loadings_DC * np.where(largest_C < 0, -1, 1).astype(np.float32)


def show(store: "FeatureStore", image: int | str, view: int | str = 0) -> Image.Image:
    """A picture about 256 pixels high: the thumbnail, and right of it the patch tokens as colours,
    see `pca`; or what there is.

    InputError if the store has neither, or the image is not sealed.
    """
    return _side_by_side(
        list(_pictures(store, store.index(image), store.view_index(view)).values())
    )


def _pictures(store: "FeatureStore", image: int, view: int) -> dict[str, Image.Image]:
    """Thumbnail and tokens at one size, by the format that keeps each well and small."""
    store.require(image)
    pictures, n_rows = {}, 1
    if store.spec.has_patches:
        tokens_HW3 = pca(store, image, view)
        n_rows = len(tokens_HW3)
    height = n_rows * max(1, round(SHOW_HEIGHT / n_rows))  # whole pixels a patch
    width = max(1, round(height * aspect(store, image)))
    if store.spec.thumb:
        pictures["JPEG"] = _resized(store.array("thumbs")[image], width, height)
    if store.spec.has_patches:
        pictures["PNG"] = _resized(tokens_HW3, width, height, Image.Resampling.NEAREST)
    if not pictures:
        raise InputError(
            f"{store.path}: neither thumbnails nor patch tokens are stored, there is nothing to "
            "show; "
            "build a store with one of them"
        )
    return pictures


def aspect(store: "FeatureStore", image: int) -> float:
    """Width / height of the photograph; a thumbnail is squeezed to the shape of the store's
    first."""
    width, height = (float(store.array(f"catalog/{name}")[image]) for name in ("width", "height"))
    if not (width > 0 and height > 0):  # of imported tokens nobody may know
        t = store.spec.tokens
        width, height = t.n_tiles * t.tile_width, t.tile_height
    return min(max(width / height, 0.1), 10.0)


def _resized(
    pixels_HW3: np.ndarray,
    width: int,
    height: int,
    method: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels_HW3)).resize((width, height), method)


def _side_by_side(parts: list[Image.Image]) -> Image.Image:
    """Pictures of one height, with a gap that any background shows through."""
    whole = Image.new(
        "RGBA", (sum(part.width + SHOW_GAP for part in parts) - SHOW_GAP, parts[0].height)
    )
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + SHOW_GAP
    return whole


# -- photographs that are alike


def nearest(
    store: "FeatureStore", image: int | str, k: int = 5, view: int | str = 0
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
    i, v = store.index(image), store.view_index(view)
    store.require(i)
    others_N = store.sealed[store.sealed != i]
    (direction_1D,) = direction_blocks(store, np.array([i]), v)
    similar = [block_nD @ direction_1D[0] for block_nD in direction_blocks(store, others_N, v)]
    similarity_N = np.concatenate([np.empty(0, np.float32), *similar]).clip(-1, 1)
    best = np.argsort(-similarity_N, kind="stable")[:k]  # ties in store order
    found = store.catalog_rows(others_N[best]).assign(similarity=similarity_N[best].astype(float))
    return found[["image_id", "similarity", "path", *(name for name in TARGETS if name in found)]]


def direction_blocks(
    store: "FeatureStore", images_N: np.ndarray, view: int
) -> Iterator[np.ndarray]:
    """(n, D) float32 photographs' directions, a block of images at a time, see `nearest`; zero
    where a mean over tiles is."""
    t, cls_NVTD = store.spec.tokens, store.array("cls")
    block = max(1, BLOCK_BYTES // (4 * t.n_tiles * t.width))
    for start in range(0, len(images_N), block):
        yield _unit(
            _unit(cls_NVTD[images_N[start : start + block], view].astype(np.float32)).mean(1)
        )


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


# -- xarray


def to_xarray(store: "FeatureStore") -> Any:
    """The sealed images as an xarray.Dataset that is read where it is asked for; see
    featurestore.explore.xarray."""
    try:
        from featurestore.explore.xarray import dataset
    except ModuleNotFoundError as err:
        if err.name != "xarray":
            raise
        raise UsageError(
            "to_xarray: xarray is not installed; pip install xarray (or biomass[xarray])"
        ) from err
    return dataset(store)
