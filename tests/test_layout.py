"""Files of a store: only those that were checked when it was opened are read, each where its rows lie."""

import gc
import os
from collections import Counter
from pathlib import Path

import pytest
from conftest import write_tiny

from featurestore import FeatureStore
from featurestore.errors import InputError, StoreDamaged
from featurestore.format.layout import check_format


@pytest.fixture
def layout(store_path):
    write_tiny(store_path)
    return FeatureStore.open(store_path).layout


def n_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_every_row_lies_in_a_file_that_has_room_for_it(layout):
    for extent in layout.extents.values():
        rows = sum(extent.rows_in(file) for file in range(len(extent.paths)))
        assert rows == extent.array.n_rows and extent.rows_in(len(extent.paths) - 1) > 0
        for row in range(rows):
            path, offset, n_bytes = extent.locate(row)
            assert offset + n_bytes <= layout.sizes[path]


def test_a_store_that_is_let_go_leaves_no_descriptor(store_path):
    """Without `close`, however its rows were read: mapped, copied, read ahead or checked."""
    write_tiny(store_path)
    gc.collect()  # what earlier tests left in cycles
    before = n_open_files()
    for _ in range(3):
        store = FeatureStore.open(store_path, check="first-touch")
        store.rows(0)
        store.take([(1, 0), (2, 1)])
        store.will_need([(3, 0)])
        del store
    assert n_open_files() == before


def test_a_file_of_the_same_size_in_its_place_is_not_read(layout):
    path = layout.extents["patches"].paths[0]
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)
    before = n_open_files()
    with pytest.raises(StoreDamaged, match="replaced or cut since the store was opened"):
        layout.open_file(path)
    assert n_open_files() == before


def test_a_file_that_was_cut_is_not_read(layout):
    path = layout.extents["patches"].paths[0]
    os.truncate(path, layout.sizes[path] - 1)
    with pytest.raises(StoreDamaged, match="replaced or cut"):
        layout.open_file(path)


def test_descriptors_do_not_reach_child_processes(layout):
    fd = layout.open_file(layout.extents["seal"].paths[0])
    try:
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("change, found", [(os.remove, "missing"), (None, "3 bytes long")])
def test_a_file_of_another_size_is_named_with_both_sizes(layout, change, found):
    path = layout.extents["seal"].paths[0]
    if change:
        change(path)
    else:
        os.truncate(path, 3)
    with pytest.raises(StoreDamaged, match=f"{path}: {found}, {layout.sizes[path]} bytes expected"):
        layout.check_sizes()


def test_no_file_or_folder_of_a_zarr_store_may_be_a_link_but_its_parents_may(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    write_tiny(tmp_path / "real/f.zarr")
    FeatureStore.open(tmp_path / "linked/f.zarr")
    move_and_link(tmp_path / "real/f.zarr/catalog", tmp_path / "elsewhere")
    with pytest.raises(StoreDamaged, match="catalog.*: a link"):
        FeatureStore.open(tmp_path / "linked/f.zarr")


def test_a_shard_in_a_linked_folder_is_refused_when_it_is_first_read(tmp_path, monkeypatch):
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 1)
    write_tiny(tmp_path / "f.zarr")
    store = FeatureStore.open(tmp_path / "f.zarr")
    move_and_link(tmp_path / "f.zarr/patches/c/3", tmp_path / "elsewhere")
    for opened in (store, FeatureStore.open(tmp_path / "f.zarr")):
        with pytest.raises(StoreDamaged, match="patches/c/3: a link"):
            opened.patches[3]


def test_opening_asks_the_kernel_once_for_each_shard(tmp_path, monkeypatch):
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 1)
    write_tiny(tmp_path / "f.zarr")
    asked = Counter()
    of_file, open_file = os.lstat, os.open
    monkeypatch.setattr(os, "lstat", lambda path: asked.update([path]) or of_file(path))
    monkeypatch.setattr(
        os, "open", lambda path, *how: asked.update([path]) or open_file(path, *how)
    )
    store = FeatureStore.open(tmp_path / "f.zarr")
    shards = store.layout.extents["patches"].paths
    assert [asked[path] for path in shards] == [2, 1, 1, 1, 1]
    store.patches[3]
    assert [asked[path] for path in shards] == [2, 1, 1, 2, 1]


def move_and_link(folder: Path, to: Path) -> None:
    folder.rename(to)
    folder.symlink_to(to)


@pytest.mark.parametrize(
    "name, version, said",
    [
        ("biomass-feature-archive", 1, "an archive"),
        ("another", 1, "not a biomass-feature-store: .* 'another'"),
        ("biomass-feature-store", 3, "format version 3, this program reads 1 and 2"),
    ],
)
def test_other_formats_are_refused_by_name_and_version(tmp_path, name, version, said):
    with pytest.raises(InputError, match=said):
        check_format(tmp_path, name, version)
    check_format(tmp_path, "biomass-feature-store", 1)
