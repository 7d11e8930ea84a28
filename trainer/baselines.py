"""Regressors on pooled rows over the sweep's own folds: points of a grid, and what every trained head has to beat.

The kinds themselves are files of trainer/kinds; here is which rows they are fitted on, in which space, and what they predict.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from trainer import kinds
from trainer.config import PointConfig
from trainer.data import TrainingData
from trainer.metrics import MASSES
from trainer.regressor import Regressor
from trainer.stream import Split

SPACES = {
    "raw": (lambda y: y, lambda z: z),
    "log1p": (np.log1p, np.expm1),
    "sqrt": (np.sqrt, lambda z: np.maximum(z, 0) ** 2),
}
"""Grams to what a regressor is fitted on, and back (trainer.loss.SPACES for arrays)."""


def fit_splits(data: TrainingData, folds: pd.DataFrame, splits: Sequence[Split], config: PointConfig,
               views: Sequence[int]) -> tuple[list[dict[str, np.ndarray] | None], dict[int, np.ndarray]]:
    """Fit a point's regressor on the plain view of every split's training images.

    Returns what is to be saved of each split (None for kinds that are for reports only), and by view the raw masses (R, N, 5)
    of what splits hold out, grams, MASSES order, NaN where none does.
    """
    regressor: Regressor = kinds.load(config.head.kind)
    into, back = SPACES["raw" if regressor.own_space else config.loss.space]
    x_NF = data.features(config.head.features, 0)
    y_N5, group_N = into(data.truth_N5), folds["site"].to_numpy()
    new = {view: data.features(config.head.features, view) for view in views}
    shape = (max(s.repeat for s in splits) + 1, data.n_images, len(MASSES))
    states, raw = [], {view: np.full(shape, np.nan) for view in views}
    for s in splits:
        known = x_NF[s.train_N], y_N5[s.train_N], group_N[s.train_N], config.head.seed
        states.append(None if regressor.report_only else regressor.fit(*known))
        held_out_MF = np.concatenate([x[s.val_N] for x in new.values()]) if new else x_NF[:0]
        z_MK = regressor.fit_predict(*known, held_out_MF) if states[-1] is None else regressor.predict(states[-1], held_out_MF)
        for view, masses in zip(new, np.split(np.maximum(back(z_MK), 0), max(1, len(new))), strict=False):
            raw[view][s.repeat, s.val_N] = masses
    return states, raw


def predict_masses(config: PointConfig, state: Mapping[str, np.ndarray], x_NF: np.ndarray) -> np.ndarray:
    """(N, 5) raw masses of a saved regressor, grams, MASSES order."""
    regressor: Regressor = kinds.load(config.head.kind)
    _, back = SPACES["raw" if regressor.own_space else config.loss.space]
    return np.maximum(back(regressor.predict(state, x_NF)), 0)


def mean_predictor(data: TrainingData, splits: Sequence[Split]) -> np.ndarray:
    """(R, N, 5) raw masses, MASSES order: the mean of each split's training images, for what it holds out."""
    raw = np.full((max(s.repeat for s in splits) + 1, data.n_images, len(MASSES)), np.nan)
    for s in splits:
        raw[s.repeat, s.val_N] = data.truth_N5[s.train_N].mean(0)
    return raw
