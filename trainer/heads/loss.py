"""The multi-task loss of each head: smooth L1 on numbers, cross-entropy on classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from featurestore.photos.labels import values_of, words_of
from featurestore.photos.targets import Targets
from trainer.config.sections import PointConfig
from trainer.heads.bank import Outputs
from trainer.heads.outputs import output_layers
from trainer.heads.step_index import StepIndex


@dataclass(frozen=True)
class Labels:
    """Labels of all images, or of mixed ones."""

    targets: Targets
    values_NK: Tensor
    """Numbers in the order of `targets.outputs`; NaN where one is not known."""
    word_NC: Tensor
    """One-hot over each class's words, one class after another; all zero where it is not known."""
    interval_QNAI: Tensor | None = None
    """One-hot, the interval of each amount, where a bank classifies them; (Q, N, A, I), since each
    split has its own borders."""

    def take(self, image_QB: Tensor) -> "Labels":
        """Labels of (Q, B) images as (Q, 1, B, ...), to broadcast over points."""
        intervals = None
        if self.interval_QNAI is not None:
            split_Q1 = torch.arange(len(image_QB), device=image_QB.device)[:, None]
            intervals = self.interval_QNAI[split_Q1, image_QB][:, None]
        image_Q1B = image_QB[:, None]
        return Labels(self.targets, self.values_NK[image_Q1B], self.word_NC[image_Q1B], intervals)

    def partners(self, index: StepIndex, way: str) -> "Labels":
        """Of labels taken, those of each sample's partner."""
        intervals = self.interval_QNAI
        if intervals is not None:
            intervals = index.partners_of(way, intervals)
        values = index.partners_of(way, self.values_NK)
        return Labels(self.targets, values, index.partners_of(way, self.word_NC), intervals)

    def of_split(self, q: int) -> "Labels":
        """Those of one split; axis Q stays, with length 1."""
        if self.interval_QNAI is None:
            return self
        return replace(self, interval_QNAI=self.interval_QNAI[q : q + 1])

    def with_intervals(self, trains: Sequence[np.ndarray], n_intervals: int) -> "Labels":
        """The same, and for each split the interval of every amount; borders are quantiles of the
        split's training images alone. An amount that is not known is in none."""
        n_amounts = self.targets.n_amounts
        amounts_NA = self.values_NK[:, :n_amounts].double().cpu().numpy()
        share = np.arange(1, n_intervals) / n_intervals
        of_splits = []
        for train_N in trains:
            borders_IA = np.nanquantile(amounts_NA[train_N], share, axis=0)
            # equal borders leave an interval empty; NaN is above none, and is taken out below
            of_splits.append((amounts_NA[:, None] >= borders_IA).sum(1))
        one_hot = F.one_hot(torch.tensor(np.stack(of_splits)), n_intervals)
        one_hot = one_hot.to(self.values_NK)
        one_hot[:, torch.from_numpy(np.isnan(amounts_NA))] = 0
        return replace(self, interval_QNAI=one_hot)

    def mix(self, partner: "Labels", share: Tensor) -> "Labels":
        """share * these + (1 - share) * the partner's; a partner of no share spoils no label."""

        def blend(own: Tensor, other: Tensor) -> Tensor:
            trailing = (1,) * (own.dim() - share.dim())
            s = share.reshape(*share.shape, *trailing)
            # a lerp takes a NaN over even where its share is 0
            return torch.where(s == 1, own, torch.lerp(other, own, s))

        intervals = None
        if self.interval_QNAI is not None:
            intervals = blend(self.interval_QNAI, partner.interval_QNAI)
        return Labels(
            self.targets,
            blend(self.values_NK, partner.values_NK),
            blend(self.word_NC, partner.word_NC),
            intervals,
        )


