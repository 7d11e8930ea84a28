"""The multi-task loss of each head: smooth L1 on masses and Height, cross-entropy on State."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from featurestore.photos.labels import heights_of, masses_of
from trainer.config.sections import PointConfig
from trainer.heads.bank import Outputs
from trainer.score.metrics import MASSES


@dataclass(frozen=True)
class Labels:
    """Labels of all images, or of mixed ones: masses in grams, State as one-hot."""

    masses_N5: Tensor
    state_NC: Tensor
    """One-hot; all zero where the State is not known."""
    height_N: Tensor
    """cm; NaN where it is not known."""
    interval_QN5I: Tensor | None = None
    """One-hot, the interval of each mass, where a bank classifies them; (Q, N, 5, I), since each
    split has its own borders."""

    def take(self, images_QB: Tensor) -> "Labels":
        """Labels of (Q, B) images as (Q, 1, B, ...), to broadcast over points."""
        intervals = None
        if self.interval_QN5I is not None:
            pairs = zip(self.interval_QN5I, images_QB, strict=True)
            intervals = torch.stack([of_split[images] for of_split, images in pairs])[:, None]
        images = images_QB[:, None]
        return Labels(
            self.masses_N5[images], self.state_NC[images], self.height_N[images], intervals
        )

    def of_split(self, q: int) -> "Labels":
        """Those of one split; axis Q stays, with length 1."""
        if self.interval_QN5I is None:
            return self
        return replace(self, interval_QN5I=self.interval_QN5I[q : q + 1])

    def with_intervals(self, trains: Sequence[np.ndarray], n_intervals: int) -> "Labels":
        """The same, and for each split the interval of every mass; borders are quantiles of the
        split's training images alone."""
        masses_N5 = self.masses_N5.double().cpu().numpy()
        share = np.arange(1, n_intervals) / n_intervals
        of_splits = []
        for train_N in trains:
            borders_I5 = np.quantile(masses_N5[train_N], share, axis=0)
            # equal borders leave an interval empty
            of_splits.append((masses_N5[:, None] >= borders_I5).sum(1))
        one_hot = F.one_hot(torch.tensor(np.stack(of_splits)), n_intervals)
        return replace(self, interval_QN5I=one_hot.to(self.masses_N5))

    def mix(self, partner: "Labels", share: Tensor) -> "Labels":
        """share * these + (1 - share) * the partner's; a partner of no share spoils no Height."""

        def blend(own: Tensor, other: Tensor) -> Tensor:
            trailing = (1,) * (own.dim() - share.dim())
            s = share.reshape(*share.shape, *trailing)
            return torch.where(s == 1, own, s * own + (1 - s) * other)

        intervals = None
        if self.interval_QN5I is not None:
            intervals = blend(self.interval_QN5I, partner.interval_QN5I)
        return Labels(
            blend(self.masses_N5, partner.masses_N5),
            blend(self.state_NC, partner.state_NC),
            blend(self.height_N, partner.height_N),
            intervals,
        )


@dataclass(frozen=True)
class LossWeights:
    """Each point's settings, (G,) or (G, 3)."""

    beta: Tensor
    main: Tensor
    state: Tensor
    height: Tensor
    aux: Tensor
    interval: Tensor
    space: Tensor
    """Index in SPACES."""
    mass_unit_QG: Tensor | None = None
    """What errors of masses are divided by in each split; None: nothing."""
    height_unit_QG: Tensor | None = None
    """The same for Height."""

    def of_split(self, q: int) -> "LossWeights":
        """Those of one split; axis Q stays, with length 1."""
        if self.mass_unit_QG is None:
            return self
        units = {
            "mass_unit_QG": self.mass_unit_QG[q : q + 1],
            "height_unit_QG": self.height_unit_QG[q : q + 1],
        }
        return replace(self, **units)

    @classmethod
    def of(
        cls, points: Sequence[PointConfig], labels: Labels, trains: Sequence[np.ndarray]
    ) -> "LossWeights":
        """The settings of a bank's points; trains : (Q,) images each split learns from."""
        dtype = labels.masses_N5.dtype
        device = labels.masses_N5.device

        def stack(field: str) -> Tensor:
            values = [getattr(point.loss, field) for point in points]
            return torch.tensor(values, dtype=dtype, device=device)

        spaces = list(SPACES)
        space = torch.tensor([spaces.index(point.loss.space) for point in points], device=device)
        units = {}
        if any(point.loss.scale == "spread" for point in points):
            units_QG2 = [[_units(labels, train_N, point) for point in points] for train_N in trains]
            of_both = torch.tensor(units_QG2, dtype=dtype, device=device)
            units = {"mass_unit_QG": of_both[..., 0], "height_unit_QG": of_both[..., 1]}
        return cls(
            stack("beta"),
            stack("main_weights"),
            stack("state_weight"),
            stack("height_weight"),
            stack("aux_weight"),
            stack("interval_weight"),
            space,
            **units,
        )


SPACES = {
    "raw": lambda y: y,
    "log1p": torch.log1p,
    "sqrt": lambda y: y.clamp_min(1e-6).sqrt(),
}
"""Grams to what errors are measured in; the root's slope at 0 is infinite, so it begins above."""


