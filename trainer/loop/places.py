"""Where the stores of a sweep are now: where they were, where they were moved to with it, or where
a user says."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurestore.disk.urls import is_elsewhere
from featurestore.errors import BiomassError, InputError, UsageError
from featurestore.store import FeatureStore

Place = Path | str


def places_now(
    plan: Mapping[str, Any],
    path: Path,
    given: Place | Mapping[str, Place] | None,
) -> dict[str, Any]:
    """Where the sweep's stores are now, as `dataset.store` or `dataset.stores` says it."""
    dataset = plan["base"]["dataset"]
    recorded = dataset.get("stores")
    if not recorded:
        if isinstance(given, Mapping):
            raise UsageError(
                f"{path}: its store has no name (dataset.store); give --store PATH, "
                f"not {', '.join(given)}=PATH"
            )
        return {"store": str(given or find_store(dataset["store"], path, plan["fingerprint"]))}

    if given is not None and not isinstance(given, Mapping):
        raise UsageError(
            f"{path}: it has several stores ({', '.join(recorded)}); "
            "say which one is meant: --store NAME=PATH"
        )
    if unknown := sorted(set(given or {}) - set(recorded)):
        raise InputError(
            f"{path}: has no store {', '.join(unknown)} (--store); it has {', '.join(recorded)}"
        )
    places = {}
    for name, was in recorded.items():
        fingerprint = plan["stores"][name]["fingerprint"]
        places[name] = str((given or {}).get(name) or find_store(was, path, fingerprint))
    return {"stores": places}


def find_store(recorded: str, sweep: Path, fingerprint: str) -> str:
    """Where the sweep's store is: where it was, or at the same place beside the moved sweep."""
    if is_elsewhere(recorded):
        return recorded

    was = Path(recorded)
    for place in (was, *moved_places(was, sweep)):
        if place.name != was.name or not os.path.exists(place):
            continue
        try:
            with FeatureStore.open(place) as opened:
                is_same = opened.spec.fingerprint == fingerprint
        except BiomassError:  # something else of that name
            continue
        if is_same:
            if place != was:
                warnings.warn(
                    f"{recorded}: not there, or another store now; the sweep's store is {place}",
                    stacklevel=3,
                )
            return str(place)

    if not was.exists():
        raise InputError(
            f"{recorded}: the sweep's store is no longer there, nor at the same place beside "
            f"{sweep} or above it; name its place with --store"
        )
    return recorded


def moved_places(recorded: Path, run: Path) -> list[Path]:
    """Where a path that was recorded in a run may be now, if its project was moved as a whole.

    The run's folder and those above it, nearest first, each alone and with every end of the
    recorded path: of /old/a/stores, for a run in /new/b/runs/S, the folder /new/b/stores is among
    them.
    """
    parts = recorded.parts[1:]
    ends = [Path(*parts[-n:]) for n in range(1, len(parts) + 1)]
    places = []
    for folder in (run.absolute(), *run.absolute().parents):
        if folder != folder.parent:  # not in the root of all files
            places.append(folder)
            places += [folder / end for end in ends]
    return places
