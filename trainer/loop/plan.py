"""What a sweep will cost, before it starts, and how its points are dealt into passes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from featurestore.counts import count_of
from featurestore.disk.usable import Memory, usable_memory
from featurestore.errors import InputError
from trainer.config.sections import PointConfig
from trainer.data.dataset import TrainingData
from trainer.data.stream import MOST_HELD_OUT, Split, Stream
from trainer.heads import kinds
from trainer.heads.reads import store_of
from trainer.heads.shape import HeadShape
from trainer.heads.tokens import GATHERED_BYTES
from trainer.loop.grid import SweepConfig

COPIES = 13
"""Of a head's parameters in memory: itself, gradient, two of AdamW's, moving average, best, one on
its way; and six in a checkpoint that is being written."""


@dataclass(frozen=True)
class Plan:
    """A sweep's size."""

    passes: list[list[int]]
    """Points of each pass over the rows; regressors need none."""
    n_regressors: int
    n_splits: int
    n_steps: int
    n_epochs: int
    bytes_read: int
    """Token bytes read from the store by all passes, training and validation."""
    reads_per_row: float
    """How often a training epoch reads each image's row; 1 would be every row once."""
    pass_bytes: int
    """Memory of the largest pass: all copies of its parameters (see COPIES), activations."""
    fit_bytes: int
    """Memory of the largest fit of a regressor."""

    @property
    def memory_bytes(self) -> int:
        """The most that is needed at once."""
        return max(self.pass_bytes, self.fit_bytes)

    def seconds(self, step_s: float, n_validated: int, batch_size: int) -> float:
        """About how long all passes take if a training step takes so long; validation only goes
        forward: a third of that.

        n_validated : samples that the splits hold out, together.
        """
        in_steps = n_validated / (self.n_splits * batch_size) / 3  # what validating an epoch takes
        return len(self.passes) * self.n_epochs * step_s * (self.n_steps + in_steps)

    def __str__(self) -> str:
        n_points = sum(map(len, self.passes))
        fitted = ""
        if self.n_regressors:
            fitted = f", and {count_of(self.n_regressors * self.n_splits, 'regressor')}"
        tokens = "class tokens and pooled vectors alone"
        if self.bytes_read:
            tokens = f"{self.bytes_read / 1e9:.3g} GB of tokens"
        reads = ", once a split"
        if self.passes:
            reads = f", {self.reads_per_row:.2f} reads of a row an epoch"
        return (
            f"heads    {n_points * self.n_splits} = {count_of(self.n_splits, 'split')} x "
            f"{count_of(n_points, 'point')}{fitted}\n"
            f"passes   {len(self.passes)}, {count_of(self.n_epochs, 'epoch')} of "
            f"{count_of(self.n_steps, 'step')} each\n"
            f"reads    {tokens}{reads}\n"
            f"memory   {self.memory_bytes / 1e9:.3g} GB"
        )


def plan_sweep(
    config: SweepConfig,
    data: TrainingData,
    splits: Sequence[Split],
    stream: Stream,
    begun: Sequence[Sequence[int]] | None = None,
    refits: bool = False,
) -> Plan:
    """The plan of a sweep over a store.

    Which points share a pass follows from the sweep, `trainer.memory_gb` and `trainer.passes`
    alone, not from the memory that happens to be free: in float32 other passes give other
    roundings. InputError for more passes than there are points to train.

    begun : the passes of a sweep that goes on; None deals the points into new ones.
    refits : a point is trained on every image afterwards.
    """
    base = config.base
    needs = {}
    fits = []
    for p, point in enumerate(config.points):
        kind = kinds.load(point.head.kind)
        if kind.trained:
            needs[p] = heads_bytes(point, data, len(splits))
        elif refits and not kind.report_only:
            # The refit learns from more rows than any split. Trained heads need no such care: one
            # head on every image takes no more than the same point's heads of the splits.
            fits.append(fit_bytes(point, data, data.n_images))
        else:
            fits.append(fit_bytes(point, data, most_rows(splits)))
    if begun is not None:
        passes = [list(points) for points in begun]
    elif base.trainer.passes is None:
        passes = _deal(needs, int(base.trainer.memory_gb * 1e9))
    else:
        passes = _deal_into(needs, base.trainer.passes)

    row_bytes = row_bytes_of(data)
    # of the first epoch, which stands for all: they differ by which rows the folds share
    rows_of_steps = [len(stream.batch(0, step).rows_U2) for step in range(stream.n_steps)]
    n_reads = sum(rows_of_steps)
    n_held_out = len(np.unique(np.concatenate([split.val_N for split in splits])))
    # view 0 after every epoch, all views of inference at the end
    n_closing = n_held_out * (len(base.inference.tta_indices) if base.cv.tta else 1)
    rows_a_pass = base.trainer.num_epochs * (n_reads + n_held_out) + n_closing
    bytes_a_row = 0  # of all stores whose patch tokens a pass reads, over the passes
    for part in passes:
        of_pass = [config.points[p] for p in part]
        read = {store_of(each) for each in of_pass if kinds.load(each.head.kind).reads_patches}
        bytes_a_row += sum(row_bytes[name] for name in read)
    batch_size = base.trainer.batch_size
    # validation reads what all splits can hold out at once
    n_at_once = min(n_held_out, len(splits) * batch_size, max(MOST_HELD_OUT, batch_size))
    n_rows = max([*rows_of_steps, n_at_once])
    gathered = gathered_bytes(data, n_rows, row_bytes) if passes else 0
    of_passes = [sum(needs[p] for p in part) for part in passes]
    return Plan(
        passes=passes,
        n_regressors=len(fits),
        n_splits=len(splits),
        n_steps=stream.n_steps,
        n_epochs=base.trainer.num_epochs,
        bytes_read=rows_a_pass * bytes_a_row,
        reads_per_row=n_reads / data.n_images,
        pass_bytes=gathered + max(of_passes, default=0),
        fit_bytes=max(fits, default=0),
    )


