"""Opening a store at a path or a URL, whose bytes come from a source chosen here."""

import os
from typing import Literal, TypeVar

from featurestore.disk.urls import is_url
from featurestore.read.reader import Reader
from featurestore.read.source import Source
from featurestore.read.sources.mapped import Mapped

R = TypeVar("R", bound=Reader)


def open_reader(
    path: str | os.PathLike,
    check: Literal["seal", "first-touch"] = "seal",
    *,
    cache: str | os.PathLike | None = None,
    cache_bytes: int | None = None,
    kind: type[R] = Reader,
) -> R:
    """A reader of the store at a path or URL; arguments and errors as in `FeatureStore.open`.

    kind : class of the reader.
    """
    return kind(open_source(path, cache, cache_bytes), check)


def open_source(
    path: str | os.PathLike, cache: str | os.PathLike | None, cache_bytes: int | None
) -> Source:
    if is_url(path):
        # the client and its cache are of no use to local stores
        from featurestore.read.sources.http import Http

        return Http(path, cache, cache_bytes)
    return Mapped.open(path)
