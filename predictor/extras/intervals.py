"""Intervals that cover a new site's photograph at a stated level, from what members erred out of
fold; the site is the unit."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from featurestore.errors import InputError, UsageError
from featurestore.photos.targets import Targets
from predictor.checks import check_level
from predictor.members.member import Member, number_shares
from predictor.members.oof import OutOfFold, check_held_out

BASE_G = 1.0  # keeps the scale above zero where nothing is predicted


def scale(values_NK: np.ndarray, targets: Targets) -> np.ndarray:
    """(..., K) the unit of errors where this is predicted: of an amount sqrt(amount + 1), of others
    1.

    On the demo's out-of-fold tables (seed 0, 6 points x 5 targets) |error| grows with the power 0.2
    to 1 of the prediction, at the median 0.5; its rank correlation with the prediction falls from
    0.4 to 0.13 when divided by this, and would turn to -0.1 divided by mass + 1 g. It has no
    constant learned from the errors it divides, as the guarantee wants.
    """
    is_amount_K = np.array([target.kind == "amount" for target in targets.predicted])
    amounts = np.where(is_amount_K, values_NK, 0.0)
    return np.where(is_amount_K, np.sqrt(amounts + BASE_G), 1.0)


def site_quantile(score_N: np.ndarray, site_N: np.ndarray, level: float) -> float:
    """The least score that `level` of all photographs do not exceed, where each site weighs the
    same and one more site, the new one, may score anything: inf if level > S / (S + 1).

    A site's photographs share its weight 1 / (S + 1), so a site of hundred counts as one of one.
    Source: Lee, Barber and Willett 2023, Distribution-free inference with hierarchical data,
    arXiv:2306.06342 (hierarchical conformal prediction); two-layer models in Dunn, Wasserman and
    Ramdas 2022, JASA, arXiv:1809.07441.
    """
    _, of_N, n_S = np.unique(site_N, return_inverse=True, return_counts=True)
    order = np.argsort(score_N)
    # + 1: the new site, whose score may lie beyond all
    below_N = np.cumsum(1 / n_S[of_N[order]]) / (len(n_S) + 1)
    reached = np.flatnonzero(below_N >= level - 1e-9)  # the sum's rounding
    return float(score_N[order][reached[0]]) if len(reached) else np.inf


@dataclass(frozen=True)
class Intervals:
    """prediction +- quantile x scale: on average over new sites, `level` of a site's photographs
    lie within, target by target.

    That holds where new sites come as the known ones did, whatever the distribution. What it leaves
    out: heads of other folds saw the site whose error counts here with others left out, as in
    cross-conformal prediction; the final prediction averages more heads than each error did, which
    makes intervals a little wide; heads of `best` weights chose their epoch by these errors, which
    makes them too narrow; and the errors are of the views that the sweep scored, fewer of which
    (--tta 1) may err more. A single new site may fall outside with most of its photographs. Source:
    Lei et al. 2018, Distribution-free predictive inference for regression, JASA 113 (errors divided
    by a scale).
    """

    level: float
    n_sites: int
    targets: Targets
    quantile_K: np.ndarray
    """Of |error| / scale."""
    mean_width_K: np.ndarray
    """About the training mean, for photographs that it stands in for."""

    @classmethod
    def of(cls, members: Sequence[Member], level: float) -> "Intervals":
        """From the out-of-fold tables of a run, or of an ensemble's combined by weight.

        UsageError for a level outside (0, 1). InputError for one that the sites cannot support, or
        members that predict other photographs out of fold, or none.
        """
        check_level(level)
        check_held_out(members, "--interval")
        if not members[0].targets.n_predicted:
            raise UsageError("--interval is of numbers, and these heads predict classes alone")
        oof = OutOfFold.of(members)
        weight_M = number_shares(members)
        targets = oof.targets
        prediction_NK = oof.combined(weight_M)
        error_NK = np.abs(oof.truth_NK - prediction_NK)
        means = [member.training_mean_sd[0] for member in members]
        mean_K = np.average(means, axis=0, weights=weight_M)
        # the target that is known at the fewest sites limits the level of all
        n_sites = min(_check_sites(oof, k, level) for k in range(targets.n_predicted))
        return cls(
            level,
            n_sites,
            targets,
            _quantiles(error_NK / scale(prediction_NK, targets), oof, level),
            _quantiles(np.abs(oof.truth_NK - mean_K), oof, level),
        )

    def added(self, table: pd.DataFrame, stand_ins: Container[str] = ()) -> pd.DataFrame:
        """The wide table of `predict` with `TARGET_low` and `TARGET_high`; amounts and shares stay
        from 0, shares up to 1.

        stand_ins : image_ids of photographs that could not be used, whose prediction is the
            training mean.
        """
        targets = self.targets
        value_NK = table[list(targets.names)].to_numpy(float)
        is_mean_N = np.array([image_id in stand_ins for image_id in table["image_id"]], bool)
        own_width_NK = self.quantile_K * scale(value_NK, targets)
        # the training mean errs as it did out of fold, whatever a head would have said
        width_NK = np.where(is_mean_N[:, None], self.mean_width_K, own_width_NK)
        kinds = [target.kind for target in targets.predicted]
        least_K = [-np.inf if kind == "level" else 0.0 for kind in kinds]
        most_K = [1.0 if kind == "share" else np.inf for kind in kinds]
        ends = {
            "low": np.maximum(value_NK - width_NK, least_K),
            "high": np.minimum(value_NK + width_NK, most_K),
        }
        columns = {}
        for k, name in enumerate(targets.names):
            for end, values in ends.items():
                columns[f"{name}_{end}"] = values[:, k]
        return table.assign(**columns)


def within(table: pd.DataFrame, truth_NK: np.ndarray, targets: Targets) -> np.ndarray:
    """(N, K) bool, which truths lie within the intervals of a table that `Intervals.added` gave."""
    low_NK = table[[f"{name}_low" for name in targets.names]].to_numpy(float)
    high_NK = table[[f"{name}_high" for name in targets.names]].to_numpy(float)
    return (low_NK <= truth_NK) & (truth_NK <= high_NK)


def _check_sites(oof: OutOfFold, k: int, level: float) -> int:
    """Number of sites where target k is known; InputError if they are too few for the level."""
    is_known_N = ~np.isnan(oof.truth_NK[:, k])
    n_sites = len(np.unique(oof.site_N[is_known_N]))
    if level > n_sites / (n_sites + 1):
        raise InputError(
            f"--interval {level:g}: {n_sites} {oof.unit}s with a known {oof.targets.names[k]} "
            f"support levels up to {n_sites} / {n_sites + 1} = {n_sites / (n_sites + 1):.3f}; "
            f"choose a lower level, or train on more {oof.unit}s"
        )
    return n_sites


def _quantiles(score_NK: np.ndarray, oof: OutOfFold, level: float) -> np.ndarray:
    """(K,) site quantile of each target's scores, where its truth is known."""
    quantiles = []
    for score_N, truth_N in zip(score_NK.T, oof.truth_NK.T, strict=True):
        known_N = ~np.isnan(truth_N)
        quantiles.append(site_quantile(score_N[known_N], oof.site_N[known_N], level))
    return np.array(quantiles)
