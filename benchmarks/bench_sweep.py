"""What does a sweep's step cost? P3: 30 heads together vs plain loops; P4: 30 heads vs 1; P5: rows
read; P8: memory.

Full size: rows of 3600 x 1280, batch 32, mixup on, page cache warm. The plain loop is what a
notebook does: it makes each mixed photograph in float32 and trains one torch module on it. The
shared loop does so once a fold, for all six heads of the fold in a ModuleDict. A step is forward,
backward, AdamW and moving average. All take turns. Memory freed is kept, as run_sweep has it, and
the plain loops profit most: with --default-malloc they fault their large buffers in again at every
step.

P8 trains in a process of its own, in a memory cgroup a tenth of the store's size (where one can be
made), and watches RssAnon.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import _ridge
import numpy as np
import pandas as pd
import torch
from _bench import context, finish, spread, work_folder
from torch import nn
from torch.nn import functional as F

from featurestore.format.spec import POOLED, STATS, StoreSpec, TokenSpec, ViewSpec
from featurestore.photos.targets import CSIRO
from featurestore.store import FeatureStore
from featurestore.write.columns import catalog_columns
from featurestore.write.writer import ImageRows, open_writer
from trainer.data.stream import Batch, Stream, make_splits_of
from trainer.loop.grid import SweepConfig
from trainer.loop.memory import keep_freed_memory
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.sweep import train_step

MARKS = {"P3": 100, "P3 shared": 5, "P4": 8, "P5": 1.15, "P8": 1}
YAML = """
experiment: {{name: bench, seed: 0}}
dataset: {{store: {store}}}
head: {{kind: cls_gating}}
trainer: {{num_epochs: 1000, batch_size: 32}}
optimization: {{lr: {lr}, weight_decay: {decay}}}
inference: {{tta_indices: [0]}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128, help="views of the store: one an image")
    parser.add_argument("--grid", type=int, default=60, help="patches on a side")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument(
        "--default-malloc", action="store_true", help="leave glibc as it is, as a notebook does"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--p8-gb", type=float, default=10, help="size of the store for P8; 0 leaves it out"
    )
    parser.add_argument("--p8-child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, help="where the store goes for the time being")
    parser.add_argument(
        "--ridge",
        action="store_true",
        help="time ridge fits alone, 357 images x 7,680 features if nothing else is said",
    )
    _ridge.add_options(parser)
    options = parser.parse_args()
    if options.p8_child:
        finish(watch_memory(options.p8_child))
        return
    if options.ridge:
        with work_folder(options.dir) as folder:
            of_store = argparse.Namespace(images=options.ridge_images, width=options.width, grid=2)
            finish(_ridge.measure(options, make_store(of_store, folder / "features.h5")))
        return
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Seconds of a step of 30 heads, of 1 head, and of the plain loop's one head, round by
    round."""
    if not options.default_malloc:
        keep_freed_memory()
    store = make_store(options, folder / "features.h5")
    many = prepare_sweep(config(folder, store, "[2e-3, 1e-3, 1e-4]", "[1e-2, 1e-3]"), "cpu")
    one = prepare_sweep(config(folder, store, "2e-3", "1e-2", fold=0), "cpu")
    steps = {
        "30 heads": ready(many),
        "1 head": ready(one),
        "plain, 1 head": plain(one, 1),
        "shared, 30 heads": plain(many, 6),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-1, options.rounds):
        for name, step in steps.items():
            seconds = step(number + 1)
            if number >= 0:  # the round before warms up caches, buffers and kernels
                times[name].append(seconds)
    p3 = spread(30 * p / m for p, m in zip(times["plain, 1 head"], times["30 heads"], strict=True))
    shared = spread(
        s / m for s, m in zip(times["shared, 30 heads"], times["30 heads"], strict=True)
    )
    p4 = spread(m / o for m, o in zip(times["30 heads"], times["1 head"], strict=True))
    p5 = {"1 repeat": reads_per_row(1), "20 repeats": reads_per_row(20)}
    for name, values in times.items():
        print(f"{name:16} {spread(values)['median']:.3f} s a step")
    p8 = memory_in_a_cgroup(options, folder) if options.p8_gb else None
    print(
        f"P3 {p3['median']:.1f} x per head, {shared['median']:.1f} x the shared loop   P4 "
        f"{p4['median']:.2f} x   P5 {p5}   P8 {p8 and p8['of_allowed']}   marks {MARKS}"
    )
    settings = {key: str(value) for key, value in vars(options).items()}
    return {
        "P3": p3,
        "P3 shared": shared,
        "P4": p4,
        "P5": p5,
        "P8": p8,
        "marks": MARKS,
        "step_s": {name: spread(v) for name, v in times.items()},
        "threads": torch.get_num_threads(),
        **context(settings, ["torch", "numpy", "h5py"]),
    }


def ready(sweep: Sweep):
    """A function that runs one epoch's steps of a sweep and gives seconds a step."""
    reader, trainers = sweep.reader(), sweep.trainers(range(len(sweep.config.points)))

    def run_epoch(epoch: int) -> float:
        start = time.perf_counter()
        for step in range(sweep.stream.n_steps):
            train_step(sweep, trainers, reader, epoch, step)
        return (time.perf_counter() - start) / sweep.stream.n_steps

    return run_epoch


class PlainHead(nn.Module):
    """The gating head as a notebook writes it: mixed tokens in, outputs out."""

    def __init__(self, width: int, n_patches: int, n_states: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(width, width // 4), nn.GELU(), nn.Linear(width // 4, n_patches)
        )
        self.shared = nn.Sequential(
            nn.Linear(2 * width, 512), nn.LayerNorm(512), nn.GELU(), nn.Dropout(0.2)
        )
        self.out = nn.Linear(512, 6 + n_states)

    def forward(self, cls_BD: torch.Tensor, patches_BPD: torch.Tensor) -> torch.Tensor:
        weights_BP = self.gate(cls_BD).softmax(-1)
        return self.out(
            self.shared(torch.cat([cls_BD, (weights_BP[:, :, None] * patches_BPD).sum(1)], -1))
        )


def plain(sweep: Sweep, n_points: int):
    """A function that runs one step of every fold's heads, one module after another, over mixed
    images made once a fold."""
    t = sweep.data.store.spec.tokens
    heads = nn.ModuleDict(
        {
            f"{q}-{g}": PlainHead(t.width, t.n_patches, len(sweep.data.targets["State"].values))
            for q in range(len(sweep.splits))
            for g in range(n_points)
        }
    )
    optimizers = {name: torch.optim.AdamW(head.parameters(), 2e-3) for name, head in heads.items()}
    averages = {
        name: [p.detach().clone() for p in head.parameters()] for name, head in heads.items()
    }

    def step(epoch: int) -> float:
        start = time.perf_counter()
        batch = sweep.stream.batch(epoch, 0)
        for q in range(len(sweep.splits)):
            cls, patches, wanted = mixed_batch(sweep, batch, q)
            for g in range(n_points):
                name = f"{q}-{g}"
                train_one(heads[name], optimizers[name], averages[name], cls, patches, wanted)
        return time.perf_counter() - start

    return step


def mixed_batch(
    sweep: Sweep, batch: Batch, q: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class tokens, patches and masses of one fold's batch, mixed in float32."""
    store, masses = sweep.data.store, sweep.data.labels.values_NK[:, :5]
    images, partners = batch.images_QB[q], batch.images_QB[q][batch.partner_QB[q]]
    share = torch.tensor(batch.uniform_QB[q], dtype=torch.float32)[:, None, None]
    own, other = (
        torch.from_numpy(np.stack([store.patches[int(i), 0][0] for i in which])).float()
        for which in (images, partners)
    )
    cls_own, cls_other = (
        torch.from_numpy(store.raw.cls[which, 0, 0]).float() for which in (images, partners)
    )
    share_B1 = share[:, 0]
    return (
        share_B1 * cls_own + (1 - share_B1) * cls_other,
        share * own + (1 - share) * other,
        share_B1 * masses[images] + (1 - share_B1) * masses[partners],
    )


def train_one(
    head: PlainHead,
    optimizer: torch.optim.Optimizer,
    average: list,
    cls: torch.Tensor,
    patches: torch.Tensor,
    wanted: torch.Tensor,
) -> None:
    F.smooth_l1_loss(F.softplus(head(cls, patches)[:, :5]), wanted).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        torch._foreach_lerp_(average, list(head.parameters()), 0.003)


def memory_in_a_cgroup(options: argparse.Namespace, folder: Path) -> dict:
    """P8: what a child that trains over a large store reports, in a memory cgroup a tenth of its
    size if it can be made."""
    row_bytes = options.grid**2 * options.width * 2
    large = argparse.Namespace(**{**vars(options), "images": int(options.p8_gb * 1e9 / row_bytes)})
    store = make_store(large, folder / "large.h5")
    group = Path(f"/sys/fs/cgroup/memory/biomass-bench-{os.getpid()}")
    command = [sys.executable, __file__, "--p8-child", str(store.path)]
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(int(options.p8_gb * 1e8)))
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
    except OSError:
        group = None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        if group:
            group.rmdir()
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"limit_gb": options.p8_gb / 10 if group else None, "store_gb": options.p8_gb}


def watch_memory(store: Path) -> dict:
    """Train five heads for some steps and give the greatest RssAnon beyond what the imports took,
    and what is allowed."""
    keep_freed_memory()
    sweep = prepare_sweep(config(store.parent, FeatureStore.open(store), "2e-3", "1e-2"), "cpu")
    before, peak, stop = rss_anon(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], rss_anon())

    threading.Thread(target=watch, daemon=True).start()
    trainers, reader = sweep.trainers([0]), sweep.reader()
    start = time.perf_counter()
    for step in range(8):
        train_step(sweep, trainers, reader, 0, step)
    seconds = time.perf_counter() - start
    stop.set()
    row_bytes = sweep.data.store.layout.extents["patches"].array.row_bytes
    n_parameters = trainers[0].bank.shape.n_parameters * len(sweep.splits)
    rows = max(len(sweep.stream.batch(0, step).rows_U2) for step in range(8))
    # weights, gradients, two moments, average, best; two batches
    allowed = 6 * 4 * n_parameters + 2 * rows * row_bytes
    used = peak[0] - before
    return {
        "peak_gb": round(used / 1e9, 3),
        "allowed_gb": round(allowed / 1e9, 3),
        "imports_gb": round(before / 1e9, 3),
        "of_allowed": round(used / allowed, 3),
        "s_a_step": round(seconds / 8, 2),
        "rows_a_step": rows,
    }


