"""A build cut into parts: the bytes of one build, whatever happens to parts and to their merge."""

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import TINY, biomass
from test_scripts import documented, printed
from test_writer import digest

from featurestore import FeatureStore
from featurestore.disk import durable
from featurestore.engines import local
from featurestore.errors import InputError, LockedError, MismatchError, StoreDamaged
from featurestore.parts import build, devices, plan
from featurestore.parts.build import build_part, part_folder, part_task
from featurestore.parts.merge import merge_parts
from featurestore.parts.plan import STORE, load_plan
from featurestore.write.config import BuildConfig

pytestmark = pytest.mark.filterwarnings("default:.*photographs? skipped")

OPTIONS = ["--views", "plain,hsv", "--skip-missing", "--reserve", 3, *TINY]
MISSING, DAMAGED = 3, 4
"""Photographs of the seven: not there, and broken inside the picture."""


@pytest.fixture(scope="module", autouse=True)
def settings():
    """Two images a shard; a plan's backbone is loaded once."""
    load, loaded = build.plan_backbone, {}

    def load_once(plan, device):
        key = plan.spec.fingerprint
        if key not in loaded:
            loaded[key] = load(plan, device)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.format.zarr.SHARD_BYTES", 35_000)
        patch.setattr("featurestore.format.zarr.CHUNK_BYTES", 2500)
        patch.setattr(build, "plan_backbone", load_once)
        yield


@pytest.fixture(scope="module")
def photos(pasture, tmp_path_factory) -> Path:
    """Seven photographs and a table, one of whose columns has a text for the first one alone."""
    data = tmp_path_factory.mktemp("photos") / "data"
    shutil.copytree(pasture / "train", data / "train")
    paths = sorted(f"train/{path.name}" for path in (data / "train").iterdir())
    paths.insert(MISSING, "train/gone.jpg")
    notes = ["hail, ä"] + [None] * 6
    table = pd.DataFrame({"image_path": paths, "Note": notes, "yield": np.arange(7) / 7})
    table.to_csv(data / "train.csv", index=False)
    jpeg = data / paths[DAMAGED]
    kept = jpeg.read_bytes()[:-30_000]
    jpeg.write_bytes(kept + bytes(29_998) + b"\xff\xd9")
    return data


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> Path:
    """The store that a build in one piece makes."""
    return store_build(photos, tmp_path_factory.mktemp("whole") / "features.zarr")


@pytest.fixture(scope="module")
def planned(photos, tmp_path_factory) -> Path:
    """The plan of three parts, of which none is built."""
    folder = tmp_path_factory.mktemp("planned") / "P"
    said = biomass("store", "plan", "--data", photos, "--out", folder, "--parts", 3, *OPTIONS)
    assert "3 parts of 2 to 3 images, 7 in all, 1 of them skipped" in said.stdout
    return folder


@pytest.fixture(scope="module")
def parts(planned, tmp_path_factory) -> Path:
    """The plan with all its parts."""
    folder = tmp_path_factory.mktemp("parts") / "P"
    shutil.copytree(planned, folder)
    for part in (2, 0, 1):
        said = biomass("store", "build", "--from", folder, "--part", part)
        assert f"part {part} is finished" in said.stdout
    return folder


@pytest.fixture
def own(parts, tmp_path) -> Path:
    """A copy of the plan with all its parts, to be spoilt."""
    return Path(shutil.copytree(parts, tmp_path / "P"))


def store_build(data: Path, out: Path, *options: object) -> Path:
    biomass("store", "build", "--data", data, "--out", out, *OPTIONS, *options)
    return out


def build_all(folder: Path) -> None:
    for part in range(load_plan(folder).n_parts):
        build_part(folder, part, progress=False)


