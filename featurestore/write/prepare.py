"""All that a build checks and loads before the first byte of its store is written."""

import warnings
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.load import load_backbone
from featurestore.backbone.precision import chosen_precision, fast_halves
from featurestore.backbone.probe import probed
from featurestore.backbone.weights import RANDOM, kept_weights
from featurestore.counts import count_of
from featurestore.disk import durable
from featurestore.disk.messages import say
from featurestore.disk.terminal import hung, terminal_width
from featurestore.disk.usable import usable_memory
from featurestore.errors import InputError, list_some
from featurestore.format.choose import check_suffix
from featurestore.format.spec import (
    MAX_PIXELS,
    StoreSpec,
    batch_told,
    max_pixels_told,
    whole_rows,
)
from featurestore.photos.catalog import read_catalog
from featurestore.photos.crop import Crop
from featurestore.photos.decode import (
    Unusable,
    dark_remark,
    decode,
    inspect_photographs,
    warn_of_all_sealed,
)
from featurestore.photos.find import find_photographs, in_spelling_of
from featurestore.photos.jpeg import UNCHECKED, can_check
from featurestore.photos.labels import warn_of_labels
from featurestore.photos.sites import warn_of_sites
from featurestore.photos.trainable import what_could_be_trained
from featurestore.photos.views import choose_views
from featurestore.read.open import open_reader
from featurestore.write.agreement import check_backbone
from featurestore.write.columns import catalog_columns
from featurestore.write.config import BuildConfig
from featurestore.write.encoding import n_images_in_hand
from featurestore.write.writer import image_bytes

# it looks through what is installed, 4 ms a package, and a worker asks at every part
installed_version = cache(version)

THUMB_SIDE = 192  # pixels of a thumbnail's long side
LOOKED_AT = 4  # photographs whose tokens choose a precision

CHECKED_BY = "simplejpeg"
"""Key of `made_by` in stores whose photographs were checked for damage inside the picture."""


@dataclass(frozen=True)
class PreparedBuild:
    """What a build comes to, found out before anything is written."""

    frame: pd.DataFrame
    paths: list[Path]
    unusable: dict[Path, Unusable]
    backbone: Backbone
    spec: StoreSpec
    n_pending: int


def prepare_build(config: BuildConfig, save: bool = True) -> PreparedBuild:
    """All checks that come before the first byte of a store; errors as `build_store`.

    save : keep the weights beside the store.
    """
    # in the order of what it costs to find a mistake: names, the table, photographs, the backbone
    check_suffix(config.out)
    durable.check_writable(config.out.parent)

    frame = read_catalog(config.table)
    warn_of_labels(frame, config.table)
    warn_of_sites(frame, config.table)
    found = what_could_be_trained(frame, config.table)
    say(hung(found, terminal_width(is_stderr=True), 11))

    known, sealed, spec = read_existing(config.out)
    if spec:
        check_backbone(config.out, spec, config.backbone)
    frame = in_spelling_of(frame, known)
    warn_of_removed(config.out, sealed - set(frame["image_id"]), config.table)
    paths = find_photographs(
        frame,
        config.data,
        config.allow_outside,
        missing=True,
        allow="--allow-outside",
    )

    # of sealed images no photograph is needed: it may be gone by now
    is_sealed = frame["image_id"].isin(sealed)
    todo = [path for path, is_done in zip(paths, is_sealed, strict=True) if not is_done]
    done = [path for path, is_done in zip(paths, is_sealed, strict=True) if is_done]
    max_pixels = config.max_pixels or (spec.max_pixels if spec else MAX_PIXELS)
    # with nothing to do one photograph is looked at all the same: its size makes the spec
    crop = Crop.unsized(config.crop, config.fit, max_pixels)
    if spec and spec.tokens.crop == crop.kind == "whole":
        # the store's own tiles, whichever photograph came first then
        crop = Crop.of(spec.tokens, max_pixels)
    size, unusable = find_unusable(todo or paths[:1], crop, config.skip_missing)
    if spec and CHECKED_BY not in spec.made_by:  # a newer store took no damaged photograph
        warn_of_all_sealed(done, max_pixels)
    if config.bits is None:
        usable = [path for path in todo if path not in unusable]
        remark = dark_remark(usable, max_pixels=max_pixels)
        if remark:
            warnings.warn(remark, stacklevel=3)

    width, height = size
    if spec and config.crop == "whole":
        # the store's own tiles, whichever photograph came first then
        width, height = spec.tokens.tile_width, spec.tokens.tile_height
    backbone = _load(config, spec, width / height, save)
    backbone = replace(backbone, max_pixels=max_pixels)
    if config.precision == "auto" and spec is None:
        usable = [path for path in todo if path not in unusable]
        backbone = _in_fast_half(backbone, usable[:LOOKED_AT])
    if config.batch is None and spec is None:
        new_spec = _store_spec(config, backbone, frame, width, height)
        each = image_bytes(new_spec)
        most = usable_memory().n_bytes // 4
        backbone = probed(backbone, lambda tried: n_images_in_hand(tried) * each <= most)

    n_pending = len(todo) - len(unusable)
    if n_pending:  # else the backbone has nothing to do
        backbone.try_out()
    spec = _store_spec(config, backbone, frame, width, height)
    return PreparedBuild(frame, paths, unusable, backbone, spec, n_pending)


def read_existing(out: Path) -> tuple[pd.DataFrame, set[str], StoreSpec | None]:
    """Ids and paths, sealed ids, and spec of a store that is there already; empty without one.

    A file that is no store is so refused before the backbone is loaded.
    """
    if not out.exists():
        return pd.DataFrame(columns=["image_id", "path"], dtype=object), set(), None
    with open_reader(out) as store:
        known = store.catalog[["image_id", "path"]].copy()
        sealed = set(known["image_id"].iloc[store.sealed])
        return known, sealed, store.spec


