"""The plan of a build in parts: what all parts share, checked and fixed once.

A plan is a folder with plan.json, the catalog's cells and the backbone's weights. Its parts come to
lie in it, too.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from featurestore.backbone.weights import from_every_folder
from featurestore.counts import count_of
from featurestore.disk import durable
from featurestore.disk.threads import usable_threads
from featurestore.disk.urls import published_url
from featurestore.errors import InputError, MismatchError, StoreDamaged, UsageError
from featurestore.format.spec import StoreSpec
from featurestore.format.zarr import images_per_shard
from featurestore.manage.publish import Publisher
from featurestore.photos.decode import Unusable
from featurestore.read.catalog import texts
from featurestore.write.build import check_buffers, warn_of_skipped
from featurestore.write.columns import catalog_cells
from featurestore.write.config import BuildConfig
from featurestore.write.prepare import PreparedBuild, prepare_build
from featurestore.write.writer import image_bytes

FORMAT = "biomass-build-plan"
VERSION = 1
PUBLISHED_VERSION = 2
"""Of a plan whose parts put their shards into a bucket, which older programs would keep."""
PLAN = "plan.json"
CATALOG = "catalog.npy"
STORE = "features.zarr"
"""A part's store, in its folder."""
OF_THE_CALL = {"out", "device", "check_space", "wait", "lock"}
"""Settings that another call may have otherwise, and still means the same plan."""


@dataclass(frozen=True)
class PartPlan:
    """A build that is cut into parts, each of some images that follow each other."""

    folder: Path
    id: str
    """sha256 of plan.json: a part tells by it which plan it belongs to."""
    config: BuildConfig
    spec: StoreSpec
    """Of the whole store, and of each part."""
    bounds: list[int]
    """Part i has the images from bounds[i] to before bounds[i + 1]."""
    shard_images: int | None
    """Images in a file of patches; None in a store without patches."""
    threads: int | None
    """Of torch, where a CPU computes: their number may change how sums are rounded."""
    table_sha256: str
    unusable: dict[int, Unusable]
    """Photographs that were skipped, by the image's place."""
    url: str | None = None
    """Where the store is published, whose files of patches each part puts there."""

    @property
    def n_parts(self) -> int:
        return len(self.bounds) - 1

    @property
    def n_images(self) -> int:
        return self.bounds[-1]

    @property
    def device(self) -> str:
        """Its kind: cpu or cuda."""
        return self.spec.made_by["device"]

    def frame(self, start: int, end: int) -> pd.DataFrame:
        """The given columns of some images, as the table has them."""
        cells = np.load(self.folder / CATALOG, mmap_mode="r", allow_pickle=False)[start:end]
        columns = {}
        for column in self.spec.columns:
            if column.name in cells.dtype.names:
                values = cells[column.name]
                is_text = column.kind == "text"
                columns[column.name] = texts(values) if is_text else np.array(values)
        return pd.DataFrame(columns)

    @property
    def n_bytes(self) -> int:
        """Of all images that are to be built."""
        return (self.n_images - len(self.unusable)) * image_bytes(self.spec)

    def values(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "path": self.folder,
            "n_parts": self.n_parts,
            "n_images": self.n_images,
            "n_unusable": len(self.unusable),
            "n_bytes": self.n_bytes,
            "bounds": self.bounds,
            "shard_images": self.shard_images,
            "device": self.device,
            "precision": self.spec.made_by["precision"],
            "url": self.url,
        }

    def __str__(self) -> str:
        sizes = np.diff(self.bounds)
        made_by = self.spec.made_by
        skipped = f", {len(self.unusable)} of them skipped" if self.unusable else ""
        last = f"publish all:   biomass store merge --from {self.folder}"
        if self.url is None:
            last = f"then join all: biomass store merge --from {self.folder} --out features.zarr"
        return (
            f"{self.folder}: {count_of(self.n_parts, 'part')} of {sizes.min()} to {sizes.max()} "
            f"images, {self.n_images} in all{skipped}; {self.n_bytes / 1e9:.3g} GB, "
            f"made on {self.device} in {made_by['precision']} by torch {made_by['torch']}\n"
            f"build each:    biomass store build --from {self.folder} --part N    "
            f"(N is 0 to {self.n_parts - 1})\n"
            f"{last}"
        )


