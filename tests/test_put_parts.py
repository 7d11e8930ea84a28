"""Parts that put their shards straight into a bucket: the bytes of one build, whoever is stopped,
overtaken by an attempt with other bits, or finds something else there."""

import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import parts_child
import pytest
from commands import biomass
from conftest import tiny_rows
from test_publish import files
from test_scripts import documented, printed

from featurestore import FeatureStore, open_writer
from featurestore.disk import durable
from featurestore.errors import InputError, MismatchError, StoreDamaged, UsageError
from featurestore.parts import build, put
from featurestore.parts.build import build_part, finished_part, part_folder, scratch_folder
from featurestore.parts.plan import PartPlan, load_plan
from featurestore.parts.publish import publish_parts

N_PARTS = 3
"""Of five images, two in a shard: the last part has a shard that is short."""
put_shard = put.put_shard


def also(value: object) -> object:
    """A case for `make test-system` alone."""
    return pytest.param(value, marks=pytest.mark.system)


@pytest.fixture
def tmp_path(memory_path) -> Path:
    return memory_path


@pytest.fixture
def planned(bucket, tmp_path, monkeypatch) -> PartPlan:
    """The plan for a bucket, whose rows need no backbone."""
    monkeypatch.setattr("featurestore.format.zarr.CHUNK_BYTES", 200)
    monkeypatch.setattr(build, "_build", parts_child.put_rows)
    monkeypatch.setattr(build, "plan_backbone", lambda _plan, _device: None)
    return parts_child.plan_tiny(tmp_path / "P", monkeypatch, N_PARTS, bucket.url)


@pytest.fixture
def whole(planned, tmp_path) -> dict[str, bytes]:
    """Files of the store that no parts were made for."""
    return files(parts_child.whole_store(tmp_path / "whole.zarr", planned.spec))


def build_parts(plan: PartPlan, *parts: int, **options: object) -> None:
    for part in parts or range(plan.n_parts):
        build_part(plan.folder, part, progress=False, **options)


