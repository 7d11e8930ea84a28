"""`biomass store build` at length: pooled stores, what is skipped, plans, locks; and `store verify
--images`, `--repair`."""

import fcntl
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from commands import TINY, biomass
from PIL import Image
from test_store import flip_bit
from test_writer import digest

from featurestore import FeatureStore

pytestmark = pytest.mark.filterwarnings("default")  # what a build warns of is read from stderr


def build(data, out, *arguments, code=0):
    return biomass(
        "store",
        "build",
        "--data",
        data,
        "--out",
        out,
        "--views",
        "plain,hsv",
        *TINY,
        *arguments,
        code=code,
    )


@pytest.fixture
def data(pasture, tmp_path):
    return shutil.copytree(pasture, tmp_path / "data")


def photographs(data):
    return sorted((data / "train").iterdir())


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_a_pooled_store_holds_what_the_whole_one_pools(pasture, built, tmp_path, suffix):
    out = tmp_path / f"pooled.{suffix}"
    build(pasture, out, "--tokens", "pooled", "--pooled-dtype", "float16", "--no-thumbs")
    whole, pooled = FeatureStore.open(built), FeatureStore.open(out)
    assert pooled.spec.fingerprint == whole.spec.fingerprint and pooled.thumbs is None
    assert np.array_equal(pooled.cls, whole.cls)
    assert pooled.pooled.dtype == np.float16 and np.array_equal(
        pooled.pooled, whole.pooled.astype(np.float16)
    )
    assert pooled.verify() and pooled.stats()["tokens"].tolist() == ["cls", "cls"]
    assert "has_patches: store False, asked True" in build(pasture, out, code=5).stderr
    per_image = (
        sum(
            e.array.n_bytes
            for name, e in pooled.layout.extents.items()
            if name in ("cls", "pooled")
        )
        / 6
    )
    assert per_image == 2 * 2 * (1 + 5) * 96 * 2  # views, tiles, vectors, channels, bytes


