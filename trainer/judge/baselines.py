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
from featurestore.photos.targets import Targets
from trainer.config.sections import PointConfig
from trainer.data.dataset import TrainingData
from trainer.data.stream import Split
from trainer.heads import kinds
from trainer.heads.fitted import (
    FittedTogether,
    all_numbers,
    each_class,
    known_together,
    merged,
    parted,
)
from trainer.heads.input_columns import filled, means
from trainer.heads.reads import vectors_of
from trainer.heads.regressor import Regressor, State, TrainingRows
from trainer.heads.saved import Kept
from trainer.heads.table import READ, SORTING, ReadTable, Table

STAND_INS = "stand_in_K"
"""Saved beside words: training means, which stand for numbers that nobody tells."""
MEANS = "means"
"""The same in runs of before, which ensembles average like numbers that are told."""
COLUMN_MEANS = "column_mean_C"
"""Saved beside a fit that reads `head.columns`: what stands for a number that is not known."""


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
    view the raw numbers (R, N, K) of what splits hold out, in the order of heads, NaN where none
    does.
    """
    states = []
    raw = {view: blank_values(data, splits, config) for view in views}
    fits = fit_each(data, folds, splits, config, list(raw))
    for split, (state, raw_VnK) in zip(splits, fits, strict=True):
        states.append(state)
        # views are in the order in which they were asked for
        for raw_RNK, raw_nK in zip(raw.values(), raw_VnK, strict=True):
            raw_RNK[split.repeat, split.val_N] = raw_nK
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

    Yields what is to be saved (None for kinds that are for reports only) and (V, n, K) raw numbers
    of what the split holds out under the views, in the order of heads, NaN where they are not
    finite.
    A fit that holds rows out keeps sites, and copies of a photograph, together. InputError where
    one cannot be fitted: it does not fit in memory, has no solution, or its numbers are not finite.
    A signal is acted on before each fit, and where a kind asks for it within.
    """
    truth_NK, groups = _labels(data, config)
    group_N = joined_sites(folds["site"], data.catalog)
    pooled = _PooledRows(data, config, splits, views)
    parts = [_Part(config, *group, truth_NK, splits, group_N) for group in groups]
    # side by side, split by split: whoever stops after one has all of its numbers
    states = [part.states(pooled) for part in parts]
    for q, s in enumerate(splits):
        check_interrupt()
        raw_VnK = np.full((len(views), len(s.val_N), truth_NK.shape[1]), np.nan)
        if parts[0].tells_words:
            # numbers beside the classes: what is known without looking
            mean_K = _known_means(truth_NK[s.train_N, : data.targets.n_predicted])
            raw_VnK[..., : len(mean_K)] = mean_K
        fitted = []
        try:
            for part, of_part in zip(parts, states, strict=True):
                state = next(of_part)
                fitted.append(state)
                if len(views):
                    own = part.held_out(pooled, state, q, s.val_N, views)
                    raw_VnK[..., list(part.together.places)] = own
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
        state = None if None in fitted else merged(fitted, [part.together for part in parts])
        if parts[0].tells_words and data.targets.n_predicted:
            state[STAND_INS] = mean_K
        # expm1 of a wild guess
        yield state, np.where(np.isfinite(raw_VnK), raw_VnK, np.nan)


def _labels(
    data: TrainingData, config: PointConfig
) -> tuple[np.ndarray, list[tuple[FittedTogether, np.ndarray]]]:
    """(N, K) numbers that a point's regressor is fitted on, or (N, K + C) with one-hot words behind
    them for one that tells words; and what is fitted together."""
    truth_NK = data.truth_NK
    if not kinds.load(config.head.kind).tells_words:
        return truth_NK, known_together(data.targets, truth_NK)
    if not data.targets.classes:
        raise InputError(
            f"{config.head.kind}: it learns classes, and no target is one; leave the kind out"
        )
    true_NC = data.labels.word_NC.double().cpu().numpy()
    return np.hstack([truth_NK, true_NC]), each_class(data.targets, true_NC)


def _known_means(truth_nK: np.ndarray) -> np.ndarray:
    """(K,) means of known labels; 0 where none is known."""
    known_nK = ~np.isnan(truth_nK)
    n_K = np.maximum(known_nK.sum(0), 1)
    return np.where(known_nK, truth_nK, 0).sum(0) / n_K


