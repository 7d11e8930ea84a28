"""Boosted trees on principal components: for reports only, as trees are no plain arrays."""

import numpy as np

from featurestore.disk.interrupts import check_interrupt
from trainer.heads.regressor import Regressor, checked, moments, standardised
from trainer.heads.table import finite

N_COMPONENTS = 64
"""Of up to 7,680 features: trees look at each one for each split, 30 s a target in place of 0.6."""

ROUNDS = 150


class HistGbdt(Regressor):
    """scikit-learn's HistGradientBoostingRegressor for each target: small trees, slow steps."""

    report_only = True
    seeded = True

    def fit_predict(
        self,
        x_NF: np.ndarray,
        y_NK: np.ndarray,
        group_N: np.ndarray,
        seed: int,
        x_new_MF: np.ndarray,
    ) -> np.ndarray:
        from sklearn.ensemble import HistGradientBoostingRegressor

        x_NF = finite("features", x_NF)
        y_NK = checked(x_NF, y_NK, group_N)
        c_NC, c_new_MC = _reduced(x_NF, finite("features", x_new_MF))
        trees = HistGradientBoostingRegressor(
            learning_rate=0.05,
            max_iter=ROUNDS,
            max_leaf_nodes=8,
            min_samples_leaf=10,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=seed,
        )
        guesses = []
        for y_N in y_NK.T:
            check_interrupt()
            guesses.append(trees.fit(c_NC, y_N).predict(c_new_MC))
        return np.stack(guesses, 1)


def _reduced(x_NF: np.ndarray, x_new_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as unit features, or where these are many as the training rows' principal components."""
    center_F, scale_F = moments(x_NF)
    z_NF = standardised(x_NF, center_F, scale_F)
    z_new_MF = standardised(x_new_MF, center_F, scale_F)
    if x_NF.shape[1] <= N_COMPONENTS:
        return z_NF, z_new_MF
    # the smaller of both products has the same eigenvalues; ascending, R = min(N, F)
    wide = len(z_NF) <= z_NF.shape[1]
    value_R, vector_RR = np.linalg.eigh(z_NF @ z_NF.T if wide else z_NF.T @ z_NF)
    # the rest is rounding, which trees would split as readily
    known_R = value_R >= 1e-9 * value_R[-1]
    axis_RC = vector_RR[:, known_R][:, -N_COMPONENTS:]
    axis_FC = z_NF.T @ axis_RC if wide else axis_RC
    return z_NF @ axis_FC, z_new_MF @ axis_FC


KIND = HistGbdt()
