"""Gaussian process regression: width and noise of each target by marginal likelihood."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from featurestore.disk.interrupts import check_interrupt
from trainer.heads.regressor import KernelRegressor

LEAST_NOISE = 1e-3
"""Of a target's variance: with less the matrix to solve is all but singular."""


class Gpr(KernelRegressor):
    """scikit-learn's GaussianProcessRegressor, one for each target: constant * RBF + white noise,
    of which the mean is saved.

    Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, algorithm 2.1 and
    section 5.4.1.
    """

    default_space = "sqrt"
    squares = 16

    def solve(
        self,
        support_NF: np.ndarray,
        u_NK: np.ndarray,
        n_varying: int,
        group_N: np.ndarray,
    ) -> tuple[np.ndarray, ...]:
        # same distances in N columns, not 7,680: 0.6 s a target, not 3.6
        position_NN = np.linalg.qr(support_NF.T, mode="r").T
        gammas = []
        coefs = []
        for u_N in u_NK.T:
            gpr = _fit_one(position_NN, u_N, n_varying)
            signal = gpr.kernel_.k1  # constant * RBF, without the noise
            gammas.append(0.5 / signal.k2.length_scale**2)
            coefs.append(signal.k1.constant_value * gpr.alpha_)
        return np.array(gammas), np.stack(coefs, 1), np.zeros(len(coefs))


def _fit_one(position_NN: np.ndarray, u_N: np.ndarray, n_varying: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    # starts at gamma = 0.5 / n_varying and as much noise as signal; three other starts found the
    # same for five drawn targets
    unit = np.sqrt(n_varying)
    amount = ConstantKernel(1.0, (1e-3, 1e3))
    signal = amount * RBF(unit, (0.1 * unit, 30 * unit))
    kernel = signal + WhiteKernel(1.0, (LEAST_NOISE, 1e1))
    gpr = GaussianProcessRegressor(kernel, optimizer=_minimise)
    with warnings.catch_warnings():
        # It warns of hyper-parameters at a bound. For a target without signal (all noise), or
        # without noise, that is the answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return gpr.fit(position_NN, u_N)


def _minimise(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]],
    first: np.ndarray,
    bounds: np.ndarray,
) -> tuple[np.ndarray, float]:
    """What scikit-learn's own optimiser does, save that a stop is acted on between two steps: each
    takes seconds with thousands of rows."""
    from scipy.optimize import minimize

    def interruptible(theta: np.ndarray) -> tuple[float, np.ndarray]:
        check_interrupt()
        return objective(theta)

    found = minimize(interruptible, first, method="L-BFGS-B", jac=True, bounds=bounds)
    return found.x, found.fun


KIND = Gpr()
