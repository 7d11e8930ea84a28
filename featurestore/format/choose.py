"""Which format a path is in: the one place that chooses between them."""

import os
from pathlib import Path
from types import ModuleType

from featurestore.disk.durable import pwrite
from featurestore.disk.urls import is_elsewhere
from featurestore.errors import InputError, NoAccessError
from featurestore.format import hdf5, zarr
from featurestore.format.layout import Layout
from featurestore.format.spec import ARCHIVE_FORMAT, StoreSpec


def open_layout(path: Path) -> Layout:
    """Layout of the store at path, whichever format it is.

    Metadata is read once; no file stays open.

    InputError if there is nothing or something else, NoAccessError if it may not be read;
    StoreDamaged if it is a store that cannot be whole.
    """
    path = Path(os.path.abspath(path))
    try:
        return _format_of(path).open_layout(path)
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err


def create_store(
    path: Path,
    spec: StoreSpec,
    n: int,
    shard_images: int | None = None,
) -> Layout:
    """Lay out an empty store with room for n images; the suffix says the format.

    It is sparse, and takes no room yet.

    shard_images : of a Zarr store, images whose patches lie in one file; None is its own choice.

    Nothing is synced and the name is there at once; `writer.open_writer` hides it until it is
    whole.
    """
    check_suffix(path)
    path = Path(os.path.abspath(path))
    if path.suffix == ".zarr":
        layout = zarr.create(path, spec, n, shard_images)
    else:
        hdf5.create(path, spec, n)
        layout = hdf5.open_layout(path)
    # last, and written as rows are: libhdf5 and zarr-python do not open a store again
    file, offset, _ = layout.extents["metadata_crc32c"].locate(0)
    with open(file, "r+b", buffering=0) as handle:
        pwrite(handle.fileno(), [metadata_crc(layout).to_bytes(4, "little")], offset)
    return layout


def metadata_crc(layout: Layout) -> int:
    """CRC-32C of what is neither an array's bytes nor a shard's index, as it is now."""
    return _format_of(layout.path).metadata_crc(layout)


def is_archive(path: Path | str) -> bool:
    """Whether there is an archive at path, to judge by its root's metadata."""
    if is_elsewhere(path) or not os.path.isfile(path / "zarr.json"):
        return False
    return zarr.read_metadata(path, "group").get("attributes", {}).get("format") == ARCHIVE_FORMAT


def check_suffix(path: Path) -> None:
    """InputError unless the name says which format is meant."""
    if path.suffix not in {".h5", ".hdf5", ".zarr"}:
        raise InputError(
            f"{path}: a store's name ends in .h5 (one HDF5 file) or .zarr (a Zarr v3 folder)"
        )


def _format_of(path: Path) -> ModuleType:
    if path.is_dir():
        return zarr
    if path.is_file():
        return hdf5
    if {"http:", "https:", "s3:", "gs:", "az:"} & set(path.parts):  # the Path that a URL became
        raise InputError(
            f"{path}: a URL where a file or folder is wanted; `biomass store convert URL OUT` "
            "copies what is served there; train, store info, stats and diff, and FeatureStore.open "
            "take the URL itself"
        )
    if "/v1/stores/" in str(path):
        raise InputError(f"{path}: no such store; a URL begins with http:// or https://")
    raise InputError(
        f"{path}: no such store; `biomass store build --data DIR --out {path}` makes one"
    )
