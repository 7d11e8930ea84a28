"""A small store with labels that its tokens explain, and configs over it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from conftest import VIEWS, tiny_spec

from featurestore import FeatureStore
from featurestore.write.writer import ImageRows, open_writer
from trainer.data.tokens import TokenReader
from trainer.heads import kinds
from trainer.loop.bank_trainer import BankTrainer
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import Sweep
from trainer.loop.sweep import train_step

TRAINED = [name for name in kinds.names() if kinds.load(name).trained]
"""Kinds of heads, without regressors; a new file is one more."""

GAMMAS, ALPHAS, MARGINS = (0.1, 1.0), (1.0, 0.1, 0.01), ((1.0, 0.3), (10.0, 0.1))
"""What regressors try where a module has `small_searches`."""

YAML = """
experiment: {{name: tiny, seed: 5}}
dataset: {{store: {store}}}
head: {{kind: {kind}, seed: {seed}, gate_hidden: 5, shared_hidden: 6, dropout: {dropout}, normalize: {normalize}}}
loss: {{space: {space}, intervals: {intervals}}}
trainer: {{num_epochs: {epochs}, batch_size: 8, gradient_accumulation_steps: {accumulate}, multiply: {multiply}}}
optimization: {{lr: {lr}, weight_decay: {decay}, ema_decay: 0.9}}
augmentation: {{mixup: {{enabled: true, kind: {mixup}, alpha: {alpha}, disable_ratio: 0.3}}}}
inference: {{tta_indices: [0, 2], postprocess: {postprocess}}}
cv: {{n_folds: {n_folds}, repeats: {repeats}}}
"""

DEFAULTS = {
    "kind": "[cls_gating, density]",
    "lr": "[3e-2, 1e-2]",
    "decay": "[0.01]",
    "dropout": 0.2,
    "normalize": "true",
    "epochs": 4,
    "accumulate": 1,
    "multiply": "auto",
    "alpha": 1.0,
    "mixup": "patches",
    "seed": 0,
    "space": "raw",
    "intervals": 0,
    "postprocess": "[]",
    "n_folds": 3,
    "repeats": 1,
}
"""Of YAML, but for the store."""


def train_epoch(
    sweep: Sweep, trainers: Sequence[BankTrainer], reader: TokenReader, epoch: int
) -> None:
    """The steps of one epoch, without what follows them in a sweep."""
    for step in range(sweep.stream.n_steps):
        train_step(sweep, trainers, reader, epoch, step)


def write_store(
    path: Path,
    n: int = 30,
    skipped: Mapping[int, str] = MappingProxyType({}),
    seed: int = 0,
    labels: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame,
    **changes,
) -> Path:
    """n images in 10 sites; masses follow the patches' first channels.

    skipped : images without tokens, and their status. labels : takes the catalog, returns it with
        other labels.
    changes : of the spec, `has_patches` say; tokens are the same.
    """
    rng = np.random.default_rng(seed)
    site = np.arange(n) % 10
    level = rng.gamma(2, 1, (n, 3)) * np.where(rng.random((n, 3)) < 0.2, 0, 1)
    green, dead, clover = (level * [12, 6, 4]).T
    frame = pd.DataFrame(
        {
            "image_id": [f"ID{i}" for i in range(n)],
            "path": [f"{i}.jpg" for i in range(n)],
            "State": np.array(["Tas", "Vic", "NSW"])[site % 3],
            "Sampling_Date": [f"2015/9/{s + 1}" for s in site],
            "Height_Ave_cm": np.where(site == 4, np.nan, 3 + green),
            "Dry_Green_g": green,
            "Dry_Dead_g": dead,
            "Dry_Clover_g": clover,
            "GDM_g": green + clover,
            "Dry_Total_g": green + clover + dead,
        }
    )
    frame = labels(frame)
    spec = tiny_spec(frame).changed(**changes)
    with open_writer(path, spec, frame) as writer:
        for i in writer.pending():
            rows = _rows(spec, rng, level[i], i)
            if i not in skipped:
                pooled = rows.pooled_VT5D.astype(spec.pooled_dtype)
                writer.put(
                    i,
                    replace(
                        rows,
                        pooled_VT5D=pooled,
                        patches_VTPD=rows.patches_VTPD if spec.has_patches else None,
                    ),
                )
    for image, status in skipped.items():
        set_status(path, image, status)
    return path


def set_status(path: Path, image: int, status: str) -> None:
    """Write the cell that says why an image has no tokens, as `store build --skip-missing` does."""
    file, offset, n_bytes = FeatureStore.open(path).layout.extents["catalog/status"].locate(image)
    with open(file, "r+b") as cells:
        cells.seek(offset)
        cells.write(status.encode().ljust(n_bytes, b"\0"))


def _rows(spec, rng, level: np.ndarray, i: int) -> ImageRows:
    t = spec.tokens
    patches = rng.normal(size=(len(VIEWS), t.n_tiles, t.n_patches, t.width)) + np.pad(
        level, (0, t.width - 3)
    )
    patches = patches.astype(np.float16)
    x = patches.astype(np.float32)
    pooled = np.stack([x.mean(2), x.std(2), x.max(2), x.min(2), np.cbrt((x**3).mean(2))], 2)
    cls = (x.mean(2) + 0.1 * rng.normal(size=x.mean(2).shape)).astype(np.float16)
    facts = {"sha256": f"{i:064x}", "width": 8, "height": 4, "status": "ok"}
    return ImageRows(
        cls,
        patches,
        pooled,
        np.zeros((len(VIEWS), 14)),
        np.zeros((*spec.thumb, 3), np.uint8),
        facts,
    )


def as_found(file: Path) -> bytes:
    """What a sweep wrote into a file, less the time at which it finished."""
    lines = file.read_bytes().splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(b' "finished_at"'))


def config(tmp_path: Path, store: Path, **changes) -> SweepConfig:
    values = DEFAULTS | {"store": store} | changes
    path = tmp_path / "sweep.yaml"
    path.write_text(YAML.format(**values))
    return SweepConfig.load(path)
