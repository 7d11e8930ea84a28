"""A sweep over several stores of the same photographs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from conftest import VIEWS
from safetensors.numpy import load_file
from several import write_beside, write_config, write_joined, write_pair
from sweeps import config

from featurestore import FeatureStore
from featurestore.errors import InputError, MismatchError
from trainer.data.dataset import TrainingData
from trainer.heads.reads import vectors_of
from trainer.loop.grid import SweepConfig, load_point
from trainer.loop.prepare import prepare_sweep
from trainer.loop.sweep import run_sweep


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> dict[str, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def joined(pair, tmp_path_factory) -> Path:
    return write_joined(tmp_path_factory.mktemp("joined") / "ab.h5", list(pair.values()))


def trained(folder: Path, head: str, stores: dict[str, Path] | Path, out: str = "runs") -> Path:
    loaded = SweepConfig.load(write_config(folder, head, stores))
    return run_sweep(loaded, folder / out, "cpu", progress=False).path


def runs(sweep: Path) -> list[Path]:
    return sorted(path.parent for path in sweep.glob("0*/config.yaml"))


def assert_same(run: Path, other: Path) -> None:
    """The same out-of-fold rows, and the same tensors."""
    for file in sorted(run.glob("weights/*")):
        ours, theirs = load_file(file), load_file(other / "weights" / file.name)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert (run / "oof.csv").read_bytes() == (other / "oof.csv").read_bytes()


@pytest.mark.parametrize("kind", ["ridge", "pooled_mlp"])
def test_stores_side_by_side_are_as_one_store_of_all_their_channels(tmp_path, pair, joined, kind):
    """A bare name is that vector of every store, in order."""
    head = f"kind: {kind}, features: [cls, gem3]"
    (run,) = runs(trained(tmp_path, head, pair))
    (other,) = runs(trained(tmp_path, head, joined, "one"))
    assert_same(run, other)


@pytest.mark.parametrize("kind", ["ridge", "pooled_mlp"])
def test_a_vector_of_one_store_is_what_that_store_alone_gives(tmp_path, pair, kind):
    (run,) = runs(trained(tmp_path, f"kind: {kind}, features: [b/mean, b/cls]", pair))
    (other,) = runs(trained(tmp_path, f"kind: {kind}, features: [mean, cls]", pair["b"], "one"))
    assert_same(run, other)


def test_named_vectors_stand_in_the_order_in_which_they_are_named(tmp_path, pair):
    path = write_config(tmp_path, "kind: ridge, features: [b/max, cls, a/std]", pair)
    base = SweepConfig.load(path).base
    sweep = prepare_sweep(SweepConfig.load(path), "cpu")
    a, b = (FeatureStore.open(store) for store in pair.values())
    vectors = [b.pooled[:, 1, :, 2], a.cls[:, 1], b.cls[:, 1], a.pooled[:, 1, :, 1]]
    expected_NF = np.concatenate([each.astype(np.float64).mean(1) for each in vectors], 1)
    some_n = np.array([7, 2, 11])
    np.testing.assert_array_equal(
        sweep.data.features(vectors_of(base), 1, some_n), expected_NF[some_n]
    )


@pytest.mark.parametrize("kind", ["cls_gating", "density"])
def test_patches_come_from_the_store_that_the_head_names(tmp_path, pair, kind):
    sweep = trained(tmp_path, f"kind: {kind}, store: [null, b]", pair)
    for run, store in zip(runs(sweep), pair.values(), strict=True):
        (other,) = runs(trained(tmp_path, f"kind: {kind}", store, store.stem))
        assert_same(run, other)


def test_keys_of_stores_do_not_multiply_kinds_that_ignore_them(tmp_path, pair):
    head = "kind: [density, ridge], store: [null, a, b], features: [[cls], [a/cls, b/cls], [b/cls]]"
    points = SweepConfig.load(write_config(tmp_path, head, pair)).points
    told = [(p.head.kind, p.head.store, p.head.features) for p in points]
    assert told == [
        ("density", None, ["cls"]),
        ("density", "b", ["cls"]),
        ("ridge", None, ["cls"]),
        ("ridge", None, ["a/cls", "b/cls"]),
        ("ridge", None, ["b/cls"]),
    ]


def test_what_has_one_store_is_saved_without_the_keys_of_several(tmp_path, pair):
    (run,) = runs(trained(tmp_path, "kind: ridge", pair["a"]))
    text = (run / "config.yaml").read_text()
    assert "stores" not in text and "store: null" not in text
    assert not (run / "stores.json").exists()
    assert "stores" not in json.loads((run.parent / "sweep.json").read_text())["base"]["dataset"]


def test_a_run_keeps_the_specs_of_all_its_stores(tmp_path, pair):
    (run,) = runs(trained(tmp_path, "kind: ridge", pair))
    a, b = (FeatureStore.open(store) for store in pair.values())
    spec = json.loads((run / "spec.json").read_text())
    others = json.loads((run / "stores.json").read_text())
    assert spec["store"] == json.loads(a.spec.to_json())
    assert list(others) == ["b"]
    assert others["b"] == {"store": json.loads(b.spec.to_json()), "store_folder": b.folder}
    assert load_point(run / "config.yaml").dataset.stores == pair
    facts = json.loads((run.parent / "sweep.json").read_text())
    assert facts["fingerprint"] == a.spec.fingerprint
    assert {name: each["fingerprint"] for name, each in facts["stores"].items()} == {
        "a": a.spec.fingerprint,
        "b": b.spec.fingerprint,
    }


@pytest.mark.parametrize(
    "head, message",
    [
        ("kind: ridge, features: [c/cls]", "head.features: 'c/cls': no store c in dataset.stores"),
        ("kind: density, store: [a, c]", "head.store: 'c': no store c in dataset.stores"),
        ("kind: ridge, features: [a/clz]", "found 'a/clz', expected one of cls, mean"),
    ],
)
def test_stores_that_are_not_named_are_refused(tmp_path, pair, head, message):
    with pytest.raises(InputError, match=message):
        SweepConfig.load(write_config(tmp_path, head, pair))


@pytest.mark.parametrize("dataset", ["dataset: 5", "dataset: {stores: [a.h5]}", "dataset:"])
def test_places_on_the_command_line_leave_what_is_wrong_to_be_refused(tmp_path, pair, dataset):
    path = write_config(tmp_path, "kind: ridge", {})
    path.write_text(path.read_text().replace("head:", f"{dataset}\nhead:"))
    if dataset == "dataset:" or "[" in dataset:
        assert SweepConfig.load(path, {"dataset.stores": pair}).base.dataset.stores == pair
    else:
        with pytest.raises(InputError, match="dataset: found 5"):
            SweepConfig.load(path, {"dataset.stores": pair})


def test_one_of_store_and_stores(tmp_path, pair):
    path = write_config(tmp_path, "kind: ridge", pair)
    with pytest.raises(InputError, match="give one of the two"):
        SweepConfig.load(path, {"dataset.store": pair["a"]})


def other_photograph(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(sha256=frame["sha256"].where(frame.index != 4, "f" * 64))


@pytest.mark.parametrize(
    "change, message",
    [
        (other_photograph, "b.h5: 1 image is of other photographs.*\n.*ID4: sha256 ffff.* 0000"),
        (lambda frame: frame.iloc[:28], r"b.h5: lacks tokens of 2 images.*\n.*ID28\n.*ID29"),
    ],
    ids=["sha256", "image"],
)
def test_stores_of_other_photographs_are_refused(tmp_path, pair, change, message):
    b = write_beside(tmp_path / "b.h5", pair["a"], change=change)
    path = write_config(tmp_path, "kind: ridge", {"a": pair["a"], "b": b})
    with pytest.raises(MismatchError, match=message):
        prepare_sweep(SweepConfig.load(path), "cpu")


def test_a_store_may_hold_its_images_in_another_order_and_more_of_them(tmp_path, pair):
    """Of a part of the images, chosen by --images say."""

    def reversed_rows(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.iloc[::-1].reset_index(drop=True)

    b = write_beside(tmp_path / "b.h5", pair["a"], change=reversed_rows)
    path = write_config(tmp_path, "kind: ridge", {"a": pair["a"], "b": b})
    ids = [f"ID{i}" for i in range(3, 27)]
    loaded = SweepConfig.load(path, {"dataset.images": ids})
    data = prepare_sweep(loaded, "cpu").data
    assert isinstance(data, TrainingData)
    positions = data.stores["b"].images_N
    assert FeatureStore.open(b).catalog["image_id"].iloc[positions].tolist() == ids


@pytest.mark.parametrize("kind", ["pooled_mlp", "ridge"])
def test_other_tiles_are_for_regressors_alone(tmp_path, pair, kind):
    b = write_beside(tmp_path / "b.h5", pair["a"], n_tiles=1)
    path = write_config(tmp_path, f"kind: {kind}, features: [cls]", {"a": pair["a"], "b": b})
    if kind == "ridge":
        assert prepare_sweep(SweepConfig.load(path), "cpu").plan().n_regressors == 1
        return
    with pytest.raises(MismatchError, match=r"other numbers of tiles \(a 2, b 1\)"):
        prepare_sweep(SweepConfig.load(path), "cpu")


@pytest.mark.parametrize("kind", ["pooled_mlp", "density", "ridge"])
def test_trained_heads_need_the_views_of_the_first_store(tmp_path, pair, kind):
    swapped = [VIEWS[0], VIEWS[2], VIEWS[1]]
    b = write_beside(tmp_path / "b.h5", pair["a"], views=swapped)
    head = f"kind: {kind}, features: [cls], store: b"
    path = write_config(tmp_path, head, {"a": pair["a"], "b": b})
    # regressors need those they are scored under
    message = "needs the views of store a in store b.*: plain, hflip, vflip; it has plain, vflip"
    if kind == "ridge":
        message = "needs the views of store a in store b.*: plain, vflip; it has plain, hflip"
    with pytest.raises(MismatchError, match=message):
        prepare_sweep(SweepConfig.load(path), "cpu")
    if kind == "ridge":
        path.write_text(path.read_text().replace("[0, 2]", "[0]"))
        prepare_sweep(SweepConfig.load(path), "cpu")


def test_stores_are_named_on_the_command_line(tmp_path, pair):
    path = write_config(tmp_path, "kind: [density, ridge], store: [a, b]", {})
    named = [f"--store={name}={store}" for name, store in pair.items()]
    plan = biomass("train", "--config", path, *named, "--device", "cpu", "--plan").output
    assert "6 = 3 splits x 2 points, and 3 regressors" in plan
    assert "a: mapped" in plan and "b: mapped" in plan
    twice = biomass("train", "--config", path, *named, named[0], code=2).output
    assert "NAME=PATH for each of several stores, each name once" in twice
    both = biomass("train", "--config", path, "--store", pair["a"], *named, code=2).output
    assert "NAME=PATH for each of several stores, each name once" in both


def test_names_on_the_command_line_go_before_those_of_the_config(tmp_path, pair):
    path = write_config(tmp_path, "kind: ridge", {"a": Path("gone.h5"), "b": pair["b"]})
    out = biomass("train", "--config", path, f"--store=a={pair['a']}", "--out", tmp_path / "runs")
    (run,) = runs(Path(out.stdout.strip().splitlines()[-1]))
    assert load_point(run / "config.yaml").dataset.stores == pair


def stopped(folder: Path, stores: dict[str, Path]) -> Path:
    """A sweep that has all but its summary."""
    sweep = trained(folder, "kind: [density, pooled_mlp, ridge], store: [a, b]", stores)
    (sweep / "summary.json").unlink()
    return sweep


def test_a_sweep_goes_on_where_its_stores_are_now(tmp_path, pair):
    stores = {name: tmp_path / "stores" / path.name for name, path in pair.items()}
    (tmp_path / "stores").mkdir()
    for name, path in pair.items():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, stores[name])
    sweep = stopped(tmp_path, stores)
    before = (sweep / "summary.csv").read_bytes()
    stores["b"].rename(tmp_path / "elsewhere.zarr")

    lost = biomass("train", "--resume", sweep, code=3).output
    assert "b.zarr: the sweep's store is no longer there" in lost
    unnamed = biomass("train", "--resume", sweep, "--store", tmp_path / "elsewhere.zarr", code=2)
    assert "it has several stores (a, b)" in unnamed.output
    unknown = biomass("train", "--resume", sweep, f"--store=c={pair['b']}", code=3).output
    assert "has no store c" in unknown
    other = biomass("train", "--resume", sweep, f"--store=b={pair['a']}", code=5).output
    assert "stores.b.fingerprint" in other
    biomass("train", "--resume", sweep, f"--store=b={tmp_path / 'elsewhere.zarr'}")
    assert (sweep / "summary.csv").read_bytes() == before


def test_a_sweep_of_one_store_has_no_names_to_resume_by(tmp_path, store):
    sweep = run_sweep(config(tmp_path, store, kind="[ridge]"), tmp_path / "runs", "cpu").path
    (sweep / "summary.json").unlink()
    refused = biomass("train", "--resume", sweep, f"--store=a={store}", code=2).output
    assert "its store has no name" in refused


def test_a_row_that_rots_in_any_store_stops_the_sweep(tmp_path, pair):
    b = tmp_path / "b.zarr"
    shutil.copytree(pair["b"], b)
    path = write_config(tmp_path, "kind: ridge, features: [a/cls, b/cls]", {"a": pair["a"], "b": b})
    file, offset, _ = FeatureStore.open(b).layout.extents["cls"].locate(9)
    with open(file, "r+b") as cells:
        cells.seek(offset)
        cells.write(b"\x01\x02")
    damaged = biomass("train", "--config", path, "--out", tmp_path / "runs", code=4).output
    assert "ID9" in damaged and str(b) in damaged
