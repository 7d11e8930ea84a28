"""Stores of the same photographs whose tokens differ, and a store that holds two of them side by
side."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import VIEWS, tiny_spec
from sweeps import write_store

from featurestore import FeatureStore
from featurestore.format.spec import ViewSpec
from featurestore.write.writer import ImageRows, open_writer

SWEEP = """
experiment: {{name: several, seed: 5}}
{dataset}
head: {{{head}, shared_hidden: 6, gate_hidden: 5, dropout: 0.2, normalize: true}}
trainer: {{num_epochs: 3, batch_size: 8}}
optimization: {{lr: 1e-2, weight_decay: 0.01, ema_decay: 0.9}}
inference: {{tta_indices: [0, 2]}}
cv: {{n_folds: 3}}
"""


def write_pair(folder: Path) -> dict[str, Path]:
    """a.h5, whose tokens explain its labels, and b.zarr: other widths and patches."""
    return {
        "a": write_store(folder / "a.h5"),
        "b": write_beside(folder / "b.zarr", folder / "a.h5"),
    }


def write_beside(
    path: Path,
    first: Path,
    width: int = 5,
    n_tiles: int = 2,
    views: Sequence[ViewSpec] = VIEWS,
    change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame,
) -> Path:
    """A store of the first one's photographs and labels, whose patches (2 x 2) are noise about the
    masses.

    change : takes the catalog, returns another.
    """
    frame = change(FeatureStore.open(first).catalog)
    mass_N = np.log1p(frame["Dry_Total_g"].to_numpy())
    patches_NVTPD = np.random.default_rng(3).normal(
        mass_N[:, None, None, None, None], 0.5, (len(frame), len(views), n_tiles, 4, width)
    )
    mean_NVTD = patches_NVTPD.mean(3)
    noise_NVT5D = (
        np.random.default_rng(4).normal(size=(5, *mean_NVTD.shape)).transpose(1, 2, 3, 0, 4)
    )
    pooled_NVT5D = mean_NVTD[..., None, :] + noise_NVT5D
    tokens = {"tile_height": 32, "tile_width": 32, "n_tiles": n_tiles, "views": tuple(views)}
    crop = "halves" if n_tiles == 2 else "squash"
    spec = tiny_spec(frame, width=width, crop=crop, **tokens)
    return _write(path, spec, frame, -mean_NVTD, patches_NVTPD, pooled_NVT5D)


def write_joined(path: Path, stores: Sequence[Path]) -> Path:
    """A pooled store whose vectors are those of all stores, channels one after another."""
    opened = [FeatureStore.open(store) for store in stores]
    cls, pooled = (
        np.concatenate([store.array(name)[:] for store in opened], -1) for name in ("cls", "pooled")
    )
    frame = opened[0].catalog
    spec = tiny_spec(frame, width=cls.shape[-1]).changed(has_patches=False)
    return _write(path, spec, frame, cls, None, pooled)


def _write(path, spec, frame, cls_NVTD, patches_NVTPD, pooled_NVT5D) -> Path:
    with open_writer(path, spec, frame.drop(columns=["sha256", "status"])) as writer:
        for i, row in frame.iterrows():
            facts = {"sha256": row["sha256"], "width": 8, "height": 4, "status": "ok"}
            writer.put(
                i,
                ImageRows(
                    cls_NVTD[i].astype(np.float16),
                    None if patches_NVTPD is None else patches_NVTPD[i].astype(np.float16),
                    pooled_NVT5D[i].astype(np.float32),
                    np.zeros((cls_NVTD.shape[1], 14)),
                    np.zeros((*spec.thumb, 3), np.uint8),
                    facts,
                ),
            )
    return path


def write_config(
    folder: Path, head: str, stores: dict[str, Path] | Path, name: str = "sweep.yaml"
) -> Path:
    """The YAML of a sweep over several stores by name, or one."""
    places = f"{{store: {stores}}}"
    if isinstance(stores, dict):
        each = ", ".join(f"{key}: {path}" for key, path in stores.items())
        places = f"{{stores: {{{each}}}}}"
    path = folder / name
    path.write_text(SWEEP.format(dataset=f"dataset: {places}" if stores else "", head=head))
    return path
