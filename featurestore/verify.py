"""Every byte of a store, once: which rows are not what was committed."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurestore._bytes import crc32c, pread_into
from featurestore.errors import StoreDamaged
from featurestore.store import FeatureStore


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: with a row, or with a whole image when view is None."""

    image_id: str
    view: str | None
    path: str
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.image_id} {self.view or '(all views)'}: {self.what} ({self.path} at byte {self.offset})"


@dataclass
class VerifyReport:
    """What `verify` found; true when nothing is wrong."""

    n_images: int
    n_sealed: int = 0
    n_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.faults


def verify(store: FeatureStore, progress: Callable[[list[int]], Iterable[int]] | None = None) -> VerifyReport:
    """Check every sealed image's seal and every one of its rows; unsealed images are counted as absent, not read.

    Reads with pread into one buffer a row, so rot, a cut file and a bad disk are all reported, never a crash.
    """
    report = VerifyReport(store.n_images)
    images = np.flatnonzero(store.array("seal")[: store.n_images]).tolist()
    for image in progress(images) if progress else images:
        _verify_image(store, image, report)
    for image in (np.flatnonzero(store.array("seal")[store.n_images:]) + store.n_images).tolist():
        path, offset, _ = store.layout.extents["seal"].locate(image)
        report.faults.append(Fault(f"image {image}", None, str(path), offset, "sealed, but its id is gone"))
    return report


def _verify_image(store: FeatureStore, image: int, report: VerifyReport) -> None:
    report.n_sealed += 1
    image_id = store.catalog["image_id"][image]
    if not store.is_sealed(image):
        path, offset, _ = store.layout.extents["seal"].locate(image)
        report.faults.append(Fault(image_id, None, str(path), offset,
                                   "its seal does not match its catalog row, thumbnail and checksums"))
    for view, name in enumerate(store.view_names):
        parts = store.layout.row_parts(image, view)
        path, offset, _ = parts[1 if store.spec.has_patches else 0]
        if what := _row_fault(store, image, view):
            report.faults.append(Fault(image_id, name, str(path), offset, what))
        report.n_bytes += sum(n_bytes for _, _, n_bytes in parts)


def _row_fault(store: FeatureStore, image: int, view: int) -> str:
    """What is wrong with a row, or nothing."""
    try:
        crc = 0
        for part in store.layout.row_parts(image, view):
            crc = crc32c(_read(*part), start=crc)
        if crc != store.array("crc32c")[image, view]:
            return "its bytes are not those committed (CRC-32C differs)"
        return _tail_fault(store, image, view)
    except (OSError, StoreDamaged) as err:
        return f"cannot be read: {err}"


def _tail_fault(store: FeatureStore, image: int, view: int) -> str:
    """In Zarr each row of patches is followed by its own CRC-32C, which other clients check."""
    if not store.spec.has_patches or not store.layout.extents["patches"].row_crc:
        return ""
    path, offset, n_bytes = store.layout.row_parts(image, view)[1]
    row = _read(path, offset, n_bytes + 4)
    return "" if crc32c(row[:-4]) == int.from_bytes(row[-4:].tobytes(), "little") else "its chunk checksum differs"


def _read(path: Path, offset: int, n_bytes: int) -> np.ndarray:
    buffer = np.empty(n_bytes, np.uint8)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pread_into(fd, buffer, offset)
    finally:
        os.close(fd)
    return buffer