def warn_of_removed(store: Path, ids: Collection[str], source: Path) -> None:
    """Warn of images in a store that its source no longer names: nothing sealed is taken out."""
    if ids:
        warnings.warn(
            f"{source}: lacks {count_of(len(ids), 'image')} that {store} holds. They stay in the "
            "store, and train uses them; `biomass train --images FILE` goes without, and "
            f"`biomass store convert {store} NEW --images FILE` makes a store without them. FILE "
            f"has the ids to keep, one a line. It lacks:{list_some(sorted(ids))}",
            stacklevel=3,
        )


def find_unusable(
    paths: list[Path],
    crop: Crop,
    skip: bool,
) -> tuple[tuple[int, int], dict[Path, Unusable]]:
    """Size of the first photograph that can be used, and those that cannot be.

    InputError listing them, unless all of them may be skipped.
    """
    if not can_check():
        warnings.warn(UNCHECKED, stacklevel=3)
    size, unusable = inspect_photographs(paths, crop)
    refused = {each.status for each in unusable.values()} & {"aspect", "unreadable"}
    if size is None or (unusable and not skip) or refused:
        hint = ""
        if not (skip or refused):
            n_missing = sum(each.status == "missing" for each in unusable.values())
            missing = f"{n_missing} missing; " if n_missing else ""
            hint = f" ({missing}--skip-missing builds the others)"
        reasons = [each.why for each in unusable.values()]
        raise InputError(
            f"{count_of(len(unusable), 'photograph', len(paths))} cannot be used{hint}:"
            f"{list_some(reasons, len(paths))}"
        )
    return size, {paths[i]: each for i, each in unusable.items()}


def installed_versions() -> dict[str, str]:
    """Versions of the packages that make tokens, as `made_by` has them."""
    packages = ["torch", "timm", "numpy", "pillow"]
    if can_check():
        packages.append(CHECKED_BY)
    return {name: installed_version(name) for name in packages}


def _load(
    config: BuildConfig,
    spec: StoreSpec | None,
    aspect: float,
    save: bool,
) -> Backbone:
    """The backbone; where a store is there and no weights are named, with those kept beside it."""
    weights = config.weights
    if weights is None and spec and spec.tokens.model == config.backbone:
        kept = kept_weights(spec, [config.out.parent])
        weights = None if kept == RANDOM else kept
    precision = config.precision
    if precision == "auto":
        # a new store's may become a half, once some photographs were tried in both
        precision = spec.precision if spec else "fp32"
    # random ones are made again from the seed
    keep = save and config.save_weights and weights != RANDOM
    return load_backbone(
        config.backbone,
        weights,
        crop=config.crop,
        fit=config.fit,
        image_size=config.image_size,
        aspect=aspect,
        views=choose_views(config.views),
        layers=config.layers,
        seed=config.seed,
        device=config.device,
        precision=precision,
        keep_in=config.out.parent if keep else None,
        bits=config.bits,
        batch=_batch(config, spec),
    )


def _in_fast_half(backbone: Backbone, paths: list[Path]) -> Backbone:
    """A backbone in fp32 in the precision that is chosen for it, by its first photographs."""
    if not fast_halves(backbone.device):
        return backbone
    photographs = []
    for path in paths:
        with suppress(InputError):  # damaged inside: whoever builds it says so
            photographs.append(decode(path, backbone.crop).tiles_THW3)
    if not photographs:
        return backbone
    chosen, found = chosen_precision(backbone, photographs)
    say(f"precision {chosen.precision}; beside fp32, {'; '.join(found)}")
    return chosen


def _batch(config: BuildConfig, spec: StoreSpec | None) -> int | None:
    """Tiles at once: those of the store that is there, else those that are asked for."""
    if spec is None:
        return config.batch
    asked = config.batch and whole_rows(config.batch, spec.tokens.n_tiles)
    if asked not in (None, spec.batch):
        warnings.warn(
            f"{config.out}: was begun with --batch {spec.batch}, and keeps that; build a new store "
            f"for --batch {config.batch}",
            stacklevel=4,
        )
    return spec.batch


def _store_spec(
    config: BuildConfig,
    backbone: Backbone,
    frame: pd.DataFrame,
    width: int,
    height: int,
) -> StoreSpec:
    made_by = installed_versions()
    made_by["device"] = backbone.device.type
    made_by["precision"] = backbone.precision
    if config.weights == RANDOM:
        made_by["weights"] = RANDOM
    else:
        made_by["weights"] = "file" if config.weights else "timm"

    made_by |= max_pixels_told(backbone.max_pixels)
    made_by |= batch_told(backbone.batch, backbone.spec.n_tiles)

    slack = 2.0 if config.reserve else 1.0  # ids and paths to come may be longer
    return StoreSpec(
        tokens=backbone.spec,
        has_patches=config.tokens == "all",
        pooled_dtype=config.pooled_dtype,
        thumb=thumb_size(backbone.crop, width, height) if config.thumbs else None,
        columns=catalog_columns(frame, slack),
        made_by=made_by,
    )


def thumb_size(crop: Crop, width: int, height: int) -> tuple[int, int]:
    """Height and width of thumbnails, from width and height of the first photograph."""
    # with a fit photographs may have any aspect, and their tiles have one
    if crop.fit or crop.kind == "center":
        width, height = crop.frame_size
    scale = THUMB_SIDE / max(width, height)
    return max(1, round(height * scale)), max(1, round(width * scale))
