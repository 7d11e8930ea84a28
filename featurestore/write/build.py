"""The one building loop: photographs + views + backbone -> store.

Three things go on at once: threads decode the next photographs, the backbone works on this one, a
thread writes the last one. At most two photographs' tokens are held.
"""

import time
import warnings
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor
from tqdm import tqdm

from featurestore.backbone.backbone import Backbone, load_backbone
from featurestore.backbone.moments import pool, row_stats
from featurestore.backbone.weights import RANDOM, kept_weights
from featurestore.disk import durable
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.messages import new_bar
from featurestore.disk.threads import Pool, usable_threads
from featurestore.disk.usable import check_memory
from featurestore.errors import InputError, UsageError, list_some
from featurestore.format.choose import check_suffix
from featurestore.format.spec import POOLED, ROUNDING, STATS, StoreSpec, ViewSpec
from featurestore.photos.catalog import find_photographs, in_spelling_of, read_catalog
from featurestore.photos.decode import (
    Decoded,
    Unusable,
    dark_remark,
    decode_ahead,
    inspect_photographs,
    warn_of_all_sealed,
)
from featurestore.photos.jpeg import UNCHECKED, can_check
from featurestore.photos.labels import warn_of_labels
from featurestore.photos.sites import count_sites, warn_of_sites
from featurestore.photos.views import choose_views
from featurestore.store import FeatureStore
from featurestore.write.writer import (
    ImageRows,
    StoreWriter,
    catalog_columns,
    image_bytes,
    open_writer,
)

THUMB_SIDE = 192
CHECKED_BY = "simplejpeg"
"""Key of `made_by` in stores whose photographs were checked for damage inside the picture."""
N_BUFFERS = 2  # photographs whose tokens are held: one is written while the next is computed
Known = Callable[[int, str], dict[int, tuple]]
"""From an image and the sha256 of its photograph: rows that need no backbone, by view."""


class BuildConfig(BaseModel):
    """Everything `store build` can be told; the keys of its `--config` are these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    """Folder with train.csv and the photographs it names."""
    out: Path
    """The store: NAME.h5 or NAME.zarr."""
    backbone: str = "vit_huge_plus_patch16_dinov3"
    """timm name of a vision transformer with a class token."""
    image_size: Annotated[int, Field(ge=1)] = 960
    """Pixels, the side of a tile (crop whole: its short side)."""
    crop: Literal["squash", "halves", "whole"] = "halves"
    """squash: the whole picture to one square; halves: left and right square of a 2:1 picture;
    whole: keep the aspect."""
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """How many bits the values of 16-bit photographs have, e.g. 12; nothing takes them for 16."""
    views: str = "20"
    """How many of the views, or their names with commas."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] = (-1,)
    """Blocks whose normed tokens are kept, one after another along the width."""
    weights: str | None = None
    """FILE.safetensors, `random`, or nothing for timm's download."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the backbone computes in; tokens are stored as float16."""
    seed: int = 0
    """Keys the views' draws and random weights."""
    tokens: Literal["all", "pooled"] = "all"
    """pooled: class tokens and pooled vectors alone, enough for regressors and the pooled_mlp head.
    With P patches a tile they take about 11 / (11 + P) of the room of all tokens: 0.3 % at 3600
    patches, 7 % at 144."""
    pooled_dtype: Literal["float32", "float16"] = "float32"
    """Of the pooled vectors; float16 halves a pooled store."""
    thumbs: bool = True
    """Keep small pictures of the photographs."""
    reserve: Annotated[int, Field(ge=0)] = 0
    """Rows kept free for images to come."""
    skip_missing: bool = False
    """Go without photographs that are missing or damaged; their status in the catalog says so."""
    allow_outside: bool = False
    """Take photographs from outside the data folder too."""
    check_space: bool = True
    """Refuse to begin what the disk cannot hold."""
    wait: bool = False
    """Wait for another builder to end rather than stop with exit code 75."""
    lock: bool = True
    """Hold the builder's lock; without it, on file systems that have none, nothing keeps a second
    builder out."""
    save_weights: bool = True
    """Keep the weights beside the store, where predict finds them."""

    @field_validator("views", mode="before")
    @classmethod
    def _views_may_be_a_number(cls, value: object) -> object:
        return str(value) if type(value) is int else value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_may_be_one_or_text(cls, value: object) -> object:
        return (
            value.split(",") if isinstance(value, str) else [value] if type(value) is int else value
        )

    @classmethod
    def check(cls, **values: object) -> "BuildConfig":
        """The config, or InputError naming the key that is wrong."""
        try:
            return cls(**values)
        except ValidationError as err:
            first = err.errors()[0]
            if missing := [
                "--" + str(each["loc"][0]) for each in err.errors() if each["type"] == "missing"
            ]:
                raise UsageError(
                    f"{' and '.join(missing)} must be given, here or in --config"
                ) from err
            known = (
                f"; known: {', '.join(cls.model_fields)}"
                if first["type"] == "extra_forbidden"
                else ""
            )
            raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}{known}") from err


@dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    path: Path
    n_images: int
    n_sites: int | None
    """None where the catalog does not tell State and date of every image."""
    n_built: int
    seconds: float
    n_bytes: int

    def __str__(self) -> str:
        rate = f", {self.n_built / self.seconds:.2f} images/s" if self.n_built else ""
        sites = f"; {self.n_sites} site{'s' if self.n_sites > 1 else ''}" if self.n_sites else ""
        return (
            f"{self.path}: {self.n_images} images sealed, {self.n_built} of them now in "
            f"{self.seconds:.1f} s{rate}, "
            f"{self.n_bytes / 1e9:.3g} GB{sites}"
        )


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
    with FeatureStore.open(out) as store:
        known = store.catalog[["image_id", "path"]].copy()
        return known, set(known["image_id"].iloc[store.sealed]), store.spec


def warn_of_removed(store: Path, ids: Collection[str], source: Path) -> None:
    """Say which images a store holds that its source no longer names: nothing sealed is taken out
    of a store."""
    if ids:
        warnings.warn(
            f"{source}: lacks {len(ids)} images that {store} holds. They stay in the store, and "
            "train uses them; "
            "`biomass train --images FILE` goes without, and "
            f"`biomass store convert {store} NEW --images FILE` makes a store without them. "
            f"FILE has the ids to keep, one a line. It lacks:{list_some(sorted(ids))}",
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
            f"{len(unusable)} of {len(paths)} photographs cannot be used{hint}:"
            f"{list_some([each.why for each in unusable.values()], len(paths))}"
        )
    return size, {paths[i]: each for i, each in unusable.items()}


@usable_threads()
def build_store(config: BuildConfig, progress: bool = True) -> BuildReport:
    """Turn the photographs of a data folder into a store; goes on where an earlier build stopped.

    All that can be found wrong without the backbone is found first: CSV, missing or damaged
    photographs, aspects, the place to write to. InputError, MismatchError (the store there holds
    other tokens) or LockedError (another builder).
    """
    start = time.monotonic()
    job = prepare_build(config)
    if config.check_space:
        durable.check_free(
            config.out.parent,
            job.n_pending * image_bytes(job.spec),
            "fewer views, or go on all the same with --no-check-space",
        )
    check_buffers(job.spec, job.n_pending)
    with open_writer(
        config.out, job.spec, job.frame, config.reserve, config.wait, config.lock
    ) as writer:
        _warn_of_other_precision(writer.spec, job.spec)
        images = _pending_photographs(writer, job.frame, job.paths)
        skipped = {
            image: job.unusable[path] for image, path in images.items() if path in job.unusable
        }
        writer.skip({image: each.status for image, each in skipped.items()})
        todo = {image: path for image, path in images.items() if image not in skipped}
        bar = images_bar("store build", len(writer.image_ids), len(todo), progress)
        build_images(job.backbone, writer, todo, bar, skipped if config.skip_missing else None)
    return finish_build(
        config.out, len(images) - len(skipped), [each.why for each in skipped.values()], start
    )


def images_bar(title: str, n: int, n_todo: int, progress: bool) -> tqdm:
    return new_bar(title, n, "image", progress, initial=n - n_todo)


def finish_build(path: Path, n_built: int, skipped: list[str], start: float) -> BuildReport:
    """What a build did, and warnings of what a person should know about the store."""
    if skipped:
        warnings.warn(
            f"{len(skipped)} photographs skipped; their images have no tokens:{list_some(skipped)}",
            stacklevel=3,
        )
    with FeatureStore.open(path) as store:
        sealed = store.catalog.iloc[store.sealed]
        same = sealed[sealed["sha256"].duplicated(keep=False) & (sealed["sha256"] != "")]
        if len(same):
            ids = [" = ".join(group) for _, group in same.groupby("sha256", sort=False)["image_id"]]
            warnings.warn(
                "photographs with the same bytes under several ids; folds will keep them "
                f"together:{list_some(ids)}",
                stacklevel=3,
            )
        return BuildReport(
            path,
            len(sealed),
            count_sites(sealed),
            n_built,
            time.monotonic() - start,
            image_bytes(store.spec) * len(sealed),
        )


