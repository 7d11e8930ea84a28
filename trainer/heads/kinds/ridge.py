"""Ridge on grams and on log1p of grams, averaged: the plainest thing a trained head has to beat."""

from collections.abc import Mapping, Sequence

import numpy as np

from featurestore.errors import InputError
from trainer.heads.regressor import Fold, Regressor, State, folded, inner_folds

# the smoothest first: it is what a tie, or rows too few to hold any out, come to
ALPHAS = np.logspace(5, 0, 11)


class Ridge(Regressor):
    """Two linear maps over robustly scaled features, of strengths by grouped cross-validation.

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
    copies = 8  # 5.2 seen for 285 x 7,680, 6.0 for 6,000 x 1,280, 7.8 for 4,000 x 5,000

    def _fit(self, x_NF: np.ndarray, y_NK: np.ndarray, group_N: np.ndarray, seed: int) -> State:
        if (y_NK < 0).any():
            raise InputError(
                f"masses: the least is {y_NK.min():g}; ridge takes grams, which start at 0"
            )
        center_F, scale_F = robust_scale(x_NF)
        z_NF = x_NF - center_F
        z_NF /= scale_F

        # both spaces side by side, each target with a strength of its own
        target_N2K = np.hstack([y_NK, np.log1p(y_NK)])
        coef_F2K, intercept_2K = solve(z_NF, target_N2K, inner_folds(group_N))
        weight_F2K, bias_2K = folded(coef_F2K, intercept_2K, center_F, scale_F)
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


def robust_scale(x_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F,) median, and interquartile range or 1 where that is 0: scikit-learn's RobustScaler.

    One sort of each column gives all three quantiles: 20 ms for 285 x 7,680, where np.quantile
    takes 130 and RobustScaler 1,600.
    """
    sorted_FN = np.sort(np.ascontiguousarray(x_NF.T), axis=1)
    low_F, center_F, high_F = (_quantile(sorted_FN, share) for share in (0.25, 0.5, 0.75))
    range_F = high_F - low_F
    return center_F, np.where(range_F < 10 * np.finfo(np.float64).eps, 1.0, range_F)


def _quantile(sorted_FN: np.ndarray, share: float) -> np.ndarray:
    """(F,) linear between the two values beside the place, as np.quantile."""
    place = share * (sorted_FN.shape[1] - 1)
    below = int(place)
    above = min(below + 1, sorted_FN.shape[1] - 1)
    low_F = sorted_FN[:, below]
    return low_F + (place - below) * (sorted_FN[:, above] - low_F)


def solve(
    z_NF: np.ndarray, y_NK: np.ndarray, folds: Sequence[Fold]
) -> tuple[np.ndarray, np.ndarray]:
    """(F, K) coefficients and (K,) intercepts of a ridge whose strength is each target's own.

    The strength is the one of ALPHAS whose squared error over all held-out rows is least. One
    decomposition of a fold's products serves all strengths and targets. Products are of rows, one
    matrix for all folds, or where features are fewer of those, a matrix a fold.
    Source: Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, equations
    3.47 and 18.13.
    """
    products = _RowProducts(z_NF) if len(z_NF) <= z_NF.shape[1] else _FeatureProducts(z_NF)
    errors_AK = np.zeros((len(ALPHAS), y_NK.shape[1]))
    for train_n, held_m in folds:
        mean_K = y_NK[train_n].mean(0)
        size_R, axis_rR, y_RK = products.decompose(train_n, y_NK[train_n] - mean_K)
        new_mR = products.of_new(train_n, held_m) @ axis_rR
        for error_K, alpha in zip(errors_AK, ALPHAS, strict=True):
            guess_mK = new_mR @ (y_RK / (size_R[:, None] + alpha)) + mean_K
            error_K += ((guess_mK - y_NK[held_m]) ** 2).sum(0)
    alpha_K = ALPHAS[errors_AK.argmin(0)]

    mean_K = y_NK.mean(0)
    size_R, axis_rR, y_RK = products.decompose(np.arange(len(y_NK)), y_NK - mean_K)
    coef_FK = products.coefficients(axis_rR @ (y_RK / (size_R[:, None] + alpha_K)))
    return coef_FK, mean_K - z_NF.mean(0) @ coef_FK


class _RowProducts:
    """Each row times each: where rows are fewer than features."""

    def __init__(self, z_NF: np.ndarray) -> None:
        self.z_NF = z_NF
        self.product_NN = z_NF @ z_NF.T

    def decompose(
        self, train_n: np.ndarray, y_nK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues (n,) and axes (n, n) of the products of centred rows, and y along them."""
        size_n, axis_nn = _eigh(self.of_new(train_n, train_n))
        return size_n, axis_nn, axis_nn.T @ y_nK

    def of_new(self, train_n: np.ndarray, new_m: np.ndarray) -> np.ndarray:
        """(m, n) products of rows with the training rows, both about the training rows' mean."""
        product_nn = self.product_NN[np.ix_(train_n, train_n)]
        with_mean_n = product_nn.mean(0)
        new_mn = self.product_NN[np.ix_(new_m, train_n)]
        return new_mn - new_mn.mean(1, keepdims=True) - with_mean_n + with_mean_n.mean()

    def coefficients(self, share_NK: np.ndarray) -> np.ndarray:
        # shares sum to 0, as centred targets do, so rows need no centring
        return self.z_NF.T @ share_NK


class _FeatureProducts:
    """Each feature times each, over the training rows."""

    def __init__(self, z_NF: np.ndarray) -> None:
        self.z_NF = z_NF

    def decompose(
        self, train_n: np.ndarray, y_nK: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues (F,) and axes (F, F) of the products of centred features, and their products
        with y along those axes."""
        x_nF = self.of_new(train_n, train_n)
        size_F, axis_FF = _eigh(x_nF.T @ x_nF)
        return size_F, axis_FF, axis_FF.T @ (x_nF.T @ y_nK)

    def of_new(self, train_n: np.ndarray, new_m: np.ndarray) -> np.ndarray:
        """(m, F) rows about the training rows' mean."""
        return self.z_NF[new_m] - self.z_NF[train_n].mean(0)

    def coefficients(self, share_FK: np.ndarray) -> np.ndarray:
        return share_FK


def _eigh(symmetric_RR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size_R, axis_RR = np.linalg.eigh(symmetric_RR)
    return np.maximum(size_R, 0), axis_RR  # rounding may leave less


KIND = Ridge()
