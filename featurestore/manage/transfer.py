"""New stores from the rows of others, without a backbone: one converted, or several merged.

Every row is checked against its CRC-32C as it leaves its source, so a new store never blesses what
had rotted in the old one.
"""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.counts import count_of
from featurestore.disk.durable import check_free, check_writable
from featurestore.disk.durations import duration
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.urls import as_kept, is_elsewhere, is_object_url
from featurestore.errors import InputError, MismatchError, StoreDamaged, UsageError, list_some
from featurestore.format.choose import check_suffix, is_archive
from featurestore.format.spec import OWN_COLUMNS, ROUNDING, Column, StoreSpec, made_together
from featurestore.manage.archive import Archive, ArchiveReport
from featurestore.manage.archive_writer import write_archive
from featurestore.manage.publish import Publisher, scratch_store
from featurestore.manage.selection import Selection
from featurestore.manage.verify import verify
from featurestore.photos.find import spelled_as
from featurestore.read.open import open_reader
from featurestore.read.reader import Reader
from featurestore.read.rows import ImageRows, row_crcs
from featurestore.write.agreement import check_same
from featurestore.write.writer import image_bytes, open_writer

StoreOrArchive = Reader | Archive
Progress = Callable[[int], object]


@dataclass(frozen=True)
class TransferReport:
    """What was copied into a store."""

    path: Path | str
    n_images: int
    n_copied: int
    seconds: float
    n_bytes: int

    def __str__(self) -> str:
        rate = f", {self.n_bytes / 1e9 / self.seconds:.2g} GB/s" if self.n_copied else ""
        return (
            f"{self.path}: {count_of(self.n_images, 'image')}, {self.n_copied} of them copied now "
            f"in {duration(self.seconds)}{rate}"
        )


def convert(
    source_path: Path | str,
    out: Path | str,
    *,
    codec: str | None = None,
    images: Sequence[str] | None = None,
    views: Sequence[str | int] | None = None,
    layers: Sequence[int] | None = None,
    patches: bool = True,
    reserve: int = 0,
    skip_damaged: bool = False,
    scratch: Path | None = None,
    progress: Progress = lambda n_bytes: None,
) -> TransferReport | ArchiveReport:
    """Copy sealed images of a store or archive to a new store or archive; goes on where it stopped.

    Parameters
    ----------
    codec : None for a store (the suffix of `out` says which format); "zstd" or "int8" for an
        archive.
    images, views, layers : ids, names and layer numbers to keep; None keeps all.
    patches : False leaves patch tokens out: a pooled store.
    skip_damaged : leave rotten images out, with a warning, rather than stop at the first.
    scratch : where a store is made that is published, if `out` is a URL of object storage; None is
        the system's folder for temporary files.

    Raises InputError for what the source lacks, StoreDamaged for rot, MismatchError if `out` holds
    something else.
    """
    source = open_store_or_archive(source_path)
    chosen = _chosen(source, images)
    selection = Selection.of(source.spec, views, layers, patches)
    if codec:
        if is_elsewhere(out):
            raise UsageError(f"{as_kept(out)}: an archive is read on a disk; name a folder there")
        if reserve or skip_damaged or not selection.is_all(source.spec):
            raise UsageError(
                "an archive keeps all layers and tokens, grows no further and takes no damaged "
                "images; convert to a store like that first"
            )
        return write_archive(source, out, codec, chosen, selection.views, progress)

    spec = selection.spec(source.spec)
    is_part = images is not None or reserve or skip_damaged or spec != source.spec
    # the files of a whole Zarr store are those of its copy: they go up without a copy on a disk
    is_zarr = isinstance(source, Reader) and os.path.isdir(source.path)
    is_whole = is_zarr and len(source.sealed) == source.layout.n
    if is_object_url(out) and is_whole and not is_part:
        return _publish_as_it_is(source, out, progress)

    frame = source.catalog.iloc[chosen][given_columns(source)]
    places = {image_id: (source, i) for image_id, i in zip(frame["image_id"], chosen, strict=True)}
    return _copy(places, out, spec, frame, reserve, selection, skip_damaged, progress, scratch)


