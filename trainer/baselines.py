"""What every trained head has to beat, on the same folds: the training mean, and ridge on pooled patches."""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import RobustScaler

from featurestore.spec import POOLED
from trainer.stream import Split

ALPHAS = np.logspace(0, 5, 11)


def pooled_features(pooled_NT5D: np.ndarray) -> np.ndarray:
    """(N, T, 5, D) pooled rows of one view -> (N, 2 D): mean and std over patches, averaged over tiles."""
    chosen = [POOLED.index("mean"), POOLED.index("std")]
    return np.asarray(pooled_NT5D[:, :, chosen], np.float64).mean(1).reshape(len(pooled_NT5D), -1)


def new_ridge() -> Pipeline:
    """Ridge on robustly scaled features; its strength by leave-one-out on the training rows alone."""
    return make_pipeline(RobustScaler(), RidgeCV(ALPHAS))


def baselines(features_NF: np.ndarray, truth_N5: np.ndarray, splits: Sequence[Split]) -> dict[str, np.ndarray]:
    """(R, N, 5) held-out predictions of the mean predictor and of ridge, grams from 0."""
    shape = (max(split.repeat for split in splits) + 1, *truth_N5.shape)
    mean, ridge = np.full(shape, np.nan), np.full(shape, np.nan)
    for s in splits:
        mean[s.repeat, s.val_N] = truth_N5[s.train_N].mean(0)
        fitted = new_ridge().fit(features_NF[s.train_N], truth_N5[s.train_N])
        ridge[s.repeat, s.val_N] = np.maximum(fitted.predict(features_NF[s.val_N]), 0)
    return {"mean": mean, "ridge": ridge}
