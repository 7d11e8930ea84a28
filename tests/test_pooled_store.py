"""A store without patch tokens trains whatever reads none, to the same heads; images without tokens
are left out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import TINY, biomass
from conftest import SWEEP as CONFIG
from sweeps import as_found, config, set_status, write_store

from featurestore import FeatureStore
from featurestore.disk.usable import Memory
from featurestore.errors import InputError, MismatchError
from featurestore.format.spec import POOLED
from featurestore.photos.decode import decode
from featurestore.write.writer import ImageRows, open_writer
from predictor.members.ensemble import Tokens, pooled_as_stored
from predictor.predictor import Predictor
from trainer import MixupBatches
from trainer.data.dataset import TrainingData
from trainer.data.used_store import pooled_features
from trainer.heads.kinds import load, names
from trainer.loop.prepare import prepare_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.runs import RunFolder
from trainer.loop.sweep import run_sweep

pytestmark = pytest.mark.usefixtures("small_searches")
KINDS = "[pooled_mlp, ridge, kernel_ridge, svr, pls, gpr, hist_gbdt]"
WITHOUT_PATCHES = [name for name in names() if not load(name).reads_patches]
DTYPES = ["float32", "float16"]


def left(sweep: Path) -> dict[Path, bytes]:
    """What a sweep found: its heads and tables."""
    files = [
        f
        for f in sweep.rglob("*")
        if f.suffix in (".safetensors", ".csv") or f.name == "summary.json"
    ]
    return {f.relative_to(sweep): as_found(f) for f in files}


@pytest.fixture(scope="module")
def pooled(tmp_path_factory) -> Path:
    """The store of the other tests, without its patches."""
    return write_store(tmp_path_factory.mktemp("pooled") / "features.h5", has_patches=False)


def test_all_that_reads_no_patches_learns_the_same_from_a_pooled_store(tmp_path, store, pooled):
    changes = {"kind": KINDS, "lr": "[1e-2]", "mixup": "[patches, same_site]", "intervals": 3}
    found = [
        left(
            run_sweep(
                config(tmp_path, path, **changes), tmp_path / path.parent.name, "cpu", False
            ).path
        )
        for path in (store, pooled)
    ]
    blends, ridge = 2, 3 + 1
    n_files = 4 + 8 + 3 * (2 * 2 + 5) + blends + ridge
    assert len(found[0]) == n_files and found[0] == found[1]


@pytest.mark.parametrize("kind", sorted({*names()} - {*WITHOUT_PATCHES}))
def test_a_kind_that_reads_patches_is_refused_before_any_step(tmp_path, pooled, kind):
    config(tmp_path, pooled, kind=f"[pooled_mlp, {kind}]")
    for more in ((), ("--plan",)):
        stderr = biomass(
            "train", "--config", tmp_path / "sweep.yaml", "--out", tmp_path / "runs", *more, code=5
        ).stderr
        assert (
            f"no patch tokens for head.kind {kind}; choose among {', '.join(WITHOUT_PATCHES)}"
            in stderr
        )
    assert not (tmp_path / "runs").exists()


def test_the_plan_says_that_no_patch_is_read(tmp_path, pooled):
    plans = []
    for kinds in ("[pooled_mlp, ridge]", "[ridge]"):
        config(tmp_path, pooled, kind=kinds)
        plans.append(
            biomass(
                "train", "--config", tmp_path / "sweep.yaml", "--device", "cpu", "--plan"
            ).stdout
        )
    assert (
        "reads    class tokens and pooled vectors alone, 0." in plans[0]
        and "tokens   none: a pooled store" in plans[0]
    )
    assert "alone, once a split" in plans[1] and "and 3 regressors" in plans[1]


def test_the_reader_of_a_pooled_store_reads_nothing_and_refuses_to(tmp_path, pooled):
    reader = prepare_sweep(config(tmp_path, pooled, kind="[pooled_mlp]"), "cpu").reader()
    rows = reader.step(np.array([[0, 0], [1, 2]]))
    reader.expect(np.array([[3, 0]]))
    with pytest.raises(InputError, match="a pooled store"):
        rows[""][0]
    assert reader.n_bytes_read == 0


def test_features_are_the_named_vectors_in_whatever_blocks(pooled, monkeypatch):
    store, names = FeatureStore.open(pooled), ["max", "cls", "gem3"]
    parts = [
        store.pooled[:, 1, :, POOLED.index("max")],
        store.cls[:, 1],
        store.pooled[:, 1, :, POOLED.index("gem3")],
    ]
    expected_NF = np.concatenate([part.astype(np.float64).mean(1) for part in parts], 1)
    for n_bytes in (1, 300, 1 << 20):
        monkeypatch.setattr("trainer.data.used_store.BLOCK_BYTES", n_bytes)
        assert np.array_equal(
            pooled_features(store.cls[:, 1], store.pooled[:, 1], names), expected_NF
        )


@pytest.mark.parametrize("part", ["cls", "patch", "gem3"])
def test_moments_are_the_same_in_whatever_blocks(tmp_path, pooled, monkeypatch, part):
    sweep = prepare_sweep(config(tmp_path, pooled, kind="[pooled_mlp]"), "cpu", torch.float64)
    whole = sweep.data.moments(sweep.splits, [part])[part]
    monkeypatch.setattr("trainer.data.used_store.BLOCK_BYTES", 1000)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole, sweep.data.moments(sweep.splits, [part])[part], strict=True)
    )


def test_ridge_that_would_not_fit_in_memory_is_left_out(tmp_path, pooled, monkeypatch):
    monkeypatch.setattr("trainer.loop.results.usable_memory", lambda: Memory(1000, "a limit"))
    with pytest.warns(UserWarning, match="ridge on all pooled rows, to compare with, is left out"):
        result = run_sweep(
            config(tmp_path, pooled, kind="[pooled_mlp]", lr="[1e-2]", epochs=1),
            tmp_path,
            "cpu",
            False,
        )
    assert result.summary["name"].tolist()[1:] == ["mean"]


# -- rounded to float16, and predicted with


@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=pytest.mark.system)])
@pytest.mark.filterwarnings("ignore:.*random weights")
def test_predict_from_a_pooled_store_end_to_end(tmp_path, pasture, dtype):
    """And what heads are given of a photograph is bit for bit what the store holds of it."""
    path = tmp_path / "features.zarr"
    biomass(
        "store",
        "build",
        "--data",
        pasture,
        "--out",
        path,
        "--views",
        "plain,hsv",
        "--tokens",
        "pooled",
        "--pooled-dtype",
        dtype,
        *TINY,
    )
    text = CONFIG.format(store=path).replace("cls_gating, density, attention, ", "")
    (tmp_path / "small.yaml").write_text(text)
    biomass(
        "train", "--config", tmp_path / "small.yaml", "--out", tmp_path / "runs", "--device", "cpu"
    )
    (sweep,) = (tmp_path / "runs").iterdir()
    store = FeatureStore.open(path)
    for run in sorted(sweep.glob("00*")):
        out = tmp_path / f"{run.name}.csv"
        biomass("predict", "--data", pasture, "--run", run, "--out", out, "--device", "cpu")
        assert np.isfinite(pd.read_csv(out)["target"]).all()
        predictor = Predictor.load(run, device="cpu")
        assert predictor.ensemble.pooled_dtypes[""] == dtype == RunFolder(run).spec.pooled_dtype
    decoded = decode(pasture / store.catalog["path"][3], predictor.backbone.crop)
    tokens = [
        Tokens(*predictor.backbone.tokens(decoded.tiles_THW3, store.catalog["image_id"][3], v))
        for v in store.spec.tokens.views
    ]
    assert np.array_equal(
        pooled_as_stored(tokens, dtype).numpy(), store.pooled[3].astype(np.float32)
    )


def test_float16_vectors_are_read_as_their_values(tmp_path, pooled):
    """Heads are those of a float32 store that holds the rounded values."""
    half, rounded = tmp_path / "half.h5", tmp_path / "rounded.h5"
    write_store(half, has_patches=False, pooled_dtype="float16")
    rounded.write_bytes(pooled.read_bytes())
    extent = FeatureStore.open(rounded).layout.extents["pooled"]
    with open(rounded, "r+b") as file:
        for i, row in enumerate(FeatureStore.open(half).pooled):
            file.seek(extent.locate(i)[1])
            file.write(row.astype("<f4").tobytes())
    found = []
    for path in (half, rounded):
        given = config(tmp_path, path, kind="[pooled_mlp, ridge, pls]", lr="[1e-2]")
        # rows have other bytes
        done = run_sweep(given, tmp_path / path.stem, "cpu", progress=False, check=False)
        found.append(left(done.path))
    assert found[0] == found[1]


def test_a_sweep_is_not_resumed_over_vectors_rounded_otherwise(tmp_path, pooled):
    done = run_sweep(config(tmp_path, pooled, kind="[ridge]"), tmp_path / "runs", "cpu", False).path
    (done / "summary.json").unlink()
    half = write_store(tmp_path / "half.h5", has_patches=False, pooled_dtype="float16")
    with pytest.raises(MismatchError, match="pooled_dtype float16, the sweep began with float32"):
        resume_sweep(done, store=half, progress=False)


# -- images without tokens

SKIPPED = {3: "missing", 7: "damaged", 28: "missing"}
MIXED = "[cls_gating, pooled_mlp, ridge]"


def without(path: Path, images) -> Path:
    """A store of the other images alone."""
    whole = FeatureStore.open(write_store(path.with_name("whole.h5")))
    kept = np.setdiff1d(np.arange(30), list(images))
    frame = whole.catalog.iloc[kept].drop(columns=["sha256", "width", "height", "status"])
    with open_writer(path, whole.spec, frame) as writer:
        for i, k in enumerate(kept):
            facts = whole.catalog.iloc[k][["sha256", "width", "height", "status"]].to_dict()
            patches = np.stack([whole.patches[int(k), v] for v in range(3)])
            writer.put(
                i,
                ImageRows(
                    whole.cls[k],
                    patches,
                    whole.pooled[k],
                    whole.array("stats")[k],
                    whole.thumbs[k],
                    facts,
                ),
            )
    return path


@pytest.fixture(scope="module")
def gappy(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("gappy") / "features.h5", skipped=SKIPPED)


@pytest.fixture(scope="module")
def swept(gappy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    with pytest.warns(
        UserWarning, match="3 of 30 images have no tokens and are left out.*\n  ID3\n  ID7\n  ID28"
    ) as warned:
        result = run_sweep(
            config(folder, gappy, kind=MIXED, lr="[1e-2]"), folder / "runs", "cpu", False
        )
    assert len(warned) == 1
    return result.path


def test_skipped_images_are_as_if_they_were_not_there(tmp_path, swept):
    alone = run_sweep(
        config(tmp_path, without(tmp_path / "f.h5", SKIPPED), kind=MIXED, lr="[1e-2]"),
        tmp_path,
        "cpu",
        False,
    ).path
    assert left(swept) == left(alone)
    assert (
        len(pd.read_csv(swept / "folds.csv"))
        == 27
        == json.loads((swept / "summary.json").read_text())["n_images"]
    )


def test_an_image_that_is_not_built_yet_stops_training(tmp_path, gappy):
    path = tmp_path / "f.h5"
    path.write_bytes(gappy.read_bytes())
    set_status(path, 7, "")
    with pytest.raises(InputError, match=r"image 7 \(ID7\) is not built yet"):
        prepare_sweep(config(tmp_path, path), "cpu")


@pytest.mark.filterwarnings("default:.*are left out")
def test_a_sweep_is_not_resumed_over_other_images(tmp_path, swept, store, gappy):
    """Neither over more of them nor over fewer; over the same it is."""
    swept = shutil.copytree(swept, tmp_path / "swept")
    (swept / "summary.json").unlink()
    fewer = write_store(tmp_path / "fewer.h5", skipped=SKIPPED | {12: "missing"})
    assert (
        "1 only there:\n  ID12"
        in biomass("train", "--resume", swept, "--store", fewer, code=3).stderr
    )
    assert (
        "3 missing there:\n  ID28\n  ID3\n"
        in biomass("train", "--resume", swept, "--store", store, code=3).stderr
    )
    assert (
        "3 of 30 images have no tokens"
        in biomass("train", "--resume", swept, "--store", gappy).stderr
    )


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_folds_given_may_name_skipped_images(tmp_path, gappy, store):
    prepared = prepare_sweep(config(tmp_path, store), "cpu")
    prepared.folds[["image_id", "r00"]].rename(columns={"r00": "fold"}).to_csv(
        tmp_path / "theirs.csv", index=False
    )
    text = config(tmp_path, gappy).with_cv(folds=tmp_path / "theirs.csv")
    folds = prepare_sweep(text, "cpu").folds
    kept = ~prepared.folds["image_id"].isin([f"ID{i}" for i in SKIPPED])
    assert folds["r00"].tolist() == prepared.folds["r00"][kept].tolist()


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_batches_leave_skipped_images_out(gappy):
    batches = MixupBatches(FeatureStore.open(gappy), batch_size=9)
    assert batches.images_N.tolist() == [i for i in range(30) if i not in SKIPPED]
    for batch in batches:
        assert np.array_equal(batch.patches.shape, (9, 2, 6, 7)) and not set(batch.images) & set(
            SKIPPED
        )


def test_a_store_of_skipped_images_alone_is_refused(tmp_path):
    path = write_store(tmp_path / "f.h5", skipped=dict.fromkeys(range(30), "missing"))
    with pytest.raises(InputError, match="no image to learn from, 30 were skipped"):
        TrainingData.open(config(tmp_path, path).base, torch.float32, torch.device("cpu"))