def merge(
    parts: Sequence[Path],
    out: Path | str,
    *,
    reserve: int = 0,
    scratch: Path | None = None,
    progress: Progress = lambda n_bytes: None,
) -> TransferReport:
    """One store of all sealed images of several with the same tokens; goes on where it stopped.

    Parts that were computed at another precision, on another device or by other versions are warned
    of, and named in `made_by`. An image may be in several parts if its rows and labels are the same
    there. MismatchError for other tokens (both values are given), or for an image that differs.

    scratch : as for `convert`.
    """
    sources = [open_reader(path) for path in parts]
    first = sources[0]
    # all is compared before a byte is copied: a merge of terabytes must not fail at its end
    for other in sources[1:]:
        check_same(other, first.spec)
        if other.spec.thumb != first.spec.thumb:
            raise MismatchError(
                f"{other.path}: thumbnails are {other.spec.thumb}, in {first.path} "
                f"{first.spec.thumb}; build the parts alike, or without thumbnails"
            )
    _warn_of_other_making(sources)
    made_by = made_together([source.spec.made_by for source in sources])
    spec = first.spec.changed(columns=_merged_columns(sources), made_by=made_by)

    places: dict[str, tuple[StoreOrArchive, int]] = {}
    frames = []
    for source in sources:
        sealed = _sealed(source)
        frames.append(source.catalog.iloc[sealed][given_columns(source)])
        for image_id, i in zip(frames[-1]["image_id"], sealed.tolist(), strict=True):
            # of an image in several parts the first one counts, here as in the frame below
            known = places.setdefault(image_id, (source, i))
            if known != (source, i):
                _check_twin(image_id, known, (source, i))
    if not places:
        raise InputError(
            f"{', '.join(map(str, parts))}: no image of them is sealed, there is nothing to merge"
        )

    frame = pd.concat(frames).drop_duplicates("image_id", ignore_index=True)
    selection = Selection.of(spec, None, None, True)
    return _copy(places, out, spec, frame, reserve, selection, False, progress, scratch)


def open_store_or_archive(path: Path | str) -> StoreOrArchive:
    """A store or an archive, whichever is there."""
    return Archive.open(path) if is_archive(path) else open_reader(path)


def checked_rows(source: StoreOrArchive, image: int) -> ImageRows:
    """All rows of an image, checked: StoreDamaged names image, view, file and offset of rot."""
    rows = source.rows(image)
    if isinstance(source, Reader):  # an archive has checked what it decoded
        differs = np.flatnonzero(row_crcs(rows) != source.array("crc32c")[image])
        if len(differs):
            raise StoreDamaged(
                f"{source.where(image, int(differs[0]))}: its bytes changed since they were "
                "committed; leave it out by `biomass store convert --skip-damaged`, or `biomass "
                f"store verify --repair {source.path}` and build it again"
            )
    return rows