def test_parts_merge_to_the_bytes_of_one_build(parts, whole, tmp_path):
    """Photographs were skipped, places are reserved, and a column is empty in two parts."""
    out = tmp_path / "features.zarr"
    said = biomass("store", "merge", "--from", parts, "--out", out).stdout
    told = printed("store", "merge", "--from", parts, "--out", out)
    assert set(told) == documented("store merge --from")
    assert "5 images (2 more were skipped) of 3 parts; 3 shards linked, 1 image copied" in said
    assert f"may be removed, --remove-parts does it: {parts / 'parts'}" in said
    assert digest(out) == digest(whole)
    with FeatureStore.open(out) as store:
        assert store.catalog["status"][[MISSING, DAMAGED]].tolist() == ["missing", "damaged"]
        assert store.verify()


def test_C3_all_of_a_part_is_synced_once_before_it_has_its_name(planned, tmp_path, monkeypatch):
    """Not when its store is laid out, and again with its rows: each sync waits for the disk."""
    folder = Path(shutil.copytree(planned, tmp_path / "P"))
    unsynced = set()
    at_rename = []

    def writes(fd, *rest, call=os.pwritev):
        unsynced.add(os.fstat(fd).st_ino)
        return call(fd, *rest)

    def syncs(fd, call=os.fsync):
        synced[os.fstat(fd).st_ino] += 1
        unsynced.discard(os.fstat(fd).st_ino)
        return call(fd)

    def renames(old, new, call=os.replace):
        if Path(new) == part_folder(load_plan(folder), 1):
            for path in (Path(old), *Path(old).rglob("*")):
                at_rename.append((path.stat().st_ino, path.relative_to(old)))
        return call(old, new)

    synced = Counter()
    for name, replaced in (("pwritev", writes), ("fsync", syncs), ("replace", renames)):
        monkeypatch.setattr(os, name, replaced)
    monkeypatch.setattr(os, "fdatasync", syncs)
    build_part(folder, 1, progress=False)
    assert len(at_rename) > 40
    assert [name for inode, name in at_rename if inode not in synced or inode in unsynced] == []
    of_store = [inode for inode, name in at_rename if name.parts[:1] == (STORE,)]
    assert len(of_store) > 40 and {synced[inode] for inode in of_store} == {1}


def test_parts_are_published_with_the_bytes_of_one_build(own, whole, bucket, monkeypatch):
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 35_000)
    read = []

    def sha256(path, call=durable.file_sha256):
        read.append(path.name)
        return call(path)

    monkeypatch.setattr(durable, "file_sha256", sha256)
    there = {path.name for path in own.iterdir()}
    words = ["--from", own, "--out", bucket.url, "--remove-parts"]
    said = biomass("store", "merge", *words).stdout
    assert f"{bucket.url}: 5 images (2 more were skipped) of 3 parts; 3 shards linked" in said
    found = [path for path in whole.rglob("*") if path.is_file()]
    local = {str(path.relative_to(whole)): path.read_bytes() for path in found}
    assert bucket.keys(bucket.url) == local
    assert {path.name for path in own.iterdir()} == there - {"parts", "attempts"}
    assert read.count(plan.CATALOG) == 1  # the plan is read once


def test_a_merge_to_hdf5_and_one_without_links_copy_the_same_bytes(
    parts, photos, whole, tmp_path, monkeypatch
):
    biomass("store", "merge", "--from", parts, "--out", tmp_path / "merged.h5")
    assert digest(tmp_path / "merged.h5") == digest(store_build(photos, tmp_path / "whole.h5"))

    link = os.link

    def refuse(source: Path, name: Path) -> None:
        if "parts" in Path(source).parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, name)

    monkeypatch.setattr(os, "link", refuse)
    report = merge_parts(load_plan(parts), tmp_path / "copied.zarr")
    assert (report.n_linked, report.n_copied) == (0, 5)
    assert digest(tmp_path / "copied.zarr") == digest(whole)


def test_a_pooled_store_is_cut_between_photographs(photos, tmp_path):
    pooled = ["--tokens", "pooled"]
    folder = tmp_path / "P"
    biomass("store", "plan", "--data", photos, "--out", folder, "--parts", 4, *OPTIONS, *pooled)
    assert load_plan(folder).bounds == [0, 1, 3, 5, 7]
    build_all(folder)
    merge_parts(load_plan(folder), tmp_path / "merged.zarr")
    whole = store_build(photos, tmp_path / "whole.zarr", *pooled)
    assert digest(tmp_path / "merged.zarr") == digest(whole)