def too_large(plan: Plan, device: torch.device, begun: bool = False) -> str | None:
    """Why the largest pass or fit of a regressor cannot run here; None if both can.

    begun : the sweep goes on, so its settings can no longer be changed.
    """
    elsewhere = "free memory, or go on where there is more"
    usable = device_memory(device)
    if plan.pass_bytes > usable.n_bytes:
        fewer = "lower trainer.memory_gb (or give --passes), or train fewer points at once"
        return (
            f"trainer.memory_gb: the largest pass needs {plan.pass_bytes / 1e9:.3g} GB, and on "
            f"{device} this process may use {usable}; {elsewhere if begun else fewer}"
        )
    main = usable_memory()  # regressors are fitted on the CPU
    if plan.fit_bytes > main.n_bytes:
        smaller = (
            "name fewer head.features, or leave the kind out (of kernel_ridge, svr and gpr it "
            "grows with the square of the photographs)"
        )
        return (
            f"head.features: the largest fit of a regressor needs {plan.fit_bytes / 1e9:.3g} GB, "
            f"and this process may use {main}; {elsewhere if begun else smaller}"
        )
    return None


def row_bytes_of(data: TrainingData) -> dict[str, int]:
    """Of the patch tokens of a row in each store, by its name."""
    row_bytes = dict.fromkeys(data.stores, 0)
    for name, used in data.stores.items():
        if used.store.spec.has_patches:
            row_bytes[name] = used.store.layout.extents["patches"].array.row_bytes
    return row_bytes


def gathered_bytes(data: TrainingData, n_rows: int, row_bytes: Mapping[str, int]) -> int:
    """Memory of the rows that a step gathers: on a device all of them, or as many at once as
    `GATHERED_BYTES`; beside them the same converted, where tokens are not multiplied as stored.

    row_bytes : of each store. On a CPU small rows alone are gathered, which is little.
    """
    if data.device.type == "cpu":
        return 0
    # in sizes of the stored float16: the rows themselves, and beside them what they are converted
    # to, which is twice as large in float32 and as large in bf16
    copies = {"float32": 1 + data.dtype.itemsize // 2, "float16": 1}.get(data.multiply, 2)
    return sum(copies * min(GATHERED_BYTES, n_rows * each) for each in row_bytes.values())


def refit_costs(plan: Plan, points: Sequence[PointConfig], data: TrainingData) -> Plan:
    """The plan of a finished sweep of which the refit of some points is left, one after another."""
    passes = []
    fits = []
    row_bytes = row_bytes_of(data)
    for point in points:
        if kinds.load(point.head.kind).trained:
            gathered = gathered_bytes(data, point.trainer.batch_size, row_bytes)
            passes.append(gathered + heads_bytes(point, data, 1))
        else:
            fits.append(fit_bytes(point, data, data.n_images))
    return replace(plan, pass_bytes=max(passes, default=0), fit_bytes=max(fits, default=0))


def heads_bytes(point: PointConfig, data: TrainingData, n_splits: int) -> int:
    """About what training a point's heads of so many splits needs."""
    shape = HeadShape.of(point, data.tokens, data.targets, data.columns_of(point))
    n_tiles = n_splits * point.trainer.batch_size * data.tokens[shape.store].n_tiles  # of a step
    parameters = n_splits * shape.n_parameters * COPIES
    activations = n_tiles * shape.n_patches * kinds.load(point.head.kind).floats_per_patch
    return 4 * (parameters + activations)  # bytes of a float32


def most_rows(splits: Sequence[Split]) -> int:
    """Images of the largest training side."""
    return max(len(split.train_N) for split in splits)


def fit_bytes(point: PointConfig, data: TrainingData, n_rows: int) -> int:
    """About what the fit of a regressor on so many images needs."""
    n_features = data.n_features(point)
    return kinds.load(point.head.kind).fit_bytes(n_rows, n_features)


def device_memory(device: torch.device) -> Memory:
    """Memory of the device that this process may still take."""
    if device.type == "cuda":
        return Memory(torch.cuda.mem_get_info(device)[0], "free")
    return usable_memory()


def _deal(needs: Mapping[int, int], budget: int) -> list[list[int]]:
    """Points in order, a new pass whenever the budget is full; one point alone may exceed it."""
    passes: list[list[int]] = []
    used = 0
    for point, need in needs.items():
        if not passes or used + need > budget:
            passes.append([])
            used = 0
        passes[-1].append(point)
        used += need
    return passes


def _deal_into(needs: Mapping[int, int], n_passes: int) -> list[list[int]]:
    """Points in order, in so many passes, the largest of which needs as little as can be."""
    if n_passes > len(needs):
        raise InputError(
            f"trainer.passes (--passes) {n_passes}: the grid has {count_of(len(needs), 'point')} "
            "to train in passes; give at most as many"
        )
    # the least budget that does, by bisection
    low = max(needs.values())
    high = sum(needs.values())
    while low < high:
        middle = (low + high) // 2
        if len(_deal(needs, middle)) <= n_passes:
            high = middle
        else:
            low = middle + 1
    passes = _deal(needs, low)

    while len(passes) < n_passes:  # fewer would do for this budget: halve the longest
        i = max(range(len(passes)), key=lambda i: len(passes[i]))
        longest = passes[i]
        half = len(longest) // 2
        passes[i : i + 1] = [longest[:half], longest[half:]]
    return passes
