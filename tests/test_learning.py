"""Training on a task that needs it: few photographs, noisy masses, wide tokens, a high rate.

Schedule, decay, average, mixing and dropout each gain 0.07 to 0.26 here. A trainer that loses one
of them ends with clearly other scores.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import VIEWS, tiny_spec
from preset import BY
from sweeps import train_epoch

from featurestore.write.writer import ImageRows, open_writer
from trainer.loop.evaluate import pooled_score, predict_held_out
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import Sweep, prepare_sweep

N, WIDTH = 40, 64
YAML = """
experiment: {{name: learning, seed: 0}}
dataset: {{store: {store}}}
head: {{kind: pooled_mlp, features: [cls], shared_hidden: 32, dropout: [0, 0.5], normalize: true}}
loss: {{scale: none, state_weight: 0, height_weight: 0}}
trainer: {{num_epochs: 30, batch_size: 4}}
optimization:
  {{lr: 0.1, weight_decay: [0, 0.3], warmup_rate: [0.1, 1.0],
    use_ema: [false, true], ema_decay: 0.9, decay_biases: true}}
augmentation: {{mixup: {{enabled: [false, true], alpha: 4, disable_ratio: 0}}}}
inference: {{tta_indices: [0]}}
cv: {{folds: {folds}}}
"""
PLAIN = {
    "head.dropout": 0.0,
    "optimization.weight_decay": 0.0,
    "optimization.warmup_rate": 0.1,
    "optimization.use_ema": False,
    "augmentation.mixup.enabled": False,
}
DROPOUT, DECAY = {"head.dropout": 0.5}, {"optimization.weight_decay": 0.3}
MIXING, AVERAGE = {"augmentation.mixup.enabled": True}, {"optimization.use_ema": True}
RISING = {"optimization.warmup_rate": 1.0}
"""The rate rises to the end: no schedule that falls."""
ALL = DROPOUT | DECAY | MIXING | AVERAGE


def write_task(folder: Path) -> SweepConfig:
    """Class tokens hold three causes under much noise; masses follow the causes, with noise."""
    rng = np.random.default_rng(0)
    cause_N3 = rng.normal(size=(N, 3))
    grams_N3 = np.exp([2.5, 1.5, 1.0] + 0.6 * cause_N3 + 0.4 * rng.normal(size=(N, 3)))
    green, dead, clover = grams_N3.T
    ids = [f"ID{i}" for i in range(N)]
    frame = pd.DataFrame(
        {
            "image_id": ids,
            "path": [f"{i}.jpg" for i in range(N)],
            "State": "Tas",
            "Dry_Green_g": green,
            "Dry_Dead_g": dead,
            "Dry_Clover_g": clover,
            "GDM_g": green + clover,
            "Dry_Total_g": green + clover + dead,
        }
    )

    seen_N1D = cause_N3 @ rng.normal(size=(3, WIDTH)) / 2 + 0.3 * rng.normal(size=(N, WIDTH))
    noise = 0.3 * rng.normal(size=(N, len(VIEWS), 2, WIDTH))
    cls_NVTD = (seen_N1D[:, None, None] + noise).astype(np.float16)
    spec = tiny_spec(frame, width=WIDTH).changed(has_patches=False, thumb=None)
    with open_writer(folder / "features.h5", spec, frame) as writer:
        for i in writer.pending():
            pooled = np.zeros((len(VIEWS), 2, 5, WIDTH), np.float32)
            facts = {"sha256": f"{i:064x}", "width": 8, "height": 4, "status": "ok"}
            stats = np.zeros((len(VIEWS), 14))
            writer.put(i, ImageRows(cls_NVTD[i], None, pooled, stats, None, facts))

    table = pd.DataFrame({"image_id": ids, "site": ids, "group": ids})
    for repeat, every in enumerate(
        (1, 2, 4, 3)
    ):  # means over eight heads, as single ones are noisy
        table[f"r{repeat:02d}"] = np.arange(N) // every % 2
    table.to_csv(folder / "folds.csv", index=False)
    files = {"store": folder / "features.h5", "folds": folder / "folds.csv"}
    (folder / "sweep.yaml").write_text(YAML.format(**files))
    return SweepConfig.load(folder / "sweep.yaml")


def point_of(sweep: Sweep, changes: dict) -> int:
    wanted = PLAIN | changes
    return next(p for p in range(len(sweep.config.points)) if sweep.config.settings(p) == wanted)


@pytest.fixture(scope="module")
def score_of(tmp_path_factory):
    """Score of the last averages, by changes to the plain point; float64 is alike everywhere."""
    sweep = prepare_sweep(write_task(tmp_path_factory.mktemp("learning")), "cpu", torch.float64)
    asked = [{}, DROPOUT, DECAY, MIXING, AVERAGE, RISING, RISING | AVERAGE, ALL]
    points = [point_of(sweep, changes) for changes in asked]
    (trainer,), reader = sweep.trainers(points), sweep.reader()
    for epoch in range(sweep.base.trainer.num_epochs):
        train_epoch(sweep, [trainer], reader, epoch)

    truth_NK = sweep.data.truth_table_NK
    (held_out,) = predict_held_out(
        [trainer.averaged], sweep.data, reader, sweep.splits, batch_size=N
    )
    values_GRNK = trainer.constrained(held_out.values_GRNK)
    scores = [pooled_score(BY, truth_NK, each_RNK, sweep.splits) for each_RNK in values_GRNK]

    def score(changes: dict) -> float:
        return scores[asked.index(changes)]

    return score


GAINS = {
    "dropout": (DROPOUT, {}),
    "weight decay": (DECAY, {}),
    "mixing": (MIXING, {}),
    "averages": (RISING | AVERAGE, RISING),
    "a rate that falls": ({}, RISING),
}


@pytest.mark.parametrize("with_it, without", GAINS.values(), ids=GAINS)
def test_a_task_that_needs_it_is_learned_better_with_it(score_of, with_it, without):
    assert score_of(with_it) > score_of(without) + 0.04


def test_all_of_it_learns_what_the_tokens_hold(score_of):
    assert score_of(ALL) > 0.35 > score_of({}) + 0.1
