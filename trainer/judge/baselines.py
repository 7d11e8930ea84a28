"""Regressors on pooled rows over the sweep's own folds: points of a grid, and baselines.

The kinds themselves are files of trainer/heads/kinds; here is which rows they are fitted on, in
which space, and what they predict.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from featurestore.errors import InputError
from featurestore.photos.sites import joined_sites
from trainer.config.sections import PointConfig
from trainer.data.dataset import TrainingData
from trainer.data.stream import Split
from trainer.heads import kinds
from trainer.heads.regressor import Regressor
from trainer.heads.spaces import SPACES, grams
from trainer.score.metrics import MASSES


def fit_splits(
    data: TrainingData,
    folds: pd.DataFrame,
    splits: Sequence[Split],
    config: PointConfig,
    views: Sequence[int],
) -> tuple[list[dict[str, np.ndarray] | None], dict[int, np.ndarray]]:
    """Fit a point's regressor on the plain view of every split's training images.

    Returns what is to be saved of each split (None for kinds that are for reports only), and by
    view the raw masses (R, N, 5) of what splits hold out, grams, MASSES order, NaN where none does
    or they are not finite. Features are made a split at a time: those of all images may not fit
    beside what a fit needs. A fit that holds rows out keeps sites, and copies of a photograph,
    together. InputError where one cannot be fitted: it does not fit in memory, has no solution, or
    its numbers are not finite.
    """
    regressor, space = of_config(config)
    y_N5 = SPACES[space][0](data.truth_N5)
    group_N = joined_sites(folds["site"], data.catalog)
    states = []
    raw = {view: blank_masses(data, splits) for view in views}
    for s in splits:
        try:
            state, z_VnK = _fit_one(
                regressor, data, config, s, y_N5[s.train_N], group_N[s.train_N], list(raw)
            )
        except MemoryError as err:
            raise InputError(
                f"{config.head.kind}: {len(s.train_N)} images do not fit in memory ({err}); name "
                "fewer head.features, or leave the kind out"
            ) from err
        except np.linalg.LinAlgError as err:
            raise InputError(
                f"{config.head.kind}: its equations have no solution on {len(s.train_N)} images "
                f"({err}); choose other head.features, or leave the kind out"
            ) from err
        states.append(state)
        for view, z_nK in zip(raw, z_VnK, strict=True):
            grams_nK = grams(space, z_nK)
            # expm1 of a wild guess
            raw[view][s.repeat, s.val_N] = np.where(np.isfinite(grams_nK), grams_nK, np.nan)
    return states, raw


def _fit_one(
    regressor: Regressor,
    data: TrainingData,
    config: PointConfig,
    split: Split,
    y_n5: np.ndarray,
    group_n: np.ndarray,
    views: Sequence[int],
) -> tuple[dict[str, np.ndarray] | None, list[np.ndarray]]:
    """What to save of a split, and by view (n, 5) of what it holds out, in the space of the fit."""
    names = config.head.features
    known = data.features(names, 0, split.train_N), y_n5, group_n, config.head.seed
    state = None if regressor.report_only else regressor.fit(*known)
    if not views:
        return state, []
    # all views at once: a kind for reports only would be fitted anew for each
    new_MF = np.concatenate([data.features(names, view, split.val_N) for view in views])
    if state is None:
        z_MK = regressor.fit_predict(*known, new_MF)
    else:
        z_MK = regressor.predict(state, new_MF)
    return state, np.split(z_MK, len(views))


def predict_masses(
    config: PointConfig, state: Mapping[str, np.ndarray], x_NF: np.ndarray
) -> np.ndarray:
    """(N, 5) raw masses of a saved regressor, grams, MASSES order."""
    regressor, space = of_config(config)
    return grams(space, regressor.predict(state, x_NF))


def of_config(config: PointConfig) -> tuple[Regressor, str]:
    """A point's regressor, and the space that it is handed masses in."""
    kind: Regressor = kinds.load(config.head.kind)
    if kind.own_space:
        return kind.in_space(config.loss.space), "raw"
    return kind, config.loss.space


def blank_masses(data: TrainingData, splits: Sequence[Split]) -> np.ndarray:
    """(R, N, 5) NaN: what nobody has predicted yet."""
    n_repeats = max(split.repeat for split in splits) + 1
    return np.full((n_repeats, data.n_images, len(MASSES)), np.nan)


def mean_predictor(data: TrainingData, splits: Sequence[Split]) -> np.ndarray:
    """(R, N, 5) raw masses, MASSES order: for what is held out, the mean of the training images."""
    raw = blank_masses(data, splits)
    for s in splits:
        raw[s.repeat, s.val_N] = data.truth_N5[s.train_N].mean(0)
    return raw
