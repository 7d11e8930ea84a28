"""Regressors on pooled rows over the sweep's own folds: points of a grid, and baselines.

The kinds themselves are files of trainer/heads/kinds; here is which rows they are fitted on, in
which space, and what they predict.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.usable import usable_memory
from featurestore.errors import InputError
from featurestore.photos.sites import joined_sites
from trainer.config.sections import PointConfig
from trainer.data.dataset import TrainingData
from trainer.data.stream import Split
from trainer.heads import kinds
from trainer.heads.reads import vectors_of, widths_of
from trainer.heads.regressor import Regressor, State, TrainingRows
from trainer.heads.spaces import SPACES, grams
from trainer.heads.table import READ, SORTING, ReadTable, Table
from trainer.score.metrics import MASSES


def fit_splits(
    data: TrainingData,
    folds: pd.DataFrame,
    splits: Sequence[Split],
    config: PointConfig,
    views: Sequence[int],
    after_each: Callable[[], object] = lambda: None,
) -> tuple[list[dict[str, np.ndarray] | None], dict[int, np.ndarray]]:
    """Fit a point's regressor in every split, as `fit_each` does.

    Returns what is to be saved of each split (None for kinds that are for reports only), and by
    view the raw masses (R, N, 5) of what splits hold out, grams, MASSES order, NaN where none does.
    """
    states = []
    raw = {view: blank_masses(data, splits) for view in views}
    fits = fit_each(data, folds, splits, config, list(raw))
    for split, (state, raw_Vn5) in zip(splits, fits, strict=True):
        states.append(state)
        for raw_RN5, raw_n5 in zip(raw.values(), raw_Vn5, strict=True):
            raw_RN5[split.repeat, split.val_N] = raw_n5
        after_each()
    return states, raw


def fit_each(
    data: TrainingData,
    folds: pd.DataFrame,
    splits: Sequence[Split],
    config: PointConfig,
    views: Sequence[int],
) -> Iterator[tuple[dict[str, np.ndarray] | None, np.ndarray]]:
    """Fit a point's regressor on the plain view of each split's training images, one split after
    another.

    Yields what is to be saved (None for kinds that are for reports only) and (V, n, 5) raw masses
    of what the split holds out under the views, grams, MASSES order, NaN where they are not finite.
    A fit that holds rows out keeps sites, and copies of a photograph, together. InputError where
    one cannot be fitted: it does not fit in memory, has no solution, or its numbers are not finite.
    A signal is acted on before each fit, and where a kind asks for it within.
    """
    regressor, space = of_config(config)
    y_N5 = SPACES[space][0](data.truth_N5)
    group_N = joined_sites(folds["site"], data.catalog)
    pooled = _PooledRows(data, config, splits, views)
    each = [TrainingRows(s.train_N, y_N5[s.train_N], group_N[s.train_N]) for s in splits]
    states = _states(regressor, pooled, each, config.head.seed)
    for s, rows in zip(splits, each, strict=True):
        check_interrupt()
        try:
            state = next(states)
            z_Vn5 = _held_out(regressor, pooled, state, rows, config.head.seed, s.val_N, views)
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
        raw_Vn5 = grams(space, z_Vn5)
        # expm1 of a wild guess
        yield state, np.where(np.isfinite(raw_Vn5), raw_Vn5, np.nan)


def _states(
    regressor: Regressor, pooled: "_PooledRows", each: Sequence[TrainingRows], seed: int
) -> Iterator[State | None]:
    """What to save of each fit, in order; None of a kind that is for reports only."""
    if regressor.report_only:
        yield from itertools.repeat(None, len(each))
    elif pooled.by_sums:
        yield from regressor.fit_together(pooled.every_row(), each, pooled.n_bytes)
    else:
        for rows in each:
            table, rows_n = pooled.table(rows.rows_n)
            yield regressor.fit_rows(table, rows_n, rows.y_nK, rows.group_n, seed)


def _held_out(
    regressor: Regressor,
    pooled: "_PooledRows",
    state: State | None,
    rows: TrainingRows,
    seed: int,
    images_n: np.ndarray,
    views: Sequence[int],
) -> np.ndarray:
    """(V, n, 5) of what a split holds out, in the space of the fit."""
    if not len(views):
        return np.empty((0, 0, len(MASSES)))
    if state is None:
        # all views at once: it would be fitted anew for each
        new_MF = np.concatenate([pooled.of(view, images_n) for view in views])
        table, rows_n = pooled.table(rows.rows_n)
        z_MK = regressor.fit_predict(table.x_NF[rows_n], rows.y_nK, rows.group_n, seed, new_MF)
        return z_MK.reshape(len(views), -1, z_MK.shape[1])
    return np.stack([_predictions(regressor, state, pooled, view, images_n) for view in views])


def _predictions(
    regressor: Regressor, state: State, pooled: "_PooledRows", view: int, images_n: np.ndarray
) -> np.ndarray:
    """(n, 5) a saved fit's, in its space; features of a block of images are in memory."""
    parts = [
        regressor.predict(state, pooled.of(view, images_n[start : start + READ]))
        for start in range(0, len(images_n), READ)
    ]
    return np.concatenate(parts)


class _PooledRows:
    """Features of a point's images: of all of them, read once, where they fit beside a fit into
    memory and `trainer.memory_gb`; else read a split at a time, or a block for fits by sums."""

    def __init__(
        self,
        data: TrainingData,
        config: PointConfig,
        splits: Sequence[Split],
        views: Sequence[int],
    ) -> None:
        kind = kinds.load(config.head.kind)
        n_rows = [len(split.train_N) for split in splits]
        self._data = data
        self._vectors = vectors_of(config)
        self._tables: dict[int, Table] = {}
        self._n_features = sum(widths_of(config, data.tokens))
        self.by_sums = kind.fits_by_sums(min(n_rows), self._n_features)
        self.n_bytes = min(int(1e9 * config.trainer.memory_gb), usable_memory().n_bytes)
        """What fits may take that are made together, beside the features that are kept."""

        every_N = np.arange(data.n_images)
        kept = {0, *views}
        kept_bytes = 8 * data.n_images * self._n_features * (len(kept) + SORTING)
        need = kind.fit_bytes(max(n_rows), self._n_features) + kept_bytes
        read_often = len(splits) > 1 or self.by_sums
        if read_often and need <= self.n_bytes:
            self.n_bytes -= kept_bytes
            for view in kept:
                self._tables[view] = Table(data.features(self._vectors, view, every_N))

    def table(self, images_n: np.ndarray) -> tuple[Table, np.ndarray]:
        """What a fit on these images takes: a table under the plain view, and their rows in it."""
        if self._tables:
            return self._tables[0], images_n
        return Table(self.of(0, images_n)), np.arange(len(images_n))

    def every_row(self) -> Table | ReadTable:
        """All images under the plain view."""
        if self._tables:
            return self._tables[0]

        def read(images_n: np.ndarray) -> np.ndarray:
            return self.of(0, images_n)

        return ReadTable(read, self._data.n_images, self._n_features, self.n_bytes)

    def of(self, view: int, images_n: np.ndarray) -> np.ndarray:
        """(n, F) features of some images."""
        if self._tables:
            return self._tables[view].x_NF[images_n]
        return self._data.features(self._vectors, view, images_n)


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
