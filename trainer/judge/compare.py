"""Which points can be told apart: paired differences, with intervals by a bootstrap over sites.

Arrays in, numbers out, in float64. Photographs of one visit err together, so visits are what is
drawn anew, not photographs.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainer.score.metrics import Score

LEAST_SITES = 6
"""Fewer cannot reach 95 %: if all S sites favour one point, a sign test still gives it p = 2 / 2^S,
.06 for five."""
N_RESAMPLES = 2000
MOST_DRAWN = 2000
"""Of more sites some are drawn together, always the same ones: groups of sites are as independent
as sites, and a million sites drawn 2000 times would be 16 GB of numbers."""


@dataclass(frozen=True)
class Comparison:
    """A point's score less the reference's on the same images; NaN where either failed."""

    difference: float
    """Mean over repeats."""
    low: float
    """With `high` the 95 % interval for other visits; NaN below LEAST_SITES sites."""
    high: float
    apart: bool
    """The interval excludes 0."""
    sd: float
    """Of the difference over repeats, on the same visits: what regrouping and training anew do. NaN
    for a single repeat."""


def compare(
    by: Score,
    truth_NK: np.ndarray,
    prediction_GRNK: np.ndarray,
    site_N: np.ndarray,
    reference: int,
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> list[Comparison]:
    """Every point against one of them on the same resamples: a paired cluster bootstrap.

    Sites are drawn with replacement, as many as there are; a score is that of the drawn sites'
    images, averaged over repeats as `evaluate.Scores.mean` is. The interval is between percentiles,
    taken a little further out than 2.5 and 97.5 % because with few sites those are too near (see
    `interval_levels`).

    It speaks of other visits of the same kind, with the heads as they are. Intervals are pair by
    pair: of many points level with the reference some come out apart, more so where the reference
    is the best of them by these very images.

    Parameters
    ----------
    truth_NK : (N, K) in the order of tables; NaN where a target is unknown.
    prediction_GRNK : (G points, R repeats, N, K); NaN where a repeat does not hold an image
        out, for all points alike. A point that alone is not finite where others predict has failed;
        what no point predicts counts as not held out.
    site_N : (N,) any labels.
    reference : position of the point that the others are compared with; itself gets 0.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile
    interval); Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8 (whole
    clusters are drawn, as they are).
    """
    sums = site_sums(by, truth_NK, prediction_GRNK, site_N)
    drawn = sums.drawn(draw_sites(sums.n_sites, n_resamples, seed))
    return _against(sums, reference, drawn)


def compare_pairs(
    by: Score,
    truth_NK: np.ndarray,
    prediction_GRNK: np.ndarray,
    site_N: np.ndarray,
    seed: int,
) -> dict[tuple[int, int], Comparison]:
    """Every pair (a, b), a < b: what `compare` says of b with reference a; on one draw of sites."""
    sums = site_sums(by, truth_NK, prediction_GRNK, site_N)
    # scores of the drawn sites serve every reference
    drawn = sums.drawn(draw_sites(sums.n_sites, N_RESAMPLES, seed))
    pairs = {}
    for a in range(len(prediction_GRNK)):
        for b, comparison in enumerate(_against(sums, a, drawn)):
            if b > a:
                pairs[a, b] = comparison
    return pairs


def _against(
    sums: "SiteSums | TargetSums",
    reference: int,
    drawn: Callable[[int], np.ndarray],
) -> list[Comparison]:
    """drawn : differences on resamples, by reference."""
    as_it_is = np.ones((1, sums.n_sites))
    difference_G = sums.differences(as_it_is, reference)[0]
    if sums.n_sites < LEAST_SITES:
        low_G = np.full(len(difference_G), np.nan)
        high_G = low_G
    else:
        low_G, high_G = _interval(drawn(reference), sums.n_sites)

    apart_G = (low_G > 0) | (high_G < 0)
    columns = difference_G, low_G, high_G, apart_G, sums.sd(reference)
    lists = [column.tolist() for column in columns]  # Python's numbers, for JSON
    return [Comparison(*values) for values in zip(*lists, strict=True)]


@functools.lru_cache(1)
def draw_sites(n_sites: int, n_resamples: int, seed: int) -> np.ndarray:
    """(B resamples, S sites) int: how often each site is drawn; not to be written to.

    The last draw is kept, .5 s for 2000 sites: several scores are compared on it.
    """
    if not n_sites:  # no point predicts anything
        return np.zeros((n_resamples, 0), int)
    rng = np.random.default_rng(seed)
    drawn_BS = rng.multinomial(n_sites, np.full(n_sites, 1 / n_sites), size=n_resamples)
    drawn_BS.flags.writeable = False
    return drawn_BS


def interval_levels(n_sites: int) -> tuple[float, float]:
    """Quantiles of the resamples between which a 95 % interval lies: 2.5 and 97.5 % for many sites,
    1.9 and 98.1 % for thirty.

    Plain percentiles are too near twice: resamples spread by 1/S where 1/(S - 1) is due, and are
    normal where Student's t is. Of 1500 drawn data sets of 30 (10, 6) sites of 1 to 22 images, with
    two points of equal worth, this interval holds 0 in 94 % (93, 93), plain percentiles in 93 %
    (88, 85); where some sites err much more than others, 93 % (92, 91) against 91 % (87, 82).
    Source: Hesterberg 2015, What Teachers Should Know about the Bootstrap, The American
    Statistician 69(4).
    """
    from scipy.special import ndtr, stdtrit  # not at the top: .2 s that no start need wait

    wider = np.sqrt(n_sites / (n_sites - 1))
    student = stdtrit(n_sites - 1, 0.025)
    low = float(ndtr(wider * student))
    return low, 1 - low


@dataclass(frozen=True)
class _Sites:
    """What is drawn: the sites of which some image counts, or groups of sites."""

    place_N: np.ndarray
    """Of each image's site among all sites."""
    counts_A: np.ndarray
    """Which of all sites are among them."""

    @classmethod
    def of(cls, site_N: np.ndarray, counts_N: np.ndarray) -> "_Sites":
        sites_A, place_N = np.unique(np.asarray(site_N), return_inverse=True)
        n_all = min(len(sites_A), MOST_DRAWN)
        place_N = place_N % n_all
        n_images_A = np.bincount(place_N[counts_N], minlength=n_all)
        return cls(place_N, n_images_A > 0)

    @property
    def n(self) -> int:
        return int(self.counts_A.sum())

    def sums(self, values_N: np.ndarray) -> np.ndarray:
        """(..., S) sums over each site's images, which are the last axis."""
        n_all = len(self.counts_A)
        rows = values_N.reshape(-1, values_N.shape[-1])
        # a product with an images x sites matrix would need 40 GB for a million images
        sums = [np.bincount(self.place_N, row, n_all)[self.counts_A] for row in rows]
        return np.reshape(sums, (*values_N.shape[:-1], self.n))

    def sums_NK(self, values_NK: np.ndarray) -> np.ndarray:
        """(..., S, K) sums over each site's images, which are the last axis but one."""
        return self.sums(values_NK.swapaxes(-1, -2)).swapaxes(-1, -2)


