"""Bytes of a store's files as a response: ranges, conditions, and a stream that reads no faster
than the client takes it."""

import os
import secrets
import time
from asyncio import SendfileNotAvailableError
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from featurestore.disk.page_cache import is_cached
from featurestore.errors import StoreDamaged
from featurestore.format.layout import Layout
from service.answers.ranges import asked_ranges
from service.connection.zero_copy import ZERO_COPY
from service.errors import ServiceError
from service.library import SETTLED_S, Opened

# read and sent at once: what a client that does not read makes the server hold
CHUNK_BYTES = 512 << 10
ZERO_COPY_BYTES = 2 << 20  # sent at once without being read: nothing is held


@dataclass(frozen=True)
class Span:
    """n_bytes of one of the store's files."""

    path: Path
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Zeros:
    """Bytes of zero that lie in no file."""

    n_bytes: int


Piece = bytes | Span | Zeros


def length(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.n_bytes


def cut(pieces: list[Piece], start: int, end: int) -> list[Piece]:
    """The pieces of bytes [start, end) of what the pieces are together."""
    found, at = [], 0
    for piece in pieces:
        a, b = max(start - at, 0), min(end - at, length(piece))
        if a < b:
            found.append(_cut_one(piece, a, b))
        at += length(piece)
    return found


def _cut_one(piece: Piece, a: int, b: int) -> Piece:
    if isinstance(piece, bytes):
        return piece[a:b]
    return Span(piece.path, piece.offset + a, b - a) if isinstance(piece, Span) else Zeros(b - a)


def file_etag(opened: Opened, *paths: Path) -> str:
    """The ETag of bytes that a writer may still change: the generation, and when their files were
    last written."""
    try:
        written = max(path.stat().st_mtime_ns for path in paths)
    except OSError as err:
        raise StoreDamaged(
            f"{err.filename}: gone since the store was opened; restore it or build the store again"
        ) from err
    settled = time.time_ns() - written > SETTLED_S * 1e9
    return f'"{opened.generation}-{written:x}{"" if settled else "-" + secrets.token_hex(4)}"'


class BytesResponse(Response):
    """The pieces, one after another, or the ranges of them that were asked for. No byte is read
    before the answer begins, none for HEAD, and no more than CHUNK_BYTES ahead of the client.

    layout : of the store, which says whether a file is the one that was opened. etag : with its
        quotes; of one URL the same
    exactly as long as the bytes are. headers : further ones.

    Raises StoreDamaged if a file was replaced or cut before it begins. What is cut later ends the
    connection early.
    """

    def __init__(
        self, layout: Layout, pieces: list[Piece], etag: str, headers: Mapping[str, str]
    ) -> None:
        self.layout, self.pieces, self.etag = layout, pieces, etag
        self.given = {
            "Accept-Ranges": "bytes",
            "ETag": etag,
            "Cache-Control": "private, no-cache, no-transform",
            **headers,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ExitStack() as files:
            response = self._response(
                scope["method"],
                Headers(scope=scope),
                files,
                ZERO_COPY in scope.get("extensions", {}),
            )
            await response(scope, receive, send)

    def _response(self, method: str, asked: Headers, files: ExitStack, zero_copy: bool) -> Response:
        if _matches(asked.get("if-none-match"), self.etag):
            return Response(None, 304, self.given)
        n_bytes = sum(map(length, self.pieces))
        wants = asked.get("if-range") in (None, self.etag)
        try:
            ranges = (
                asked_ranges(asked.get("range"), n_bytes) if wants and method == "GET" else None
            )
        except ServiceError as err:
            return err.answer()
        status, pieces, headers = 200, self.pieces, {"Content-Type": "application/octet-stream"}
        if ranges:
            status, pieces, headers = _partial(self.pieces, ranges, n_bytes)
        headers = {**self.given, **headers, "Content-Length": str(sum(map(length, pieces)))}
        opened = {
            path: _open(self.layout, path, files)
            for path in {p.path for p in pieces if isinstance(p, Span)}
        }
        if method == "HEAD":
            return Response(None, status, headers)
        return _Pieces(pieces, opened, zero_copy, status, headers)


def _open(layout: Layout, path: Path, files: ExitStack) -> int:
    fd = layout.open_file(path)
    files.callback(os.close, fd)
    return fd


def _matches(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names the ETag, or any."""
    given = [each.strip().removeprefix("W/") for each in (header or "").split(",")]
    return given == ["*"] or etag in given


def _partial(
    pieces: list[Piece], ranges: list[tuple[int, int]], n_bytes: int
) -> tuple[int, list[Piece], dict[str, str]]:
    """Status, pieces and headers of one range, or of several as multipart/byteranges."""
    if len(ranges) == 1:
        a, b = ranges[0]
        headers = {
            "Content-Range": f"bytes {a}-{b - 1}/{n_bytes}",
            "Content-Type": "application/octet-stream",
        }
        return 206, cut(pieces, a, b), headers
    boundary, parts = secrets.token_hex(16), []
    for a, b in ranges:
        head = (
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes "
            f"{a}-{b - 1}/{n_bytes}\r\n\r\n"
        )
        parts += [head.encode(), *cut(pieces, a, b), b"\r\n"]
    return (
        206,
        [*parts, f"--{boundary}--\r\n".encode()],
        {"Content-Type": f"multipart/byteranges; boundary={boundary}"},
    )


class _Pieces(StreamingResponse):
    """Pieces of open files as they are taken: from the page cache without a copy where the server
    can, else read by a thread."""

    def __init__(
        self,
        pieces: list[Piece],
        files: dict[Path, int],
        zero_copy: bool,
        status: int,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__((), status, headers)
        self._pieces, self._files, self._zero_copy = pieces, files, zero_copy

    async def stream_response(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        for part in _chunks(self._pieces, ZERO_COPY_BYTES if self._zero_copy else CHUNK_BYTES):
            await self._send_chunk(part, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_chunk(self, chunk: Piece, send: Send) -> None:
        fd = self._files[chunk.path] if isinstance(chunk, Span) else -1
        # what is not in the page cache would be waited for by the kernel, and with it by all other
        # clients
        if (
            self._zero_copy
            and isinstance(chunk, Span)
            and is_cached(fd, chunk.offset, chunk.n_bytes)
        ):
            try:
                await send(
                    {
                        "type": ZERO_COPY,
                        "file": fd,
                        "offset": chunk.offset,
                        "count": chunk.n_bytes,
                        "more_body": True,
                    }
                )
                return
            except SendfileNotAvailableError:
                # nothing was sent: it is read, and if the client has gone, that ends as it does for
                # all who go
                pass
            except OSError as err:
                raise StoreDamaged("a file was cut while it was sent") from err
        for part in _chunks([chunk], CHUNK_BYTES):
            data = (
                await run_in_threadpool(_pread, fd, part) if isinstance(part, Span) else _held(part)
            )
            await send({"type": "http.response.body", "body": data, "more_body": True})


def _chunks(pieces: list[Piece], n_bytes: int) -> Iterator[Piece]:
    """The pieces in parts of at most n_bytes."""
    for piece in pieces:
        for start in range(0, length(piece), n_bytes):
            yield _cut_one(piece, start, min(start + n_bytes, length(piece)))


def _held(piece: bytes | Zeros) -> bytes:
    return bytes(piece.n_bytes) if isinstance(piece, Zeros) else piece


def _pread(fd: int, span: Span) -> bytes:
    data = os.pread(fd, span.n_bytes, span.offset)
    while len(data) < span.n_bytes:
        more = os.pread(fd, span.n_bytes - len(data), span.offset + len(data))
        if not more:
            raise StoreDamaged("a file was cut while it was sent")
        data += more
    return data
