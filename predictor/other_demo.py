"""`biomass demo --task other`: the whole path for targets that are not the contest's, on drawn
fields."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.backbone.demo.fields import draw_fields
from featurestore.disk.terminal import terminal_width
from featurestore.errors import InputError
from featurestore.store import FeatureStore
from featurestore.write.build import build_store
from predictor.bundle.pack import BackboneChoice, make_bundle
from predictor.demo import BACKBONE, IMAGE_SIZE, LEVEL, demo_store, run_wheel
from predictor.demo_report import DemoReport
from predictor.end_to_end import predict_to_file
from trainer.loop.chosen import chosen_run
from trainer.loop.grid import SweepConfig
from trainer.loop.sweep import run_sweep
from trainer.score.metrics import Score

VIEWS = "4"
NUMBERS, CROP = ("yield_t_ha", "ndvi"), "crop"
CONFIG = """\
# Do heads find the yield, the NDVI and the crop of drawn fields, on farms that they never saw?
experiment: {name: other, seed: 42}
targets:
  yield_t_ha: {}
  ndvi: {kind: level}
  crop: {kind: class, auxiliary: true, loss_weight: 1}
cv: {groups: [farm]}
head: {kind: [pooled_mlp, cls_gating, density], shared_hidden: 64, gate_hidden: 64, normalize: true}
trainer: {num_epochs: 60, batch_size: 16}
optimization: {lr: [1e-2, 3e-3], weight_decay: 1e-2, decay_biases: true, ema_decay: 0.95}
augmentation: {mixup: {enabled: false}}
"""


def run_other_demo(
    out: Path,
    seed: int,
    say: Callable[[str], object],
    n_train: int = 90,
    n_test: int = 36,
) -> DemoReport:
    """Draw, build, train, predict, pack and score on farms never seen in training: R2 of each
    number, and the accuracy of the class.

    `say` gets each step.
    """
    if out.exists():
        raise InputError(f"{out}: exists; remove it or choose another --out")
    start = time.monotonic()
    data, store_path, table_path = out / "data", out / "features.h5", out / "predictions.csv"

    say(f"1. drawing {n_train} + {n_test} photographs of fields: yield_t_ha, ndvi and crop")
    draw_fields(data, seed, n_train, n_test)

    say(f"2. store: {BACKBONE}, halves of {IMAGE_SIZE} pixels, {VIEWS} views")
    say(str(build_store(demo_store(data, store_path, seed, IMAGE_SIZE, VIEWS))))

    say("3. sweep: every head of all kinds in one pass, folds by farm")
    config_path = out / "other.yaml"
    config_path.write_text(CONFIG)
    config = SweepConfig.load(config_path, {"dataset.store": store_path})
    result = run_sweep(config, out / "runs", "cpu")
    say(result.table(terminal_width()))

    say("4. predicting photographs of farms never seen in training, TTA 4")
    # LEVEL, or the highest level that the farms of a smaller demo support
    n_farms = FeatureStore.open(store_path).catalog["farm"].nunique()
    level = min(LEVEL, n_farms / (n_farms + 1))
    given = {"sweep": result.path, "interval": level, "device": "cpu"}
    predict_to_file(data, table_path, say, **given)
    scores = _scores(pd.read_csv(table_path), pd.read_csv(data / "test_truth.csv"))

    say("5. a bundle, and the same predictions by the bundle alone")
    backbone = BackboneChoice(included=True)
    make_bundle([result.path], out / "bundle", backbone=backbone, say=say)
    by_bundle = out / "offline" / "predictions.csv"
    run_wheel(
        out / "bundle",
        *("--data", data, "--tta", 4, "--device", "cpu", "--interval", level),
        *("--out", by_bundle),
    )
    same = table_path.read_bytes() == by_bundle.read_bytes()
    say(f"by the bundle's own wheel: {'every number is the same' if same else 'other numbers'}")

    made = {
        "data": data,
        "store": store_path,
        "config": config_path,
        "sweep": result.path,
        "chosen": chosen_run(result.path),
        "predictions": table_path,
        "bundle": out / "bundle",
        "offline": by_bundle,
    }
    return DemoReport("on unseen farms", scores, same, made, time.monotonic() - start)


def _scores(table: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """Of a table of predictions, by what was drawn."""
    truth.index = truth["image_path"].map(lambda path: Path(path).stem)
    truth = truth.loc[table["image_id"]]
    r2 = Score("r2", (1.0,))
    scores = {
        f"R2 of {name}": r2(truth[[name]].to_numpy(), table[[name]].to_numpy()) for name in NUMBERS
    }
    if CROP in table:
        is_right = table[CROP].to_numpy() == truth[CROP].to_numpy()
        scores[f"accuracy of {CROP}"] = float(np.mean(is_right))
    return scores
