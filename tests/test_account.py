"""Every trained kind against an independent account in plain torch, to 1e-9 of each tensor's norm.

`subject` runs the real sweep in float64. What it is compared with comes from plain_training and
plain_stream, which import nothing of the trainer.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import VIEWS, tiny_spec
from plain_heads import pool
from plain_stream import PlainSplit, PlainStream
from plain_training import Photographs, PlainTraining, score_of
from torch import Tensor

from featurestore.write.writer import ImageRows, open_writer
from trainer.loop.bank_trainer import BankTrainer
from trainer.loop.checkpoint import Checkpoint
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.runs import RunFolder
from trainer.loop.sweep import train_pass

KINDS = ["cls_gating", "density", "attention", "pooled_mlp"]
N_VIEWS, N_TILES, GRID, WIDTH = 3, 2, (3, 5), 7
STATES = ["NSW", "Tas", "Vic"]
SITE = np.repeat(np.arange(7), [5, 4, 5, 4, 5, 5, 5])
FOLDS_OF_SITES = {"r00": [0, 0, 1, 1, 2, 2, 2], "r01": [0, 1, 2, 0, 1, 2, 1]}
"""Folds of unequal size: 24, 24, 18 and 24, 19, 23 images are trained on, in 4 steps of 5 each."""

YAML = """
experiment: {{name: account, seed: 11}}
dataset: {{store: {store}}}
head:
  {{kind: {kind}, gate_hidden: 3, shared_hidden: 5, queries: 3, dropout: 0.2,
    normalize: {normalize}, seed: {seed}}}
loss:
  {{space: {space}, scale: {scale}, intervals: {intervals}, beta: {beta}, main_weights: [0.9, 0.5, 0.3],
    state_weight: 0.7, height_weight: 0.4, aux_weight: 0.2, interval_weight: 0.6}}
trainer: {{num_epochs: 2, batch_size: 5, gradient_accumulation_steps: 3, best_by: {best_by}}}
optimization:
  {{lr: {lr}, weight_decay: 0.3, warmup_rate: {warmup}, use_ema: {average},
    ema_decay: 0.8, ema_start_ratio: {start}, ema_delay: {delay},
    decay_biases: {decay_biases}, initial_biases: {biases},
    initial_weights: {weights}, warmup_from_zero: {from_zero}}}
augmentation: {{mixup: {{enabled: true, kind: {mixup}, alpha: {alpha}, disable_ratio: 0.5}}}}
inference: {{tta_indices: [0], constraints: {constraints}}}
cv: {{folds: {folds}}}
"""
SETTINGS = {
    "mixed in every way, with intervals, normalised": {
        "normalize": "true",
        "seed": 0,
        "space": "raw",
        "scale": "[spread, none]",
        "biases": "means",
        "weights": "zero",
        "from_zero": "false",
        "start": 0.4,
        "delay": 0,
        "best_by": "loss",
        "decay_biases": "true",
        "intervals": 3,
        "beta": 2.0,
        "lr": "2e-2",
        "warmup": 0.4,
        "average": "true",
        "mixup": "[patches, pooled, same_site, none]",
        "alpha": 0.4,
        "constraints": "order",
    },
    "as stored, in other spaces, as the first experiment was": {
        "normalize": "false",
        "seed": 4,
        "space": "[log1p, sqrt]",
        "scale": "spread",
        "biases": "[drawn, means]",
        "weights": "drawn",
        "from_zero": "true",
        "start": 0.1,
        "delay": 1,
        "best_by": "score",
        "decay_biases": "false",
        "intervals": 0,
        "beta": 0.3,
        "lr": "3e-2",
        "warmup": 0.4,
        "average": "[false, true]",
        "mixup": "patches",
        "alpha": 1.0,
        "constraints": "clip",
    },
}


@dataclass(frozen=True)
class Subject:
    """What the sweep itself left."""

    sweep: Sweep
    trainers: list[BankTrainer]
    runs: dict[int, RunFolder]

    def of_kind(self, kind: str) -> list[tuple[int, BankTrainer, int]]:
        """Point, trainer and place in the trainer's bank of every point of a kind."""
        points = enumerate(self.sweep.config.points)
        mine = [p for p, point in points if point.head.kind == kind]
        return [(p, t, t.points.index(p)) for p in mine for t in self.trainers if p in t.points]


