"""A store in object storage: the same object and the same bytes, and what a bucket may do."""

import json
import os
import pickle
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from buckets import KEY_ID, SECRET, SESSION
from commands import biomass
from conftest import tiny_rows, write_tiny
from store_server import spoilt
from stored import write_kind
from sweeps import DEFAULTS, YAML, write_store

from featurestore import FeatureStore
from featurestore.errors import (
    BiomassError,
    InputError,
    MismatchError,
    NoAccessError,
    StoreDamaged,
    UsageError,
)

SHARD = "patches/c/1/0/0/0/0"  # of images 2 and 3


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("local") / "features.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)  # two images
        write_tiny(path)
    return path


@pytest.fixture
def local(bucket, on_disk) -> FeatureStore:
    """What is in the bucket, on the disk."""
    bucket.upload(on_disk, bucket.url)
    return FeatureStore.open(on_disk)


@pytest.fixture
def store(bucket, local):
    with FeatureStore.open(bucket.url) as opened:
        yield opened


def test_every_array_and_row_is_the_same(bucket, local, store):
    for name in local.layout.extents.keys() - {"patches", "metadata_crc32c"}:
        assert np.array_equal(store.array(name), local.array(name)), name
    assert np.array_equal(store.patches[:], local.patches[:])
    assert store.catalog.equals(local.catalog) and store.stats().equals(local.stats())
    assert str(store).splitlines()[1:] == str(local).splitlines()[1:]
    n = len(bucket.asked)
    assert np.array_equal(store.take([(4, 2), (0, 1)]), local.take([(4, 2), (0, 1)]))
    assert len(bucket.asked) == n, "all of it is in the cache"


def test_only_the_rows_that_are_read_are_fetched(bucket, store):
    store.patches[3, 1]
    assert [key.partition("features.zarr/")[2] for key in bucket.rows] == [SHARD]


def test_a_pooled_store_is_read(bucket, tmp_path):
    held = write_kind(tmp_path / "pooled.zarr", "pooled")
    bucket.upload(tmp_path / "pooled.zarr", bucket.url)
    with FeatureStore.open(bucket.url, check="first-touch") as store:
        assert np.array_equal(store.cls, held["cls"])
        assert np.array_equal(store.pooled, held["pooled"])


# -- what a user types


def test_commands_take_the_url(bucket, local, tmp_path):
    assert f"FeatureStore {bucket.url}\n" in biomass("store", "info", bucket.url).output
    there = biomass("store", "stats", bucket.url).output
    assert there == biomass("store", "stats", local.path).output
    assert "all as committed" in biomass("store", "verify", bucket.url).output
    assert "can be repaired" in biomass("store", "verify", bucket.url, "--repair", code=2).output
    biomass("store", "convert", bucket.url, tmp_path / "copy.h5")
    assert biomass("store", "diff", bucket.url, tmp_path / "copy.h5").output == "no difference\n"
    assert "a URL where a file" in biomass("store", "extend", bucket.url, "o.h5", code=3).output


def test_O02_train_takes_the_url_and_writes_no_credential_anywhere(bucket, tmp_path, capfd):
    labelled = write_store(tmp_path / "labelled.zarr")
    bucket.upload(labelled, bucket.url)
    settings = dict(store=bucket.url + "/", kind="ridge", lr="1e-2", epochs=1, n_folds=2)
    (tmp_path / "config.yaml").write_text(YAML.format(**DEFAULTS | settings))
    said = biomass("train", "--config", tmp_path / "config.yaml", "--out", tmp_path / "runs").output
    (sweep,) = (tmp_path / "runs").iterdir()
    assert json.loads((sweep / "sweep.json").read_text())["base"]["dataset"]["store"] == bucket.url

    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in left] + ["".join((said, *capfd.readouterr())).encode()]
    assert len(left) > 20 and "ridge" in said
    for secret in (KEY_ID, SECRET, SESSION):
        assert not [text for text in texts if secret.encode() in text]


def test_a_handle_travels_without_credentials(local, store):
    frozen = pickle.dumps(store)
    assert not [each for each in (KEY_ID, SECRET, SESSION) if each.encode() in frozen]
    with pickle.loads(frozen) as there:
        assert np.array_equal(there.patches[2, 1], local.patches[2, 1])


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    for url in ("s3://pasture/a.zarr", "gs://pasture/a.zarr", "az://pasture/a.zarr"):
        assert r"biomass-tokens[objects]" in biomass("store", "info", url, code=2).output