@dataclass(frozen=True)
class LossWeights:
    """Each point's settings, (G,) or (G, n)."""

    beta: Tensor
    main_GM: Tensor
    """Of the first M numbers."""
    aux: Tensor
    """Of the mean over the other predicted numbers."""
    told_GL: Tensor
    """Of numbers that are learned and not predicted."""
    word_GW: Tensor
    """Of each class."""
    interval: Tensor
    in_space: dict[str, Tensor]
    """Which points measure amounts in each space that one of them names, (G, 1, 1)."""
    bend_QGK: Tensor
    """Error of each number up to which the loss is quadratic: beta, in units of `loss.scale`; one
    for all splits or of each."""

    def of_split(self, q: int) -> "LossWeights":
        """Those of one split; axis Q stays, with length 1."""
        if len(self.bend_QGK) == 1:
            return self
        return replace(self, bend_QGK=self.bend_QGK[q : q + 1])

    @classmethod
    def of(
        cls,
        points: Sequence[PointConfig],
        labels: Labels,
        trains: Sequence[np.ndarray],
    ) -> "LossWeights":
        """The settings of a bank's points; trains : (Q,) images each split learns from."""
        dtype = labels.values_NK.dtype
        device = labels.values_NK.device

        def stack(values: Sequence) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        spaces = [point.loss.space for point in points]
        in_space = {}
        for space in dict.fromkeys(spaces):
            is_own_G = torch.tensor([own == space for own in spaces], device=device)
            in_space[space] = is_own_G[:, None, None]
        losses = [point.loss for point in points]
        beta_G = np.array([loss.beta for loss in losses], float)
        units_QGK = np.ones((1, len(points), labels.values_NK.shape[-1]))
        if any(loss.scale == "spread" for loss in losses):
            units = [[_units(labels, train_N, point) for point in points] for train_N in trains]
            units_QGK = np.array(units)
        targets = labels.targets
        if targets.preset:
            of_targets = {
                "main_GM": stack([loss.main_weights for loss in losses]),
                "told_GL": stack([[loss.height_weight] for loss in losses]),
                "word_GW": stack([[loss.state_weight] for loss in losses]),
            }
        else:
            of_numbers = [target.loss_weight for target in targets.outputs]
            of_classes = [target.loss_weight for target in targets.classes]
            of_targets = {
                "main_GM": stack([of_numbers] * len(points)),
                "told_GL": stack([[]] * len(points)),
                "word_GW": stack([of_classes] * len(points)),
            }
        return cls(
            stack(beta_G),
            aux=stack([loss.aux_weight for loss in losses]),
            interval=stack([loss.interval_weight for loss in losses]),
            in_space=in_space,
            bend_QGK=stack(units_QGK * beta_G[:, None]),
            **of_targets,
        )


SPACES = {
    "raw": lambda y: y,
    "log1p": torch.log1p,
    "sqrt": lambda y: y.clamp_min(1e-6).sqrt(),
}
"""Grams to what errors are measured in; the root's slope at 0 is infinite, so it begins above."""


def labels_of(
    catalog: pd.DataFrame,
    targets: Targets,
    dtype: torch.dtype,
    device: torch.device,
) -> Labels:
    """Labels from a store's catalog. InputError names what is missing, or no number."""
    arrays = (values_of(catalog, targets), words_of(catalog, targets))
    tensors = [torch.tensor(x, dtype=dtype, device=device) for x in arrays]
    return Labels(targets, *tensors)


def multi_task_loss(out: Outputs, labels: Labels, weights: LossWeights) -> Tensor:
    """(Q, G) mean loss of each head; labels are (Q, G, B, ...) or broadcast to that."""
    errors = _number_errors(out.values_QGBK, labels, weights)
    n_main = weights.main_GM.shape[-1]
    n_predicted = labels.targets.n_predicted
    # one split, not a slice each: its gradient is one tensor
    n_told = errors.shape[-1] - n_predicted
    main, others, told = errors.split((n_main, n_predicted - n_main, n_told), -1)
    loss = (main * weights.main_GM).sum(-1)
    if n_main < n_predicted:
        loss = loss + others.mean(-1) * weights.aux
    if out.word_QGBC is not None:
        for w, own in enumerate(labels.targets.word_slices):
            log_share = out.word_QGBC[..., own].log_softmax(-1)
            likelihood = (labels.word_NC[..., own] * log_share).sum(-1)
            loss = loss - likelihood.mean(-1) * weights.word_GW[:, w]
    if told.shape[-1]:
        loss = loss + (told * weights.told_GL).sum(-1)
    if out.interval_QGBAI is not None:
        cross_entropy = -(labels.interval_QNAI * out.interval_QGBAI.log_softmax(-1)).sum(-1)
        loss = loss + cross_entropy.mean((-2, -1)) * weights.interval
    return loss


def _number_errors(prediction_QGBK: Tensor, labels: Labels, weights: LossWeights) -> Tensor:
    """(Q, G, K) mean smooth L1 of each number; an image whose label is not known adds 0.

    Source: Girshick 2015, arXiv:1504.08083.
    """
    n_numbers = prediction_QGBK.shape[-1]  # of a kind that learns predicted ones alone, fewer
    truth = labels.values_NK[..., :n_numbers]
    known = ~truth.isnan()
    truth = torch.nan_to_num(truth)
    n_amounts = labels.targets.n_amounts
    prediction = _in_space(prediction_QGBK, weights.in_space, n_amounts)
    truth = _in_space(truth, weights.in_space, n_amounts)
    bend_QG1K = weights.bend_QGK[..., None, :n_numbers]
    # the smooth L1 of beta is beta times that of 1, of errors in units of beta
    error = F.smooth_l1_loss(prediction / bend_QG1K, truth / bend_QG1K, reduction="none")
    return (error * known).mean(2) * weights.beta[:, None]


