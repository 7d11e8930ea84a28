"""Ridge regression on more rows than features: what is summed over rows is enough for all of it, so
that rows can be read a block at a time.

Source: Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, equation 3.44.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from trainer.heads.regressor import Fold
from trainer.heads.shrinkage import ALPHAS, solutions
from trainer.heads.table import ReadTable, Table

NO_FOLD = -1
"""The part of the rows that no inner fold holds out."""

SQUARES = 4
"""Matrices of features x features beside those of the parts: the total, the equations of a fold,
its factor, the products of a block."""


@dataclass
class Sums:
    """Over some rows: their number, and sums of their features and targets and of the products."""

    n: int
    z_F: np.ndarray
    y_T: np.ndarray
    zz_FF: np.ndarray
    zy_FT: np.ndarray
    yy_T: np.ndarray

    @classmethod
    def blank(cls, n_features: int, n_targets: int) -> Self:
        """Of no row."""
        return cls(
            0,
            np.zeros(n_features),
            np.zeros(n_targets),
            np.zeros((n_features, n_features)),
            np.zeros((n_features, n_targets)),
            np.zeros(n_targets),
        )

    def add_rows(self, z_nF: np.ndarray, y_nT: np.ndarray) -> None:
        """Take rows in."""
        self.n += len(z_nF)
        self.z_F += z_nF.sum(0)
        self.y_T += y_nT.sum(0)
        self.zz_FF += z_nF.T @ z_nF
        self.zy_FT += z_nF.T @ y_nT
        self.yy_T += (y_nT**2).sum(0)

    def add(self, other: "Sums", sign: int = 1) -> None:
        """Take other rows in, or out where the sign is -1."""
        self.n += sign * other.n
        for field in fields(self)[1:]:  # all but n are arrays, added to in place
            total = getattr(self, field.name)
            total += sign * getattr(other, field.name)

    def ridges(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(A, F, T) coefficients and (A, T) intercepts at each strength."""
        mean_F = self.z_F / self.n
        mean_T = self.y_T / self.n
        # about the mean
        product_FF = self.zz_FF - np.outer(self.z_F, mean_F)
        y_FT = self.zy_FT - np.outer(self.z_F, mean_T)
        coef_AFT = solutions(product_FF, y_FT, alphas)
        return coef_AFT, mean_T - mean_F @ coef_AFT

    def squared_errors(self, coef_FT: np.ndarray, intercept_T: np.ndarray) -> np.ndarray:
        """(T,) sums over the rows of (y - z coef - intercept)^2."""
        # sum of (z coef + intercept)^2, multiplied out
        off_T = (coef_FT * (self.zz_FF @ coef_FT)).sum(0)
        off_T += self.n * intercept_T**2
        off_T += 2 * intercept_T * (self.z_F @ coef_FT)
        with_y_T = (coef_FT * self.zy_FT).sum(0) + intercept_T * self.y_T
        return self.yy_T - 2 * with_y_T + off_T


class SummedPaths:
    """Ridges of several targets on the same rows, each of a strength of its own, from sums.

    Sums are of each part that an inner fold holds out; what a fold trains on is the total less its
    part. As `shrinkage.Paths`, for more rows than features.
    """

    def __init__(
        self,
        rows_n: np.ndarray,
        y_nT: np.ndarray,
        folds: Sequence[Fold],
        center_F: np.ndarray,
        scale_F: np.ndarray,
    ) -> None:
        self.rows_n = rows_n
        self.center_F = center_F
        self.scale_F = scale_F
        # about their mean, which squares would drown small errors in
        self._mean_T = y_nT.mean(0)
        self._y_nT = y_nT - self._mean_T
        # rows that no fold holds out are a part of their own
        self._part_n = np.full(len(rows_n), NO_FOLD)
        for part, (_, held_m) in enumerate(folds):
            self._part_n[held_m] = part
        parts = np.unique(self._part_n).tolist()
        self._sums = {part: self._blank() for part in parts}
        self._guess_nT = np.full(y_nT.shape, np.nan)
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """By part, each target's coefficients and intercept at its strength, of the other rows."""

    def add(self, start: int, x_bF: np.ndarray) -> None:
        """Take in those of a block's rows, the first of them `start` of the table, that are its
        own."""
        for part, at_m, z_mF in self._own(start, x_bF):
            self._sums[part].add_rows(z_mF, self._y_nT[at_m])

    def choose(self) -> None:
        """Once all rows are in: each target's strength, the best over all inner folds."""
        self._total = self._blank()
        for sums in self._sums.values():
            self._total.add(sums)
        self._sums.pop(NO_FOLD, None)

        n_targets = self._y_nT.shape[1]
        errors_AT = np.zeros((len(ALPHAS), n_targets))
        maps = {}
        for part, held_out in self._sums.items():
            # out and in again: a copy of the total would be as large as it
            self._total.add(held_out, sign=-1)
            maps[part] = self._total.ridges(ALPHAS)
            self._total.add(held_out)
            for error_T, coef_FT, intercept_T in zip(errors_AT, *maps[part], strict=True):
                error_T += held_out.squared_errors(coef_FT, intercept_T)
        self._sums.clear()  # the total is all that is needed from here on

        best_T = errors_AT.argmin(0)
        every_T = np.arange(n_targets)
        for part, (coef_AFT, intercept_AT) in maps.items():
            self._maps[part] = coef_AFT[best_T, :, every_T].T, intercept_AT[best_T, every_T]
        self._best_T = best_T

    def guess(self, start: int, x_bF: np.ndarray) -> None:
        """Predict those of a block's rows that an inner fold holds out."""
        for part, at_m, z_mF in self._own(start, x_bF):
            if part in self._maps:
                coef_FT, intercept_T = self._maps[part]
                self._guess_nT[at_m] = z_mF @ coef_FT + intercept_T

    def held_out(self) -> np.ndarray:
        """(n, T) predictions of what inner folds hold out, each target's at its best strength; NaN
        for rows that no fold holds out."""
        return self._guess_nT + self._mean_T

    def coefficients(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(F, M) coefficients and (M,) intercepts of M of the targets, on all rows."""
        best_M = self._best_T[targets]
        used_A, place_M = np.unique(best_M, return_inverse=True)
        coef_AFT, intercept_AT = self._total.ridges(ALPHAS[used_A])
        coef_FM = coef_AFT[place_M, :, targets].T
        return coef_FM, intercept_AT[place_M, targets] + self._mean_T[targets]

    def _blank(self) -> Sums:
        return Sums.blank(len(self.center_F), self._y_nT.shape[1])

    def _own(self, start: int, x_bF: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """By part: which of the training rows lie in a block, and their scaled features."""
        end = start + len(x_bF)
        inside_n = np.flatnonzero((self.rows_n >= start) & (self.rows_n < end))
        part_n = self._part_n[inside_n]
        for part in np.unique(part_n).tolist():
            at_m = inside_n[part_n == part]
            z_mF = x_bF[self.rows_n[at_m] - start]
            z_mF -= self.center_F
            z_mF /= self.scale_F
            yield part, at_m, z_mF


def add_up(table: Table | ReadTable, together: Sequence[SummedPaths], with_guesses: bool) -> None:
    """Fit all in one pass over the table, or two where what inner folds hold out is asked for."""
    for start, x_bF in table.blocks():
        for paths in together:
            paths.add(start, x_bF)
    for paths in together:
        paths.choose()
    if with_guesses:
        for start, x_bF in table.blocks():
            for paths in together:
                paths.guess(start, x_bF)
