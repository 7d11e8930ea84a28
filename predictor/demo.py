"""`biomass demo`: the whole path on a drawn pasture, with the plain functions a user would call."""

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from featurestore.backbone.demo.drawing import Photo, draw_pasture, plan_pasture
from featurestore.commands.reporting import QUIET, is_set
from featurestore.disk.terminal import terminal_width
from featurestore.disk.threads import starting
from featurestore.errors import InputError
from featurestore.photos.catalog import TARGETS, target_rows
from featurestore.photos.decode import decode_ahead
from featurestore.photos.sites import site_of
from featurestore.photos.targets import CSIRO
from featurestore.store import FeatureStore
from featurestore.write.build import build_store
from featurestore.write.config import BuildConfig
from predictor.bundle.pack import BackboneChoice, make_bundle
from predictor.demo_report import DemoReport
from predictor.extras.intervals import Intervals, within
from predictor.members.ensemble import Tokens, pooled_as_stored
from predictor.members.submission import write_predictions
from predictor.predictor import Predictor, test_photographs
from trainer.config.sections import HeadConfig
from trainer.data.used_store import pooled_features
from trainer.heads import kinds
from trainer.loop.chosen import chosen_run
from trainer.loop.grid import SweepConfig
from trainer.loop.sweep import run_sweep
from trainer.score.metrics import weighted_r2

if TYPE_CHECKING:
    from predictor.demo_nodes import ThreeNodes

BACKBONE, IMAGE_SIZE, VIEWS = "vit_demo_patch16_dinov3", 192, "4"
LEVEL = 0.9  # of the intervals
CONFIG = """\
# Do both kinds of heads find the masses drawn into the demo's pasture?
experiment: {name: demo, seed: 42}
head: {kind: [cls_gating, density], gate_hidden: 64, shared_hidden: 64, normalize: true}
loss: {scale: none, beta: 10}
trainer: {num_epochs: 60, batch_size: 16}
optimization: {lr: [3e-2, 1e-2, 3e-3], weight_decay: 1e-2, decay_biases: true, ema_decay: 0.95}
augmentation: {mixup: {enabled: false}}
"""


def run_demo(
    out: Path,
    seed: int,
    say: Callable[[str], object],
    n_train: int = 120,
    n_test: int = 36,
    passes: int | None = None,
    nodes: "ThreeNodes | None" = None,
) -> DemoReport:
    """Draw, build, train, predict and score, on sites never seen in training. `say` gets each step.

    passes : of the sweep, None is as many as memory asks for; nodes : do the work, None is this
        process.
    """
    if out.exists():
        raise InputError(f"{out}: exists; remove it or choose another --out")
    start = time.monotonic()
    data, store_path = out / "data", out / "features.h5"
    say(f"1. drawing {n_train} + {n_test} photographs of pasture")
    draw_pasture(data, seed, n_train, n_test)
    say(
        f"2. store: {BACKBONE}, which learned on other pastures, halves of {IMAGE_SIZE} pixels, "
        f"{VIEWS} views"
    )
    to_build = demo_store(data, store_path, seed, IMAGE_SIZE, VIEWS)
    say(str(nodes.build(to_build) if nodes else build_store(to_build)))
    in_passes = f"{passes} passes" if passes and passes > 1 else "one pass"
    say(f"3. sweep: every head of both kinds in {in_passes}")
    (out / "demo.yaml").write_text(CONFIG)
    given = {"dataset.store": store_path}
    if passes:
        given["trainer.passes"] = passes
    sweep = SweepConfig.load(out / "demo.yaml", given)
    result = nodes.train(sweep, out / "runs") if nodes else run_sweep(sweep, out / "runs", "cpu")
    say(result.table(terminal_width()))
    say("4. predicting photographs of sites never seen in training, TTA 4")
    chosen = chosen_run(result.path)
    predictor = Predictor.load(chosen, device="cpu")
    photographs = test_photographs(data)
    # LEVEL, or the highest level that the sites of a smaller demo support
    n_sites = predictor.members[0].oof["site"].nunique()
    intervals = predictor.intervals(min(LEVEL, n_sites / (n_sites + 1)))
    submission = out / "submission.csv"
    if nodes:
        nodes.predict(data, submission, chosen, intervals.level, tta=4)
    else:
        predicted = intervals.added(predictor.predict(photographs, tta=4))
        write_predictions(target_rows(data / "test.csv"), predicted, submission, CSIRO)
    predictions = pd.read_csv(out / "predictions.csv")
    scores = _scores(data, FeatureStore.open(store_path), predictor, photographs, predictions)
    say(_coverage(intervals, predictions, _truth(data), plan_pasture(seed, n_train, n_test)))
    say(
        "5. a bundle, and the same predictions by the bundle alone, "
        "with a picture of every photograph"
    )
    make_bundle([chosen], out / "bundle", backbone=BackboneChoice(included=True), say=say)
    apart_g = _from_bundle(out, intervals.level)
    numbers = f"up to {apart_g:.2g} g from those numbers" if apart_g else "every number is the same"
    say(f"by the bundle's own wheel: {numbers}")
    made = {
        "data": data,
        "store": store_path,
        "sweep": result.path,
        "leaderboard": result.path / "leaderboard.png",
        "chosen": chosen_run(result.path),
        "submission": submission,
        "predictions": out / "predictions.csv",
        "bundle": out / "bundle",
        "offline": out / "offline" / "submission.csv",
        "pictures": out / "offline" / "pictures" / "report.html",
    }
    scored = "score on unseen sites (weighted R2)"
    return DemoReport(scored, scores, not apart_g, made, time.monotonic() - start)


