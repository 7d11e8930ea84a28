"""The overview of a store and the card of one image: plain values from an open FeatureStore."""

import re
from typing import Any

import numpy as np
import pandas as pd

from featurestore.explore.facts import facts
from featurestore.explore.neighbours import Directions, most_similar
from featurestore.explore.pictures import aspect
from featurestore.format.spec import STATS
from featurestore.photos.candidates import could_be_targets, known_cells
from featurestore.photos.targets import CSIRO, has_preset
from featurestore.store import FeatureStore
from service.explore.outliers import outliers

GROUPS = ("State", "Sampling_Date")


# -- the store


def overview(store: FeatureStore) -> dict[str, Any]:
    """Counts, grid, backbone, the number of outliers, and targets by groups of photographs."""
    t = store.spec.tokens
    n_images = store.n_images
    n_sealed = len(store.sealed)
    counts = {
        "n_images": n_images,
        "n_sealed": n_sealed,
        "n_skipped": len(store.skipped),
        "n_room": store.layout.n,
    }
    return counts | {
        "size_bytes": store.size_bytes,
        "backbone": t.model,
        "crop": t.crop_and_fit,
        "n_tiles": t.n_tiles,
        "width": t.width,
        "tile": [t.tile_height, t.tile_width],
        "grid": grid_on_photograph(store),
        "views": list(t.view_names),
        "has_patches": store.spec.has_patches,
        "has_thumbs": store.spec.thumb is not None,
        "tokens": facts(store)["tokens"],
        "odd": len(outliers(store)),
        "target": first_target(store.catalog),
        "targets": targets(store.catalog),
        "classes": classes(store.catalog),
    }


def grid_on_photograph(store: FeatureStore) -> list[int]:
    """Rows and columns of patches over a whole photograph."""
    h, w = store.spec.tokens.grid
    rows, columns = store.spec.tokens.tile_grid
    return [rows * h, columns * w]


def targets(catalog: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Targets by group: `all`, and State and date where the catalog has them; but for the
    contest's masses, each column that could be a class too.

    group, target, count, mean and sd of what is known.
    """
    names = target_columns(catalog)
    columns = [column for column in GROUPS if column in catalog]
    columns += class_columns(catalog)
    groups = {"all": pd.Series("all", catalog.index)}
    if names:  # without a target there is nothing to group
        for column in dict.fromkeys(columns):  # State may be among the classes too
            groups[column] = catalog[column].astype(str)
    return {key: _moments(catalog[names], group) for key, group in groups.items()}


def classes(catalog: pd.DataFrame) -> dict[str, dict[str, int]]:
    """How many photographs have each word, by column that could be a class."""
    counted = {name: known_cells(catalog[name]).value_counts() for name in class_columns(catalog)}
    return {name: counts.to_dict() for name, counts in counted.items()}


def class_columns(catalog: pd.DataFrame) -> list[str]:
    """Columns that could be classes; none beside the contest's masses."""
    if has_preset(catalog.columns):
        return []
    return [each.name for each in could_be_targets(catalog) if each.kind == "class"]


def target_columns(catalog: pd.DataFrame) -> list[str]:
    """The contest's masses where all are there, else all numbers that could be targets."""
    if has_preset(catalog.columns):
        return [name for name in CSIRO.names if pd.api.types.is_numeric_dtype(catalog[name])]
    return [each.name for each in could_be_targets(catalog) if each.kind != "class"]


def first_target(catalog: pd.DataFrame) -> str | None:
    """The target that is shown first."""
    names = target_columns(catalog)
    if CSIRO.foremost.name in names:
        return CSIRO.foremost.name
    return names[0] if names else None


def _moments(values: pd.DataFrame, group: pd.Series) -> list[dict[str, Any]]:
    by_group = values.groupby(group)
    count = by_group.count()
    mean = by_group.mean()
    sd = by_group.std()

    def in_order(text: str) -> tuple[list[int], str]:
        # 2015/9/30 before 2015/10/1, names by their letters
        return [int(number) for number in re.findall(r"\d+", text)], text

    found = []
    names = sorted(count.index, key=in_order)
    # by position: of ten thousand days, looking each number up by its names took seconds
    of_NT = [each.loc[names].to_numpy().tolist() for each in (count, mean, sd)]
    for name, *of_T in zip(names, *of_NT, strict=True):
        for target, n, its_mean, its_sd in zip(values, *of_T, strict=True):
            about = {
                "group": name,
                "target": target,
                "count": n,
                "mean": its_mean,
                "sd": its_sd,
            }
            found.append(about)
    return found


# -- an image


def image_card(
    store: FeatureStore,
    image: int,
    k: int = 12,
    view: int = 0,
    kept: Directions | None = None,
) -> dict[str, Any]:
    """What the page shows of a sealed image.

    Labels, norms of each view, the k nearest by class token in a view, who comes before and after
    among all n sealed images.

    kept : see `featurestore.explore.neighbours.nearest`.
    """
    store.require(image)
    labels = store[image].labels.to_dict()
    near_K, similarity_K = most_similar(store, image, k, view, kept)
    near = store.catalog_rows(near_K)[["image_id"]].assign(similarity=similarity_K)
    # the sealed images next to it in the store
    sealed_N = store.sealed
    at = int(np.searchsorted(sealed_N, image))
    before = store.image_ids[sealed_N[at - 1]] if at > 0 else None
    after = store.image_ids[sealed_N[at + 1]] if at + 1 < len(sealed_N) else None
    return {
        "image_id": labels["image_id"],
        "position": image,
        "labels": labels,
        "views": view_norms(store, image),
        "nearest": near.to_dict("records"),
        "previous": before,
        "next": after,
        "at": at,
        "n": len(sealed_N),
        "row": None,
        "aspect": aspect(store, image),
        "grid": grid_on_photograph(store),
    }


def view_norms(store: FeatureStore, image: int) -> list[dict[str, Any]]:
    """A view's mean norms of class and patch tokens, and the counts of non-finite values."""
    stats_VS = store.array("stats")[image]
    kinds = ("cls", "patch") if store.spec.has_patches else ("cls",)
    found = []
    for name, stats_S in zip(store.view_names, stats_VS, strict=True):
        of_view: dict[str, Any] = {"view": name}
        for kind in kinds:
            for field in ("norm", "non_finite"):
                statistic = f"{kind}_{field}"
                of_view[statistic] = float(stats_S[STATS.index(statistic)])
        found.append(of_view)
    return found
