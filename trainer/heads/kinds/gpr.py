"""Gaussian process regression: how far the features reach and how noisy a target is, by marginal
likelihood, no row held out."""

import warnings
from typing import Any

import numpy as np

from trainer.heads.regressor import KernelRegressor

# of a target's variance: less would be to go through every mass, and solve what is all but singular
LEAST_NOISE = 1e-3


class Gpr(KernelRegressor):
    """scikit-learn's GaussianProcessRegressor, one for each target: constant * RBF + white noise,
    of which the mean is saved.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, algorithm 2.1 and
    section 5.4.1.
    """

    squares = 16

    def solve(
        self, support_NF: np.ndarray, u_NK: np.ndarray, n_varying: int, group_N: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        # same distances in N columns, not 7,680: 0.6 s a target, not 3.6
        position_NN = np.linalg.qr(support_NF.T, mode="r").T
        fitted = [_fit_one(position_NN, u_N, n_varying) for u_N in u_NK.T]
        signals = [gpr.kernel_.k1 for gpr in fitted]  # constant * RBF
        gamma_K = np.array([0.5 / k.k2.length_scale**2 for k in signals])
        coef_NK = np.stack(
            [k.k1.constant_value * gpr.alpha_ for k, gpr in zip(signals, fitted, strict=True)], 1
        )
        return gamma_K, coef_NK, np.zeros(len(fitted))


def _fit_one(position_NN: np.ndarray, u_N: np.ndarray, n_varying: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor

    gpr = GaussianProcessRegressor(_kernel(n_varying))
    with warnings.catch_warnings():
        # It warns of hyper-parameters at a bound. For a target without signal (all noise), or
        # without noise, that is the answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return gpr.fit(position_NN, u_N)


def _kernel(n_varying: int) -> Any:
    """Starts at gamma = 0.5 / n_varying and as much noise as signal; three other starts found the
    same for five drawn targets."""
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    unit = np.sqrt(n_varying)
    return ConstantKernel(1.0, (1e-3, 1e3)) * RBF(unit, (0.1 * unit, 30 * unit)) + WhiteKernel(
        1.0, (LEAST_NOISE, 1e1)
    )


KIND = Gpr()