@pytest.fixture(scope="module")
def catalog() -> pd.DataFrame:
    """State and Height known of some photographs only, one Height infinite, some masses zero."""
    rng, n = np.random.default_rng(1), len(SITE)
    green, dead, clover = (
        rng.gamma(2, [[8], [5], [3]], (3, n)) * (rng.random((3, n)) > 0.2)
    ).round(2)
    height = np.where(rng.random(n) < 0.3, np.nan, (2 + green / 3).round(1))
    height[7] = np.inf
    return pd.DataFrame(
        {
            "image_id": [f"ID{i}" for i in range(n)],
            "path": [f"{i}.jpg" for i in range(n)],
            "State": np.where(rng.random(n) < 0.3, "", np.array(STATES)[SITE % 3]),
            "Height_Ave_cm": height,
            "Dry_Green_g": green,
            "Dry_Dead_g": dead,
            "Dry_Clover_g": clover,
            "GDM_g": green + clover,
            "Dry_Total_g": green + clover + dead,
        }
    )


@pytest.fixture(scope="module")
def photos(catalog) -> Photographs:
    """Drawn tokens, in which masses leave a trace."""
    rng, n = np.random.default_rng(2), len(catalog)
    masses_N5 = catalog[
        ["Dry_Total_g", "GDM_g", "Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g"]
    ].to_numpy()
    trace_ND = np.pad(masses_N5[:, 2:] / 20, ((0, 0), (0, WIDTH - 3)))
    shape = (n, N_VIEWS, N_TILES, GRID[0] * GRID[1], WIDTH)
    patches = rng.normal(0.3, 1, shape) + trace_ND[:, None, None, None]
    cls = rng.normal(-0.2, 1, (*shape[:3], WIDTH)) + trace_ND[:, None, None]
    patches, cls = (torch.from_numpy(x.astype(np.float16)).double() for x in (patches, cls))
    height_N = catalog["Height_Ave_cm"].to_numpy()
    return Photographs(
        cls,
        patches,
        pool(patches).float().double(),
        torch.tensor(masses_N5),
        torch.tensor((catalog["State"].to_numpy()[:, None] == STATES).astype(float)),
        torch.tensor(np.where(np.isinf(height_N), np.nan, height_N)),
        SITE,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory, catalog, photos) -> dict[str, Path]:
    """The store of these photographs, and folds with a site for those whose State is not known."""
    folder = tmp_path_factory.mktemp("account")
    spec = tiny_spec(catalog, tile_height=16 * GRID[0], tile_width=16 * GRID[1], width=WIDTH)
    with open_writer(folder / "features.h5", spec, catalog) as writer:
        for i in range(len(catalog)):
            tokens = (
                photos.cls_NVTD[i].half(),
                photos.patches_NVTPD[i].half(),
                photos.pooled_NVT5D[i].float(),
            )
            thumb, stats = np.zeros((*spec.thumb, 3), np.uint8), np.zeros((len(VIEWS), 14))
            facts = {"sha256": f"{i:064x}", "width": 8, "height": 4, "status": "ok"}
            writer.put(i, ImageRows(*(x.numpy() for x in tokens), stats, thumb, facts))

    names = [f"site {s}" for s in SITE]
    table = pd.DataFrame({"image_id": catalog["image_id"], "site": names, "group": names})
    for repeat, fold_S in FOLDS_OF_SITES.items():
        table[repeat] = np.array(fold_S)[SITE]
    table.to_csv(folder / "folds.csv", index=False)
    return {"store": folder / "features.h5", "folds": folder / "folds.csv"}


@pytest.fixture(scope="module", params=SETTINGS.values(), ids=SETTINGS)
def subject(request, files, tmp_path_factory) -> Subject:
    """The only place where the trainer works: all points of a sweep in one pass, in float64."""
    folder = tmp_path_factory.mktemp("subject")
    (folder / "sweep.yaml").write_text(
        YAML.format(**files, **request.param, kind=f"[{', '.join(KINDS)}]")
    )
    sweep = prepare_sweep(SweepConfig.load(folder / "sweep.yaml"), "cpu", torch.float64)
    runs = {p: RunFolder(folder / name) for p, name in enumerate(sweep.config.names)}
    trainers = train_pass(
        sweep, list(runs), runs, Checkpoint(folder / "checkpoint"), sweep.reader(), progress=False
    )
    return Subject(sweep, trainers, runs)


@pytest.fixture(scope="module")
def stream() -> PlainStream:
    return PlainStream(seed=11, n_views=N_VIEWS, n_folds=3, batch_size=5, site_N=SITE)


@pytest.fixture(scope="module")
def splits() -> list[PlainSplit]:
    tables = enumerate(np.array(fold_S)[SITE] for fold_S in FOLDS_OF_SITES.values())
    return [PlainSplit(repeat, fold, fold_N) for repeat, fold_N in tables for fold in range(3)]