@pytest.mark.parametrize(
    "n_images, n_parts, most, images, bounds",
    [
        (100, 3, 10, 10, [0, 30, 60, 100]),
        (100, 3, 50, 34, [0, 34, 68, 100]),
        (10, 6, 50, 1, [0, 1, 3, 5, 6, 8, 10]),
        (7, 7, 50, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (7, 1, 50, 50, [0, 7]),
    ],
)
def test_bounds_are_whole_shards_which_are_smaller_where_parts_need_it(
    n_images, n_parts, most, images, bounds
):
    assert plan._fitting_shards(n_images, n_parts, most) == images
    assert plan._bounds(n_images, n_parts, images) == bounds


def test_every_part_has_a_shard_whatever_the_numbers():
    for n_images in range(1, 60):
        for n_parts in range(1, n_images + 1):
            for most in (1, 2, 7, 60):
                images = plan._fitting_shards(n_images, n_parts, most)
                bounds = plan._bounds(n_images, n_parts, images)
                assert 1 <= images <= most and bounds[-1] == n_images
                assert all(np.diff(bounds) > 0) and all(b % images == 0 for b in bounds[:-1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["build", "--from", "P", "--part", 3], "P has the parts 0 to 2"),
        (["build", "--from", "P"], "--from and --part go together"),
        (["build", "--part", 1], "--from and --part go together"),
        (["build", "--from", "P", "--part", 1, "--views", 2], "--views: the plan P says it"),
        (["merge", "--out", "x.zarr"], "name the stores to merge, or --from"),
        (["merge", "a.zarr", "--out", "x.zarr", "--remove-parts"], "give --from, too"),
        (["merge", "--from", "P", "--out", "x.zarr", "--reserve", 1], "the plan says it"),
    ],
)
def test_what_cannot_be_meant_is_refused(parts, monkeypatch, arguments, message):
    monkeypatch.chdir(parts.parent)
    assert message in biomass("store", *arguments, code=2).stderr


def test_more_parts_than_photographs_are_refused(photos, tmp_path):
    asked = ["--data", photos, "--out", tmp_path / "P", *OPTIONS]
    said = biomass("store", "plan", *asked, "--parts", 8, code=2).stderr
    assert "--parts 8: the table has 7 photographs" in said


def test_a_plan_that_is_there_is_kept_and_another_one_refused(planned, photos, monkeypatch):
    before = (planned / "plan.json").read_bytes()
    monkeypatch.setattr(plan, "prepare_build", None)  # nothing is looked at again
    asked = ["--data", photos, "--out", planned, *OPTIONS]
    told = printed("store", "plan", *asked, "--parts", 3)
    assert set(told) == documented("store plan")
    said = biomass("store", "plan", *asked, "--parts", 2, "--seed", 1, code=5).stderr
    assert "seed: there 0, asked 1" in said and "parts: there 3, asked 2" in said
    assert (planned / "plan.json").read_bytes() == before


def test_of_two_plans_for_one_folder_the_first_stays(photos, tmp_path, monkeypatch):
    """The other one was made while this one prepared its own."""
    asked = ["store", "plan", "--data", photos, "--out", tmp_path / "P", *OPTIONS]
    prepare = plan.prepare_build

    def overtaken(*given):
        monkeypatch.setattr(plan, "prepare_build", prepare)
        prepared = prepare(*given)
        biomass(*asked, "--parts", 3)
        return prepared

    monkeypatch.setattr(plan, "prepare_build", overtaken)
    said = biomass(*asked, "--parts", 2, code=5).stderr
    assert "parts: there 3, asked 2" in said
    assert load_plan(tmp_path / "P").n_parts == 3


