"""The Zarr view: what zarr-python and TensorStore open by its address is what the store holds, in
either format."""

import json

import numpy as np
import pytest
import zarr
from served import client_of, error_of, serving, write_served
from stored import write_kind

from featurestore import FeatureStore

S = "/v1/stores/features"


@pytest.fixture(scope="module", params=["h5", "zarr"])
def whole(request, tmp_path_factory):
    return write_served(tmp_path_factory.mktemp("served"), request.param)


@pytest.fixture(scope="module")
def address(whole):
    with serving(whole) as url:
        yield f"{url}{S}/zarr"


def test_zarr_python_reads_every_array(address, whole):
    group, store = zarr.open(address, mode="r"), FeatureStore.open(whole)
    assert json.loads(group.attrs["spec"]) == json.loads(store.spec.to_json())
    for name, extent in store.layout.extents.items():
        expected = np.array(store.patches) if name == "patches" else store.array(name)
        np.testing.assert_array_equal(group[name][:], expected, err_msg=name)
        assert group[name].metadata.dimension_names == extent.array.dims


def test_tensorstore_reads_it(address, whole):
    import tensorstore

    store = FeatureStore.open(whole)
    for name in ("patches", "cls", "catalog/image_id"):
        kvstore = {"driver": "http", "base_url": f"{address}/{name}/"}
        opened = tensorstore.open(
            {"driver": "zarr3", "kvstore": kvstore}, read=True, open=True
        ).result()
        expected = np.array(store.patches) if name == "patches" else store.array(name)
        np.testing.assert_array_equal(opened.read().result(), expected, err_msg=name)


def test_xarray_opens_what_it_can_list(address, whole):
    import xarray

    if whole.suffix == ".zarr":
        pytest.skip(
            "a Zarr store has no consolidated metadata, and over HTTP nothing can be listed"
        )
    dataset = xarray.open_zarr(address, consolidated=True, mask_and_scale=False)
    np.testing.assert_array_equal(dataset["cls"], FeatureStore.open(whole).cls)


def test_h5py_reads_the_file_over_http(address, whole):
    import fsspec
    import h5py

    if whole.suffix == ".zarr":
        pytest.skip("it is no file")
    with (
        fsspec.open(address.replace("/zarr", "/file"), "rb", block_size=4096) as file,
        h5py.File(file) as hdf5,
    ):
        np.testing.assert_array_equal(hdf5["patches"][3, 1], FeatureStore.open(whole).patches[3, 1])


def test_what_is_no_object_is_404(whole):
    client = client_of(whole)
    for key in (
        "",
        "zarr.jsonx",
        ".zgroup",
        ".zarray",
        "cls/.zarray",
        "c/0",
        "/zarr.json",
        "cls//zarr.json",
        "clszarr.json",
        "catalog",
        "cls/c/",
        "cls/c/9/0/0/0",
        "seal/c/0/",
        "features.h5",
        "../features.zarr/zarr.json",
        "patches/c/0/0/0/0",
        "patches/c/5/0/0/0/0",
        "patches/c/00/0/0/0/0",
        "patches/c/-1/0/0/0/0",
        "patches/c/0/0/0/0/0/0",
        "patches/c/99999999999999999999/0/0/0/0",
    ):
        assert error_of(client.get(f"{S}/zarr/{key}")) == (404, "not-found"), key


def test_files_that_are_not_of_the_format_are_not_served(tmp_path):
    path = write_served(tmp_path, "zarr")
    (path / "secret.txt").write_text("x")
    (path / "cls/c/1").symlink_to("/etc")
    client = client_of(path)
    assert client.get(f"{S}/zarr/cls/c/0/0/0/0").content == (path / "cls/c/0/0/0/0").read_bytes()
    assert (
        client.get(f"{S}/zarr/secret.txt").status_code
        == client.get(f"{S}/zarr/cls/c/1/hostname").status_code
        == 404
    )


def test_s04_metadata_that_became_a_link_is_not_followed(tmp_path):
    path = write_served(tmp_path, "zarr")
    client = client_of(path)
    (path / "cls/zarr.json").unlink()
    assert error_of(client.get(f"{S}/zarr/cls/zarr.json")) == (500, "store-damaged")
    (path / "cls/zarr.json").symlink_to("/etc/hostname")
    assert error_of(client.get(f"{S}/zarr/cls/zarr.json")) == (500, "store-damaged")


def test_rows_of_images_that_are_not_sealed_are_an_error_and_never_zeros(tmp_path):
    held = write_kind(tmp_path / "features.h5", "growing")
    assert error_of(client_of(tmp_path / "features.h5").get(f"{S}/zarr/patches/c/3/0/0/0/0")) == (
        409,
        "not-sealed",
    )
    with serving(tmp_path / "features.h5") as url:
        patches = zarr.open(f"{url}{S}/zarr", mode="r")["patches"]
        np.testing.assert_array_equal(patches[:3], held["patches"][:3])
        with pytest.raises(Exception, match="409"):
            patches[2:4]


def test_small_arrays_come_in_chunks_whose_last_is_filled_up(tmp_path, monkeypatch):
    monkeypatch.setattr("service.routes.zarr_objects.CHUNK_BYTES", 900)
    path = write_served(tmp_path, "h5")
    client, store = client_of(path), FeatureStore.open(path)
    n = json.loads(client.get(f"{S}/zarr/stats/zarr.json").content)["chunk_grid"]["configuration"][
        "chunk_shape"
    ][0]
    chunks = [client.get(f"{S}/zarr/stats/c/{i}/0/0").content for i in range(-(-5 // n))]
    assert n == 2 and {len(chunk) for chunk in chunks} == {n * 3 * 14 * 8}
    assert b"".join(chunks) == store.array("stats").tobytes() + bytes(3 * 14 * 8)


def test_a_row_of_patches_is_one_object_with_the_row_s_etag(tmp_path):
    client = client_of(write_served(tmp_path, "h5"))
    chunk, row = client.get(f"{S}/zarr/patches/c/2/1/0/0/0"), client.get(f"{S}/rows/@2/1")
    assert (chunk.content, chunk.headers["ETag"]) == (row.content, row.headers["ETag"])
