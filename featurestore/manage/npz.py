"""Import of an earlier experiment's tokens: a folder of `{image_id}.npz` to a store.

No backbone is needed.

A file holds, in float, `cls_0`, `cls_1`, ... (D,) and `patches_0`, `patches_1`, ... (P, D), one
pair a view. Nothing in it is unpickled, and no array is read before its shape, from the zip's
directory and the array's header, is what the first file implies.
"""

import math
import re
import time
import warnings
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from featurestore.backbone.load import load_backbone, spec_without_weights
from featurestore.backbone.moments import pool, row_stats
from featurestore.backbone.rounding import ErrorTally
from featurestore.backbone.timm_model import patch_size_of
from featurestore.counts import count_of
from featurestore.disk import durable
from featurestore.disk.durations import duration
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.messages import new_bar
from featurestore.disk.threads import Pool, lone_threads
from featurestore.errors import InputError, list_some
from featurestore.format.choose import check_suffix
from featurestore.format.spec import (
    MAX_PIXELS,
    StoreSpec,
    TokenSpec,
    ViewSpec,
    max_pixels_told,
)
from featurestore.manage.npz_files import check_files, opened, read_values
from featurestore.photos.catalog import read_catalog
from featurestore.photos.crop import Crop
from featurestore.photos.decode import check_photographs, dark_remark, warn_of_sealed
from featurestore.photos.find import find_photographs, in_spelling_of, spelled_as
from featurestore.photos.images import read_photograph
from featurestore.photos.labels import warn_of_labels
from featurestore.photos.sites import warn_of_sites
from featurestore.photos.views import VIEWS, choose_views
from featurestore.read.rows import ImageRows
from featurestore.write.build import new_rows
from featurestore.write.columns import catalog_columns
from featurestore.write.prepare import read_existing, thumb_size, warn_of_removed
from featurestore.write.writer import image_bytes, open_writer


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    error : of the images imported now, as featurestore.backbone.rounding counts it.
    """

    path: Path
    n_images: int
    n_imported: int
    seconds: float
    error: dict[str, float]

    def __str__(self) -> str:
        rounding = (
            f"; rounded to float16 by {self.error['rms_relative']:.2g} of a token's norm (rms), "
            f"single values by at most {self.error['max']:.2g}"
            if self.n_imported
            else ""
        )
        return (
            f"{self.path}: {count_of(self.n_images, 'image')} sealed, {self.n_imported} of them "
            f"now in {duration(self.seconds)}{rounding}"
        )


def import_npz(
    folder: Path,
    out: Path,
    csv: Path | None = None,
    model: str = "vit_huge_plus_patch16_dinov3",
    image_size: int | None = None,
    crop: str = "squash",
    views: str | None = None,
    weights: Path | None = None,
    data: Path | None = None,
    allow_outside: bool = False,
    bits: int | None = None,
    max_pixels: int | None = None,
    progress: bool = True,
) -> ImportReport:
    """Make a store of a folder's npz files; goes on where an earlier import stopped.

    Parameters
    ----------
    csv : labels and paths, as `read_catalog` reads them; None takes data/train.csv, or knows the
        ids alone.
    model, crop : what made the tokens; timm's name, "squash", "center" or "whole".
    image_size : pixels, the side of a square tile (crop whole: the short side); None takes it from
        the number of patches.
    views : names with commas. None: the four plain flips, then imported_04, imported_05, ..., which
        cannot be made again.
    weights : .safetensors of the model, for their hash: predict accepts that backbone. None:
        unknown, no backbone is accepted without being told.
    bits : how many bits the values of 16-bit photographs have, as `store build` takes them: predict
        reads them so too.
    max_pixels : the most that a photograph may have, None is MAX_PIXELS.
    data : folder the paths start from; where the photographs are, sha256, size and thumbnail are
        read from them.
    allow_outside : also take photographs that are not below `data`.

    Raises InputError, before anything is written, listing every file that is no zip, lacks a key or
    holds another shape, every id without file or row, every photograph that is missing or unusable;
    later, by file and key, for damage, and for values that are not finite or beyond float16's
    65504.
    """
    start = time.monotonic()
    check_suffix(out)
    durable.check_writable(out.parent)

    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix == ".npz"}
    n_views, n_patches, width = check_files(folder, list(files.values()))
    table = csv or (data / "train.csv" if data else None)
    named = _catalog(folder, table, files)
    known, sealed, _ = read_existing(out)
    frame = in_spelling_of(named, known)
    names = zip(frame["image_id"], named["image_id"], strict=True)
    files = {image_id: files[name] for image_id, name in names}

    max_pixels = max_pixels or MAX_PIXELS
    photographs = _photographs(frame, data, allow_outside)
    size = _size(list(photographs.values()), crop, bits, max_pixels)
    tokens = _token_spec(
        model,
        weights,
        crop,
        image_size,
        _views(views, n_views),
        n_patches,
        width,
        size,
        bits,
    )
    spec = StoreSpec(
        tokens=tokens,
        thumb=thumb_size(Crop.of(tokens), *size) if size else None,
        columns=catalog_columns(frame),
        made_by=_made_by(tokens, weights) | max_pixels_told(max_pixels),
    )
    warn_of_removed(out, sealed - set(frame["image_id"]), csv or folder)
    n_new = len(set(frame["image_id"]) - sealed)
    durable.check_free(out.parent, n_new * image_bytes(spec))

    tally = ErrorTally()
    with open_writer(out, spec, frame) as writer, lone_threads() as threads:
        image_ids = writer.image_ids
        pending = writer.pending()
        for image in new_bar("store import", len(pending), "image", progress, iterable=pending):
            image_id = image_ids[image]
            rows = _rows(files[image_id], spec, threads, tally, photographs.get(image_id))
            writer.put(image, rows)
            writer.commit_if_due()
            check_interrupt()
    return ImportReport(
        out,
        len(image_ids),
        len(pending),
        time.monotonic() - start,
        tally.error(),
    )


def _catalog(folder: Path, csv: Path | None, files: dict[str, Path]) -> pd.DataFrame:
    """One row a file: the CSV's, or the ids with the files' names for paths."""
    if csv is None:
        return pd.DataFrame(
            {"image_id": list(files), "path": [file.name for file in files.values()]}
        )
    frame = read_catalog(csv)
    frame["image_id"] = spelled_as(frame["image_id"], files)
    warn_of_labels(frame, csv)
    warn_of_sites(frame, csv)
    without_row = sorted(files.keys() - set(frame["image_id"]))
    without_file = sorted(set(frame["image_id"]) - files.keys())
    if without_row or without_file:
        raise InputError(
            f"{csv} and {folder} must name the same images; in the one "
            f"alone:{list_some(without_file) or ' none'}\n"
            f"in the other alone:{list_some(without_row) or ' none'}"
        )
    return frame


def _photographs(
    frame: pd.DataFrame,
    data: Path | None,
    allow_outside: bool,
) -> dict[str, Path]:
    """Photographs by image id: none, or one of every image."""
    if data is None:
        return {}
    paths = find_photographs(frame, data, allow_outside, missing=True, allow="--allow-outside")
    if not any(path.is_file() for path in paths):
        return {}
    # where there are some, a missing one is an error, which this says
    paths = find_photographs(frame, data, allow_outside)
    return dict(zip(frame["image_id"], paths, strict=True))


def _size(
    photographs: list[Path],
    crop: str,
    bits: int | None,
    max_pixels: int,
) -> tuple[int, int] | None:
    """Of the photographs, where there are any; a warning of dark ones, unless bits are known."""
    if not photographs:
        return None
    size = check_photographs(photographs, Crop.unsized(crop, None, max_pixels))
    if bits is None:
        remark = dark_remark(photographs, "import", max_pixels)
        if remark:
            warnings.warn(remark, stacklevel=3)
    return size


def _views(text: str | None, n_views: int) -> tuple[ViewSpec, ...]:
    """The files' views in order; only ours, and imported_NN, can be named."""
    known = [view.name for view in VIEWS[:4]]
    known += [f"imported_{v:02d}" for v in range(4, n_views)]
    names = [name.strip() for name in text.split(",")] if text else known[:n_views]
    imported = {name for name in names if re.fullmatch(r"imported_\d+", name)}
    if ours := [name for name in names if name not in imported]:
        choose_views(",".join(ours))
    if len(names) != n_views or len(set(names)) < len(names):
        raise InputError(
            f"views: {len(names)} names, {len(set(names))} different ones, the files have "
            f"{n_views}; name each view once, and those that are none of ours imported_00, "
            "imported_01, ..."
        )
    by_name = {view.name: view for view in VIEWS}
    return tuple(by_name.get(name) or ViewSpec(name=name) for name in names)


