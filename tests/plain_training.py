"""An independent account of training: one head at a time, in plain torch, by docs/sweep.md.

Imports nothing of the trainer. A point is its resolved config, of which settings alone are read.
Axes: N photographs, V views, T tiles, P patches, D channels, B samples, C States, I intervals; the
five masses are Total, GDM, Green, Dead, Clover.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
import torch
from plain_heads import PlainOutputs, plain_head, plain_outputs, read
from plain_stream import PlainSplit, PlainStream
from scipy.stats import beta
from sklearn import config_context
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import r2_score
from torch import Tensor
from torch.nn import functional as F

SCORED = [2, 3, 4, 1, 0]
"""Green, Dead, Clover, GDM, Total: the order that masses are scored and written in."""
SCORE_WEIGHTS = np.array([0.1, 0.1, 0.1, 0.2, 0.5])
OUTPUTS = {f"{name}_head" for name in ("main", "aux", "state", "height", "interval")} | {"density"}
SPACES: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": lambda grams: grams,
    "log1p": lambda grams: (1 + grams).log(),
    "sqrt": lambda grams: grams.clamp(min=1e-6) ** 0.5,
}


@dataclass(frozen=True)
class Photographs:
    """What a store holds of N photographs, in float64."""

    cls_NVTD: Tensor
    patches_NVTPD: Tensor
    pooled_NVT5D: Tensor
    masses_N5: Tensor
    state_NC: Tensor
    """One-hot; zeros where the State is not known."""
    height_N: Tensor
    """cm; NaN where it is not known."""
    site_N: np.ndarray

    @property
    def n_tiles(self) -> int:
        return self.patches_NVTPD.shape[2]


@dataclass(frozen=True)
class Labels:
    """Of a batch, mixed where samples are."""

    masses_B5: Tensor
    state_BC: Tensor
    height_B: Tensor
    interval_B5I: Tensor | None


@dataclass
class PlainTraining:
    """One head of one split: `train` takes it through all epochs."""

    photos: Photographs
    stream: PlainStream
    split: PlainSplit
    point: Any

    def __post_init__(self) -> None:
        self.head = plain_head(self._initial())
        # the head of the averages; to make modules takes as long as to train them
        self.judged = deepcopy(self.head)
        self.average = {name: t.detach().clone() for name, t in self.head.state_dict().items()}
        self.best, self.best_epoch, self.best_merit = dict(self.average), -1, -math.inf
        self.loss_E: list[float] = []
        self.score_E: list[float] = []
        self.lr_E: list[float] = []
        self.error_E: list[float] = []
        self.held_out_EN5: list[np.ndarray] = []

        settings = self.point.optimization
        self.every = self.point.trainer.gradient_accumulation_steps
        self.n_batches = self.point.trainer.num_epochs * self.stream.n_steps
        self.n_steps = math.ceil(self.n_batches / self.every)
        # matrices alone decay, unless biases and the LayerNorm's weights are to
        matrices = [p for p in self.head.parameters() if p.dim() > 1 or settings.decay_biases]
        others = [p for p in self.head.parameters() if p.dim() == 1 and not settings.decay_biases]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, self._rate)

    def train(self) -> "PlainTraining":
        n_batches, n_steps = 0, 0
        for epoch in range(self.point.trainer.num_epochs):
            losses = []
            for step in range(self.stream.n_steps):
                loss = self._loss(epoch, step)
                (loss / self.every).backward()
                losses.append(loss.item())
                n_batches += 1
                if n_batches % self.every == 0 or n_batches == self.n_batches:
                    self.adamw.step()
                    self.adamw.zero_grad()
                    n_steps += 1
                    self._move_average(n_steps)
                    self.schedule.step()
            self.loss_E.append(float(np.mean(losses)))
            self.lr_E.append(self.schedule.get_last_lr()[0])
            self._judge(epoch)
        return self

    # -- where a head starts

    def _initial(self) -> dict[str, Tensor]:
        """Uniform within 1 / sqrt(fan in), as nn.Linear has it; outputs start at training means,
        their weights at 0 if the point asks."""
        means = self.point.optimization.initial_biases == "means"
        zero = self.point.optimization.initial_weights == "zero"
        state, biases = {}, self._starting_biases() if means else {}
        for name, shape in self._shapes.items():
            layer, part = name.rsplit(".", 1)
            if layer == "shared_mlp.1":
                values = np.ones(shape) if part == "weight" else np.zeros(shape)
            elif layer in OUTPUTS and part == "weight" and zero:
                values = np.zeros(shape)
            elif name in biases:
                values = biases[name]
            else:
                values = self._drawn(name, shape, fan_in=self._shapes[f"{layer}.weight"][1])
            state[name] = torch.from_numpy(values)
        return state

    def _drawn(self, name: str, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        own = [self.point.head.seed] if self.point.head.seed else []
        address = [self.stream.seed, self.split.repeat, self.split.fold, crc32(name.encode()), *own]
        bound = 1 / math.sqrt(fan_in)
        return np.random.default_rng(address).uniform(-1, 1, shape) * bound

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor, as docs/sweep.md lists the modules."""
        head, (n_patches, width) = self.point.head, self.photos.patches_NVTPD.shape[-2:]
        n_read = {"cls_gating": 2, "attention": 1 + head.queries, "pooled_mlp": 6}
        layers: dict[str, tuple[int, int]] = {}
        if head.kind == "density":
            layers["density"] = 5, width
        if head.kind == "cls_gating":
            layers["gate_mlp.0"] = head.gate_hidden, width
            layers["gate_mlp.2"] = n_patches, head.gate_hidden
        if head.kind in n_read:
            hidden, n_states = head.shared_hidden, self.photos.state_NC.shape[1]
            layers["shared_mlp.0"] = hidden, n_read[head.kind] * width
            outputs = {"main": 3, "state": n_states, "height": 1, "aux": 2}
            if self.point.loss.intervals:
                outputs["interval"] = 5 * self.point.loss.intervals
            layers |= {f"{name}_head": (size, hidden) for name, size in outputs.items()}

        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.weight": size for name, size in layers.items()
        }
        shapes |= {f"{name}.bias": size[:1] for name, size in layers.items()}
        if head.kind in n_read:
            shapes |= {f"shared_mlp.1.{part}": (head.shared_hidden,) for part in ("weight", "bias")}
        if head.kind == "attention":
            shapes["attention.weight"] = head.queries, width
        return shapes

    def _starting_biases(self) -> dict[str, np.ndarray]:
        """softplus^-1 of the training means, a tile's share of them; of `density` a patch's."""
        mean_5 = self.photos.masses_N5[self.split.train_N].mean(0).numpy()
        height_N = self.photos.height_N[self.split.train_N].numpy()
        height = np.nanmean(height_N, keepdims=True)

        def inverse(y: np.ndarray) -> np.ndarray:
            return np.log(np.expm1(y))

        n_tiles, n_patches = self.photos.patches_NVTPD.shape[2:4]
        return {
            "main_head.bias": inverse(mean_5[:3] / n_tiles),
            "aux_head.bias": inverse(mean_5[3:] / n_tiles),
            "height_head.bias": inverse(height),
            "density.bias": inverse(mean_5 / (n_tiles * n_patches)),
        }

    # -- what it reads

    @cached_property
    def tokens(self) -> dict[str, Tensor]:
        """Class tokens, patches, pooled vectors; normalised by the training rows if the point
        asks."""
        p = self.photos
        read_from = {"cls": p.cls_NVTD, "patches": p.patches_NVTPD, "pooled": p.pooled_NVT5D}
        if not self.point.head.normalize:
            return read_from

        train_N = self.split.train_N
        mean_NVTD, std_NVTD = p.pooled_NVT5D[..., 0, :], p.pooled_NVT5D[..., 1, :]
        patch = _normaliser(mean_NVTD[train_N], std_NVTD[train_N])
        cls = _normaliser(p.cls_NVTD[train_N])
        pooled = [
            _normaliser(p.pooled_NVT5D[train_N, ..., i, :])(p.pooled_NVT5D[..., i, :])
            for i in range(5)
        ]
        return {
            "cls": cls(p.cls_NVTD),
            "patches": patch(p.patches_NVTPD),
            "pooled": torch.stack(pooled, -2),
        }

    def _rows(self, image_B: np.ndarray, view_B: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        cls, patches, pooled = (self.tokens[name] for name in ("cls", "patches", "pooled"))
        return cls[image_B, view_B], patches[image_B, view_B], pooled[image_B, view_B]

    # -- a batch

    def _loss(self, epoch: int, step: int) -> Tensor:
        batch = self.stream.batch(self.split, epoch, step)
        mixup = self.point.augmentation.mixup
        partner_B = batch["site_partner" if mixup.kind == "same_site" else "partner"]
        share_B = self._shares(epoch, batch["uniform"])
        own = self._rows(batch["image"], batch["view"])
        other = self._rows(batch["image"][partner_B], batch["view"][partner_B])

        if mixup.kind == "pooled":
            x_BTI = _mix(share_B, read(self.head, *own), read(self.head, *other))
        else:
            mixed = [_mix(share_B, a, b) for a, b in zip(own, other, strict=True)]
            x_BTI = read(self.head, *mixed)
        out = plain_outputs(self.head, x_BTI, self._kept(epoch, step))
        return self._loss_of(out, self._labels(batch["image"], partner_B, share_B))

    def _shares(self, epoch: int, uniform_B: np.ndarray) -> Tensor:
        """Beta(alpha, alpha) in the first part of the epochs; 1 where nothing is mixed."""
        mixup, n_epochs = self.point.augmentation.mixup, self.point.trainer.num_epochs
        if mixup.kind == "none" or epoch >= n_epochs - mixup.disable_ratio * n_epochs:
            return torch.ones(len(uniform_B), dtype=torch.float64)
        return torch.from_numpy(beta.ppf(uniform_B, mixup.alpha, mixup.alpha))

    def _kept(self, epoch: int, step: int) -> Tensor | float:
        head = self.point.head
        shape = (self.stream.batch_size, self.photos.n_tiles, head.shared_hidden)
        draws = self.stream.dropout(self.split, epoch, step, shape, head.seed).astype(np.float64)
        return torch.from_numpy(draws >= head.dropout) / (1 - head.dropout)

    def _labels(self, image_B: np.ndarray, partner_B: np.ndarray, share_B: Tensor) -> Labels:
        def mixed(values: Tensor) -> Tensor:
            own = values[image_B]
            return _mix(share_B, own, own[partner_B])

        p, interval_N5I = self.photos, self._interval_N5I
        interval_B5I = None if interval_N5I is None else mixed(interval_N5I)
        return Labels(mixed(p.masses_N5), mixed(p.state_NC), mixed(p.height_N), interval_B5I)

    @cached_property
    def _interval_N5I(self) -> Tensor | None:
        """One-hot; an interval begins at its lower border, a quantile of the training masses."""
        n = self.point.loss.intervals
        if not n:
            return None
        of_mass = []
        for mass_N in self.photos.masses_N5.numpy().T:
            borders = np.quantile(mass_N[self.split.train_N], np.arange(1, n) / n)
            of_mass.append(np.searchsorted(borders, mass_N, side="right"))
        return F.one_hot(torch.from_numpy(np.stack(of_mass, 1)), n).double()

    def _loss_of(self, out: PlainOutputs, labels: Labels) -> Tensor:
        settings = self.point.loss
        space = SPACES[settings.space]
        mass_unit, height_unit = self._units
        guess_B5, truth_B5 = space(out.masses_5) / mass_unit, space(labels.masses_B5) / mass_unit

        def smooth_l1(guess: Tensor, truth: Tensor) -> Tensor:
            return F.smooth_l1_loss(guess, truth, beta=settings.beta)

        loss = settings.aux_weight * smooth_l1(guess_B5[:, 3:], truth_B5[:, 3:])
        for k, weight in enumerate(settings.main_weights):
            loss = loss + weight * smooth_l1(guess_B5[:, k], truth_B5[:, k])
        if out.state_C is not None:
            loss = loss + settings.state_weight * F.cross_entropy(out.state_C, labels.state_BC)
            known_B = ~labels.height_B.isnan()
            if known_B.any():  # unknown ones count as samples without an error
                height = smooth_l1(
                    out.height[known_B] / height_unit, labels.height_B[known_B] / height_unit
                )
                loss = loss + settings.height_weight * height * known_B.double().mean()
        if out.interval_5I is not None:
            logits, labels_BI = out.interval_5I.flatten(0, 1), labels.interval_B5I.flatten(0, 1)
            loss = loss + settings.interval_weight * F.cross_entropy(logits, labels_BI)
        return loss

    @cached_property
    def _units(self) -> tuple[float, float]:
        """Grams (in the loss's space) and centimetres that errors are counted in: the training
        rows' root mean square distance from each mass's mean, and of Height from its own."""
        settings = self.point.loss
        if settings.scale == "none":
            return 1.0, 1.0
        train_N = self.split.train_N
        values_n5 = SPACES[settings.space](self.photos.masses_N5[train_N])
        squares_n5 = (values_n5 - values_n5.mean(0)) ** 2
        height_n = self.photos.height_N[train_N]
        known_n = height_n[~height_n.isnan()]
        return squares_n5.mean().sqrt().item(), known_n.std(correction=0).item()

    # -- the optimiser's schedule, the average

    def _rate(self, n_done: int) -> float:
        """Part of the peak rate: linear warm-up, then half a cosine to zero."""
        settings = self.point.optimization
        warm = settings.warmup_rate * self.n_steps
        if n_done < warm and settings.warmup_from_zero:
            return n_done / warm
        if n_done < warm:
            return (n_done + 1) / (int(warm) + 1)
        return 0.5 + 0.5 * math.cos(math.pi * (n_done - warm) / max(1, self.n_steps - warm))

    def _move_average(self, n_steps: int) -> None:
        settings = self.point.optimization
        start = settings.ema_start_ratio * self.n_steps + settings.ema_delay
        begun = settings.use_ema and n_steps > start
        decay = settings.ema_decay if begun else 0.0
        for name, tensor in self.head.state_dict().items():
            self.average[name] = decay * self.average[name] + (1 - decay) * tensor

    # -- after an epoch

    def _judge(self, epoch: int) -> None:
        """Predict what is held out with the averages, note errors and score, keep the best
        averages."""
        val_N, truth_N5 = self.split.val_N, self.photos.masses_N5.numpy()[:, SCORED]
        self.judged.load_state_dict(self.average)
        held_out_N5 = np.full(truth_N5.shape, np.nan)
        held_out_N5[val_N] = self._predict()
        score = score_of(truth_N5[val_N], held_out_N5[val_N])
        merit = -self._held_out_loss() if self.point.trainer.best_by == "loss" else score
        if merit > self.best_merit:
            self.best_merit, self.best_epoch, self.best = merit, epoch, dict(self.average)
        errors_n5 = (held_out_N5[val_N] - truth_N5[val_N]) ** 2
        self.error_E.append(float((errors_n5 * SCORE_WEIGHTS).sum()))
        self.score_E.append(score)
        self.held_out_EN5.append(held_out_N5)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """The training's loss of the averages, without mixing or dropout, over what is held out."""
        val_N = self.split.val_N
        x_BTI = read(self.judged, *self._rows(val_N, np.zeros_like(val_N)))
        nobody_else = torch.ones(len(val_N), dtype=torch.float64)
        labels = self._labels(val_N, np.arange(len(val_N)), nobody_else)
        return self._loss_of(plain_outputs(self.judged, x_BTI), labels).item()

    @torch.no_grad()
    def _predict(self) -> np.ndarray:
        """(n, 5) constrained masses of the plain view of what is held out, as they are scored, by
        the averages."""
        val_N = self.split.val_N
        x_BTI = read(self.judged, *self._rows(val_N, np.zeros_like(val_N)))
        raw_n5 = plain_outputs(self.judged, x_BTI).masses_5.numpy()
        # scikit-learn would look at its arguments longer than it computes
        with config_context(assume_finite=True, skip_parameter_validation=True):
            constraints = self.point.inference.constraints
            return np.stack([balanced(raw_5[:3], constraints) for raw_5 in raw_n5])


def balanced(total_gdm_green: np.ndarray, constraints: str) -> np.ndarray:
    """Five masses as they are scored, from three that are made to fall from Total to Green."""
    if constraints == "order":
        weights = [0.5, 0.2, 0.1]
        ordered = isotonic_regression(
            total_gdm_green, sample_weight=weights, y_min=0, increasing=False
        )
        total, gdm, green = ordered
    else:
        green = max(total_gdm_green[2], 0)
        gdm = max(total_gdm_green[1], green)
        total = max(total_gdm_green[0], gdm)
    return np.array([green, total - gdm, gdm - green, gdm, total])


def score_of(truth_n5: np.ndarray, guess_n5: np.ndarray) -> float:
    """The contest's score: one R2 over all pairs, each weighted by its target."""
    weights_n5 = np.broadcast_to(SCORE_WEIGHTS, truth_n5.shape)
    return r2_score(truth_n5.ravel(), guess_n5.ravel(), sample_weight=weights_n5.ravel())


def _mix(share_B: Tensor, own_B: Tensor, other_B: Tensor) -> Tensor:
    """A sample that keeps all of its own is not touched by what its partner lacks."""
    share = share_B.view(-1, *(1,) * (own_B.dim() - 1))
    return torch.where(share == 1, own_B, share * own_B + (1 - share) * other_B)


def _normaliser(mean_NVTD: Tensor, std_NVTD: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """(x - mean) / std by moments of rows; a channel that hardly varies keeps a least std."""
    means_D2 = mean_NVTD.flatten(0, -2)
    squares_D2 = means_D2**2 if std_NVTD is None else means_D2**2 + std_NVTD.flatten(0, -2) ** 2
    mean_D, square_D = means_D2.mean(0), squares_D2.mean(0)
    least_D = 0.01**2 * square_D + 1e-12
    std_D = torch.maximum(square_D - mean_D**2, least_D).sqrt()
    return lambda x: (x - mean_D) / std_D
