"""From raw outputs of heads to predictions that obey their kinds and sums.

Arrays in, arrays out, in float64.
"""

from collections.abc import Sequence

import numpy as np

from featurestore.photos.targets import CSIRO, CSIRO_MAIN, Targets

CHAIN_WEIGHTS = tuple(CSIRO[name].weight for name in CSIRO_MAIN)
LEAST_SHARE = 0.01
"""Of the largest weight: what a target that is not scored weighs in a projection."""
MOST_ROUNDS = 10_000


def constrained(raw_NK: np.ndarray, targets: Targets, how: str = "order") -> np.ndarray:
    """Raw numbers as heads compute them, made to obey kinds and sums.

    Amounts are not negative, shares lie in 0..1, a target is the sum of its parts. Under the preset
    only Total, GDM and Green are looked at: Dead and Clover are the differences. So it is for each
    three amounts of a chain like that; the parts of any other sum are projected with it.

    Parameters
    ----------
    raw_NK : (..., N, K) `targets.predicted`, in the order of heads.
    how : `order` or, under the preset, `clip`.

    Returns
    -------
    (..., N, K) float64 in the order of tables; rows that are NaN stay NaN.
    """
    if targets.preset:
        total, gdm, green = np.moveaxis(raw_NK[..., :3], -1, 0)
        return CONSTRAINTS[how](total, gdm, green)

    raw_NK = targets.in_table_order(np.asarray(raw_NK, np.float64))
    values_NK = raw_NK.copy()
    for k, target in enumerate(targets.predicted):
        if target.kind == "share":
            values_NK[..., k] = np.clip(values_NK[..., k], 0, 1)
        elif target.kind == "amount" and target.name not in targets.sums:
            values_NK[..., k] = np.maximum(values_NK[..., k], 0)
    parts = {part for sum_of in targets.sums.values() for part in sum_of}
    for name in targets.sums:
        if name not in parts:  # each tree once, by its root
            _balance(values_NK, raw_NK, targets, name)
    return values_NK


def _balance(
    values_NK: np.ndarray,
    raw_NK: np.ndarray,
    targets: Targets,
    root: str,
) -> None:
    """Write a tree of sums into the values."""
    place = {name: k for k, name in enumerate(targets.names)}
    if chain := _chain(targets, root):
        whole, middle, first, rest_of_middle, rest = (place[name] for name in chain)
        weights = _weights(targets, chain[:3])
        raw_3N = [raw_NK[..., k] for k in (whole, middle, first)]
        balanced_N5 = order_constraint(*raw_3N, weights)
        values_NK[..., [first, rest, rest_of_middle, middle, whole]] = balanced_N5
        return

    # heads tell sums as well as parts: all numbers pull at the leaves, which are what is solved for
    members = _members(targets, root)
    leaves = [name for name in members if name not in targets.sums]
    rows = [[leaf in targets.parts_of(name) for leaf in leaves] for name in members]
    sums_ML = np.array(rows, np.float64)
    places = [place[name] for name in members]
    leaves_NL = projected(raw_NK[..., places], sums_ML, _weights(targets, members))
    values_NK[..., [place[name] for name in leaves]] = leaves_NL
    # added up in one order, so that sums hold to the bit
    for name in targets.sums:
        if name in members:
            parts = [place[part] for part in targets.sums[name]]
            of_parts_N = values_NK[..., parts].sum(-1)
            values_NK[..., place[name]] = of_parts_N


def _chain(targets: Targets, root: str) -> tuple[str, ...] | None:
    """Whole, middle, first, rest of the middle, rest of the whole, where whole = middle + rest and
    middle = first + its rest; None for another tree."""
    parts = targets.sums[root]
    middles = [part for part in parts if part in targets.sums]
    if len(parts) != 2 or len(middles) != 1:
        return None
    (middle,) = middles
    (rest,) = (part for part in parts if part != middle)
    inner = targets.sums[middle]
    if len(inner) != 2 or any(part in targets.sums for part in inner):
        return None
    return root, middle, inner[0], inner[1], rest


def _members(targets: Targets, root: str) -> list[str]:
    """A sum and all that it is made of."""
    found = [root]
    for part in targets.sums.get(root, ()):
        found += _members(targets, part)
    return found


def _weights(targets: Targets, names: Sequence[str]) -> tuple[float, ...]:
    """In the score; of what it leaves out a small one, so that the projection has one solution."""
    weights = [targets[name].weight for name in names]
    least = LEAST_SHARE * max(weights) or 1.0
    return tuple(max(weight, least) for weight in weights)


