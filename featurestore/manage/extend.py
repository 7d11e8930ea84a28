"""A larger store from one that is full: more images, more views, more room.

What the old one holds is copied, not made again.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.backbone.load import backbone_of_store
from featurestore.counts import count_of, for_count
from featurestore.disk import durable
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.threads import usable_threads
from featurestore.errors import MismatchError, UsageError, list_some
from featurestore.format.choose import check_suffix
from featurestore.format.spec import StoreSpec, ViewSpec, made_together
from featurestore.manage.transfer import checked_rows, given_columns
from featurestore.photos.catalog import read_catalog
from featurestore.photos.crop import Crop
from featurestore.photos.decode import Unusable, dark_remark
from featurestore.photos.find import find_photographs, in_spelling_of
from featurestore.photos.labels import warn_of_labels
from featurestore.photos.sites import warn_of_sites
from featurestore.photos.views import choose_views
from featurestore.read.open import open_reader
from featurestore.read.reader import Reader
from featurestore.read.rows import ImageRows
from featurestore.write.agreement import check_labels
from featurestore.write.build import (
    BuildReport,
    build_images,
    check_buffers,
    finish_build,
    images_bar,
)
from featurestore.write.columns import catalog_columns
from featurestore.write.prepare import find_unusable
from featurestore.write.writer import StoreWriter, image_bytes, open_writer


@dataclass(frozen=True)
class Extension:
    """Where each image and view of the new store is found in the old one."""

    source: Reader
    view_of: dict[int, int]
    """Position of a view in the new store -> in the old one, for those it has."""
    n_views: int
    image_of: dict[str, int]
    """Position in the old store of each of its sealed images."""

    @classmethod
    def of(cls, source: Reader, views: Sequence[ViewSpec]) -> "Extension":
        old = source.spec.tokens.views
        view_of = {v: old.index(view) for v, view in enumerate(views) if view in old}
        # before the catalog: what is sealed later may have empty cells in it
        sealed = source.sealed
        source.refresh()
        ids = source.catalog["image_id"].iloc[sealed]
        image_of = dict(zip(ids, sealed.tolist(), strict=True))
        return cls(source, view_of, len(views), image_of)

    def is_whole(self, image_id: str) -> bool:
        """Whether the old store has every view of an image: its photograph is not needed."""
        return image_id in self.image_of and len(self.view_of) == self.n_views

    def rows(self, image_id: str) -> ImageRows:
        """All rows of such an image, views in the new order."""
        rows = checked_rows(self.source, self.image_of[image_id])
        order = [self.view_of[v] for v in range(self.n_views)]
        if order == list(range(len(rows.cls_VTD))):
            return rows  # of the old store's map: picking views would copy every token
        return replace(
            rows,
            cls_VTD=rows.cls_VTD[order],
            patches_VTPD=None if rows.patches_VTPD is None else rows.patches_VTPD[order],
            pooled_VT5D=rows.pooled_VT5D[order],
            stats_VS=rows.stats_VS[order],
        )

    def known(self, image_id: str, sha256: str) -> dict[int, tuple]:
        """Rows (cls, patches, pooled, stats) by view of an image that gets further views.

        Its photograph must be the same, else MismatchError.
        """
        if image_id not in self.image_of:
            return {}
        rows = checked_rows(self.source, self.image_of[image_id])
        if rows.facts["sha256"] != sha256:
            raise MismatchError(
                f"{image_id}: its photograph has sha256 {sha256}, that in {self.source.path} had "
                f"{rows.facts['sha256']}; restore it, or build a new store"
            )
        arrays = rows.cls_VTD, rows.patches_VTPD, rows.pooled_VT5D, rows.stats_VS
        known = {}
        for view, old_view in self.view_of.items():
            # copies that may be written to: torch warns of mapped ones
            known[view] = tuple(
                None if array is None else np.array(array[old_view]) for array in arrays
            )
        return known


@usable_threads()
def extend_store(
    source_path: Path,
    out: Path,
    data: Path | None = None,
    csv: Path | None = None,
    views: str | None = None,
    reserve: int = 0,
    weights: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    skip_missing: bool = False,
    allow_outside: bool = False,
    relabel: bool = False,
    max_pixels: int | None = None,
    progress: bool = True,
) -> BuildReport:
    """A new store with all that an old one holds, and more; goes on where it stopped.

    Parameters
    ----------
    data : folder with train.csv and photographs of all images, old and new; None keeps the old
        catalog.
    csv : the table, instead of train.csv in `data`; new labels alone need no `data` then.
    views : of the new store, as `store build` takes them; None keeps the old ones.
    weights, device, precision : of the backbone, which works on what is new only; None is what made
        the old store.
    skip_missing, allow_outside, max_pixels : as `store build` has them.
    relabel : take labels and columns of the table, whatever the old store has: tokens do not depend
        on them.

    Raises MismatchError if labels, photographs or weights are not those of the old store,
    UsageError for `relabel` without a table; errors of `build_store` otherwise.
    """
    start = time.monotonic()
    check_suffix(out)
    durable.check_writable(out.parent)
    if out.absolute() == Path(source_path).absolute():
        raise UsageError(f"{out}: is the source; give the new store another name")
    table = csv or (data / "train.csv" if data else None)
    if relabel and table is None:
        raise UsageError("--relabel: takes labels from a table; give --data FOLDER or --csv FILE")

    source = open_reader(source_path)
    spec, extension, frame = _planned(source, table, views, reserve, relabel)
    if not out.exists():
        durable.check_free(out.parent, len(frame) * image_bytes(spec))

    is_fresh = [not extension.is_whole(image_id) for image_id in frame["image_id"]]
    fresh = frame[is_fresh]
    if table is None:
        # an image that the old store lacks stays unbuilt: no new photographs were offered
        fresh = fresh[fresh["image_id"].isin(extension.image_of)]
    path_of = _photographs(fresh, data, allow_outside)

    if max_pixels and max_pixels != spec.max_pixels:
        spec = spec.changed(made_by=spec.made_by | {"max_pixels": str(max_pixels)})
    unusable = _unusable(list(path_of.values()), spec, skip_missing)
    backbone = None
    if path_of:
        if precision is not None:
            spec = _made_in(spec, precision)
        # the weights may have been kept beside either store
        folders = [source.path.parent, out.parent]
        backbone = backbone_of_store(spec, weights, folders, "--weights", device, precision)
        backbone.try_out()
        check_buffers(backbone, spec, len(path_of))

    with open_writer(out, spec, frame, reserve) as writer:
        n_pending = len(writer.pending())
        # first what costs nothing: after a stop less is left to compute
        _copy_whole(extension, writer)
        ids = writer.image_ids
        todo = {}
        for image in writer.pending():
            if ids[image] in path_of:
                todo[image] = path_of[ids[image]]
        skipped = {image: unusable[path] for image, path in todo.items() if path in unusable}
        writer.skip({image: each.status for image, each in skipped.items()})

        if backbone:
            todo = {image: path for image, path in todo.items() if image not in skipped}
            build_images(
                backbone,
                writer,
                todo,
                images_bar("store extend", len(ids), len(todo), progress),
                skipped if skip_missing else None,
                lambda image, sha256: extension.known(ids[image], sha256),
                # their tokens stay whatever their photographs are now: damage is warned of alone
                sealed={image for image in todo if ids[image] in extension.image_of},
            )
        writer.commit()  # what was put last is pending until then
        n_built = n_pending - len(writer.pending())
    reasons = [each.why for each in skipped.values()]
    return finish_build(out, n_built, reasons, start)


def _planned(
    source: Reader,
    csv_path: Path | None,
    views: str | None,
    reserve: int,
    relabel: bool,
) -> tuple[StoreSpec, Extension, pd.DataFrame]:
    """The new store's spec, what of it the old one has, and its catalog."""
    tokens = source.spec.tokens
    if views:
        tokens = tokens.changed(views=choose_views(views))
    extension = Extension.of(source, tokens.views)
    if csv_path is None:
        return source.spec.changed(tokens=tokens), extension, source.catalog[given_columns(source)]

    frame = in_spelling_of(read_catalog(csv_path), source.catalog)
    warn_of_labels(frame, csv_path)
    warn_of_sites(frame, csv_path)
    if not relabel:
        check_labels(source, frame)
    gone = sorted(set(extension.image_of) - set(frame["image_id"]))
    if gone:
        raise MismatchError(
            f"{csv_path}: lacks {count_of(len(gone), 'image')} that {source.path} holds; name old "
            f"and new ones (`biomass store convert --images` keeps some only):{list_some(gone)}"
        )
    columns = catalog_columns(frame, 2.0 if reserve else 1.0)  # texts to come may be longer
    return source.spec.changed(tokens=tokens, columns=columns), extension, frame