def check_buffers(spec: StoreSpec, n_images: int) -> None:
    """MemoryShortError if the tokens of the photographs that a build holds at once do not fit in
    memory."""
    need = min(N_BUFFERS, n_images) * image_bytes(spec)
    what = f"holding the tokens of {N_BUFFERS} photographs, as a build does,"
    check_memory(
        need, what, "free some memory, raise the limit, or choose fewer views or smaller images"
    )


def build_images(
    backbone: Backbone,
    writer: StoreWriter,
    images: dict[int, Path],
    bar: tqdm,
    skipped: dict[int, Unusable] | None = None,
    known: Known | None = None,
    sealed: Collection[int] = (),
) -> None:
    """Decode ahead, compute, write behind; leaving, also by an error, waits for what is being
    written.

    skipped : gets the images whose photographs are damaged; None stops at the first.
    known, sealed : rows that are there already, and images that have some: their photographs may be
        damaged inside.
    """
    image_ids, buffers = (
        writer.image_ids,
        [_new_rows(writer.spec) for _ in range(min(N_BUFFERS, len(images)))],
    )
    written: Future | None = None
    with bar, Pool(1) as writing:

        def skip(image: int, err: InputError) -> None:
            if skipped is None:
                raise InputError(f"{err}; --skip-missing builds the others") from err
            skipped[image] = Unusable("damaged", str(err))
            writer.skip({image: "damaged"})

        photographs = decode_ahead(images, backbone.crop, writer.spec.thumb, skip, sealed)
        for done, (image, photograph) in enumerate(photographs):
            there = known(image, photograph.facts["sha256"]) if known else {}
            rows = _compute(
                backbone, image_ids[image], photograph, buffers[done % N_BUFFERS], there
            )
            if written:
                written.result()  # raises what went wrong; and only now is the other buffer free
            written = writing.submit(_write, writer, image, rows)
            bar.update()
            check_interrupt()
        if written:
            written.result()


def _write(writer: StoreWriter, image: int, rows: ImageRows) -> None:
    writer.put(image, rows)
    writer.commit_if_due()


def _new_rows(spec: StoreSpec) -> ImageRows:
    """Buffers for one image's rows, used again for every second image."""
    t = spec.tokens
    shape = (len(t.views), t.n_tiles)
    patches = np.empty((*shape, t.n_patches, t.width), np.float16) if spec.has_patches else None
    return ImageRows(
        np.empty((*shape, t.width), np.float16),
        patches,
        np.empty((*shape, len(POOLED), t.width), spec.pooled_dtype),
        np.empty((shape[0], len(STATS))),
    )


def _compute(
    backbone: Backbone, image_id: str, decoded: Decoded, rows: ImageRows, known: dict[int, tuple]
) -> ImageRows:
    """Fill the buffers with one photograph's tokens, view by view; known views are (cls, patches,
    pooled, stats) rows."""
    buffers = (rows.cls_VTD, rows.patches_VTPD, rows.pooled_VT5D, rows.stats_VS)
    for v, view in enumerate(backbone.spec.views):
        for buffer, values in zip(
            buffers, known.get(v) or _row(backbone, decoded, image_id, view), strict=True
        ):
            if buffer is not None:  # the one copy: from the device to the buffer that is written
                torch.from_numpy(buffer[v]).copy_(torch.as_tensor(values))
    return ImageRows(
        rows.cls_VTD,
        rows.patches_VTPD,
        rows.pooled_VT5D,
        rows.stats_VS,
        decoded.thumb_HW3,
        decoded.facts,
    )


def _row(backbone: Backbone, decoded: Decoded, image_id: str, view: ViewSpec) -> tuple[Tensor, ...]:
    cls_TD, patches_TPD = backbone.tokens(decoded.tiles_THW3, image_id, view)
    pooled_T5D = pool(patches_TPD)
    return cls_TD, patches_TPD, pooled_T5D, row_stats(cls_TD, patches_TPD, pooled_T5D)


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


def _warn_of_other_precision(store: StoreSpec, asked: StoreSpec) -> None:
    for key in ROUNDING:
        if store.made_by.get(key) != asked.made_by.get(key):
            warnings.warn(
                f"{key}: the store was begun with {store.made_by.get(key)}, this build has "
                f"{asked.made_by.get(key)}; tokens agree only within rounding",
                stacklevel=3,
            )


def _pending_photographs(
    writer: StoreWriter, frame: pd.DataFrame, paths: list[Path]
) -> dict[int, Path]:
    """Photograph of each image that is to be put."""
    path_of, image_ids = dict(zip(frame["image_id"], paths, strict=True)), writer.image_ids
    return {image: path_of[image_ids[image]] for image in writer.pending()}
