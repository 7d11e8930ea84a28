"""Scores of predicted masses, and two ways to make three raw masses obey the balance of all five.

Arrays in, numbers out, in float64: what is predicted and on which rows is decided elsewhere.
"""

import numpy as np

from featurestore.photos.catalog import TARGETS

WEIGHTS = (0.1, 0.1, 0.1, 0.2, 0.5)
"""Weights of the TARGETS in the contest's score (CSIRO Image2Biomass, evaluation page)."""

MASSES = ("Dry_Total_g", "GDM_g", "Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g")
"""Outputs of every head: the three masses of the main loss, then the two of the auxiliary loss."""


def weighted_r2(truth_NK: np.ndarray, prediction_NK: np.ndarray) -> float | np.ndarray:
    """The contest's score, 1 - sum w (y - p)^2 / sum w (y - ybar)^2, ybar the global weighted mean.

    It is not the mean of the five R2: the targets' own means score about 0.24 on the contest's
    labels, not 0.

    Parameters
    ----------
    truth_NK : (..., N, 5), grams in TARGETS order; NaN where a mass is unknown, such pairs do not
        count.
    prediction_NK : (..., N, 5), grams. Leading axes of both broadcast.

    Returns
    -------
    A float, or (...) for batches; NaN where no pair is known or the known truths are all equal.

    Raises ValueError if N or K differ.
    """
    return _r2(truth_NK, prediction_NK, np.array(WEIGHTS), axis=(-2, -1))


def target_r2(truth_NK: np.ndarray, prediction_NK: np.ndarray) -> np.ndarray:
    """(..., K) R2 of each target, NaN if unknown or constant. Inputs as in `weighted_r2`."""
    return _r2(truth_NK, prediction_NK, np.ones(1), axis=-2)


def order_constraint(total_N: np.ndarray, gdm_N: np.ndarray, green_N: np.ndarray) -> np.ndarray:
    """Masses with Total >= GDM >= Green >= 0, nearest in the metric's weights.

    Weighted isotonic regression (what pool-adjacent-violators computes) by its min-max formula, all
    rows at once; the bound at zero then is a clip. Masses already in order come back bit for bit.

    Parameters
    ----------
    total_N, gdm_N, green_N : (..., N), raw predictions in grams, any sign; a NaN makes all five of
        its row NaN.

    Returns
    -------
    (..., N, 5) float64, grams in TARGETS order; Dead and Clover are the differences.

    Source: Robertson, Wright and Dykstra 1988, Order Restricted Statistical Inference, theorem
    1.4.4 (min-max).
    """
    total, gdm, green = _float64(total_N, gdm_N, green_N)
    weight = dict(zip(TARGETS, WEIGHTS, strict=True))
    w_green = weight["Dry_Green_g"]
    w_gdm = weight["GDM_g"]
    w_total = weight["Dry_Total_g"]
    # Each mean is its first member plus a correction: pooling equal values then changes no bit, as
    # a plain mean might.
    total_gdm = total + w_gdm * (gdm - total) / (w_total + w_gdm)
    gdm_green = gdm + w_green * (green - gdm) / (w_gdm + w_green)
    correction = w_gdm * (gdm - total) + w_green * (green - total)
    all_three = total + correction / (w_total + w_gdm + w_green)
    from_total = np.maximum(total_gdm, all_three)
    return _balanced(
        np.maximum(np.maximum(total, from_total), 0),
        np.maximum(np.minimum(from_total, np.maximum(gdm, gdm_green)), 0),
        np.maximum(np.minimum(np.minimum(all_three, gdm_green), green), 0),
    )


def clip_constraint(total_N: np.ndarray, gdm_N: np.ndarray, green_N: np.ndarray) -> np.ndarray:
    """The same by raising alone: Green to 0, GDM to Green, Total to GDM; see `order_constraint`."""
    total, gdm, green = _float64(total_N, gdm_N, green_N)
    green = np.maximum(green, 0)
    gdm = np.maximum(gdm, green)
    return _balanced(np.maximum(total, gdm), gdm, green)


CONSTRAINTS = {"order": order_constraint, "clip": clip_constraint}
"""By the name the command line and the configs use."""


def _r2(
    truth_NK: np.ndarray,
    prediction_NK: np.ndarray,
    weight_K: np.ndarray,
    axis: int | tuple[int, ...],
) -> float | np.ndarray:
    truth, prediction = _float64(truth_NK, prediction_NK)
    if truth.shape[-2:] != prediction.shape[-2:]:  # numpy would stretch an axis of 1 and score it
        raise ValueError(
            f"truth is {truth.shape}, prediction is {prediction.shape}: "
            "rows and targets must be the same"
        )
    truth, prediction = np.broadcast_arrays(truth, prediction)
    known = ~np.isnan(truth)

    weight = np.where(known, weight_K, 0.0)
    truth = np.where(known, truth, 0.0)
    lowest = truth.min(axis, initial=np.inf, where=known)
    highest = truth.max(axis, initial=-np.inf, where=known)
    # nothing known, or all equal: replaced below
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.sum(weight * truth, axis, keepdims=True) / np.sum(weight, axis, keepdims=True)
        error = np.sum(weight * (truth - prediction) ** 2, axis, where=known)
        r2 = 1 - error / np.sum(weight * (truth - mean) ** 2, axis, where=known)
    return np.where(highest > lowest, r2, np.nan)[()]  # equal truths may miss their rounded mean


def _float64(*arrays: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(array, dtype=np.float64) for array in arrays]


def _balanced(total_N: np.ndarray, gdm_N: np.ndarray, green_N: np.ndarray) -> np.ndarray:
    """(..., N, 5) in TARGETS order from three masses in order."""
    return np.stack([green_N, total_N - gdm_N, gdm_N - green_N, gdm_N, total_N], axis=-1)


def constrained(raw_N5: np.ndarray, constraints: str) -> np.ndarray:
    """(..., N, 5) raw masses, MASSES order -> TARGETS order, sums hold; NaN rows stay NaN."""
    total, gdm, green = np.moveaxis(raw_N5[..., :3], -1, 0)
    return CONSTRAINTS[constraints](total, gdm, green)


def in_targets_order(masses_N5: np.ndarray) -> np.ndarray:
    """(..., 5) from MASSES to TARGETS order."""
    return masses_N5[..., [MASSES.index(name) for name in TARGETS]]
