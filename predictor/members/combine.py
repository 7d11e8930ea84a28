"""From what heads say of a photograph to its prediction: views, heads and members averaged, then
constrained, with their spread."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from featurestore.photos.targets import Targets
from predictor.members.member import Member, Raw, check_alike
from trainer.judge.simplex import shares_among
from trainer.score.constraints import constrained
from trainer.score.postprocess import apply, most_probable, rules_of

Average = Literal["mean", "median"]


@dataclass(frozen=True)
class Combiner:
    """How an ensemble's members become one prediction."""

    members: list[Member]
    average: Average = "mean"
    constraints: str | None = None
    """`order` or `clip`; None is what the runs say."""

    def __post_init__(self) -> None:
        check_alike(self.members)

    def table(self, raw_NM: Mapping[str, Sequence[Raw] | None]) -> pd.DataFrame:
        """One row an image: image_id, each number, and `TARGET_sd`, the spread of single heads and
        views; but for the preset, of each class the most probable word and its probability where
        a member tells one.

        raw_NM : by image_id; None for a photograph that could not be used gives the training
            photographs' mean and spread, and no word.
        """
        rows = self.rows(list(raw_NM))
        for image_id, raw_M in raw_NM.items():
            if raw_M is not None:
                rows.put(image_id, raw_M)
        return rows.table()

    def rows(self, image_ids: Sequence[str]) -> "Rows":
        """A table to be filled photograph by photograph."""
        return Rows(self, image_ids)

    @property
    def untold(self) -> str | None:
        """Which targets no member tells, in a sentence; None where each has one."""
        targets = self.targets
        if targets.preset:  # its State is learned, and not predicted
            return None
        names = []
        tells_numbers = False
        tells_words = False
        for member in self.members:
            if member.weight > 0:
                names.append(member.name)
                tells_numbers |= member.tells_numbers
                tells_words |= member.tells_words

        heads = f"heads of {', '.join(names)}"
        numbers = ", ".join(targets.names)
        classes = ", ".join(target.name for target in targets.classes)
        if numbers and not tells_numbers:
            return (
                f"the training mean stands for {numbers}: {heads} tell no numbers; "
                "add --run SWEEP/ridge"
            )
        if classes and not tells_words:
            return f"no prediction of {classes}: {heads} tell no classes; add --run SWEEP/logistic"
        return None

    @functools.cached_property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread of the labels that the heads learned, by the members' shares."""
        both_M2K = np.array([member.training_mean_sd for member in self.members])
        mean_K, sd_K = np.tensordot(self._shares, both_M2K, 1)
        return mean_K, sd_K

    def values(self, raw_M: Sequence[Raw]) -> np.ndarray:
        """(K,) numbers in the order of tables: averaged over heads, views and members, then
        constrained."""
        raw_MK = np.array([self._averaged(raw.values_HVK) for raw in raw_M])
        return self._constrained(self._shares @ raw_MK, self.told(raw_M))

    def spread(self, raw_M: Sequence[Raw]) -> np.ndarray:
        """(K,) weighted standard deviation of single heads under single views, each constrained on
        its own."""
        parts = []
        for m, raw in enumerate(raw_M):
            raw_XK = _one_axis(raw.values_HVK)
            parts.append(self._constrained(raw_XK, self._placed(m, raw, False)))
        shares = []
        for share, part in zip(self._shares, parts, strict=True):
            # a member's share is spread evenly over its heads and views, however many it has
            n_parts = len(part)
            shares.append(np.full(n_parts, share / n_parts))
        share_X = np.concatenate(shares)
        all_XK = np.concatenate(parts)
        mean_K = share_X @ all_XK
        return np.sqrt(share_X @ (all_XK - mean_K) ** 2)

    @functools.cached_property
    def _weights(self) -> np.ndarray:
        weight_M = np.array([member.weight for member in self.members])
        return weight_M / weight_M.sum()

    @functools.cached_property
    def _shares(self) -> np.ndarray:
        """In numbers, which some members do not tell."""
        tells_M = [member.tells_numbers for member in self.members]
        return shares_among(self._weights, tells_M)

    @functools.cached_property
    def targets(self) -> Targets:
        """What the members predict, with the words of all of them."""
        words: dict[str, set[str]] = {}
        for member in self.members:
            for target in member.targets.classes:
                words.setdefault(target.name, set()).update(target.values)
        in_order = {name: sorted(each) for name, each in words.items()}
        return self.members[0].targets.with_values(in_order)

    def _averaged(self, x_HVK: np.ndarray) -> np.ndarray:
        x_XK = _one_axis(x_HVK)
        return np.median(x_XK, 0) if self.average == "median" else x_XK.mean(0)

    def told(self, raw_M: Sequence[Raw]) -> np.ndarray | None:
        """(C,) probabilities averaged over the members that tell words; None if none does."""
        told = []
        telling = []
        for m, raw in enumerate(raw_M):
            placed_C = self._placed(m, raw, True)
            if placed_C is not None:
                told.append(placed_C)
                telling.append(m)
        share_M = self._weights[telling]
        if not share_M.sum() > 0:
            return None
        return np.average(told, axis=0, weights=share_M)

    def _placed(self, m: int, raw: Raw, averaged: bool) -> np.ndarray | None:
        """(C,) or (X, C) probabilities over all members' words; None if this one tells none."""
        if raw.word_HVC is None:
            return None
        if averaged:
            told = self._averaged(raw.word_HVC)
        else:
            told = _one_axis(raw.word_HVC)

        own_targets = self.members[m].targets
        n_words = self.targets.n_words
        placed = np.zeros((*told.shape[:-1], n_words))
        for theirs, own, everyones in zip(
            own_targets.classes,
            own_targets.word_slices,
            self.targets.word_slices,
            strict=True,
        ):
            # words that its training images did not have get nothing
            known = self.targets[theirs.name].values
            columns = [everyones.start + known.index(word) for word in theirs.values]
            placed[..., columns] = told[..., own.start : own.start + len(columns)]
        return placed

    def _constrained(self, raw_XK: np.ndarray, word_XC: np.ndarray | None) -> np.ndarray:
        """(..., K) numbers constrained, then ruled."""
        inference = self.members[0].config.inference
        how = self.constraints or inference.constraints
        # one row, too, as a table: rules look along an axis of rows
        values_XK = constrained(np.atleast_2d(raw_XK), self.targets, how)
        word = None if word_XC is None else np.atleast_2d(word_XC)
        ruled = apply(rules_of(inference.postprocess), values_XK, word, self.targets)
        return ruled.reshape(raw_XK.shape)


