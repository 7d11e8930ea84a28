"""Numbers that are fitted together: those whose labels are known for the same images.

A fit over several such groups is saved as one state, each name with its group's number before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featurestore.photos.targets import Targets
from trainer.heads.regressor import State
from trainer.heads.spaces import SPACES, grams

PLACES = "places"
"""Saved beside a group's arrays: which of a task's numbers it predicts."""


@dataclass(frozen=True)
class FittedTogether:
    """Some of a task's numbers, in the order of heads: amounts come first."""

    places: tuple[int, ...]
    n_amounts: int

    def in_space(self, space: str, y_nK: np.ndarray) -> np.ndarray:
        """Labels of the task's numbers -> those of these, amounts in a space."""
        y_nk = y_nK[:, list(self.places)]
        into, _ = SPACES[space]
        amounts, others = np.split(y_nk, [self.n_amounts], axis=1)
        both = np.hstack([into(amounts), others])
        return np.ascontiguousarray(both)  # row by row: products of other orders round otherwise

    def from_space(self, space: str, z_nk: np.ndarray) -> np.ndarray:
        """Predictions of these back again, amounts from 0."""
        amounts = grams(space, z_nk[..., : self.n_amounts])
        return np.concatenate([amounts, z_nk[..., self.n_amounts :]], -1)


def all_numbers(targets: Targets, places: Sequence[int] | None = None) -> FittedTogether:
    """All of a task's predicted numbers, or some of them."""
    places = tuple(range(targets.n_predicted)) if places is None else tuple(places)
    kinds = [targets.outputs[k].kind for k in places]
    return FittedTogether(places, kinds.count("amount"))


def known_together(
    targets: Targets,
    truth_NK: np.ndarray,
) -> list[tuple[FittedTogether, np.ndarray]]:
    """Groups of numbers, and (N,) which images have their labels; one group where all are known."""
    is_known_NK = ~np.isnan(truth_NK)
    patterns: dict[bytes, list[int]] = {}
    for k in range(truth_NK.shape[1]):
        patterns.setdefault(is_known_NK[:, k].tobytes(), []).append(k)
    groups = []
    for places in patterns.values():
        is_known_N = is_known_NK[:, places[0]]  # as of all others of its group
        groups.append((all_numbers(targets, places), is_known_N))
    return groups


def each_class(targets: Targets, true_NC: np.ndarray) -> list[tuple[FittedTogether, np.ndarray]]:
    """The same for words: each class by itself, its places behind those of all numbers."""
    groups = []
    for own in targets.word_slices:
        places = tuple(range(targets.n_predicted + own.start, targets.n_predicted + own.stop))
        groups.append((FittedTogether(places, 0), true_NC[:, own].any(1)))
    return groups


def merged(states: Sequence[State], groups: Sequence[FittedTogether]) -> State:
    """One state of several groups' fits; the only group's own where it is of all numbers."""
    if len(groups) == 1 and groups[0].places[0] == 0:
        return states[0]
    together = {}
    for g, (state, own) in enumerate(zip(states, groups, strict=True)):
        together |= {f"{g}.{name}": array for name, array in state.items()}
        together[f"{g}.{PLACES}"] = np.array(own.places)
    return together


def parted(
    state: Mapping[str, np.ndarray],
    targets: Targets,
) -> Iterator[tuple[FittedTogether, dict[str, np.ndarray]]]:
    """The groups of a saved state, and each one's own."""
    if f"0.{PLACES}" not in state:
        together = all_numbers(targets)
        if not together.places:  # of one class alone
            together = FittedTogether(tuple(range(targets.n_words)), 0)
        yield together, dict(state)
        return
    for g in range(sum(name.endswith(f".{PLACES}") for name in state)):
        own = {}
        for name, array in state.items():
            if name.startswith(f"{g}."):
                own[name.removeprefix(f"{g}.")] = array
        places = tuple(own.pop(PLACES).tolist())
        if places[0] >= targets.n_predicted:  # of words, which stand behind all numbers
            yield FittedTogether(places, 0), own
        else:
            yield all_numbers(targets, places), own


def numbers_and_words(raw_NK: np.ndarray, targets: Targets) -> tuple[np.ndarray, np.ndarray | None]:
    """What a regressor told, apart: (..., K) numbers, and (..., C) probabilities of words or
    None."""
    n_numbers = targets.n_predicted
    if raw_NK.shape[-1] == n_numbers:
        return raw_NK, None
    return raw_NK[..., :n_numbers], raw_NK[..., n_numbers:]
