"""Rows, arrays, the file and the lists of the service: bytes as the store has them, whichever its
format."""

import io
import json

import google_crc32c
import numpy as np
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from served import client_of, error_of, write_served

from featurestore import FeatureStore, open_writer

S = "/v1/stores/features"


@pytest.fixture(scope="module", params=["h5", "zarr"])
def path(request, tmp_path_factory):
    """Four of five images are sealed."""
    return write_served(tmp_path_factory.mktemp("served"), request.param, seal=4)


@pytest.fixture
def client(path):
    return client_of(path)


def test_patches_come_as_raw_bytes_with_their_shape(client, path):
    answer = client.get(f"{S}/rows/ID002/hflip")
    assert answer.content == FeatureStore.open(path).patches[2, 1].tobytes()
    assert (answer.headers["X-Shape"], answer.headers["X-Dtype"]) == ("2,6,7", "<f2")
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("name", ["cls", "pooled", "patches"])
def test_npy_is_what_numpy_loads(client, path, name):
    answer = client.get(f"{S}/rows/@1/2?tokens={name}&format=npy")
    store = FeatureStore.open(path)
    expected = store.patches[1, 2] if name == "patches" else store.array(name)[1, 2]
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), expected)


def test_a_whole_row_has_the_checksum_that_was_committed(client, path):
    answer = client.get(f"{S}/rows/@3/0?tokens=row")
    crc = int(FeatureStore.open(path).row_crcs(3)[0])
    assert google_crc32c.value(answer.content) == crc
    assert answer.headers["ETag"].endswith(f'-{crc:08x}"')


def test_some_patches_alone(client, path):
    answer = client.get(f"{S}/rows/@0/0?patch=2:5")
    assert answer.content == FeatureStore.open(path).patches[0, 0][:, 2:5].tobytes()
    assert answer.headers["X-Shape"] == "2,3,7"


@pytest.mark.parametrize(
    "query",
    [
        "patch=5:2",
        "patch=-1:3",
        "patch=nan:1",
        "patch=6:7",
        "patch=0:2:0",
        "tokens=all",
        "tokens=cls&patch=0:1",
        "tokens=row&format=npy",
        "format=pickle",
    ],
)
def test_s06_what_cannot_be_cut_is_a_bad_request(client, query):
    assert error_of(client.get(f"{S}/rows/@0/0?{query}")) == (400, "bad-request")


def test_an_image_that_is_not_sealed_is_409_and_not_there_404(client):
    assert error_of(client.get(f"{S}/rows/ID004/plain")) == (409, "not-sealed")
    assert error_of(client.get(f"{S}/rows/@5/plain")) == (404, "not-found")
    assert error_of(client.get(f"{S}/rows/@0/flip")) == (404, "not-found")
    assert "did you mean ID00" in client.get(f"{S}/rows/ID00/plain").json()["error"]["message"]


def test_ids_are_percent_encoded_whatever_they_hold(store_path):
    frame = tiny_frame(4)
    frame["image_id"] = ["a/b ä", "@1", "../x", "100%25?#"]
    spec = tiny_spec(frame)
    with open_writer(store_path, spec, frame) as writer:
        for image in range(4):
            writer.put(image, tiny_rows(spec, image))
    client, store = client_of(store_path), FeatureStore.open(store_path)
    for image, encoded in enumerate(["a%2Fb%20%C3%A4", "%401", "..%2Fx", "100%2525%3F%23"]):
        assert client.get(f"{S}/rows/{encoded}/0").content == store.patches[image, 0].tobytes()
    assert client.get(f"{S}/rows/@0/0").content == store.patches[0, 0].tobytes()


def test_every_small_array_comes_whole_as_it_lies_on_disk(client, path):
    store = FeatureStore.open(path)
    about = client.get(S).json()
    for name in set(about["arrays"]) - {"patches"}:
        answer = client.get(f"{S}/arrays/{name}")
        assert answer.content == store.array(name).tobytes(), name
        assert answer.headers["X-Shape"] == ",".join(map(str, about["arrays"][name]["shape"]))
    assert error_of(client.get(f"{S}/arrays/patches")) == (404, "not-found")


def test_the_file_itself_of_an_hdf5_store_alone(client, path):
    answer = client.get(f"{S}/file")
    if path.suffix == ".h5":
        assert answer.content == path.read_bytes()
    else:
        assert error_of(answer) == (404, "not-found")


def test_a_store_says_what_it_is(client, path):
    about, listed = client.get(S).json(), client.get("/v1/stores").json()["stores"][0]
    assert listed.items() <= about.items()
    assert (about["n_images"], about["n_sealed"], about["views"]) == (
        5,
        4,
        ["plain", "hflip", "vflip"],
    )
    assert about["spec"] == json.loads(FeatureStore.open(path).spec.to_json())
    assert about["size_bytes"] == FeatureStore.open(path).size_bytes


def test_stores_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tiny(tmp_path / folder / "features.h5")
    client = client_of(tmp_path / "a/features.h5", tmp_path / "b/features.h5")
    assert [store["name"] for store in client.get("/v1/stores").json()["stores"]] == [
        "features",
        "features-2",
    ]


def test_a_pooled_store_has_no_patches_to_give(tmp_path):
    from stored import write_kind

    held = write_kind(tmp_path / "features.h5", "pooled")
    client = client_of(tmp_path / "features.h5")
    assert client.get(f"{S}/rows/@1/1?tokens=pooled").content == held["pooled"][1, 1].tobytes()
    assert error_of(client.get(f"{S}/rows/@1/1")) == (404, "not-found")
    row = client.get(f"{S}/rows/@1/1?tokens=row").content
    assert google_crc32c.value(row) == held["crc32c"][1, 1]


def test_head_says_what_get_would(client):
    for address in (f"{S}/rows/@0/0", f"{S}/arrays/cls", S, f"{S}/catalog.json", "/healthz"):
        head, get = client.head(address), client.get(address)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers.get("Content-Type") == get.headers["Content-Type"]
        assert head.headers.get("Content-Length") == get.headers.get("Content-Length")
