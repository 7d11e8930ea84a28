"""What a sweep costs on this machine: its plan, and the time of a step and of each fit, measured
here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.disk.durations import duration
from trainer.data.readers import TokenReaders
from trainer.data.splits import describe_folds
from trainer.loop.fits import FitTime, time_fits
from trainer.loop.memory import keep_freed_memory
from trainer.loop.plan import Plan, too_large
from trainer.loop.prepare import Sweep
from trainer.loop.sweep import train_step


@dataclass(frozen=True)
class Costs:
    """A plan, and how long its work takes here; nothing is timed where it would be refused."""

    plan: Plan
    folds: str
    notes: list[str]
    refused: str | None = None
    residency: str | None = None
    """Where tokens are kept meanwhile; None without heads to train."""
    step_s: float | None = None
    fits: tuple[FitTime, ...] = ()
    seconds: float | None = None
    """About what all steps and fits take."""

    def values(self) -> dict[str, Any]:
        """For machines."""
        plan = self.plan
        n_points = sum(map(len, plan.passes))
        return {
            "n_points": n_points,
            "n_splits": plan.n_splits,
            "n_heads": n_points * plan.n_splits,
            "n_regressors": plan.n_regressors * plan.n_splits,
            "n_passes": len(plan.passes),
            "n_epochs": plan.n_epochs,
            "n_steps": plan.n_steps,
            "read_bytes": plan.bytes_read,
            "reads_per_row": plan.reads_per_row,
            "memory_bytes": plan.memory_bytes,
            "step_s": self.step_s,
            "fit_s": {each.kind: each.one_s for each in self.fits},
            "seconds": self.seconds,
            "refused": self.refused,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = [f"folds    {self.folds}", str(self.plan)]
        if self.refused:
            lines.append(f"refused  {self.refused}")
        else:
            timed = []
            if self.residency:
                lines.append(f"tokens   {self.residency}")
                timed.append(f"a step takes {duration(self.step_s)}")
            timed += [f"a fit of {each.kind} {duration(each.one_s)}" for each in self.fits]
            lines.append(f"time     about {duration(self.seconds)}: {', '.join(timed)} here")
        lines += [f"note     {remark}" for remark in self.notes]
        return "\n".join(lines)


def measure_costs(sweep: Sweep) -> Costs:
    """Heads, passes, bytes and memory; time by a step and by a fit of each regressor."""
    plan = sweep.plan()
    folds = describe_folds(sweep.folds, sweep.groups)
    notes = list(sweep.remarks)
    if refusal := too_large(plan, sweep.data.device):
        return Costs(plan, folds, notes, refusal)

    keep_freed_memory()
    seconds = 0.0
    residency = None
    step_s = None
    if plan.passes:
        reader = sweep.reader()
        residency = str(reader.residency)
        step_s = _time_step(sweep, plan.passes[0], reader)
        n_validated = sum(len(split.val_N) for split in sweep.splits)
        seconds = plan.seconds(step_s, n_validated, sweep.base.trainer.batch_size)
    fits = tuple(time_fits(sweep))
    seconds += sum(each.n_fits * each.one_s for each in fits)
    return Costs(plan, folds, notes, None, residency, step_s, fits, seconds)


def _time_step(sweep: Sweep, points: Sequence[int], reader: TokenReaders) -> float:
    """Seconds of a training step of these points."""
    trainers = sweep.trainers(points)
    times = []
    # it does not matter what these heads learn: they are thrown away
    for step in range(3):
        start = time.monotonic()
        train_step(sweep, trainers, reader, 0, step % sweep.stream.n_steps)
        trainers[-1].noted()  # a device computes on after a step has been launched
        times.append(time.monotonic() - start)
    return min(times[1:])  # the first one warms up
