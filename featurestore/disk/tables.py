"""CSV tables, which are compressed where they are large."""

import gzip
from pathlib import Path

import pandas as pd

from featurestore.disk.durable import remove, write_whole

LARGE = 50_000_000
"""Bytes of a table from which on it is compressed."""


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV, as `path` with .gz behind it where it has more than LARGE bytes.

    The same table gives the same bytes. One that was there under the other name goes.
    """
    text = table.to_csv(index=False).encode()
    compressed = _compressed(path)
    if len(text) > LARGE:
        # a time in the file would make others of the same bytes; 6 is gzip's own level
        write_whole(compressed, gzip.compress(text, 6, mtime=0))
        remove(path)
    else:
        write_whole(path, text)
        remove(compressed)


def find_table(path: Path) -> Path:
    """Where a table that may be compressed is; `path` itself where there is none.

    pandas reads both by their names.
    """
    compressed = _compressed(path)
    return compressed if compressed.is_file() and not path.is_file() else path


def read_text(path: Path) -> str:
    """What a table that `find_table` found says."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def _compressed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")
