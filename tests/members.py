"""Members of an ensemble of which only the out-of-fold table is there, drawn with known errors."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from preset import TARGETS, csiro

from predictor.members.member import Member
from trainer.loop.runs import RunFolder

CONFIG = SimpleNamespace(score=None, head=SimpleNamespace(kind="density"))


def member(run: Path, table: pd.DataFrame, weight: float = 1.0) -> Member:
    """The member of a run's folder that holds this oof.csv, and no heads."""
    run.mkdir()
    table.to_csv(run / "oof.csv", index=False)
    return Member(RunFolder(run), CONFIG, {}, csiro(), [], [], "last", weight)


def oof_table(truth_N5: np.ndarray, prediction_RN5: np.ndarray, site_N) -> pd.DataFrame:
    """An out-of-fold table as a run leaves it."""
    ids = [f"ID{i}" for i in range(len(truth_N5))]
    head = pd.DataFrame(
        {"weights": "last", "image_id": ids, "site": [f"s{s}" for s in site_N], "fold": 0}
    )
    names = [*TARGETS, *(f"true_{name}" for name in TARGETS)]
    return pd.concat(
        [
            head.assign(repeat=r).join(
                pd.DataFrame(np.hstack([prediction_N5, truth_N5]), columns=names)
            )
            for r, prediction_N5 in enumerate(prediction_RN5)
        ],
        ignore_index=True,
    )


def drawn_table(seed: int, n_sites: int, n_repeats: int = 2) -> pd.DataFrame:
    """Heads whose errors grow as the square root of the mass, and are shared in part by a site's
    photographs."""
    rng = np.random.default_rng(seed)
    site_N = np.repeat(np.arange(n_sites), rng.integers(1, 8, n_sites))
    prediction_N5 = rng.gamma(2, 15, (len(site_N), 5))
    error_N5 = rng.normal(size=(n_sites, 5))[site_N] + rng.normal(size=(len(site_N), 5))
    truth_N5 = np.maximum(prediction_N5 + np.sqrt(prediction_N5) * error_N5, 0)
    return oof_table(
        truth_N5, prediction_N5 + rng.normal(0, 0.3, (n_repeats, *prediction_N5.shape)), site_N
    )
