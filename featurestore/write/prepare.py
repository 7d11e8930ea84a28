"""All that a build checks and loads before the first byte of its store is written."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from featurestore.backbone.backbone import Backbone, load_backbone
from featurestore.backbone.weights import RANDOM, kept_weights
from featurestore.disk import durable
from featurestore.errors import InputError, list_some
from featurestore.format.choose import check_suffix
from featurestore.format.spec import StoreSpec
from featurestore.photos.catalog import read_catalog
from featurestore.photos.decode import (
    Unusable,
    dark_remark,
    inspect_photographs,
    warn_of_all_sealed,
)
from featurestore.photos.find import find_photographs, in_spelling_of
from featurestore.photos.jpeg import UNCHECKED, can_check
from featurestore.photos.labels import warn_of_labels
from featurestore.photos.sites import warn_of_sites
from featurestore.photos.views import choose_views
from featurestore.read.open import open_reader
from featurestore.write.columns import catalog_columns
from featurestore.write.config import BuildConfig

THUMB_SIDE = 192


CHECKED_BY = "simplejpeg"
"""Key of `made_by` in stores whose photographs were checked for damage inside the picture."""


@dataclass(frozen=True)
class BuildJob:
    """What a build comes to, found out before anything is written."""

    frame: pd.DataFrame
    paths: list[Path]
    unusable: dict[Path, Unusable]
    backbone: Backbone
    spec: StoreSpec
    n_pending: int


def prepare_build(config: BuildConfig, save: bool = True) -> BuildJob:
    """All checks that come before the first byte of a store; errors as `build_store`. save : keep
    the weights beside it."""
    check_suffix(config.out)
    durable.check_writable(config.out.parent)
    frame = read_catalog(config.data / "train.csv")
    warn_of_labels(frame, config.data / "train.csv")
    warn_of_sites(frame, config.data / "train.csv")
    known, sealed, spec = there(config.out)
    frame = in_spelling_of(frame, known)
    warn_of_removed(config.out, sealed - set(frame["image_id"]), config.data / "train.csv")
    paths = find_photographs(
        frame, config.data, config.allow_outside, missing=True, allow="--allow-outside"
    )
    todo = [
        path
        for image_id, path in zip(frame["image_id"], paths, strict=True)
        if image_id not in sealed
    ]
    size, unusable = usable(todo or paths[:1], config.crop, config.skip_missing)
    if spec and CHECKED_BY not in spec.made_by:  # a newer store took no damaged photograph
        warn_of_all_sealed(
            [
                path
                for image_id, path in zip(frame["image_id"], paths, strict=True)
                if image_id in sealed
            ]
        )
    # the store's own tiles, whichever photograph came first then
    if spec and config.crop == "whole":
        size = spec.tokens.tile_width, spec.tokens.tile_height
    if config.bits is None and (
        remark := dark_remark(path for path in todo if path not in unusable)
    ):
        warnings.warn(remark, stacklevel=3)
    backbone = _load(config, spec, size[0] / size[1], save)
    if n_pending := len(todo) - len(unusable):
        backbone.try_out()
    return BuildJob(
        frame, paths, unusable, backbone, _store_spec(config, backbone, frame, *size), n_pending
    )


def there(out: Path) -> tuple[pd.DataFrame, set[str], StoreSpec | None]:
    """Ids and paths, sealed ids, and spec of a store that is there already; empty and None without
    one.

    What is something else is so refused before the backbone is loaded.
    """
    if not out.exists():
        return pd.DataFrame(columns=["image_id", "path"], dtype=object), set(), None
    with open_reader(out) as store:
        known = store.catalog[["image_id", "path"]].copy()
        return known, set(known["image_id"].iloc[store.sealed]), store.spec


def warn_of_removed(store: Path, ids: Collection[str], source: Path) -> None:
    """Say which images a store holds that its source no longer names: nothing sealed is taken out
    of a store."""
    if ids:
        warnings.warn(
            f"{source}: lacks {len(ids)} images that {store} holds. They stay in the store, and "
            "train uses them; `biomass train --images FILE` goes without, and `biomass store "
            f"convert {store} NEW --images FILE` makes a store without them. FILE has the ids to "
            f"keep, one a line. It lacks:{list_some(sorted(ids))}",
            stacklevel=3,
        )


def usable(
    paths: list[Path], crop: str, skip: bool
) -> tuple[tuple[int, int], dict[Path, Unusable]]:
    """Size of the first photograph that can be used, and those that cannot; InputError listing them
    unless they may be left."""
    if not can_check():
        warnings.warn(UNCHECKED, stacklevel=3)
    size, unusable = inspect_photographs(paths, crop)
    refused = {each.status for each in unusable.values()} & {"aspect", "unreadable"}
    if size is None or (unusable and not skip) or refused:
        n_missing = sum(each.status == "missing" for each in unusable.values())
        missing = f"{n_missing} missing; " if n_missing else ""
        hint = "" if skip or refused else f" ({missing}--skip-missing builds the others)"
        raise InputError(
            f"{len(unusable)} of {len(paths)} photographs cannot be "
            f"used{hint}:{list_some([each.why for each in unusable.values()], len(paths))}"
        )
    return size, {paths[i]: each for i, each in unusable.items()}


def _load(config: BuildConfig, spec: StoreSpec | None, aspect: float, save: bool) -> Backbone:
    """The backbone; where the store is there already and no weights are named, with those that it
    keeps, not a download."""
    weights = config.weights
    if weights is None and spec and spec.tokens.model == config.backbone:
        kept = kept_weights(spec, [config.out.parent])
        weights = None if kept == RANDOM else kept
    # random ones are made again from the seed
    keep = save and config.save_weights and weights != RANDOM
    return load_backbone(
        config.backbone,
        weights,
        crop=config.crop,
        image_size=config.image_size,
        aspect=aspect,
        views=choose_views(config.views),
        layers=config.layers,
        seed=config.seed,
        device=config.device,
        precision=config.precision,
        keep_in=config.out.parent if keep else None,
        bits=config.bits,
    )


def _store_spec(
    config: BuildConfig, backbone: Backbone, frame: pd.DataFrame, width: int, height: int
) -> StoreSpec:
    scale = THUMB_SIDE / max(width, height)
    thumb = (max(1, round(height * scale)), max(1, round(width * scale)))
    packages = ("torch", "timm", "numpy", "pillow", *([CHECKED_BY] if can_check() else []))
    made_by = {name: version(name) for name in packages} | {
        "device": backbone.device.type,
        "precision": config.precision,
        "weights": RANDOM if config.weights == RANDOM else "file" if config.weights else "timm",
    }
    slack = 2.0 if config.reserve else 1.0  # ids and paths to come may be longer
    return StoreSpec(
        tokens=backbone.spec,
        has_patches=config.tokens == "all",
        pooled_dtype=config.pooled_dtype,
        thumb=thumb if config.thumbs else None,
        columns=catalog_columns(frame, slack),
        made_by=made_by,
    )
