"""Which points can be told apart: paired differences, with intervals by a bootstrap over sites.

Arrays in, numbers out, in float64. Photographs of one visit err together, so visits are what is
drawn anew, not photographs.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

from trainer.score.metrics import WEIGHTS

LEAST_SITES = 6
"""Fewer cannot reach 95 %: if all S sites favour one point, a sign test still gives it p = 2 / 2^S,
.06 for five."""
N_RESAMPLES = 2000


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
    truth_N5: np.ndarray,
    prediction_GRN5: np.ndarray,
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
    truth_N5 : (N, 5), grams in TARGETS order; NaN where a mass is unknown.
    prediction_GRN5 : (G points, R repeats, N, 5), grams; NaN where a repeat does not hold an image
        out, for all points alike. A point that alone is not finite where others predict has failed;
        what no point predicts counts as not held out.
    site_N : (N,) any labels.
    reference : position of the point that the others are compared with; itself gets 0.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile
    interval); Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8 (whole
    clusters are drawn, as they are).
    """
    sums = SiteSums.of(truth_N5, prediction_GRN5, site_N)
    return _against(sums, reference, draw_sites(sums.n_sites, n_resamples, seed))


def compare_pairs(
    truth_N5: np.ndarray,
    prediction_GRN5: np.ndarray,
    site_N: np.ndarray,
    seed: int,
) -> dict[tuple[int, int], Comparison]:
    """Every pair (a, b), a < b: what `compare` says of b with reference a; on one draw of sites."""
    sums = SiteSums.of(truth_N5, prediction_GRN5, site_N)
    counts_BS = draw_sites(sums.n_sites, N_RESAMPLES, seed)
    pairs = {}
    for a in range(len(prediction_GRN5)):
        for b, comparison in enumerate(_against(sums, a, counts_BS)):
            if b > a:
                pairs[a, b] = comparison
    return pairs


def _against(sums: "SiteSums", reference: int, counts_BS: np.ndarray) -> list[Comparison]:
    as_it_is = np.ones((1, sums.n_sites))
    difference_G = sums.differences(as_it_is, reference)[0]
    if sums.n_sites < LEAST_SITES:
        low_G = np.full(len(difference_G), np.nan)
        high_G = low_G
    else:
        low_G, high_G = _interval(sums.differences(counts_BS, reference), sums.n_sites)

    apart_G = (low_G > 0) | (high_G < 0)
    columns = difference_G, low_G, high_G, apart_G, sums.sd(reference)
    lists = [column.tolist() for column in columns]  # Python's numbers, for JSON
    return [Comparison(*values) for values in zip(*lists, strict=True)]


def draw_sites(n_sites: int, n_resamples: int, seed: int) -> np.ndarray:
    """(B resamples, S sites) int: how often each site is drawn."""
    if not n_sites:  # no point predicts anything
        return np.zeros((n_resamples, 0), int)
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_sites, np.full(n_sites, 1 / n_sites), size=n_resamples)


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
    low = float(ndtr(np.sqrt(n_sites / (n_sites - 1)) * stdtrit(n_sites - 1, 0.025)))
    return low, 1 - low


@dataclass(frozen=True)
class SiteSums:
    """Sums over each site's images, R repeats x S sites: all that scores of drawn sites need."""

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
        cls, truth_N5: np.ndarray, prediction_GRN5: np.ndarray, site_N: np.ndarray
    ) -> "SiteSums":
        """Inputs as in `compare`. Sites of which no image counts are left out."""
        truth_N5 = np.asarray(truth_N5, np.float64)
        prediction_GRN5 = np.asarray(prediction_GRN5, np.float64)
        held_out_RN = ~np.isnan(prediction_GRN5).all((0, 3))
        weight_RN5 = np.where(held_out_RN[..., None] & ~np.isnan(truth_N5), WEIGHTS, 0.0)
        # 1 where an image is of a site, of sites whose images count: a product sums over sites
        sites_S = np.unique(np.asarray(site_N)[weight_RN5.any((0, 2))])
        member_NS = (np.asarray(site_N)[:, None] == sites_S).astype(np.float64)
        truth_N5 = np.nan_to_num(truth_N5)
        powers_3RN = np.stack([(weight_RN5 * truth_N5**power).sum(-1) for power in range(3)])
        failed_G = ~(np.isfinite(prediction_GRN5) | (weight_RN5 == 0)).all((1, 2, 3))
        error_GRS = np.zeros((len(prediction_GRN5), len(held_out_RN), member_NS.shape[1]))
        # one at a time: a thousand points' pairs at once would be gigabytes
        for g in np.flatnonzero(~failed_G):
            error_RN5 = weight_RN5 * (truth_N5 - prediction_GRN5[g]) ** 2
            # what does not count may be NaN
            error_RN = np.where(weight_RN5 > 0, error_RN5, 0.0).sum(-1)
            error_GRS[g] = error_RN @ member_NS
        return cls(error_GRS, powers_3RN @ member_NS, failed_G)

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

    def sd(self, reference: int) -> np.ndarray:
        """(G,) sd over repeats of the difference; NaN for a single repeat, where one has no score,
        or a point failed."""
        n_repeats, n_sites = self.error_GRS.shape[1:]
        if n_repeats < 2:
            return np.full(len(self.error_GRS), np.nan)
        sst_R = self._sst(np.ones((1, n_sites)))[0]
        difference_GR = (self.error_GRS[reference] - self.error_GRS).sum(-1) / sst_R
        return np.where(self._failed(reference), np.nan, difference_GR.std(1, ddof=1))

    def _sst(self, counts_BS: np.ndarray) -> np.ndarray:
        """(B, R) weighted sum of squares around the mean; NaN for unknown or equal truths."""
        w_RB, wy_RB, wyy_RB = self.truth_3RS @ counts_BS.T
        sst_RB = wyy_RB - wy_RB**2 / np.where(w_RB > 0, w_RB, 1)
        # equal truths leave a rounding error
        return np.where(sst_RB > 1e-12 * wyy_RB, sst_RB, np.nan).T

    def _failed(self, reference: int) -> np.ndarray:
        return self.failed_G | self.failed_G[reference]


def _interval(difference_BG: np.ndarray, n_sites: int) -> np.ndarray:
    """(2, G) ends of the interval, over resamples that have a score; NaN for points without."""
    scored = ~np.isnan(difference_BG).all(1)
    if not scored.any():
        return np.full((2, difference_BG.shape[1]), np.nan)
    return np.quantile(difference_BG[scored], interval_levels(n_sites), axis=0)
