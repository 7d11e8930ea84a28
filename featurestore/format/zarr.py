"""The Zarr v3 format: a folder of sharded, uncompressed arrays.

So each row is bytes at a known offset.

zarr-python writes the metadata; the shard files are laid out here, index included, before a single
row exists. Metadata is read back as the JSON it is: opening must be quick, and anything but the one
layout we write is refused from it.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.disk.durable import crc32c, pwrite, round_up
from featurestore.disk.maps import with_room
from featurestore.errors import InputError, NoAccessError, StoreDamaged
from featurestore.format.layout import MOST_IMAGES, Extent, Layout, check_format, read_spec
from featurestore.format.spec import FORMAT, Array, StoreSpec

SHARD_BYTES = 256 << 20  # whole images up to this much in one file of patches
CHUNK_BYTES = 1 << 20  # what a client reads at once of the small arrays
MOST_METADATA = 1 << 24  # bytes of a zarr.json
ABSENT = np.uint64(2**64 - 1)  # offset and length of an inner chunk that is not there

Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape]
"""Of an inner chunk, and of a shard."""
Grid = tuple[Array, Shape, Shape]
"""An array, the shape of its inner chunks, and that of its shards."""
Metadata = Callable[[Path, str], dict]
"""Gives the zarr.json of the node at a path, of the type that is named."""


def create(
    path: Path,
    spec: StoreSpec,
    n: int,
    shard_images: int | None = None,
) -> Layout:
    """Lay out an empty store for n images; every shard file is sparse and has its index already.

    shard_images : whose patches lie in one file; None is as many as SHARD_BYTES hold.
    """
    grids = tuple((array, *_grid(array, shard_images)) for array in spec.arrays(n))
    for key, content in _metadata(spec.to_json(), spec.format_version, grids).items():
        file = path / key
        os.makedirs(file.parent, exist_ok=True)
        file.write_bytes(content)

    # nothing of it is read back: these are the very grids and indices that a reader would find
    layout = _layout(path, spec, grids)
    for file, (offset, index) in layout.indices.items():
        os.makedirs(file.parent, exist_ok=True)
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            # behind the room for the rows: the file is then as long as it will ever be, and sparse
            pwrite(fd, [index], offset)
        finally:
            os.close(fd)
    layout.check_sizes()
    return layout


# zarr-python takes 3 ms an array, and the parts that a worker builds are of two sizes at most
@lru_cache(4)
def _metadata(spec: str, format_version: int, grids: tuple[Grid, ...]) -> dict[str, bytes]:
    """Every zarr.json by its key, as zarr-python writes it."""
    import zarr
    from zarr.codecs import Crc32cCodec

    written = {}
    root = zarr.create_group(
        zarr.storage.MemoryStore(written),
        zarr_format=3,
        attributes={"format": FORMAT, "format_version": format_version, "spec": spec},
    )
    root.create_group("catalog")
    for array, chunk, shard in grids:
        # of patches each row carries its own CRC-32C, which zarr-python then checks as it reads
        compressors = [Crc32cCodec()] if array.row_axes == 2 else None
        root.create_array(**array_settings(array, chunk, shard), compressors=compressors)
    return {key: content.to_bytes() for key, content in written.items()}


def open_layout(path: Path) -> Layout:
    """Read the folder's metadata.

    Codecs, grids and shard indices must be exactly those that `create` writes.
    """
    layout = laid_out(path, read_metadata)
    layout.check_sizes()
    for extent in layout.extents.values():
        # of patches the first alone: there may be many, each is looked at when it is first read
        os.close(layout.open_file(extent.paths[0]))
    return layout


def laid_out(path: Path, metadata: Metadata) -> Layout:
    """Where everything lies, from metadata alone; no shard is looked at."""
    attributes = metadata(path, "group").get("attributes", {})
    version = attributes.get("format_version")
    check_format(path, attributes.get("format"), version)
    spec = read_spec(path, attributes.get("spec"), version)
    metadata(path / "catalog", "group")
    grids = []
    for array in spec.arrays(count_images(path, metadata)):
        shapes = _check_array(path, array, metadata(path / array.name, "array"))
        grids.append((array, *shapes))
    return _layout(path, spec, grids)


def _layout(path: Path, spec: StoreSpec, grids: Iterable[Grid]) -> Layout:
    extents, sizes, indices = {}, {}, {}
    padding = []
    for array, chunk, shard in grids:
        extent = extents[array.name] = _extent(path, array, shard)
        for file, file_path in enumerate(extent.paths):
            index = _index(extent, chunk, file)
            offset = _index_offset(extent, chunk, file)
            indices[file_path] = offset, index
            sizes[file_path] = offset + len(index)
        # rows of patches are chunks of their own: what follows each is looked at with the row
        if array.name != "patches":
            offset, _ = indices[extent.paths[0]]
            padding.append((extent.paths[0], array.n_bytes, offset - array.n_bytes))
    return Layout(path, spec, extents, sizes, tuple(padding), indices=indices)


def count_images(path: Path, metadata: Metadata | None = None) -> int:
    """Images that a store or an archive has room for, from the shape of its seals."""
    shape = (metadata or read_metadata)(path / "seal", "array").get("shape")
    if not (
        isinstance(shape, list)
        and len(shape) == 1
        and type(shape[0]) is int
        and 1 <= shape[0] <= MOST_IMAGES
    ):
        raise StoreDamaged(
            f"{path / 'seal'}/zarr.json: "
            f"shape is {shape}, one axis of 1 to {MOST_IMAGES} images expected"
        )
    return shape[0]


def images_per_shard(spec: StoreSpec) -> int:
    """Images whose patches a new store of this spec keeps in one file."""
    (patches,) = (array for array in spec.arrays(1) if array.name == "patches")
    return max(1, SHARD_BYTES // (patches.shape[1] * _stride(patches)))


def files_of_patches(
    spec: StoreSpec, n: int, shard_images: int | None, numbers: range
) -> list[tuple[Path, int, bytes]]:
    """Some files of patches of a store for n images.

    Each one's path below the store, and offset and bytes of its index, with which it ends.
    """
    (patches,) = (array for array in spec.arrays(n) if array.name == "patches")
    chunk, shard = _grid(patches, shard_images)
    extent = _extent(Path(), patches, shard)
    files = []
    for number in numbers:
        ends_in = _index_offset(extent, chunk, number), _index(extent, chunk, number)
        files.append((extent.paths[number], *ends_in))
    return files


def rows_per_file(array: Array) -> int:
    """Rows of an array that a new store keeps in one file."""
    return math.prod(_grid(array)[1][: array.row_axes])


def metadata_crc(layout: Layout) -> int:
    """CRC-32C of every zarr.json, which never change.

    The root's comes first, the others follow in order of their array's name.
    """
    folders = ["", "catalog", *sorted(layout.extents)]
    files = [layout.path / folder / "zarr.json" for folder in folders]
    return crc32c(*(file.read_bytes() for file in files))


def _grid(array: Array, shard_images: int | None = None) -> Shapes:
    """Inner chunk and shard shape.

    Rows of patches are chunks of their own in files of whole images; all else is in one file.
    """
    if array.row_axes == 2:
        image_bytes = array.shape[1] * _stride(array)
        per_file = max(1, min(array.shape[0], shard_images or SHARD_BYTES // image_bytes))
        return (1, 1, *array.row_shape), (per_file, *array.shape[1:])
    per_chunk = max(1, min(array.shape[0], CHUNK_BYTES // array.row_bytes))
    # rounded up: a shard holds whole chunks, the last of them with room to spare
    per_shard = round_up(array.shape[0], per_chunk)
    return (per_chunk, *array.row_shape), (per_shard, *array.row_shape)


def _stride(array: Array) -> int:
    # a row of patches begins on a page, and four bytes of CRC-32C follow it
    return round_up(array.row_bytes + 4) if array.row_axes == 2 else array.row_bytes


def _extent(path: Path, array: Array, shard: Shape) -> Extent:
    per_file = math.prod(shard[: array.row_axes])
    # shards are cut along the first axis alone, so all other numbers of a shard are 0
    n_files = -(-array.n_rows // per_file)
    folder = f"{path}/{array.name}/c"
    rest = "/0" * len(array.shape[1:])
    # each from one text: to join Paths takes twice as long, and there may be many
    paths = tuple(Path(f"{folder}/{file}{rest}") for file in range(n_files))
    return Extent(array, paths, per_file, 0, _stride(array), row_crc=array.row_axes == 2)


def array_settings(array: Array, chunk: Shape, shard: Shape) -> dict[str, Any]:
    """What zarr-python's `create_array` takes for an array of ours, compressors apart."""
    from zarr.codecs import BytesCodec

    return {
        "name": array.name,
        "shape": array.shape,
        "dtype": array.dtype,
        "chunks": chunk,
        "shards": shard,
        "fill_value": 0,
        "filters": None,
        "serializer": BytesCodec(endian="little"),
        "dimension_names": array.dims,
    }