def _copy(
    places: dict[str, tuple[StoreOrArchive, int]],
    out: Path | str,
    spec: StoreSpec,
    frame: pd.DataFrame,
    reserve: int,
    selection: Selection,
    skip_damaged: bool,
    progress: Progress,
    scratch: Path | None,
) -> TransferReport:
    """Put the rows of each image into a store here, which is published if `out` is a URL."""
    more = (spec, frame, reserve, selection, skip_damaged)
    if not is_elsewhere(out):
        return _copy_here(places, out, *more, progress)

    def half(n_bytes: int) -> None:
        progress(n_bytes // 2)  # each byte is told of twice: when it is copied, and when it is put

    publisher = Publisher(out)
    ids = "\n".join(frame["image_id"])
    with scratch_store(scratch, out, spec.to_json(), ids, str(reserve)) as folder:
        report = _copy_here(places, folder, *more, half)
        publisher.publish(folder, half)
    return replace(report, path=publisher.url)


def _publish_as_it_is(source: Reader, url: str, progress: Progress) -> TransferReport:
    """Publish a store's own files, every byte of which is looked at first."""
    start = time.monotonic()
    publisher = Publisher(url)
    report = verify(source, lambda n_bytes: progress(n_bytes // 2))
    if not report:
        raise StoreDamaged(
            f"{source.path}: {len(report.faults)} faults; leave such images out by "
            f"--skip-damaged:{list_some([str(fault) for fault in report.faults])}"
        )
    n_put = publisher.publish(source.path, lambda n_bytes: progress(n_bytes // 2))
    n_copied = source.n_images if n_put else 0
    n_bytes = n_copied * image_bytes(source.spec)
    return TransferReport(
        publisher.url, source.n_images, n_copied, time.monotonic() - start, n_bytes
    )


def _copy_here(
    places: dict[str, tuple[StoreOrArchive, int]],
    out: Path,
    spec: StoreSpec,
    frame: pd.DataFrame,
    reserve: int,
    selection: Selection,
    skip_damaged: bool,
    progress: Progress,
) -> TransferReport:
    """Put the rows of each image from where it is; what `out` has already is left."""
    start = time.monotonic()
    check_suffix(out)
    check_writable(out.parent)
    if any(source.path == out.absolute() for source, _ in places.values()):
        raise UsageError(f"{out}: is the source; give the copy another name")
    if out.exists():
        check_holds(out, places, selection)
    else:
        # not of a copy that is gone on with: what it has takes its room already
        check_free(out.parent, image_bytes(spec) * len(frame))

    damaged = {}
    source_spec = source_of(places).spec
    with open_writer(out, spec, frame, reserve) as writer:
        image_ids = writer.image_ids
        pending = writer.pending()
        for image in pending:
            try:
                rows = checked_rows(*places[image_ids[image]])
            except StoreDamaged as err:
                if not skip_damaged:
                    raise
                damaged[image] = str(err)
                continue
            writer.put(image, selection.rows(rows, source_spec))
            writer.commit_if_due()
            check_interrupt()
            progress(image_bytes(spec))
        writer.skip(dict.fromkeys(damaged, "damaged"))

    if damaged:
        reasons = list_some(list(damaged.values()))
        warnings.warn(f"left out: {count_of(len(damaged), 'image')}:{reasons}", stacklevel=3)
    n_copied = len(pending) - len(damaged)
    return TransferReport(
        out, len(image_ids), n_copied, time.monotonic() - start, n_copied * image_bytes(spec)
    )


def _chosen(source: StoreOrArchive, images: Sequence[str] | None) -> list[int]:
    """Positions of the sealed images asked for, in store order."""
    sealed = _sealed(source)
    catalog = source.catalog
    if images is not None:
        if not len(images):
            raise InputError(
                "--images: names no image; give ids with commas, or a file with one a line"
            )
        known = catalog["image_id"].iloc[sealed]
        images = spelled_as(images, known)
        if unknown := sorted(set(images) - set(known)):
            raise InputError(
                f"{source.path}: has no such images, or none with tokens:{list_some(unknown)}"
            )
        sealed = sealed[known.isin(set(images)).to_numpy()]
    if not len(sealed):
        raise InputError(f"{source.path}: no image of it is sealed, there is nothing to copy")
    return sealed.tolist()


def source_of(places: dict[str, tuple[StoreOrArchive, int]]) -> StoreOrArchive:
    """Any of the sources: their rows are alike."""
    return next(iter(places.values()))[0]


def check_holds(
    out: Path, places: dict[str, tuple[StoreOrArchive, int]], selection: Selection
) -> None:
    """MismatchError unless what `out` has sealed was copied by an earlier run of the same."""
    with open_reader(out) as store:
        ids = store.catalog["image_id"].iloc[store.sealed]
        strange = sorted(set(ids) - set(places))
        if strange:
            raise MismatchError(
                f"{out}: holds images that are not to be copied; choose another "
                f"name:{list_some(strange)}"
            )
        other = []
        for image_id, image in zip(ids, store.sealed, strict=True):
            if not _same_rows(store, image, *places[image_id], selection):
                other.append(image_id)
        if other:
            raise MismatchError(
                f"{out}: holds other rows of these images; choose another name:{list_some(other)}"
            )


def _same_rows(
    store: Reader, image: int, source: StoreOrArchive, place: int, selection: Selection
) -> bool:
    """By their checksums where rows go over as they are, else by the photograph's."""
    if selection.is_all(source.spec):
        theirs_V = source.row_crcs(place)[selection.views]
        return np.array_equal(store.array("crc32c")[image], theirs_V)
    return store.catalog["sha256"][image] == source.catalog["sha256"][place]


def _sealed(source: StoreOrArchive) -> np.ndarray:
    """Sealed images; the catalog is read after them.

    The cells of an image that is sealed later may still be empty.
    """
    sealed = np.asarray(source.sealed)
    if isinstance(source, Reader):
        source.refresh()
    return sealed


def given_columns(source: StoreOrArchive) -> list[str]:
    """Columns that a build is given; it finds the others while it reads photographs."""
    found_columns = OWN_COLUMNS[2:]
    return [column.name for column in source.spec.columns if column.name not in found_columns]


def _merged_columns(sources: list[Reader]) -> tuple[Column, ...]:
    """Every column of any part, texts as wide as the widest."""
    columns: dict[str, Column] = {}
    for source in sources:
        for column in source.spec.columns:
            known = columns.setdefault(column.name, column)
            if known.kind != column.kind:
                raise MismatchError(
                    f"{source.path}: "
                    f"column {column.name!r} is {column.kind}, in another part {known.kind}"
                )
            columns[column.name] = max(known, column, key=lambda each: each.width)
    return tuple(columns.values())


def _warn_of_other_making(sources: Sequence[Reader]) -> None:
    for key in ROUNDING:
        made: dict[str, Path] = {}
        for source in sources:
            made.setdefault(source.spec.made_by.get(key, "unknown"), source.path)
        if len(made) > 1:
            each = ", ".join(f"{value} in {path}" for value, path in made.items())
            warnings.warn(f"{key}: {each}; tokens agree only within rounding", stacklevel=3)

    unknown = [str(s.path) for s in sources if s.spec.made_by.get("weights") == "unknown"]
    if len(unknown) > 1:
        warnings.warn(
            f"nobody recorded which weights made the tokens of {', '.join(unknown)}; merge them "
            "only if you know that they were the same",
            stacklevel=3,
        )


def _check_twin(image_id: str, one: tuple[Reader, int], other: tuple[Reader, int]) -> None:
    """MismatchError unless an image that two parts hold is the same in both."""
    (a, i), (b, j) = one, other
    # seals hold for both, so equal checksums stand for equal bytes: no row is read
    same_rows = np.array_equal(a.array("crc32c")[i], b.array("crc32c")[j])
    labels_a = a.catalog.iloc[i][given_columns(a)]
    labels_b = b.catalog.iloc[j][given_columns(b)]
    same_labels = labels_a.equals(labels_b)
    if not (same_rows and same_labels):
        what = "labels" if same_rows else "tokens"
        raise MismatchError(
            f"{image_id}: its {what} in {a.path} are not those in {b.path}; keep it in one part "
            "only (`biomass store convert --images` leaves images out)"
        )