class Rows:
    """What a combiner makes of photographs, kept in their order until it is a table.

    Of what heads say of a photograph nothing is kept: that is kilobytes.
    """

    def __init__(self, combiner: Combiner, image_ids: Sequence[str]) -> None:
        self._combiner = combiner
        self._place = {image_id: n for n, image_id in enumerate(image_ids)}
        targets = combiner.targets
        telling = [
            member for member in combiner.members if member.tells_words and member.weight > 0
        ]
        self._has_words = bool(telling) and not targets.preset
        n_words = targets.n_words if self._has_words else 0
        self._is_told_N = np.zeros(len(image_ids), bool)
        self._both_N2K = np.empty((len(image_ids), 2, len(targets.names)))
        self._share_NC = np.full((len(image_ids), n_words), np.nan)

    def put(self, image_id: str, raw_M: Sequence[Raw]) -> None:
        """Keep the prediction of a photograph, of what the members say of it."""
        n = self._place[image_id]
        self._both_N2K[n] = self._combiner.values(raw_M), self._combiner.spread(raw_M)
        told_C = self._combiner.told(raw_M) if self._has_words else None
        if told_C is not None:
            self._share_NC[n] = told_C
        self._is_told_N[n] = True

    def table(self) -> pd.DataFrame:
        """As `Combiner.table`; photographs that were not put could not be used."""
        if not self._is_told_N.all():
            self._both_N2K[~self._is_told_N] = self._combiner.known
        targets = self._combiner.targets
        columns = {}
        spread = {}
        for k, name in enumerate(targets.names):
            columns[name] = self._both_N2K[:, 0, k]
            spread[f"{name}_sd"] = self._both_N2K[:, 1, k]
        words = {}
        if self._has_words:
            for target, own in zip(targets.classes, targets.word_slices, strict=True):
                words[target.name] = most_probable(self._share_NC[:, own], target.values)
                words[f"{target.name}_probability"] = self._share_NC[:, own].max(1)
        return pd.DataFrame({"image_id": list(self._place), **columns, **spread, **words})


def _one_axis(x_HVK: np.ndarray) -> np.ndarray:
    """(H V, K) heads and views as one axis; K may be 0, of classes alone."""
    return x_HVK.reshape(x_HVK.shape[0] * x_HVK.shape[1], x_HVK.shape[2])
