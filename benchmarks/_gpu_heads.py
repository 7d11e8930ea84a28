"""Heads on a GPU, parts of gpu_day.py: what a step launches, and what a sweep of 30 heads takes."""

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _bench import finish, spread
from _gpu_day import Day
from bench_sweep import make_store
from torch.profiler import ProfilerActivity, profile

from trainer.data.readers import TokenReaders
from trainer.loop.bank_trainer import BankTrainer
from trainer.loop.grid import SweepConfig
from trainer.loop.memory import keep_freed_memory
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.sweep import score_epoch, train_step

P10_MARK_S = 15
MOST_OPERATIONS = 200
KINDS = ("cls_gating", "density", "attention", "pooled_mlp")
ROOM_BYTES = {"resident": 1 << 50, "ring": 0, "mapped": None}
"""What makes a reader keep rows where a part wants them."""

YAML = """
experiment: {{name: gpu_day, seed: 0}}
dataset: {{store: {store}}}
head: {{kind: {kind}}}
trainer: {{num_epochs: {epochs}, batch_size: 32}}
optimization: {{lr: [2e-3, 1e-3, 1e-4], weight_decay: [1e-2, 1e-3]}}
augmentation: {{mixup: {{enabled: true}}}}
inference: {{tta_indices: [0]}}
cv: {{n_folds: 5}}
"""


