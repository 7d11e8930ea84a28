"""Whether a store that is there holds the tokens and labels that are to be written."""

from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.errors import MismatchError, list_some
from featurestore.format.spec import StoreSpec
from featurestore.photos.view_names import VIEW_NAMES
from featurestore.read.reader import Reader


def check_backbone(out: Path, store: StoreSpec, backbone: str) -> None:
    """MismatchError, with the options that the store has, where another backbone is asked for.

    `check_same` tells of all else, once there is a backbone: its weights may come from a network.
    """
    there = store.tokens
    if there.model == backbone:
        return
    size = min(there.tile_height, there.tile_width)
    options = f"--backbone {there.model} --image-size {size} --crop {there.crop}"
    if there.fit:
        options += f" --fit {there.fit}"
    names = there.view_names
    views = len(names) if names == VIEW_NAMES[: len(names)] else ",".join(names)
    raise MismatchError(
        f"{out}: holds tokens of {there.model}, asked is {backbone}; to continue it give {options} "
        f"--views {views}, else choose another name or remove it"
    )


def check_same(store: Reader, spec: StoreSpec) -> None:
    """MismatchError naming each part of the spec that differs from the store's."""
    ours = spec.tokens.model_dump(mode="json")
    theirs = store.spec.tokens.model_dump(mode="json")
    differing = []
    for key in {**theirs, **ours}:
        if ours.get(key) != theirs.get(key):
            differing.append(_difference(key, theirs.get(key), ours.get(key)))
    for name in ("has_patches", "pooled_dtype"):
        there, here = getattr(store.spec, name), getattr(spec, name)
        if there != here:
            differing.append(f"{name}: store {there}, asked {here}")
    # whether there are any, not their size, which is that of the photograph that came first
    if bool(spec.thumb) != bool(store.spec.thumb):
        differing.append(f"thumbs: store {bool(store.spec.thumb)}, asked {bool(spec.thumb)}")
    if differing:
        raise MismatchError(
            f"{store.path}: holds other tokens; choose another name or remove it\n  "
            + "\n  ".join(differing)
        )


def _difference(key: str, theirs: Any, ours: Any) -> str:
    """A part of two token specs for messages; views by their names, if these tell them apart."""
    if key == "views":
        names = [[view["name"] for view in views] for views in (theirs, ours)]
        if names[0] != names[1]:
            theirs, ours = (f"{len(each)} ({', '.join(each)})" for each in names)
            return f"views: store {theirs}, asked {ours}"
    return f"{key}: store {theirs!r}, asked {ours!r}"


def check_labels(store: Reader, frame: pd.DataFrame) -> None:
    """MismatchError naming sealed images whose cells in the CSV are not the store's.

    Nothing sealed is rewritten.
    """
    advice = (
        f"labels are part of a store; `biomass store extend {store.path} NEW --data DIR --relabel` "
        "copies its tokens to one with these"
    )

    kinds = {column.name: column.kind for column in store.spec.columns}
    if missing := [name for name in frame.columns if name not in kinds]:
        raise MismatchError(
            f"{store.path}: the CSV has columns the store lacks: {', '.join(missing)}; {advice}"
        )
    for name in frame.columns.drop("image_id"):
        # a column without values is of no kind: pandas takes it for numbers
        kind = "number" if pd.api.types.is_numeric_dtype(frame[name]) else "text"
        if kind != kinds[name] and not frame[name].isna().all():
            raise MismatchError(
                f"{store.path}: {name!r} is {kinds[name]} in the store, {kind} in the CSV; {advice}"
            )
    # a new store has no cells that vouch for anything; a part of a build is always new
    if not len(store.sealed):
        return

    known = store.catalog.iloc[store.sealed].set_index("image_id")
    ours = frame.set_index("image_id")
    ours = ours.loc[ours.index.isin(known.index)]

    for name in ours.columns:
        theirs = known.loc[ours.index, name]
        # a table put together of several has NaN where the store has nothing
        if kinds[name] == "text":
            ours[name] = ours[name].fillna("")
        both_empty = ours[name].isna() & theirs.isna()
        differs = (ours[name] != theirs) & ~both_empty
        if differs.any():
            raise MismatchError(
                f"{store.path}: {name!r} in the CSV differs from the store's for "
                f"{list_some(list(ours.index[differs]), 5)}\n{advice}"
            )