def _rows_per_chunk(extent: Extent, chunk: Shape) -> int:
    return math.prod(chunk[: extent.array.row_axes])


def _chunks_in(extent: Extent, chunk: Shape, file: int) -> int:
    return -(-extent.rows_in(file) // _rows_per_chunk(extent, chunk))


def _index_offset(extent: Extent, chunk: Shape, file: int) -> int:
    n_rows = _chunks_in(extent, chunk, file) * _rows_per_chunk(extent, chunk)
    return n_rows * extent.stride


def _index(extent: Extent, chunk: Shape, file: int) -> bytes:
    """The shard's index: (offset, length) of each inner chunk, then its CRC-32C.

    Chunks beyond the array are absent.
    """
    per_chunk = _rows_per_chunk(extent, chunk)
    n_bytes = per_chunk * extent.array.row_bytes + (4 if extent.row_crc else 0)
    n_chunks = extent.rows_per_file // per_chunk
    n_present = _chunks_in(extent, chunk, file)
    return _index_of(n_chunks, n_present, per_chunk * extent.stride, n_bytes)


# all full shards of an array have one index: offsets count from the shard's own beginning
@lru_cache(8)
def _index_of(n_chunks: int, n_present: int, stride: int, n_bytes: int) -> bytes:
    entries = np.full((n_chunks, 2), ABSENT, "<u8")
    entries[:n_present, 0] = np.arange(n_present, dtype="<u8") * np.uint64(stride)
    entries[:n_present, 1] = n_bytes
    return entries.tobytes() + crc32c(entries).to_bytes(4, "little")


def read_metadata(path: Path, node_type: str) -> dict:
    """The zarr.json of a node; only a Zarr v3 node of the type is accepted."""
    file = path / "zarr.json"
    try:
        # a link may lead anywhere, a pipe or device never end
        if not stat.S_ISREG(file.lstat().st_mode):
            raise StoreDamaged(
                f"{file}: no file, or a link; a store's own files are not followed elsewhere"
            )
        # read whole and parsed: ours have some kilobytes
        if file.stat().st_size > MOST_METADATA:
            raise StoreDamaged(f"{file}: {file.stat().st_size} bytes is no metadata of ours")
        data = with_room(file, file.read_bytes)
    except FileNotFoundError as err:
        raise InputError(f"{path}: not a Zarr v3 {node_type}: it has no zarr.json") from err
    except PermissionError as err:
        raise NoAccessError.of(err, file) from err
    except OSError as err:
        raise StoreDamaged(f"{file}: unreadable metadata: {err}") from err
    return parse_metadata(data, file, node_type)


def parse_metadata(data: bytes, file: Path, node_type: str) -> dict:
    """The node that a zarr.json describes; StoreDamaged unless it is of Zarr v3 and the type."""
    try:
        node = json.loads(data)
        if node["zarr_format"] != 3 or node["node_type"] != node_type:
            raise ValueError(f"not a Zarr v3 {node_type}")
        if not isinstance(node.get("attributes", {}), dict):
            raise ValueError("its attributes are no mapping")
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise StoreDamaged(f"{file}: unreadable metadata: {err}") from err
    return node


def _grid_of(node: dict, path: Path, array: Array) -> Shapes:
    try:
        shard = tuple(map(int, node["chunk_grid"]["configuration"]["chunk_shape"]))
        chunk = tuple(map(int, node["codecs"][0]["configuration"]["chunk_shape"]))
        if min(chunk + shard) < 1 or shard[0] % chunk[0]:
            raise ValueError(f"inner chunk {chunk} does not divide shard {shard}")
    except (KeyError, IndexError, TypeError, ValueError) as err:
        raise StoreDamaged(
            f"{path / array.name}/zarr.json: not a sharded array of this format ({err})"
        ) from err
    return chunk, shard


def _check_array(path: Path, array: Array, node: dict) -> Shapes:
    """Inner chunk and shard shape of an array; StoreDamaged unless `create` writes such."""
    chunk, shard = _grid_of(node, path, array)
    # the index is made in memory, as long as a shard says that it is: no longer than it can be
    if shard[0] > round_up(array.shape[0], chunk[0]):
        raise StoreDamaged(
            f"{path / array.name}/zarr.json: a shard of {shard[0]} images for {array.shape[0]}"
        )
    # how many images are in a chunk and a shard is the writer's choice, all else is the format's
    own_chunk, own_shard = _grid(array)
    if chunk[1:] != own_chunk[1:] or shard[1:] != own_shard[1:]:
        raise StoreDamaged(
            f"{path / array.name}: chunk {chunk} in shard {shard} is not this format's grid"
        )
    expected = {
        "shape": list(array.shape),
        "data_type": np.dtype(array.dtype).name,
        "codecs": [_sharding(array, chunk)],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }
    for key, value in expected.items():
        if node.get(key) != value:
            raise StoreDamaged(
                f"{path / array.name}/zarr.json: {key} is {node.get(key)}, expected {value}"
            )
    return chunk, shard


def _sharding(array: Array, chunk: Shape) -> dict:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    # of single bytes zarr-python names no order
    to_bytes = {"name": "bytes"} if array.dtype == "|u1" else little
    index = [little, {"name": "crc32c"}]
    inner = [to_bytes, {"name": "crc32c"}] if array.row_axes == 2 else [to_bytes]
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(chunk),
            "codecs": inner,
            "index_codecs": index,
            "index_location": "end",
        },
    }
