"""A store as a Zarr v3 group: a Zarr store's own files, or a view of an HDF5 store.

Every key is found in a table or counted within an array's shape; none becomes part of a file name.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from featurestore.errors import StoreDamaged
from featurestore.format.layout import Extent
from featurestore.format.spec import FORMAT, Array
from featurestore.store import FeatureStore
from service.answers.file_bytes import BytesResponse
from service.answers.openapi import described
from service.answers.parameters import name_of, opened_of, require_sealed
from service.errors import ServiceError
from service.pieces import Piece, Span, Zeros
from service.routes.rows import array_headers, row_etag
from service.served import Opened, file_etag

CHUNK_BYTES = 1 << 20
MOST_METADATA_BYTES = 1 << 24
CHUNK = re.compile(r"(?:0|[1-9]\d{0,8})(?:/(?:0|[1-9]\d{0,8}))*", re.ASCII)


@described("bytes", ("not-found", "not-sealed", "store-damaged", "store-gone"))
def zarr_object(request: Request) -> Response:
    """An object of the store as a Zarr v3 group: zarr.json, NAME/zarr.json or NAME/c/0/0...

    Of a Zarr store they are its own files. An HDF5 store is shown with chunks without compression:
    a row of patches each, which is refused with 409 while its image is not sealed, and about 1 MB
    of whole images of the other arrays.
    """
    opened = opened_of(request)
    key = name_of(request, "key")
    if opened.is_virtual:
        return _virtual(opened, key)
    return _own_file(opened, key)


def _own_file(opened: Opened, key: str) -> Response:
    layout = opened.store.layout
    path, n_bytes = opened.objects.get(key, (None, 0))
    if path is None:
        raise _no_object(key)
    etag = file_etag(opened.generation, path)
    # a zarr.json is no file of the layout, whose sizes and inodes say that it is the one opened
    piece = Span(path, 0, n_bytes) if path in layout.sizes else _metadata_of(path)
    return BytesResponse(layout, [piece], etag, {})


def _metadata_of(path: Path) -> bytes:
    """A zarr.json; StoreDamaged if it is not there now, or a link, which may lead anywhere."""
    # non-blocking: what was replaced by a pipe must not hold up a thread
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(path, flags), "rb") as file:
            return file.read(MOST_METADATA_BYTES)
    except OSError as err:
        raise StoreDamaged(f"{path}: {err.strerror}; restore it or build the store again") from err


def _virtual(opened: Opened, key: str) -> Response:
    store = opened.store
    # NAME/c/0/1 is a chunk, NAME/zarr.json what describes an array; NAME may hold slashes
    name, slash, rest = key.rpartition("/c/") if "/c/" in key else key.rpartition("zarr.json")
    name = name.rstrip("/") if rest == "" else name
    if key in ("zarr.json", "catalog/zarr.json"):
        return _metadata(opened, group(store, root=key == "zarr.json"))
    if name not in store.layout.extents or (slash == "zarr.json" and key != f"{name}/zarr.json"):
        raise _no_object(key)
    extent = store.layout.extents[name]
    if slash == "zarr.json":
        return _metadata(opened, array_metadata(extent.array))
    return _chunk(opened, extent, _indices(key, rest, extent.array))


def _indices(key: str, text: str, array: Array) -> tuple[int, ...]:
    """A chunk's place on the grid; ServiceError `not-found` if there is none such."""
    indices = tuple(map(int, text.split("/"))) if CHUNK.fullmatch(text) else ()
    grid = []
    for size, chunk in zip(array.shape, chunk_shape(array), strict=True):
        grid.append(-(-size // chunk))  # rounded up: the last chunk may stand out
    if len(indices) != len(grid):
        raise _no_object(key)
    if any(i >= n for i, n in zip(indices, grid, strict=True)):
        raise _no_object(key)
    return indices


def _chunk(opened: Opened, extent: Extent, indices: tuple[int, ...]) -> Response:
    store = opened.store
    array = extent.array
    shape = chunk_shape(array)
    headers = array_headers(shape, array.dtype)
    if array.name == "patches":
        # absent, it would read as zeros: an error is what clients do not take for an empty chunk
        image, view = indices[:2]
        require_sealed(store, image)
        piece = opened.row_part("patches", image, view)
        return BytesResponse(store.layout, [piece], row_etag(store, image, view), headers)
    first = indices[0] * shape[0]
    n_rows = min(shape[0], array.n_rows - first)
    n_bytes = array.row_bytes
    pieces: list[Piece] = [opened.array_part(array.name, first * n_bytes, n_rows * n_bytes)]
    # Zarr's last chunk is as large as the others, whatever the array holds of it
    if n_rows < shape[0]:
        pieces.append(Zeros((shape[0] - n_rows) * n_bytes))
    return BytesResponse(store.layout, pieces, opened.etag_of(array.name), headers)


def _metadata(opened: Opened, node: dict[str, Any]) -> Response:
    return BytesResponse(
        opened.store.layout,
        [json.dumps(node, indent=1).encode()],
        f'"{opened.generation}"',
        {},
    )


def group(store: FeatureStore, root: bool) -> dict[str, Any]:
    """zarr.json of the root or of `catalog`.

    The root's lists all arrays, since over HTTP a client cannot list them.
    """
    node = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    if not root:
        return node
    inner = {"catalog": node}
    for name, extent in store.layout.extents.items():
        inner[name] = array_metadata(extent.array)
    attributes = {
        "format": FORMAT,
        "format_version": store.spec.format_version,
        "spec": store.spec.to_json(),
    }
    return {
        **node,
        "attributes": attributes,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": inner},
    }


def array_metadata(array: Array) -> dict[str, Any]:
    """zarr.json of an array."""
    dtype = np.dtype(array.dtype)
    to_bytes: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:  # a single byte has no order
        to_bytes["configuration"] = {"endian": "little"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(chunk_shape(array))},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0 if dtype.kind == "u" else 0.0,
        "codecs": [to_bytes],
        "attributes": {},
        "dimension_names": list(array.dims),
    }


def chunk_shape(array: Array) -> tuple[int, ...]:
    """A row of patches; of the other arrays about CHUNK_BYTES of whole images."""
    if array.row_axes == 2:
        return (1, 1, *array.row_shape)
    n_images = min(array.n_rows, CHUNK_BYTES // max(1, array.row_bytes))
    return (max(1, n_images), *array.row_shape)


def _no_object(key: str) -> ServiceError:
    return ServiceError("not-found", f"no object {key[:100]!r}", "zarr.json is the group's")