def shards(plan: PartPlan, *parts: int) -> set[str]:
    """Keys of what some parts put."""
    first = [plan.bounds[part] // plan.shard_images for part in parts]
    return {f"patches/c/{number}/0/0/0/0" for number in first}


def other_rows(plan: PartPlan, part: int, _backbone: object, out: Path, _progress: bool) -> list:
    """As another device may make them: every vector differs."""
    first, end = plan.bounds[part : part + 2]
    frame = plan.frame(first, end)
    options = {"lock": False, "shard_images": plan.shard_images}
    with open_writer(out, plan.spec, frame, **options) as writer:
        for image in writer.pending():
            rows = tiny_rows(plan.spec, 100 + first + image)
            rows.facts["sha256"] = f"{first + image:064x}"
            writer.put(image, rows)
    return []


def test_parts_put_their_shards_and_the_rest_follows_when_all_are_there(bucket, planned, whole):
    assert planned.bounds == [0, 2, 4, 5] and planned.shard_images == 2
    for part, keys in ((2, (2,)), (0, (0, 2)), (1, (0, 1, 2))):
        build_parts(planned, part)
        assert bucket.keys(bucket.url).keys() == {"catalog/zarr.json"} | shards(planned, *keys)
    assert not list((planned.folder / "attempts").iterdir())
    with pytest.raises(InputError, match="not all of one yet"):
        FeatureStore.open(bucket.url)

    report = publish_parts(planned, bucket.url, remove=True)
    assert "3 shards were there, the rest was put" in str(report)
    assert bucket.keys(bucket.url) == whole
    left = {path.name for path in planned.folder.iterdir()}
    assert left == {"plan.json", "plan.json.lock", "catalog.npy"}
    with FeatureStore.open(bucket.url) as store:
        assert store.verify()


def test_what_parts_put_is_not_kept_here(planned):
    build_parts(planned)
    kept = list((planned.folder / "records").rglob("patches/c/0/0/0/0/0"))
    assert len(kept) == 3
    for path in kept:
        assert 512 * path.stat().st_blocks < path.stat().st_size, "it has a hole"
        assert not any(path.read_bytes()[:4096])


@pytest.mark.system
def test_other_clients_read_it_unchanged(bucket, planned):
    obstore = pytest.importorskip("obstore")
    zarr = pytest.importorskip("zarr")
    build_parts(planned)
    publish_parts(planned, bucket.url)
    options = {"client_options": {"allow_http": True}}
    there = zarr.storage.ObjectStore(obstore.store.from_url(bucket.url, **options), read_only=True)
    patches = zarr.open_group(there, mode="r")["patches"][:]
    rows = [tiny_rows(planned.spec, image).patches_VTPD for image in range(5)]
    assert np.array_equal(patches, np.stack(rows))


def test_the_commit_comes_last(bucket, planned):
    build_parts(planned)
    bucket.asked.clear()
    publish_parts(planned, bucket.url)
    keys = [key.partition("features.zarr/")[2] for method, key in bucket.asked if method == "PUT"]
    assert keys[:3] == ["catalog/zarr.json", "catalog/zarr.json", "crc32c/c/0/0"]
    assert keys[-2:] == ["seal/c/0", "zarr.json"]
    assert not [key for key in keys if key.startswith("patches/c/")]


def test_commands_know_the_place_from_the_plan(bucket, planned, whole):
    build_parts(planned)
    said = biomass("store", "merge", "--from", planned.folder, "--out", "x.zarr", code=2).stderr
    assert f"are put at {bucket.url}; leave --out out" in said
    merge = ["store", "merge", "--from", planned.folder]
    told = printed(*merge)
    assert set(told) == documented("store merge --from") and told["n_put"] == 3
    assert bucket.keys(bucket.url) == whole
    for _ in range(2):  # with its parts, and without them
        assert "it was whole already" in biomass(*merge, "--remove-parts").stdout


def test_a_part_can_lie_elsewhere_until_it_is_put(bucket, planned, whole, tmp_path, monkeypatch):
    scratch = tmp_path / "fast"
    scratch.mkdir()
    there = scratch_folder(planned, scratch)
    seen = []

    def watch(*given):
        seen.extend(path.name for path in (there / "attempts").iterdir())
        assert not list((planned.folder / "attempts").iterdir())
        return put_shard(*given)

    (planned.folder / "attempts").mkdir()
    monkeypatch.setattr(put, "put_shard", watch)
    build_parts(planned, scratch=scratch)
    assert [name[:5] for name in seen] == ["00000", "00001", "00002"]
    assert not list((there / "attempts").iterdir())
    publish_parts(planned, bucket.url)
    assert bucket.keys(bucket.url) == whole


def test_a_plan_for_a_bucket_is_refused_where_something_is(bucket, tmp_path, monkeypatch):
    bucket.put(bucket.url, "zarr.json", b"{}")
    with pytest.raises(MismatchError, match=r"objects of something else.*\n  zarr.json"):
        parts_child.plan_tiny(tmp_path / "P", monkeypatch, 2, bucket.url)
    assert not (tmp_path / "P/plan.json").exists()


def test_a_plan_is_for_one_place(planned, bucket, tmp_path):
    with pytest.raises(UsageError, match="are put at"):
        publish_parts(planned, "s3://pasture/other.zarr")
    told = json.loads((planned.folder / "plan.json").read_text())
    assert (told["version"], told["url"]) == (2, bucket.url), "older programs would keep shards"
    del told["url"]
    (planned.folder / "plan.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="no biomass-build-plan of version 1"):
        load_plan(planned.folder)


# -- faults


class Died(BaseException):
    """A process that was killed."""


def dying(monkeypatch, module: object, name: str, n_before: int = 0) -> None:
    """The process dies when it calls this function once more than so often."""
    right = getattr(module, name)
    left = [n_before]

    def die(*given, **options):
        left[0] -= 1
        if left[0] < 0:
            raise Died
        return right(*given, **options)

    monkeypatch.setattr(module, name, die)


DEATHS: dict[str, tuple[object, str, int]] = {
    "before the record": (put, "_keep_record", 0),
    "before the shard": (put, "put_shard", 0),
    "between shard and receipt": (build, "Receipt", 0),
    "before the receipt appears": (durable, "rename", 4),
    "before its shards are removed": (durable, "remove", 4),
}


@pytest.mark.parametrize("when", [each if "shard" in each else also(each) for each in DEATHS])
def test_O12_death_between_small_arrays_shard_and_receipt(
    bucket, planned, whole, monkeypatch, when
):
    build_parts(planned, 0, 2)
    with monkeypatch.context() as patch:
        dying(patch, *DEATHS[when])
        with pytest.raises(Died):
            build_parts(planned, 1)
    is_put = "patches/c/1/0/0/0/0" in bucket.keys(bucket.url)
    assert is_put == (when not in ("before the record", "before the shard"))
    assert bool(finished_part(planned, 1)) == (when == "before its shards are removed")

    build_parts(planned)
    publish_parts(planned, bucket.url, remove=True)
    assert bucket.keys(bucket.url) == whole
    assert len(list(planned.folder.iterdir())) == 3


def test_O12_a_sealer_that_is_stopped_anywhere_is_completed(bucket, planned, whole):
    build_parts(planned)
    for n_there in range(4, len(whole), 9):
        refuse_after(bucket, n_there)
        with pytest.raises(InputError, match="later"):
            publish_parts(planned, bucket.url)
        bucket.fault = None
        with pytest.raises(InputError, match="not all of one yet"):
            FeatureStore.open(bucket.url)
    publish_parts(planned, bucket.url)
    assert bucket.keys(bucket.url) == whole


def refuse_after(bucket, n_objects: int) -> None:
    def fault(request) -> bool:
        n = len(bucket.keys(bucket.url))
        return request.method == "PUT" and n >= n_objects and request.refuse("503 x", "SlowDown")

    bucket.fault = fault


@pytest.mark.system
def test_O01_shards_are_put_though_the_server_is_slow_to_take_them(bucket, planned, whole):
    refused: set[str] = set()

    def once_each(request) -> bool:
        is_new = request.method == "PUT" and request.key not in refused
        refused.add(request.key)
        return is_new and request.refuse("503 Slow Down", "SlowDown")

    bucket.fault = once_each
    build_parts(planned)
    assert len(refused) == 3
    bucket.fault = None
    publish_parts(planned, bucket.url)
    assert bucket.keys(bucket.url) == whole


@pytest.fixture
def two_shards(bucket, tmp_path, monkeypatch, planned) -> PartPlan:
    """Another plan for the same place: part 1 has the shards 1 and 2."""
    shutil.rmtree(planned.folder)
    shutil.rmtree(planned.folder.parent / "data")
    bucket.remove(bucket.url, "catalog/zarr.json")
    plan = parts_child.plan_tiny(tmp_path / "P", monkeypatch, 2, bucket.url)
    assert plan.bounds == [0, 2, 5]
    monkeypatch.setattr(put, "N_THREADS", 1)
    return plan


def seal_and_check(plan: PartPlan, is_other: Callable[[int], bool]) -> None:
    """The store is whole, and each image has the rows of one attempt."""
    publish_parts(plan, plan.url)
    with FeatureStore.open(plan.url) as store:
        assert store.verify() and len(store.sealed) == 5
        for image in range(5):
            rows = tiny_rows(plan.spec, image + 100 * is_other(image))
            assert np.array_equal(store.patches[image], rows.patches_VTPD)
            assert np.array_equal(store.cls[image], rows.cls_VTD)
            assert np.array_equal(store.thumbs[image], rows.thumb_HW3)


def test_O13_a_shard_has_the_small_arrays_of_the_attempt_that_put_it(two_shards, monkeypatch):
    """Of an attempt that died: the next one comes to other bits, and puts the other shard."""
    plan = two_shards
    with monkeypatch.context() as patch:
        dying(patch, put, "put_shard", 1)
        with pytest.raises(Died):
            build_parts(plan, 1)
    shutil.rmtree(plan.folder / "attempts")  # it lay on another machine
    monkeypatch.setattr(build, "_build", other_rows)
    build_parts(plan)
    seal_and_check(plan, lambda image: image in (0, 1, 4))


@pytest.mark.parametrize("n_before", [also(0), 1, also(2)])
def test_O13_attempts_at_once_that_differ_in_bits(two_shards, monkeypatch, n_before):
    """Without locks: another process does all of the part once this one has put so many shards."""
    plan = two_shards
    build_parts(plan, 0)
    left = [n_before]

    def overtaken(*given):
        left[0] -= 1
        if left[0] == -1:
            with monkeypatch.context() as patch:
                patch.setattr(build, "_build", other_rows)
                assert build_part(plan.folder, 1, lock=False, progress=False)[1] is False
        return put_shard(*given)

    monkeypatch.setattr(put, "put_shard", overtaken)
    _, was_there = build_part(plan.folder, 1, lock=False, progress=False)
    assert was_there == (n_before < 2)
    assert not list((plan.folder / "attempts").iterdir())
    other = {0: (2, 3, 4), 1: (4,), 2: ()}[n_before]
    seal_and_check(plan, lambda image: image in other)


def test_O13_a_late_builder_beside_the_sealer_changes_nothing(two_shards, monkeypatch, tmp_path):
    plan = two_shards
    slow = build._build

    def sealed_meanwhile(*given):
        monkeypatch.setattr(build, "_build", slow)
        build_parts(plan)
        publish_parts(plan, plan.url)
        return other_rows(*given)

    monkeypatch.setattr(build, "_build", sealed_meanwhile)
    assert build_part(plan.folder, 1, lock=False, progress=False)[1] is True
    seal_and_check(plan, lambda _image: False)


def test_O10_two_sealers_end_with_one_store(bucket, planned, whole, tmp_path):
    build_parts(planned)
    ready = threading.Barrier(2)
    ended = []

    def seal(scratch: Path) -> None:
        scratch.mkdir()
        ready.wait(20)
        ended.append(publish_parts(planned, bucket.url, scratch=scratch))

    threads = [threading.Thread(target=seal, args=(tmp_path / name,)) for name in "ab"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(ended) == 2 and bucket.keys(bucket.url) == whole


def test_W08_parts_that_are_missing_are_named_before_anything_is_put(bucket, planned):
    build_parts(planned, 1)
    before = bucket.keys(bucket.url)
    with pytest.raises(InputError, match="2 of 3 parts are missing: 0,2; build each with"):
        publish_parts(planned, bucket.url)
    assert bucket.keys(bucket.url) == before


def test_O11_foreign_bytes_under_a_shards_key_are_not_taken_for_ours(bucket, planned, whole):
    key = "patches/c/1/0/0/0/0"
    bucket.put(bucket.url, key, b"x" * len(whole[key]))
    with pytest.raises(MismatchError, match=f"{key}: bytes that no attempt at this part has made"):
        build_parts(planned)
    assert bucket.keys(bucket.url)[key].startswith(b"xxx")
    bucket.remove(bucket.url, key)
    build_parts(planned)
    bucket.put(bucket.url, "notes.txt", b"mine")
    with pytest.raises(MismatchError, match=r"something else.*\n  notes.txt"):
        publish_parts(planned, bucket.url)


@pytest.mark.parametrize("how", [also("gone"), "changed"])
def test_O14_a_shard_that_changed_since_it_was_put_is_missed(bucket, planned, whole, how):
    build_parts(planned)
    key = "patches/c/1/0/0/0/0"
    if how == "gone":
        bucket.remove(bucket.url, key)
    else:
        bucket.put(bucket.url, key, b"x" * len(whole[key]))
    with pytest.raises(StoreDamaged, match=f"gone or changed since.*\n  {key}"):
        publish_parts(planned, bucket.url)
    assert "crc32c/c/0/0" not in bucket.keys(bucket.url)
    # as the message advises
    bucket.remove(bucket.url, key)
    shutil.rmtree(part_folder(planned, 1))
    build_parts(planned)
    publish_parts(planned, bucket.url)
    assert bucket.keys(bucket.url) == whole


@pytest.mark.system
def test_O14_where_etags_are_no_checksums_bytes_are_compared(bucket, planned, whole, monkeypatch):
    """A part is put twice, and its shard is put again behind our back."""
    monkeypatch.setattr("featurestore.manage.publish.MD5", re.compile("never"))
    build_parts(planned)
    shutil.rmtree(part_folder(planned, 1))
    build_parts(planned)
    key = "patches/c/0/0/0/0/0"
    spoilt = bytes([whole[key][0] ^ 4]) + whole[key][1:]
    bucket.put(bucket.url, key, spoilt)
    with pytest.raises(StoreDamaged, match="gone or changed"):
        publish_parts(planned, bucket.url)
    bucket.put(bucket.url, key, whole[key])
    publish_parts(planned, bucket.url)
    assert bucket.keys(bucket.url) == whole


def test_a_shard_is_not_read_back_where_etags_are_no_checksums(bucket, planned, whole, monkeypatch):
    """Of terabytes in an encrypted bucket that would be a second transfer."""
    monkeypatch.setattr("featurestore.manage.publish.MD5", re.compile("never"))
    build_parts(planned)
    publish_parts(planned, bucket.url)
    assert bucket.rows == [] and bucket.keys(bucket.url) == whole


def test_O14_a_bit_that_flips_on_a_shards_way_up_is_found(bucket, planned):
    def fault(request) -> bool:
        if request.method != "PUT":
            return False
        request.spoil_body()
        return request.reply(request.right())

    bucket.fault = fault
    with pytest.raises(StoreDamaged, match="patches/c/0/0/0/0/0: its bytes changed on their way"):
        build_parts(planned, 0)
    assert finished_part(planned, 0) is None
