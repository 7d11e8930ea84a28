"""A bank under training: its loss, optimiser, best copies and errors so far.

What it is fed, and when, `trainer.loop.sweep` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from trainer.config.sections import PointConfig
from trainer.data.dataset import TrainingData
from trainer.data.stream import Batch, Split, Stream, mixup_share
from trainer.heads import kinds
from trainer.heads.bank import Bank, Inputs, Outputs
from trainer.heads.initial import new_bank
from trainer.heads.loss import Labels, LossWeights, initial_biases, multi_task_loss
from trainer.heads.sending import on_device
from trainer.heads.shape import HeadShape
from trainer.loop.optimizer import BankOptimizer
from trainer.score.constraints import constrained
from trainer.score.metrics import Score


@dataclass
class BankTrainer:
    """One bank under training, and the points it holds."""

    bank: Bank
    points: list[int]
    configs: list[PointConfig]
    mixup_kind: str
    labels: Labels
    optimizer: BankOptimizer
    weights: LossWeights
    best_QGn: Tensor
    """Each head's best averages so far, as the optimiser lays them out."""
    best_score_QG: np.ndarray
    best_epoch_QG: np.ndarray
    failed_QG: np.ndarray
    """Batch at which a head's loss was no longer finite; -1 for heads that are well."""
    is_whole: bool = True
    """False while a step or an epoch's end changes it: an exception then leaves no usable state."""
    n_batches: int = 0
    losses_QG: list[Tensor] = field(default_factory=list)
    """Of each batch of the epoch under way; on the device until they are `noted`."""
    errors_QG: list[np.ndarray] = field(default_factory=list)
    """Errors (`Score.split_errors`) on view 0 of what each split holds out, of every epoch."""

    @property
    def can_mix(self) -> bool:
        """Whether any of its points mixes photographs."""
        return any(config.augmentation.mixup.on for config in self.configs)

    @property
    def partners(self) -> str:
        """How the partners that it mixes with are chosen."""
        return "same_site" if self.mixup_kind == "same_site" else "any"

    @property
    def best(self) -> dict[str, Tensor]:
        """Tensors of each head's best averages so far."""
        return self.optimizer.layout.views(self.best_QGn)

    @property
    def averaged(self) -> Bank:
        return self.bank.with_tensors(self.optimizer.average)

    def inputs(
        self,
        shared: Inputs,
        data: TrainingData,
        stream: Stream,
        batch: Batch,
        place: tuple[int, int],
        mixing: bool,
    ) -> Inputs:
        """A batch as this bank sees it: with its own partners, shares and dropout."""
        share = self._share(batch, data) if mixing and self.can_mix else None
        return replace(
            shared,
            partners=self.partners,
            share_QGB=share,
            mix_pooled=self.mixup_kind == "pooled",
            dropout_QGBTS=self._dropout(stream, place, shared.n_tiles, data.device),
        )

    def loss(self, outputs: Outputs, inputs: Inputs) -> Tensor:
        """(Q, G) losses of one batch; labels are mixed as the inputs are."""
        labels = self.labels.take(inputs.index.image_QB)
        if inputs.share_QGB is not None:
            partner = labels.partners(inputs.index, inputs.partners)
            labels = labels.mix(partner, inputs.share_QGB)
        return multi_task_loss(outputs, labels, self.weights)

    def held_out_loss(self, outputs: Outputs, batch: Batch) -> np.ndarray:
        """(Q, G) sums of the loss over a batch's images that each split holds out."""
        sums_QG = np.zeros(self.failed_QG.shape)
        for q, own_B in enumerate(batch.own_QB):
            held_out = own_B >= 0
            if not held_out.any():
                continue
            images_1B = torch.from_numpy(batch.images_QB[q : q + 1, held_out])
            labels = self.labels.of_split(q).take(images_1B)
            weights = self.weights.of_split(q)
            loss_1G = multi_task_loss(outputs.of_split(q, held_out), labels, weights)
            # a mean over images: times their number, since batches hold out unequal numbers
            sums_QG[q] = held_out.sum() * loss_1G[0].double().cpu().numpy()
        return sums_QG

    def step(self, loss_QG: Tensor, every: int, is_last: bool) -> None:
        """Add one batch's gradients; every so many batches, and at the last, step the optimiser."""
        self.is_whole = False
        # Each head's loss alone moves it: the gradient of their sum. Of a sum, because backward
        # imports sympy (.7 s) where it is given a gradient to begin with.
        loss = loss_QG.sum()
        if every > 1:
            loss = loss * (1 / every)
        loss.backward()
        self.losses_QG.append(loss_QG.detach())
        self.n_batches += 1
        if self.n_batches % every == 0 or is_last:
            self.optimizer.step()
        self.is_whole = True

    def noted(self) -> np.ndarray:
        """(n, Q, G) losses of the epoch's batches so far, on the host; notes the first batch of
        each head whose loss is not finite.

        The only wait for a device between two steps, so it is asked for at an epoch's end.
        """
        if not self.losses_QG:
            return np.zeros((0, *self.failed_QG.shape))
        losses_nQG = torch.stack(self.losses_QG).cpu().numpy()
        is_bad_nQG = ~np.isfinite(losses_nQG)
        # argmax of booleans is the first that holds; where none does, it is not used
        first_QG = self.n_batches - len(losses_nQG) + is_bad_nQG.argmax(0)
        fails_QG = (self.failed_QG < 0) & is_bad_nQG.any(0)
        self.failed_QG[fails_QG] = first_QG[fails_QG]
        return losses_nQG

    def _share(self, batch: Batch, data: TrainingData) -> Tensor:
        """(Q, G, B) share of a sample's own row by each point's mixup."""
        mixups = [config.augmentation.mixup for config in self.configs]
        # of a point without mixup beside points that mix, every sample is wholly its own row
        whole_QB = np.ones_like(batch.uniform_QB)
        shares = [
            mixup_share(batch.uniform_QB, mixup.alpha) if mixup.on else whole_QB for mixup in mixups
        ]
        share_QGB = torch.tensor(np.stack(shares, 1), dtype=data.dtype)
        return on_device(share_QGB, data.device)

    def _dropout(
        self,
        stream: Stream,
        place: tuple[int, int],
        n_tiles: int,
        device: torch.device,
    ) -> Tensor | None:
        """(Q, G or 1, B, T, S) uniforms shared by points of a `head.seed`; None without dropout."""
        width = self.bank.shape.shared_hidden
        if not width or not any(config.head.dropout for config in self.configs):
            return None
        shape = (stream.batch_size, n_tiles, width)
        # points of one seed drop by the same draws, so that they differ by their settings alone
        seeds = [config.head.seed for config in self.configs]
        draws = {}
        for seed in set(seeds):
            uniforms = torch.from_numpy(stream.dropout(*place, shape, seed))
            draws[seed] = on_device(uniforms, device)
        if len(draws) == 1:  # one axis of length 1 serves all points
            seeds = seeds[:1]
        return torch.stack([draws[seed] for seed in seeds], 1)

    def constrained(self, raw_GRNK: np.ndarray) -> np.ndarray:
        """(G, R, N, K) raw numbers, in the order of heads -> in the order of tables, by each
        point's constraints."""
        return np.stack(
            [
                constrained(raw_RNK, self.labels.targets, config.inference.constraints)
                for raw_RNK, config in zip(raw_GRNK, self.configs, strict=True)
            ]
        )

    def keep_best(self, scored: "Scored") -> None:
        """End an epoch: copy averages that predict their own fold best so far, note errors.

        Best is of the highest score, or of the least loss where that was computed. A fold whose
        score is not defined (one image, no spread) keeps its latest weights.
        """
        score_QG = scored.merit_QG if scored.loss_QG is None else -scored.loss_QG
        # NaN is the best score before the first epoch, which any beats, even NaN
        better_QG = (score_QG > self.best_score_QG) | np.isnan(self.best_score_QG)
        self.is_whole = False
        self.optimizer.keep_best(self.best_QGn, torch.from_numpy(better_QG))
        self.best_score_QG[better_QG] = score_QG[better_QG]
        self.best_epoch_QG[better_QG] = len(self.errors_QG)
        self.errors_QG.append(scored.errors_QG)
        self.losses_QG.clear()
        self.is_whole = True