def _in_space(values_QGBK: Tensor, in_space: Mapping[str, Tensor], n_amounts: int) -> Tensor:
    """Numbers, (Q, G or 1, B, K), the amounts among them in each point's own space."""
    n_others = values_QGBK.shape[-1] - n_amounts
    amounts, others = values_QGBK.split((n_amounts, n_others), -1)
    (first, _), *further = in_space.items()
    values = SPACES[first](amounts)
    # every space that a point uses, for all points: a selection costs less than a loop over them
    for space, is_own_G11 in further:
        values = torch.where(is_own_G11, SPACES[space](amounts), values)
    if not others.shape[-1]:
        return values
    others = others.expand(*values.shape[:-1], -1)  # of labels, which are the same for all points
    return torch.cat([values, others], -1)


def spread(values_nK: np.ndarray, space: str) -> float:
    """One number for how much a fold's masses vary in a space: the root of their variances' mean; 1
    where none varies.

    One for all five: a spread each would weigh Clover's grams above those of Total, which the
    contest's score does not.
    """
    in_space = SPACES[space](torch.from_numpy(values_nK)).numpy()
    variance = float(in_space.var(0).mean())
    return variance**0.5 if variance > 0 else 1.0


def _units(labels: Labels, train_N: np.ndarray, point: PointConfig) -> np.ndarray:
    """(K,) what a point's errors of each number are divided by in a split: its own spread, or under
    the preset one for all masses."""
    targets = labels.targets
    if point.loss.scale == "none":
        return np.ones(len(targets.outputs))
    values_nK = labels.values_NK[train_N].double().cpu().numpy()
    units = []
    for target, values_n in zip(targets.outputs, values_nK.T, strict=True):
        known_n = values_n[~np.isnan(values_n)]
        if target.kind == "amount":
            known_n = SPACES[point.loss.space](torch.from_numpy(known_n)).numpy()
        units.append(float(known_n.std()) if len(known_n) else 0.0)
    units_K = np.array([unit or 1.0 for unit in units])
    if targets.preset:
        n_predicted = targets.n_predicted
        units_K[:n_predicted] = spread(values_nK[:, :n_predicted], point.loss.space)
    return units_K


def initial_biases(
    labels: Labels,
    train_N: np.ndarray,
    n_tiles: int,
    n_patches: int,
) -> dict[str, np.ndarray]:
    """Output biases at which every head starts from its training fold's means.

    An amount is shared by tiles, for `density` by patches too. A number of which no label is known
    starts at 1.
    """
    targets = labels.targets
    values_nK = labels.values_NK[train_N].double().cpu().numpy()
    is_known_nK = ~np.isnan(values_nK)
    sums_K = np.where(is_known_nK, values_nK, 0).sum(0)
    n_K = is_known_nK.sum(0)
    mean_K = np.where(n_K > 0, sums_K / np.maximum(n_K, 1), 1.0)
    place = {target.name: k for k, target in enumerate(targets.outputs)}

    biases = {}
    for layer in output_layers(targets):
        if layer.kind != "class":
            own = [place[target.name] for target in layer.targets]
            biases[f"{layer.name}.bias"] = _raw_of(targets, layer.kind, mean_K[own], n_tiles)
    if not targets.n_predicted:
        return biases
    # in the order of `targets.outputs`, which density's one layer has too
    parts = []
    for kind in ("amount", "level", "share"):
        own = [k for k in range(targets.n_predicted) if targets.outputs[k].kind == kind]
        parts.append(_raw_of(targets, kind, mean_K[own], n_tiles * n_patches))
    return biases | {"density.bias": np.concatenate(parts)}


def _raw_of(
    targets: Targets,
    kind: str,
    mean_n: np.ndarray,
    n_parts: int,
) -> np.ndarray:
    """Raw outputs whose numbers are these means, of amounts in so many equal parts."""
    if kind == "amount":
        return inverse_softplus(mean_n / n_parts)
    if kind == "share":
        # a mean of exactly 0 or 1 would ask for an infinite output
        inside_n = np.clip(mean_n, 1e-3, 1 - 1e-3)
        return np.log(inside_n / (1 - inside_n))
    # the preset's only level is Height, behind a softplus; other levels may be negative
    return inverse_softplus(mean_n) if targets.preset else mean_n


def inverse_softplus(y: np.ndarray) -> np.ndarray:
    """x with log(1 + exp(x)) = y, for y from 1e-6 up."""
    y = np.maximum(y, 1e-6)
    # y + log(1 - exp(-y)), which does not overflow as log(exp(y) - 1) does
    return y + np.log(-np.expm1(-y))