@pytest.mark.parametrize(
    "url, environment, names",
    [
        ("az://pasture/a.zarr", {}, "e.g. AZURE_STORAGE_ACCOUNT_NAME"),
        (
            "gs://pasture/a.zarr",
            {"GOOGLE_APPLICATION_CREDENTIALS": "/no/such.json"},
            "e.g. GOOGLE_APPLICATION_CREDENTIALS",
        ),
    ],
)
def test_settings_of_other_providers_are_answered_with_their_variables(
    url, environment, names, monkeypatch
):
    for name in [each for each in os.environ if each.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NoAccessError, match=names) as refused:
        FeatureStore.open(url)
    assert "AWS_" not in str(refused.value)


@pytest.mark.parametrize(
    "url, match",
    [
        ("s3://", "no store's URL"),
        ("s3://pasture/a//b.zarr", "no store's URL"),
        ("s3://pasture/../b.zarr", "no store's URL"),
        (f"s3://{KEY_ID}:hidden@pasture/a.zarr", "credentials are read from the environment"),
        ("s3://pasture/a.zarr?key=hidden", "credentials are read from the environment"),
    ],
)
def test_what_is_no_url_of_a_store_is_refused(url, match):
    with pytest.raises(UsageError, match=match) as refused:
        FeatureStore.open(url)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("server", ["localhost:9000", "http://me:hidden@localhost:9000", "a b"])
@pytest.mark.parametrize(
    "scheme, name",
    [("s3", "AWS_ENDPOINT_URL"), ("az", "AZURE_STORAGE_ENDPOINT"), ("gs", "GOOGLE_BASE_URL")],
)
def test_O02_an_endpoint_that_is_no_servers_url_is_refused_untold(
    scheme, name, server, monkeypatch
):
    monkeypatch.setenv(name, server)
    with pytest.raises(UsageError, match=f"{name}: no URL of a server") as refused:
        FeatureStore.open(f"{scheme}://pasture/a.zarr")
    assert "hidden" not in str(refused.value)


def test_what_is_no_store_is_refused(bucket, local, tmp_path):
    with pytest.raises(InputError, match="no store there, or not all of one yet"):
        FeatureStore.open(bucket.url + "/other.zarr")
    with pytest.raises(InputError, match="NoSuchBucket"):
        FeatureStore.open("s3://nobodys/features.zarr")
    biomass("store", "convert", local.path, tmp_path / "a.zarr", "--codec", "zstd")
    bucket.put(bucket.url, "zarr.json", (tmp_path / "a.zarr/zarr.json").read_bytes())
    with pytest.raises(InputError, match="an archive.*copy it to a disk"):
        FeatureStore.open(bucket.url)


@pytest.mark.parametrize(
    "key, content, match",
    [
        ("zarr.json", b"{}", "features.zarr/zarr.json: unreadable metadata"),
        ("cls/zarr.json", b"{}", "features.zarr/cls/zarr.json: unreadable metadata"),
        ("cls/zarr.json", bytes((1 << 24) + 1), "cls/zarr.json: 16777217 bytes is no metadata"),
        ("cls/zarr.json", b'{"zarr_format": 3, "node_type": "array"}', "cls/zarr.json: not a"),
    ],
)
def test_C5_foreign_metadata_is_refused_by_its_key(bucket, local, key, content, match):
    bucket.put(bucket.url, key, content)
    with pytest.raises(StoreDamaged, match=match):
        FeatureStore.open(bucket.url)


# -- one cache a node. Two handles of one process lock each other out as two processes do


def test_processes_share_what_was_fetched(bucket, local, store):
    assert np.array_equal(store.patches[:], local.patches[:]) and store.cls.any()
    n = len(bucket.rows)
    with FeatureStore.open(bucket.url) as other:
        assert other.layout.path == store.layout.path
        assert np.array_equal(other.patches[:], local.patches[:])
    assert len(bucket.rows) == n == 15


def test_O05_two_that_want_one_row_fetch_it_once(bucket, local, store):
    rows = [(image, view) for image in range(5) for view in range(3)]
    with FeatureStore.open(bucket.url) as other:
        store.will_need(rows)
        found = other.take(rows)
        assert np.array_equal(found, local.take(rows))
        assert np.array_equal(store.take(rows), found)
    assert len(bucket.rows) == 15


