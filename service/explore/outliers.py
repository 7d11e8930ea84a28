"""Which sealed images' rows are outliers by the statistics stored with them, worst first."""

import numpy as np
import pandas as pd

from featurestore.format.spec import STATS
from featurestore.store import FeatureStore

FEWEST = 20  # sealed images; the spread of fewer says too little to call one of them an outlier
# robust standard deviations. In the demo a black, a white and a noisy picture are beyond it (5.6 to
# 9.2), and none of its 357 photographs in four views is; of 20 views x 10 statistics x 100,000
# normal images some 10 would be, by chance
OUTLYING = 5.0
# of a normal distribution, by its median and mean absolute deviation
MAD_TO_SD = 1.4826
MEAN_TO_SD = 1.2533
HALF_STEP = 2.0**-11  # relative step of float16: tokens that differ by less do not differ


def outliers(store: FeatureStore) -> pd.DataFrame:
    """Sealed images' rows that are not finite, or far from others by their statistics.

    Far is measured among the rows of their view; the worst come first.

    Per view and statistic (least, greatest, mean, sd, mean norm, of class and of patch tokens) the
    score is the distance from the median in robust standard deviations: 1.4826 times the median
    absolute deviation; 1.2533 times the mean one where more than half are equal (Iglewicz and
    Hoaglin 1993, How to detect and handle outliers); at least float16's step. Of a row the
    statistic with the greatest score counts, and it is an outlier from OUTLYING on. Stores of fewer
    than FEWEST sealed images have only rows that are not finite. No token is read.

    Returns image_id, view, what (`cls_max`, `patch_non_finite`, ...), value, typical (the median),
    score; what is not finite comes first, NaN as its score.
    """
    images_N = store.sealed
    stats_NVS = store.array("stats")[images_N]
    # view by view: what is usual of darker photographs is not of others
    parts = []
    for v, name in enumerate(store.view_names):
        of_view = outlying_rows(stats_NVS[:, v], store.spec.has_patches)
        parts.append(of_view.assign(view=name))
    found = pd.concat(parts, ignore_index=True)
    ids_N = np.array(store.image_ids, object)
    found["image_id"] = ids_N[images_N[found.pop("row")]]
    # lexsort sorts by its last key first: by score, and what has none by how much is not finite
    n_bad = found["value"].where(found["score"].isna(), 0)
    order = np.lexsort([-n_bad, -found["score"].fillna(np.inf)])
    columns = ["image_id", "view", "what", "value", "typical", "score"]
    return found.iloc[order].reset_index(drop=True)[columns]


def outlying_rows(stats_NS: np.ndarray, has_patches: bool = True) -> pd.DataFrame:
    """Those of one view: row, what, value, typical, score."""
    kinds = ("cls", "patch") if has_patches else ("cls",)
    fields = dict(zip(STATS, stats_NS.T, strict=True))
    bad_N2 = np.stack([fields[f"{kind}_non_finite"] for kind in kinds], 1)
    bad = np.flatnonzero(bad_N2.any(1))
    worst = bad_N2[bad].argmax(1)
    names = np.array([f"{kind}_non_finite" for kind in kinds], object)
    found = pd.DataFrame(
        {
            "row": bad,
            "what": names[worst],
            "value": bad_N2[bad, worst],
            "typical": 0.0,
            "score": np.nan,
        }
    )
    fine = np.flatnonzero(~bad_N2.any(1))
    if len(fine) < FEWEST:
        return found

    compared = {}
    for kind in kinds:
        for name in ("min", "max", "mean", "norm"):
            compared[f"{kind}_{name}"] = fields[f"{kind}_{name}"][fine]
        variance_N = fields[f"{kind}_m2"] / np.maximum(fields[f"{kind}_count"], 1)
        compared[f"{kind}_std"] = np.sqrt(variance_N)[fine]
    return pd.concat([found, _far(compared, fine)])


def _far(compared: dict[str, np.ndarray], rows_N: np.ndarray) -> pd.DataFrame:
    values_NK = np.stack(list(compared.values()), 1)
    score_NK, median_K = robust_scores(values_NK)
    worst_N = score_NK.argmax(1)
    score_N = score_NK[np.arange(len(rows_N)), worst_N]
    far = np.flatnonzero(score_N >= OUTLYING)
    k = worst_N[far]
    return pd.DataFrame(
        {
            "row": rows_N[far],
            "what": np.array(list(compared), object)[k],
            "value": values_NK[far, k],
            "typical": median_K[k],
            "score": score_N[far],
        }
    )


def robust_scores(values_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) distances from the medians in robust standard deviations; the medians (K,).

    Distances are 0 or more; see `outliers`.
    """
    median_K = np.median(values_NK, 0)
    distance_NK = np.abs(values_NK - median_K)
    scale_K = MAD_TO_SD * np.median(distance_NK, 0)
    # a median deviation of 0 where more than half are equal: the mean one tells more
    scale_K = np.where(scale_K > 0, scale_K, MEAN_TO_SD * distance_NK.mean(0))
    scale_K = np.maximum(scale_K, HALF_STEP * np.abs(median_K))
    return distance_NK / np.maximum(scale_K, np.finfo(float).tiny), median_K
