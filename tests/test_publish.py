"""A store that is published to object storage: the bytes of a local build, whoever is stopped,
overtaken or finds something else there."""

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import biomass
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny

from featurestore import FeatureStore, open_writer
from featurestore.errors import InputError, LockedError, MismatchError, StoreDamaged
from featurestore.format.choose import open_layout
from featurestore.manage.publish import Publisher, scratch_store, stages


def files(folder: Path) -> dict[str, bytes]:
    """A store's own files, by their names below its folder."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("local") / "features.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)  # two images
        write_tiny(path)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A store of the same spec and photographs whose tokens differ in a bit, as another device may
    make them."""
    path = tmp_path_factory.mktemp("other") / "features.zarr"
    frame = tiny_frame()
    spec = tiny_spec(frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)
        with open_writer(path, spec, frame) as writer:
            for image in writer.pending():
                rows = tiny_rows(spec, image)
                rows.patches_VTPD.view(np.uint16)[2, 1, 5, 6] ^= 1
                writer.put(image, rows)
    return path


def test_what_is_published_is_the_store_byte_for_byte(bucket, folder):
    done = biomass("store", "convert", folder, bucket.url)
    assert f"{bucket.url}: 5 images, 5 of them copied" in done.stdout
    assert bucket.keys(bucket.url) == files(folder)
    assert "0 of them copied" in biomass("store", "convert", folder, bucket.url).stdout


def test_other_clients_read_it_unchanged(bucket, folder):
    obstore = pytest.importorskip("obstore")
    zarr = pytest.importorskip("zarr")
    Publisher(bucket.url).publish(folder)
    options = {"client_options": {"allow_http": True}}
    there = zarr.storage.ObjectStore(obstore.store.from_url(bucket.url, **options), read_only=True)
    group = zarr.open_group(there, mode="r")
    with FeatureStore.open(folder) as local:
        assert np.array_equal(group["patches"][:], local.patches[:])
        assert np.array_equal(group["cls"][:], local.cls)


def test_the_commit_comes_last(bucket, folder):
    Publisher(bucket.url).publish(folder)
    put = [key.partition("features.zarr/")[2] for method, key in bucket.asked if method == "PUT"]
    assert put[:2] == ["catalog/zarr.json"] * 2 and put[2] == "crc32c/c/0/0"
    assert put[-2:] == ["seal/c/0", "zarr.json"]
    shards = [number for number, key in enumerate(put) if key.startswith("patches/c/")]
    assert shards == list(range(len(put) - 5, len(put) - 2)), "behind all small arrays"


@pytest.mark.parametrize("source", ["h5", pytest.param("part", marks=pytest.mark.system)])
def test_what_has_other_files_is_made_on_scratch_first(bucket, folder, tmp_path, source):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = ["--images", "ID001,ID003"] if source == "part" else []
    origin = folder
    if source == "h5":
        origin = tmp_path / "features.h5"
        write_tiny(origin)
    biomass("store", "convert", origin, tmp_path / "near.zarr", *words)
    biomass("store", "convert", origin, bucket.url, *words, "--scratch", scratch)
    assert bucket.keys(bucket.url) == files(tmp_path / "near.zarr")
    assert not list(scratch.iterdir())


@pytest.mark.system
def test_parts_are_merged_into_a_bucket(bucket, folder, tmp_path):
    for name, ids in (("a", "ID000,ID001"), ("b", "ID002,ID003,ID004")):
        biomass("store", "convert", folder, tmp_path / f"{name}.zarr", "--images", ids)
    parts = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    told = biomass("store", "merge", *parts, "--out", bucket.url, "--scratch", tmp_path, "--json")
    assert json.loads(told.stdout)["path"] == bucket.url
    assert bucket.keys(bucket.url) == files(folder)


