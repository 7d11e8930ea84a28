"""Figures of predictions out of fold, of all rows, however few of them a chart draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from service.explore import out_of_fold
from service.explore.sweeps import told_targets


def of_run(run: Path, wide: pd.DataFrame) -> dict[str, Any]:
    """Of rows of `out_of_fold.by_image`: folds, and of each target with a row what is told of it.

    folds : names of those that held a photograph out, as a filter has them; none of averages.
    targets : target, n (rows whose truth and prediction are known); of a number rmse, and the least
        and the most of both; of a class accuracy, words, and counts by true, then predicted word.
    """
    told = [_of_target(run, wide, target) for target in told_targets(run)]
    return {"folds": fold_names(wide), "targets": [each for each in told if each["n"]]}


def fold_names(wide: pd.DataFrame) -> list[str]:
    """`2`, or of several repeats `1.2`, in order; of averages over repeats none is told."""
    splits = wide[["repeat", "fold"]].dropna().drop_duplicates().astype(int)
    splits = splits.sort_values(["repeat", "fold"])
    has_repeats = splits["repeat"].nunique() > 1
    pairs = splits.itertuples(index=False, name=None)
    return [f"{repeat}.{fold}" if has_repeats else str(fold) for repeat, fold in pairs]


def _of_target(run: Path, wide: pd.DataFrame, target: str) -> dict[str, Any]:
    rows = out_of_fold.by_target(run, wide, target)
    rows = rows[np.isfinite(rows["true"]) & np.isfinite(rows["predicted"])]
    about = {"target": target, "n": len(rows)}
    if not len(rows):
        return about
    if "predicted_word" in rows and (rows["predicted_word"] != "").any():
        return about | _of_words(rows)
    both = rows[["true", "predicted"]]
    return about | {
        "rmse": float(np.sqrt((rows["error"] ** 2).mean())),
        "least": float(both.min(axis=None)),
        "most": float(both.max(axis=None)),
    }


def _of_words(rows: pd.DataFrame) -> dict[str, Any]:
    counts = pd.crosstab(rows["true_word"], rows["predicted_word"])
    words = sorted({*counts.index, *counts.columns})
    counts = counts.reindex(index=words, columns=words, fill_value=0)
    return {
        "accuracy": float((rows["true_word"] == rows["predicted_word"]).mean()),
        "words": words,
        "counts": counts.to_numpy().tolist(),
    }


def of_two(both: pd.DataFrame, is_class: bool) -> dict[str, Any]:
    """Of rows of `beside.photographs` of one target: n, on how many b is nearer, the most error."""
    gain_N = gain(both, is_class)
    errors = both[["error_a", "error_b"]].abs()
    return {
        "n": int(np.isfinite(gain_N).sum()),
        "nearer": int((gain_N > 0).sum()),
        "most": float(errors.max(axis=None)) if len(both) else None,
    }


def gain(both: pd.DataFrame, is_class: bool) -> np.ndarray:
    """(N,) by how much b is nearer to the truth than a, or surer of it; NaN where none is known."""
    if is_class:
        return (both["predicted_b"] - both["predicted_a"]).to_numpy(float)
    return (both["error_a"].abs() - both["error_b"].abs()).to_numpy(float)