class _Part:
    """The fits of numbers whose labels are known for the same images."""

    def __init__(
        self,
        config: PointConfig,
        together: FittedTogether,
        known_N: np.ndarray,
        truth_NK: np.ndarray,
        splits: Sequence[Split],
        group_N: np.ndarray,
    ) -> None:
        self.together = together
        self._regressor, self._space = of_config(config, together)
        self._seed = config.head.seed
        self._each = []
        for split in splits:
            # means of columns, too, are of these rows alone
            rows_n = split.train_N[known_N[split.train_N]]
            y_nk = together.in_space(self._space, truth_NK[rows_n])
            self._each.append(TrainingRows(rows_n, y_nk, group_N[rows_n]))

    @property
    def tells_words(self) -> bool:
        return self._regressor.tells_words

    def states(self, pooled: "_PooledRows") -> Iterator[State | None]:
        """What to save of each split, in order; None of a kind that is for reports only."""
        if self._regressor.report_only:
            yield from itertools.repeat(None, len(self._each))
            return
        for rows, state in zip(self._each, self._fits(pooled), strict=True):
            mean_C = pooled.column_means(rows.rows_n)
            yield state | {COLUMN_MEANS: mean_C} if len(mean_C) else state

    def _fits(self, pooled: "_PooledRows") -> Iterator[State]:
        if pooled.by_sums:
            yield from self._regressor.fit_together(pooled.every_row(), self._each, pooled.n_bytes)
            return
        for rows in self._each:
            table, rows_n = pooled.table(rows.rows_n)
            yield self._regressor.fit_rows(table, rows_n, rows.y_nK, rows.group_n, self._seed)

    def held_out(
        self,
        pooled: "_PooledRows",
        state: State | None,
        q: int,
        images_n: np.ndarray,
        views: Sequence[int],
    ) -> np.ndarray:
        """(V, n, k) predictions of what split q holds out."""
        if state is None:
            z_Vnk = self._fit_predict(pooled, self._each[q], images_n, views)
        else:
            z_Vnk = np.stack([self._predict(pooled, state, view, images_n) for view in views])
        return self.together.from_space(self._space, z_Vnk)

    def _predict(
        self,
        pooled: "_PooledRows",
        state: State,
        view: int,
        images_n: np.ndarray,
    ) -> np.ndarray:
        """(n, k) in the space of the fit; features of a block of images are in memory."""
        mean_C = state.get(COLUMN_MEANS, ())
        parts = []
        for start in range(0, len(images_n), READ):
            x_nF = filled(pooled.of(view, images_n[start : start + READ]), mean_C)
            parts.append(self._regressor.predict(state, x_nF))
        return np.concatenate(parts)

    def _fit_predict(
        self,
        pooled: "_PooledRows",
        rows: TrainingRows,
        images_n: np.ndarray,
        views: Sequence[int],
    ) -> np.ndarray:
        """The same under all views at once: it would be fitted anew for each."""
        mean_C = pooled.column_means(rows.rows_n)
        new_MF = np.concatenate([filled(pooled.of(view, images_n), mean_C) for view in views])
        table, rows_n = pooled.table(rows.rows_n)
        x_nF = table.x_NF[rows_n]
        z_Mk = self._regressor.fit_predict(x_nF, rows.y_nK, rows.group_n, self._seed, new_MF)
        return z_Mk.reshape(len(views), -1, z_Mk.shape[1])


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
        self._kept: dict[int, np.ndarray] = {}
        self._tables: dict[int, Table] = {}
        self._n_features = data.n_features(config)
        self._column_NC = data.column_rows(data.columns_of(config))
        # what stands for a gap differs by fold, so folds share no table then
        self._has_gaps = bool(np.isnan(self._column_NC).any())
        sums_do = kind.fits_by_sums(min(n_rows), self._n_features)
        self.by_sums = sums_do and not self._has_gaps
        self.n_bytes = min(int(1e9 * config.trainer.memory_gb), usable_memory().n_bytes)
        """What fits may take that are made together, beside the features that are kept."""

        every_N = np.arange(data.n_images)
        kept = {0, *views}  # view 0 is what is fitted on
        kept_bytes = 8 * data.n_images * self._n_features * (len(kept) + SORTING)
        need = kind.fit_bytes(max(n_rows), self._n_features) + kept_bytes
        # a single fit, a refit say, reads each row once: keeping them would save nothing
        read_often = len(splits) > 1 or self.by_sums
        if read_often and need <= self.n_bytes:
            self.n_bytes -= kept_bytes
            for view in kept:
                self._kept[view] = self._read(view, every_N)
                if not self._has_gaps:
                    self._tables[view] = Table(self._kept[view])

    def column_means(self, images_n: np.ndarray) -> np.ndarray:
        """(C,) what stands for a number of `head.columns` that is not known, by some images."""
        return means(self._column_NC[images_n])

    def table(self, images_n: np.ndarray) -> tuple[Table, np.ndarray]:
        """What a fit on these images takes: a table under the plain view, and their rows in it."""
        if self._tables:
            return self._tables[0], images_n
        x_nF = filled(self.of(0, images_n), self.column_means(images_n))
        return Table(x_nF), np.arange(len(images_n))

    def every_row(self) -> Table | ReadTable:
        """All images under the plain view."""
        if self._tables:
            return self._tables[0]

        def read(images_n: np.ndarray) -> np.ndarray:
            return self.of(0, images_n)

        return ReadTable(read, self._data.n_images, self._n_features, self.n_bytes)

    def of(self, view: int, images_n: np.ndarray) -> np.ndarray:
        """(n, F) features of some images, columns last, NaN in their gaps."""
        if self._kept:
            return self._kept[view][images_n]
        return self._read(view, images_n)

    def _read(self, view: int, images_n: np.ndarray) -> np.ndarray:
        x_nF = self._data.features(self._vectors, view, images_n)
        return np.hstack([x_nF, self._column_NC[images_n]]) if self._column_NC.size else x_nF


