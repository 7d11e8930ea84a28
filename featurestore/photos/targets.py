"""What is learned from a photograph: names, kinds, weights and sums of targets, as one value.

Nothing else knows a target's name. A sweep makes it from its config, a run and a bundle keep it.
"""

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np

from featurestore.errors import InputError

Kind = Literal["amount", "level", "share", "class"]
KINDS = get_args(Kind)
AUXILIARY_LOSS = 0.1
"""Weight in the loss of a target that is learned beside others."""


@dataclass(frozen=True)
class Target:
    """One column that heads learn."""

    name: str
    kind: Kind = "amount"
    """`amount` is never negative and adds up over tiles, `level` and `share` (0 to 1) are averaged
    over them, `class` is a word."""
    weight: float = 1.0
    """In the score."""
    loss_weight: float = 1.0
    sum_of: tuple[str, ...] = ()
    """Targets that it is the sum of."""
    auxiliary: bool = False
    """Learned beside others, not scored."""
    values: tuple[str, ...] = ()
    """Of a class: the words there are, in order."""

    @property
    def n_words(self) -> int:
        """Places of a class among words: one where none is known, too."""
        return max(1, len(self.values))

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any]) -> Self:
        """From what a config says; a weight that it leaves out depends on the others."""
        auxiliary = settings.get("auxiliary", False)
        weight = settings.get("weight")
        if weight is None:
            weight = 0.0 if auxiliary else 1.0
        loss_weight = settings.get("loss_weight")
        if loss_weight is None:
            loss_weight = AUXILIARY_LOSS if auxiliary else weight
        return cls(
            name,
            settings.get("kind", "amount"),
            float(weight),
            float(loss_weight),
            tuple(settings.get("sum_of", ())),
            auxiliary,
            tuple(settings.get("values", ())),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "weight": self.weight,
            "loss_weight": self.loss_weight,
            "sum_of": list(self.sum_of),
            "auxiliary": self.auxiliary,
            "values": list(self.values),
        }


@dataclass(frozen=True)
class Targets:
    """All targets of a task.

    Tables hold the predicted numbers in the order of `names`; heads compute them in the order of
    `outputs`, amounts first, then levels, then shares.
    """

    each: tuple[Target, ...]
    preset: Literal["csiro"] | None = None

    def __post_init__(self) -> None:
        _check_sums({target.name: target for target in self.each})

    @classmethod
    def of(cls, settings: Mapping[str, Mapping[str, Any]]) -> Self:
        """From a config's `targets`. InputError, naming the target, for what cannot be."""
        return cls(tuple(Target.of(name, about or {}) for name, about in settings.items()))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        each = [Target.of(name, about) for name, about in value["each"].items()]
        return cls(tuple(each), value["preset"])

    @classmethod
    def told(cls, about: Mapping[str, Any], where: str) -> Self:
        """What a run's spec.json says of them; InputError, naming where it stands, if that cannot
        be."""
        try:
            return cls.from_json(about["targets"])
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise InputError(
                f"{where}: targets: not what a run says of them; copy the run again"
            ) from err

    def to_json(self) -> dict[str, Any]:
        each = {target.name: target.to_json() for target in self.each}
        return {"preset": self.preset, "each": each}

    def with_values(self, words: Mapping[str, Iterable[str]]) -> Self:
        """The same with the words of each class. A class without any is left as it is."""
        each = []
        for target in self.each:
            known = words.get(target.name, target.values)
            each.append(replace(target, values=tuple(known)))
        return replace(self, each=tuple(each))

    def __getitem__(self, name: str) -> Target:
        return next(target for target in self.each if target.name == name)

    @functools.cached_property
    def predicted(self) -> tuple[Target, ...]:
        """Numbers that predictions hold, in the order of tables.

        Of the preset its five masses: its height is learned beside them and not told.
        """
        if self.preset:
            return tuple(target for target in self.each if target.kind == "amount")
        return tuple(target for target in self.each if target.kind != "class")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of `predicted`."""
        return tuple(target.name for target in self.predicted)

    @functools.cached_property
    def classes(self) -> tuple[Target, ...]:
        return tuple(target for target in self.each if target.kind == "class")

    @functools.cached_property
    def outputs(self) -> tuple[Target, ...]:
        """All numbers in the order that heads compute them in; the first are `predicted`."""
        if self.preset:
            # what the first heads were saved in: the main loss's three, then the rest
            return tuple(self[name] for name in CSIRO_OUTPUTS)
        return tuple(
            target for kind in ("amount", "level", "share") for target in self.of_kind(kind)
        )

    def of_kind(self, kind: Kind) -> tuple[Target, ...]:
        return tuple(target for target in self.each if target.kind == kind)

    @functools.cached_property
    def n_predicted(self) -> int:
        return len(self.predicted)

    @functools.cached_property
    def n_amounts(self) -> int:
        """Amounts are the first of `outputs`."""
        return len(self.of_kind("amount"))

    @functools.cached_property
    def word_slices(self) -> tuple[slice, ...]:
        """Where each class's words lie among those of all."""
        slices = []
        start = 0
        for target in self.classes:
            slices.append(slice(start, start + target.n_words))
            start += target.n_words
        return tuple(slices)

    @functools.cached_property
    def n_words(self) -> int:
        """Of all classes together."""
        return self.word_slices[-1].stop if self.classes else 0

    def in_table_order(self, values_K: np.ndarray) -> np.ndarray:
        """(..., K) `predicted` numbers from the order of heads to that of tables."""
        return values_K[..., list(self._places)]

    def in_head_order(self, values_K: np.ndarray) -> np.ndarray:
        """(..., K) back again."""
        back = np.argsort(self._places)  # the inverse of a permutation
        return values_K[..., list(back)]

    @functools.cached_property
    def _places(self) -> tuple[int, ...]:
        outputs = [target.name for target in self.outputs]
        return tuple(outputs.index(name) for name in self.names)

    @functools.cached_property
    def weights(self) -> tuple[float, ...]:
        """Of `predicted` in the score."""
        return tuple(target.weight for target in self.predicted)

    @functools.cached_property
    def foremost(self) -> Target:
        """The scored target with the largest weight, the first of equals: what is shown first."""
        scored = [target for target in self.each if not target.auxiliary]
        return max(scored or self.each, key=lambda target: target.weight)

    @functools.cached_property
    def sums(self) -> dict[str, tuple[str, ...]]:
        """What each target that is a sum consists of, parts before wholes."""
        sums = {target.name: target.sum_of for target in self.each if target.sum_of}
        ordered: dict[str, tuple[str, ...]] = {}
        # this ends: circles were refused when the targets were made
        while len(ordered) < len(sums):
            for name, parts in sums.items():
                if all(part in ordered or part not in sums for part in parts):
                    ordered.setdefault(name, parts)
        return ordered

    def parts_of(self, name: str) -> tuple[str, ...]:
        """The targets, none of them a sum, that a target is the sum of; itself where it is none."""
        if name not in self.sums:
            return (name,)
        return tuple(leaf for part in self.sums[name] for leaf in self.parts_of(part))