def projected(raw_NM: np.ndarray, sums_ML: np.ndarray, weight_M: Sequence[float]) -> np.ndarray:
    """(..., N, L) parts from 0 whose sums are nearest to M raw numbers, in their weights.

    Coordinate descent, all rows at once.

    sums_ML : 1 where number m has part l.
    Source: Franc, Hlavac and Navara 2005, Sequential coordinate-wise algorithm for the non-negative
    least squares problem.
    """
    weighted_ML = sums_ML * np.array(weight_M)[:, None]
    product_LL = sums_ML.T @ weighted_ML
    aim_NL = raw_NM @ weighted_ML
    parts_NL = np.zeros_like(aim_NL)
    # about as large as parts can be: changes far below it are rounding
    greatest_aim = np.nanmax(np.abs(aim_NL), initial=0)
    largest = greatest_aim / product_LL.diagonal().min()
    for _ in range(MOST_ROUNDS):
        change = 0.0
        for part in range(len(product_LL)):
            before_N = parts_NL[..., part]
            # the best value of this part while others stay, which is a parabola's
            slope_N = aim_NL[..., part] - parts_NL @ product_LL[part]
            after_N = np.maximum(before_N + slope_N / product_LL[part, part], 0)
            moved_N = np.abs(after_N - before_N)
            change = max(change, np.nanmax(moved_N, initial=0))
            parts_NL[..., part] = after_N
        if change <= 1e-13 * largest:
            break
    return parts_NL


def order_constraint(
    total_N: np.ndarray,
    gdm_N: np.ndarray,
    green_N: np.ndarray,
    weights: Sequence[float] = CHAIN_WEIGHTS,
) -> np.ndarray:
    """Masses with Total >= GDM >= Green >= 0, nearest in the metric's weights.

    Weighted isotonic regression (what pool-adjacent-violators computes) by its min-max formula, all
    rows at once; the bound at zero then is a clip. Masses already in order come back bit for bit.

    Parameters
    ----------
    total_N, gdm_N, green_N : (..., N), raw predictions in grams, any sign; a NaN makes all five of
        its row NaN.
    weights : of the three.

    Returns
    -------
    (..., N, 5) float64, grams: Green, Dead, Clover, GDM, Total; Dead and Clover are the
    differences.

    Source: Robertson, Wright and Dykstra 1988, Order Restricted Statistical Inference, theorem
    1.4.4 (min-max).
    """
    total, gdm, green = _float64(total_N, gdm_N, green_N)
    w_total, w_gdm, w_green = weights
    # Each mean is its first member plus a correction: pooling equal values then changes no bit, as
    # a plain mean might.
    total_gdm = total + w_gdm * (gdm - total) / (w_total + w_gdm)
    gdm_green = gdm + w_green * (green - gdm) / (w_gdm + w_green)
    correction = w_gdm * (gdm - total) + w_green * (green - total)
    all_three = total + correction / (w_total + w_gdm + w_green)
    # each is the least, over where its pool may begin, of the greatest, over where it may end
    from_total = np.maximum(total_gdm, all_three)
    ordered_total = np.maximum(total, from_total)
    ordered_gdm = np.minimum(from_total, np.maximum(gdm, gdm_green))
    ordered_green = np.minimum(np.minimum(all_three, gdm_green), green)
    return _balanced(
        np.maximum(ordered_total, 0),
        np.maximum(ordered_gdm, 0),
        np.maximum(ordered_green, 0),
    )


def clip_constraint(total_N: np.ndarray, gdm_N: np.ndarray, green_N: np.ndarray) -> np.ndarray:
    """The same by raising alone: Green to 0, GDM to Green, Total to GDM; see `order_constraint`."""
    total, gdm, green = _float64(total_N, gdm_N, green_N)
    green = np.maximum(green, 0)
    gdm = np.maximum(gdm, green)
    return _balanced(np.maximum(total, gdm), gdm, green)


CONSTRAINTS = {"order": order_constraint, "clip": clip_constraint}
"""By the name the command line and the configs use."""


def _float64(*arrays: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _balanced(total_N: np.ndarray, gdm_N: np.ndarray, green_N: np.ndarray) -> np.ndarray:
    """(..., N, 5) Green, Dead, Clover, GDM, Total from three masses in order."""
    dead_N = total_N - gdm_N
    clover_N = gdm_N - green_N
    return np.stack([green_N, dead_N, clover_N, gdm_N, total_N], axis=-1)