@dataclass(frozen=True)
class SiteSums:
    """Sums over each site's images, R repeats x S sites: all that the contest's score of drawn
    sites needs."""

    error_GRS: np.ndarray
    """Of w (y - p)^2; 0 for points that failed."""
    truth_3RS: np.ndarray
    """Of w, w y and w y^2, over the pairs that count."""
    failed_G: np.ndarray

    @property
    def n_sites(self) -> int:
        return self.error_GRS.shape[-1]

    @classmethod
    def of(
        cls,
        by: Score,
        truth_NK: np.ndarray,
        prediction_GRNK: np.ndarray,
        site_N: np.ndarray,
    ) -> "SiteSums":
        """Inputs as in `compare`. Sites of which no image counts are left out."""
        truth_NK = np.asarray(truth_NK, np.float64)
        prediction_GRNK = np.asarray(prediction_GRNK, np.float64)
        held_out_RN = ~np.isnan(prediction_GRNK).all((0, 3))
        counts_RNK = held_out_RN[..., None] & ~np.isnan(truth_NK)
        weight_RNK = np.where(counts_RNK, by.weights, 0.0)
        sites = _Sites.of(site_N, weight_RNK.any((0, 2)))
        truth_NK = np.nan_to_num(truth_NK)
        powers = [(weight_RNK * truth_NK**power).sum(-1) for power in range(3)]
        powers_3RN = np.stack(powers)
        is_fine_GRNK = np.isfinite(prediction_GRNK) | (weight_RNK == 0)
        failed_G = ~is_fine_GRNK.all((1, 2, 3))
        error_GRS = np.zeros((len(prediction_GRNK), len(held_out_RN), sites.n))
        # one at a time: a thousand points' pairs at once would be gigabytes
        for g in np.flatnonzero(~failed_G):
            error_RNK = weight_RNK * (truth_NK - prediction_GRNK[g]) ** 2
            # what does not count may be NaN
            error_RN = np.where(weight_RNK > 0, error_RNK, 0.0).sum(-1)
            error_GRS[g] = sites.sums(error_RN)
        return cls(error_GRS, sites.sums(powers_3RN), failed_G)

    def differences(self, counts_BS: np.ndarray, reference: int) -> np.ndarray:
        """(B, G): score less the reference's where site s counts counts_BS[b, s] times.

        Mean over the repeats that have a score there; NaN where none has, or either point failed.
        """
        sst_BR = self._sst(counts_BS)
        n_scored_B1 = np.isfinite(sst_BR).sum(1, keepdims=True)
        share_BR = np.nan_to_num(1 / sst_BR) / n_scored_B1.clip(1)
        weight_BRS = share_BR[..., None] * counts_BS[:, None]
        # the mean over repeats of counts @ error / sst, as one product over repeats and sites
        more_GRS = self.error_GRS - self.error_GRS[reference]
        flat_BM = -weight_BRS.reshape(len(counts_BS), -1)
        flat_GM = more_GRS.reshape(len(more_GRS), -1)
        difference_BG = flat_BM @ flat_GM.T + 0.0  # no -0.0 for the reference itself
        unknown_BG = self._failed(reference) | np.isnan(sst_BR).all(1)[:, None]
        return np.where(unknown_BG, np.nan, difference_BG)

    def drawn(self, counts_BS: np.ndarray) -> Callable[[int], np.ndarray]:
        """`differences` on these resamples, by reference."""
        return functools.partial(self.differences, counts_BS)

    def sd(self, reference: int) -> np.ndarray:
        """(G,) sd over repeats of the difference; NaN for a single repeat, where one has no score,
        or a point failed."""
        n_repeats, n_sites = self.error_GRS.shape[1:]
        if n_repeats < 2:
            return np.full(len(self.error_GRS), np.nan)
        sst_R = self._sst(np.ones((1, n_sites)))[0]
        less_GRS = self.error_GRS[reference] - self.error_GRS
        difference_GR = less_GRS.sum(-1) / sst_R
        sd_G = difference_GR.std(1, ddof=1)
        return np.where(self._failed(reference), np.nan, sd_G)

    def _sst(self, counts_BS: np.ndarray) -> np.ndarray:
        """(B, R) weighted sum of squares around the mean; NaN for unknown or equal truths."""
        w_RB, wy_RB, wyy_RB = self.truth_3RS @ counts_BS.T
        sst_RB = wyy_RB - wy_RB**2 / np.where(w_RB > 0, w_RB, 1)
        # equal truths leave a rounding error
        return np.where(sst_RB > 1e-12 * wyy_RB, sst_RB, np.nan).T

    def _failed(self, reference: int) -> np.ndarray:
        return self.failed_G | self.failed_G[reference]