@dataclass(frozen=True)
class Scored:
    """(Q, G) fold scores and errors of what a bank's heads hold out."""

    merit_QG: np.ndarray
    """The scores, negative where smaller is better."""
    errors_QG: np.ndarray
    loss_QG: np.ndarray | None = None
    """Mean loss over the same images; None where nothing depends on it."""

    @classmethod
    def of(
        cls,
        by: Score,
        scored_GRNK: np.ndarray,
        truth_NK: np.ndarray,
        splits: Sequence[Split],
        loss_QG: np.ndarray | None = None,
    ) -> "Scored":
        """scored_GRNK : predictions as `Sweep.scored`."""
        # all points of a split at once: a call for each took .12 ms
        score_QG = [by(truth_NK[s.val_N], scored_GRNK[:, s.repeat, s.val_N]) for s in splits]
        errors_QG = by.split_errors(truth_NK, scored_GRNK, splits).T
        return cls(by.merit(np.array(score_QG)), errors_QG, loss_QG)


def can_go_on(trainers: Sequence[BankTrainer]) -> bool:
    """Whether all banks stand at the same place, none of them in the middle of a change."""
    places = {place_of(trainer) for trainer in trainers}
    return len(places) == 1 and all(trainer.is_whole for trainer in trainers)


def place_of(trainer: BankTrainer) -> tuple[int, int]:
    """Batches that a bank has learned from, and epochs that were scored."""
    return trainer.n_batches, len(trainer.errors_QG)


