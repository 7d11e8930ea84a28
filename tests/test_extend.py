"""An extended store is the one that a build of all of it would have made, and the backbone sees
only what is new."""

import shutil
import threading
from pathlib import Path

import pandas as pd
import pytest
from commands import TINY, biomass
from test_writer import digest

from featurestore import FeatureStore
from featurestore.backbone.backbone import Backbone
from featurestore.errors import MismatchError
from featurestore.manage.extend import extend_store


def build(data, out, views, *arguments):
    biomass("store", "build", "--data", data, "--out", out, "--views", views, *TINY, *arguments)


@pytest.fixture
def seen(monkeypatch):
    """Every (image, view) the backbone was asked for."""
    asked, encode = [], Backbone.encode

    def counted(self, rows):
        asked.extend((row.image_id, row.view.name) for row in rows if row)
        return encode(self, rows)

    monkeypatch.setattr(Backbone, "encode", counted)
    return asked


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_further_views_are_made_and_the_others_copied(pasture, built, tmp_path, seen, suffix):
    out, whole = tmp_path / f"out.{suffix}", tmp_path / f"whole.{suffix}"
    build(pasture, whole, "vflip,plain,hsv", "--reserve", 3)
    seen.clear()
    biomass(
        "store",
        "extend",
        built,
        out,
        "--data",
        pasture,
        "--views",
        "vflip,plain,hsv",
        "--reserve",
        3,
    )
    assert {view for _, view in seen} == {"vflip"} and len(seen) == 6
    if suffix == "h5":
        assert biomass("store", "diff", out, whole).stdout == "no difference\n"
    assert FeatureStore.open(out).layout.n == 9 and FeatureStore.open(out).verify()
    biomass(
        "store",
        "extend",
        built,
        out,
        "--data",
        pasture,
        "--views",
        "vflip,plain,hsv",
        "--reserve",
        3,
    )
    assert len(seen) == 6


def test_further_images_are_made_and_the_others_need_no_photograph(pasture, tmp_path, seen):
    data = shutil.copytree(pasture, tmp_path / "data")
    table = pd.read_csv(data / "train.csv")
    paths = table["image_path"].unique()
    table[table["image_path"].isin(paths[:4])].to_csv(data / "train.csv", index=False)
    build(data, tmp_path / "four.h5", "plain")
    table.to_csv(data / "train.csv", index=False)
    build(data, tmp_path / "six.h5", "plain")
    for path in paths[:4]:
        (data / path).unlink()
    seen.clear()
    said = biomass(
        "store", "extend", tmp_path / "four.h5", tmp_path / "out.h5", "--data", data
    ).stdout
    assert "6 images sealed, 6 of them now" in said  # those of the last commit, too
    assert len(seen) == 2 and digest(tmp_path / "out.h5") == digest(tmp_path / "six.h5")


def test_room_alone_needs_neither_photographs_nor_backbone(built, tmp_path, seen):
    biomass("store", "extend", built, tmp_path / "out.h5", "--reserve", 5)
    out = FeatureStore.open(tmp_path / "out.h5")
    assert (out.n_sealed, out.layout.n, seen) == (6, 11, [])
    assert out.patches[3, 1].tobytes() == FeatureStore.open(built).patches[3, 1].tobytes()


def test_what_contradicts_the_old_store_is_refused(pasture, built, tmp_path):
    assert (
        "need their photographs; give --data"
        in biomass("store", "extend", built, tmp_path / "out.h5", "--views", 4, code=2).stderr
    )
    data = shutil.copytree(pasture, tmp_path / "data")
    first, second, *_ = sorted((data / "train").iterdir())
    first.write_bytes(second.read_bytes())
    stderr = biomass(
        "store",
        "extend",
        built,
        tmp_path / "out.h5",
        "--data",
        data,
        "--views",
        "plain,hsv,vflip",
        code=5,
    ).stderr
    assert f"{first.stem}: its photograph has sha256" in stderr
    table = pd.read_csv(pasture / "train.csv")
    table.assign(target=table["target"] * 2).to_csv(data / "train.csv", index=False)
    assert (
        "differs from the store's"
        in biomass("store", "extend", built, tmp_path / "o.h5", "--data", data, code=5).stderr
    )


