"""Scores of predictions: what a task is judged by, and R2 of each target beside it.

Arrays in, numbers out, in float64: what is predicted and on which rows is decided elsewhere.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featurestore.photos.targets import CSIRO, Target, Targets
from trainer.data.stream import Split

SMALLER_IS_BETTER = ("rmse", "mae", "log_loss")
CLASS_SCORES = ("log_loss", "accuracy")
SCORES = ("contest", "r2", "rmse", "mae", *CLASS_SCORES)
LEAST_SHARE = 1e-12
"""Of a word, so that a log-loss is finite."""


@dataclass(frozen=True)
class Score:
    """What ranks the predictions of a task.

    contest : one weighted R2 over all targets.
    r2 : the weighted mean of the targets' own R2. A target that does not vary has none.
    rmse : the root of the weighted mean of the targets' mean squared errors; mae : the weighted
        mean of their mean absolute errors.
    log_loss, accuracy : weighted means over classes, whose columns hold each photograph's own loss
        (`class_columns`), beside a truth of 0.

    Arrays hold predicted numbers in the order of tables, then the classes that are no auxiliary
    ones, as `weights` do; a truth that is NaN does not count.
    """

    name: str
    weights: tuple[float, ...]

    @classmethod
    def of(cls, name: str | None, targets: Targets) -> "Score":
        """By its name; None is the task's own."""
        if name is None:
            name = own_score(targets)
        of_classes = tuple(target.weight for target in scored_classes(targets))
        if name in CLASS_SCORES:
            return cls(name, (0.0,) * targets.n_predicted + of_classes)
        return cls(name, targets.weights + (0.0,) * len(of_classes))

    @property
    def larger_is_better(self) -> bool:
        return self.name not in SMALLER_IS_BETTER

    def merit(self, value: float) -> float:
        """The same number, or its negative where smaller is better: to rank by."""
        return value if self.larger_is_better else -value

    def __call__(self, truth_NK: np.ndarray, prediction_NK: np.ndarray) -> float | np.ndarray:
        """(...) scores of (..., N, K) predictions; NaN where nothing is known or varies.

        Raises ValueError if N or K differ.
        """
        if self.name == "contest":
            return weighted_r2(truth_NK, prediction_NK, self.weights)
        truth, prediction, known = _alike(truth_NK, prediction_NK)
        coefficient_K = self._coefficients(np.where(known, truth, np.nan))
        error_K = np.sum(self.elements(truth, prediction), -2, where=known)
        scored = coefficient_K > 0
        error = np.sum(coefficient_K * error_K, -1, where=scored)
        return self.from_error(error, scored.any(-1))

    def split_errors(
        self,
        truth_NK: np.ndarray,
        prediction_RNK: np.ndarray,
        splits: Sequence[Split],
    ) -> np.ndarray:
        """(..., Q) what each split adds to the error of its repeat, from known pairs only; NaN
        where a head failed. The smaller, the better, whatever the score.

        prediction_RNK : (..., R repeats, N, K); of a repeat only what its splits hold out is looked
            at.
        """
        errors = []
        for repeat, same in itertools.groupby(splits, key=lambda split: split.repeat):
            weight_K = self.error_weights(truth_NK[held_out_of(splits, repeat)])
            error_N = self.errors(truth_NK, prediction_RNK[..., repeat, :, :], weight_K)
            errors += [error_N[..., split.val_N].sum(-1) for split in same]
        return np.stack(errors, -1)

    def errors(
        self,
        truth_NK: np.ndarray,
        prediction_NK: np.ndarray,
        weight_K: np.ndarray,
    ) -> np.ndarray:
        """(..., N) weighted errors of each row, from known pairs only; NaN where a head failed."""
        counts_NK = ~np.isnan(truth_NK) & (np.array(self.weights) > 0)
        difference = np.asarray(prediction_NK, np.float64) - truth_NK
        squares = self.name in ("contest", "r2", "rmse")
        measure = np.square if squares else np.abs
        elements = measure(difference, out=np.zeros_like(difference), where=counts_NK)
        return elements @ weight_K

    def error_weights(self, truth_nK: np.ndarray) -> np.ndarray:
        """(K,) what an error of each target weighs among these rows."""
        if self.name == "contest":
            return np.array(self.weights)
        return np.nan_to_num(self._coefficients(truth_nK))

    def of_errors(self, error: float, truth_nK: np.ndarray) -> float:
        """The score that errors of `split_errors`, added up over rows with these truths, come
        to."""
        if self.name == "contest":
            return 1 - error / weighted_sst(truth_nK, self.weights)
        scored = (self._coefficients(truth_nK) > 0).any()
        return float(self.from_error(error, scored))

    def elements(self, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """The error of each pair."""
        difference = prediction - truth
        if self.name in ("r2", "rmse"):
            return difference**2
        return np.abs(difference)

    def _coefficients(self, truth_NK: np.ndarray) -> np.ndarray:
        """(..., K) what a target's summed error is multiplied by; 0 where it is not scored."""
        known = ~np.isnan(truth_NK)
        n_K = known.sum(-2)
        y = np.where(known, truth_NK, 0.0)
        if self.name != "r2":
            return self.coefficients(n_K, y.sum(-2), (y**2).sum(-2))
        # about the mean, which the sum of squares would drown; equal truths may miss it by rounding
        n_1K = np.maximum(n_K, 1)[..., None, :]
        mean = y.sum(-2, keepdims=True) / n_1K
        about = np.where(known, y - mean, 0.0)
        lowest = truth_NK.min(-2, initial=np.inf, where=known)
        highest = truth_NK.max(-2, initial=-np.inf, where=known)
        squares = np.where(highest > lowest, (about**2).sum(-2), 0.0)
        return self.coefficients(n_K, np.zeros(n_K.shape), squares)

    def coefficients(self, n_K: np.ndarray, y_K: np.ndarray, yy_K: np.ndarray) -> np.ndarray:
        """The same from sums of 1, y and y^2 over the known truths of each target."""
        of_K = n_K.astype(np.float64)
        if self.name == "r2":
            sst_K = yy_K - y_K**2 / np.maximum(n_K, 1)
            # equal truths leave a rounding error
            of_K = np.where(sst_K > 1e-12 * yy_K, sst_K, 0.0)
        # shared out anew among targets that have a score: one that does not vary takes none away
        weight_K = np.where(of_K > 0, self.weights, 0.0)
        total = weight_K.sum(-1, keepdims=True)
        shares = np.divide(weight_K, total, out=np.zeros_like(weight_K), where=total > 0)
        return np.divide(shares, of_K, out=np.zeros_like(weight_K), where=of_K > 0)

    def from_error(self, error: np.ndarray, scored: np.ndarray) -> np.ndarray:
        """The score that weighted errors come to; NaN where nothing is scored."""
        value = error
        if self.name == "rmse":
            value = np.sqrt(error)
        elif self.larger_is_better:
            value = 1 - error
        return np.where(scored, value, np.nan)[()]  # of an array without axes, its number


def scored_classes(targets: Targets) -> list[Target]:
    """Classes that are no auxiliary ones."""
    return [target for target in targets.classes if not target.auxiliary]


def class_columns(
    by: Score,
    targets: Targets,
    true_NC: np.ndarray,
    share_NC: np.ndarray | None,
) -> np.ndarray:
    """(..., N, W) each photograph's own loss of each scored class: 1 where the most probable word
    is wrong for `accuracy`, else the negative log of the true word's probability. NaN where the
    truth is not known, or nothing is told.

    true_NC, share_NC : one-hot and probabilities over each class's words, one class after another.
    """
    scored = scored_classes(targets)
    if share_NC is None:
        return np.full((len(true_NC), len(scored)), np.nan)
    losses = []
    for target, own in zip(targets.classes, targets.word_slices, strict=True):
        if target not in scored:
            continue
        true_NV = true_NC[:, own]
        share_NV = share_NC[..., own]
        share_N = (true_NV * share_NV).sum(-1)
        loss_N = -np.log(np.maximum(share_N, LEAST_SHARE))
        if by.name == "accuracy":
            wrong_N = share_NV.argmax(-1) != true_NV.argmax(-1)
            # argmax of NaN is the first word, which must not count as right
            loss_N = np.where(np.isnan(share_N), np.nan, wrong_N)
        losses.append(np.where(true_NV.any(-1), loss_N, np.nan))
    shape = (*share_NC.shape[:-1], len(scored))
    return np.stack(losses, -1) if losses else np.empty(shape)


def own_score(targets: Targets) -> str:
    """What ranks a task unless its config says otherwise."""
    if targets.preset:
        return "contest"
    main = [target for target in targets.each if not target.auxiliary]
    if main and all(target.kind == "class" for target in main):
        return "log_loss"
    return "r2"


def held_out_of(splits: Sequence[Split], repeat: int) -> np.ndarray:
    """Images that the splits of a repeat hold out."""
    return np.concatenate([split.val_N for split in splits if split.repeat == repeat])


def weighted_r2(
    truth_NK: np.ndarray,
    prediction_NK: np.ndarray,
    weights: Sequence[float] = CSIRO.weights,
) -> float | np.ndarray:
    """The contest's score, 1 - sum w (y - p)^2 / sum w (y - ybar)^2, ybar the global weighted mean.

    It is not the mean of the five R2: the targets' own means score about 0.24 on the contest's
    labels, not 0.

    Parameters
    ----------
    truth_NK : (..., N, K), in the order of tables; NaN where a target is unknown, such pairs do not
        count.
    prediction_NK : (..., N, K). Leading axes of both broadcast.

    Returns
    -------
    A float, or (...) for batches; NaN where no pair is known or the known truths are all equal.

    Raises ValueError if N or K differ.
    """
    return _r2(truth_NK, prediction_NK, np.array(weights), axis=(-2, -1))


def target_r2(truth_NK: np.ndarray, prediction_NK: np.ndarray) -> np.ndarray:
    """(..., K) R2 of each target, NaN if unknown or constant. Inputs as in `weighted_r2`."""
    return _r2(truth_NK, prediction_NK, np.ones(1), axis=-2)


def weighted_sst(truth_NK: np.ndarray, weights: Sequence[float] = CSIRO.weights) -> float:
    """Denominator of `weighted_r2`; NaN where nothing varies."""
    known_NK = ~np.isnan(truth_NK)
    y = truth_NK[known_NK]
    w = np.broadcast_to(weights, truth_NK.shape)[known_NK]
    if not y.size or y.min() == y.max():
        return float("nan")
    mean = np.average(y, weights=w)
    return float(w @ (y - mean) ** 2)


def _r2(
    truth_NK: np.ndarray,
    prediction_NK: np.ndarray,
    weight_K: np.ndarray,
    axis: int | tuple[int, ...],
) -> float | np.ndarray:
    truth, prediction, known = _alike(truth_NK, prediction_NK)
    known = known & (weight_K > 0)  # what does not count may be NaN
    weight = np.where(known, weight_K, 0.0)
    # 0 and not NaN: a weight of 0 does not take a NaN out of a sum
    truth = np.where(known, truth, 0.0)
    lowest = truth.min(axis, initial=np.inf, where=known)
    highest = truth.max(axis, initial=-np.inf, where=known)
    # nothing known, or all equal: replaced below
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.sum(weight, axis, keepdims=True)
        mean = np.sum(weight * truth, axis, keepdims=True) / total
        error = np.sum(weight * (truth - prediction) ** 2, axis, where=known)
        spread = np.sum(weight * (truth - mean) ** 2, axis, where=known)
        r2 = 1 - error / spread
    return np.where(highest > lowest, r2, np.nan)[()]  # equal truths may miss their rounded mean


def _alike(
    truth_NK: np.ndarray,
    prediction_NK: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both in float64 and of one shape, and where the truth is known."""
    truth = np.asarray(truth_NK, np.float64)
    prediction = np.asarray(prediction_NK, np.float64)
    if truth.shape[-2:] != prediction.shape[-2:]:  # numpy would stretch an axis of 1 and score it
        raise ValueError(
            f"truth is {truth.shape}, prediction is {prediction.shape}: "
            "rows and targets must be the same"
        )
    truth, prediction = np.broadcast_arrays(truth, prediction)
    return truth, prediction, ~np.isnan(truth)
