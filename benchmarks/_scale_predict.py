"""What a prediction of many photographs takes around tokens and heads: parts, a merge, a journal.

Parts and the journal hold drawn predictions, since so many photographs cannot be encoded here.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from _scale_files import N_FOLDERS, write_photographs, write_test
from _scale_run import run_all

from featurestore.backbone.demo.drawing import draw_pasture
from featurestore.photos.targets import CSIRO
from featurestore.write.build import build_store
from featurestore.write.config import BuildConfig
from predictor.members.part_file import Part, parts_in, write_part
from predictor.predictor import Predictor
from trainer.loop.chosen import best_run
from trainer.loop.grid import SweepConfig
from trainer.loop.sweep import run_sweep

PARTS = 512
A_FEW = 1000
"""Photographs of the prediction that goes on."""
YAML = """
experiment: {name: bench, seed: 0}
head: {kind: pooled_mlp}
trainer: {num_epochs: 1, batch_size: 8}
optimization: {lr: 1e-3, weight_decay: 1e-2}
inference: {tta_indices: [0]}
cv: {n_folds: 5, groups: date}
"""


def measure_predict(folder: Path, n_images: int) -> dict:
    data = folder / "data"
    paths = write_photographs(data, n_images)
    write_test(data, paths)
    run = _trained(folder)
    parts = folder / "parts"
    predict = ["predict", "--data", data, "--device", "cpu"]
    heads = ["--run", run, "--tta", 1]
    least = [*predict, *heads, "--interval", 0.8, "--part"]
    told = run_all(
        {
            # ten photographs: what comes before the first
            "one of many parts": [*least, f"0/{n_images // 10}", "--out", folder / "small"],
            f"one of {PARTS} parts": [*least, f"0/{PARTS}", "--out", parts],
        },
        folder,
    )
    _draw_parts(parts, [Path(path).stem for path in paths])
    out = folder / "submission.csv"
    journal = folder / "few.csv.progress"
    _draw_journal(journal, data, paths, run)
    with open(data / "test.csv") as file:
        few = [next(file) for _ in range(1 + len(CSIRO.names) * A_FEW)]
    (folder / "few_test.csv").write_text("".join(few))
    known = ["--csv", folder / "few_test.csv", "--out", folder / "few.csv", "--continue"]
    return told | run_all(
        {
            "merge": [*predict, "--merge", parts, "--out", out],
            "continue": [*predict, *heads, *known],
        },
        folder,
    )


def _trained(folder: Path) -> Path:
    """A run of one epoch: what its heads say does not matter here."""
    draw_pasture(folder / "learn", n_train=30, n_test=1)
    build_store(
        BuildConfig(
            data=folder / "learn",
            out=folder / "features.h5",
            backbone="vit_demo_patch16_dinov3",
            views="1",
            image_size=64,
            crop="squash",
            weights="random",
            device="cpu",
            precision="fp32",
        )
    )
    (folder / "bench.yaml").write_text(YAML)
    config = SweepConfig.load(folder / "bench.yaml", {"dataset.store": folder / "features.h5"})
    return best_run(run_sweep(config, folder / "runs", "cpu").path)


def _draw_parts(folder: Path, image_ids: list[str]) -> None:
    """All parts but the first, which is there."""
    rng = np.random.default_rng(0)
    (first,) = parts_in(folder)
    shared = {key: value for key, value in first.about.items() if key != "sha256"}
    for number in range(1, PARTS):
        part = Part(number, PARTS)
        ids = image_ids[part.slice(len(image_ids))]
        columns = {"image_id": ids}
        for ending in ("", "_sd"):
            for name in CSIRO.names:
                columns[name + ending] = rng.gamma(2, 10, len(ids))
        write_part(folder / part.name, shared | {"part": number}, pd.DataFrame(columns), {})


def _draw_journal(path: Path, data: Path, paths: list[str], run: Path) -> None:
    """A journal of all photographs, as a prediction that was stopped leaves it."""
    predictor = Predictor.load(run, device="cpu", backbones=False)
    (member,) = predictor.members
    key = predictor.key(1)
    rng = np.random.default_rng(0)
    n_heads, n_targets = len(member.heads), len(CSIRO.names)
    words = np.full((n_heads, 1, member.targets.n_words), 0.5).tolist()
    sha256 = {}  # all photographs of a folder are one file
    with open(path, "w") as file:
        for place in paths:
            in_folder = Path(place).parent
            if in_folder not in sha256:
                sha256[in_folder] = hashlib.sha256((data / place).read_bytes()).hexdigest()
            line = {
                "key": key,
                "group": 0,
                "image_id": Path(place).stem,
                "sha256": sha256[in_folder],
                "raw": [[rng.gamma(2, 10, (n_heads, 1, n_targets)).tolist(), words]],
            }
            file.write(json.dumps(line) + "\n")
    assert len(sha256) == N_FOLDERS
