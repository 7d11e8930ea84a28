"""A CUDA device gives what a CPU does, within rounding; and a step never waits for it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import TINY, biomass
from preset import TARGETS
from sweeps import TRAINED, config, train_epoch

from featurestore import FeatureStore
from featurestore.backbone.load import backbone_of_store
from featurestore.backbone.precision import LEAST_COSINE
from featurestore.photos.decode import decode
from trainer.data.readers import TokenReaders
from trainer.loop import sweep as loop
from trainer.loop.evaluate import predict_held_out
from trainer.loop.prepare import prepare_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.sweep import run_sweep, train_step

CUDA = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),
]
PLACES = pytest.mark.parametrize("room_bytes", [1 << 30, 0], ids=["resident", "ring"])


def learned(
    folder: Path, store: Path, device: str, kind: str, multiply: str, room_bytes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of every step of three epochs, and what heads predict of images they never saw."""
    given = config(folder, store, kind=kind, multiply=multiply, epochs=3, lr="[1e-2, 3e-3]")
    sweep = prepare_sweep(given, device)
    (trainer,) = sweep.trainers(range(2))
    reader = TokenReaders(sweep.data.stores, sweep.data.device, room_bytes)
    for epoch in range(3):
        train_epoch(sweep, [trainer], reader, epoch)
    (held_out,) = predict_held_out([trainer.averaged], sweep.data, reader, sweep.splits, 8)
    return trainer.noted(), held_out.values_GRNK


# On a CPU float64 in place of float32 moves losses by 4e-7 of themselves and predictions by 7e-7 of
# their spread, float16 by 2e-4 and 3e-4.
@PLACES
@pytest.mark.parametrize("multiply, tolerance", [("float32", 2e-5), ("float16", 2e-3)])
@pytest.mark.parametrize("kind", TRAINED)
def test_heads_learn_what_they_learn_on_a_cpu(
    tmp_path, store, kind, multiply, tolerance, room_bytes
):
    losses, predicted = learned(tmp_path, store, CUDA, kind, multiply, room_bytes)
    expected_losses, expected = learned(tmp_path, store, "cpu", kind, "float32")
    np.testing.assert_allclose(losses, expected_losses, rtol=tolerance)
    np.testing.assert_allclose(predicted, expected, atol=tolerance * np.nanstd(expected))


@PLACES
@pytest.mark.parametrize("mixup", ["patches", "pooled", "same_site"])
@pytest.mark.parametrize("kind", TRAINED)
def test_a_step_never_waits_for_the_device(tmp_path, store, kind, mixup, room_bytes):
    sweep = prepare_sweep(config(tmp_path, store, kind=kind, mixup=mixup), CUDA)
    trainers = sweep.trainers(range(2))
    reader = TokenReaders(sweep.data.stores, sweep.data.device, room_bytes)
    train_epoch(sweep, trainers, reader, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(sweep, trainers, reader, 1, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(trainers[0].noted()).all()


def test_a_stopped_sweep_goes_on(tmp_path, store, monkeypatch):
    given = config(tmp_path, store, lr="[1e-2]")
    whole = run_sweep(given, tmp_path / "whole", CUDA, progress=False).path

    def stop_in_the_third_epoch(sweep, trainers, reader, epoch, step):
        if (epoch, step) == (2, 1):
            raise KeyboardInterrupt
        train_step(sweep, trainers, reader, epoch, step)

    monkeypatch.setattr(loop, "train_step", stop_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(given, tmp_path / "stopped", CUDA, progress=False)
    monkeypatch.undo()
    (stopped,) = (tmp_path / "stopped").iterdir()
    resume_sweep(stopped, progress=False)

    for run in whole.glob("00*"):
        found, expected = (pd.read_csv(path / run.name / "oof.csv") for path in (stopped, whole))
        # sums of gradients need not be added in one order
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def built_there(pasture, tmp_path_factory) -> FeatureStore:
    """The pasture's store as `built` is, by a CUDA device."""
    out = tmp_path_factory.mktemp("cuda") / "features.h5"
    options = ["--views", "plain,hsv", *TINY, "--device", CUDA]
    biomass("store", "build", "--data", pasture, "--out", out, *options)
    return FeatureStore.open(out)


def test_tokens_are_near_those_of_a_cpu(built, built_there):
    store = FeatureStore.open(built)
    for name in ("cls", "patches"):
        there, here = (
            np.stack([getattr(each, name)[image] for image in range(store.n_images)])
            for each in (built_there, store)
        )
        there, here = there.astype(float), here.astype(float)
        cosine = (there * here).sum(-1) / np.linalg.norm(there, axis=-1)
        cosine /= np.linalg.norm(here, axis=-1)
        assert cosine.min() >= LEAST_COSINE


def test_tokens_of_predict_equal_the_row_of_a_build(pasture, built_there):
    """Bit for bit on one device, wherever in a batch the build had them."""
    # as predict loads it for heads of this store: in the half and with the batch that were chosen
    folders = [built_there.path.parent]
    backbone = backbone_of_store(built_there.spec, None, folders, "--backbone-weights", CUDA)
    for image in range(built_there.n_images):
        decoded = decode(pasture / built_there.catalog["path"][image], backbone.crop)
        image_id = built_there.catalog["image_id"][image]
        for v, view in enumerate(built_there.spec.tokens.views):
            cls_TD, patches_TPD = backbone.tokens(decoded.tiles_THW3, image_id, view)
            assert np.array_equal(cls_TD.cpu().numpy(), built_there.cls[image, v])
            assert np.array_equal(patches_TPD.cpu().numpy(), built_there.patches[image, v])


def test_predictions_are_near_those_of_a_cpu(sweep, pasture, tmp_path):
    tables = []
    for device in ("cpu", CUDA):
        out = tmp_path / f"{device}.csv"
        options = ["--sweep", sweep, "--out", out, "--tta", 2, "--device", device]
        biomass("predict", "--data", pasture, *options)
        wide = pd.read_csv(out.with_suffix(".predictions.csv"))
        tables.append(wide[list(TARGETS)].to_numpy(float))
    np.testing.assert_allclose(tables[1], tables[0], rtol=0.01, atol=0.02)
