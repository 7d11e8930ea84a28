"""Opening a store at a path or a URL, whose bytes come from a source chosen here."""

import os
from typing import Literal, TypeVar

from featurestore.disk.urls import is_elsewhere, is_object_url
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
    path: str | os.PathLike,
    cache: str | os.PathLike | None,
    cache_bytes: int | None,
) -> Source:
    if not is_elsewhere(path):
        return Mapped.open(path)

    # clients and their cache are of no use to local stores
    from featurestore.read.sources.fetched import Fetched

    if is_object_url(path):
        from featurestore.read.sources.objects import Objects

        return Fetched(Objects(path), cache, cache_bytes)
    from featurestore.read.sources.http import Http

    return Fetched(Http(path), cache, cache_bytes)
