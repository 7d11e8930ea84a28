"""Which stores, and which vectors of them, the heads of a point read."""

from collections.abc import Mapping, Sequence

from featurestore.format.spec import TokenSpec
from trainer.config.sections import PointConfig
from trainer.config.stores import split_vector
from trainer.heads import kinds


def vectors_of(point: PointConfig) -> list[str]:
    """`head.features`, each with its store: a bare name of several stores stands for that vector of
    every one, in order. Of the only store names stay bare."""
    names = point.dataset.store_names
    vectors = []
    for feature in point.head.features:
        store, vector = split_vector(feature)
        if store or names == [""]:
            vectors.append(feature)
        else:
            vectors += [f"{name}/{vector}" for name in names]
    return vectors


def columns_of(point: PointConfig) -> list[str]:
    """`head.columns`, where a point's kind reads them."""
    return point.head.columns if "columns" in kinds.load(point.head.kind).settings else []


def store_of(point: PointConfig) -> str:
    """The store that a point's heads read first: patches and class tokens, or the first vector."""
    if kinds.load(point.head.kind).reads_patches:
        return point.head.store or point.dataset.store_names[0]
    return stores_of(point)[0]


def stores_of(point: PointConfig) -> list[str]:
    """Every store that a point's heads read, each once."""
    kind = kinds.load(point.head.kind)
    stores = [store_of(point)] if kind.reads_patches else []
    if "features" in kind.settings:
        stores += [split_vector(vector)[0] for vector in vectors_of(point)]
    return list(dict.fromkeys(stores or point.dataset.store_names[:1]))


def patch_stores(points: Sequence[PointConfig]) -> set[str]:
    """The stores whose patch tokens trained heads read."""
    names = set()
    for point in points:
        kind = kinds.load(point.head.kind)
        if kind.trained and kind.reads_patches:
            names.add(store_of(point))
    return names


def widths_of(point: PointConfig, tokens: Mapping[str, TokenSpec]) -> list[int]:
    """Channels of each of `vectors_of`; tokens by the name of their store."""
    return [tokens[split_vector(vector)[0]].width for vector in vectors_of(point)]


def unknown_store(point: PointConfig) -> str | None:
    """What is wrong with the stores that `head` names, a sentence that begins with the key."""
    known = point.dataset.stores
    named = {f"head.features: {name!r}": split_vector(name)[0] for name in point.head.features}
    named[f"head.store: {point.head.store!r}"] = point.head.store or ""
    for what, store in named.items():
        if store and store not in known:
            there = f"it names {', '.join(known)}" if known else "it names none"
            return f"{what}: no store {store} in dataset.stores; {there}"
    return None
