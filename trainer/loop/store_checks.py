"""Whether the stores of a sweep fit its kinds, and one another."""

from collections.abc import Mapping

from featurestore.errors import MismatchError
from trainer.config.sections import PointConfig
from trainer.data.dataset import TrainingData
from trainer.data.used_store import UsedStore
from trainer.heads import kinds
from trainer.heads.reads import store_of, stores_of
from trainer.loop.grid import SweepConfig


def check_stores(config: SweepConfig, data: TrainingData) -> None:
    """MismatchError if a kind lacks patch tokens or would mix padding, or stores that are read
    together have other views or tiles."""
    _check_patches(config, data.stores)
    _check_padding(config, data.stores)
    if len(data.stores) == 1:
        return
    for point, name in zip(config.points, config.names, strict=True):
        _check_views(point, name, data.stores)
        if kinds.load(point.head.kind).trained:
            _check_tiles(point, name, data.stores)


def _check_patches(config: SweepConfig, stores: Mapping[str, UsedStore]) -> None:
    """A kind that reads patch tokens finds none in a pooled store."""
    reading: dict[str, dict[str, None]] = {}  # kinds by store, each once and in order
    for point in config.points:
        if kinds.load(point.head.kind).reads_patches:
            reading.setdefault(store_of(point), {})[point.head.kind] = None
    for store, lacking in reading.items():
        if stores[store].store.spec.has_patches:
            continue
        fit = [kind for kind in kinds.names() if not kinds.load(kind).reads_patches]
        raise MismatchError(
            f"{stores[store].store.path}: a pooled store, it holds no patch tokens for head.kind "
            f"{', '.join(lacking)}; choose among {', '.join(fit)}, or build a store with them"
        )


def _check_padding(config: SweepConfig, stores: Mapping[str, UsedStore]) -> None:
    """Padding must not be read, and of two photographs mixed patch by patch no patch is padding or
    none."""
    for point in config.points:
        kind = kinds.load(point.head.kind)
        if not kind.reads_patches or stores[store_of(point)].tokens.fit != "pad":
            continue
        where = f"{stores[store_of(point)].store.path}: built with --fit pad"
        other = "or build a store with --fit squash or crop"
        if not kind.leaves_padding_out:
            raise MismatchError(
                f"{where}, and head.kind {point.head.kind} does not leave padding out; choose "
                f"another, {other}"
            )
        mixup = point.augmentation.mixup
        if mixup.on and mixup.kind != "pooled":
            raise MismatchError(
                f"{where}, and mixup of kind {mixup.kind} would mix padding with photographs for "
                f"head.kind {point.head.kind}; set augmentation.mixup.kind to pooled, leave mixup "
                f"out, {other}"
            )


def _check_views(point: PointConfig, name: str, stores: Mapping[str, UsedStore]) -> None:
    """Points share the rows of a step, which are views by their numbers in the first store.

    Regressors learn from the plain view, and are scored under those of inference.tta_indices.
    """
    first, *_ = stores
    scored = {0, *point.inference.tta_indices} if point.cv.tta else {0}
    for store in stores_of(point):
        # by name and place: rows are numbers of views, and names alone might lie in another order
        ours = stores[first].store.view_names
        theirs = stores[store].store.view_names
        if not kinds.load(point.head.kind).trained:
            ours = [ours[view] for view in sorted(scored)]
            theirs = [theirs[view] for view in sorted(scored)]
        if list(ours) != list(theirs):
            raise MismatchError(
                f"{stores[store].store.path}: {name} needs the views of store {first} in store "
                f"{store}, by number and name: {', '.join(ours)}; it has {', '.join(theirs)}. "
                "Build it with these views"
            )


def _check_tiles(point: PointConfig, name: str, stores: Mapping[str, UsedStore]) -> None:
    """A trained head works tile by tile, on the vectors of all its stores side by side."""
    counts = {store: stores[store].tokens.n_tiles for store in stores_of(point)}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{store} {count}" for store, count in counts.items())
        raise MismatchError(
            f"{name}: {point.head.kind} reads its stores tile by tile, and they have other numbers "
            f"of tiles ({told}); name stores of one crop in head.features. Regressors average over "
            "tiles and may read them all"
        )
