"""Which row each sample of a step reads and which partner it has, as indices on the device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

from trainer.heads.sending import on_device


@dataclass(frozen=True)
class Touches:
    """Which samples touch which row, and where the result of each is found again.

    A touch is one entry of a (Q, B, S) array of rows. Each row has as many places (M) as the most
    touched one, so that all rows can be multiplied together; places that a row does not need repeat
    the first touch, and nothing reads them.
    """

    counts_U: list[int]
    """Touches of each row."""
    split_UM: Tensor
    """Split, sample and slot of the touch at each place."""
    sample_UM: Tensor
    slot_UM: Tensor
    row_QBS: Tensor
    """Row of each touch, and its place among the row's; 0 where an entry touches none."""
    place_QBS: Tensor
    missing_n: Tensor
    """Entries that touch no row, counted over (Q, B, S)."""

    def without_missing(self, values: Tensor) -> Tensor:
        """(Q, B, S, ...) values, zero where an entry touches no row."""
        if not len(self.missing_n):
            return values
        return values.flatten(0, 2).index_fill(0, self.missing_n, 0).view_as(values)


@dataclass(frozen=True)
class StepIndex:
    """Each sample of a step, (Q, B), and what it reads; sent in one copy."""

    own_QB: Tensor
    """Row of each; 0 where a split has fewer samples."""
    split_Q1: Tensor
    """Numbers of the splits."""
    own: Touches
    """Of each sample's own row, (Q, B, 1)."""
    image_QB: Tensor
    """Image of each, where it was said."""
    partner_QB: Mapping[str, Tensor] = field(default_factory=dict)
    """Sample of the same batch that each is mixed with, by the way partners are chosen."""
    pairs: Mapping[str, Touches] = field(default_factory=dict)
    """Of own and partner's row, (Q, B, 2)."""

    @classmethod
    def of(
        cls,
        own_QB: np.ndarray,
        n_rows: int,
        device: torch.device,
        image_QB: np.ndarray | None = None,
        partners: Mapping[str, np.ndarray] | None = None,
    ) -> Self:
        """Of n_rows rows; own_QB is -1 where a split has fewer.

        partners : (Q, B) sample that each is mixed with, by the way they are chosen.
        """
        partners = partners or {}
        arrays = {
            "own_QB": own_QB.clip(0),
            "split_Q1": np.arange(len(own_QB))[:, None],
            "image_QB": np.zeros((0, 0), int) if image_QB is None else image_QB,
        }
        counts = {"own": _touch_arrays("own", own_QB[..., None], n_rows, arrays)}
        for way, partner_QB in partners.items():
            arrays[f"partner/{way}"] = partner_QB
            pair_QB2 = np.stack([own_QB, np.take_along_axis(own_QB, partner_QB, 1)], -1)
            counts[way] = _touch_arrays(way, pair_QB2, n_rows, arrays)

        sent = _send(arrays, device)
        touches = {}
        for way, counts_U in counts.items():
            parts = {name: sent[f"{way}/{name}"] for name in TOUCH_PARTS}
            touches[way] = Touches(counts_U, **parts)
        return cls(
            sent["own_QB"],
            sent["split_Q1"],
            touches.pop("own"),
            sent["image_QB"],
            {way: sent[f"partner/{way}"] for way in partners},
            touches,
        )

    def partners_of(self, way: str, own_QGB: Tensor) -> Tensor:
        """(Q, G, B, ...) values of each sample's partner."""
        return own_QGB[self.split_Q1, :, self.partner_QB[way]].transpose(1, 2)


TOUCH_PARTS = ("split_UM", "sample_UM", "slot_UM", "row_QBS", "place_QBS", "missing_n")


def _touch_arrays(
    way: str,
    row_QBS: np.ndarray,
    n_rows: int,
    arrays: dict[str, np.ndarray],
) -> list[int]:
    """Add the arrays of `Touches` by name; touches of each row."""
    flat = row_QBS.reshape(-1)
    # touches of one row follow each other; stable, so that sums are always in the same order
    order = np.argsort(flat, kind="stable")
    touching = order[flat[order] >= 0]
    rows = flat[touching]
    counts_U = np.bincount(rows, minlength=n_rows)
    starts_U = np.cumsum(counts_U) - counts_U
    places = np.arange(len(rows)) - starts_U[rows]  # of each touch among its row's

    touch_UM = np.zeros((n_rows, counts_U.max(initial=0)), int)
    touch_UM[rows, places] = touching
    place_QBS = np.zeros(row_QBS.shape, int)
    place_QBS.reshape(-1)[touching] = places
    found = (
        *np.unravel_index(touch_UM, row_QBS.shape),
        row_QBS.clip(0),
        place_QBS,
        np.flatnonzero(flat < 0),
    )
    for name, array in zip(TOUCH_PARTS, found, strict=True):
        arrays[f"{way}/{name}"] = array
    return counts_U.tolist()


def _send(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Arrays of integers on a device, in one copy."""
    flat = [array.reshape(-1) for array in arrays.values()]
    joined = torch.from_numpy(np.concatenate(flat))
    parts = on_device(joined, device).split([len(each) for each in flat])
    return {
        name: part.view(array.shape)
        for (name, array), part in zip(arrays.items(), parts, strict=True)
    }
