"""Support vector regression with an RBF kernel: errors within epsilon are free, others linear."""

import itertools
from typing import Any

import numpy as np

from featurestore.disk.interrupts import check_interrupt
from trainer.heads.regressor import SearchedKernel

# at the usual 1e-3, rounding in a kernel's last digit moved predictions by up to 1 % (40 drawn
# rows)
TOLERANCE = 1e-5


class Svr(SearchedKernel):
    """scikit-learn's SVR; C and epsilon are in units of a target's std.

    Source: Smola and Schölkopf 2004, A tutorial on support vector regression.
    """

    default_space = "sqrt"
    gammas = (0.1, 0.3, 1.0)
    penalties = tuple(itertools.product((0.3, 1.0, 3.0, 10.0), (0.3, 0.1)))

    def estimator(self, C: float, epsilon: float) -> Any:
        from sklearn.multioutput import MultiOutputRegressor
        from sklearn.svm import SVR

        class Interruptible(SVR):
            def fit(self, *arguments: Any, **options: Any) -> SVR:
                check_interrupt()
                return super().fit(*arguments, **options)

        svr = Interruptible(kernel="precomputed", C=C, epsilon=epsilon, tol=TOLERANCE)
        return MultiOutputRegressor(svr)

    def dual(self, fitted: Any, n: int) -> tuple[np.ndarray, float]:
        svr = fitted.estimators_[0]
        coef_n = np.zeros(n)
        coef_n[svr.support_] = svr.dual_coef_[0]
        return coef_n, svr.intercept_[0]


KIND = Svr()