def new_trainers(
    points: Sequence[int],
    configs: Sequence[PointConfig],
    data: TrainingData,
    splits: Sequence[Split],
    n_batches: int,
) -> list[BankTrainer]:
    """A trainer for each group of points whose heads have one shape and one treatment of inputs.

    configs : of all points of the sweep; n_batches : of a whole training.
    """
    groups: dict[tuple, list[int]] = {}
    for p in points:
        mixup = configs[p].augmentation.mixup
        mixup_kind = mixup.kind if mixup.on else "patches"  # unmixed among mixed: its share is 1
        columns = data.columns_of(configs[p])
        shape = HeadShape.of(configs[p], data.tokens, data.targets, columns)
        key = (shape, configs[p].head.normalize, mixup_kind)
        groups.setdefault(key, []).append(p)

    trainers = []
    for (shape, _, mixup_kind), members in groups.items():
        own = [configs[p] for p in members]
        trainers.append(_new_trainer(shape, mixup_kind, members, own, data, splits, n_batches))
    return trainers


def _new_trainer(
    shape: HeadShape,
    mixup_kind: str,
    points: list[int],
    configs: list[PointConfig],
    data: TrainingData,
    splits: Sequence[Split],
    n_batches: int,
) -> BankTrainer:
    tokens = data.tokens[shape.store]
    labels = data.labels
    biases = [
        initial_biases(labels, split.train_N, tokens.n_tiles, tokens.n_patches) for split in splits
    ]
    moments = None
    # one config stands for the bank: whoever shares it agrees on this
    if configs[0].head.normalize:
        reads = kinds.load(shape.kind).reads(shape)
        parts = {part for parts in reads.values() for part in parts}
        moments = data.moments(splits, parts, shape.store)
    scale = data.column_scale(splits, shape.columns) if shape.columns else None
    bank = new_bank(shape, splits, configs, data.dtype, biases, moments, data.device, scale)
    if shape.n_intervals:
        labels = labels.with_intervals([split.train_N for split in splits], shape.n_intervals)

    every = configs[0].trainer.gradient_accumulation_steps
    n_steps = -(-n_batches // every)  # rounded up: the last batch always steps
    shape_QG = (len(splits), len(points))
    optimizer = BankOptimizer(bank, configs, n_steps)
    return BankTrainer(
        bank=bank,
        points=points,
        configs=configs,
        mixup_kind=mixup_kind,
        labels=labels,
        optimizer=optimizer,
        weights=LossWeights.of(configs, labels, [split.train_N for split in splits]),
        best_QGn=optimizer.averages(),
        best_score_QG=np.full(shape_QG, np.nan),
        best_epoch_QG=np.zeros(shape_QG, int),
        failed_QG=np.full(shape_QG, -1),
    )
