"""What a sweep will cost, before it starts: heads, passes, bytes read, memory; and how points are dealt into passes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.config import SweepConfig
from trainer.data import TrainingData
from trainer.heads import HeadShape
from trainer.stream import Split, Stream

COPIES = 7  # of a head's parameters: itself, gradient, two of AdamW's, moving average, best, one on its way
ACTIVATIONS = {"cls_gating": 8, "density": 24}  # floats alive for each sample and patch of one head's step


@dataclass(frozen=True)
class Plan:
    """A sweep's size. `passes` holds the points of each pass over the rows."""

    passes: list[list[int]]
    n_splits: int
    n_steps: int
    n_epochs: int
    bytes_read: int
    """Token bytes read from the store by all passes, training and validation."""
    reads_per_row: float
    """How often a training epoch reads each image's row; 1 would be every row once."""
    memory_bytes: int
    """Of the largest pass: parameters, gradients, optimiser, averages, activations."""

    def __str__(self) -> str:
        n_points = sum(map(len, self.passes))
        return (f"heads    {n_points * self.n_splits} = {self.n_splits} splits x {n_points} points\n"
                f"passes   {len(self.passes)}, {self.n_epochs} epochs of {self.n_steps} steps each\n"
                f"reads    {self.bytes_read / 1e9:.3g} GB of tokens, {self.reads_per_row:.2f} reads of a row an epoch\n"
                f"memory   {self.memory_bytes / 1e9:.3g} GB")


def plan_sweep(config: SweepConfig, data: TrainingData, splits: Sequence[Split], stream: Stream) -> Plan:
    """The plan of a sweep over a store; points share a pass as long as their memory fits half of what is free."""
    base = config.base
    samples = len(splits) * base.trainer.batch_size
    tokens = data.store.spec.tokens
    shapes = [HeadShape.of(point.head, tokens, data.states) for point in config.points]
    needs = [_point_bytes(shape, len(splits), samples * tokens.n_tiles) for shape in shapes]
    passes = _deal(needs, free_memory(data.device) // 2)
    row_bytes = data.store.layout.extents["patches"].array.row_bytes
    reads = sum(len(stream.batch(0, step).rows_U2) for step in range(stream.n_steps))
    held_out = len(np.unique(np.concatenate([split.val_N for split in splits])))
    epochs = base.trainer.num_epochs
    return Plan(passes, len(splits), stream.n_steps, epochs, len(passes) * epochs * (reads + held_out) * row_bytes,
                reads / data.n_images, max(sum(needs[p] for p in part) for part in passes))


def free_memory(device: torch.device) -> int:
    """Bytes free on the device, or in main memory by the kernel's own estimate."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _point_bytes(shape: HeadShape, n_splits: int, n_crops: int) -> int:
    return 4 * (n_splits * shape.n_parameters * COPIES + n_crops * shape.n_patches * ACTIVATIONS[shape.kind])


def _deal(needs: Sequence[int], budget: int) -> list[list[int]]:
    """Points in order, a new pass whenever the budget is full; one point alone may exceed it."""
    passes: list[list[int]] = []
    for point, need in enumerate(needs):
        if not passes or sum(needs[p] for p in passes[-1]) + need > budget:
            passes.append([])
        passes[-1].append(point)
    return passes