@dataclass(frozen=True)
class TargetSums:
    """The same for scores that look at each target by itself: sums by target, K of them."""

    by: Score
    error_GRSK: np.ndarray
    """Of squared or absolute errors; 0 for points that failed."""
    truth_3RSK: np.ndarray
    """Of 1, y and y^2, over the pairs that count."""
    failed_G: np.ndarray

    @property
    def n_sites(self) -> int:
        return self.error_GRSK.shape[2]

    @classmethod
    def of(
        cls,
        by: Score,
        truth_NK: np.ndarray,
        prediction_GRNK: np.ndarray,
        site_N: np.ndarray,
    ) -> "TargetSums":
        """Inputs as in `compare`. Sites of which no image counts are left out."""
        held_out_RN = ~np.isnan(prediction_GRNK).all((0, 3))
        scored_K = np.array(by.weights) > 0
        counts_RNK = held_out_RN[..., None] & ~np.isnan(truth_NK) & scored_K
        sites = _Sites.of(site_N, counts_RNK.any((0, 2)))
        truth_NK = np.nan_to_num(truth_NK)
        powers = [sites.sums_NK(counts_RNK * truth_NK**power) for power in range(3)]
        is_fine_GRNK = np.isfinite(prediction_GRNK) | ~counts_RNK
        failed_G = ~is_fine_GRNK.all((1, 2, 3))
        n_points = len(prediction_GRNK)
        error_GRSK = np.zeros((n_points, *powers[0].shape))
        for g in np.flatnonzero(~failed_G):
            error_RNK = by.elements(truth_NK, prediction_GRNK[g])
            error_GRSK[g] = sites.sums_NK(np.where(counts_RNK, error_RNK, 0.0))
        return cls(by, error_GRSK, np.stack(powers), failed_G)

    def differences(self, counts_BS: np.ndarray, reference: int) -> np.ndarray:
        """As `SiteSums.differences`."""
        return self.drawn(counts_BS)(reference)

    def drawn(self, counts_BS: np.ndarray) -> Callable[[int], np.ndarray]:
        """As `SiteSums.drawn`; scores are computed here, once for all references."""
        return functools.partial(self._differences_of, self._scores(counts_BS))

    def _differences_of(self, scores_BGR: np.ndarray, reference: int) -> np.ndarray:
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where no repeat has a score
            difference_BG = np.nanmean(scores_BGR - scores_BGR[:, [reference]], axis=2)
        failed_G = self.failed_G | self.failed_G[reference]
        return np.where(failed_G, np.nan, difference_BG)

    def sd(self, reference: int) -> np.ndarray:
        """As `SiteSums.sd`."""
        n_repeats = self.error_GRSK.shape[1]
        if n_repeats < 2:
            return np.full(len(self.error_GRSK), np.nan)
        (scores_GR,) = self._scores(np.ones((1, self.n_sites)))
        sd_G = (scores_GR - scores_GR[reference]).std(1, ddof=1)
        return np.where(self.failed_G | self.failed_G[reference], np.nan, sd_G)

    def _scores(self, counts_BS: np.ndarray) -> np.ndarray:
        """(B, G, R) scores where site s counts counts_BS[b, s] times; NaN where there is none."""
        n_BRK, y_BRK, yy_BRK = (_drawn_sums(counts_BS, each) for each in self.truth_3RSK)
        weight_BRK = self.by.coefficients(n_BRK, y_BRK, yy_BRK)
        scores = []
        for error_RSK in self.error_GRSK:
            error_BRK = _drawn_sums(counts_BS, error_RSK)
            error_BR = (weight_BRK * error_BRK).sum(-1)
            scores.append(self.by.from_error(error_BR, weight_BRK.any(-1)))
        return np.stack(scores, 1)


def _drawn_sums(counts_BS: np.ndarray, sum_RSK: np.ndarray) -> np.ndarray:
    """(B, R, K) sums over drawn sites."""
    return np.tensordot(counts_BS, sum_RSK, (1, 1))


def site_sums(
    by: Score,
    truth_NK: np.ndarray,
    prediction_GRNK: np.ndarray,
    site_N: np.ndarray,
) -> SiteSums | TargetSums:
    """What a score of drawn sites needs."""
    kind = SiteSums if by.name == "contest" else TargetSums
    return kind.of(by, truth_NK, prediction_GRNK, site_N)


def _interval(difference_BG: np.ndarray, n_sites: int) -> np.ndarray:
    """(2, G) ends of the interval, over resamples that have a score; NaN for points without."""
    scored = ~np.isnan(difference_BG).all(1)
    if not scored.any():
        return np.full((2, difference_BG.shape[1]), np.nan)
    return np.quantile(difference_BG[scored], interval_levels(n_sites), axis=0)