def _token_spec(
    model: str,
    weights: Path | None,
    crop: str,
    image_size: int | None,
    views: tuple[ViewSpec, ...],
    n_patches: int,
    width: int,
    size: tuple[int, int] | None,
    bits: int | None,
) -> TokenSpec:
    """The spec of the files' tokens; InputError if the model cannot have made them."""
    if crop not in ("squash", "center", "whole") or crop == "whole" and not (size and image_size):
        raise InputError(
            f"crop {crop!r}: such files hold one tile a view; give squash, center, or whole with "
            "--data and --image-size"
        )
    # of a square tile, as earlier experiments had them: as many patches along as down
    image_size = image_size or math.isqrt(n_patches) * patch_size_of(model)
    options = {
        "crop": crop,
        "image_size": image_size,
        "views": views,
        "aspect": size[0] / size[1] if size else 2.0,  # only `whole` looks at it, and has a size
        "bits": bits,
    }
    if weights:
        spec = load_backbone(model, str(weights), **options).spec
    else:
        spec = spec_without_weights(model, **options)
    if (spec.n_patches, spec.width) != (n_patches, width):
        raise InputError(
            f"{model} at {image_size} pixels ({crop}) gives {spec.n_patches} patches of width "
            f"{spec.width}, the files hold {n_patches} of width {width}; give the model and image "
            "size they were made with"
        )
    return spec