def predict_numbers(
    config: PointConfig,
    targets: Targets,
    state: Mapping[str, np.ndarray],
    x_NF: np.ndarray,
) -> np.ndarray:
    """(N, K) raw numbers of a saved regressor, in the order of heads; behind them probabilities of
    words where it tells them.

    x_NF : pooled features, then those of `head.columns`, NaN for a number that is not known.
    """
    n_columns = targets.n_predicted
    if kinds.load(config.head.kind).tells_words:
        n_columns += targets.n_words
    raw_NK = np.empty((len(x_NF), n_columns))
    for name in (STAND_INS, MEANS):
        if name in state:
            raw_NK[:, : targets.n_predicted] = state[name]
    for together, own in parted(state, targets):
        regressor, space = of_config(config, together)
        z_Nk = regressor.predict(own, filled(x_NF, own.get(COLUMN_MEANS, ())))
        raw_NK[:, list(together.places)] = together.from_space(space, z_Nk)
    return raw_NK


def spaces_of(
    config: PointConfig,
    targets: Targets,
    state: Mapping[str, np.ndarray],
) -> list[str] | None:
    """The space that a saved fit chose for each number; None for a kind that chooses none."""
    spaces = [""] * targets.n_predicted
    for together, own in parted(state, targets):
        regressor, _ = of_config(config, together)
        chosen = regressor.spaces_of(own)
        if chosen is None:
            return None
        for k, space in zip(together.places, chosen, strict=True):
            spaces[k] = space
    return spaces


def of_config(config: PointConfig, together: FittedTogether) -> tuple[Regressor, str]:
    """A point's regressor of some numbers, and the space that it is handed amounts in."""
    kind: Regressor = kinds.load(config.head.kind)
    if kind.own_space:
        n_others = len(together.places) - together.n_amounts
        return kind.in_space(config.loss.space, n_others), "raw"
    return kind, config.loss.space


def saved_arrays(
    config: PointConfig,
    targets: Targets,
    n_pooled: int,
    n_beside: int,
) -> dict[str, Kept] | None:
    """Type and shape of each array of a saved fit; None where several fits may stand together, or
    the kind does not say.

    n_pooled, n_beside : features of pooled vectors and of columns.
    """
    if not targets.preset or kinds.load(config.head.kind).tells_words:
        return None
    together = all_numbers(targets)
    regressor, _ = of_config(config, together)
    arrays = regressor.tensors(n_pooled + n_beside, len(together.places))
    if arrays and n_beside:
        arrays[COLUMN_MEANS] = "F64", (n_beside,)
    return arrays


def blank_values(
    data: TrainingData,
    splits: Sequence[Split],
    config: PointConfig | None = None,
) -> np.ndarray:
    """(R, N, K) NaN: what nobody has predicted yet. config : of a regressor that may tell words."""
    n_repeats = max(split.repeat for split in splits) + 1
    n_columns = data.targets.n_predicted
    if config is not None and kinds.load(config.head.kind).tells_words:
        n_columns += data.labels.word_NC.shape[1]
    return np.full((n_repeats, data.n_images, n_columns), np.nan)


def mean_predictor(data: TrainingData, splits: Sequence[Split]) -> np.ndarray:
    """(R, N, K) raw numbers, in the order of heads: for what is held out, the mean of the training
    images whose labels are known."""
    raw_RNK = blank_values(data, splits)
    truth_NK = data.truth_NK
    for s in splits:
        raw_RNK[s.repeat, s.val_N] = _known_means(truth_NK[s.train_N])
    return raw_RNK
