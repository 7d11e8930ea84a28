"""Statistics of a store's tokens, from what was stored with each row: no token is read."""

import numpy as np
import pandas as pd

from featurestore.format.spec import STATS
from featurestore.read.reader import Reader


def stats(store: Reader) -> pd.DataFrame:
    """Count, mean, std, min, max, mean norm and non-finite values of all sealed images.

    A row per view and token kind.
    """
    kinds = ("cls", "patch") if store.spec.has_patches else ("cls",)
    sealed = store.sealed
    rows = []
    for view, name in enumerate(store.view_names):
        stats_NS = store.array("stats")[sealed, view]
        for kind in kinds:
            rows.append({"view": name, "tokens": kind, **merged(stats_NS, kind)})
    return pd.DataFrame(rows)


def merged(stats_NS: np.ndarray, kind: str) -> dict[str, float]:
    """One row's statistics of many rows' moments (Chan et al. 1979, parallel variance)."""
    fields = {}
    for s, name in enumerate(STATS):
        if name.startswith(f"{kind}_"):
            fields[name.removeprefix(f"{kind}_")] = stats_NS[:, s]

    count = fields["count"].sum()
    if not count:
        return dict.fromkeys(("count", "mean", "std", "min", "max", "norm", "non_finite"), np.nan)
    mean = (fields["count"] * fields["mean"]).sum() / count
    m2 = (fields["m2"] + fields["count"] * (fields["mean"] - mean) ** 2).sum()
    return {
        "count": count,
        "mean": mean,
        "std": np.sqrt(m2 / count),
        "min": fields["min"].min(),
        "max": fields["max"].max(),
        "norm": fields["norm"].mean(),
        "non_finite": fields["non_finite"].sum(),
    }
