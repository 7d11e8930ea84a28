"""Every byte of a store, once: which rows are not what was committed.

`repair` un-seals those, so that a build makes them again.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurestore.disk.durable import (
    file_sha256,
    locked,
)
from featurestore.disk.durations import duration
from featurestore.disk.urls import is_elsewhere
from featurestore.errors import InputError, StoreDamaged, UsageError
from featurestore.format.layout import OTHER_INDEX, Layout
from featurestore.manage.sums import Progress, RowSums
from featurestore.photos.find import find_photographs
from featurestore.photos.images import find_damage
from featurestore.photos.jpeg import UNCHECKED, can_check
from featurestore.read.open import open_reader
from featurestore.read.reader import Reader
from featurestore.read.source import Files
from featurestore.write.writer import StoreWriter


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a row, an image (view is None) or the store (image is None)."""

    image: int | None
    image_id: str
    view: str | None
    path: str
    offset: int
    what: str
    damage: bool = True
    """Whether the store is to blame, and un-sealing the image the cure."""

    def __str__(self) -> str:
        where = f"{self.image_id} {self.view or '(all views)'}: " if self.image is not None else ""
        return f"{where}{self.what} ({self.path} at byte {self.offset})"


@dataclass
class VerifyReport:
    """What `verify` found; true when nothing is wrong."""

    n_images: int
    n_sealed: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    """Seconds that the checksum waited for bytes."""
    faults: list[Fault] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.faults

    @property
    def damaged(self) -> list[int]:
        """Images that un-sealing would have made again."""
        return sorted(
            {fault.image for fault in self.faults if fault.damage and fault.image is not None}
        )

    def pace(self) -> str:
        """How fast it went, and what set the pace."""
        limit = "the disk" if self.waited_s > self.seconds / 2 else "the checksum"
        return (
            f"{self.n_bytes / 1e9:.3g} GB in {duration(self.seconds)}, "
            f"{self.n_bytes / 1e9 / max(self.seconds, 1e-9):.2g} GB/s, as fast as {limit} allows"
        )


def verify(
    store: Reader,
    progress: Progress = lambda n_bytes: None,
    images: Path | None = None,
    max_pixels: int | None = None,
) -> VerifyReport:
    """Check the seal and every value of each sealed image; others are counted as absent.

    Reads with pread, so rot, a cut file and a bad disk are all reported, never a crash.

    progress : told how many more bytes were read.
    images : folder the catalog's paths start from; photographs that changed since, or are damaged
        inside, are faults too.
    max_pixels : the most that one of them may have, None is the store's.
    """
    start = time.perf_counter()
    sums = RowSums(store, progress)
    store.source.distrust()  # arrays too are read where they lie
    store.refresh()
    with closing(sums.files):
        sums.run()
        report = VerifyReport(
            store.n_images,
            len(sums.sealed),
            sums.n_bytes,
            waited_s=sums.waited_s,
        )
        store.refresh()  # a builder may have added images meanwhile
        report.faults += _row_faults(sums)
        told = {fault.path for fault in report.faults}
        report.faults += [
            *_seal_faults(store, sums.files.layout),
            *_catalog_faults(store, sums.files.layout),
            *_file_faults(sums.files, told),
            *_metadata_faults(sums.files),
        ]
    report.seconds = time.perf_counter() - start
    if images:
        report.faults += _photograph_faults(store, images, max_pixels or store.spec.max_pixels)
    # those of the store itself first
    report.faults.sort(key=lambda fault: -1 if fault.image is None else fault.image)
    return report


def repair(path: Path, progress: Progress = lambda n_bytes: None) -> VerifyReport:
    """Verify, and un-seal what is damaged, so that the next build makes it again.

    Holds the builder's lock.

    Nothing else is changed. LockedError while a builder is at work.
    """
    if is_elsewhere(path):
        raise UsageError(f"{path}: only a store on this machine can be repaired; copy it here")
    # locked first: a builder could seal an image between the look at it and its un-sealing
    with locked(path), open_reader(path) as store:
        report = verify(store, progress)
        StoreWriter(store.layout, store).unseal(report.damaged)
    return report


def _row_faults(sums: RowSums) -> Iterator[Fault]:
    store = sums.store
    layout = sums.files.layout
    # not of the others: holes are not touched
    differs_SV = sums.crc_NV[sums.sealed] != store.array("crc32c")[sums.sealed]
    differs = {
        (int(sums.sealed[i]), int(view)): "its bytes are not those committed (CRC-32C differs)"
        for i, view in np.argwhere(differs_SV)
    }
    sealed = set(sums.sealed.tolist())
    for (image, view), what in sorted((differs | sums.wrong).items()):
        if image not in sealed:  # read along with its neighbours
            continue
        # of a row that lies in four places its largest part: patches, or cls in a pooled store
        parts = layout.row_parts(image, view)
        path, offset, _ = parts[1] if store.spec.has_patches else parts[0]
        yield Fault(
            image,
            store.catalog["image_id"][image],
            store.view_names[view],
            str(path),
            offset,
            what,
        )