def test_what_cannot_be_published_is_refused(bucket, folder, tmp_path):
    wrong = bucket.url.removesuffix(".zarr") + ".h5"
    assert "ends in .zarr" in biomass("store", "convert", folder, wrong, code=3).output
    words = ["--codec", "zstd"]
    assert "only read from" in biomass("store", "convert", folder, "http://a/b", code=3).output
    assert (
        "archive is read on a disk"
        in biomass("store", "convert", folder, bucket.url, *words, code=2).output
    )
    write_tiny(tmp_path / "rotten.zarr")
    with open(tmp_path / "rotten.zarr/patches/c/0/0/0/0/0", "r+b") as file:
        file.write(b"\xff")
    output = biomass("store", "convert", tmp_path / "rotten.zarr", bucket.url, code=4).output
    assert "ID000 plain" in output and set(bucket.keys(bucket.url)) == {"catalog/zarr.json"}


# -- faults


def test_O12_a_run_that_is_stopped_anywhere_is_completed(bucket, folder):
    """After each PUT in turn; no reader opens what is not all there."""
    n_files = len(files(folder))
    for n_done in range(2, n_files + 1, 9):
        stop_after(bucket, n_done)
        with pytest.raises(InputError, match="later"):
            Publisher(bucket.url).publish(folder)
        bucket.fault = None
        with pytest.raises(InputError, match="no store there, or not all of one yet"):
            FeatureStore.open(bucket.url)
    Publisher(bucket.url).publish(folder)
    assert bucket.keys(bucket.url) == files(folder)
    with FeatureStore.open(bucket.url) as store:
        assert store.verify()


def stop_after(bucket, n_objects: int) -> None:
    """No PUT succeeds once so many objects are there."""

    def fault(request) -> bool:
        n = len(bucket.keys(bucket.url))
        return request.method == "PUT" and n >= n_objects and request.refuse("503 x", "SlowDown")

    bucket.fault = fault


@pytest.mark.parametrize("when", ["shards", "seals", "root"])
def test_O12_death_between_small_arrays_shard_and_root(bucket, folder, when):
    first, shards, seals = stages(open_layout(folder))
    there = {"shards": first, "seals": first + shards, "root": first + shards + seals}[when]
    content = files(folder)
    for key in there:
        bucket.put(bucket.url, key, content[key])
    with pytest.raises(InputError, match="not all of one yet"):
        FeatureStore.open(bucket.url)
    assert Publisher(bucket.url).publish(folder) == len(content) - len(there)
    assert bucket.keys(bucket.url) == content


def test_O10_two_that_publish_one_store_at_once_end_with_its_bytes(bucket, folder):
    n_put = race(bucket.url, folder, folder)
    assert bucket.keys(bucket.url) == files(folder)
    # each object was created by one of them, but for the probe's
    assert sum(n_put) == len(files(folder)) - 1


def test_O10_two_runs_do_not_share_one_scratch(tmp_path):
    """Else the first that is done would remove it under the other."""
    place = (tmp_path, "s3://pasture/a.zarr", "spec")
    with scratch_store(*place), pytest.raises(LockedError), scratch_store(*place):
        pass
    with scratch_store(*place):
        pass
    assert not list(tmp_path.iterdir())


def race(url: str, *folders: Path) -> list:
    """What each of several that begin together put, or the error it ended with."""
    ready = threading.Barrier(len(folders))
    ended: list = [None] * len(folders)

    def run(number: int) -> None:
        try:
            publisher = Publisher(url)
            ready.wait(20)
            ended[number] = publisher.publish(folders[number])
        except (MismatchError, StoreDamaged) as err:
            ended[number] = err

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def test_O13_of_attempts_that_differ_in_bits_one_is_published_whole(bucket, folder, other):
    ended = race(bucket.url, folder, other)
    refused = [each for each in ended if isinstance(each, MismatchError)]
    assert len(refused) == 1 and "crc32c/c/0/0: other bytes than this store's" in str(refused[0])
    whole = other if isinstance(ended[0], MismatchError) else folder
    assert bucket.keys(bucket.url) == files(whole)


def test_O13_an_attempt_that_another_began_is_refused_before_it_puts_anything(
    bucket, folder, other
):
    stop_after(bucket, 20)
    with pytest.raises(InputError):
        Publisher(bucket.url).publish(folder)
    bucket.fault = None
    before = bucket.keys(bucket.url)
    with pytest.raises(MismatchError, match="crc32c/c/0/0: other bytes.*or was begun"):
        Publisher(bucket.url).publish(other)
    assert bucket.keys(bucket.url) == before


