"""Predictions of heads for images they never saw, and their scores."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from featurestore.disk.interrupts import check_interrupt
from trainer.data.dataset import TrainingData, inputs_of
from trainer.data.readers import TokenReaders
from trainer.data.stream import Batch, Split, validation_batches
from trainer.heads.bank import Bank, Outputs
from trainer.score.metrics import MASSES, TARGETS, in_targets_order, target_r2, weighted_r2
from trainer.score.postprocess import most_probable


@dataclass(frozen=True)
class HeldOut:
    """What heads predict for images they never saw, raw.

    NaN where no split of a repeat holds the image out.
    """

    masses_GRN5: np.ndarray
    """Grams, MASSES order."""
    state_GRNC: np.ndarray | None
    """Probability of each State; None for kinds that know none."""

    @classmethod
    def blank(cls, bank: Bank, n_repeats: int, n_images: int) -> "HeldOut":
        def nan(n: int) -> np.ndarray:
            return np.full((bank.n_points, n_repeats, n_images, n), np.nan)

        return cls(nan(len(MASSES)), nan(bank.shape.n_states) if bank.kind.has_state else None)

    @classmethod
    def mean(cls, views: Sequence["HeldOut"]) -> "HeldOut":
        """The average over views."""
        masses = np.mean([view.masses_GRN5 for view in views], 0)
        if views[0].state_GRNC is None:
            return cls(masses, None)
        return cls(masses, np.mean([view.state_GRNC for view in views], 0))

    def put(self, out: Outputs, splits: Sequence[Split], batch: Batch) -> None:
        """Fill in a batch's outputs."""
        state = None if out.state_QGBC is None else out.state_QGBC.softmax(-1)
        for all_GRN, batch_QGB in ((self.masses_GRN5, out.masses_QGB5), (self.state_GRNC, state)):
            if all_GRN is not None:
                values = batch_QGB.double().cpu().numpy()
                for q, split in enumerate(splits):
                    held_out = batch.own_QB[q] >= 0
                    all_GRN[:, split.repeat, batch.images_QB[q][held_out]] = values[q][:, held_out]


@torch.inference_mode()
def predict_held_out(
    banks: Sequence[Bank],
    data: TrainingData,
    reader: TokenReaders,
    splits: Sequence[Split],
    batch_size: int,
    view: int = 0,
    see: Callable[[int, Outputs, Batch], None] = lambda b, outputs, batch: None,
) -> list[HeldOut]:
    """Each bank's raw predictions for every image by the heads that hold it out, in one pass over
    the rows of a view.

    see : is shown the outputs of bank b for every batch.
    """
    n_repeats = max(split.repeat for split in splits) + 1
    predictions = [HeldOut.blank(bank, n_repeats, data.n_images) for bank in banks]
    batches = validation_batches(list(splits), data.n_images, batch_size, view)
    for batch, following in itertools.zip_longest(batches, batches[1:]):
        check_interrupt()
        shared = data.inputs(batch, reader.step(batch.rows_U2), banks)
        if following:
            reader.expect(following.rows_U2)
        for b, (bank, prediction) in enumerate(zip(banks, predictions, strict=True)):
            outputs = bank(inputs_of(bank, shared))
            prediction.put(outputs, splits, batch)
            see(b, outputs, batch)
    return predictions


@dataclass(frozen=True)
class Scores:
    """A point's held-out scores: the contest's, pooled over all images unless said otherwise."""

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
        if len(self.per_repeat_R) < 2:
            return float("nan")
        return float(np.std(self.per_repeat_R, ddof=1))


def score(
    truth_N5: np.ndarray,
    prediction_RN5: np.ndarray,
    splits: Sequence[Split],
    state_N: Sequence[str],
) -> Scores:
    """Scores of (R, N, 5) predictions in TARGETS order, over the images each repeat holds out.

    A head that diverged predicts NaN and makes the score NaN: a point must not gain by failing.
    """
    truth_RN5 = _held_out_truth(truth_N5, prediction_RN5, splits)
    state = np.asarray(state_N)
    held_out = sorted(set(state[~np.isnan(truth_RN5).all((0, 2))]))
    per_repeat_R = np.asarray(weighted_r2(truth_RN5, prediction_RN5))
    per_fold = {}
    for s in splits:
        r2 = weighted_r2(truth_N5[s.val_N], prediction_RN5[s.repeat, s.val_N])
        per_fold[f"r{s.repeat:02d}_fold{s.fold}"] = float(r2)
    r2_K = target_r2(truth_RN5, prediction_RN5).mean(0)
    per_target = dict(zip(TARGETS, r2_K.tolist(), strict=True))
    per_state = {}
    for name in held_out:
        own_N = state == name
        r2_R = weighted_r2(truth_RN5[:, own_N], prediction_RN5[:, own_N])
        per_state[str(name)] = float(np.mean(r2_R))
    return Scores(per_repeat_R, per_fold, per_target, per_state)


def pooled_score(
    truth_N5: np.ndarray, prediction_RN5: np.ndarray, splits: Sequence[Split]
) -> float:
    """The mean over repeats alone, `Scores.mean`, for every epoch of every point."""
    truth_RN5 = _held_out_truth(truth_N5, prediction_RN5, splits)
    return float(np.mean(weighted_r2(truth_RN5, prediction_RN5)))


def _held_out_truth(
    truth_N5: np.ndarray, prediction_RN5: np.ndarray, splits: Sequence[Split]
) -> np.ndarray:
    """(R, N, 5) truth, NaN where a repeat's splits do not hold the image out."""
    truth_RN5 = np.full(prediction_RN5.shape, np.nan)
    for s in splits:
        truth_RN5[s.repeat, s.val_N] = truth_N5[s.val_N]
    return truth_RN5


def oof_table(
    which: str,
    data: TrainingData,
    folds: pd.DataFrame,
    splits: Sequence[Split],
    prediction_RN5: np.ndarray,
    state_RNC: np.ndarray | None,
) -> pd.DataFrame:
    """Out-of-fold predictions of one point: a row per repeat and image, grams, the truth beside
    them; States it tells."""
    truth = pd.DataFrame(
        in_targets_order(data.truth_N5), columns=[f"true_{name}" for name in TARGETS]
    )
    parts = []
    for repeat, prediction_N5 in enumerate(prediction_RN5):
        fold_N = folds[f"r{repeat:02d}"]
        held_out = fold_N.isin([s.fold for s in splits if s.repeat == repeat])
        about = pd.DataFrame(
            {
                "weights": which,
                "repeat": repeat,
                "image_id": data.catalog["image_id"],
                "site": folds["site"],
                "fold": fold_N,
            }
        )
        prediction = pd.DataFrame(prediction_N5, columns=list(TARGETS))
        part = pd.concat([about, prediction, truth], axis=1)
        if state_RNC is not None and data.states:
            part["predicted_State"] = most_probable(state_RNC[repeat], data.states)
        parts.append(part[held_out])
    return pd.concat(parts)
