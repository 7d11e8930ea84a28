"""Prediction tables on their way out: wide and long, in test.csv's order, each a file that appears
whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.disk.durable import appears_whole
from featurestore.errors import InputError, list_some
from trainer.score.metrics import TARGETS


def check_targets(test_csv: Path, rows: pd.DataFrame) -> None:
    """InputError for rows of test.csv that no submission can follow."""
    if unknown := sorted(set(rows["target_name"]) - set(TARGETS)):
        raise InputError(
            f"{test_csv}: unknown targets {', '.join(unknown)}; heads predict {', '.join(TARGETS)}"
        )


def submission(rows: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """sample_id and target of exactly these rows, in their order, from a wide table.

    rows : of test.csv, as `target_rows`. InputError for a prediction that is not a finite mass
        from 0.
    """
    long = predictions.melt("image_id", list(TARGETS), "target_name", "target")
    target_of = long.set_index(["image_id", "target_name"])["target"]
    names = list(zip(rows["image_id"], rows["target_name"], strict=True))
    target = target_of.loc[names].to_numpy()
    if len(bad := rows["sample_id"][~(np.isfinite(target) & (target >= 0))]):
        raise InputError(f"{len(bad)} predictions are no masses:{list_some(list(bad))}")
    return pd.DataFrame({"sample_id": rows["sample_id"], "target": target})


def wide_path(out: Path) -> Path:
    """Where the wide table goes: predictions.csv, or NAME.predictions.csv beside NAME.csv."""
    return out.with_name(
        "predictions.csv" if out.name == "submission.csv" else f"{out.stem}.predictions.csv"
    )


def write_predictions(rows: pd.DataFrame, predictions: pd.DataFrame, out: Path) -> None:
    """Write `out` (long) and the wide table with spreads beside it: both or none."""
    long = submission(rows, predictions)
    wide = wide_path(out)
    with can_write(out), appears_whole(out) as partial, appears_whole(wide) as wide_partial:
        predictions.to_csv(wide_partial, index=False, float_format="%.6f")
        long.to_csv(partial, index=False)


@contextmanager
def can_write(path: Path, option: str = "--out") -> Iterator[None]:
    """What the system says of writing below a path, as InputError."""
    try:
        yield
    except OSError as err:
        raise InputError(
            f"{err.filename or path}: cannot be written ({err.strerror or err}); make room, or "
            f"choose another place with {option} (--resume keeps what was finished)"
        ) from err