def demo_store(data: Path, out: Path, seed: int, image_size: int, views: str) -> BuildConfig:
    """A store of drawn photographs, by the small backbone that comes with the package."""
    return BuildConfig(
        data=data,
        out=out,
        backbone=BACKBONE,
        image_size=image_size,
        crop="halves",
        views=views,
        device="cpu",
        precision="fp32",
        seed=seed,
    )


def _scores(
    data: Path,
    store: FeatureStore,
    predictor: Predictor,
    photographs: dict[str, Path],
    predictions: pd.DataFrame,
) -> dict[str, float]:
    """Scores on the test photographs: of the heads, of ridge and of the training mean."""
    truth = _truth(data).loc[predictions["image_id"], list(TARGETS)].to_numpy()
    train_N5 = store.catalog[list(TARGETS)].to_numpy()
    ridge, names = kinds.load("ridge"), HeadConfig(kind="ridge").features
    known_NF = pooled_features(store.cls[:, 0], store.pooled[:, 0], names)
    fitted = ridge.fit(known_NF, train_N5, site_of(store.catalog).to_numpy(), 0)
    pooled = _pooled(predictor, photographs, store.spec.pooled_dtype)
    by_ridge = ridge.predict(fitted, pooled_features(*pooled, names))
    return {
        "what was chosen": weighted_r2(truth, predictions[list(TARGETS)].to_numpy()),
        "ridge": weighted_r2(truth, by_ridge),
        "mean predictor": weighted_r2(truth, np.broadcast_to(train_N5.mean(0), truth.shape)),
    }


def _from_bundle(out: Path, level: float) -> float:
    """Predict by the bundle's wheel into out/offline, with pictures; the largest difference in
    grams from the run's numbers."""
    offline = out / "offline"
    run_wheel(
        out / "bundle",
        *("--data", out / "data", "--tta", 4, "--device", "cpu", "--interval", level),
        *("--out", offline / "submission.csv", "--explain", offline / "pictures"),
    )
    ours = pd.read_csv(out / "predictions.csv").set_index("image_id")
    theirs = pd.read_csv(offline / "predictions.csv").set_index("image_id")
    if ours.equals(theirs):
        return 0.0
    # missing on one side alone is as far off as can be
    return float((ours - theirs).abs().fillna(np.inf).to_numpy().max(initial=0))


def run_wheel(bundle: Path, *arguments: object) -> None:
    """Run `python -m predictor --bundle` with these arguments, from the bundle's wheel alone.

    InputError unless it succeeds; what it says goes to stderr.
    """
    (wheel,) = (bundle / "wheel").glob("*.whl")
    # beside the bundle, which must not change; unpacked, since weights in a zip cannot be mapped
    with TemporaryDirectory(prefix=".biomass-", dir=bundle.absolute().parent) as unpacked:
        zipfile.ZipFile(wheel).extractall(unpacked)
        # -P: the folder where this was started is not searched for packages
        command = [sys.executable, "-P", "-m", "predictor", "--bundle", bundle, *arguments]
        if is_set(QUIET):
            command.append("--quiet")
        with starting():
            done = subprocess.run(
                [str(word) for word in command],
                env={**os.environ, "PYTHONPATH": unpacked},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
    if done.returncode:
        raise InputError(
            f"{bundle}: predicting with its {wheel.name} ended with exit code {done.returncode}; "
            "the reason is above"
        )


def _coverage(
    intervals: Intervals,
    predictions: pd.DataFrame,
    truth: pd.DataFrame,
    photos: list[Photo],
) -> str:
    """How many masses of unseen sites lie within, in a sentence."""
    site_of_id = {photo.image_id: photo.site for photo in photos}
    truth_N5 = truth.loc[predictions["image_id"], list(TARGETS)].to_numpy()
    inside_N = within(predictions, truth_N5, intervals.targets).mean(1)
    # no two sites share a date
    dates = [site_of_id[image_id].date for image_id in predictions["image_id"]]
    by_site = pd.Series(inside_N).groupby(dates).mean()
    return (
        f"intervals at level {intervals.level:.2f}, from {intervals.n_sites} known sites: "
        f"{inside_N.mean():.3f} of the masses at {len(by_site)} unseen sites lie within, "
        f"{by_site.mean():.3f} where each site counts the same"
    )


def _truth(data: Path) -> pd.DataFrame:
    """Wide masses of the test photographs, as drawn."""
    long = pd.read_csv(data / "test_truth.csv")
    long[["image_id", "name"]] = long["sample_id"].str.split("__", expand=True)
    return long.pivot(index="image_id", columns="name", values="target")


def _pooled(
    predictor: Predictor,
    photographs: dict[str, Path],
    dtype: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Class tokens (N, T, D) and pooled patches (N, T, 5, D) of each photograph's plain view."""
    backbone = predictor.backbone
    plain = backbone.spec.views[0]
    tokens = []
    for image_id, decoded in decode_ahead(photographs, backbone.crop):
        tokens.append(Tokens(*backbone.tokens(decoded.tiles_THW3, image_id, plain)))
    cls_NTD = np.stack([view.cls_TD.numpy() for view in tokens])
    return cls_NTD, pooled_as_stored(tokens, dtype).numpy()
