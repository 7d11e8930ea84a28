"""Pictures of an image for a browser: photograph, thumbnail, patch tokens as colours."""

import io
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from featurestore.errors import InputError, NoAccessError, StoreDamaged
from featurestore.explore.pictures import colours, on_photograph, photo_grid
from featurestore.photos.crop import Crop
from featurestore.photos.find import find_photographs
from featurestore.photos.images import read_photograph
from featurestore.store import FeatureStore

MOST_WIDE = 1600  # pixels


def thumb_jpeg(store: FeatureStore, image: int) -> bytes:
    """The stored thumbnail of a sealed image; InputError in a store without."""
    store.require(image)
    if not store.spec.thumb:
        raise InputError("the store keeps no thumbnails")
    return _encoded(store.array("thumbs")[image], "JPEG")


def thumbs_base64(store: FeatureStore, images: Sequence[int]) -> list[str | None]:
    """The thumbnails of images as JPEGs in base64; None for one that is not sealed."""
    found = []
    for image in images:
        try:
            found.append(b64encode(thumb_jpeg(store, image)).decode())
        except (InputError, StoreDamaged):
            found.append(None)
    return found


def photograph_jpeg(
    store: FeatureStore,
    image: int,
    data: Path | None,
    max_pixels: int | None = None,
) -> tuple[bytes, str]:
    """The photograph below the folder `data`, or else the thumbnail; and which of them.

    At most MOST_WIDE pixels wide.

    `same` and `changed` (other bytes than the tokens were made of) are the photograph, `unknown`
    too, where the catalog has no sha256 of it; `absent` and `damaged` the thumbnail. A path that
    leads out of `data`, by a link too, is absent, as is a file that the server's account may not
    read. InputError where there is neither.
    """
    cells = store.catalog_rows(np.s_[image : image + 1])
    # a page that shows the thumbnail is better than one that shows an error
    try:
        file = None if data is None else find_photographs(cells, data)[0]
    except InputError:
        file = None
    if file is None:
        return thumb_jpeg(store, image), "absent"
    try:
        crop = Crop.of(store.spec.tokens, max_pixels or store.spec.max_pixels)
        photograph = read_photograph(file, crop.bits, crop.max_pixels)
    except NoAccessError:
        return thumb_jpeg(store, image), "absent"
    except InputError:
        return thumb_jpeg(store, image), "damaged"
    known = cells["sha256"][0]
    state = "unknown" if not known else "same" if known == photograph.sha256 else "changed"
    picture = photograph.picture
    width, height = crop.framed_size(*picture.size)
    if width <= MOST_WIDE:
        return _encoded(np.asarray(crop.framed(picture)), "JPEG"), state
    low = max(1, round(height * MOST_WIDE / width))
    return _encoded(crop.thumbnail(picture, low, MOST_WIDE), "JPEG"), state


def pca_png(store: FeatureStore, image: int, view: int) -> bytes:
    """Patch tokens as colours, a patch a pixel; see `featurestore.explore.pictures.pca`."""
    # one value that is not finite would leave no component
    finite_PD = np.nan_to_num(store.patches[image, view], nan=0, posinf=0, neginf=0)
    upright = on_photograph(finite_PD, store.spec.tokens, view)
    return _encoded(colours(upright, photo_grid(store, image, view)), "PNG")


def _encoded(pixels_HW3: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HW3)).save(file, kind)
    return file.getvalue()
