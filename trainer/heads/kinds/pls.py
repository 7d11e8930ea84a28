"""Partial least squares: a linear map through a few directions that features and masses share."""

import warnings
from collections.abc import Mapping

import numpy as np

from featurestore.disk.interrupts import check_interrupt
from trainer.heads.regressor import (
    Regressor,
    State,
    folded,
    inner_folds,
    moments,
    standardised,
    unit_moments,
)

MOST = 16  # components


class Pls(Regressor):
    """scikit-learn's PLSRegression on unit features and masses, saved as weight_FK and bias_K over
    the features as they are.

    The number of components is one for all targets, by grouped cross-validation. Source: Wegelin
    2000, A survey of Partial Least Squares (PLS) methods, with emphasis on the two-block case.
    """

    saved = {"weight_FK": "F64", "bias_K": "F64"}

    def _fit(self, x_NF: np.ndarray, y_NK: np.ndarray, group_N: np.ndarray, seed: int) -> State:
        center_F, scale_F = moments(x_NF)
        mean_K, std_K = unit_moments(y_NK)
        u_NK = (y_NK - mean_K) / std_K
        # R = min(N, F) columns do for all the fits
        axis_FR, position_RN = np.linalg.qr(standardised(x_NF, center_F, scale_F).T)
        n = _n_components(position_RN.T, u_NK, group_N)
        rotation_RC, loading_KC = _components(position_RN.T, u_NK)
        coef_FK = axis_FR @ rotation_RC[:, :n] @ loading_KC[:, :n].T * std_K
        weight_FK, bias_K = folded(coef_FK, mean_K, center_F, scale_F)
        return {"weight_FK": weight_FK, "bias_K": bias_K}

    def _predict(self, state: Mapping[str, np.ndarray], x_NF: np.ndarray) -> np.ndarray:
        return x_NF @ state["weight_FK"] + state["bias_K"]


def _n_components(position_NR: np.ndarray, u_NK: np.ndarray, group_N: np.ndarray) -> int:
    """The least held-out squared error; 1 where there are too few rows to hold any out."""
    errors_C = np.zeros(MOST)
    for train_n, held_m in inner_folds(group_N):
        rotation_RC, loading_KC = _components(position_NR[train_n], u_NK[train_n])
        # about the training rows' mean, as the fit was
        about_mR = position_NR[held_m] - position_NR[train_n].mean(0)
        score_mC = about_mR @ rotation_RC
        part_mCK = score_mC[:, :, None] * loading_KC.T
        # a fit with n components is the sum of the first n parts
        guess_mCK = np.cumsum(part_mCK, axis=1) + u_NK[train_n].mean(0)
        error_mCK = guess_mCK - u_NK[held_m][:, None]
        errors_C += (error_mCK**2).sum((0, 2))
    return int(errors_C.argmin()) + 1


def _components(position_NR: np.ndarray, u_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rotation_RC and loading_KC of MOST components, of which the first n are a fit with n; zeros
    beyond the rank of the rows."""
    from sklearn.cross_decomposition import PLSRegression
    from sklearn.exceptions import ConvergenceWarning

    check_interrupt()
    rotation_RC = np.zeros((position_NR.shape[1], MOST))
    loading_KC = np.zeros((u_NK.shape[1], MOST))
    n = min(MOST, int(np.linalg.matrix_rank(position_NR - position_NR.mean(0))))
    if n:
        with warnings.catch_warnings():
            # The power method gives up between two directions that are equally good: either will
            # do. Masses that are explained in full leave nothing for further components, which then
            # stay zero.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "y residual is constant")
            pls = PLSRegression(n, scale=False).fit(position_NR, u_NK)
        rotation_RC[:, :n] = pls.x_rotations_
        loading_KC[:, :n] = pls.y_loadings_
    return rotation_RC, loading_KC


KIND = Pls()
