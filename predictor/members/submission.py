"""Prediction tables on their way out: wide and long, in test.csv's order, each a file that appears
whole or not at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.disk.durable import appears_whole
from featurestore.errors import InputError, list_some
from featurestore.photos.targets import Targets


def check_targets(test_csv: Path, rows: pd.DataFrame, targets: Targets) -> None:
    """InputError for rows of test.csv that no submission can follow."""
    if unknown := sorted(set(rows["target_name"]) - set(targets.names)):
        raise InputError(
            f"{test_csv}: unknown targets {', '.join(unknown)}; heads predict "
            f"{', '.join(targets.names)}"
        )


def submission(rows: pd.DataFrame, predictions: pd.DataFrame, targets: Targets) -> pd.DataFrame:
    """sample_id and target of exactly these rows, in their order, from a wide table.

    rows : of test.csv, as `target_rows`. InputError for a prediction that is not finite, or an
        amount below 0.
    """
    # by name, not by place: test.csv has rows in any order, and need not ask for every target; an
    # index of both names would take gigabytes at a million photographs
    row_N = _places(predictions["image_id"], rows["image_id"])
    column_N = _places(targets.names, rows["target_name"])
    target = predictions[list(targets.names)].to_numpy()[row_N, column_N]
    amounts = [each.name for each in targets.of_kind("amount")]
    is_below = rows["target_name"].isin(amounts).to_numpy() & (target < 0)
    if len(bad := rows["sample_id"][~np.isfinite(target) | is_below]):
        raise InputError(
            f"{len(bad)} predictions are not finite, or below 0:{list_some(list(bad))}"
        )
    return pd.DataFrame({"sample_id": rows["sample_id"], "target": target})


def _places(known: Sequence[str], wanted: pd.Series) -> np.ndarray:
    """Where each of some names stands among those that are known."""
    place_N = pd.Index(known).get_indexer(wanted)
    if (place_N < 0).any():
        raise KeyError(wanted[place_N < 0].iloc[0])
    return place_N


def wide_path(out: Path) -> Path:
    """Where the wide table goes: predictions.csv, or NAME.predictions.csv beside NAME.csv."""
    return out.with_name(
        "predictions.csv" if out.name == "submission.csv" else f"{out.stem}.predictions.csv"
    )


def is_prediction(path: Path) -> bool:
    """Whether a file is empty, or begins as one of predict's tables does."""
    with open(path, "rb") as file:
        header = file.readline(1 << 20).decode(errors="replace").strip()
    names = header.split(",")
    # spreads of numbers, probabilities of classes, truths of `--oof`
    is_told = any(name.endswith(("_sd", "_probability")) for name in names)
    is_wide = "image_id" in names and (is_told or any(name.startswith("true_") for name in names))
    return not header or is_wide or names == ["sample_id", "target"]


def write_predictions(
    rows: pd.DataFrame | None,
    predictions: pd.DataFrame,
    out: Path,
    targets: Targets,
) -> Path | None:
    """Write `out` (long) and the wide table with spreads beside it, whose path is returned: both or
    none.

    rows : of test.csv; None where no submission is asked for: then `out` is the wide table.
    """
    if rows is None:
        with can_write(out), appears_whole(out) as partial:
            predictions.to_csv(partial, index=False, float_format="%.6f")
        return None
    long = submission(rows, predictions, targets)
    wide = wide_path(out)
    # left in reverse order: whoever finds `out` finds the wide table beside it
    with can_write(out), appears_whole(out) as partial, appears_whole(wide) as wide_partial:
        predictions.to_csv(wide_partial, index=False, float_format="%.6f")
        long.to_csv(partial, index=False)
    return wide


@contextmanager
def can_write(path: Path, option: str = "--out") -> Iterator[None]:
    """What the system says of writing below a path, as InputError."""
    try:
        yield
    except OSError as err:
        raise InputError(
            f"{err.filename or path}: cannot be written ({err.strerror or err}); make room, or "
            f"choose another place with {option} (--continue keeps what was finished)"
        ) from err
