"""Ridge on grams and on log1p of grams, averaged: the plainest thing a trained head has to beat."""

from collections.abc import Mapping

import numpy as np

from featurestore.errors import InputError
from trainer.regressor import Regressor, State, folded

ALPHAS = np.logspace(0, 5, 11)


class Ridge(Regressor):
    """Two linear maps over robustly scaled features, the strength of each by leave-one-out on the training rows.

    Saved as weight_raw_FK, bias_raw_K, weight_log_FK, bias_log_K over the features as they are; predicts grams from 0.
    Source: Rifkin and Lippert 2007, Notes on Regularized Least Squares (leave-one-out in closed form).
    """

    own_space = True

    def _fit(self, x_NF: np.ndarray, y_NK: np.ndarray, group_N: np.ndarray, seed: int) -> State:
        if (y_NK < 0).any():
            raise InputError(f"masses: the least is {y_NK.min():g}; ridge takes grams, which start at 0")
        center_F, scale_F = _robust_moments(x_NF)
        state = {}
        for space, target_NK in (("raw", y_NK), ("log", np.log1p(y_NK))):
            state[f"weight_{space}_FK"], state[f"bias_{space}_K"] = _linear_map(x_NF, target_NK, center_F, scale_F)
        return state

    def _predict(self, state: Mapping[str, np.ndarray], x_NF: np.ndarray) -> np.ndarray:
        raw_NK = x_NF @ state["weight_raw_FK"] + state["bias_raw_K"]
        log_NK = x_NF @ state["weight_log_FK"] + state["bias_log_K"]
        return np.maximum((raw_NK + np.expm1(log_NK)) / 2, 0)


def _robust_moments(x_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and interquartile range (1 where that is 0): scikit-learn's RobustScaler, in 0.2 s for 285 x 7,680, not 1.6."""
    low_F, center_F, high_F = np.quantile(x_NF, (0.25, 0.5, 0.75), axis=0)
    range_F = high_F - low_F
    return center_F, np.where(range_F < 10 * np.finfo(np.float64).eps, 1.0, range_F)


def _linear_map(x_NF: np.ndarray, y_NK: np.ndarray, center_F: np.ndarray, scale_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import RidgeCV

    ridge = RidgeCV(ALPHAS).fit((x_NF - center_F) / scale_F, y_NK)
    return folded(ridge.coef_.reshape(y_NK.shape[1], -1).T, ridge.intercept_, center_F, scale_F)


KIND = Ridge()
