"""Every flipped bit is found, named, and nothing else is."""

import pytest
from conftest import write_tiny
from test_store import flip_bit

from featurestore import FeatureStore


@pytest.mark.parametrize("name", ["cls", "patches", "pooled", "stats", "thumbs", "crc32c", "seal", "catalog/State"])
def test_R14_a_flipped_bit_is_found_wherever_it_is(store_path, name):
    write_tiny(store_path)
    path, offset, n_bytes = FeatureStore.open(store_path).layout.extents[name].locate(3)
    flip_bit(path, offset + n_bytes - 1)
    report = FeatureStore.open(store_path).verify()
    expected = "ID001" if name == "patches" else "ID003"  # row 3 of patches is image 1, view 0
    assert {fault.image_id for fault in report.faults} == {expected}
    assert not report


def test_a_whole_store_verifies(store_path):
    write_tiny(store_path, seal=4)
    report = FeatureStore.open(store_path).verify()
    assert report and (report.n_images, report.n_sealed) == (5, 4)
    patches = 2 * 6 * 7 * 2 if store_path.suffix == ".h5" else 4096
    assert report.n_bytes == 5 * 3 * (2 * 7 * 2 + 2 * 5 * 7 * 4 + 14 * 8) + 4 * 3 * patches
    assert "GB/s, as fast as" in report.pace()


def test_the_checksum_other_clients_see_is_verified_too(tmp_path):
    write_tiny(tmp_path / "features.zarr")
    path, offset, n_bytes = FeatureStore.open(tmp_path / "features.zarr").layout.extents["patches"].locate(0)
    flip_bit(path, offset + n_bytes)
    report = FeatureStore.open(tmp_path / "features.zarr").verify()
    assert [(f.image_id, f.view, f.what) for f in report.faults] == \
        [("ID000", "plain", "its chunk checksum, or the zeros that follow it, changed")]