def _check_sums(targets: Mapping[str, Target]) -> None:
    """InputError unless sums are trees of amounts among the targets."""
    used: dict[str, str] = {}
    for name, target in targets.items():
        for part in target.sum_of:
            where = f"targets.{name}.sum_of: {part}"
            if part not in targets:
                raise InputError(
                    f"{where} is no target; add it, with weight 0 where it should not be scored"
                )
            if {target.kind, targets[part].kind} != {"amount"}:
                raise InputError(
                    f"{where}: only amounts add up, and {name} is of kind {target.kind}, {part} of "
                    f"kind {targets[part].kind}"
                )
            if part in used:
                raise InputError(
                    f"{where} is a part of {used[part]} already; a target is a part of one sum"
                )
            used[part] = name
        if len(target.sum_of) == 1:
            raise InputError(f"targets.{name}.sum_of: a sum has two parts or more")
    for name in targets:
        _refuse_circle(name, targets, ())


def _refuse_circle(name: str, targets: Mapping[str, Target], above: Sequence[str]) -> None:
    if name in above:
        raise InputError(f"targets.{name}.sum_of: {' of '.join([*above, name])} goes in a circle")
    for part in targets[name].sum_of:
        _refuse_circle(part, targets, [*above, name])


CSIRO_MAIN = ("Dry_Total_g", "GDM_g", "Dry_Green_g")
"""Of the main loss, and the chain that constraints act on: each is a part of the one before."""
CSIRO_OTHERS = ("Dry_Dead_g", "Dry_Clover_g")
"""Of the auxiliary loss; predicted as differences."""
CSIRO_HEIGHT = "Height_Ave_cm"
CSIRO_OUTPUTS = (*CSIRO_MAIN, *CSIRO_OTHERS, CSIRO_HEIGHT)
CSIRO_STRATA = ("Dry_Clover_g", "Dry_Dead_g")
"""What is spread evenly over folds."""
CSIRO = Targets(
    (
        Target("Dry_Green_g", weight=0.1, loss_weight=0.3),
        Target("Dry_Dead_g", weight=0.1, loss_weight=0.05),
        Target("Dry_Clover_g", weight=0.1, loss_weight=0.05),
        Target("GDM_g", weight=0.2, loss_weight=0.5, sum_of=("Dry_Green_g", "Dry_Clover_g")),
        Target("Dry_Total_g", weight=0.5, loss_weight=1.0, sum_of=("GDM_g", "Dry_Dead_g")),
        Target("State", "class", 0.0, 0.1, auxiliary=True),
        Target(CSIRO_HEIGHT, "level", 0.0, 0.1, auxiliary=True),
    ),
    preset="csiro",
)
"""The contest's five masses, with its weights (CSIRO Image2Biomass, evaluation page), and what
heads learn beside them."""


def has_preset(columns: Collection[str]) -> bool:
    """Whether a table has the contest's five masses."""
    return set(CSIRO.names) <= set(columns)
