"""How pictures and the report write targets: which comes first, titles, units, digits."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from featurestore.photos.targets import CSIRO, CSIRO_MAIN, CSIRO_OTHERS, Target, Targets

MASSES = (*CSIRO_MAIN, *CSIRO_OTHERS)
CSIRO_TITLES = dict(zip(MASSES, ("Total", "GDM", "Green", "Dead", "Clover"), strict=True))
"""What people call each mass, in the order they read them."""


@dataclass(frozen=True)
class Shown:
    """A task's targets as people read them."""

    targets: Targets = CSIRO

    @cached_property
    def first(self) -> Target | None:
        """The number that is mapped and sorted by: the scored one with the largest weight. None
        where there are only classes."""
        numbers = self.targets.predicted
        scored = [target for target in numbers if not target.auxiliary]
        return max(
            scored or numbers,
            key=lambda target: target.weight,
            default=None,
        )

    @cached_property
    def titles(self) -> dict[str, str]:
        """Of each number by its name, `first` first."""
        if self.targets.preset:
            return CSIRO_TITLES
        names = sorted(self.targets.names, key=lambda name: name != self.first.name)
        return {name: name for name in names}

    @cached_property
    def parts(self) -> list[str]:
        """Names that `first` is the sum of, none of them a sum."""
        if self.first is None or self.first.name not in self.targets.sums:
            return []
        parts = self.targets.parts_of(self.first.name)
        return [name for name in self.titles if name in parts]

    def unit(self, name: str) -> str:
        """`g` where a name ends so; of others it is not known."""
        return "g" if name.endswith("_g") else ""

    def write(self, name: str, value: float) -> str:
        """Without the unit: grams to a tenth, other numbers to three digits."""
        return f"{value:.1f}" if self.unit(name) else f"{value:.3g}"

    def with_unit(self, name: str, value: float) -> str:
        return f"{self.write(name, value)} {self.unit(name)}".rstrip()

    def words(self, row: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
        """Of each class that a table's row tells: the word, and its probability."""
        if self.targets.preset:
            return {}
        return {
            target.name: (
                row[target.name],
                row[f"{target.name}_probability"],
            )
            for target in self.targets.classes
            if target.name in row
        }


PRESET = Shown()


def about_maps(shown: Shown) -> str:
    """What stands below a picture of maps."""
    if shown.targets.preset:
        return "Maps: where heads read their grams from, on one scale; not where plants stand"
    if shown.first.kind == "amount":
        return "Maps: where heads read amounts from, on one scale of this photograph"
    return "Map: what heads say of each patch"
