"""Damage inside a JPEG's picture: its headers and its end stay whole."""

from pathlib import Path


def zeroed(jpeg: bytes, start: float = 0.4, stop: float = 0.9) -> bytes:
    """A JPEG with a part of its bytes, by shares of the file, set to zero."""
    first, last = int(len(jpeg) * start), int(len(jpeg) * stop)
    return jpeg[:first] + bytes(last - first) + jpeg[last:]


def with_hole(jpeg: bytes, start: float = 0.4, stop: float = 0.9) -> bytes:
    return jpeg[: int(len(jpeg) * start)] + jpeg[int(len(jpeg) * stop) :]


def hurt(path: Path) -> Path:
    path.write_bytes(zeroed(path.read_bytes()))
    return path
