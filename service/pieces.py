"""Pieces of a body: bytes at hand, of a file, or zeros."""

from dataclasses import dataclass
from pathlib import Path


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


Piece = bytes | memoryview | Span | Zeros


def length(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes | memoryview) else piece.n_bytes


def cut(pieces: list[Piece], start: int, end: int) -> list[Piece]:
    """The pieces of bytes [start, end) of what the pieces are together."""
    found = []
    at = 0
    for piece in pieces:
        a = max(start - at, 0)
        b = min(end - at, length(piece))
        if a < b:
            found.append(cut_one(piece, a, b))
        at += length(piece)
    return found


def cut_one(piece: Piece, a: int, b: int) -> Piece:
    if isinstance(piece, bytes | memoryview):
        return piece[a:b]
    if isinstance(piece, Span):
        return Span(piece.path, piece.offset + a, b - a)
    return Zeros(b - a)