def labels_of(
    catalog: pd.DataFrame, states: Sequence[str], dtype: torch.dtype, device: torch.device
) -> Labels:
    """Labels from a store's catalog. InputError names the images without valid masses."""
    state_N = catalog.get("State", pd.Series("", catalog.index)).to_numpy()
    one_hot_NC = state_N[:, None] == np.array(states)[None]
    arrays = (masses_of(catalog, MASSES), one_hot_NC, heights_of(catalog))
    tensors = [torch.tensor(np.array(x), dtype=dtype, device=device) for x in arrays]
    return Labels(*tensors)


def multi_task_loss(out: Outputs, labels: Labels, weights: LossWeights) -> Tensor:
    """(Q, G) mean loss of each head; labels are (Q, G, B, ...) or broadcast to that."""
    beta_G = weights.beta
    prediction = _in_space(out.masses_QGB5, weights.space)
    truth = _in_space(labels.masses_N5, weights.space)
    if weights.mass_unit_QG is not None:
        unit_QG11 = weights.mass_unit_QG[..., None, None]
        prediction = prediction / unit_QG11
        truth = truth / unit_QG11
    errors = smooth_l1(prediction, truth, beta_G[:, None, None]).mean(2)
    main = (errors[..., :3] * weights.main).sum(-1)
    loss = main + errors[..., 3:].mean(-1) * weights.aux
    if out.state_QGBC is not None:
        cross_entropy = -(labels.state_NC * out.state_QGBC.log_softmax(-1)).sum(-1)
        loss = loss + cross_entropy.mean(-1) * weights.state
        known = ~labels.height_N.isnan()
        height = out.height_QGB
        true_height = torch.nan_to_num(labels.height_N)
        if weights.height_unit_QG is not None:
            height = height / weights.height_unit_QG[..., None]
            true_height = true_height / weights.height_unit_QG[..., None]
        error = smooth_l1(height, true_height, beta_G[:, None])
        loss = loss + (error * known).mean(-1) * weights.height
    if out.interval_QGB5I is not None:
        cross_entropy = -(labels.interval_QN5I * out.interval_QGB5I.log_softmax(-1)).sum(-1)
        loss = loss + cross_entropy.mean((-2, -1)) * weights.interval
    return loss


def _in_space(masses_QGB5: Tensor, space_G: Tensor) -> Tensor:
    """Masses, (Q, G or 1, B, 5), in each point's own space."""
    spaces = list(SPACES.values())
    used = space_G.unique().tolist()
    if len(used) == 1:
        return spaces[used[0]](masses_QGB5)
    index = space_G.view(-1, 1, 1)
    # every space that a point uses, for all points: a selection costs less than a loop over them
    return sum(torch.where(index == i, spaces[i](masses_QGB5), 0.0) for i in used)


def smooth_l1(prediction: Tensor, truth: Tensor, beta: Tensor) -> Tensor:
    """Elementwise: quadratic below beta, linear above. Girshick 2015, arXiv:1504.08083."""
    error = (prediction - truth).abs()
    return torch.where(error < beta, error.square() / (2 * beta), error - beta / 2)


def spread(masses_n5: np.ndarray, space: str) -> float:
    """One number for how much a fold's masses vary in a space: the root of the five variances'
    mean; 1 where none varies.

    One for all five: a spread each would weigh Clover's grams above those of Total, which the
    contest's score does not.
    """
    values_n5 = SPACES[space](torch.from_numpy(masses_n5)).numpy()
    variance = float(values_n5.var(0).mean())
    return variance**0.5 if variance > 0 else 1.0


def _units(labels: Labels, train_N: np.ndarray, point: PointConfig) -> tuple[float, float]:
    """What a point's errors of masses and of Height are divided by in a split."""
    if point.loss.scale == "none":
        return 1.0, 1.0
    masses_n5 = labels.masses_N5[train_N].double().cpu().numpy()
    height_n = labels.height_N[train_N].double().cpu().numpy()
    known_n = height_n[~np.isnan(height_n)]
    height_unit = float(known_n.std()) if len(known_n) else 0.0
    return spread(masses_n5, point.loss.space), height_unit or 1.0


def initial_biases(
    labels: Labels, train_N: np.ndarray, n_tiles: int, n_patches: int
) -> dict[str, np.ndarray]:
    """Output biases at which every head starts from its training fold's means.

    A mass is shared by tiles, for `density` by patches too.
    """
    masses = labels.masses_N5[train_N].double().mean(0).cpu().numpy()
    height = labels.height_N[train_N].double().cpu().numpy()
    known = height[~np.isnan(height)]
    mean_cm = known.mean(keepdims=True) if len(known) else np.ones(1)
    return {
        "main_head.bias": inverse_softplus(masses[:3] / n_tiles),
        "aux_head.bias": inverse_softplus(masses[3:] / n_tiles),
        "height_head.bias": inverse_softplus(mean_cm),
        "density.bias": inverse_softplus(masses / n_tiles / n_patches),
    }


def inverse_softplus(y: np.ndarray) -> np.ndarray:
    """x with log(1 + exp(x)) = y, for y from 1e-6 up."""
    y = np.maximum(y, 1e-6)
    return y + np.log(-np.expm1(-y))
