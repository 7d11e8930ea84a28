"""Ridge on grams and on log1p of grams, averaged: the plainest thing a trained head has to beat."""

from collections.abc import Mapping

import numpy as np

from featurestore.errors import InputError
from trainer.heads.regressor import Regressor, State, folded, inner_folds

# the smoothest first: it is what a tie, or rows too few to hold any out, come to
ALPHAS = np.logspace(5, 0, 11)


class Ridge(Regressor):
    """Two linear maps over robustly scaled features, the strength of each for every target by
    grouped cross-validation.

    Saved as weight_raw_FK, bias_raw_K, weight_log_FK, bias_log_K over the features as they are;
    predicts grams from 0. Inner parts share the scaling of all training rows, as those of
    `SearchedKernel` do.
    """

    own_space = True
    saved = {
        "weight_raw_FK": "F64",
        "bias_raw_K": "F64",
        "weight_log_FK": "F64",
        "bias_log_K": "F64",
    }
    copies = 8  # 4.2 seen for 285 x 7,680, 5.9 for 6,000 x 1,280, 7.6 for 3,000 x 2,000

    def _fit(self, x_NF: np.ndarray, y_NK: np.ndarray, group_N: np.ndarray, seed: int) -> State:
        from sklearn import linear_model

        if (y_NK < 0).any():
            raise InputError(
                f"masses: the least is {y_NK.min():g}; ridge takes grams, which start at 0"
            )
        # median and interquartile range: scikit-learn's RobustScaler, in 0.2 s for 285 x 7,680,
        # not 1.6
        low_F, center_F, high_F = np.quantile(x_NF, (0.25, 0.5, 0.75), axis=0)
        range_F = high_F - low_F
        scale_F = np.where(range_F < 10 * np.finfo(np.float64).eps, 1.0, range_F)
        z_NF = (x_NF - center_F) / scale_F

        # both spaces side by side, each target with a strength of its own
        target_N2K = np.hstack([y_NK, np.log1p(y_NK)])
        ridge = linear_model.Ridge(_strengths(z_NF, target_N2K, group_N)).fit(z_NF, target_N2K)
        weight_F2K, bias_2K = folded(ridge.coef_.T, ridge.intercept_, center_F, scale_F)
        raw_FK, log_FK = np.split(weight_F2K, 2, axis=1)
        raw_K, log_K = np.split(bias_2K, 2)
        return {
            "weight_raw_FK": raw_FK,
            "bias_raw_K": raw_K,
            "weight_log_FK": log_FK,
            "bias_log_K": log_K,
        }

    def _predict(self, state: Mapping[str, np.ndarray], x_NF: np.ndarray) -> np.ndarray:
        raw_NK = x_NF @ state["weight_raw_FK"] + state["bias_raw_K"]
        log_NK = x_NF @ state["weight_log_FK"] + state["bias_log_K"]
        return np.maximum((raw_NK + np.expm1(log_NK)) / 2, 0)


def _strengths(z_NF: np.ndarray, y_NK: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """(K,) of ALPHAS the one whose squared error over all held-out rows is least."""
    position_NR = np.linalg.qr(z_NF.T, mode="r").T  # R = min(N, F) columns do for all the fits
    errors_AK = np.zeros((len(ALPHAS), y_NK.shape[1]))
    for train_n, held_m in inner_folds(group_N):
        guess_AmK = _guesses(position_NR[train_n], y_NK[train_n], position_NR[held_m])
        errors_AK += ((guess_AmK - y_NK[held_m]) ** 2).sum(1)
    return ALPHAS[errors_AK.argmin(0)]


def _guesses(x_nR: np.ndarray, y_nK: np.ndarray, new_mR: np.ndarray) -> np.ndarray:
    """(A, m, K) predictions of new rows by a ridge of each strength, all from one decomposition.

    scikit-learn's Ridge decomposes anew for each. Source: Hastie, Tibshirani and Friedman 2009, The
    Elements of Statistical Learning, equation 3.47.
    """
    center_R = x_nR.mean(0)
    mean_K = y_nK.mean(0)
    x_nR = x_nR - center_R
    size_R, axis_RR = np.linalg.eigh(x_nR.T @ x_nR)
    new_mR = (new_mR - center_R) @ axis_RR
    y_RK = axis_RR.T @ (x_nR.T @ (y_nK - mean_K))
    size_AR1 = np.maximum(size_R, 0)[:, None] + ALPHAS[:, None, None]  # rounding may leave less
    return np.stack([new_mR @ (y_RK / size_R1) for size_R1 in size_AR1]) + mean_K


KIND = Ridge()