def test_O05_one_empties_a_file_that_another_has_mapped(bucket, local, monkeypatch):
    monkeypatch.setattr("featurestore.read.sources.cache.LEAST_FILES", 1)
    with FeatureStore.open(bucket.url) as store:
        paths = [path for extent in store.layout.extents.values() for path in extent.paths]
        used = sum(os.stat(path).st_blocks * 512 for path in paths)
        arrays = sum(e.array.n_bytes for n, e in store.layout.extents.items() if n != "patches")
    bound = {"cache_bytes": used + arrays + 12 * 4096}
    with (
        FeatureStore.open(bucket.url, **bound) as one,
        FeatureStore.open(bucket.url, **bound) as other,
    ):
        first = one.patches[0]
        for _ in range(2):
            for image in (0, 2, 4, 1, 3):
                for store in (other, one):
                    assert np.array_equal(store.patches[image], local.patches[image])
        assert np.array_equal(first, local.patches[0])
        shards = one.layout.extents["patches"].paths
        assert sum(os.stat(path).st_blocks * 512 for path in shards) <= 15 * 4096
    with FeatureStore.open(one.layout.path) as kept:
        assert kept.verify() and kept.n_sealed > 0


@pytest.mark.system
def test_a_store_that_was_replaced_has_a_cache_of_its_own(bucket, store, tmp_path):
    store.patches[:]
    write_kind(tmp_path / "other.zarr", "whole")
    bucket.upload(tmp_path / "other.zarr", bucket.url)
    with FeatureStore.open(bucket.url) as other:
        assert other.layout.path != store.layout.path and other.patches[0, 0].any()