def test_B15_skipped_photographs_have_a_status_and_no_tokens(data, tmp_path):
    out, (first, second, third, *_) = tmp_path / "f.h5", photographs(data)
    Image.open(third).save(third, format="png")
    whole = first.read_bytes(), second.read_bytes(), third.read_bytes()
    first.unlink()
    second.write_text("<html>404</html>")
    flip_bit(third, third.stat().st_size // 2)  # damage that no header shows
    stderr = build(data, out, code=3).stderr
    assert (
        "2 of 6 photographs cannot be used (1 missing; --skip-missing builds the others)" in stderr
    )
    result = build(data, out, "--skip-missing")
    store = FeatureStore.open(out)
    status = dict(zip(store.catalog["image_id"], store.catalog["status"], strict=True))
    assert [status[p.stem] for p in (first, second, third)] == ["missing", "damaged", "damaged"]
    assert all(path.name in result.stderr for path in (first, second, third))
    assert store.n_sealed == 3 and len(store.skipped) == 3 and store.verify()
    with pytest.raises(Exception, match="skipped, its photograph was"):
        store.cls  # noqa: B018
    for path, content in zip((first, second, third), whole, strict=True):
        path.write_bytes(content)
    build(data, out)
    clean = tmp_path / "clean.h5"
    build(data, clean)
    assert digest(out) == digest(clean)


def test_a_plan_says_bytes_memory_and_time_and_writes_nothing(pasture, tmp_path):
    out = tmp_path / "features.h5"
    said = build(pasture, out, "--plan").stdout
    assert (
        "6 images of 2 sites, 6 to build" in said
        and "s a view on cpu in fp32" in said
        and "GB free" in said
    )
    assert list(tmp_path.iterdir()) == []
    build(pasture, out)
    said = build(pasture, out, "--plan").stdout
    assert "6 images of 2 sites, 0 to build" in said
    assert re.search(r"time    0 s: \S+ m?s a view on cpu", said)


def test_B27_photographs_outside_are_taken_only_when_allowed(data, tmp_path):
    first = photographs(data)[0]
    first.rename(tmp_path / "elsewhere.png")
    first.symlink_to(tmp_path / "elsewhere.png")
    stderr = build(data, tmp_path / "f.h5", code=3).stderr
    assert "lies outside" in stderr and "--allow-outside" in stderr
    build(data, tmp_path / "f.h5", "--allow-outside")
    assert FeatureStore.open(tmp_path / "f.h5").n_sealed == 6


def test_B13_same_bytes_under_two_ids_are_named(data, tmp_path):
    first, second, *_ = photographs(data)
    second.write_bytes(first.read_bytes())
    assert f"{first.stem} = {second.stem}" in build(data, tmp_path / "f.h5").stderr


def test_B04_the_space_check_can_be_overruled(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "featurestore.disk.durable.shutil.disk_usage", lambda folder: SimpleNamespace(free=1000)
    )
    assert "--no-check-space" in build(data, tmp_path / "f.h5", code=3).stderr
    build(data, tmp_path / "f.h5", "--no-check-space")


def test_B08_a_second_builder_may_wait(pasture, tmp_path, monkeypatch):
    out, waited, flock = tmp_path / "f.h5", [], fcntl.flock

    def release(fd, kind):
        """The first one ends as soon as the second waits."""
        if kind == fcntl.LOCK_EX:
            waited.append(out.exists())
            flock(lock, fcntl.LOCK_UN)
        flock(fd, kind)

    with open(f"{out}.lock", "w") as lock:
        lock.write(json.dumps({"pid": 1, "host": "elsewhere"}))
        lock.flush()
        flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr("featurestore.disk.durable.fcntl.flock", release)
        stderr = build(pasture, out, code=75).stderr
        assert "elsewhere" in stderr and "--wait" in stderr and not waited
        build(pasture, out, "--wait")
    assert waited == [False] and FeatureStore.open(out).n_sealed == 6


def test_B09_a_file_system_without_locks_needs_a_word(pasture, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("featurestore.disk.durable.fcntl.flock", no_locks)
    assert "--no-lock" in build(pasture, tmp_path / "f.h5", code=3).stderr
    build(pasture, tmp_path / "f.h5", "--no-lock")
    assert FeatureStore.open(tmp_path / "f.h5").n_sealed == 6


def test_B28_an_edited_photograph_is_found_by_its_bytes(data, tmp_path):
    out = tmp_path / "f.h5"
    build(data, out)
    assert "all as committed" in biomass("store", "verify", out, "--data", data).stdout
    edited, gone, *_ = photographs(data)
    before = edited.stat()
    Image.open(edited).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(edited)
    os.utime(edited, ns=(before.st_atime_ns, before.st_mtime_ns))
    gone.unlink()
    stderr = biomass("store", "verify", out, "--data", data, code=4).stderr
    assert f"{edited.stem} (all views): its photograph changed" in stderr
    assert f"{gone.stem} (all views): its photograph is missing" in stderr
    assert "2 faults" in stderr


@pytest.fixture(scope="module")
def both_built(pasture, tmp_path_factory):
    """A folder with a store of each format."""
    folder = tmp_path_factory.mktemp("both")
    for suffix in ("h5", "zarr"):
        build(pasture, folder / f"f.{suffix}")
    return folder


# each array once; the other format of each: test-system
DAMAGED = {
    "patches": "h5",
    "cls": "zarr",
    "pooled": "h5",
    "stats": "zarr",
    "thumbs": "h5",
    "crc32c": "zarr",
    "seal": "h5",
    "catalog/image_id": "zarr",
    "catalog/path": "h5",
    "catalog/State": "zarr",
}


@pytest.mark.parametrize(
    "name, suffix",
    [
        pytest.param(name, suffix, marks=[] if suffix == first else pytest.mark.system)
        for name, first in DAMAGED.items()
        for suffix in ("h5", "zarr")
    ],
)
def test_R08_repair_unseals_what_is_damaged_and_a_build_makes_it_again(
    pasture, both_built, tmp_path, name, suffix
):
    out = shutil.copytree(both_built, tmp_path / "both") / f"f.{suffix}"
    whole = digest(out)
    store = FeatureStore.open(out)
    image_id = store.catalog["image_id"][2]
    path, offset, _ = store.layout.extents[name].locate(4 if name == "patches" else 2)
    flip_bit(path, offset + 1)
    stderr = biomass("store", "verify", out, "--repair", code=4).stderr
    assert "un-sealed 1 image," in stderr
    if name != "catalog/image_id":
        assert image_id in stderr
    assert FeatureStore.open(out).n_sealed == 5
    result = build(pasture, out)
    assert "6 images sealed, 1 of them now" in result.stdout
    assert digest(out) == whole


def test_B15_a_plan_counts_what_would_be_skipped(data, tmp_path):
    photographs(data)[0].unlink()
    said = build(data, tmp_path / "f.h5", "--skip-missing", "--plan").stdout
    assert "5 to build, 1 to be skipped" in said


@pytest.mark.parametrize(
    "place",
    ["featurestore.photos.images.to_rgb", "featurestore.photos.crop.Crop.__call__"],
    ids=["decode", "crop"],
)
def test_a_photograph_that_memory_is_short_for_is_named_and_not_skipped(
    data, tmp_path, monkeypatch, place
):
    def short(*_):
        raise MemoryError

    monkeypatch.setattr(place, short)
    stderr = build(data, tmp_path / "f.h5", "--skip-missing", code=75).stderr
    assert f"/{photographs(data)[0].name}: not enough memory to decode it" in stderr
    assert FeatureStore.open(tmp_path / "f.h5").skipped == []
