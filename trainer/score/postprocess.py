"""Rules for predictions whose sums already hold.

Each keeps all sums, and amounts from 0. Arrays in, arrays out, in float64. Rules change what is no
sum and add the sums up anew; a row that a rule does not touch keeps every bit. A config says which
rules apply, `judge` whether they help.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from featurestore.errors import InputError
from featurestore.photos.targets import CSIRO, Targets

GREEN, DEAD, CLOVER, GDM, TOTAL = range(CSIRO.n_predicted)

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

    def __call__(self, values_NK: np.ndarray, targets: Targets, state_N: np.ndarray) -> np.ndarray:
        gdm_N = values_NK[..., GDM]
        total_N = values_NK[..., TOTAL]
        weights = targets.weights
        weight_of_both = weights[GDM] + weights[TOTAL]
        mean_N = gdm_N + weights[TOTAL] * (total_N - gdm_N) / weight_of_both
        changed_NK = _brought_to(values_NK, targets, targets.names[GDM], mean_N).copy()
        changed_NK[..., DEAD] *= 0  # not = 0: what is NaN stays NaN
        changes_N = (state_N == "WA") & (values_NK[..., DEAD] != 0)
        return np.where(changes_N[..., None], summed(changed_NK, targets), values_NK)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Clip:
    """A target is brought into [low, high], 0 <= low <= high, by scaling its parts.

    From 0 the first of them is raised, Green in the preset.
    """

    target: str
    low: float
    high: float
    name: ClassVar[str] = "clip"
    needs_state: ClassVar[bool] = False

    def __call__(self, values_NK: np.ndarray, targets: Targets, state_N: np.ndarray) -> np.ndarray:
        value_N = values_NK[..., targets.names.index(self.target)]
        clipped_N = np.clip(value_N, self.low, self.high)
        return _brought_to(values_NK, targets, self.target, clipped_N)

    def __str__(self) -> str:
        return f"{self.name} {self.target} to {self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Factor:
    """A target and all its parts are multiplied by a factor > 0."""

    target: str
    factor: float
    name: ClassVar[str] = "factor"
    needs_state: ClassVar[bool] = False

    def __call__(self, values_NK: np.ndarray, targets: Targets, state_N: np.ndarray) -> np.ndarray:
        value_N = values_NK[..., targets.names.index(self.target)]
        return _brought_to(values_NK, targets, self.target, value_N * self.factor)

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
    rules: Sequence[Rule],
    values_NK: np.ndarray,
    word_NC: np.ndarray | None,
    targets: Targets,
) -> np.ndarray:
    """Predictions after all rules, in order.

    Parameters
    ----------
    values_NK : (..., N, K) in the order of tables, whose sums hold; NaN rows stay NaN.
    word_NC : (..., N, C) probabilities of each class's words, one class after another, averaged as
        the values are; leading axes of both broadcast. The predicted word is the most probable,
        none where they are NaN. None for heads that tell no class.

    Returns
    -------
    (..., N, K) float64; the inputs are not written to.

    Raises InputError if a rule asks for the State of images and heads tell none.
    """
    values_NK = np.array(values_NK, np.float64)
    needing = [str(rule) for rule in rules if rule.needs_state]
    told = bool(needing) and word_NC is not None and len(targets["State"].values) > 0
    if needing and not told and values_NK.size:
        raise InputError(
            f"inference.postprocess: {', '.join(needing)} needs the predicted State, and these "
            "heads tell none; leave the rule out or choose a kind of head that learns State, with "
            "States in the catalog"
        )
    # the preset's only class
    state_N = most_probable(word_NC, targets["State"].values) if told else np.array("")
    for rule in rules:
        values_NK = rule(values_NK, targets, state_N)
    return values_NK


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


def most_probable(word_NC: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """(..., N) the most probable words of one class; "" where probabilities are NaN."""
    if word_NC.shape[-1] != len(words):
        raise ValueError(
            f"probabilities are {word_NC.shape}, of {len(words)} words: "
            "the last axis must be theirs"
        )
    unknown_N = np.isnan(word_NC).any(-1)
    most_N = np.nan_to_num(word_NC).argmax(-1)
    return np.where(unknown_N, "", np.array(words)[most_N])


def _brought_to(
    values_NK: np.ndarray,
    targets: Targets,
    name: str,
    wanted_N: np.ndarray,
) -> np.ndarray:
    """The values with a target's parts scaled until they add up to what is wanted."""
    place = {target: k for k, target in enumerate(targets.names)}
    parts = sorted(place[part] for part in targets.parts_of(name))
    old = values_NK[..., parts]
    total = old.sum(-1, keepdims=True)
    nothing = total == 0
    # shares, not one ratio of totals, which may overflow; of nothing the first part has all
    whole_to_first = np.arange(len(parts)) == 0
    share = np.where(nothing, whole_to_first, old / np.where(nothing, 1, total))
    changed_NK = values_NK.copy()
    changed_NK[..., parts] = share * wanted_N[..., None]
    # what is there already keeps its bits: shares multiplied back might round
    there_N = wanted_N == values_NK[..., place[name]]
    return np.where(there_N[..., None], values_NK, summed(changed_NK, targets))


def summed(values_NK: np.ndarray, targets: Targets) -> np.ndarray:
    """(..., N, K) values, in the order of tables, with every sum added up anew from its parts."""
    place = {target: k for k, target in enumerate(targets.names)}
    values_NK = values_NK.copy()
    # inner sums first; added one by one, so that the order, and with it the rounding, is one
    for name, sum_of in targets.sums.items():
        first, *others = (values_NK[..., place[part]] for part in sum_of)
        for other in others:
            first = first + other
        values_NK[..., place[name]] = first
    return values_NK
