"""A larger store from one that is full: more images, more views, more room. What the old one holds is copied, not made again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore import _bytes
from featurestore.backbone import kept_weights, restore_backbone
from featurestore.build import BuildReport, build_images, finish_build, new_bar, pending_photographs
from featurestore.catalog import find_photographs, read_catalog
from featurestore.decode import check_photographs
from featurestore.errors import MismatchError, UsageError, list_some
from featurestore.formats import check_suffix
from featurestore.rows import ImageRows
from featurestore.spec import ViewSpec
from featurestore.store import FeatureStore
from featurestore.transfer import checked_rows
from featurestore.views import choose_views
from featurestore.writer import StoreWriter, catalog_columns, check_labels, image_bytes, open_writer


@dataclass(frozen=True)
class Extension:
    """Where each image and view of the new store is found in the old one."""

    source: FeatureStore
    view_of: dict[int, int]
    """Position of a view in the new store -> in the old one, for those it has."""
    n_views: int
    image_of: dict[str, int]
    """Position in the old store of each of its sealed images."""

    @classmethod
    def of(cls, source: FeatureStore, views: Sequence[ViewSpec]) -> "Extension":
        old = source.spec.tokens.views
        view_of = {v: old.index(view) for v, view in enumerate(views) if view in old}
        ids = source.catalog["image_id"].iloc[source.sealed]
        return cls(source, view_of, len(views), dict(zip(ids, source.sealed.tolist(), strict=True)))

    def is_whole(self, image_id: str) -> bool:
        """Whether the old store has every view of an image, so that its photograph is not needed."""
        return image_id in self.image_of and len(self.view_of) == self.n_views

    def rows(self, image_id: str) -> ImageRows:
        """All rows of such an image, views in the new order."""
        rows, order = checked_rows(self.source, self.image_of[image_id]), [self.view_of[v] for v in range(self.n_views)]
        if order == list(range(len(rows.cls_VTD))):
            return rows
        patches = None if rows.patches_VTPD is None else rows.patches_VTPD[order]
        return ImageRows(rows.cls_VTD[order], patches, rows.pooled_VT5D[order], rows.stats_VS[order], rows.thumb_HW3, rows.facts)

    def known(self, image_id: str, sha256: str) -> dict[int, tuple]:
        """Rows (cls, patches, pooled, stats) by view of an image that gets further views; its photograph must be the same."""
        if image_id not in self.image_of:
            return {}
        rows = checked_rows(self.source, self.image_of[image_id])
        if rows.facts["sha256"] != sha256:
            raise MismatchError(f"{image_id}: its photograph has sha256 {sha256}, that in {self.source.path} had "
                                f"{rows.facts['sha256']}; restore it, or build a new store")
        patches = [None] * len(rows.cls_VTD) if rows.patches_VTPD is None else rows.patches_VTPD
        return {v: tuple(map(_plain, (rows.cls_VTD[o], patches[o], rows.pooled_VT5D[o], rows.stats_VS[o])))
                for v, o in self.view_of.items()}


def extend_store(source_path: Path, out: Path, data: Path | None = None, views: str | None = None, reserve: int = 0,
                 weights: str | None = None, device: str = "auto", precision: str | None = None,
                 progress: bool = True) -> BuildReport:
    """A new store with all that an old one holds, and more; goes on where it stopped.

    Parameters
    ----------
    data : folder with train.csv and photographs of all images, old and new; None keeps the old catalog.
    views : of the new store, as `store build` takes them; None keeps the old ones.
    weights, device, precision : of the backbone, which works on what is new only; None is what made the old store.

    Raises MismatchError if labels, photographs or weights are not those of the old store; errors of `build_store` otherwise.
    """
    start = time.monotonic()
    check_suffix(out)
    _bytes.check_writable(out.parent)
    source = FeatureStore.open(source_path)
    tokens = source.spec.tokens
    tokens = tokens.changed(views=choose_views(views) if views else tokens.views)
    extension = Extension.of(source, tokens.views)
    frame = read_catalog(data / "train.csv") if data else _old_frame(source)
    check_labels(source, frame)
    columns = catalog_columns(frame, 2.0 if reserve else 1.0) if data else source.spec.columns
    spec = source.spec.changed(tokens=tokens, columns=columns)
    if not out.exists():
        _bytes.check_free(out.parent, len(frame) * image_bytes(spec))
    fresh = frame[[not extension.is_whole(image_id) for image_id in frame["image_id"]]]
    paths = _photographs(fresh, data, tokens.crop)
    backbone = None
    if len(fresh):
        backbone = restore_backbone(tokens, weights or kept_weights(source.spec, source.path.parent), device,
                                    precision or source.spec.made_by.get("precision", "fp32"))
    with open_writer(out, spec, frame, reserve) as writer:
        n_pending = len(writer.pending())
        _copy_whole(extension, writer)
        todo = pending_photographs(writer, fresh, paths)
        if backbone:
            ids = writer.image_ids
            build_images(backbone, writer, todo, new_bar("store extend", len(ids), len(todo), progress),
                         known=lambda image, sha256: extension.known(ids[image], sha256))
    return finish_build(out, n_pending, [], start)


def _copy_whole(extension: Extension, writer: StoreWriter) -> None:
    image_ids = writer.image_ids
    for image in writer.pending():
        if extension.is_whole(image_ids[image]):
            writer.put(image, extension.rows(image_ids[image]))
            writer.commit_if_due()
    writer.commit()


def _old_frame(source: FeatureStore) -> pd.DataFrame:
    given = [column.name for column in source.spec.columns if column.name not in ("sha256", "width", "height", "status")]
    return source.catalog[given]


def _photographs(fresh: pd.DataFrame, data: Path | None, crop: str) -> list[Path]:
    """The files of the images that the backbone has to see."""
    if len(fresh) and data is None:
        some = list_some(list(fresh["image_id"]), 5)
        raise UsageError(f"{len(fresh)} images need their photographs; give --data FOLDER:{some}")
    if not len(fresh):
        return []
    paths = find_photographs(fresh, data)
    check_photographs(paths, crop)
    return paths


def _plain(values: np.ndarray | None) -> np.ndarray | None:
    """A copy that may be written to: torch warns of the mapped one."""
    return None if values is None else np.array(values)