def test_an_error_leaves_no_thread_that_reads_photographs(pasture, built, tmp_path):
    """Also while somebody holds the error: the folder may be mended or removed at once."""
    data = shutil.copytree(pasture, tmp_path / "data")
    first, second, *_ = sorted((data / "train").iterdir())
    first.write_bytes(second.read_bytes())
    before = set(threading.enumerate())
    more = {"views": "plain,hsv,vflip", "weights": "random", "device": "cpu", "progress": False}
    with pytest.raises(MismatchError, match="its photograph has sha256") as held:
        extend_store(built, tmp_path / "out.h5", data=data, **more)
    assert held and set(threading.enumerate()) <= before


def test_a_csv_that_forgets_old_images_is_refused(pasture, built, tmp_path):
    data = shutil.copytree(pasture, tmp_path / "data")
    table = pd.read_csv(data / "train.csv")
    first = table["image_path"].iloc[0]
    table[table["image_path"] != first].to_csv(data / "train.csv", index=False)
    stderr = biomass("store", "extend", built, tmp_path / "out.h5", "--data", data, code=5).stderr
    assert (
        "lacks 1 image that" in stderr
        and Path(first).stem in stderr
        and not (tmp_path / "out.h5").exists()
    )


def test_other_labels_and_columns_need_no_backbone(pasture, built, tmp_path, seen):
    data = tmp_path / "data"
    data.mkdir()
    table = pd.read_csv(pasture / "train.csv")
    table.assign(target=table["target"] * 2, Paddock="north").to_csv(
        data / "train.csv", index=False
    )
    assert (
        "--relabel` copies its tokens"
        in biomass("store", "extend", built, tmp_path / "o.h5", "--data", data, code=5).stderr
    )
    assert (
        "give --data"
        in biomass("store", "extend", built, tmp_path / "o.h5", "--relabel", code=2).stderr
    )
    biomass("store", "extend", built, tmp_path / "o.h5", "--data", data, "--relabel")
    old, new = FeatureStore.open(built), FeatureStore.open(tmp_path / "o.h5")
    assert seen == [] and new.verify() and new.patches[:].tobytes() == old.patches[:].tobytes()
    assert (new.catalog["Paddock"] == "north").all()
    assert (new.catalog["Dry_Total_g"] == old.catalog["Dry_Total_g"] * 2).all()
    assert (new.catalog["sha256"] == old.catalog["sha256"]).all()


@pytest.mark.filterwarnings("default")
def test_what_was_skipped_stays_so(pasture, tmp_path):
    data = shutil.copytree(pasture, tmp_path / "data")
    gone = sorted((data / "train").iterdir())[1]
    gone.unlink()
    build(data, tmp_path / "some.h5", "plain", "--skip-missing")
    biomass("store", "extend", tmp_path / "some.h5", tmp_path / "out.h5", "--reserve", 2)
    out = FeatureStore.open(tmp_path / "out.h5")
    assert (out.n_sealed, out.skipped, out.catalog["status"][1]) == (5, [1], "missing")


def test_an_extension_at_another_precision_is_named_in_made_by(pasture, built, tmp_path):
    with pytest.warns(UserWarning, match="computed in fp32, what is new will be in bf16"):
        extend_store(
            built,
            tmp_path / "more.h5",
            views="plain,hsv,hflip",
            weights="random",
            device="cpu",
            precision="bf16",
            data=pasture,
            progress=False,
        )
    assert FeatureStore.open(tmp_path / "more.h5").spec.made_by["precision"] == "fp32 + bf16"
