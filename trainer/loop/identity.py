"""What a sweep's numbers depend on, kept beside them: no sweep goes on under something else."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from featurestore.counts import count_of
from featurestore.errors import MismatchError
from trainer.config.sections import PointConfig
from trainer.loop.grid import SweepConfig, idle_keys
from trainer.loop.prepare import Sweep

MOVE_NO_NUMBER = {
    "experiment.name",
    "backbone.model_name", "backbone.hidden_dim", "backbone.num_patches",
    "dataset.store", "dataset.images", "dataset.img_size", "dataset.num_aug_patterns",
    "dataset.balance_tolerance.grams", "dataset.balance_tolerance.share",
    "trainer.checkpoint_every", "trainer.tensorboard", "trainer.memory_gb", "trainer.passes",
    "cv.folds", "cv.groups", "cv.strata", "cv.splitter",
}  # fmt: skip
"""Names, places and checks; and what chooses images, folds and passes: digests and a checkpoint's
points tell what was chosen."""


@dataclass(frozen=True)
class Identity:
    """Of the points that are trained together in one pass."""

    points: dict[str, PointConfig]
    """Complete settings by the name of the run."""
    facts: dict[str, Any]
    """`Sweep.facts`."""

    @classmethod
    def of(cls, sweep: Sweep, points: Sequence[int]) -> Self:
        settings = {}
        for p in points:
            point = sweep.run_config(p)
            # a checkpoint keeps no paths, nor what may be a million ids a point
            stores = {name: Path(name) for name in point.dataset.stores}
            dataset = point.dataset.model_copy(
                update={"store": None, "stores": stores, "images": []}
            )
            cv = point.cv.model_copy(update={"folds": None})
            settings[sweep.config.names[p]] = point.model_copy(
                update={"dataset": dataset, "cv": cv}
            )
        return cls(settings, sweep.facts)

    @classmethod
    def from_json(cls, text: str, where: Path) -> Self:
        """Read as a saved sweep's settings are, so a key that was added since has its old meaning.

        ValueError or KeyError if this is no identity.
        """
        saved = json.loads(text)
        points = {}
        for name, point in saved["points"].items():
            (points[name],) = SweepConfig.of(point, {}, where).points
        return cls(points, dict(saved["facts"]))

    def to_json(self) -> str:
        points = {}
        for name, point in self.points.items():
            points[name] = point.model_dump(mode="json")
        return json.dumps({"points": points, "facts": self.facts})

    def check(self, saved: "Identity", where: str, advice: str) -> None:
        """MismatchError with the first difference between what was saved at `where` and this."""
        if len(saved.points) != len(self.points):
            raise MismatchError(
                f"{where}: holds {_listed(saved.points)}, and this pass trains "
                f"{_listed(self.points)}; {advice}"
            )
        pairs = zip(self.points.items(), saved.points.values(), strict=True)
        for (name, now), before in pairs:
            check_settings(before, now, f"{where}: {name}", advice)
        check_facts(saved.facts, self.facts, where, advice)


def check_settings(
    before: PointConfig,
    now: PointConfig,
    where: str,
    advice: str,
) -> None:
    """MismatchError with the first setting that moves a number and differs, and both its values."""
    names = before.dataset.store_names, now.dataset.store_names
    if names[0] != names[1]:
        old, new = (", ".join(each) or "one store alone" for each in names)
        raise MismatchError(f"{where}: dataset.stores named {old} and names {new} now; {advice}")
    # idle then and now: a key that either reads may move a number
    free = MOVE_NO_NUMBER | (set(idle_keys(before)) & set(idle_keys(now)))
    free |= {f"dataset.stores.{name}" for name in names[0]}
    was = dict(_leaves(before.model_dump(mode="json")))
    found = dict(_leaves(now.model_dump(mode="json")))
    for key in found | was:
        # as text: 1 and 1.0 are equal in Python, and another setting in a file
        old = json.dumps(was.get(key))
        new = json.dumps(found.get(key))
        if old != new and key not in free:
            raise MismatchError(f"{where}: {key} was {old} and is {new} now; {advice}")


def check_facts(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    where: str,
    advice: str,
) -> None:
    """MismatchError with the first fact that differs, of those that were kept before."""
    kept = dict(_leaves(before))
    for name, value in _leaves(now):
        was = kept.get(name, value)
        if was == value:
            continue
        if name in ("labels", "folds", "columns"):
            raise MismatchError(
                f"{where}: the {name} are not those that the sweep began with; {advice}"
            )
        raise MismatchError(f"{where}: {name} {value}, the sweep began with {was}; {advice}")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no section."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _listed(points: Mapping[str, PointConfig]) -> str:
    names = list(points)
    first = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    return f"{count_of(len(names), 'point')} ({first})"