def test_a_finished_part_is_told_and_left(own, monkeypatch):
    before = digest(own / "parts")
    monkeypatch.setattr(build, "plan_backbone", None)
    said = biomass("store", "build", "--from", own, "--part", 1).stdout
    assert "part 1 was finished before: 2 images, 1 of them skipped" in said
    told = printed("store", "build", "--from", own, "--part", 1)
    assert set(told) == documented("store build --part")
    assert digest(own / "parts") == before


def test_W02_of_two_processes_at_one_part_the_second_is_refused(planned, tmp_path):
    folder = Path(shutil.copytree(planned, tmp_path / "P"))
    place = part_folder(load_plan(folder), 1)
    place.parent.mkdir()
    with durable.locked(place):
        said = biomass("store", "build", "--from", folder, "--part", 1, code=75).stderr
    assert "locked by" in said and "parts/00001" in said
    biomass("store", "build", "--from", folder, "--part", 1)


def test_W03_a_process_that_finishes_after_its_successor_leaves_its_part(
    planned, tmp_path, monkeypatch
):
    """Where there are no locks; each has an attempt of its own."""
    folder = Path(shutil.copytree(planned, tmp_path / "P"))
    slow, left = build._build, []

    def overtaken(*arguments):
        monkeypatch.setattr(build, "_build", slow)
        receipt, was_there = build_part(folder, 1, lock=False, progress=False)
        left.append(digest(folder / "parts"))
        assert not was_there
        return slow(*arguments)

    monkeypatch.setattr(build, "_build", overtaken)
    _, was_there = build_part(folder, 1, lock=False, progress=False)
    assert was_there and left == [digest(folder / "parts")]
    assert list((folder / "attempts").iterdir()) == []


def test_W03_a_process_that_finishes_after_all_parts_were_merged_says_so(
    own, tmp_path, monkeypatch
):
    shutil.rmtree(own / "parts/00001")
    slow = build._build

    def overtaken(*arguments):
        monkeypatch.setattr(build, "_build", slow)
        build_part(own, 1, lock=False, progress=False)
        merge_parts(load_plan(own), tmp_path / "features.zarr", remove=True)
        return slow(*arguments)

    monkeypatch.setattr(build, "_build", overtaken)
    with pytest.raises(InputError, match="all parts were removed while it was built"):
        build_part(own, 1, lock=False, progress=False)
    assert list((own / "attempts").iterdir()) == [] and not (own / "parts").exists()


def test_W09_a_part_that_died_goes_on_and_its_litter_is_removed(planned, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(planned, tmp_path / "P"))
    attempts = folder / "attempts"
    found = []

    def dies(*arguments):
        found.append(sorted(path.name for path in arguments[3].parent.iterdir()))
        if len(found) == 1:
            (arguments[3].parent / "mark").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_build", dies)
    for _ in range(2):
        (attempts / "00001-older-plan").mkdir(parents=True, exist_ok=True)
        (attempts / "00002-of-another-part").mkdir(exist_ok=True)
        with pytest.raises(KeyboardInterrupt):
            build_part(folder, 1, progress=False)
    assert found == [[], ["mark"]]
    names = sorted(path.name[:8] for path in attempts.iterdir())
    assert names == [f"00001-{load_plan(folder).id[:2]}", "00002-of"]


