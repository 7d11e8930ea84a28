"""What a regressor on pooled rows is, and the base of those that are saved as a sum of kernels.

scikit-learn is imported where it fits and nowhere else: predicting is NumPy. Which rows, in which
space, is the caller's.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.disk.interrupts import check_interrupt
from featurestore.errors import InputError
from trainer.heads.group_parts import group_parts
from trainer.heads.spaces import SPACES
from trainer.heads.table import ReadTable, Table, finite

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainingRows:
    """What one fit learns from: rows of a table, with their masses and sites."""

    rows_n: np.ndarray
    y_nK: np.ndarray
    group_n: np.ndarray


Fold = tuple[np.ndarray, np.ndarray]
# of the training rows, to choose hyper-parameters: six of the contest's sites in each
INNER_PARTS = 4


class Regressor:
    """Base of the kinds on pooled rows: checks inputs; `_fit` and `_predict` are theirs."""

    settings: tuple[str, ...] = ("features", "columns")
    """Keys of the config's `head` section that it reads."""

    trained = False
    """No steps, so no optimiser, mixup or epochs."""

    seeded = False
    """It draws, so `head.seed` makes a difference."""

    # as a HeadKind says of itself
    reads_pooled = True
    reads_patches = False
    maps_say = None

    copies = 5
    """Of its training rows' features alive in a fit, themselves among them (3.7 to 5.2 seen), to
    plan memory by."""

    squares = 0
    """The same of matrices of training rows x training rows."""

    own_space = False
    """True: chooses the spaces it is fitted in itself, and is handed grams."""

    tells_words = False
    """True: it is fitted on one-hot words of classes, and predicts their probabilities."""

    spaces: tuple[str, ...] = tuple(SPACES)
    """Values of `loss.space` that it takes."""

    default_space = "raw"
    """What `loss.space: null` means."""

    normalizes = False
    """`head.normalize` makes no difference: features are always scaled."""

    saved: Mapping[str, str] = {}
    """Name and type (F32, F64) of each array of a fit. A name ends in its axes: F features, K
    masses, M any number."""

    report_only = False
    """True: cannot be saved, `fit_predict` is all there is and overridden."""

    def in_space(self, space: str, n_others: int = 0) -> "Regressor":
        """The same kind with a value of `loss.space`; another object for one of `own_space`.

        n_others : last numbers that are no amounts, which are fitted as they are.
        """
        return self

    def spaces_of(self, state: Mapping[str, np.ndarray]) -> list[str] | None:
        """The space that a saved fit chose for each mass; None for a kind that chooses none."""
        return None

    def fit_bytes(self, n_rows: int, n_features: int) -> int:
        """About what a fit needs."""
        return 8 * n_rows * (self.copies * n_features + self.squares * n_rows)

    def tensors(
        self, n_features: int, n_masses: int
    ) -> dict[str, tuple[str, tuple[int | str, ...]]] | None:
        """Type and shape of each array of a saved fit; None for a kind that does not say."""
        sizes = {"F": n_features, "K": n_masses}
        tensors = {}
        for name, dtype in self.saved.items():
            axes = name.rsplit("_", 1)[1]
            tensors[name] = dtype, tuple(sizes.get(axis, axis) for axis in axes)
        return tensors or None

    def fits_by_sums(self, n_rows: int, n_features: int) -> bool:
        """Whether a fit needs sums over its rows alone, which `fit_together` adds up."""
        return False

    def fit(
        self,
        x_NF: np.ndarray,
        y_NK: np.ndarray,
        group_N: np.ndarray,
        seed: int,
    ) -> State:
        """What is to be saved: plain arrays, no larger than prediction needs.

        Parameters
        ----------
        x_NF : (N, F) pooled features of the training rows; F may exceed N many times.
        y_NK : (N, K) masses, in any space.
        group_N : (N,) sites. Hyper-parameters are chosen on these rows alone; what holds some of
            them out keeps sites together.
        seed : for what draws; one seed, one result.

        Raises InputError if a number is not finite or there is only one row.
        """
        return self.fit_rows(Table(x_NF), np.arange(len(x_NF)), y_NK, group_N, seed)

    def fit_rows(
        self,
        table: Table,
        rows_n: np.ndarray,
        y_nK: np.ndarray,
        group_n: np.ndarray,
        seed: int,
    ) -> State:
        """As `fit`, on some rows of a table that several fits share."""
        y_nK = checked(rows_n, y_nK, group_n)
        return as_saved(self._fit_rows(table, rows_n, y_nK, np.asarray(group_n), seed))

    def fit_together(
        self, table: ReadTable, each: Sequence[TrainingRows], n_bytes: int
    ) -> Iterator[State]:
        """As `fit_rows` for several fits `by sums`, on features that memory need not hold.

        As many are made in one pass over the table as n_bytes allow, at least one.
        """
        raise NotImplementedError

    def predict(self, state: Mapping[str, np.ndarray], x_NF: np.ndarray) -> np.ndarray:
        """(N, K) float64 in the space of fitting, row by row. InputError if x is not finite."""
        return self._predict(state, finite("features", x_NF))

    def fit_predict(
        self,
        x_NF: np.ndarray,
        y_NK: np.ndarray,
        group_N: np.ndarray,
        seed: int,
        x_new_MF: np.ndarray,
    ) -> np.ndarray:
        """(M, K) predictions of rows that were not fitted on."""
        return self.predict(self.fit(x_NF, y_NK, group_N, seed), x_new_MF)

    def _fit_rows(
        self,
        table: Table,
        rows_n: np.ndarray,
        y_nK: np.ndarray,
        group_n: np.ndarray,
        seed: int,
    ) -> State:
        return self._fit(table.x_NF[rows_n], y_nK, group_n, seed)

    def _fit(self, x_NF: np.ndarray, y_NK: np.ndarray, group_N: np.ndarray, seed: int) -> State:
        """As `fit`; it calls `check_interrupt` where a stop would have to wait for seconds."""
        raise NotImplementedError

    def _predict(self, state: Mapping[str, np.ndarray], x_NF: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class KernelRegressor(Regressor):
    """Saved as sum_m coef_m exp(-gamma |z - support_m|^2) + intercept, z the features scaled to
    mean 0 and std 1.

    center_F, scale_F (0 where a feature never varied), support_MF float32, coef_MK, gamma_K,
    intercept_K: M rows of N are needed. `solve` says what the sum is, for masses of mean 0 and std
    1: penalties and margins then mean the same for every target.
    """

    squares = 4
    saved = {
        "center_F": "F64",
        "scale_F": "F64",
        "support_MF": "F32",
        "coef_MK": "F64",
        "gamma_K": "F64",
        "intercept_K": "F64",
    }

    def solve(
        self, support_NF: np.ndarray, u_NK: np.ndarray, n_varying: int, group_N: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """gamma_K, coef_NK and intercept_K. n_varying features differ between rows: squared
        distances are near 2 n_varying."""
        raise NotImplementedError

    def _fit(self, x_NF: np.ndarray, y_NK: np.ndarray, group_N: np.ndarray, seed: int) -> State:
        center_F, scale_F = moments(x_NF)
        # before solving: what is solved is what is saved
        support_NF = standardised(x_NF, center_F, scale_F).astype(np.float32)
        mean_K, std_K = unit_moments(y_NK)
        n_varying = max(1, np.count_nonzero(scale_F))
        u_NK = (y_NK - mean_K) / std_K
        gamma_K, coef_NK, intercept_K = self.solve(
            support_NF.astype(np.float64), u_NK, n_varying, group_N
        )
        # rows that weigh nothing, as most do in a support vector fit, need not be saved
        used_N = coef_NK.any(axis=1)
        # a constant target leaves none; an empty array is trouble for whoever reads the file
        used_N[0] = True
        return {
            "center_F": center_F,
            "scale_F": scale_F,
            "support_MF": support_NF[used_N],
            "coef_MK": coef_NK[used_N] * std_K,
            "gamma_K": gamma_K,
            "intercept_K": intercept_K * std_K + mean_K,
        }

    def _predict(self, state: Mapping[str, np.ndarray], x_NF: np.ndarray) -> np.ndarray:
        z_NF = standardised(x_NF, state["center_F"], state["scale_F"])
        distance_NM = squared_distances(z_NF, state["support_MF"].astype(np.float64))
        targets = zip(state["gamma_K"], state["coef_MK"].T, strict=True)
        sums = [np.exp(-gamma * distance_NM) @ coef_M for gamma, coef_M in targets]
        return np.stack(sums, 1) + state["intercept_K"]


class SearchedKernel(KernelRegressor):
    """Kernel width and penalties by grouped cross-validation, for every target by itself.

    Inner parts share the scaling of all training rows: one matrix of distances does for the whole
    search, and a mean of features and masses over 285 rows tells little of those held out.
    """

    gammas: Sequence[float]
    """Kernel widths to try, in units of 1 / n_varying; the smoothest first."""

    penalties: Sequence[tuple[float, ...]]
    """Arguments of `estimator` to try; the smoothest first."""

    def estimator(self, *penalty: float) -> Any:
        """A multi-output estimator of scikit-learn that takes a kernel in place of features."""
        raise NotImplementedError

    def dual(self, fitted: Any, n: int) -> tuple[np.ndarray, float]:
        """(n,) coefficients and the intercept of an estimator fitted on one target."""
        raise NotImplementedError

    def solve(
        self, support_NF: np.ndarray, u_NK: np.ndarray, n_varying: int, group_N: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        distance_NN = squared_distances(support_NF, support_NF) / n_varying

        def held_out(
            setting: tuple[float, ...], train_n: np.ndarray, held_m: np.ndarray
        ) -> np.ndarray:
            gamma, *penalty = setting
            kernel_Nn = np.exp(-gamma * distance_NN[:, train_n])
            fitted = self.estimator(*penalty).fit(kernel_Nn[train_n], u_NK[train_n])
            return fitted.predict(kernel_Nn[held_m])

        grid = [
            (gamma, *penalty) for gamma, penalty in itertools.product(self.gammas, self.penalties)
        ]
        chosen_K = choose(grid, held_out, u_NK, inner_folds(group_N))

        # each target on all training rows, by its own setting
        coefs = []
        intercepts = []
        for (gamma, *penalty), u_N in zip(chosen_K, u_NK.T, strict=True):
            kernel_NN = np.exp(-gamma * distance_NN)
            fitted = self.estimator(*penalty).fit(kernel_NN, u_N[:, None])
            coef_N, intercept = self.dual(fitted, len(u_N))
            coefs.append(coef_N)
            intercepts.append(intercept)
        gamma_K = np.array([gamma for gamma, *_ in chosen_K]) / n_varying
        return gamma_K, np.stack(coefs, 1), np.array(intercepts)


def as_saved(state: State) -> State:
    """The arrays of a fit in the order in memory that safetensors can write."""
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def inner_folds(group_N: np.ndarray) -> list[Fold]:
    """Training and held-out positions of up to four parts that keep groups together; a single group
    is dealt row by row.

    Parts that leave one row to fit on are left out: of a handful of rows there may be none.
    """
    group_N = np.unique(group_N, return_inverse=True)[1]
    if group_N.max() == 0:
        group_N = np.arange(len(group_N))
    n_parts = min(INNER_PARTS, group_N.max() + 1)
    part_N = group_parts(group_N, n_parts)
    folds = []
    for part in range(n_parts):
        train_n = np.flatnonzero(part_N != part)
        held_m = np.flatnonzero(part_N == part)
        if len(train_n) > 1:
            folds.append((train_n, held_m))
    return folds


def choose(
    grid: Sequence[tuple],
    held_out: Callable[..., np.ndarray],
    y_NK: np.ndarray,
    folds: Sequence[Fold],
) -> list[tuple]:
    """For each target the setting whose squared error over all held-out rows is least; the first of
    equals, or without folds.

    held_out(setting, train_n, held_m) -> (m, K) predicts held-out rows.
    """
    errors_GK = np.zeros((len(grid), y_NK.shape[1]))
    for error_K, setting in zip(errors_GK, grid, strict=True):
        for train_n, held_m in folds:
            check_interrupt()
            difference_mK = held_out(setting, train_n, held_m) - y_NK[held_m]
            error_K += (difference_mK**2).sum(0)
    return [grid[g] for g in errors_GK.argmin(0)]


def moments(x_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F,) mean and std over rows; a constant column has exactly its value and 0."""
    # not by a std of 0: that of equal numbers may round to 1e-17, to divide by
    constant_F = x_NF.max(0) == x_NF.min(0)
    mean_F = np.where(constant_F, x_NF[0], x_NF.mean(0))
    std_F = np.where(constant_F, 0.0, x_NF.std(0))
    return mean_F, std_F


def unit_moments(y_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `moments`, the std of a constant 1: what to divide by."""
    mean_K, std_K = moments(y_NK)
    return mean_K, np.where(std_K > 0, std_K, 1.0)


def standardised(x_NF: np.ndarray, center_F: np.ndarray, scale_F: np.ndarray) -> np.ndarray:
    """(x - center) / scale; 0 where scale is 0: what never varied in training says nothing,
    whatever it does now."""
    return np.divide(x_NF - center_F, scale_F, out=np.zeros(x_NF.shape), where=scale_F > 0)


def squared_distances(a_NF: np.ndarray, b_MF: np.ndarray) -> np.ndarray:
    """(N, M) squared Euclidean distances between rows."""
    a_N1 = (a_NF**2).sum(1)[:, None]
    b_M = (b_MF**2).sum(1)
    squares_NM = a_N1 + b_M - 2 * a_NF @ b_MF.T
    return np.maximum(squares_NM, 0)  # rounding may leave -1e-12


def folded(
    coef_FK: np.ndarray, intercept_K: np.ndarray, center_F: np.ndarray, scale_F: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """weight_FK and bias_K with x @ weight + bias = standardised(x) @ coef + intercept."""
    scale_F1 = scale_F[:, None]
    weight_FK = np.divide(
        coef_FK,
        scale_F1,
        out=np.zeros(coef_FK.shape),
        where=scale_F1 > 0,
    )
    return weight_FK, intercept_K - center_F @ weight_FK


def checked(rows_n: np.ndarray, y_nK: np.ndarray, group_n: np.ndarray) -> np.ndarray:
    """Labels of training rows in float64, or InputError."""
    if not len(rows_n) == len(y_nK) == len(group_n):
        raise ValueError(
            f"{len(rows_n)} rows of features, {len(y_nK)} of labels and {len(group_n)} groups: "
            "they must be the same"
        )
    if len(rows_n) < 2:
        raise InputError(
            f"{len(rows_n)} training rows: a regressor needs at least 2; "
            "label more images or make fewer folds"
        )
    return finite("labels", y_nK)