def rss_anon() -> int:
    """Anonymous memory of this process in bytes."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


def reads_per_row(n_repeats: int) -> float:
    """Reads of each image's row in an epoch, five folds, the contest's 357 images in 30 sites,
    batch 32; counted."""
    rng = np.random.default_rng(0)
    folds = pd.DataFrame(
        {f"r{r:02d}": rng.permutation(30)[rng.integers(0, 30, 357)] % 5 for r in range(n_repeats)}
    )
    stream = Stream(357, 20, make_splits_of(folds), 5, 32, seed=0)
    counts = [
        sum(len(stream.batch(e, s).rows_U2) for s in range(stream.n_steps)) / 357 for e in range(5)
    ]
    return round(float(np.median(counts)), 3)


def make_store(
    options: argparse.Namespace,
    path: Path,
    draw: Callable[[tuple[int, ...]], np.ndarray] | None = None,
) -> FeatureStore:
    """One view of each image: random tokens, labels of a mass each, ten sites.

    draw : gives the float16 tokens of a shape.
    """
    n, side = options.images, options.grid * 16
    rng = np.random.default_rng(0)
    green, dead, clover = rng.gamma(2, [[12], [6], [4]], (3, n))
    clover[::3] = 0
    masses = [green, dead, clover, green + clover, green + clover + dead]
    frame = pd.DataFrame(
        {
            "image_id": [f"ID{i}" for i in range(n)],
            "path": [f"{i}.jpg" for i in range(n)],
            "State": "Tas",
            "Sampling_Date": [f"2015/9/{i % 10 + 1}" for i in range(n)],
            "Height_Ave_cm": green,
            **dict(zip(CSIRO.names, masses, strict=True)),
        }
    )
    tokens = TokenSpec(
        model="random",
        weights_sha256="0" * 64,
        layers=(-1,),
        crop="squash",
        tile_height=side,
        tile_width=side,
        interpolation="bicubic",
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        patch_size=16,
        n_tiles=1,
        width=options.width,
        views=(ViewSpec(name="plain"),),
        seed=0,
    )
    spec = StoreSpec(tokens=tokens, columns=catalog_columns(frame))
    shape = (1, 1, tokens.n_patches, tokens.width)
    draw = draw or (lambda shape: rng.standard_normal(shape, np.float32).astype(np.float16))
    drawn = [draw(shape) for _ in range(min(n, 128))]
    with open_writer(path, spec, frame) as writer:
        for i in writer.pending():
            patches = drawn[i % len(drawn)]
            pooled = np.zeros((1, 1, len(POOLED), tokens.width), np.float32)
            writer.put(
                i, ImageRows(patches[:, :, 0].copy(), patches, pooled, np.zeros((1, len(STATS))))
            )
    return FeatureStore.open(path)


def config(
    folder: Path, store: FeatureStore, lr: str, decay: str, fold: int | None = None
) -> SweepConfig:
    path = folder / "sweep.yaml"
    path.write_text(YAML.format(store=store.path, lr=lr, decay=decay))
    return SweepConfig.load(path, {} if fold is None else {"cv.fold": fold})


if __name__ == "__main__":
    main()
