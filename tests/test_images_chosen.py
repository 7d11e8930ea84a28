"""A photograph that train.csv no longer has stays in a store, is named at build, and can be left
out of a sweep by its id."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from commands import TINY, biomass
from sweeps import config, write_store

from featurestore import FeatureStore
from featurestore.errors import InputError
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import prepare_sweep
from trainer.loop.resume import resume_sweep
from trainer.loop.sweep import run_sweep

KEPT = [f"ID{i}" for i in range(30) if i not in (4, 17)]
RUN = "001_tiny__weight_decay-0_01"


def chosen(tmp_path, store, ids=KEPT, **changes) -> SweepConfig:
    """A small sweep of some images."""
    config(tmp_path, store, kind="density", lr="1e-2", epochs=2, **changes)
    return SweepConfig.load(tmp_path / "sweep.yaml", {"dataset.images": ids})


@pytest.mark.filterwarnings("default")
def test_K4_build_names_what_train_csv_no_longer_has(pasture, built, tmp_path):
    store, data = (
        shutil.copy(built, tmp_path / "features.h5"),
        shutil.copytree(pasture, tmp_path / "data"),
    )
    table = pd.read_csv(data / "train.csv")
    gone = table["image_path"].iloc[0]
    table[table["image_path"] != gone].to_csv(data / "train.csv", index=False)
    before = store.read_bytes()
    for plan in ([], ["--plan"]):
        said = biomass(
            "store", "build", "--data", data, "--out", store, "--views", "plain,hsv", *TINY, *plan
        ).stderr
        assert f"lacks 1 image that {store} holds" in said and f"\n  {gone[6:-4]}" in said
        assert (
            f"biomass store convert {store} NEW --images FILE" in said
            and "biomass train --images FILE" in said
        )
    assert store.read_bytes() == before


def test_K4_a_sweep_of_fewer_images_never_sees_the_others(tmp_path, store):
    sweep = prepare_sweep(chosen(tmp_path, store), "cpu")
    assert sweep.data.catalog["image_id"].tolist() == KEPT == sweep.folds["image_id"].tolist()
    batches = [
        sweep.stream.batch(epoch, step)
        for epoch in range(2)
        for step in range(sweep.stream.n_steps)
    ]
    seen = set(
        np.concatenate([sweep.data.first.stored(batch.rows_U2)[:, 0] for batch in batches]).tolist()
    )
    assert not {4, 17} & seen and len(seen) > 20


def test_K4_its_heads_are_those_of_a_store_without_them(tmp_path, store):
    biomass("store", "convert", store, tmp_path / "fewer.h5", "--images", ",".join(KEPT))
    few = run_sweep(chosen(tmp_path, store), tmp_path / "a", "cpu", progress=False)
    whole = run_sweep(
        chosen(tmp_path, tmp_path / "fewer.h5", []), tmp_path / "b", "cpu", progress=False
    )
    for name in (f"{RUN}/weights/last_fold1.safetensors", f"{RUN}/oof.csv", "folds.csv"):
        assert (few.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_K4_from_a_file_by_the_command_which_leaves_the_store_as_it_is(tmp_path, store):
    config(tmp_path, store, kind="density", lr="1e-2", epochs=1)
    (tmp_path / "ids.txt").write_text("\n".join(reversed(KEPT)) + "\n\n")
    before = store.read_bytes()
    arguments = ["--images", tmp_path / "ids.txt", "--out", tmp_path / "runs", "--device", "cpu"]
    biomass("train", "--config", tmp_path / "sweep.yaml", *arguments)
    (folds,) = (tmp_path / "runs").glob("*/folds.csv")
    assert pd.read_csv(folds)["image_id"].tolist() == KEPT and store.read_bytes() == before


def test_K4_a_resumed_sweep_uses_the_images_it_began_with(tmp_path, store):
    whole = run_sweep(chosen(tmp_path, store), tmp_path / "runs", "cpu", progress=False)
    heads = (whole.path / f"{RUN}/weights/last_fold2.safetensors").read_bytes()
    assert sorted(
        json.loads((whole.path / "sweep.json").read_text())["base"]["dataset"]["images"]
    ) == sorted(KEPT)
    (whole.path / "summary.json").unlink()
    shutil.rmtree(whole.path / RUN)
    resume_sweep(whole.path, progress=False)
    assert (whole.path / f"{RUN}/weights/last_fold2.safetensors").read_bytes() == heads
    said = biomass("train", "--resume", whole.path, "--images", "ID1", code=2).stderr
    assert "--resume takes folds, images and passes from the sweep" in said


def test_K4_folds_of_another_tool_may_hold_the_others_too(tmp_path, store):
    frame = FeatureStore.open(store).catalog
    fold = pd.factorize(frame["Sampling_Date"])[0] % 3
    pd.DataFrame({"image_id": frame["image_id"], "fold": fold}).to_csv(
        tmp_path / "folds.csv", index=False
    )
    config(tmp_path, store)
    overrides = {"dataset.images": KEPT, "cv.folds": tmp_path / "folds.csv"}
    folds = prepare_sweep(SweepConfig.load(tmp_path / "sweep.yaml", overrides), "cpu").folds
    assert folds["image_id"].tolist() == KEPT
    assert folds["r00"].tolist() == [fold for i, fold in enumerate(fold) if i not in (4, 17)]


@pytest.mark.parametrize(
    "ids, named", [(["ID1", "ID99", "nobody"], "\n  ID99\n  nobody"), (["ID3", "ID5"], "\n  ID3$")]
)
def test_K4_ids_without_tokens_are_refused_by_name(tmp_path, ids, named):
    store = write_store(tmp_path / "some.h5", skipped={3: "missing"})
    with pytest.raises(InputError, match=f"no such images, or no tokens of them.*{named}"):
        prepare_sweep(chosen(tmp_path, store, ids), "cpu")


def test_K4_no_id_at_all_is_not_every_image(tmp_path, store):
    config(tmp_path, store)
    (tmp_path / "none.txt").touch()
    for images in (tmp_path / "none.txt", ","):
        said = biomass(
            "train", "--config", tmp_path / "sweep.yaml", "--images", images, "--plan", code=3
        ).stderr
        assert "names no image" in said
        assert (
            "names no image"
            in biomass(
                "store", "convert", store, tmp_path / "o.h5", "--images", images, code=3
            ).stderr
        )