def _photographs(fresh: pd.DataFrame, data: Path | None, allow_outside: bool) -> dict[str, Path]:
    """Photographs, by image id, of images that need the backbone."""
    if not len(fresh):
        return {}
    if data is None:
        some = list_some(list(fresh["image_id"]), 5)
        need = for_count(len(fresh), "needs its photograph", "need their photographs")
        raise UsageError(f"{count_of(len(fresh), 'image')} {need}; give --data FOLDER:{some}")

    paths = find_photographs(fresh, data, allow_outside, missing=True, allow="--allow-outside")
    return dict(zip(fresh["image_id"], paths, strict=True))


def _unusable(paths: list[Path], spec: StoreSpec, skip_missing: bool) -> dict[Path, Unusable]:
    """Photographs that cannot be used, where they may be skipped; a warning of dark ones."""
    if not paths:
        return {}
    crop = Crop.of(spec.tokens, spec.max_pixels)
    _, unusable = find_unusable(paths, crop, skip_missing)
    if spec.tokens.bits is None:
        usable = [path for path in paths if path not in unusable]
        remark = dark_remark(usable, max_pixels=spec.max_pixels)
        if remark:
            warnings.warn(remark, stacklevel=3)
    return unusable


def _made_in(spec: StoreSpec, precision: str) -> StoreSpec:
    """The spec once rows are added in this precision; a warning if the old ones are in another."""
    if precision == spec.precision:
        return spec
    warnings.warn(
        f"the old store was computed in {spec.precision}, what is new will be in {precision}; "
        "tokens agree only within rounding",
        stacklevel=3,
    )
    return spec.changed(
        made_by=made_together([spec.made_by, spec.made_by | {"precision": precision}])
    )


def _copy_whole(extension: Extension, writer: StoreWriter) -> None:
    """Put the images that need no backbone; those that the old store lacks keep their status."""
    image_ids = writer.image_ids
    catalog = extension.source.catalog
    status = dict(zip(catalog["image_id"], catalog["status"], strict=True))
    for image in writer.pending():
        if extension.is_whole(image_ids[image]):
            writer.put(image, extension.rows(image_ids[image]))
            writer.commit_if_due()
            check_interrupt()
    writer.commit()
    skipped = {}
    for image in writer.pending():
        text = status.get(image_ids[image], "")
        if text not in ("", "ok"):
            skipped[image] = text
    writer.skip(skipped)