@pytest.mark.parametrize(
    "change, message",
    [
        ("table", "changed since the plan"),
        ("catalog", "catalog.npy: changed since the plan was made"),
        ("weights", "have hash"),
        ("device", "device: plan cuda, here cpu"),
        ("torch", "torch: plan 1.0"),
        ("plan", "is no part 0 of the plan"),
    ],
)
def test_W06_a_part_refuses_another_plan_table_weights_device_and_torch(
    own, tmp_path, change, message
):
    told = json.loads((own / "plan.json").read_text())
    told["config"]["data"] = str(shutil.copytree(told["config"]["data"], tmp_path / "data"))
    made_by = told["spec"]["made_by"]
    if change == "table":
        with open(tmp_path / "data" / "train.csv", "a") as table:
            table.write("train/more.jpg,,1\n")
    if change == "catalog":
        (own / "catalog.npy").write_bytes((own / "catalog.npy").read_bytes()[:-1] + b"x")
    if change == "device":
        made_by["device"] = "cuda"
    if change == "torch":
        made_by["torch"] = "1.0"
    if change == "weights":
        told["config"]["seed"] = told["spec"]["tokens"]["seed"] = 5
        told["spec"] |= {"fingerprint": fingerprint(told["spec"])}
    (own / "plan.json").write_text(json.dumps(told))
    if change != "plan":
        shutil.rmtree(own / "parts")
    said = biomass("store", "build", "--from", own, "--part", 0, code=5).stderr
    assert message in said and str(own) in said or change in ("weights", "table")
    assert message in said and not list(own.glob("parts/*/receipt.json")) or change == "plan"


def fingerprint(spec: Mapping) -> str:
    """Of a spec's JSON that was edited."""
    from featurestore.format.spec import StoreSpec

    fields = {key: value for key, value in spec.items() if key != "fingerprint"}
    return StoreSpec.model_validate(fields).fingerprint


def test_W08_missing_and_foreign_parts_are_named(own, tmp_path):
    for part in (0, 2):
        shutil.rmtree(own / "parts" / f"{part:05d}")
    said = biomass("store", "merge", "--from", own, "--out", tmp_path / "m.zarr", code=3).stderr
    assert f"{own}: 2 of 3 parts are missing: 0,2; build each with" in said
    for part in (0, 2):
        shutil.copytree(own / "parts" / "00001", own / "parts" / f"{part:05d}")
    said = biomass("store", "merge", "--from", own, "--out", tmp_path / "m.zarr", code=5).stderr
    assert f"{own}/parts/00000: is no part 0 of the plan {own}" in said
    assert not (tmp_path / "m.zarr").exists()


