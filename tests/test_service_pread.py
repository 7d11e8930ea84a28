"""The store as the service reads it: the same numbers as from the map, and nothing mapped."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tiny
from served import write_served

from featurestore import FeatureStore
from featurestore.errors import StoreDamaged
from featurestore.read.sources.pread import Pread


@pytest.fixture(scope="module", params=["h5", "zarr"])
def both(request, tmp_path_factory):
    """A store that reads and one that maps."""
    path = write_served(tmp_path_factory.mktemp("read"), request.param)
    return FeatureStore(Pread.open(path)), FeatureStore.open(path)


INDICES = [
    0,
    -1,
    np.int64(3),
    np.s_[:],
    np.s_[1:3],
    np.s_[::-2],
    np.s_[5:],
    [0, 3, 4],
    np.array([4, 2, 2]),
    np.array([1, 2, 3]),
    np.array([-1, 0, 1]),
    [],
    (1, 2),
    (np.s_[1:4], 1),
    ([0, 2], -1),
    (np.s_[:], 0),
    (2, np.s_[1:]),
    (np.array([True, False, True, True, False]),),
]


@pytest.mark.parametrize("index", INDICES, ids=repr)
@pytest.mark.parametrize("part_bytes", [0, 4096])
def test_every_index_reads_what_the_map_shows(both, index, part_bytes, monkeypatch):
    monkeypatch.setattr("featurestore.read.sources.pread.PART_BYTES", part_bytes)
    read, mapped = both
    if isinstance(index, list) and not index:
        index = np.array([], int)
    for name in ("cls", "stats", "thumbs", "catalog/path"):
        np.testing.assert_array_equal(
            read.array(name)[index], mapped.array(name)[index], strict=True
        )


@pytest.mark.parametrize(
    "index",
    [(0, 1), (-1, -1), (2, np.s_[1:]), (np.s_[1:3], 0), 4, (1, ..., 0), (None, 1, 2)],
    ids=repr,
)
def test_patches_too(both, index):
    read, mapped = both
    np.testing.assert_array_equal(read.patches[index], mapped.patches[index], strict=True)


def test_what_a_store_can_do_it_does_by_reading(both):
    read, mapped = both
    assert read.stats().equals(mapped.stats()) and read.catalog.equals(mapped.catalog)
    assert read.nearest("ID002", 3).equals(mapped.nearest("ID002", 3))
    np.testing.assert_array_equal(read.pca(1, "vflip"), mapped.pca(1, "vflip"))
    assert read.checksums.of_row(3, 2) == mapped.row_crcs(3)[2]
    assert read.verify()


def test_nothing_is_mapped_and_no_file_stays_open(tmp_path):
    write_tiny(tmp_path / "features.h5")
    store = FeatureStore(Pread.open(tmp_path / "features.h5"))
    store.stats(), store.nearest(0), store.pca(0), store.patches[1, 1]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert str(store.path) not in {
        os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
    }


def test_r03_a_store_that_is_cut_is_an_error(tmp_path):
    path = tmp_path / "features.h5"
    write_tiny(path)
    store = FeatureStore(Pread.open(path))
    os.truncate(path, 4096)
    for read in (
        lambda: store.stats(),
        lambda: store.patches[0, 0],
        lambda: store.array("thumbs")[1],
    ):
        with pytest.raises(StoreDamaged):
            read()
