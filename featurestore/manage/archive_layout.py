"""How an archive's arrays lie in their Zarr group: chunks and codecs.

Metadata is refused before it costs anything.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from featurestore.backbone.rounding import ERROR_FIELDS
from featurestore.errors import InputError, StoreDamaged
from featurestore.format.layout import check_version
from featurestore.format.spec import ARCHIVE_FORMAT, Array, StoreSpec
from featurestore.format.zarr import array_settings, read_metadata

if TYPE_CHECKING:
    import zarr

Codec = Literal["zstd", "int8"]
SHARD_BYTES = 64 << 20  # whole images up to this much in one file of patches
# of all other arrays of rows: what is held while patches are written, and read at once
BLOCK_BYTES = 32 << 20
MOST_CHUNK_BYTES = 2**31 - 17  # blosc's own limit
# so long that a float16's two bytes fill zstd blocks of their own: ratio 1.17 at level 1, by
# default 1.08
BLOSC_BLOCK = 1 << 20
# arrays of rows that are chunked in blocks of images
BLOCK_NAMES = ("cls", "patches_scale", "pooled", "stats", "thumbs")


@dataclass(frozen=True)
class Scheme:
    """The arrays of an archive of n images, their chunks and codecs."""

    codec: Codec
    spec: StoreSpec
    n: int

    @cached_property
    def arrays(self) -> list[Array]:
        """Those of the store, less the checksum of its metadata.

        With int8, patches are i1 with a scale for each token.
        """
        arrays = [array for array in self.spec.arrays(self.n) if array.name != "metadata_crc32c"]
        if self.codec == "int8":
            at, patches = next(
                (k, array) for k, array in enumerate(arrays) if array.name == "patches"
            )
            arrays[at : at + 1] = [
                Array("patches", patches.shape, "|i1", patches.dims),
                Array("patches_scale", patches.shape[:-1], "<f4", patches.dims[:-1]),
            ]
        return arrays

    @cached_property
    def per_file(self) -> int:
        """Images whose patches share a file."""
        patches = [array.n_bytes // self.n for array in self.arrays if array.name == "patches"]
        # by their size before compression: what is written is smaller
        return max(1, min(self.n, SHARD_BYTES // patches[0])) if patches else 1

    @cached_property
    def per_block(self) -> int:
        """Images written together: a multiple of those that share a file."""
        n_bytes = sum(array.row_bytes for array in self.arrays if array.name in BLOCK_NAMES)
        fitting = max(1, min(self.n, BLOCK_BYTES // n_bytes))
        return max(self.per_file, fitting // self.per_file * self.per_file)

    def buffers(self, names: Sequence[str], n: int) -> dict[str, np.ndarray]:
        """Zeros for n images of those of these arrays that there are."""
        return {
            array.name: np.zeros((n, *array.shape[1:]), array.dtype)
            for array in self.arrays
            if array.name in names
        }

    def create(self, path: Path) -> "tuple[zarr.Group, dict[str, zarr.Array]]":
        """Lay out the group.

        Write the arrays by these handles: others would leave out chunks of zeros.
        """
        import zarr
        from zarr.codecs import BloscCodec, Crc32cCodec

        root = zarr.create_group(
            path,
            zarr_format=3,
            attributes={
                "format": ARCHIVE_FORMAT,
                "format_version": self.spec.format_version,
                "spec": self.spec.to_json(),
                "codec": self.codec,
            },
        )
        root.create_group("catalog")
        handles = {}
        for array in self.arrays:
            chunk, shard = self.grid(array)
            itemsize = np.dtype(array.dtype).itemsize
            blosc = BloscCodec(
                cname="zstd",
                clevel=1,
                typesize=itemsize,
                shuffle="shuffle" if itemsize > 1 else "noshuffle",
                blocksize=BLOSC_BLOCK,
            )
            handles[array.name] = root.create_array(
                **array_settings(array, chunk, shard),
                compressors=[blosc, Crc32cCodec()],
                # so that a missing file is damage
                config={"write_empty_chunks": True},
            )
        return root, handles

    def grid(self, array: Array) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Chunk and shard: a row of patches in a file of images, a block of rows, a column."""
        if array.name == "patches":
            return (1, 1, *array.row_shape), (self.per_file, *array.shape[1:])
        first = self.per_block if array.name in BLOCK_NAMES else self.n
        return (first, *array.shape[1:]), None


