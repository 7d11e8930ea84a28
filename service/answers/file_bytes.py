"""Bytes of a store's files as a response: ranges, conditions and a stream.

It reads no faster than the client takes it.
"""

import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from featurestore.errors import StoreDamaged
from featurestore.format.layout import Layout
from service.answers.kept import matches
from service.answers.ranges import requested_ranges
from service.errors import ServiceError
from service.pieces import Piece, Span, Zeros, cut, cut_one, length

# read and sent at once: what a client that does not read makes the server hold
CHUNK_BYTES = 512 << 10


class BytesResponse(Response):
    """The pieces, one after another, or the ranges of them that were requested.

    No byte is read before the answer begins, none for HEAD, and no more than CHUNK_BYTES ahead of
    the client.

    layout : of the store, which says whether a file is the one that was opened.
    etag : with its quotes; of one URL the same exactly as long as the bytes are.
    headers : further ones.

    Raises StoreDamaged if a file was replaced or cut before it begins. What is cut later ends the
    connection early.
    """

    def __init__(
        self,
        layout: Layout,
        pieces: list[Piece],
        etag: str,
        headers: Mapping[str, str],
    ) -> None:
        self.layout = layout
        self.pieces = pieces
        self.etag = etag
        self.given = {
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Cache-Control": "private, no-cache, no-transform",
            **headers,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ExitStack() as files:
            response = self._response(scope["method"], Headers(scope=scope), files)
            await response(scope, receive, send)

    def _response(self, method: str, request: Headers, files: ExitStack) -> Response:
        if matches(request.get("if-none-match"), self.etag):
            return Response(None, 304, self.given)

        n_bytes = sum(map(length, self.pieces))
        ranges = None
        # If-Range by strong comparison: bytes that changed since are sent whole
        if method == "GET" and request.get("if-range") in (None, self.etag):
            try:
                ranges = requested_ranges(request.get("range"), n_bytes)
            except ServiceError as err:
                return err.answer()

        status = 200
        pieces = self.pieces
        headers = {"Content-Type": "application/octet-stream"}
        if ranges:
            status = 206
            pieces, headers = _partial(self.pieces, ranges, n_bytes)
        n_sent = sum(map(length, pieces))
        headers = {**self.given, **headers, "Content-Length": str(n_sent)}

        # opened for HEAD too: it tells the same errors as GET
        paths = {piece.path for piece in pieces if isinstance(piece, Span)}
        opened = {}
        for path in paths:
            opened[path] = self.layout.open_file(path)
            files.callback(os.close, opened[path])
        if method == "HEAD":
            return Response(None, status, headers)
        return StreamingResponse(_read(pieces, opened), status, headers)


def _partial(
    pieces: list[Piece],
    ranges: list[tuple[int, int]],
    n_bytes: int,
) -> tuple[list[Piece], dict[str, str]]:
    """Pieces and headers of one range, or of several as multipart/byteranges."""
    if len(ranges) == 1:
        a, b = ranges[0]
        headers = {
            "Content-Range": f"bytes {a}-{b - 1}/{n_bytes}",
            "Content-Type": "application/octet-stream",
        }
        return cut(pieces, a, b), headers

    # drawn, so that no bytes of a store can be made to hold it
    boundary = secrets.token_hex(16)
    parts: list[Piece] = []
    for a, b in ranges:
        head = (
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Range: bytes {a}-{b - 1}/{n_bytes}\r\n\r\n"
        )
        parts += [head.encode(), *cut(pieces, a, b), b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return parts, {"Content-Type": f"multipart/byteranges; boundary={boundary}"}


async def _read(pieces: list[Piece], files: dict[Path, int]) -> AsyncIterator[bytes]:
    """The pieces' bytes as they are taken.

    Threads read them: what is not in the page cache would hold up all other clients.
    """
    for piece in pieces:
        for start in range(0, length(piece), CHUNK_BYTES):
            part = cut_one(piece, start, min(start + CHUNK_BYTES, length(piece)))
            if isinstance(part, Span):
                yield await run_in_threadpool(_pread, files[part.path], part)
            elif isinstance(part, Zeros):
                yield bytes(part.n_bytes)
            else:
                yield part


def _pread(fd: int, span: Span) -> bytes:
    # the kernel may give fewer at a time
    data = os.pread(fd, span.n_bytes, span.offset)
    while len(data) < span.n_bytes:
        more = os.pread(fd, span.n_bytes - len(data), span.offset + len(data))
        if not more:
            raise StoreDamaged("a file was cut while it was sent")
        data += more
    return data
