"""From what heads say of a photograph to its masses: views, heads and members averaged, then
constrained, with their spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from predictor.members.member import Member, Raw, check_alike
from trainer.score.metrics import TARGETS, constrained
from trainer.score.postprocess import apply, rules_of

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
        """One row an image: image_id, the five targets in grams, and for each `TARGET_sd`, the
        spread of single heads and views.

        raw_NM : by image_id; None for a photograph that could not be used gives the training
            photographs' mean and spread.
        """
        rows = [
            self._known if raw_M is None else (self.masses(raw_M), self.spread(raw_M))
            for raw_M in raw_NM.values()
        ]
        mean_N5, sd_N5 = np.array(rows).reshape(-1, 2, len(TARGETS)).transpose(1, 0, 2)
        columns = {name: mean_N5[:, k] for k, name in enumerate(TARGETS)}
        spread = {f"{name}_sd": sd_N5[:, k] for k, name in enumerate(TARGETS)}
        return pd.DataFrame({"image_id": list(raw_NM), **columns, **spread})

    @property
    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread of the masses that the heads learned, by the members' shares."""
        both_M25 = np.array([member.training_mean_sd for member in self.members])
        mean_5, sd_5 = np.tensordot(self._shares, both_M25, 1)
        return mean_5, sd_5

    def masses(self, raw_M: Sequence[Raw]) -> np.ndarray:
        """(5,) grams in TARGETS order: averaged over heads, views and members, then constrained."""
        raw_M5 = np.array([self._averaged(raw.masses_HV5) for raw in raw_M])
        state_MC = [self._state(m, raw, True) for m, raw in enumerate(raw_M)]
        return self._grams(self._shares @ raw_M5, self._shares, state_MC)

    def spread(self, raw_M: Sequence[Raw]) -> np.ndarray:
        """(5,) grams: weighted standard deviation of single heads under single views, each
        constrained on its own."""
        parts = [
            self._grams(raw.masses_HV5.reshape(-1, 5), None, [self._state(m, raw, False)])
            for m, raw in enumerate(raw_M)
        ]
        # a member's share is spread evenly over its heads and views
        shares = [
            np.full(len(part), share / len(part))
            for share, part in zip(self._shares, parts, strict=True)
        ]
        share_X = np.concatenate(shares)
        all_X5 = np.concatenate(parts)
        return np.sqrt(share_X @ (all_X5 - share_X @ all_X5) ** 2)

    @property
    def _shares(self) -> np.ndarray:
        weight_M = np.array([member.weight for member in self.members])
        return weight_M / weight_M.sum()

    @property
    def _states(self) -> list[str]:
        return sorted({state for member in self.members for state in member.states})

    def _averaged(self, x_HVK: np.ndarray) -> np.ndarray:
        x_XK = x_HVK.reshape(-1, x_HVK.shape[-1])
        return np.median(x_XK, 0) if self.average == "median" else x_XK.mean(0)

    def _state(self, m: int, raw: Raw, averaged: bool) -> np.ndarray | None:
        """(C,) or (X, C) probabilities over all members' States; None if this one predicts none."""
        if raw.state_HVC is None:
            return None
        if averaged:
            told = self._averaged(raw.state_HVC)
        else:
            told = raw.state_HVC.reshape(-1, raw.state_HVC.shape[-1])

        columns = [self._states.index(state) for state in self.members[m].states]
        placed = np.zeros((*told.shape[:-1], len(self._states)))
        placed[..., columns] = told
        return placed

    def _grams(
        self, raw_X5: np.ndarray, share_M: np.ndarray | None, state_MC: list[np.ndarray | None]
    ) -> np.ndarray:
        """(..., 5) masses constrained, then ruled; only some members predict States."""
        known = [i for i, state in enumerate(state_MC) if state is not None]
        weights = np.ones(len(state_MC)) if share_M is None else share_M
        state = None
        if weights[known].sum() > 0:
            known_states = [state_MC[i] for i in known]
            state = np.atleast_2d(np.average(known_states, axis=0, weights=weights[known]))

        inference = self.members[0].config.inference
        masses = constrained(np.atleast_2d(raw_X5), self.constraints or inference.constraints)
        ruled = apply(rules_of(inference.postprocess), masses, state, self._states)
        return ruled.reshape(raw_X5.shape)
