"""Prediction tables on their way out: wide and long, in test.csv's order, each a file that appears whole or not at all."""

from pathlib import Path

import numpy as np
import pandas as pd

from featurestore._bytes import write_whole
from featurestore.catalog import target_rows
from featurestore.errors import InputError, list_some
from trainer.metrics import TARGETS


def submission(test_csv: Path, predictions: pd.DataFrame) -> pd.DataFrame:
    """sample_id and target for exactly the rows of test.csv, in its order, from the wide table of `predict`.

    InputError for a target nobody predicts, or a prediction that is not a finite mass from 0.
    """
    rows = target_rows(test_csv)
    if unknown := sorted(set(rows["target_name"]) - set(TARGETS)):
        raise InputError(f"{test_csv}: unknown targets {', '.join(unknown)}; heads predict {', '.join(TARGETS)}")
    long = predictions.melt("image_id", list(TARGETS), "target_name", "target").set_index(["image_id", "target_name"])["target"]
    target = long.loc[list(zip(rows["image_id"], rows["target_name"], strict=True))].to_numpy()
    if len(bad := rows["sample_id"][~(np.isfinite(target) & (target >= 0))]):
        raise InputError(f"{len(bad)} predictions are no masses:{list_some(list(bad))}")
    return pd.DataFrame({"sample_id": rows["sample_id"], "target": target})


def write_predictions(test_csv: Path, predictions: pd.DataFrame, out: Path) -> None:
    """Write `out` (long, test.csv's rows) and predictions.csv beside it (wide, with spreads)."""
    long = submission(test_csv, predictions)
    write_whole(out.with_name("predictions.csv"), predictions.to_csv(index=False, float_format="%.6f"))
    write_whole(out, long.to_csv(index=False))