@pytest.mark.parametrize("key", ["patches/c/1/0/0/0/0", "seal/c/0", "zarr.json", "cls/zarr.json"])
def test_O11_foreign_bytes_under_a_key_are_not_overwritten(bucket, folder, key):
    bucket.put(bucket.url, key, b"x" * len(files(folder)[key]))
    with pytest.raises(MismatchError, match=f"{key}: other bytes than this store's"):
        Publisher(bucket.url).publish(folder)
    assert bucket.keys(bucket.url)[key].startswith(b"xxx")
    with pytest.raises((InputError, StoreDamaged)):
        FeatureStore.open(bucket.url)


def test_O11_foreign_objects_are_named(bucket, folder):
    bucket.put(bucket.url, "notes.txt", b"mine")
    with pytest.raises(MismatchError, match=r"objects of something else.*\n  notes.txt"):
        Publisher(bucket.url).publish(folder)


@pytest.mark.parametrize("kind", [pytest.param("none", marks=pytest.mark.system), "encrypted"])
def test_O14_where_etags_are_no_checksums_bytes_are_compared(bucket, folder, monkeypatch, kind):
    if kind == "none":
        monkeypatch.setattr("featurestore.manage.publish.MD5", re.compile("never"))
    else:  # 32 digits as well, of something else
        monkeypatch.setattr("featurestore.manage.publish.file_md5", lambda path: "0" * 32)
    Publisher(bucket.url).publish(folder)
    assert Publisher(bucket.url).publish(folder) == 0
    shard = bytearray(bucket.keys(bucket.url)["patches/c/0/0/0/0/0"])
    shard[7] ^= 4
    bucket.put(bucket.url, "patches/c/0/0/0/0/0", bytes(shard))
    with pytest.raises(MismatchError, match="patches/c/0"):
        Publisher(bucket.url).publish(folder)


def test_O14_a_bit_that_flips_on_its_way_up_is_found(bucket, folder):
    def fault(request) -> bool:
        if request.method != "PUT" or not request.key.endswith("patches/c/1/0/0/0/0"):
            return False
        request.spoil_body()
        return request.reply(request.right())

    bucket.fault = fault
    with pytest.raises(StoreDamaged, match="patches/c/1/0/0/0/0: its bytes changed on their way"):
        Publisher(bucket.url).publish(folder)
    assert "zarr.json" not in bucket.keys(bucket.url)


def test_O14_an_object_that_goes_before_the_seals_is_missed(bucket, folder, monkeypatch):
    publisher = Publisher(bucket.url)
    put = publisher._put

    def put_and_lose(where: Path, key: str) -> tuple[bool, int]:
        done = put(where, key)
        if key == "patches/c/2/0/0/0/0":
            bucket.remove(bucket.url, "cls/c/0/0/0/0")
        return done

    monkeypatch.setattr(publisher, "_put", put_and_lose)
    with pytest.raises(StoreDamaged, match=r"objects are gone.*\n  cls/c/0/0/0/0"):
        publisher.publish(folder)
    assert not {"seal/c/0", "zarr.json"} & bucket.keys(bucket.url).keys()


@pytest.mark.parametrize("how", ["overwrites", "refuses"])
def test_O15_a_server_without_conditional_puts_is_refused_at_once(bucket, folder, how):
    def fault(request) -> bool:
        if request.method != "PUT":
            return False
        if how == "refuses":
            return request.refuse("501 Not Implemented", "NotImplemented")
        request.drop_conditions()
        return request.reply(request.right())

    bucket.fault = fault
    output = biomass("store", "convert", folder, bucket.url, code=3).output
    assert "does not create objects conditionally" in output
    assert bucket.keys(bucket.url).keys() <= {"catalog/zarr.json"}


def test_O02_credentials_that_may_only_read_are_told_so(bucket, folder):
    bucket.fault = lambda request: (
        request.method == "PUT" and request.refuse("403 Forbidden", "AccessDenied")
    )
    output = biomass("store", "convert", folder, bucket.url, code=3).output
    assert "catalog/zarr.json: no access (AccessDenied: as asked for)" in output
