"""`--precision auto`: half where it is fast and near, chosen once and kept."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import biomass

from featurestore import FeatureStore
from featurestore.backbone import precision
from featurestore.backbone.forward import FULL_FLOAT32
from featurestore.backbone.load import backbone_of_store, cast_backbone, load_backbone
from featurestore.backbone.precision import Nearness, compare, fast_halves
from featurestore.errors import InputError
from featurestore.photos.views import VIEWS

DEMO = ["--backbone", "vit_demo_patch16_dinov3", "--image-size", 64, "--device", "cpu"]


@pytest.fixture
def fast(monkeypatch):
    """A CPU that passes for a device with fast halves."""
    for module in ("featurestore.backbone.precision", "featurestore.write.prepare"):
        monkeypatch.setattr(f"{module}.fast_halves", lambda device: ("fp16", "bf16"))


def build(pasture: Path, out: Path, *options: object) -> tuple[FeatureStore, str]:
    """The store, and what was said."""
    arguments = ["--data", pasture, "--out", out, "--views", 1, *DEMO, *options]
    said = biomass("store", "build", *arguments).stderr
    return FeatureStore.open(out), said


@pytest.mark.parametrize(
    "capability, expected",
    [((6, 1), ()), ((7, 5), ("fp16",)), ((8, 0), ("fp16", "bf16")), ((9, 0), ("fp16", "bf16"))],
)
def test_halves_are_fast_from_a_generation_on(monkeypatch, capability, expected):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert fast_halves(torch.device("cuda")) == expected
    assert fast_halves(torch.device("cpu")) == ()


def test_a_cpu_computes_in_fp32(pasture, tmp_path):
    store, said = build(pasture, tmp_path / "f.h5", "--precision", "auto")
    assert store.spec.precision == "fp32" and "precision" not in said


def test_a_device_with_fast_halves_takes_fp16_and_keeps_it(pasture, tmp_path, fast, monkeypatch):
    store, said = build(pasture, tmp_path / "f.h5")
    assert store.spec.made_by["precision"] == "fp16"
    assert "precision fp16; beside fp32, fp16: least cosine 0.99999" in said

    # a slower machine goes on as it was begun, and so does predict
    monkeypatch.undo()
    again, said = build(pasture, tmp_path / "f.h5")
    assert again.spec.precision == "fp16" and "precision" not in said
    backbone = backbone_of_store(store.spec, None, [tmp_path], "--weights", "cpu")
    assert backbone.precision == "fp16"

    asked, _ = build(pasture, tmp_path / "g.h5", "--precision", "fp32")
    assert asked.spec.fingerprint == store.spec.fingerprint
    assert not np.array_equal(asked.patches, store.patches)


def test_tokens_that_are_too_far_leave_it_at_fp32(pasture, tmp_path, fast, monkeypatch):
    monkeypatch.setattr(precision, "MOST_RMS", 1e-5)
    store, said = build(pasture, tmp_path / "f.h5")
    assert store.spec.precision == "fp32"
    assert "precision fp32" in said and "bf16: least cosine 0.99" in said


def test_a_half_that_cannot_hold_the_tokens_is_passed_over(pasture, tmp_path, fast, monkeypatch):
    def too_large_for_fp16(exact, half, photographs):
        if half.precision == "fp16":
            raise InputError("not finite")
        return Nearness(1.0, 0.0)

    monkeypatch.setattr(precision, "compare", too_large_for_fp16)
    store, said = build(pasture, tmp_path / "f.h5")
    assert store.spec.precision == "bf16" and "fp16: tokens are not finite" in said


def test_nearness_is_that_of_every_token():
    exact = load_backbone(
        "vit_demo_patch16_dinov3", None, crop="halves", image_size=64, views=VIEWS[:1]
    )
    half = cast_backbone(exact, "bf16")
    tiles = torch.randint(256, (2, 2, 64, 64, 3), generator=torch.manual_seed(0)).byte()
    found = compare(exact, half, tiles)
    of_both = []
    for backbone in (exact, half):
        made = [backbone.tokens(tiles[n], str(n), VIEWS[0]) for n in (0, 1)]
        vectors = [each.reshape(-1, 96).numpy() for tokens in made for each in tokens]
        of_both.append(np.concatenate(vectors).astype(np.float64))
    one_XD, other_XD = of_both
    norm_X = np.linalg.norm(one_XD, axis=1)
    off_X = np.linalg.norm(one_XD - other_XD, axis=1) / norm_X
    cosine_X = (one_XD * other_XD).sum(1) / norm_X / np.linalg.norm(other_XD, axis=1)
    assert found.rms == pytest.approx(np.sqrt((off_X**2).mean()), rel=1e-4)
    assert found.least_cosine == pytest.approx(cosine_X.min(), abs=1e-6)
    assert not found.is_enough  # bf16 is too coarse
    assert exact.dtype == torch.float32 and next(exact.model.parameters()).dtype == torch.float32


def test_convolutions_are_not_rounded_to_tf32_where_precision_says_float32(pasture, tmp_path):
    """On CUDA cuDNN would; whoever calls keeps what they had set."""
    store, _ = build(pasture, tmp_path / "f.h5")
    backbone = backbone_of_store(store.spec, None, [tmp_path], "--backbone-weights", "cpu")
    seen = []
    patch_embed = backbone.forward.model.patch_embed
    patch_embed.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    assert torch.backends.cudnn.allow_tf32
    backbone.try_out()
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_threads_that_overlap_leave_the_setting_as_it_was():
    first, second = ExitStack(), ExitStack()
    for thread in (first, second):
        thread.enter_context(FULL_FLOAT32)
    first.close()
    assert not torch.backends.cudnn.allow_tf32
    second.close()
    assert torch.backends.cudnn.allow_tf32
