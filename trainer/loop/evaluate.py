"""Predictions of heads for images they never saw, and their scores."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from featurestore.disk.interrupts import check_interrupt
from featurestore.photos.labels import class_cells
from featurestore.photos.targets import Targets
from trainer.data.dataset import TrainingData, inputs_of
from trainer.data.readers import TokenReaders
from trainer.data.stream import Batch, Split, validation_batches
from trainer.heads.bank import Bank, Inputs, Outputs
from trainer.heads.outputs import word_probabilities
from trainer.score.metrics import Score, target_r2
from trainer.score.postprocess import most_probable


@dataclass(frozen=True)
class HeldOut:
    """What heads predict for images they never saw, raw.

    NaN where no split of a repeat holds the image out.
    """

    targets: Targets
    values_GRNK: np.ndarray
    """Predicted numbers in the order of heads."""
    word_GRNC: np.ndarray | None
    """Probability of each class's words, one class after another; None for kinds that learn
    none."""

    @classmethod
    def blank(cls, bank: Bank, n_repeats: int, n_images: int) -> "HeldOut":
        def nan(n: int) -> np.ndarray:
            return np.full((bank.n_points, n_repeats, n_images, n), np.nan)

        targets = bank.shape.targets
        n_words = targets.n_words
        told = bank.kind.has_trunk and n_words > 0
        return cls(targets, nan(targets.n_predicted), nan(n_words) if told else None)

    @classmethod
    def mean(cls, views: Sequence["HeldOut"]) -> "HeldOut":
        """The average over views."""
        values = np.mean([view.values_GRNK for view in views], 0)
        targets = views[0].targets
        if views[0].word_GRNC is None:
            return cls(targets, values, None)
        return cls(targets, values, np.mean([view.word_GRNC for view in views], 0))

    def put(self, out: Outputs, splits: Sequence[Split], batch: Batch) -> None:
        """Fill in a batch's outputs."""
        predicted = out.values_QGBK[..., : self.targets.n_predicted]
        word = None
        if out.word_QGBC is not None:
            word = word_probabilities(self.targets, out.word_QGBC)
        for all_GRN, batch_QGB in ((self.values_GRNK, predicted), (self.word_GRNC, word)):
            if all_GRN is not None:
                values = batch_QGB.double().cpu().numpy()
                for q, split in enumerate(splits):
                    held_out = batch.own_QB[q] >= 0  # -1 pads splits that hold out fewer
                    images_b = batch.images_QB[q][held_out]
                    all_GRN[:, split.repeat, images_b] = values[q][:, held_out]


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

    see : is shown the outputs of bank b for every batch, in the thread that made them.
    """
    n_repeats = max(split.repeat for split in splits) + 1
    predictions = [HeldOut.blank(bank, n_repeats, data.n_images) for bank in banks]
    batches = validation_batches(list(splits), data.n_images, batch_size, view)
    for batch, following in itertools.zip_longest(batches, batches[1:]):
        check_interrupt()
        shared = data.inputs(batch, reader.step(batch.rows_U2), banks)
        if following:
            reader.expect(following.rows_U2)

        def predict(b: int, batch: Batch = batch, shared: Mapping[str, Inputs] = shared) -> None:
            outputs = banks[b](inputs_of(banks[b], shared))
            predictions[b].put(outputs, splits, batch)
            see(b, outputs, batch)

        data.each_bank(predict, range(len(banks)), shared, banks)
    return predictions


@dataclass(frozen=True)
class Scores:
    """A point's held-out scores, pooled over all images unless said otherwise."""

    per_repeat_R: np.ndarray
    per_fold: dict[str, float]
    per_target: dict[str, float]
    per_state: dict[str, float]
    others: dict[str, float] = field(default_factory=dict)
    """Other scores by name."""
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`class_report`; of other tasks than the preset."""

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
    by: Score,
    names: Sequence[str],
    truth_NK: np.ndarray,
    prediction_RNK: np.ndarray,
    splits: Sequence[Split],
    state_N: Sequence[str],
) -> Scores:
    """Scores of (R, N, K) predictions in the order of tables, over the images each repeat holds
    out.

    names : of the predicted numbers, which come first.

    A head that diverged predicts NaN and makes the score NaN: a point must not gain by failing.
    """
    truth_RNK = held_out_truth(truth_NK, prediction_RNK, splits)
    state = np.asarray(state_N)
    # a catalog that tells no State has "" for each
    is_held_out_N = ~np.isnan(truth_RNK).all((0, 2))
    held_out = sorted(set(state[is_held_out_N]) - {""})
    per_repeat_R = np.asarray(by(truth_RNK, prediction_RNK))
    per_fold = {}
    for s in splits:
        of_fold = by(truth_NK[s.val_N], prediction_RNK[s.repeat, s.val_N])
        per_fold[f"r{s.repeat:02d}_fold{s.fold}"] = float(of_fold)
    n_numbers = len(names)
    r2_K = target_r2(truth_RNK[..., :n_numbers], prediction_RNK[..., :n_numbers]).mean(0)
    per_target = dict(zip(names, r2_K.tolist(), strict=True))
    per_state = {}
    for name in held_out:
        own_N = state == name
        of_state_R = by(truth_RNK[:, own_N], prediction_RNK[:, own_N])
        per_state[str(name)] = float(np.mean(of_state_R))
    return Scores(per_repeat_R, per_fold, per_target, per_state)


def pooled_score(
    by: Score,
    truth_NK: np.ndarray,
    prediction_RNK: np.ndarray,
    splits: Sequence[Split],
) -> float | np.ndarray:
    """(...) scores of (..., R, N, K) predictions: `Scores.mean` alone, for every epoch of every
    point."""
    truth_RNK = held_out_truth(truth_NK, prediction_RNK, splits)
    return np.mean(by(truth_RNK, prediction_RNK), -1)


def held_out_truth(
    truth_NK: np.ndarray,
    prediction_RNK: np.ndarray,
    splits: Sequence[Split],
) -> np.ndarray:
    """(R, N, K) truth, NaN where a repeat's splits do not hold the image out.

    prediction_RNK : (..., R, N, K); only its shape is used.
    """
    truth_RNK = np.full(prediction_RNK.shape[-3:], np.nan)
    for s in splits:
        truth_RNK[s.repeat, s.val_N] = truth_NK[s.val_N]
    return truth_RNK


def _words_told(data: TrainingData, word_NC: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of classes: the most probable word; but for the preset, its truth and the
    probability of each word too."""
    targets = data.targets
    columns = {}
    for target, own in zip(targets.classes, targets.word_slices, strict=True):
        if not target.values:
            continue
        columns[f"predicted_{target.name}"] = most_probable(word_NC[:, own], target.values)
        if targets.preset:
            continue
        columns[f"true_{target.name}"] = class_cells(data.catalog, target)
        for word, share_N in zip(target.values, word_NC[:, own].T, strict=True):
            columns[f"probability_{target.name}_{word}"] = share_N
    return columns


def oof_table(
    which: str,
    data: TrainingData,
    folds: pd.DataFrame,
    splits: Sequence[Split],
    prediction_RNK: np.ndarray,
    word_RNC: np.ndarray | None,
) -> pd.DataFrame:
    """Out-of-fold predictions of one point: a row per repeat and image, the truth beside them;
    classes it tells."""
    targets = data.targets
    true_names = [f"true_{name}" for name in targets.names]
    truth = pd.DataFrame(data.truth_table_NK, columns=true_names)
    parts = []
    for repeat, prediction_NK in enumerate(prediction_RNK):
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
        prediction = pd.DataFrame(prediction_NK, columns=list(targets.names))
        part = pd.concat([about, prediction, truth], axis=1)
        if word_RNC is not None:
            part = part.assign(**_words_told(data, word_RNC[repeat]))
        parts.append(part[held_out])
    return pd.concat(parts)
