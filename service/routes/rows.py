"""Tokens of a row, whole small arrays, and the HDF5 file: bytes as they lie on disk."""

import io
import math
import re

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from featurestore.store import FeatureStore
from service.answers.file_bytes import BytesResponse
from service.answers.openapi import described
from service.answers.parameters import choice_of, name_of, opened_of, sealed_image_of, view_of
from service.errors import ServiceError
from service.pieces import Piece, Span, cut, length
from service.served import Opened, file_etag

PARTS = ("patches", "cls", "pooled", "row")


@described(
    "bytes",
    ("not-found", "not-sealed", "store-damaged", "store-gone"),
    tokens=(
        "Which of the row's arrays; row: all its bytes.",
        {"enum": list(PARTS), "default": PARTS[0]},
    ),
    patch=("a:b, of patches alone, along P.", {"type": "string", "pattern": r"^\d{0,9}:\d{0,9}$"}),
    format=("npy: a .npy file.", {"enum": ["raw", "npy"], "default": "raw"}),
)
def row(request: Request) -> Response:
    """Tokens of a sealed row.

    `tokens`: patches (T, P, D), cls (T, D), pooled (T, 5, D), or row: the bytes of cls, patches,
    pooled, stats one after another, which the row's crc32c covers. `patch=a:b` cuts patches along
    P. `format=npy` gives a .npy file.
    """
    opened = opened_of(request)
    image = sealed_image_of(request, opened)
    view = view_of(request, opened)
    tokens = choice_of(request, "tokens", PARTS)
    format = choice_of(request, "format", ("raw", "npy"))
    etag = row_etag(opened.store, image, view)
    if tokens == "row":
        if format == "npy" or "patch" in request.query_params:
            raise ServiceError(
                "bad-request", "tokens=row is several arrays: raw bytes, and all of them"
            )
        names = ("cls", "patches", "pooled", "stats")
        # in the order of the checksum; a pooled store has no patches
        there = [name for name in names if name in opened.store.layout.extents]
        pieces = [opened.row_part(name, image, view) for name in there]
        n_bytes = sum(map(length, pieces))
        headers = array_headers((n_bytes,), "|u1")
        return BytesResponse(opened.store.layout, pieces, etag, headers)
    pieces, shape, dtype = _tokens(request, opened, tokens, image, view)
    if format == "npy":
        pieces = [npy_header(shape, dtype), *pieces]
    return BytesResponse(opened.store.layout, pieces, etag, array_headers(shape, dtype))


@described("bytes")
def array(request: Request) -> Response:
    """All bytes of an array other than `patches`, as they lie on disk, sealed or not."""
    opened = opened_of(request)
    name = name_of(request, "name")
    extent = opened.store.layout.extents.get(name)
    if extent is None or name == "patches":
        others = ", ".join(each for each in opened.store.layout.extents if each != "patches")
        raise ServiceError(
            "not-found",
            f"no array {name[:100]!r} here",
            f"there are {others}; patches are asked for by rows/",
        )
    piece = opened.array_part(name, 0, extent.array.n_bytes)
    headers = array_headers(extent.array.shape, extent.array.dtype)
    return BytesResponse(opened.store.layout, [piece], opened.etag_of(name), headers)


@described("bytes")
def file(request: Request) -> Response:
    """The HDF5 file itself, which h5py opens over fsspec or its own ros3 driver."""
    opened = opened_of(request)
    sizes = opened.store.layout.sizes
    path = opened.store.path
    if path not in sizes:
        raise ServiceError(
            "not-found",
            f"{opened.name} is a Zarr folder, not a file",
            "zarr/ has its objects",
        )
    return BytesResponse(
        opened.store.layout,
        [Span(path, 0, sizes[path])],
        file_etag(opened.generation, path),
        {},
    )


def row_etag(store: FeatureStore, image: int, view: int) -> str:
    """What a row's bytes are: those of its checksum under this fingerprint, in whichever store."""
    crc = int(store.row_crcs(image)[view])
    return f'"{store.spec.fingerprint[:16]}-{crc:08x}"'


def array_headers(shape: tuple[int, ...], dtype: str) -> dict[str, str]:
    return {
        "X-Shape": ",".join(map(str, shape)),
        "X-Dtype": np.dtype(dtype).str,
    }


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """What stands before the array's bytes in a .npy file of version 1."""
    head = io.BytesIO()
    about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(head, about)
    return head.getvalue()


def _tokens(
    request: Request,
    opened: Opened,
    name: str,
    image: int,
    view: int,
) -> tuple[list[Piece], tuple[int, ...], str]:
    """Pieces, shape and dtype of one kind of a row's tokens."""
    if "patch" in request.query_params and name != "patches":
        raise ServiceError("bad-request", "patch=a:b cuts patches alone")
    extents = opened.store.layout.extents
    if name not in extents:
        raise ServiceError(
            "not-found",
            "a pooled store, it holds no patch tokens",
            "ask for tokens=pooled or tokens=cls",
        )
    array = extents[name].array
    shape = array.shape[2:]
    piece = opened.row_part(name, image, view)
    if "patch" not in request.query_params:
        return [piece], shape, array.dtype
    a, b = _patch_span(request.query_params["patch"], shape[1])
    tile_bytes = length(piece) // shape[0]
    token_bytes = math.prod(shape[2:]) * np.dtype(array.dtype).itemsize
    # a span of patches is one piece of each tile, whose patches lie one after another
    cuts: list[Piece] = []
    for t in range(shape[0]):
        start = t * tile_bytes
        cuts += cut([piece], start + a * token_bytes, start + b * token_bytes)
    return cuts, (shape[0], b - a, *shape[2:]), array.dtype


def _patch_span(text: str, n: int) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{0,9}):(\d{0,9})", text, re.ASCII)
    a = b = 0
    if found:
        # as Python's slices: an end that is left out, or lies beyond, is the end of the patches
        a = int(found[1] or 0)
        b = min(int(found[2] or n), n)
    if not a < b:
        raise ServiceError(
            "bad-request", f"patch={text[:40]!r}: a:b with 0 <= a < b <= {n} was expected"
        )
    return a, b
