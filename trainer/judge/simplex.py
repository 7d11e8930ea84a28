"""Shares of a blend: non-negative, summing to one, with the least error out of fold.

Arrays in, numbers out, in float64. Who is blended, and on which rows shares are learned, is decided
elsewhere.
"""

from collections.abc import Sequence

import numpy as np


def error_gram(
    truth_NK: np.ndarray,
    prediction_MNK: np.ndarray,
    weight_K: np.ndarray,
) -> np.ndarray:
    """(M, M) products of M members' errors in some weights, summed over images: all that shares
    depend on.

    truth_NK : (N, K) in the order of tables; NaN where a target is unknown, which does not count.
    weight_K : `Score.error_weights`, of a squared error.
    """
    error_MNK = np.nan_to_num(prediction_MNK - truth_NK) * np.sqrt(weight_K)
    error_MX = error_MNK.reshape(len(error_MNK), -1)
    return error_MX @ error_MX.T


def shares_among(share_M: np.ndarray, tells_M: Sequence[bool]) -> np.ndarray:
    """(M,) shares of the members that tell a target, summing to one, 0 for others; as they are
    where all tell it, or none that has a share."""
    own_M = np.where(tells_M, share_M, 0.0)
    total = own_M.sum()
    if all(tells_M) or not total > 0:
        return share_M
    return own_M / total


def simplex_weights(gram_MM: np.ndarray) -> np.ndarray:
    """(M,) w >= 0 with sum 1 that makes w @ gram @ w least; equal where all errors are 0.

    They are found under that sum, and not scaled to it afterwards: a blend averages its members, so
    weights fitted without the sum (which would also shrink or stretch all masses) are no longer the
    best ones once they are scaled.

    With that sum the error of the average is the average of the errors, E w. And v, the
    non-negative least squares solution of |E v|^2 + (1 - sum v)^2, is a multiple of w: for v = s w
    that is s^2 q + (1 - s)^2 with q = |E w|^2, at its best s it is q / (1 + q), and this grows with
    q.

    Source: Breiman 1996, Stacked regressions, Machine Learning 24 (non-negative weights on
    out-of-sample predictions).
    """
    from scipy.optimize import nnls  # .24 s that a prediction without a blend need not wait

    n_members = len(gram_MM)
    # errors of about 1, as the last equation has: neither is lost in the other's rounding
    scale = np.trace(gram_MM) / n_members
    if scale == 0:
        return np.full(n_members, 1 / n_members)
    # gram = E^T E determines E up to a rotation, which changes no length. Eigenvectors, and not a
    # Cholesky factor, since members that are alike make gram singular.
    value_M, vector_MM = np.linalg.eigh(gram_MM / scale)
    error_MM = np.sqrt(np.maximum(value_M, 0))[:, None] * vector_MM.T
    aim = np.append(np.zeros(n_members), 1.0)
    v_M, _ = nnls(np.vstack([error_MM, np.ones(n_members)]), aim)
    return v_M / v_M.sum()
