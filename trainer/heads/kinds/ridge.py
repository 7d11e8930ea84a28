"""Ridge in the space that suits each target: the plainest thing a trained head has to beat."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from featurestore.errors import InputError
from trainer.heads.regressor import (
    INNER_PARTS,
    Regressor,
    State,
    TrainingRows,
    as_saved,
    checked,
    folded,
    inner_folds,
)
from trainer.heads.shrinkage import Paths
from trainer.heads.spaces import SPACES, grams
from trainer.heads.sums import SQUARES, SummedPaths, add_up
from trainer.heads.table import READ, ReadTable, Scale, Table

AS_IT_IS = ""
"""What a number has for a choice that is no amount."""
AVERAGED = ("raw", "log1p")
CHOICES = ("average", *SPACES)
"""What a target's inner folds choose among; the first of equals, and without folds."""


class Ridge(Regressor):
    """Linear maps over robustly scaled features, of strengths by grouped cross-validation.

    space : `raw`, `log1p`, `sqrt` are fitted in that space. `average` is the mean of raw and log1p.
        `chosen` is one of these four for each target, by squared error in grams of what the inner
        folds hold out; each map has the strength that is best in its own space.

    Takes grams from 0 and predicts grams from 0. Inner parts share the scaling of all training
    rows, as those of `SearchedKernel` do.

    Saved are linear maps over the features as they are, for `average` weight_raw_FK, bias_raw_K,
    weight_log_FK and bias_log_K. Else weight_FM and bias_M hold the M maps that are used, and
    raw_MK, log1p_MK and sqrt_MK the share of map m in target k: a target is the sum over spaces and
    maps of its share * the map's value in grams.
    """

    own_space = True
    spaces = ("chosen", *CHOICES)
    default_space = "chosen"
    copies = 8  # 5.2 seen for 285 x 7,680

    def __init__(self, space: str = "chosen", n_others: int = 0) -> None:
        self.space = space
        self._n_others = n_others
        names = ["weight_FM", "bias_M", *(f"{each}_MK" for each in SPACES)]
        if space == "average" and not n_others:
            names = ["weight_raw_FK", "bias_raw_K", "weight_log_FK", "bias_log_K"]
        self.saved = dict.fromkeys(names, "F64")

    def in_space(self, space: str, n_others: int = 0) -> "Ridge":
        return Ridge(space, n_others)

    def spaces_of(self, state: Mapping[str, np.ndarray]) -> list[str] | None:
        if self.space != "chosen":
            return None
        spaces = []
        for shares in zip(*(state[f"{space}_MK"].T for space in SPACES), strict=True):
            used = []
            for space, share_M in zip(SPACES, shares, strict=True):
                if share_M.any():
                    used.append(space)
            # a target that averages has a map in each of two spaces
            spaces.append("average" if len(used) > 1 else used[0])
        return spaces

    def _fit_rows(
        self,
        table: Table,
        rows_N: np.ndarray,
        y_NK: np.ndarray,
        group_N: np.ndarray,
        seed: int,
    ) -> State:
        if self.fits_by_sums(len(rows_N), table.n_features):
            only = TrainingRows(rows_N, y_NK, group_N)
            (state,) = self.fit_together(table, [only], n_bytes=0)
            return state
        target_NT = self._targets(y_NK)
        center_F, scale_F = table.robust_scale(rows_N)
        z_NF = table.scaled(rows_N, center_F, scale_F)
        paths = Paths(z_NF, target_NT, inner_folds(group_N))
        return self._state(paths, y_NK, (center_F, scale_F))

    def fits_by_sums(self, n_rows: int, n_features: int) -> bool:
        return n_rows > n_features

    def fit_bytes(self, n_rows: int, n_features: int) -> int:
        if not self.fits_by_sums(n_rows, n_features):
            return super().fit_bytes(n_rows, n_features)
        return _bytes_of_one(n_features) + _bytes_of_all(n_features)

    def fit_together(
        self,
        table: Table | ReadTable,
        each: Sequence[TrainingRows],
        n_bytes: int,
    ) -> Iterator[State]:
        scales = table.robust_scales([rows.rows_n for rows in each])
        left = n_bytes - _bytes_of_all(table.n_features)
        n_at_once = max(1, left // _bytes_of_one(table.n_features))
        for start in range(0, len(each), n_at_once):
            some = slice(start, start + n_at_once)
            yield from self._summed(table, each[some], scales[some])

    def _summed(
        self,
        table: Table | ReadTable,
        each: Sequence[TrainingRows],
        scales: Sequence[Scale],
    ) -> Iterator[State]:
        """Several fits in one pass, or in two where they choose a space."""
        # a function of its own: its sums are let go before those of the next fits are made
        masses = [checked(rows.rows_n, rows.y_nK, rows.group_n) for rows in each]
        together = [
            SummedPaths(rows.rows_n, self._targets(y_nK), inner_folds(rows.group_n), *scale)
            for rows, y_nK, scale in zip(each, masses, scales, strict=True)
        ]
        add_up(table, together, with_guesses=self.space == "chosen")
        for paths, y_nK, scale in zip(together, masses, scales, strict=True):
            yield as_saved(self._state(paths, y_nK, scale))

    def _targets(self, y_NK: np.ndarray) -> np.ndarray:
        """(N, T) masses in the spaces that are fitted, side by side: each has a strength of its own
        in each."""
        n_amounts = y_NK.shape[1] - self._n_others
        amounts = y_NK[:, :n_amounts]
        if (amounts < 0).any():
            raise InputError(
                f"amounts: the least is {amounts.min():g}; ridge takes amounts, which start at 0"
            )
        spaces = []
        for space in _spaces_in(self.space):
            into, _ = SPACES[space]
            # others stand in each space as they are; only the first of them is used
            spaces += [into(amounts), y_NK[:, n_amounts:]]
        return np.hstack(spaces)

    def _state(self, paths: Paths | SummedPaths, y_NK: np.ndarray, scale: Scale) -> State:
        """What is to be saved of a fit."""
        spaces = _spaces_in(self.space)
        n_targets = y_NK.shape[1]
        if self.space == "average" and not self._n_others:
            coef_FT, intercept_T = paths.coefficients(np.arange(len(spaces) * n_targets))
            weight_FT, bias_T = folded(coef_FT, intercept_T, *scale)
            raw_FK, log_FK = np.split(weight_FT, 2, axis=1)
            raw_K, log_K = np.split(bias_T, 2)
            return {
                "weight_raw_FK": raw_FK,
                "bias_raw_K": raw_K,
                "weight_log_FK": log_FK,
                "bias_log_K": log_K,
            }

        choices = [self.space] * n_targets
        if self.space == "chosen":
            guesses = np.split(paths.held_out(), len(spaces), axis=1)
            choices = choose_spaces(dict(zip(spaces, guesses, strict=True)), y_NK)
        n_amounts = n_targets - self._n_others
        choices[n_amounts:] = [AS_IT_IS] * self._n_others
        used_M, shares = _shares(choices, spaces)
        coef_FM, intercept_M = paths.coefficients(used_M)
        weight_FM, bias_M = folded(coef_FM, intercept_M, *scale)
        return {"weight_FM": weight_FM, "bias_M": bias_M, **shares}

    def _predict(self, state: Mapping[str, np.ndarray], x_NF: np.ndarray) -> np.ndarray:
        if self.space == "average":
            raw_NK = x_NF @ state["weight_raw_FK"] + state["bias_raw_K"]
            log_NK = x_NF @ state["weight_log_FK"] + state["bias_log_K"]
            return _averaged(raw_NK, log_NK)

        z_NM = x_NF @ state["weight_FM"] + state["bias_M"]
        n_targets = state["raw_MK"].shape[1]
        sums_NK = np.zeros((len(z_NM), n_targets))
        for space, (_, back) in SPACES.items():
            share_MK = state[f"{space}_MK"]
            # map by map: a matrix product would meet 0 * inf where another target's map is wild
            for m, k in np.argwhere(share_MK):
                with np.errstate(over="ignore"):
                    sums_NK[:, k] += share_MK[m, k] * back(z_NM[:, m])
        n_amounts = n_targets - self._n_others
        sums_NK[:, :n_amounts] = np.maximum(sums_NK[:, :n_amounts], 0)
        return sums_NK


def choose_spaces(guesses: Mapping[str, np.ndarray], y_NK: np.ndarray) -> list[str]:
    """For each target the one of CHOICES whose squared error in grams is least.

    guesses : by space (N, K) in that space, NaN for rows that no part held out. A space with a
        guess that is too large for a number is not chosen.
    """
    held_N = ~np.isnan(guesses["raw"]).any(1)
    in_grams = {
        "average": _averaged(guesses["raw"][held_N], guesses["log1p"][held_N]),
        **{space: grams(space, guess_NK[held_N]) for space, guess_NK in guesses.items()},
    }
    errors_CK = []
    for choice in CHOICES:
        with np.errstate(over="ignore"):
            error_mK = in_grams[choice] - y_NK[held_N]
            errors_CK.append((error_mK**2).sum(0))
    # inf - inf is NaN, which argmin would take for the least
    errors_CK = np.nan_to_num(errors_CK, nan=np.inf, posinf=np.inf)
    return [CHOICES[c] for c in errors_CK.argmin(0)]


def _bytes_of_one(n_features: int) -> int:
    """Of one fit: the sums of its inner parts, and those of rows that no part holds out."""
    return 8 * n_features**2 * (INNER_PARTS + 1)


def _bytes_of_all(n_features: int) -> int:
    """Of what fits that are summed together share: what is solved, and a block of rows."""
    return 8 * n_features * (SQUARES * n_features + 4 * READ)


def _spaces_in(space: str) -> Sequence[str]:
    """What is fitted for it."""
    return {"average": AVERAGED, "chosen": tuple(SPACES)}.get(space, (space,))


def _averaged(raw_NK: np.ndarray, log_NK: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.maximum((raw_NK + np.expm1(log_NK)) / 2, 0)


def _shares(
    choices: Sequence[str],
    spaces: Sequence[str],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which columns of the fit are used, in order, and by space the share (M, K) of each in each
    target."""
    n_targets = len(choices)
    parts = []
    for k, choice in enumerate(choices):
        if choice == AS_IT_IS:
            parts.append(("raw", k, k, 1.0))
            continue
        of_choice = _spaces_in(choice)
        for space in of_choice:
            column = spaces.index(space) * n_targets + k
            parts.append((space, column, k, 1 / len(of_choice)))

    used_M = np.unique([column for _, column, _, _ in parts])
    shares = {f"{space}_MK": np.zeros((len(used_M), n_targets)) for space in SPACES}
    for space, column, k, share in parts:
        m = np.searchsorted(used_M, column)
        shares[f"{space}_MK"][m, k] = share
    return used_M, shares


KIND = Ridge()
