"""Round trips, zero copy, what is never returned."""

import pickle
import re

import numpy as np
import pytest
from conftest import tiny_rows, write_tiny

from featurestore import FeatureStore
from featurestore.errors import InputError, StoreDamaged


def test_what_is_written_comes_back_bit_for_bit(store_path):
    spec = write_tiny(store_path)
    store = FeatureStore.open(store_path)
    for i in range(5):
        rows = tiny_rows(spec, i)
        assert np.array_equal(store.cls[i], rows.cls_VTD)
        assert np.array_equal(store.pooled[i], rows.pooled_VT5D)
        assert np.array_equal(store.thumbs[i], rows.thumb_HW3)
        for v in range(3):
            assert np.array_equal(store.patches[i, v], rows.patches_VTPD[v])
    assert store.catalog["path"].tolist()[3] == "train/ä 3.jpg"
    assert store.catalog["Dry_Total_g"].tolist() == [1.0, 2.5, 4.0, 5.5, 7.0]
    assert store.catalog["width"].tolist() == [2000.0] * 5


def test_a_row_is_a_view_of_the_file(store_path):
    write_tiny(store_path)
    store = FeatureStore.open(store_path)
    row = store.patches[3, 1]
    assert np.shares_memory(row, store.patches[3, 1])
    assert not row.flags.owndata and not row.flags.writeable
    assert np.shares_memory(store["ID003"].grid("hflip"), row)
    assert store["ID003"].grid("hflip").shape == (2, 2, 3, 7)


def test_C1_what_was_never_sealed_is_never_returned(store_path):
    write_tiny(store_path, seal=2)
    store = FeatureStore.open(store_path)
    assert store.patches[1, 2].shape == (2, 6, 7)
    for read in (lambda: store.patches[2, 0], lambda: store.cls, lambda: store.take([(0, 0), (4, 0)]),
                 lambda: store["ID004"].cls(), lambda: store.patches[:, 0]):
        with pytest.raises(InputError, match="not built yet"):
            read()
    assert store.raw.cls.shape == (5, 3, 2, 7)


def test_C4_a_reader_sees_a_store_grow(store_path):
    write_tiny(store_path, seal=1)
    store = FeatureStore.open(store_path)
    assert (store.n_sealed, store.is_sealed(4)) == (1, False)
    spec = write_tiny(store_path)
    assert store.n_sealed == 5
    assert np.array_equal(store.patches[4, 2], tiny_rows(spec, 4).patches_VTPD[2])


def test_take_gathers_rows_in_the_order_asked(store_path):
    spec = write_tiny(store_path)
    rows = [(4, 2), (0, 1), (4, 0)]
    out = np.empty((3, 2, 6, 7), np.float16)
    assert FeatureStore.open(store_path).take(rows, out=out) is out
    for got, (i, v) in zip(out, rows, strict=True):
        assert np.array_equal(got, tiny_rows(spec, i).patches_VTPD[v])


def test_slices_over_rows_are_what_numpy_gives(store_path):
    spec = write_tiny(store_path)
    whole = np.stack([tiny_rows(spec, i).patches_VTPD for i in range(5)])
    patches = FeatureStore.open(store_path).patches
    for key in [np.s_[1:3, 0], np.s_[::2, 1:], np.s_[2], np.s_[-1, -1], np.s_[1, 1:, 0], np.s_[3, 2, 1, 4], np.s_[4:1, 0]]:
        assert np.array_equal(patches[key], whole[key])
    with pytest.raises(IndexError):
        patches[5, 0]
    with pytest.raises(IndexError, match="take"):
        patches[[0, 1], 0]


def test_a_store_open_in_h5py_opens_here_too(tmp_path):
    import h5py

    write_tiny(tmp_path / "features.h5")
    with h5py.File(tmp_path / "features.h5", "r"):
        assert FeatureStore.open(tmp_path / "features.h5").n_sealed == 5


def test_a_dropped_store_lets_go_of_its_maps(store_path):
    import weakref

    write_tiny(store_path)
    store = FeatureStore.open(store_path)
    row = store.patches[1, 1]
    gone = weakref.ref(store)
    del store
    assert gone() is None and row.shape == (2, 6, 7)


