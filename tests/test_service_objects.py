"""The service of a store in object storage: the same answers as of the store on the disk."""

import threading

import numpy as np
import pytest
from served import client_of, write_served
from store_server import spoilt
from stored import write_kind

from featurestore import FeatureStore
from featurestore.errors import InputError
from service.elsewhere import ServedElsewhere


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    return write_served(tmp_path_factory.mktemp("served"), "zarr")


@pytest.fixture
def there(bucket, on_disk):
    """A client of the service of the store in the bucket."""
    bucket.upload(on_disk, bucket.url)
    with client_of(bucket.url) as client:
        yield client


ADDRESSES = [
    "rows/@3/1",
    "rows/@3/hflip?tokens=row",
    "rows/@0/2?patch=1:4&format=npy",
    "rows/@1/0?tokens=pooled",
    "arrays/crc32c",
    "arrays/seal",
    "arrays/catalog/path",
    "images/ID002/thumb.jpg",
    "catalog.json",
    "stats.json",
]


def test_answers_are_those_of_the_local_store(there, on_disk):
    with client_of(on_disk) as here:
        for address in ADDRESSES:
            ours = here.get(f"/v1/stores/features/{address}")
            theirs = there.get(f"/v1/stores/features/{address}")
            assert theirs.status_code == ours.status_code == 200, address
            assert theirs.content == ours.content, address


def test_ranges_and_etags_hold(there, on_disk):
    address = "/v1/stores/features/arrays/cls"
    whole = there.get(address)
    part = there.get(address, headers={"Range": "bytes=7-20"})
    assert part.status_code == 206 and part.content == whole.content[7:21]
    again = there.get(address, headers={"If-None-Match": whole.headers["ETag"]})
    assert again.status_code == 304


def test_a_zarr_client_sees_a_group_of_it(there, on_disk):
    with FeatureStore.open(on_disk) as local:
        chunk = there.get("/v1/stores/features/zarr/patches/c/4/2/0/0/0")
        assert chunk.content == local.patches[4, 2].tobytes()
        seals = there.get("/v1/stores/features/zarr/seal/c/0")
        assert seals.content == local.array("seal").tobytes()
        root = there.get("/v1/stores/features/zarr/zarr.json").json()
        assert root["attributes"]["spec"] == local.spec.to_json()


def test_O03_a_store_that_was_replaced_is_opened_anew(bucket, there, tmp_path, monkeypatch):
    monkeypatch.setattr("service.elsewhere.LOOK_S", -1)
    before = there.get("/v1/stores/features").json()
    held = write_kind(tmp_path / "other.zarr", "whole")
    bucket.upload(tmp_path / "other.zarr", bucket.url)
    after = there.get("/v1/stores/features/rows/@1/1")
    assert after.content == np.ascontiguousarray(held["patches"][1, 1]).tobytes()
    assert before["generation"] != after.headers["X-Store-Generation"]
    for key in bucket.keys(bucket.url):
        bucket.remove(bucket.url, key)
    gone = there.get("/v1/stores/features")
    assert gone.json()["error"]["kind"] == "store-gone" and bucket.url not in gone.text


def test_O01_a_bucket_out_of_reach_holds_up_no_more_than_one_request(bucket, on_disk, monkeypatch):
    bucket.upload(on_disk, bucket.url)
    served = ServedElsewhere("features", bucket.url)
    opened = served.now()
    monkeypatch.setattr("service.elsewhere.LOOK_S", -1)
    asked, answered = threading.Event(), threading.Event()

    def fault(request) -> bool:
        asked.set()
        return answered.wait(20) and request.refuse("503 Slow Down", "SlowDown")

    bucket.fault = fault
    first = threading.Thread(target=served.now)
    first.start()
    assert asked.wait(20)
    assert served.now() is opened and first.is_alive()
    answered.set()
    first.join()
    assert served.now() is opened


def test_O01_rows_that_come_damaged_are_an_error(bucket, there):
    def fault(request) -> bool:
        return "/patches/c/" in request.key and request.reply(spoilt(request.right()))

    bucket.fault = fault
    answer = there.get("/v1/stores/features/rows/@2/0")
    assert answer.json()["error"]["kind"] == "store-damaged"
    assert bucket.url not in answer.text


def test_what_is_no_store_is_refused_at_the_start(bucket):
    with pytest.raises(InputError, match="no store there"):
        client_of(bucket.url)
