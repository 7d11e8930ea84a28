"""`biomass store ...` on real photographs: the drawn pasture and those scikit-learn ships."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import TIMM, TINY, biomass
from PIL import Image
from sklearn.datasets import load_sample_images
from test_writer import digest

from featurestore import FeatureStore
from featurestore.backbone.load import restore_backbone
from featurestore.photos.images import read_photograph


def test_build_says_what_it_did_and_warns_of_random_weights(pasture, tmp_path):
    result = biomass(
        "store", "build", "--data", pasture, "--out", tmp_path / "f.zarr", "--views", 1, *TIMM
    )
    assert "6 images sealed, 6 of them now" in result.stdout
    assert "warning: vit_tiny_patch16_dinov3_qkvb: random weights (seed 0)" in result.stderr
    again = biomass(
        "store", "build", "--data", pasture, "--out", tmp_path / "f.zarr", "--views", 1, *TIMM
    )
    assert "6 images sealed, 0 of them now" in again.stdout


def test_stored_tokens_are_the_backbones(pasture, built):
    store = FeatureStore.open(built)
    backbone = restore_backbone(store.spec.tokens, "random", "cpu", "fp32")
    image = 4
    photograph = read_photograph(pasture / store.catalog["path"][image])
    tiles = torch.from_numpy(backbone.crop(photograph.pixels_HW3))
    cls_TD, patches_TPD = backbone.tokens(
        tiles, store.catalog["image_id"][image], backbone.spec.views[1]
    )
    assert np.array_equal(store.patches[image, 1], patches_TPD.numpy())
    assert np.array_equal(store.cls[image, 1], cls_TD.numpy())
    assert patches_TPD.shape == (2, 16, 96)
    assert store.catalog["sha256"][image] == photograph.sha256


def test_catalog_holds_labels_and_metadata(pasture, built):
    catalog = FeatureStore.open(built).catalog
    long = pd.read_csv(pasture / "train.csv")
    row = catalog.iloc[2]
    truth = long[long["image_path"] == row["path"]].set_index("target_name")["target"]
    assert all(row[name] == truth[name] for name in truth.index)
    assert row["status"] == "ok" and row["State"] in {"Tas", "Vic", "NSW", "WA"}


def test_info_stats_and_verify_print(built):
    assert "6 images x 2 views, 6 sealed / 6 total" in biomass("store", "info", built).stdout
    assert (
        json.loads(biomass("store", "info", built, "--json").stdout)["tokens"]["views"][1]["name"]
        == "hsv"
    )
    assert [r["tokens"] for r in json.loads(biomass("store", "stats", built, "--json").stdout)] == [
        "cls",
        "patch",
    ] * 2
    assert "all as committed" in biomass("store", "verify", built).stdout


def test_R14_verify_exits_with_4_and_names_the_row(built, tmp_path):
    copy = shutil.copy(built, tmp_path / "features.h5")
    with open(copy, "r+b") as file:
        offset = FeatureStore.open(built).layout.extents["patches"].locate(5)[1]
        file.seek(offset)
        file.write(b"\xff")
    result = biomass("store", "verify", copy, code=4)
    assert "hsv" in result.stderr and "CRC-32C differs" in result.stderr


@pytest.mark.parametrize("crop, tiles, grid", [("squash", 1, (4, 4)), ("whole", 1, (4, 6))])
def test_photographs_of_another_aspect(tmp_path, crop, tiles, grid):
    data = tmp_path / "data"
    data.mkdir()
    for name, pixels in zip(("china.jpg", "flower.png"), load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(data / name)
    (data / "train.csv").write_text("image_path,Dry_Total_g\nchina.jpg,3.5\nflower.png,\n")
    biomass(
        "store",
        "build",
        "--data",
        data,
        "--out",
        tmp_path / "f.h5",
        "--crop",
        crop,
        "--views",
        1,
        *TINY,
    )
    store = FeatureStore.open(tmp_path / "f.h5")
    assert store["china"].grid().shape == (tiles, *grid, 96)
    assert store.catalog["Dry_Total_g"].isna().tolist() == [False, True]
    assert store["flower"].thumb.shape == (128, 192, 3)


def test_several_layers_lie_side_by_side(pasture, tmp_path):
    for layers in ("-1", "1,-1"):
        biomass(
            "store",
            "build",
            "--data",
            pasture,
            "--out",
            tmp_path / f"f{layers}.h5",
            "--views",
            1,
            "--layers",
            layers,
            *TINY,
        )
    one, two = (FeatureStore.open(tmp_path / f"f{layers}.h5") for layers in ("-1", "1,-1"))
    assert two.cls.shape[-1] == 192
    assert np.array_equal(two.patches[1, 0][..., 96:], one.patches[1, 0])


def test_options_can_come_from_a_file_and_the_command_line_wins(pasture, tmp_path):
    config = tmp_path / "build.yaml"
    config.write_text(
        f"data: {pasture}\nout: {tmp_path}/f.h5\nbackbone: {TINY[1]}\nimage_size: 96\n"
        "weights: random\nviews: hflip\n"
    )
    biomass("store", "build", "--config", config, "--image-size", 64)
    tokens = FeatureStore.open(tmp_path / "f.h5").spec.tokens
    assert (tokens.tile_height, tokens.view_names) == (64, ("hflip",))
    config.write_text("views: 3\nlayers: -1\n")
    arguments = ["--config", config, "--data", pasture, "--out", tmp_path / "numbers.h5", *TINY]
    biomass("store", "build", *arguments)
    assert len(FeatureStore.open(tmp_path / "numbers.h5").view_names) == 3
    config.write_text("image_sise: 64\n")
    arguments = ["--config", config, "--data", pasture, "--out", tmp_path / "g.h5"]
    assert "image_sise" in biomass("store", "build", *arguments, code=3).stderr


BAD_CALLS = {
    "image size the patch does not divide": (
        ["--image-size", 65],
        "65 is not a multiple of the patch size 16; use 64 or 80",
    ),
    "not a vision transformer": (["--backbone", "resnet18"], "not a vision transformer"),
    "unknown model": (["--backbone", "vit_tyni"], "no such model; did you mean"),
    "unknown suffix": (["--out", "features.npz"], "ends in .h5"),
    "unknown view": (["--views", "upside_down"], "'upside_down' unknown"),
    "unknown layer": (["--layers", "40"], "the model has 4"),
    "no such weights": (["--weights", "nothing.safetensors"], "no such weights"),
    "no such device": (["--device", "cuda:7"], "CUDA devices here"),
}


@pytest.mark.parametrize("change, message", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_what_cannot_work_stops_before_anything_is_written(
    pasture, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    result = biomass(
        "store", "build", "--data", pasture, "--out", "f.h5", "--views", 1, *TINY, *change, code=3
    )
    assert message in result.stderr
    assert result.stderr.count("error:") == 1
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_B16_every_bad_photograph_is_listed(pasture, tmp_path):
    data = shutil.copytree(pasture, tmp_path / "data")
    first, second, third, *_ = sorted((data / "train").iterdir())
    first.write_bytes(first.read_bytes()[:2000])
    second.write_text("<html>404</html>")
    Image.new("RGB", (300, 300)).save(third)
    stderr = biomass(
        "store", "build", "--data", data, "--out", tmp_path / "f.h5", *TINY, code=3
    ).stderr
    assert "3 of 6 photographs cannot be used" in stderr
    for path in (first, second, third):
        assert path.name in stderr
    first.unlink()
    second.unlink()
    stderr = biomass(
        "store", "build", "--data", data, "--out", tmp_path / "f.h5", *TINY, code=3
    ).stderr
    assert first.name in stderr and second.name in stderr


def test_an_out_that_is_something_else_is_left_alone(pasture, tmp_path):
    (tmp_path / "notes.h5").write_text("mine")
    (tmp_path / "folder.zarr").mkdir()
    for name, why in (
        ("notes.h5", "not a readable HDF5 file"),
        ("folder.zarr", "not a Zarr v3 group"),
    ):
        assert (
            why
            in biomass(
                "store", "build", "--data", pasture, "--out", tmp_path / name, *TINY, code=3
            ).stderr
        )
    assert (tmp_path / "notes.h5").read_text() == "mine"


def test_B04_a_disk_that_is_too_small_is_refused_before_it_is_full(pasture, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "featurestore.disk.durable.shutil.disk_usage", lambda folder: SimpleNamespace(free=1000)
    )
    stderr = biomass(
        "store", "build", "--data", pasture, "--out", tmp_path / "f.h5", *TINY, code=3
    ).stderr
    assert "GB are needed" in stderr and not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize(
    "csv, message",
    [
        ("sample_id,target\nA__GDM_g,3\n", "image_path"),
        ("sample_id,image_path,target_name,target\nA__GDM_g,a.jpg,GDM_g,heavy\n", "heavy"),
        ("image_path,Dry_Total_g\ntrain/gone.jpg,3\n", "gone.jpg"),
    ],
    ids=["no column", "no number", "no photograph"],
)
def test_a_csv_that_cannot_be_used_stops_with_one_message(tmp_path, csv, message):
    (tmp_path / "train.csv").write_text(csv)
    stderr = biomass(
        "store", "build", "--data", tmp_path, "--out", tmp_path / "f.h5", *TINY, code=3
    ).stderr
    assert message in stderr and not (tmp_path / "f.h5").exists()
    _, error = stderr.split("error: ")  # before it stands what a readable table could train
    _, *listed = error.splitlines()
    assert all(line.startswith("  ") for line in listed)


def test_without_weights_and_network_the_error_says_what_to_do(pasture, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    arguments = [
        "--backbone",
        "vit_tiny_patch16_dinov3_qkvb",
        "--image-size",
        64,
        "--device",
        "cpu",
    ]
    result = biomass(
        "store", "build", "--data", pasture, "--out", tmp_path / "f.h5", *arguments, code=3
    )
    assert "--weights FILE.safetensors" in result.stderr


def test_another_backbone_is_refused_before_its_weights_are_looked_for(pasture, built, monkeypatch):
    def looked_for(*_arguments, **_options):
        raise AssertionError("weights were looked for")

    monkeypatch.setattr("featurestore.write.prepare.load_backbone", looked_for)
    said = biomass("store", "build", "--data", pasture, "--out", built, code=5).stderr
    assert (
        "holds tokens of vit_demo_patch16_dinov3, asked is vit_huge_plus_patch16_dinov3; to "
        "continue it give --backbone vit_demo_patch16_dinov3 --image-size 64 --crop halves --views"
        in said
    )


def test_weights_from_a_file_are_kept_beside_the_store_and_checked(pasture, tmp_path, built):
    from featurestore.backbone.weights import save_weights

    backbone = restore_backbone(FeatureStore.open(built).spec.tokens, "random", "cpu", "fp32")
    weights = save_weights(backbone.model.state_dict(), backbone.spec.weights_sha256, tmp_path)
    out = tmp_path / "store" / "f.h5"
    arguments = [
        "--backbone",
        TINY[1],
        "--image-size",
        64,
        "--device",
        "cpu",
        "--views",
        "plain,hsv",
    ]
    biomass("store", "build", "--data", pasture, "--out", out, *arguments, "--weights", weights)
    assert (out.parent / weights.name).exists()
    assert FeatureStore.open(out).spec.fingerprint == FeatureStore.open(built).spec.fingerprint
    assert np.array_equal(FeatureStore.open(out).cls, FeatureStore.open(built).cls)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x80\x04pickle")
    result = biomass(
        "store", "build", "--data", pasture, "--out", out, *arguments, "--weights", bad, code=3
    )
    assert "not safetensors weights" in result.stderr


@pytest.mark.parametrize("spoil", ["half the keys", "a prefix on every key", "another model"])
def test_weights_of_something_else_are_refused_even_where_timm_is_lenient(tmp_path, spoil):
    """vit_tiny_patch16_224 has a classifier in timm's config, which makes timm load with gaps
    unless told otherwise."""
    import timm
    from safetensors.torch import save_file

    from featurestore.backbone.load import load_backbone
    from featurestore.errors import InputError
    from featurestore.photos.views import VIEWS

    name, settings = (
        "vit_tiny_patch16_224",
        {"crop": "squash", "image_size": 64, "views": VIEWS[:1]},
    )
    state = timm.create_model(name, pretrained=False).state_dict()
    save_file(state, tmp_path / "good.safetensors")
    assert load_backbone(name, tmp_path / "good.safetensors", **settings).spec.width == 192
    bad = {
        "half the keys": {k: v for k, v in state.items() if "blocks.5" not in k},
        "a prefix on every key": {f"backbone.{k}": v for k, v in state.items()},
        "another model": timm.create_model("resnet18", pretrained=False).state_dict(),
    }[spoil]
    save_file(bad, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="not whole weights of vit_tiny"):
        load_backbone(name, tmp_path / "bad.safetensors", **settings)


def test_weights_are_kept_as_hashed_whatever_the_precision(pasture, built, tmp_path):
    from featurestore.backbone.load import load_backbone
    from featurestore.backbone.weights import saved_weights_path
    from featurestore.photos.views import VIEWS

    spec = FeatureStore.open(built).spec.tokens
    load_backbone(
        spec.model,
        "random",
        crop="halves",
        image_size=64,
        views=VIEWS[:1],
        precision="bf16",
        keep_in=tmp_path,
    )
    assert (
        restore_backbone(
            spec, saved_weights_path(tmp_path, spec.weights_sha256), "cpu", "fp32"
        ).spec
        == spec
    )


def test_B22_non_finite_tokens_are_refused_by_name(pasture, tmp_path, monkeypatch):
    from featurestore.backbone.forward import Forward

    once = Forward.once

    def infinite(self, x):
        return tuple([tokens * float("inf") for tokens in part] for part in once(self, x))

    monkeypatch.setattr(Forward, "once", infinite)
    result = biomass("store", "build", "--data", pasture, "--out", tmp_path / "f.h5", *TINY, code=3)
    assert "view 'plain', layer -1: tokens are not finite" in result.stderr
    assert FeatureStore.open(tmp_path / "f.h5").n_sealed == 0


@pytest.fixture(scope="module")
def built_slowly(pasture, tmp_path_factory) -> Path:
    """All twenty views: seconds in which a build can be stopped."""
    out = tmp_path_factory.mktemp("slow") / "features.h5"
    biomass("store", "build", "--data", pasture, "--out", out, *TINY)
    return out


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_B03_a_stopped_build_says_so_and_goes_on_to_the_same_bytes(
    pasture, built_slowly, tmp_path, number
):
    out = tmp_path / "features.h5"
    command = [
        sys.executable,
        "-m",
        "cli",
        "store",
        "build",
        "--data",
        pasture,
        "--out",
        out,
        *TINY,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not out.exists():
            time.sleep(0.01)
            assert process.poll() is None, process.stderr.read()
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert (
            f"go on with:\nbiomass store build --data {pasture} --out {out}"
            in process.stderr.read()
        )
    biomass("store", "build", "--data", pasture, "--out", out, *TINY)
    assert digest(out) == digest(built_slowly)