def test_a_part_with_a_damaged_image_is_not_merged(own, tmp_path):
    with FeatureStore.open(own / "parts/00002/features.zarr") as part:
        path, offset, _ = part.layout.extents["catalog/path"].locate(1)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"X")
    with pytest.raises(StoreDamaged, match="build that part again"):
        merge_parts(load_plan(own), tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()


def test_W11_a_builder_copies_a_shard_that_is_a_parts_too(parts, photos, pasture, tmp_path):
    """A skipped photograph comes: the merged store gets it, and no part changes."""
    folder = Path(shutil.copytree(parts, tmp_path / "P"))
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    out = tmp_path / "merged.zarr"
    merge_parts(load_plan(folder), out)
    before = digest(folder / "parts")
    shutil.copy(next((pasture / "test").iterdir()), data / "train/gone.jpg")
    shards = sorted((out / "patches/c").rglob("0"))
    linked = [path for path in shards if path.is_file() and path.stat().st_nlink > 1]
    store_build(data, out)
    with FeatureStore.open(out) as store:
        assert store.sealed.tolist() == [0, 1, 2, 3, 5, 6] and store.verify()
    assert digest(folder / "parts") == before
    still = [path for path in linked if path.stat().st_nlink > 1]
    assert len(linked) == 3 and len(still) == 2


def test_remove_parts_removes_them_once_the_store_is_whole(own, tmp_path):
    out = tmp_path / "m.zarr"
    merge_parts(load_plan(own), out)
    shutil.rmtree(own / "parts" / "00001")  # killed while it removed them
    said = biomass("store", "merge", "--from", own, "--out", out, "--remove-parts").stdout
    assert "it was whole already" in said and "may be removed" not in said
    assert not (own / "parts").exists() and (own / "plan.json").exists()
    with FeatureStore.open(out) as store:
        assert store.verify()


def test_a_store_that_is_not_of_the_plan_is_left(own, tmp_path):
    other = Path(shutil.copytree(own / "parts/00000/features.zarr", tmp_path / "other.zarr"))
    before = digest(other)
    with pytest.raises(MismatchError, match="is not of the plan"):
        merge_parts(load_plan(own), other, remove=True)
    assert digest(other) == before and (own / "parts/00002").exists()


class Engine:
    """An engine that does items here, one after another, each on the next device."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []

    def __call__(self, task, items, *, devices, progress, **_):
        for i, (name, item) in enumerate(items.items()):
            device = devices[i % len(devices)]
            assert task == devices_task() and json.loads(json.dumps(item)) == item
            part_task(**item, device=device)
            self.done.append((name, device))
            progress(name)


def devices_task() -> str:
    return f"{part_task.__module__}:{part_task.__name__}"


@pytest.fixture
def fake_devices(monkeypatch) -> Engine:
    """As many CUDA devices as are asked for, which are the CPU; an engine that uses them here."""
    for module in ("parts.build", "parts.devices", "backbone.load"):
        monkeypatch.setattr(
            f"featurestore.{module}.choose_device", lambda _name: torch.device("cpu")
        )
    engine = Engine()
    monkeypatch.setattr(local, "run", engine)
    return engine


def test_W10_eight_devices_build_the_tokens_of_one(fake_devices, photos, whole, tmp_path):
    """Seven photographs keep seven of them busy, in shards of one."""
    names = [f"cuda:{i}" for i in range(8)]
    out = store_build(photos, tmp_path / "features.zarr", "--device", ",".join(names))
    assert sorted(device for _, device in fake_devices.done) == names[:7]
    assert "no difference" in biomass("store", "diff", out, whole).stdout
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["features.zarr", "features.zarr.lock"]


def test_W04_a_build_by_devices_that_was_killed_goes_on_to_the_bytes_of_one(
    fake_devices, photos, whole, tmp_path, monkeypatch
):
    out = tmp_path / "features.zarr"

    def killed(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(devices, "merge_parts", killed)
    settings = BuildConfig.check(
        data=photos,
        out=out,
        views="plain,hsv",
        skip_missing=True,
        reserve=3,
        backbone=TINY[1],
        image_size=64,
        weights="random",
        precision="fp32",
        device="cpu,cpu",
    )
    with pytest.raises(KeyboardInterrupt):
        devices.build_on_devices(settings, progress=False)
    assert len(fake_devices.done) == 4
    monkeypatch.setattr(devices, "merge_parts", merge_parts)
    with pytest.warns(UserWarning, match="2 photographs skipped"):
        report = devices.build_on_devices(settings, progress=False)
    assert len(fake_devices.done) == 4 and (report.n_images, report.n_built) == (5, 0)
    assert digest(out) == digest(whole)
    assert not (tmp_path / "features.zarr.parts").exists()
    # it is there: one device goes on with it
    monkeypatch.setattr(devices, "build_store", lambda config, _progress: config.device)
    assert devices.build_on_devices(settings, progress=False) == "cpu"


def test_devices_of_two_kinds_are_refused(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "choose_device", torch.device)
    said = biomass(
        "store", "build", "--data", photos, "--out", tmp_path / "x.zarr", "--device", "cpu,cuda:0",
        code=2,
    ).stderr  # fmt: skip
    assert "name devices of one kind" in said


@pytest.mark.system
def test_two_processes_build_the_bytes_of_one(photos, whole, tmp_path):
    out = store_build(photos, tmp_path / "features.zarr", "--device", "cpu,cpu")
    with FeatureStore.open(out) as store, FeatureStore.open(whole) as one:
        assert store.verify() and store.sealed.tolist() == one.sealed.tolist()
    assert "no difference" in biomass("store", "diff", out, whole).stdout


def test_a_locked_store_is_not_built_by_devices(photos, tmp_path, fake_devices):
    out = tmp_path / "features.zarr"
    with durable.locked(out):
        biomass(
            "store", "build", "--data", photos, "--out", out, *OPTIONS, "--device", "cpu,cpu",
            code=75,
        )  # fmt: skip
    assert not out.exists() and LockedError.exit_code == 75