def _made_by(tokens: TokenSpec, weights: Path | None) -> dict[str, str]:
    """Texts for people; what cannot be known or made again is warned of, too."""
    made_by = {name: version(name) for name in ("torch", "timm", "numpy")}
    made_by["source"] = "npz files of an earlier experiment"
    made_by["weights"] = "file" if weights else "unknown"
    if not weights:
        warnings.warn(
            "the weights that made these tokens are unknown, so predict will accept no backbone "
            "for heads trained on them but a file that it cannot check (--backbone-weights); give "
            "--weights FILE.safetensors if you have it",
            stacklevel=3,
        )
    if theirs := [view.name for view in tokens.views if view.name.startswith("imported_")]:
        made_by["views"] = (
            f"cannot be made again, nobody recorded how they were made: {', '.join(theirs)}"
        )
        warnings.warn(
            f"views {theirs[0]} to {theirs[-1]} cannot be made again: nobody recorded how they "
            "were made",
            stacklevel=3,
        )
    return made_by


def _rows(
    file: Path,
    spec: StoreSpec,
    threads: Pool,
    tally: ErrorTally,
    photograph: Path | None,
) -> ImageRows:
    """One file as rows of the store, views side by side, and what its photograph says."""
    rows = new_rows(spec)
    views = range(len(spec.tokens.views))
    # in the views' order, whichever thread is ready first: sums of floats then end the same
    for each in threads.map(lambda view: _fill(file, view, rows), views):
        tally.merge(each)
    if photograph is None:
        unknown = {"sha256": "", "width": math.nan, "height": math.nan, "status": "ok"}
        return replace(rows, facts=unknown)

    found = read_photograph(photograph, spec.tokens.bits, spec.max_pixels)
    if found.damage:
        warn_of_sealed(photograph, found.damage)
    facts = {
        "sha256": found.sha256,
        "width": found.width,
        "height": found.height,
        "status": "ok",
    }
    thumb_HW3 = Crop.of(spec.tokens).thumbnail(found.picture, *spec.thumb)
    return replace(rows, thumb_HW3=thumb_HW3, facts=facts)


def _fill(file: Path, view: int, rows: ImageRows) -> ErrorTally:
    """Read one view, round it, and take its statistics; what rounding cost."""
    tally = ErrorTally()
    halves_TXD = {f"cls_{view}": rows.cls_VTD[view], f"patches_{view}": rows.patches_VTPD[view]}
    # opened for each view: threads would share one open zip's position in the file
    with opened(file) as arrays:
        for key, half_TXD in halves_TXD.items():
            values = read_values(file, arrays, key, half_TXD[0].shape)
            half_TXD[0] = values  # rounds to float16, in place in the row
            exact = torch.from_numpy(values.astype(np.float32, copy=False))
            tally.add(exact, torch.from_numpy(half_TXD[0]))
    cls_TD = torch.from_numpy(rows.cls_VTD[view])
    patches_TPD = torch.from_numpy(rows.patches_VTPD[view])
    pooled_T5D = pool(patches_TPD)
    rows.pooled_VT5D[view] = pooled_T5D
    rows.stats_VS[view] = row_stats(cls_TD, patches_TPD, pooled_T5D)
    return tally
