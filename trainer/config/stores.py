"""Names of a sweep's stores and of the vectors in them, as a config spells them."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from featurestore.disk.urls import as_kept, is_elsewhere
from featurestore.format.spec import POOLED

VECTORS = ("cls", *POOLED)
NAME = "[A-Za-z0-9_][A-Za-z0-9_.-]*"


def split_vector(name: str) -> tuple[str, str]:
    """Store and vector of `clip/cls`; of a bare `cls` the store is an empty name."""
    store, _, vector = name.rpartition("/")
    return store, vector


def _store_place(value: Any) -> Any:
    """A URL without its token, which must not get into a saved config; other text as a path."""
    if is_elsewhere(value):
        return as_kept(value)
    return Path(value) if isinstance(value, str) else value


def _store_name(value: str) -> str:
    if not re.fullmatch(NAME, value):
        raise ValueError(f"found {value!r}, expected a name of letters, digits, _, - and .")
    return value


def _vector_name(value: str) -> str:
    store, vector = split_vector(value)
    if vector not in VECTORS or (store and not re.fullmatch(NAME, store)):
        raise ValueError(
            f"found {value!r}, expected one of {', '.join(VECTORS)}, "
            "alone or as NAME/cls of a store in dataset.stores"
        )
    return value


StorePlace = Annotated[Path | str, BeforeValidator(_store_place)]
StoreName = Annotated[str, AfterValidator(_store_name)]
VectorName = Annotated[str, AfterValidator(_vector_name)]