def assert_close(found: np.ndarray | Tensor, expected: np.ndarray | Tensor, what: str) -> None:
    found, expected = (torch.as_tensor(x).detach() for x in (found, expected))
    assert found.shape == expected.shape, what
    assert (found - expected).norm() <= 1e-9 * expected.norm(), what


def test_the_stream_is_what_its_description_says(subject, stream, splits):
    """Rows, both kinds of partners, uniforms and dropout of every split at every step of three
    epochs."""
    theirs = subject.sweep.stream
    assert theirs.n_steps == stream.n_steps == 4
    for epoch, step in np.ndindex(3, 4):
        batch = theirs.batch(epoch, step)
        for q, split in enumerate(splits):
            plain = stream.batch(split, epoch, step)
            rows = batch.rows_U2[batch.own_QB[q]]
            assert rows.tolist() == np.stack([plain["image"], plain["view"]], 1).tolist()
            assert batch.partner_QB[q].tolist() == plain["partner"].tolist()
            assert batch.site_partner_QB[q].tolist() == plain["site_partner"].tolist()
            assert batch.uniform_QB[q].tolist() == plain["uniform"].tolist()
            for seed in (0, 4):
                ours = theirs.dropout(epoch, step, (5, 2, 5), seed)[q]
                assert np.array_equal(ours, stream.dropout(split, epoch, step, (5, 2, 5), seed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_what_plain_torch_makes_of_it(subject, photos, stream, splits, kind):
    """8 batches, 3 steps of the optimiser, of which the last has two batches.

    The first point in all splits, each other one in a split of either repeat, which is not its
    neighbours' in the grid: there are 372 heads, and a plain one takes 0.08 s.
    """
    compared = subject.of_kind(kind)
    assert len(compared) >= 3
    for n, (p, trainer, g) in enumerate(compared):
        point, plain = subject.sweep.config.points[p], {}
        chosen = range(len(splits)) if n == 0 else (n % 3, 3 + n // 3 % 3)
        for q in chosen:
            plain[q] = PlainTraining(photos, stream, splits[q], point).train()
            assert_same_head(trainer, q, g, plain[q], f"{subject.sweep.config.names[p]}, split {q}")
        assert trainer.optimizer.n_done == 3 and trainer.n_batches == 8
        assert_same_log(subject.runs[p], plain, photos)


def assert_same_head(
    trainer: BankTrainer, q: int, g: int, plain: PlainTraining, where: str
) -> None:
    weights = plain.head.state_dict()
    stacked = (trainer.bank.tensors, trainer.optimizer.average, trainer.best)
    for ours, theirs in zip(stacked, (weights, plain.average, plain.best), strict=True):
        assert ours.keys() == theirs.keys()
        for name, expected in theirs.items():
            assert_close(
                ours[name][q, g].T if expected.dim() == 2 else ours[name][q, g],
                expected,
                f"{name}: {where}",
            )
    assert_close(np.array(trainer.errors_QG)[:, q, g], np.array(plain.error_E), f"errors: {where}")
    assert trainer.best_epoch_QG[q, g] == plain.best_epoch
    assert trainer.failed_QG[q, g] == -1


def assert_same_log(run: RunFolder, plain: dict[int, PlainTraining], photos: Photographs) -> None:
    """metrics.jsonl: losses, fold scores and rates of every epoch; of all splits together the mean
    loss and the pooled score, too."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    truth_N5 = photos.masses_N5.numpy()[:, [2, 3, 4, 1, 0]]
    assert len(lines) == 2
    for epoch, line in enumerate(lines):
        assert len(line["fold_loss"]) == len(line["fold_score"]) == 6
        losses = {q: each.loss_E[epoch] for q, each in plain.items()}
        scores = {q: each.score_E[epoch] for q, each in plain.items()}
        for name, expected in (("fold_loss", losses), ("fold_score", scores)):
            found = np.array([line[name][q] for q in plain])
            assert_close(found, np.array(list(expected.values())), f"{name} of {run.path.name}")
        rate = next(iter(plain.values())).lr_E[epoch]
        assert line["lr"] == pytest.approx(rate, rel=1e-9)
        if len(plain) < 6:
            continue
        assert line["loss"] == pytest.approx(np.mean(list(losses.values())), rel=1e-9)
        held_out = [
            np.nansum(
                [each.held_out_EN5[epoch] for each in plain.values() if each.split.repeat == r], 0
            )
            for r in (0, 1)
        ]
        pooled = np.mean([score_of(truth_N5, guess_N5) for guess_N5 in held_out])
        assert line["score"] == pytest.approx(pooled, rel=1e-9)