def test_unknown_names_are_answered_with_close_ones(store_path):
    write_tiny(store_path)
    store = FeatureStore.open(store_path)
    with pytest.raises(InputError, match="did you mean.*ID003"):
        store["ID0003"]
    with pytest.raises(InputError, match="plain, hflip, vflip"):
        store["ID003"].patches("flip")


@pytest.mark.parametrize("keep", [0, 100, 5000, -1], ids=["empty", "head", "some", "one byte short"])
def test_R02_a_cut_file_is_an_error_at_open(store_path, keep):
    write_tiny(store_path)
    biggest = store_path if store_path.is_file() else store_path / "patches/c/0/0/0/0/0"
    data = biggest.read_bytes()
    biggest.write_bytes(data[:keep])
    with pytest.raises((StoreDamaged, InputError), match=str(biggest)):
        FeatureStore.open(store_path)


def test_R04_a_missing_file_is_an_error_never_zeros(tmp_path):
    write_tiny(tmp_path / "features.zarr")
    (tmp_path / "features.zarr/cls/c/0/0/0/0").unlink()
    with pytest.raises(StoreDamaged, match="missing"):
        FeatureStore.open(tmp_path / "features.zarr")


def test_R09_a_handle_travels_to_another_process(store_path):
    spec = write_tiny(store_path)
    there = pickle.loads(pickle.dumps(FeatureStore.open(store_path)))
    assert np.array_equal(there.patches[2, 1], tiny_rows(spec, 2).patches_VTPD[1])


def test_what_is_no_store_is_refused_by_name(tmp_path):
    (tmp_path / "notes.h5").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name, why in [("notes.h5", "not a readable HDF5"), ("folder", "no zarr.json"), ("absent.h5", "no such store")]:
        with pytest.raises(InputError, match=why):
            FeatureStore.open(tmp_path / name)


@pytest.mark.parametrize("shape", ["[]", "[\"x\"]", "[9999999999999]", "7"])
def test_R07_foreign_metadata_is_refused_before_it_costs_anything(tmp_path, shape):
    write_tiny(tmp_path / "features.zarr")
    file = tmp_path / "features.zarr/seal/zarr.json"
    file.write_text(re.sub(r'"shape": \[[^]]*\]', f'"shape": {shape}', file.read_text(), count=1))
    with pytest.raises(StoreDamaged, match="shape"):
        FeatureStore.open(tmp_path / "features.zarr")


def test_R07_C5_a_link_out_of_the_store_is_not_followed(tmp_path):
    write_tiny(tmp_path / "features.zarr")
    shard = tmp_path / "features.zarr/cls/c/0/0/0/0"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreDamaged, match="a link"):
        FeatureStore.open(tmp_path / "features.zarr")


def test_C1_a_seal_that_does_not_match_is_no_seal(store_path):
    write_tiny(store_path)
    path, offset, _ = FeatureStore.open(store_path).layout.extents["catalog/path"].locate(2)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    store = FeatureStore.open(store_path)
    assert [store.is_sealed(i) for i in range(5)] == [True, True, False, True, True]
    with pytest.raises(StoreDamaged, match="does not match"):
        store.patches[2, 0]
    assert len(store.verify().faults) == 1
    assert store.stats()["count"][1] == pytest.approx(sum(tiny_rows(store.spec, i).stats_VS[0, 7] for i in (0, 1, 3, 4)))


def test_C1_first_touch_finds_a_flipped_bit(store_path):
    write_tiny(store_path)
    path, offset, _ = FeatureStore.open(store_path).layout.extents["patches"].locate(2 * 3 + 1)
    flip_bit(path, offset + 5)
    with pytest.raises(StoreDamaged, match=r"ID002.*hflip|ID002"):
        FeatureStore.open(store_path, check="first-touch").patches[2, 1]
    assert FeatureStore.open(store_path, check="first-touch").patches[1, 1].shape == (2, 6, 7)


def flip_bit(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