def store(day: Day) -> dict:
    """A store of one view a photograph, whose tokens the device draws."""
    size = day.size
    generator = torch.Generator(day.place).manual_seed(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        drawn = torch.randn(shape, generator=generator, device=day.place, dtype=torch.float32)
        return drawn.half().cpu().numpy()

    of_store = argparse.Namespace(images=size.images, grid=size.grid, width=size.width)
    start = time.perf_counter()
    made = make_store(of_store, day.folder / "features.h5", draw)
    seconds = time.perf_counter() - start
    gb = made.path.stat().st_size / 1e9
    told = f"{size.images} rows of {size.grid**2} x {size.width}: {gb:.3g} GB in {seconds:.1f} s"
    return {"told": [told], "gb": round(gb, 3), "write_s": round(seconds, 2)}


@dataclass(frozen=True)
class Training:
    """30 heads of a kind, and where their rows are."""

    sweep: Sweep
    trainers: list[BankTrainer]
    reader: TokenReaders

    @classmethod
    def of(cls, day: Day, place: str, kind: str = "cls_gating") -> "Training":
        path = day.folder / f"{kind}_{place}.yaml"
        given = {"store": day.folder / "features.h5", "kind": kind, "epochs": day.size.epochs}
        path.write_text(YAML.format(**given))
        device = "cpu" if place == "mapped" else day.device
        sweep = prepare_sweep(SweepConfig.load(path), device, check=False)
        trainers = sweep.trainers(range(len(sweep.config.points)))
        reader = TokenReaders(sweep.data.stores, sweep.data.device, ROOM_BYTES[place])
        return cls(sweep, trainers, reader)

    @property
    def n_heads(self) -> int:
        return len(self.sweep.splits) * len(self.sweep.config.points)

    def step(self, number: int) -> None:
        n_steps = self.sweep.stream.n_steps
        train_step(self.sweep, self.trainers, self.reader, number // n_steps, number % n_steps)


def launches(day: Day) -> dict:
    """What a warm step of 30 heads asks of the device: launches, copies, waits, and its time."""
    steps = {}
    told = []
    counting = "launches" if day.place.type == "cuda" else "operations, views among them"
    for kind, place in [*((kind, "resident") for kind in KINDS), ("cls_gating", "ring")]:
        each = step_of(day, Training.of(day, place, kind))
        steps[f"{kind}, {place}"] = each
        told.append(
            f"{kind + ', ' + place:22} {each['launches']} {counting} (mark {MOST_OPERATIONS}), "
            f"{each['copies']} copies, {each['n_waits']} waits; {each['step_ms']['median']:.2f} ms "
            f"a step, the device busy {each['busy_ms']:.2f}"
        )
        told += [f"    waits at {where}" for where in each["waits_at"]]
        finish({"told": told, "steps": steps})  # what there is, should time run out
    return {"told": told, "steps": steps}


def step_of(day: Day, training: Training) -> dict:
    """Of one kind: the rows of its first epoch have come, and kernels are chosen."""
    n_warm = training.sweep.stream.n_steps
    for number in range(n_warm):
        training.step(number)
    times = []
    for number in range(n_warm, n_warm + 10):
        day.wait()
        start = time.perf_counter()
        training.step(number)
        day.wait()
        times.append(1000 * (time.perf_counter() - start))

    waits_at = waits_of(day, training, n_warm + 10)

    activities = [ProfilerActivity.CPU]
    if day.place.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        training.step(n_warm + 11)
        day.wait()
    return counted(day, profiled) | {"step_ms": spread(times), "waits_at": waits_at}


def counted(day: Day, profiled: profile) -> dict:
    """Launches, copies and waits of the host; on the CPU, which has none, torch's operations."""
    events = profiled.events()
    if day.place.type != "cuda":
        outer = [each for each in events if each.cpu_parent is None and "::" in each.name]
        busy_us = sum(each.cpu_time_total for each in outer)
        calls = Counter(each.name for each in outer)
        n_launches = calls.total()
    else:
        busy_us = 0.0
        calls = Counter()
        for each in events:
            is_there = each.device_type.name == "CUDA"
            # the optimiser's own mark spans what it launched
            if is_there and not getattr(each, "is_user_annotation", False):
                busy_us += each.time_range.elapsed_us()
            elif not is_there and each.name.startswith("cu"):
                calls[each.name] += 1
        n_launches = sum(n for name, n in calls.items() if "Launch" in name)
    return {
        "launches": n_launches,
        "copies": sum(n for name, n in calls.items() if "Memcpy" in name),
        # the profiler itself, and the end of the step, wait for the whole device
        "n_waits": sum(n for name, n in calls.items() if name.endswith("mSynchronize")),
        "busy_ms": round(busy_us / 1000, 3),
        "calls": dict(calls.most_common()),
        "longest_us": longest(profiled),
    }


def longest(profiled: profile, n: int = 8) -> dict[str, float]:
    """What the device was busiest with, in microseconds."""
    each = {}
    for average in profiled.key_averages():
        own = getattr(average, "self_device_time_total", 0) or average.self_cpu_time_total
        each[average.key[:100]] = round(own, 1)
    return dict(sorted(each.items(), key=lambda item: -item[1])[:n])


def waits_of(day: Day, training: Training, number: int) -> list[str]:
    """Lines of a step where the host waits for the device, as torch warns of them."""
    if day.place.type != "cuda":
        training.step(number)
        return []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            training.step(number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return told_waits(warned)


def told_waits(warned: Sequence[warnings.WarningMessage]) -> list[str]:
    """The lines that waited, each once; torch also warns, once, of the mode itself."""
    waits = [each for each in warned if "called a synchronizing" in str(each.message)]
    lines = [f"{Path(each.filename).name}:{each.lineno}" for each in waits]
    return [f"{line} ({n})" for line, n in Counter(lines).items()]


def train(day: Day, place: str) -> dict:
    """P10: epochs of 30 heads with their scores, as many as the time allows; the rest by the median
    epoch."""
    keep_freed_memory()
    started = time.perf_counter()
    training = Training.of(day, place)
    sweep, trainers = training.sweep, training.trainers
    n_steps, n_epochs = sweep.stream.n_steps, day.size.epochs
    ready_s = time.perf_counter() - started
    train_s, epoch_s, losses = [], [], []
    # some seconds to import torch are gone, and an epoch must end in time
    while len(epoch_s) < n_epochs:
        used_s = time.perf_counter() - started
        if epoch_s and used_s + max(epoch_s) > 0.8 * day.seconds - 5:
            break
        epoch = len(epoch_s)
        start = time.perf_counter()
        for step in range(epoch * n_steps, (epoch + 1) * n_steps):
            training.step(step)
        day.wait()
        train_s.append(time.perf_counter() - start)
        records, scored = score_epoch(sweep, trainers, training.reader, train_s[-1])
        for trainer, each in zip(trainers, scored, strict=True):
            trainer.keep_best(each)
        epoch_s.append(time.perf_counter() - start)
        losses.append(float(np.mean([record["loss"] for record in records.values()])))

    n_done = len(epoch_s)
    all_s = sum(epoch_s) + (n_epochs - n_done) * float(np.median(epoch_s))
    what = "took" if n_done == n_epochs else f"would take, by {n_done} of them,"
    per_step = spread(1000 * seconds / n_steps for seconds in train_s)
    told = [
        f"{training.n_heads} heads: {n_epochs} epochs {what} {all_s:.1f} s (mark {P10_MARK_S})",
        f"{per_step['median']:.2f} ms a step, epochs with scores "
        f"{1000 * float(np.median(epoch_s)):.0f} ms, the first {1000 * epoch_s[0]:.0f}",
        training.reader.residency,
    ]
    found = {"told": told, "all_s": round(all_s, 2), "epochs": n_done, "mark_s": P10_MARK_S}
    if day.place.type == "cuda" and place != "mapped":
        found["most_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return found | {
        "step_ms": per_step,
        "epoch_s": spread(epoch_s),
        "first_epoch_s": round(epoch_s[0], 3),
        "ready_s": round(ready_s, 2),
        "read_gb": round(training.reader.n_bytes_read / 1e9, 2),
        "multiply": sweep.data.multiply,
        "losses": [round(loss, 5) for loss in (*losses[:3], losses[-1])],
    }
