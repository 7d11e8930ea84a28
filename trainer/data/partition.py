"""Groups dealt into folds at random, as balanced as scikit-learn's StratifiedGroupKFold makes them.

That class shuffles only groups of about the same class distribution, so most of its draws are one
partition; here every draw starts from another random one. Arrays in, arrays out; `splits` says what
a group or a stratum is.
"""

from dataclasses import dataclass

import numpy as np

# of 1500 draws over 60 made-up sets of 5 to 44 groups six took as many, all of one set
MOST_STARTS = 100
# groups that one group is tried against: a step costs the same however many there are
MOST_PARTNERS = 256
MOST_ORDERS = 10  # in which groups are dealt to find the measure
MOST_DEALT = 5000  # groups, in all of them
ROUNDING = 1e-9  # in shares: sums of square roots round


@dataclass(frozen=True)
class Counts:
    """Images of each group (G) by stratum, and all of them in the last column (K = strata + 1): how
    balanced folds (F) are.

    Integers, so that a partition has one measure, whichever moves led to it.
    """

    count_GK: np.ndarray
    n_folds: int

    @classmethod
    def of(cls, group_N: np.ndarray, stratum_N: np.ndarray, n_folds: int) -> "Counts":
        """group_N, stratum_N : (N,) int, positions of each image's group and stratum."""
        n_groups = group_N.max() + 1
        n_strata = stratum_N.max() + 1
        count_GS = np.zeros((n_groups, n_strata), np.int64)
        np.add.at(count_GS, (group_N, stratum_N), 1)
        count_GS = count_GS[:, count_GS.any(0)]
        return cls(np.column_stack([count_GS, count_GS.sum(1)]), n_folds)

    def imbalance(self, square_nK: np.ndarray, sum_K: np.ndarray) -> np.ndarray:
        """(n, 2) std over folds of a fold's share: the mean over strata, and of sizes.

        square_nK : sums over folds of the squared counts. sum_K : of the counts that are dealt so
            far.
        Source: the criterion of scikit-learn's StratifiedGroupKFold.
        """
        scale_K = self.n_folds * self.count_GK.sum(0)
        std_nK = np.sqrt(self.n_folds * square_nK - sum_K**2) / scale_K
        strata_n = std_nK[..., :-1].mean(-1)
        sizes_n = std_nK[..., -1]
        return np.stack([strata_n, sizes_n], -1)

    def imbalance_of(self, fold_G: np.ndarray) -> np.ndarray:
        """(2,) of strata and of sizes, of a whole partition."""
        square_K = (self.in_folds(fold_G) ** 2).sum(0)
        return self.imbalance(square_K, self.count_GK.sum(0))

    def in_folds(self, fold_G: np.ndarray) -> np.ndarray:
        """(F, K) counts of each fold."""
        count_FK = np.zeros((self.n_folds, self.count_GK.shape[1]), np.int64)
        np.add.at(count_FK, fold_G, self.count_GK)
        return count_FK


