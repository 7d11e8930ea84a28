"""Logistic regression on pooled rows: what a trained head has to beat where classes are scored."""

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
)

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""scikit-learn's C, the smoothest first."""
LEAST_SHARE = 1e-12


class Logistic(Regressor):
    """scikit-learn's LogisticRegression on unit features, saved as weight_FK and bias_K over the
    features as they are; K words of a class.

    y_NK is one-hot, and predictions are probabilities. The strength is the one with the least
    log-loss of what inner folds hold out. A word that no training image has gets no probability.
    Source: Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, section 4.4.
    """

    tells_words = True
    spaces = ("raw",)
    saved = {"weight_FK": "F64", "bias_K": "F64"}

    def _fit(self, x_NF: np.ndarray, y_NK: np.ndarray, group_N: np.ndarray, seed: int) -> State:
        center_F, scale_F = moments(x_NF)
        # R = min(N, F) columns do for all the fits: the penalty sees no rotation
        axis_FR, position_RN = np.linalg.qr(standardised(x_NF, center_F, scale_F).T)
        word_N = y_NK.argmax(1)
        strength = _strength(position_RN.T, word_N, group_N)
        coef_RK, bias_K = _solved(position_RN.T, word_N, y_NK.shape[1], strength)
        weight_FK, bias_K = folded(axis_FR @ coef_RK, bias_K, center_F, scale_F)
        return {"weight_FK": weight_FK, "bias_K": bias_K}

    def _predict(self, state: Mapping[str, np.ndarray], x_NF: np.ndarray) -> np.ndarray:
        logit_NK = x_NF @ state["weight_FK"] + state["bias_K"]
        # less the greatest, so that nothing overflows
        share_NK = np.exp(logit_NK - logit_NK.max(1, keepdims=True))
        return share_NK / share_NK.sum(1, keepdims=True)


def _strength(x_NR: np.ndarray, word_N: np.ndarray, group_N: np.ndarray) -> float:
    """The first of equals, or where no inner fold trains on two words."""
    losses = np.zeros(len(STRENGTHS))
    for train_n, held_m in inner_folds(group_N):
        if len(np.unique(word_N[train_n])) < 2:
            continue
        for s, strength in enumerate(STRENGTHS):
            check_interrupt()
            coef_RK, bias_K = _solved(x_NR[train_n], word_N[train_n], word_N.max() + 1, strength)
            logit_mK = x_NR[held_m] @ coef_RK + bias_K
            share_mK = np.exp(logit_mK - logit_mK.max(1, keepdims=True))
            of_word_m = share_mK[np.arange(len(held_m)), word_N[held_m]]
            right_m = of_word_m / share_mK.sum(1)
            # at least so much: a word that no training row has would outweigh all others
            losses[s] -= np.log(np.maximum(right_m, LEAST_SHARE)).sum()
    return STRENGTHS[losses.argmin()]


def _solved(
    x_NR: np.ndarray,
    word_N: np.ndarray,
    n_words: int,
    strength: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(R, K) coefficients and (K,) intercepts; those of a word that is not there are 0 and far
    below all others."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    coef_RK = np.zeros((x_NR.shape[1], n_words))
    # exp(-700) is 1e-304: no probability worth the name, and a saved array must be finite
    bias_K = np.full(n_words, -700.0)
    there = np.unique(word_N)
    bias_K[there] = 0.0
    if len(there) < 2:
        return coef_RK, bias_K
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(x_NR, word_N)
    if len(there) == 2:  # of two words scikit-learn tells the second one's logit
        coef_RK[:, there[1]] = fitted.coef_[0]
        bias_K[there[1]] = fitted.intercept_[0]
    else:
        coef_RK[:, there] = fitted.coef_.T
        bias_K[there] = fitted.intercept_
    return coef_RK, bias_K


KIND = Logistic()
