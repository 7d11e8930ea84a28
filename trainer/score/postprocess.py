"""Rules for masses that already balance.

Each keeps GDM = Green + Clover, Total = GDM + Dead and every mass from 0. Arrays in, arrays out, in
float64. Rules change the three parts (green, dead, clover) and add the sums up anew; a row that a
rule does not touch keeps every bit. A config says which rules apply, `judge` whether they help.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from featurestore.errors import InputError
from featurestore.photos.catalog import TARGETS
from trainer.score.metrics import WEIGHTS

GREEN, DEAD, CLOVER, GDM, TOTAL = range(len(TARGETS))
PARTS = {
    "Dry_Green_g": [GREEN],
    "Dry_Dead_g": [DEAD],
    "Dry_Clover_g": [CLOVER],
    "GDM_g": [GREEN, CLOVER],
    "Dry_Total_g": [GREEN, DEAD, CLOVER],
}
"""What a target is the sum of; the first takes it all where there is nothing to scale."""

Score = TypeVar("Score")


@dataclass(frozen=True)
class WaDeadZero:
    """Where the predicted State is WA: Dead is 0, and GDM and Total are the mean of both
    predictions in the metric's weights.

    Green and Clover are scaled to that GDM; where both are 0, all of it is Green.
    Source: in the contest's labels Dead is 0 in all 32 images of WA, where it was not sorted out;
    so GDM and Total are two predictions of one mass, and this mean of them costs the least in the
    score.
    """

    name: ClassVar[str] = "wa_dead_zero"
    needs_state: ClassVar[bool] = True

    def __call__(self, masses_N5: np.ndarray, state_N: np.ndarray) -> np.ndarray:
        gdm_N = masses_N5[..., GDM]
        total_N = masses_N5[..., TOTAL]
        mean_N = gdm_N + WEIGHTS[TOTAL] * (total_N - gdm_N) / (WEIGHTS[GDM] + WEIGHTS[TOTAL])
        parts_N3 = _brought_to(masses_N5, "GDM_g", mean_N)[..., :3].copy()
        parts_N3[..., DEAD] *= 0  # not = 0: what is NaN stays NaN
        changes_N = (state_N == "WA") & (masses_N5[..., DEAD] != 0)
        return np.where(changes_N[..., None], _summed(parts_N3), masses_N5)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Clip:
    """A target is brought into [low, high] grams, 0 <= low <= high, by scaling its parts.

    From 0 it is raised as Green.
    """

    target: str
    low: float
    high: float
    name: ClassVar[str] = "clip"
    needs_state: ClassVar[bool] = False

    def __call__(self, masses_N5: np.ndarray, state_N: np.ndarray) -> np.ndarray:
        mass_N = masses_N5[..., TARGETS.index(self.target)]
        return _brought_to(masses_N5, self.target, np.clip(mass_N, self.low, self.high))

    def __str__(self) -> str:
        return f"{self.name} {self.target} to {self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Factor:
    """A target and all its parts are multiplied by a factor > 0."""

    target: str
    factor: float
    name: ClassVar[str] = "factor"
    needs_state: ClassVar[bool] = False

    def __call__(self, masses_N5: np.ndarray, state_N: np.ndarray) -> np.ndarray:
        mass_N = masses_N5[..., TARGETS.index(self.target)]
        return _brought_to(masses_N5, self.target, mass_N * self.factor)

    def __str__(self) -> str:
        return f"{self.name} {self.target} x {self.factor:g}"


Rule = WaDeadZero | Clip | Factor
RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (WaDeadZero, Clip, Factor)}
"""By the name the configs use."""


def rules_of(sections: Sequence[Any]) -> list[Rule]:
    """The rules of a config's `inference.postprocess`.

    sections : objects with `rule`, a name, and the rule's settings beside it.
    """
    rules = []
    for section in sections:
        kind = RULES[section.rule]
        settings = {field.name: getattr(section, field.name) for field in fields(kind)}
        rules.append(kind(**settings))
    return rules


def apply(
    rules: Sequence[Rule], masses_N5: np.ndarray, state_NC: np.ndarray | None, states: Sequence[str]
) -> np.ndarray:
    """Masses after all rules, in order.

    Parameters
    ----------
    masses_N5 : (..., N, 5), grams in TARGETS order, not negative, whose sums hold; NaN rows stay
        NaN.
    state_NC : (..., N, C) probabilities of `states`, averaged as the masses are; leading axes of
        both broadcast. The predicted State is the most probable, none where they are NaN. None for
        heads that tell no State.
    states : C names.

    Returns
    -------
    (..., N, 5) float64; the inputs are not written to.

    Raises InputError if a rule asks for the State of images and heads tell none.
    """
    masses_N5 = np.array(masses_N5, np.float64)
    told = state_NC is not None and len(states) > 0
    needing = [str(rule) for rule in rules if rule.needs_state]
    if needing and not told and masses_N5.size:
        raise InputError(
            f"inference.postprocess: {', '.join(needing)} needs the predicted State, and these "
            "heads tell none; leave the rule out or choose a kind of head that learns State, with "
            "States in the catalog"
        )
    state_N = most_probable(state_NC, states) if told else np.array("")
    for rule in rules:
        masses_N5 = rule(masses_N5, state_N)
    return masses_N5


def judge(rules: Sequence[Rule], score: Callable[[Sequence[Rule]], Score]) -> dict[str, Score]:
    """What rules gain: `score` of all of them, of none, and without each of them alone.

    Scores by which a rule is kept are no longer out of sample for it; with a few rules of few
    settings that is little.
    """
    rules = list(rules)
    scores = {"all": score(rules), "none": score([])}
    for i, rule in enumerate(rules):
        name = f"without {rule}"
        if name in scores:  # the same rule twice
            name = f"{name} (rule {i + 1})"
        scores[name] = score(rules[:i] + rules[i + 1 :])
    return scores


def most_probable(state_NC: np.ndarray, states: Sequence[str]) -> np.ndarray:
    """(..., N) names of the most probable States; "" where probabilities are NaN."""
    if state_NC.shape[-1] != len(states):
        raise ValueError(
            f"probabilities are {state_NC.shape}, of {len(states)} States: "
            "the last axis must be theirs"
        )
    unknown_N = np.isnan(state_NC).any(-1)
    most_N = np.nan_to_num(state_NC).argmax(-1)
    return np.where(unknown_N, "", np.array(states)[most_N])


def _brought_to(masses_N5: np.ndarray, target: str, wanted_N: np.ndarray) -> np.ndarray:
    """The masses with a target's parts scaled until they add up to what is wanted."""
    parts = PARTS[target]
    old = masses_N5[..., parts]
    total = old.sum(-1, keepdims=True)
    nothing = total == 0
    # shares, not one ratio of totals, which may overflow; of nothing the first part has all
    whole_to_first = np.arange(len(parts)) == 0
    share = np.where(nothing, whole_to_first, old / np.where(nothing, 1, total))
    parts_N3 = masses_N5[..., :3].copy()
    parts_N3[..., parts] = share * wanted_N[..., None]
    there_N = wanted_N == masses_N5[..., TARGETS.index(target)]
    return np.where(there_N[..., None], masses_N5, _summed(parts_N3))


def _summed(parts_N3: np.ndarray) -> np.ndarray:
    """(..., N, 5) in TARGETS order from green, dead and clover."""
    green_N, dead_N, clover_N = np.moveaxis(parts_N3, -1, 0)
    gdm_N = green_N + clover_N
    return np.stack([green_N, dead_N, clover_N, gdm_N, gdm_N + dead_N], -1)