@pytest.mark.filterwarnings("default:.*fork:DeprecationWarning")
def test_R09_a_forked_child_reads_what_is_here_and_says_why_no_more(local, store):
    store.patches[1, 0], store.cls
    child = os.fork()
    if child == 0:
        try:
            right = np.array_equal(store.patches[1, 0], local.patches[1, 0])
            try:
                store.patches[4, 2]
            except UsageError as err:
                os._exit(0 if right and "forkserver" in str(err) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(store.patches[4, 2], local.patches[4, 2])


# -- what a bucket does


def of_rows(fault, most: int = 1000):
    """A fault of the first answers about rows."""
    met = []

    def happens(request) -> bool:
        if request.method != "GET" or "/patches/c/" not in request.key or len(met) == most:
            return False
        met.append(1)
        return fault(request)

    return happens


def cut(request) -> bool:
    body = request.right()
    return request.reply(body[: len(body) // 2], n_bytes=len(body))


FAULTS = {
    "503s": lambda request: request.refuse("503 Slow Down", "SlowDown"),
    "bodies cut": cut,
    "bits flipped": lambda request: request.reply(spoilt(request.right())),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_O01_what_passes_is_tried_again(bucket, local, store, fault):
    bucket.fault = of_rows(fault, most=1)
    assert np.array_equal(store.patches[3, 1], local.patches[3, 1])
    assert len(bucket.rows) == 2


@pytest.mark.parametrize(
    "fault, error, match",
    [
        (FAULTS["503s"], InputError, "SlowDown: as asked for.*try again later"),
        (FAULTS["bodies cut"], InputError, "no answer that could be used"),
        (FAULTS["bits flipped"], StoreDamaged, r"image 3 \(ID003\), view 'hflip'.*checksum"),
        (
            lambda request: request.reply(request.right()[:-1]),
            StoreDamaged,
            f"{SHARD}: it ends at byte .*expected",
        ),
        (
            lambda request: request.refuse(
                "400 Bad Request", "ExpiredToken", f"<Token-0>{SESSION}</Token-0>"
            ),
            NoAccessError,
            "ExpiredToken: as asked for.*credentials are read from the environment",
        ),
        (
            lambda request: request.refuse("403 Forbidden", "AccessDenied", SECRET),
            NoAccessError,
            "AccessDenied.*AWS_ACCESS_KEY_ID",
        ),
    ],
    ids=[*FAULTS, "short", "expired", "denied"],
)
def test_O01_what_stays_is_an_error_that_says_where(bucket, local, store, fault, error, match):
    bucket.fault = of_rows(fault)
    for read in (lambda: store.patches[3, 1], lambda: store.take([(3, 1), (0, 0)])):
        with pytest.raises(error, match=match) as refused:
            read()
        # nor does the error that ours came from tell of them: a traceback shows it
        told = "".join(map(repr, causes(refused.value)))
        assert not [each for each in (KEY_ID, SECRET, SESSION) if each in told]
    bucket.fault = None
    assert np.array_equal(store.patches[3], local.patches[3])


def causes(err: BaseException | None) -> list[BaseException]:
    return [err, *causes(err.__cause__ or err.__context__)] if err else []


@pytest.mark.parametrize("name", ["catalog/image_id", "pooled"])
def test_O01_an_array_that_was_spoilt_on_its_way_is_not_kept(bucket, local, name):
    def fault(request) -> bool:
        if f"/{name}/c/" not in request.key:
            return False
        return request.reply(bytes(len(request.right())))

    bucket.fault = fault
    with FeatureStore.open(bucket.url) as store:
        with pytest.raises((StoreDamaged, IndexError)):
            store.patches[3, 1]
        bucket.fault = None
        store.refresh()
        assert np.array_equal(store.patches[3, 1], local.patches[3, 1])
    with FeatureStore.open(bucket.url) as again:
        assert np.array_equal(again.array(name), local.array(name))


def test_O03_a_store_that_is_replaced_is_never_read_in_part(bucket, store, tmp_path):
    first = store.patches[0, 0].copy()
    write_kind(tmp_path / "other.zarr", "whole")
    bucket.upload(tmp_path / "other.zarr", bucket.url)
    for read in (lambda: store.patches[1, 1], store.refresh, store.verify):
        with pytest.raises(MismatchError, match="the store was replaced, open it again"):
            read()
    assert np.array_equal(store.patches[0, 0], first)


def test_O03_an_array_of_another_store_is_not_kept(bucket, local, store, tmp_path):
    write_kind(tmp_path / "other.zarr", "whole")
    bucket.upload(tmp_path / "other.zarr", bucket.url)
    for _ in range(2):
        with pytest.raises(MismatchError, match="the store was replaced, open it again"):
            store.array("cls")


def test_O03_a_store_that_is_removed_says_so(bucket, store):
    store.patches[0, 0], store.cls
    for key in bucket.keys(bucket.url):
        bucket.remove(bucket.url, key)
    with pytest.raises(MismatchError, match="replaced"):
        store.patches[1, 2]


def test_O04_verify_names_each_object_that_is_not_as_it_was(bucket, local):
    key = "patches/c/0/0/0/0/0"
    shard = bytearray(bucket.keys(bucket.url)[key])
    shard[5] ^= 1  # of image 0, view 0
    shard[-9] ^= 1  # of the index
    bucket.put(bucket.url, key, bytes(shard))
    bucket.put(bucket.url, SHARD, bucket.keys(bucket.url)[SHARD][:20_000])
    bucket.put(bucket.url, "thumbs/c/0/0/0/0", bytes(1000))
    bucket.remove(bucket.url, "patches/c/2/0/0/0/0")
    output = biomass("store", "verify", bucket.url, code=4).output
    assert f"ID000 plain: its chunk checksum, or the zeros that follow it, changed ({key}" in output
    assert "ID000 hflip" not in output and "ID002 plain" not in output
    assert f"ID003 vflip: cannot be read: {bucket.url}/{SHARD}" in output
    assert "its shard index is not the one of this layout" in output
    assert "ID004 vflip: cannot be read" in output and "NoSuchKey" in output
    assert "ID001 (all views): its seal does not match" in output


def test_O04_verify_does_not_pass_what_it_may_not_look_at(bucket, local):
    bucket.fault = lambda request: (
        request.method == "HEAD"
        and "/patches/c/" in request.key
        and request.refuse("403 Forbidden", "AccessDenied")
    )
    with FeatureStore.open(bucket.url) as store, pytest.raises(NoAccessError):
        store.verify()


@pytest.mark.system
def test_a_row_that_two_threads_want_comes_once_right(bucket, local, store):
    found = []
    threads = [threading.Thread(target=lambda: found.append(store.patches[2, 0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(row, tiny_rows(local.spec, 2).patches_VTPD[0]) for row in found)
    assert max(Counter(bucket.rows).values()) <= 4


def test_errors_are_of_the_family(bucket, local):
    bucket.fault = lambda request: request.refuse("500 Internal Server Error", "InternalError")
    with pytest.raises(BiomassError, match=r"InternalError: as asked for\).*try again later"):
        FeatureStore.open(bucket.url)
