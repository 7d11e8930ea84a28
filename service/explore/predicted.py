"""Predictions of new photographs, as `biomass predict` writes them: the wide table, and what lies
beside it: the photographs, and pictures of --explain."""

import io
import os
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from featurestore.disk.picture_names import picture_names
from featurestore.errors import BiomassError, InputError, UsageError
from featurestore.photos.catalog import read_test
from featurestore.photos.find import find_photographs, normalise_path
from featurestore.photos.images import MAX_PIXELS, read_photograph
from featurestore.photos.targets import CSIRO

BESIDE = ("_sd", "_low", "_high", "_probability")
"""Endings of columns that say how sure a target's prediction is."""
DOUBT = "doubt"
TABLES = ("test.csv", "train.csv")  # which say where photographs lie
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".heic", ".heif")
THUMB_PX = 320
MOST_PX = 1600


def read(path: Path) -> pd.DataFrame:
    """The table of predictions, a row a photograph.

    InputError if it is not there, or is no such table.
    """
    try:
        table = pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False, na_values=[""])
    except FileNotFoundError as err:
        raise InputError(f"{path}: not there; `biomass predict` writes it") from err
    except (OSError, ValueError) as err:
        raise InputError(f"{path}: cannot be read as a table ({err})") from err
    if "image_id" not in table or not targets(table):
        raise InputError(
            f"{path}: not a wide table of predictions: it needs image_id and a column for each "
            "target; give the predictions.csv that `biomass predict` writes"
        )
    if table["image_id"].isna().any() or table["image_id"].duplicated().any():
        raise InputError(f"{path}: each row needs an image_id of its own")
    return table


def targets(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What is predicted: name, whether it is a class, and which columns tell how sure it is."""
    found = []
    for name in table.columns:
        is_beside = any(name.endswith(end) and name.removesuffix(end) in table for end in BESIDE)
        if name == "image_id" or is_beside:
            continue
        own = {end.removeprefix("_"): f"{name}{end}" in table for end in BESIDE}
        is_class = not pd.api.types.is_numeric_dtype(table[name])
        found.append({"name": name, "is_class": is_class, **own})
    return found


def first_target(table: pd.DataFrame, weightiest: str | None) -> str:
    """The target that is shown first: a sweep's weightiest one, or the preset's, or the first."""
    names = [target["name"] for target in targets(table)]
    wanted = (weightiest, CSIRO.foremost.name, names[0])
    return next(name for name in wanted if name in names)


def ordered(table: pd.DataFrame, order: str | None, target: str) -> pd.DataFrame:
    """The table by a column, `-column` downwards, or by DOUBT of a target.

    Doubt is the width of the interval, else the spread, of a class what its probability lacks to 1.
    UsageError for another column.
    """
    if not order:
        return table
    name = order.removeprefix("-")
    if name == DOUBT:
        keys = _doubt(table, target)
    elif name in table:
        keys = table[name]
    else:
        raise UsageError(f"order={order[:40]!r}: a column of the table, or {DOUBT}, was expected")
    keys = keys.sort_values(ascending=not order.startswith("-"), kind="stable")
    return table.loc[keys.index]


def _doubt(table: pd.DataFrame, target: str) -> pd.Series:
    if f"{target}_high" in table and f"{target}_low" in table:
        return table[f"{target}_high"] - table[f"{target}_low"]
    if f"{target}_sd" in table:
        return table[f"{target}_sd"]
    if f"{target}_probability" in table:
        return 1 - table[f"{target}_probability"]
    return pd.Series(np.nan, table.index)


def beside(table: pd.DataFrame, image_id: str) -> dict[str, Any]:
    """A photograph's row, its place in the table, and who stands before and after.

    InputError for an id that is not in the table.
    """
    ids = table["image_id"].tolist()
    if image_id not in ids:
        raise InputError(f"no photograph {image_id[:40]!r} is predicted")
    at = ids.index(image_id)
    return {
        "image_id": image_id,
        "row": table.iloc[at].to_dict(),
        "at": at,
        "n": len(ids),
        "previous": ids[at - 1] if at else None,
        "next": ids[at + 1] if at + 1 < len(ids) else None,
    }


# -- pictures


def photograph_paths(data: Path) -> dict[str, str]:
    """Path below `data` of each photograph by its image_id: of the tables that lie there, and of
    files that are named by their id."""
    paths = {}
    for folder, folders, files in os.walk(data):
        # os.walk goes into what is left in this list
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            stem = normalise_path(PurePath(file).stem)
            if file.lower().endswith(PICTURES):
                paths.setdefault(stem, os.path.relpath(os.path.join(folder, file), data))
    for name in reversed(TABLES):
        try:
            images = read_test(data / name).images
        except BiomassError:  # it is not there, or not of photographs
            continue
        # a table knows better than a file's name, and test.csv, which comes last, best of all
        paths |= dict(zip(images["image_id"], images["path"], strict=True))
    return paths


def photograph_file(image_id: str, paths: Mapping[str, str], data: Path) -> Path:
    """Where a photograph lies; InputError where it is not there."""
    path = paths.get(image_id) or paths.get(normalise_path(image_id))
    if path is None:
        raise InputError(f"no photograph of {image_id!r} lies below the folder of --data")
    return find_photographs(pd.DataFrame({"path": [path]}), data)[0]


def photograph_jpeg(file: Path, max_pixels: int | None, most: int = MOST_PX) -> bytes:
    """A photograph, `most` pixels wide or high at most."""
    picture = read_photograph(file, max_pixels=max_pixels or MAX_PIXELS).picture
    return _jpeg(picture.cut((0, 0, *picture.size)), most)


def thumbs_base64(files: Mapping[str, Path], max_pixels: int | None) -> dict[str, str]:
    """Photographs in small as JPEGs in base64, of those that can be read."""
    found = {}
    for image_id, file in files.items():
        with suppress(BiomassError):
            found[image_id] = b64encode(photograph_jpeg(file, max_pixels, THUMB_PX)).decode()
    return found


def explained_jpeg(folder: Path, image_id: str, table: pd.DataFrame) -> bytes:
    """The picture that --explain drew of a photograph; InputError where it did not."""
    name = picture_names(table["image_id"].tolist())[image_id]
    try:
        with Image.open(folder / name) as picture:
            return _jpeg(picture.convert("RGB"), MOST_PX)
    except (OSError, ValueError, Image.DecompressionBombError) as err:
        raise InputError(f"the folder of --explain has no picture of {image_id!r}") from err


def _jpeg(picture: Image.Image, most: int) -> bytes:
    if max(picture.size) > most:
        picture = ImageOps.contain(picture, (most, most))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