@dataclass(frozen=True)
class Measure:
    """How balanced a draw must be."""

    enough_2: np.ndarray
    """The least imbalance of strata, and that of sizes, which scikit-learn's rule reaches."""
    fold_G: np.ndarray
    """One of its partitions: of the least imbalance of strata."""

    @classmethod
    def of(cls, counts: Counts) -> "Measure":
        """By scikit-learn's greedy rule, but no fold is left empty.

        Groups of the most uneven strata come first, and each goes where shares are then spread
        least. Equally uneven ones are dealt in some orders, the same ones for the same counts.
        """
        rng = np.random.default_rng(0)
        n_groups = len(counts.count_GK)
        n_orders = min(MOST_ORDERS, 1 + MOST_DEALT // n_groups)
        orders = [np.arange(n_groups)]
        orders += [rng.permutation(n_groups) for _ in range(n_orders - 1)]
        folds = [_greedy(counts, order_G) for order_G in orders]
        imbalances = [tuple(counts.imbalance_of(fold_G)) for fold_G in folds]
        return cls(np.min(imbalances, 0), folds[imbalances.index(min(imbalances))])


def draw(counts: Counts, measure: Measure, rng: np.random.Generator) -> np.ndarray:
    """(G,) fold of each group: a random partition, balanced enough, that leaves no fold empty.

    Moves and swaps of groups end as soon as it is so: going on to the best there is would make all
    draws alike. A start that leads nowhere is dropped for another one; where none leads there, the
    measure's own partition is the draw.
    """
    for _ in range(MOST_STARTS):
        fold_G = _from_random_start(counts, measure.enough_2, rng)
        if fold_G is not None:
            return fold_G
    return rng.permutation(counts.n_folds)[measure.fold_G]


def _greedy(counts: Counts, order_G: np.ndarray) -> np.ndarray:
    count_GK = counts.count_GK
    n_folds = counts.n_folds
    unevenness_G = count_GK[order_G, :-1].std(1)
    order_G = order_G[np.argsort(-unevenness_G, kind="stable")]
    fold_G = np.empty(len(count_GK), np.int64)
    count_FK = np.zeros((n_folds, count_GK.shape[1]), np.int64)
    for n_dealt, g in enumerate(order_G):
        # were g in each fold: of n and c more, (n + c)^2 is (2 n + c) c above n^2
        own_K = count_GK[g]
        square_FK = (count_FK**2).sum(0) + (2 * count_FK + own_K) * own_K
        dealt_K = count_FK.sum(0) + own_K
        # rounded: what is equal must be a tie, which the sizes decide
        strata_F = counts.imbalance(square_FK, dealt_K)[:, 0].round(12)
        # no more groups are left than empty folds: each of them gets one
        empty_F = count_FK[:, -1] == 0
        if len(order_G) - n_dealt <= empty_F.sum():
            strata_F[~empty_F] = np.inf
        fold_G[g] = np.lexsort([count_FK[:, -1], strata_F])[0]  # of equal ones the smallest fold
        count_FK[fold_G[g]] += own_K
    return fold_G


def _from_random_start(
    counts: Counts,
    enough_2: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """A random partition, made balanced enough; None where no single move or swap helps."""
    count_GK = counts.count_GK
    n_folds = counts.n_folds
    n_groups = len(count_GK)
    total_K = count_GK.sum(0)
    # one group for each fold, the rest anywhere: no fold starts empty
    anywhere = rng.integers(0, n_folds, n_groups - n_folds)
    fold_G = rng.permutation(np.append(np.arange(n_folds), anywhere))
    count_FK = counts.in_folds(fold_G)
    square_K = (count_FK**2).sum(0)
    excess = _excess(counts.imbalance(square_K, total_K), enough_2)

    waiting = rng.permutation(n_groups).tolist()
    while excess > 0:
        if not waiting:
            return None
        g = waiting.pop()
        home = fold_G[g]

        # g goes to another fold (n ways), alone or for a partner that comes in its place
        partner_n = np.flatnonzero(fold_G != home)
        if len(partner_n) > MOST_PARTNERS:
            partner_n = rng.choice(partner_n, MOST_PARTNERS, replace=False)
        to_n = fold_G[partner_n]
        gone_nK = count_GK[g] - count_GK[partner_n]
        if (fold_G == home).sum() > 1:  # alone it would leave its fold empty
            others_n = np.delete(np.arange(n_folds), home)
            to_n = np.append(to_n, others_n)
            alone_nK = np.tile(count_GK[g], (len(others_n), 1))
            gone_nK = np.append(gone_nK, alone_nK, axis=0)
        # (to + gone)^2 + (home - gone)^2 - to^2 - home^2
        square_nK = square_K + 2 * gone_nK * (count_FK[to_n] - count_FK[home] + gone_nK)
        excess_n = _excess(counts.imbalance(square_nK, total_K), enough_2)
        best = np.argmin(excess_n)
        if excess_n[best] >= excess - ROUNDING:
            continue

        if best < len(partner_n):
            fold_G[partner_n[best]] = home
        fold_G[g] = to_n[best]
        count_FK[home] -= gone_nK[best]
        count_FK[to_n[best]] += gone_nK[best]
        square_K = square_nK[best]
        excess = excess_n[best]
        waiting = rng.permutation(n_groups).tolist()
    return fold_G


def _excess(imbalance_n2: np.ndarray, enough_2: np.ndarray) -> np.ndarray:
    """(n,) how far strata and sizes are from balanced enough, in units of that; 0 if both are."""
    unit_2 = np.maximum(enough_2, 1e-6)
    return (np.maximum(imbalance_n2 - enough_2 - ROUNDING, 0) / unit_2).sum(-1)