def _seal_faults(store: Reader, layout: Layout) -> Iterator[Fault]:
    seal_N = store.array("seal")
    extent = layout.extents["seal"]
    with_seal = np.flatnonzero(seal_N[: store.n_images] != 0)
    for image in np.setdiff1d(with_seal, store.sealed).tolist():
        path, offset, _ = extent.locate(image)
        yield Fault(
            image,
            store.catalog["image_id"][image],
            None,
            str(path),
            offset,
            "its seal does not match its catalog row, thumbnail and checksums",
        )

    # a catalog ends at its first empty id: seals behind that were committed before the id was lost
    behind_the_end = store.n_images + np.flatnonzero(seal_N[store.n_images :] != 0)
    for image in behind_the_end.tolist():
        path, offset, _ = extent.locate(image)
        yield Fault(
            image,
            f"image {image}",
            None,
            str(path),
            offset,
            "sealed, but an id at or before it is gone",
        )


def _catalog_faults(store: Reader, layout: Layout) -> Iterator[Fault]:
    """Places in use that have no path.

    A place in use always has one: a bit that flipped in a free place's id puts it in use.
    """
    is_empty_N = store.array("catalog/path")[: store.n_images, 0] == 0
    for image in np.flatnonzero(is_empty_N).tolist():
        path, offset, _ = layout.extents["catalog/image_id"].locate(image)
        yield Fault(
            image,
            store.catalog["image_id"][image],
            None,
            str(path),
            offset,
            "it has an id, but no path",
        )


def _file_faults(files: Files, told: set[str]) -> Iterator[Fault]:
    """Files of another length, or whose index leads other clients elsewhere.

    told : files whose rows tell already that they cannot be read.
    """
    for path, size in files.layout.sizes.items():
        try:
            found = files.size(path)
            offset, expected = files.layout.indices.get(path, (0, b""))
            index = np.empty(len(expected), np.uint8)
            files.read_into(path, index, offset)
        except (OSError, StoreDamaged) as err:
            if str(path) not in told:  # no row of a sealed image lies there
                yield Fault(None, "", None, str(path), 0, f"cannot be read: {err}")
            continue
        if found != size:
            what = f"{found} bytes long, {size} expected"
            yield Fault(None, "", None, str(path), min(found, size), what)
        elif index.tobytes() != expected:
            yield Fault(None, "", None, str(path), offset, OTHER_INDEX)


def _metadata_faults(files: Files) -> Iterator[Fault]:
    path, offset, _ = files.layout.extents["metadata_crc32c"].locate(0)
    committed = np.empty(1, "<u4")
    files.read_into(path, committed.view(np.uint8), offset)
    if files.metadata_crc() != committed[0]:
        yield Fault(
            None,
            "",
            None,
            str(path),
            offset,
            "the metadata is not what was laid out, by rot or another program; no row suffers: "
            "`biomass store convert` makes a new store of them",
        )
    # no checksum covers these bytes, but the format says what they are
    for file, start, n_bytes in files.layout.padding:
        buffer = np.empty(n_bytes, np.uint8)
        files.read_into(file, buffer, start)
        if buffer.any():
            yield Fault(
                None,
                "",
                None,
                str(file),
                start + int(np.argmax(buffer != 0)),
                "its padding is not zero",
            )


def _photograph_faults(store: Reader, root: Path, max_pixels: int) -> Iterator[Fault]:
    """Photographs that are gone, have other bytes than when tokens were made, or are damaged.

    The last means damage from when they were encoded.
    """
    if not can_check():
        warnings.warn(UNCHECKED, stacklevel=3)
    catalog = store.catalog.iloc[store.sealed]
    files = find_photographs(catalog, root, outside=True, missing=True)
    rows = zip(catalog.index, catalog["image_id"], files, catalog["sha256"], strict=True)
    for image, image_id, file, sha256 in rows:
        if not file.is_file():
            yield Fault(image, image_id, None, str(file), 0, "its photograph is missing", False)
        elif sha256 and file_sha256(file) != sha256:
            # of imported tokens' photographs nobody may know
            yield Fault(
                image,
                image_id,
                None,
                str(file),
                0,
                "its photograph changed since it was encoded",
                False,
            )
        else:
            # tokens that were imported may be of a format that cannot be read here
            damage = None
            with suppress(InputError):
                damage = find_damage(file, max_pixels)
            if damage:
                what = f"its photograph is {damage}"
                yield Fault(image, image_id, None, str(file), 0, what, False)