def check_attributes(path: Path, attributes: dict) -> None:
    """InputError for no archive or another version, StoreDamaged for wrong attributes."""
    if attributes.get("format") != ARCHIVE_FORMAT:
        raise InputError(
            f"{path}: not a {ARCHIVE_FORMAT}: its root attribute 'format' is "
            f"{attributes.get('format')!r}"
        )
    check_version(path, attributes.get("format_version"))
    sizes = [attributes.get("bytes_in"), attributes.get("bytes_out")]
    error = attributes.get("error", 0)  # None is an answer: nothing was rounded
    is_error = error is None
    if isinstance(error, dict):
        is_error = {name for name, x in error.items() if type(x) is float} == ERROR_FIELDS
    if not (
        is_error
        and isinstance(attributes.get("spec"), str)
        and attributes.get("codec") in get_args(Codec)
        and all(type(size) is int and size > 0 for size in sizes)
    ):
        raise StoreDamaged(
            f"{path}/zarr.json: attributes codec, error, bytes_in or bytes_out are not an "
            "archive's; take another copy of the archive"
        )


def check_array(path: Path, array: Array, scheme: Scheme) -> None:
    """StoreDamaged unless an array is as `create` lays it out, and all its files are there.

    The number of images in a chunk may differ. A chunk that is missing would read as zeros.
    """
    node = read_metadata(path / array.name, "array")
    where = f"{path / array.name}/zarr.json"
    try:
        first = node["chunk_grid"]["configuration"]["chunk_shape"][0]  # images in a file
    except (KeyError, IndexError, TypeError) as err:
        raise StoreDamaged(f"{where}: no chunk grid of this format ({err})") from err
    if type(first) is not int or not 1 <= first <= scheme.n:
        raise StoreDamaged(f"{where}: chunks of {first} images, there are {scheme.n}")
    chunk = (1, 1, *array.row_shape)
    shard = (first, *array.shape[1:])
    expected = {
        "shape": list(array.shape),
        "data_type": np.dtype(array.dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }
    for key, value in expected.items():
        if node.get(key) != value:
            raise StoreDamaged(f"{where}: {key} is {node.get(key)}, expected {value}")
    if array.name == "patches":
        _check_sharding(node, where, chunk)
    else:
        _check_codecs(node.get("codecs"), where, ["bytes", "blosc", "crc32c"])
    # a decoder makes room for a chunk by these numbers, before it has seen a byte of it
    unit = chunk if array.name == "patches" else shard
    if math.prod(unit) * np.dtype(array.dtype).itemsize > MOST_CHUNK_BYTES:
        raise StoreDamaged(f"{where}: chunks of {unit} are larger than any we write")
    # a file spans all axes but the first
    other_axes = ["0"] * len(array.shape[1:])
    for k in range(-(-scheme.n // first)):
        file = path.joinpath(array.name, "c", str(k), *other_axes)
        if not file.is_file():
            raise StoreDamaged(f"{file}: missing; take another copy of the archive")


def _check_sharding(node: dict, where: str, chunk: tuple[int, ...]) -> None:
    _check_codecs(node.get("codecs"), where, ["sharding_indexed"])
    found = node["codecs"][0].get("configuration", {})
    if found.get("chunk_shape") != list(chunk) or found.get("index_location") != "end":
        raise StoreDamaged(
            f"{where}: inner chunks {found.get('chunk_shape')}, expected {list(chunk)}"
        )
    _check_codecs(found.get("codecs"), where, ["bytes", "blosc", "crc32c"])
    _check_codecs(found.get("index_codecs"), where, ["bytes", "crc32c"])


def _check_codecs(codecs: object, where: str, names: list[str]) -> None:
    if (
        not isinstance(codecs, list)
        or [codec.get("name") if isinstance(codec, dict) else codec for codec in codecs] != names
    ):
        raise StoreDamaged(
            f"{where}: codecs {json.dumps(codecs)[:200]}, expected {', '.join(names)}"
        )
