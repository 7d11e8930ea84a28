"""Predictions of heads for images they never saw, and their scores: raw masses in, the contest's score out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from trainer.data import TrainingData
from trainer.heads import Bank
from trainer.metrics import MASSES, TARGETS, target_r2, weighted_r2
from trainer.pooling import TokenReader
from trainer.stream import Split, validation_batches


@torch.inference_mode()
def predict_held_out(banks: Sequence[Bank], data: TrainingData, reader: TokenReader, splits: Sequence[Split],
                     batch_size: int, view: int = 0) -> list[np.ndarray]:
    """Each bank's raw masses for every image by the heads that hold it out, in one pass over the rows of a view.

    Returns (G, R, N, 5) float64 for each bank, MASSES order, grams; NaN where no split holds the image out.
    """
    n_repeats = max(split.repeat for split in splits) + 1
    raw = [np.full((bank.n_points, n_repeats, data.n_images, len(MASSES)), np.nan) for bank in banks]
    for batch in validation_batches(list(splits), data.n_images, batch_size, view):
        inputs = data.inputs(batch, reader.step(batch.rows_U2))
        for bank, raw_GRN5 in zip(banks, raw, strict=True):
            masses = bank(inputs).masses_QGB5.double().cpu().numpy()
            for q, split in enumerate(splits):
                held_out = batch.own_QB[q] >= 0
                raw_GRN5[:, split.repeat, batch.images_QB[q][held_out]] = masses[q][:, held_out]
    return raw


@dataclass(frozen=True)
class Scores:
    """One point's scores by held-out predictions; every score is the contest's, pooled over all images unless said."""

    per_repeat_R: np.ndarray
    per_fold: dict[str, float]
    per_target: dict[str, float]
    per_state: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.per_repeat_R))

    @property
    def sd(self) -> float:
        """Over repeats; NaN for a single one."""
        return float(np.std(self.per_repeat_R, ddof=1)) if len(self.per_repeat_R) > 1 else float("nan")


def score(truth_N5: np.ndarray, prediction_RN5: np.ndarray, splits: Sequence[Split], state_N: Sequence[str]) -> Scores:
    """Scores of (R, N, 5) predictions in TARGETS order, each repeat over the images its splits hold out.

    A head that diverged predicts NaN and makes the score NaN: a point must not gain by failing.
    """
    truth_RN5 = _held_out_truth(truth_N5, prediction_RN5, splits)
    state = np.asarray(state_N)
    held_out = sorted(set(state[~np.isnan(truth_RN5).all((0, 2))]))
    per_fold = {f"r{s.repeat:02d}_fold{s.fold}": float(weighted_r2(truth_N5[s.val_N], prediction_RN5[s.repeat, s.val_N]))
                for s in splits}
    per_target = dict(zip(TARGETS, target_r2(truth_RN5, prediction_RN5).mean(0).tolist(), strict=True))
    per_state = {str(name): float(np.mean(weighted_r2(truth_RN5[:, state == name], prediction_RN5[:, state == name])))
                 for name in held_out}
    return Scores(np.asarray(weighted_r2(truth_RN5, prediction_RN5)), per_fold, per_target, per_state)


def pooled_score(truth_N5: np.ndarray, prediction_RN5: np.ndarray, splits: Sequence[Split]) -> float:
    """The mean over repeats alone, `Scores.mean`, for every epoch of every point."""
    return float(np.mean(weighted_r2(_held_out_truth(truth_N5, prediction_RN5, splits), prediction_RN5)))


def _held_out_truth(truth_N5: np.ndarray, prediction_RN5: np.ndarray, splits: Sequence[Split]) -> np.ndarray:
    """(R, N, 5) truth, NaN where a repeat's splits do not hold the image out."""
    truth_RN5 = np.full(prediction_RN5.shape, np.nan)
    for s in splits:
        truth_RN5[s.repeat, s.val_N] = truth_N5[s.val_N]
    return truth_RN5


def oof_table(which: str, data: TrainingData, folds: pd.DataFrame, splits: Sequence[Split], truth_N5: np.ndarray,
              prediction_RN5: np.ndarray) -> pd.DataFrame:
    """Out-of-fold predictions of one point: a row per repeat and image, grams, the truth beside them."""
    parts = []
    for repeat, prediction_N5 in enumerate(prediction_RN5):
        held_out = folds[f"r{repeat:02d}"].isin([s.fold for s in splits if s.repeat == repeat])
        part = pd.DataFrame({"weights": which, "repeat": repeat, "image_id": data.catalog["image_id"],
                             "site": folds["site"], "fold": folds[f"r{repeat:02d}"]})
        part = pd.concat([part, pd.DataFrame(prediction_N5, columns=list(TARGETS)),
                          pd.DataFrame(truth_N5, columns=[f"true_{name}" for name in TARGETS])], axis=1)
        parts.append(part[held_out])
    return pd.concat(parts)
