"""What a sweep will cost, before it starts: heads, passes, bytes read, memory; and how points are dealt into passes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer import kinds
from trainer.config import PointConfig
from trainer.data import TrainingData
from trainer.grid import SweepConfig
from trainer.heads import HeadShape
from trainer.stream import Split, Stream

COPIES = 7  # of a head's parameters: itself, gradient, two of AdamW's, moving average, best, one on its way


@dataclass(frozen=True)
class Plan:
    """A sweep's size. `passes` holds the points of each pass over the rows; regressors need none."""

    passes: list[list[int]]
    n_regressors: int
    n_splits: int
    n_steps: int
    n_epochs: int
    bytes_read: int
    """Token bytes read from the store by all passes, training and validation."""
    reads_per_row: float
    """How often a training epoch reads each image's row; 1 would be every row once."""
    memory_bytes: int
    """Of the largest pass: parameters, gradients, optimiser, averages, activations; or of the largest fit of a regressor."""

    def seconds(self, step_s: float, n_images: int, batch_size: int) -> float:
        """About how long all passes take if a training step takes so long; validation only goes forward: a third of that."""
        return len(self.passes) * self.n_epochs * step_s * (self.n_steps + n_images / batch_size / 3)

    def __str__(self) -> str:
        n_points = sum(map(len, self.passes))
        fitted = f", and {self.n_regressors * self.n_splits} regressors" if self.n_regressors else ""
        tokens = f"{self.bytes_read / 1e9:.3g} GB of tokens" if self.bytes_read else "class tokens and pooled vectors alone"
        reads = f", {self.reads_per_row:.2f} reads of a row an epoch" if self.passes else ", once a split"
        return (f"heads    {n_points * self.n_splits} = {self.n_splits} splits x {n_points} points{fitted}\n"
                f"passes   {len(self.passes)}, {self.n_epochs} epochs of {self.n_steps} steps each\n"
                f"reads    {tokens}{reads}\n"
                f"memory   {self.memory_bytes / 1e9:.3g} GB")


def plan_sweep(config: SweepConfig, data: TrainingData, splits: Sequence[Split], stream: Stream) -> Plan:
    """The plan of a sweep over a store; points share a pass as long as their memory fits half of what is free."""
    base, tokens, splits = config.base, data.store.spec.tokens, list(splits)
    n_crops = len(splits) * base.trainer.batch_size * tokens.n_tiles
    trained = [p for p, point in enumerate(config.points) if kinds.load(point.head.kind).trained]
    needs = {p: _point_bytes(HeadShape.of(config.points[p], tokens, data.states), len(splits), n_crops) for p in trained}
    passes = _deal(needs, free_memory(data.device) // 2)
    row_bytes = data.store.layout.extents["patches"].array.row_bytes if data.store.spec.has_patches else 0
    reads = sum(len(stream.batch(0, step).rows_U2) for step in range(stream.n_steps))
    held_out = len(np.unique(np.concatenate([split.val_N for split in splits])))
    epochs = base.trainer.num_epochs
    reading = sum(any(kinds.load(config.points[p].head.kind).reads_patches for p in part) for part in passes)
    fits = [fit_bytes(point, data, splits) for p, point in enumerate(config.points) if p not in needs]
    closing = held_out * (len(base.inference.tta_indices) if base.cv.tta else 1)
    return Plan(passes, len(config.points) - len(trained), len(splits), stream.n_steps, epochs,
                reading * (epochs * (reads + held_out) + closing) * row_bytes, reads / data.n_images,
                max([sum(needs[p] for p in part) for part in passes] + fits))


def fit_bytes(point: PointConfig, data: TrainingData, splits: Sequence[Split]) -> int:
    """About what a regressor's largest fit needs."""
    n_features = len(point.head.features) * data.store.spec.tokens.width
    return kinds.load(point.head.kind).fit_bytes(max(len(split.train_N) for split in splits), n_features)


def free_memory(device: torch.device) -> int:
    """Bytes free on the device, or in main memory by the kernel's own estimate."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _point_bytes(shape: HeadShape, n_splits: int, n_crops: int) -> int:
    return 4 * (n_splits * shape.n_parameters * COPIES + n_crops * shape.n_patches * kinds.load(shape.kind).floats_per_patch)


def _deal(needs: Mapping[int, int], budget: int) -> list[list[int]]:
    """Points in order, a new pass whenever the budget is full; one point alone may exceed it."""
    passes: list[list[int]] = []
    for point, need in needs.items():
        if not passes or sum(needs[p] for p in passes[-1]) + need > budget:
            passes.append([])
        passes[-1].append(point)
    return passes