@usable_threads()
def plan_parts(
    config: BuildConfig,
    n_parts: int,
    folder: Path,
    *,
    most: int | None = None,
    threads: int | None = None,
    url: str | None = None,
) -> PartPlan:
    """Check all that `build_store` checks before it writes, and write the plan of so many parts.

    A folder that has the same plan already is left as it is; MismatchError for another plan.

    config : `out` says what the parts will become. Patches of a .zarr are cut at whole shards,
        which can then be linked; else parts are cut between images.
    n_parts : UsageError for more than there are images.
    most : up to so many parts, if they can be cut without smaller shards; fewer than `n_parts` if
        there are not so many images. A plan that is there may have any number.
    threads : of torch in each part, on a CPU; None is their number now.
    url : of object storage, where each part puts its files of patches. MismatchError if something
        is there, InputError if this account or the server cannot create objects.

    Other errors as `build_store`.
    """
    asked_parts = None if most else n_parts
    url = url and published_url(url)
    if (folder / PLAN).exists():
        return _planned_before(load_plan(folder), config, asked_parts, url)
    if url:
        if config.reserve:
            raise UsageError(
                f"--reserve: nothing is added to a store in object storage; leave it out for {url}"
            )
        Publisher(url).check_free()
    prepared = prepare_build(config.model_copy(update={"out": folder / STORE}))
    n_images = len(prepared.frame)
    if most is None and n_parts > n_images:
        raise UsageError(
            f"--parts {n_parts}: the table has {count_of(n_images, 'photograph')}; give at most as "
            "many parts"
        )
    check_buffers(prepared.backbone, prepared.spec, prepared.n_pending)
    shard_images, unit = None, 1
    if prepared.spec.has_patches:
        shard_images = images_per_shard(prepared.spec)
    is_linked = shard_images is not None and config.out.suffix == ".zarr"
    n_copies = 1
    if most is None:
        warn_of_skipped([each.why for each in prepared.unusable.values()])
    else:
        n_units = -(-n_images // shard_images) if is_linked else n_images
        n_parts = min(n_images, max(n_parts, min(most, n_units)))
        # the same call merges, here: of what is not linked there are two for a while
        n_copies = 1 if is_linked else 2
    if config.check_space and url is None:
        n_bytes = n_copies * prepared.n_pending * image_bytes(prepared.spec)
        advice = "fewer views, or go on all the same with --no-check-space"
        durable.check_free(folder, n_bytes, advice)
    if is_linked:
        unit = shard_images = _fitting_shards(n_images, n_parts, shard_images)
    with durable.locked(folder / PLAN, wait=True, needed=False):
        if (folder / PLAN).exists():  # by another process, while this one prepared its own
            return _planned_before(load_plan(folder), config, asked_parts, url)
        _write_catalog(folder / CATALOG, prepared)
        told = {
            "format": FORMAT,
            "version": PUBLISHED_VERSION if url else VERSION,
            "config": _settings(config),
            "spec": json.loads(prepared.spec.to_json()),
            "bounds": _bounds(n_images, n_parts, unit),
            "shard_images": shard_images,
            "threads": _threads(prepared, threads),
            "table_sha256": durable.file_sha256(config.table),
            "catalog_sha256": durable.file_sha256(folder / CATALOG),
            "unusable": _unusable(prepared),
        }
        if url:
            told["url"] = url
        durable.write_whole(folder / PLAN, json.dumps(told, indent=1))
    return load_plan(folder)


def load_plan(folder: Path) -> PartPlan:
    """The plan in a folder; InputError for none, StoreDamaged or MismatchError if not whole."""
    path = folder / PLAN
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as err:
        raise InputError(
            f"{path}: no such plan; `biomass store plan --parts N --out {folder}` makes one"
        ) from err
    try:
        told = json.loads(data)
        version = PUBLISHED_VERSION if "url" in told else VERSION
        if (told["format"], told["version"]) != (FORMAT, version):
            raise InputError(f"{path}: no {FORMAT} of version {version}; use another biomass")
        plan = PartPlan(
            folder=folder,
            id=hashlib.sha256(data).hexdigest(),
            config=BuildConfig.check(**told["config"]),
            spec=StoreSpec.from_json(json.dumps(told["spec"]), str(path)),
            bounds=told["bounds"],
            shard_images=told["shard_images"],
            threads=told["threads"],
            table_sha256=told["table_sha256"],
            unusable={place: Unusable(status, why) for place, status, why in told["unusable"]},
            url=told.get("url"),
        )
        catalog_sha256 = told["catalog_sha256"]
    except (ValueError, KeyError, TypeError) as err:
        raise StoreDamaged(f"{path}: cannot be read ({err}); make a new plan") from err
    try:
        found = durable.file_sha256(folder / CATALOG)
    except FileNotFoundError:
        found = None
    if found != catalog_sha256:
        raise MismatchError(
            f"{folder / CATALOG}: {'missing' if found is None else 'changed'} since the plan was "
            "made; restore it, or plan and build all parts again"
        )
    return plan


def _planned_before(
    plan: PartPlan, config: BuildConfig, n_parts: int | None, url: str | None
) -> PartPlan:
    """The plan that is there; MismatchError unless it is of the same settings and table."""
    there, asked = _settings(plan.config), _settings(config)
    differing = []
    for key in asked:
        if there[key] != asked[key] and key not in OF_THE_CALL:
            differing.append(f"{key}: there {there[key]!r}, asked {asked[key]!r}")
    if n_parts not in (None, plan.n_parts):
        differing.append(f"parts: there {plan.n_parts}, asked {n_parts}")
    if url != plan.url:
        differing.append(f"published at: there {plan.url}, asked {url}")
    if durable.file_sha256(config.table) != plan.table_sha256:
        differing.append(f"{config.table} has changed")
    if differing:
        raise MismatchError(
            f"{plan.folder}: holds another plan; choose another name or remove it\n  "
            + "\n  ".join(differing)
        )
    return plan


def _settings(config: BuildConfig) -> dict[str, Any]:
    """A config as JSON, its places good from every folder."""
    settings = config.model_dump()
    for key in ("data", "csv", "out"):
        if settings[key] is not None:
            settings[key] = os.path.abspath(settings[key])
    settings["weights"] = from_every_folder(config.weights)
    return settings | {"layers": list(config.layers)}


def _fitting_shards(n_images: int, n_parts: int, most: int) -> int:
    """Images in a shard, `most` if every part has one then; else fewer, parts about alike."""
    if -(-n_images // most) >= n_parts:
        return most
    images = -(-n_images // n_parts)
    if -(-n_images // images) < n_parts:
        images = (n_images - 1) // (n_parts - 1)
    return images


def _bounds(n_images: int, n_parts: int, unit: int) -> list[int]:
    """Bounds of parts that are whole units of images, the last one as many as are left."""
    n_units = -(-n_images // unit)
    return [min(n_images, part * n_units // n_parts * unit) for part in range(n_parts + 1)]


def _threads(prepared: PreparedBuild, threads: int | None) -> int | None:
    if prepared.backbone.device.type != "cpu":
        return None
    return threads or torch.get_num_threads()


def _unusable(prepared: PreparedBuild) -> list[tuple[int, str, str]]:
    found = []
    for place, path in enumerate(prepared.paths):
        if path in prepared.unusable:
            each = prepared.unusable[path]
            found.append((place, each.status, each.why))
    return found


def _write_catalog(path: Path, prepared: PreparedBuild) -> None:
    """The given columns' cells as the store will have them, so that a part reads its own alone."""
    cells = catalog_cells(prepared.spec, prepared.frame)
    given = {name: cells[name] for name in prepared.frame.columns}
    kinds = [(name, values.dtype, values.shape[1:]) for name, values in given.items()]
    table = np.empty(len(prepared.frame), kinds)
    for name, values in given.items():
        table[name] = values
    with durable.appears_whole(path) as partial, open(partial, "wb") as file:
        np.save(file, table, allow_pickle=False)
