"""Round trips, zero copy, what is never returned."""

import pickle
import re
import tracemalloc
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
import torch
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny

from featurestore import FeatureStore, open_writer
from featurestore.backbone.moments import pool, row_stats
from featurestore.errors import InputError, StoreDamaged, UsageError
from featurestore.write.writer import StoreWriter


def test_what_is_written_comes_back_bit_for_bit(store_path):
    spec = write_tiny(store_path)
    store = FeatureStore.open(store_path)
    for i in range(5):
        rows = tiny_rows(spec, i)
        assert np.array_equal(store.cls[i], rows.cls_VTD)
        assert np.array_equal(store.pooled[i], rows.pooled_VT5D)
        assert np.array_equal(store.thumbs[i], rows.thumb_HW3)
        assert np.array_equal(store.raw.stats[i], rows.stats_VS)
        for v in range(3):
            assert np.array_equal(store.patches[i, v], rows.patches_VTPD[v])
        assert store.catalog.iloc[i][["sha256", "width", "height", "status"]].to_dict() == {
            "sha256": f"{i:064x}",
            "width": 2000,
            "height": 1000,
            "status": "ok",
        }
    assert store.catalog["image_id"].tolist() == ["ID000", "ID001", "ID002", "ID003", "ID004"]
    assert store.catalog["path"].tolist()[3] == "train/ä 3.jpg"
    assert store.catalog["Dry_Total_g"].tolist() == [1.0, 2.5, 4.0, 5.5, 7.0]


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
    for read in (
        lambda: store.patches[2, 0],
        lambda: store.cls,
        lambda: store.take([(0, 0), (4, 0)]),
        lambda: store["ID004"].cls(),
        lambda: store.patches[:, 0],
    ):
        with pytest.raises(InputError, match="not built yet"):
            read()
    assert store.raw.cls.shape == (5, 3, 2, 7)


def test_C4_a_reader_sees_a_store_grow(store_path):
    write_tiny(store_path, seal=1)
    store = FeatureStore.open(store_path)
    assert (store.n_sealed, store.seals.is_sealed(4)) == (1, False)
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


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 2, 6, 7), np.float16),
        np.zeros((3, 2, 6, 7), np.float32),
        np.zeros((3, 2, 6, 14), np.float16)[..., ::2],
    ],
    ids=["shape", "type", "order"],
)
def test_take_refuses_another_buffer(store_path, out):
    write_tiny(store_path)
    with pytest.raises(InputError, match=r"needs C-contiguous float16 \(3, 2, 6, 7\)"):
        FeatureStore.open(store_path).take([(4, 2), (0, 1), (4, 0)], out=out)
    assert not out.any(), "it stays as it was"


def test_rows_are_named_and_fetched_by_image_and_view(store_path, monkeypatch):
    write_tiny(store_path)
    store = FeatureStore.open(store_path)
    assert store.where(3, 1).endswith("image 3 (ID003), view 'hflip'")
    fetched = []
    monkeypatch.setattr(
        store.source, "will_need", lambda rows: fetched.extend(map(tuple, rows)) or len(rows)
    )
    assert store.will_need([(4, 2), (0, 1)]) == 2
    assert fetched == [(4, 2), (0, 1)]


def test_slices_over_rows_are_what_numpy_gives(store_path):
    spec = write_tiny(store_path)
    whole = np.stack([tiny_rows(spec, i).patches_VTPD for i in range(5)])
    patches = FeatureStore.open(store_path).patches
    for key in [
        np.s_[1:3, 0],
        np.s_[::2, 1:],
        np.s_[2],
        np.s_[-1, -1],
        np.s_[1, 1:, 0],
        np.s_[3, 2, 1, 4],
        np.s_[4:1, 0],
    ]:
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


def test_a_store_is_opened_by_its_path_and_one_of_two_checks(store_path):
    write_tiny(store_path)
    with pytest.raises(UsageError, match=r"FeatureStore\.open opens the store at a path"):
        FeatureStore(str(store_path))
    with pytest.raises(UsageError, match="check 'first_touch': choose 'seal' or 'first-touch'"):
        FeatureStore.open(store_path, check="first_touch")


@pytest.mark.parametrize(
    "keep", [0, 100, 5000, -1], ids=["empty", "head", "some", "one byte short"]
)
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
    for name, why in [
        ("notes.h5", "not a readable HDF5"),
        ("folder", "no zarr.json"),
        ("absent.h5", "no such store"),
    ]:
        with pytest.raises(InputError, match=why):
            FeatureStore.open(tmp_path / name)


@pytest.mark.parametrize("shape", ["[]", '["x"]', "[9999999999999]", "7"])
def test_R07_foreign_metadata_is_refused_before_it_costs_anything(tmp_path, shape):
    write_tiny(tmp_path / "features.zarr")
    file = tmp_path / "features.zarr/seal/zarr.json"
    file.write_text(re.sub(r'"shape": \[[^]]*\]', f'"shape": {shape}', file.read_text(), count=1))
    FeatureStore.open(write_other(tmp_path))  # what is imported once is not counted
    tracemalloc.start()
    with pytest.raises(StoreDamaged, match="shape"):
        FeatureStore.open(tmp_path / "features.zarr")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


def write_other(folder):
    write_tiny(folder / "other.zarr")
    return folder / "other.zarr"


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
    assert [store.seals.is_sealed(i) for i in range(5)] == [True, True, False, True, True]
    with pytest.raises(StoreDamaged, match="does not match"):
        store.patches[2, 0]
    assert len(store.verify().faults) == 1
    assert store.stats()["count"][1] == pytest.approx(
        sum(tiny_rows(store.spec, i).stats_VS[0, 7] for i in (0, 1, 3, 4))
    )


def test_C1_a_thumbnail_of_an_image_that_is_not_sealed_is_never_returned(store_path):
    spec = write_tiny(store_path, seal=2)
    path, offset, _ = FeatureStore.open(store_path).layout.extents["thumbs"].locate(3)
    with open(path, "r+b") as file:  # as a builder leaves it that was killed before its commit
        file.seek(offset)
        file.write(tiny_rows(spec, 3).thumb_HW3.tobytes())
    store = FeatureStore.open(store_path)
    for read in (lambda: store.thumbs, lambda: store["ID003"].show(), lambda: store.rows(3)):
        with pytest.raises(InputError, match="not built yet"):
            read()
    assert "ID003" not in store._repr_html_()


def test_a_refreshed_reader_sees_new_images_and_seals_that_were_taken_back(store_path):
    write_tiny(store_path, n=3, reserve=2)
    store = FeatureStore.open(store_path)
    assert (store.n_images, len(store.catalog), store.sealed.tolist()) == (3, 3, [0, 1, 2])
    with pytest.raises(InputError, match="no image 'ID004'"):
        store["ID004"]
    write_tiny(store_path)
    with FeatureStore.open(store_path) as other:
        StoreWriter(other.layout, other).unseal([1])
    store.refresh()
    assert (store.n_images, len(store.catalog), store.sealed.tolist()) == (5, 5, [0, 2, 3, 4])
    assert store["ID004"].cls(0).shape == (2, 7) and store.image_ids[4] == "ID004"


def test_a_seal_whose_checksum_is_zero_is_one(store_path):
    """0 means absent. A thumbnail is made for which the CRC-32C of image 2 is 0, by the linearity
    of CRC over bits."""
    frame, image = tiny_frame(), 2
    spec = tiny_spec(frame)
    rows = tiny_rows(spec, image)
    cells = dict(image_id="ID002", path="train/ä 2.jpg", State="NSW", Dry_Total_g=4.0, **rows.facts)

    def crc_of(thumb: np.ndarray) -> int:
        encoded = b""
        for column in spec.columns:
            cell = cells[column.name]
            is_text = column.kind == "text"
            encoded += (
                cell.encode().ljust(column.width, b"\0") if is_text else np.float64(cell).tobytes()
            )
        parts = (rows.cls_VTD, rows.patches_VTPD, rows.pooled_VT5D, rows.stats_VS)
        crc_V = np.array(
            [google_crc32c.value(b"".join(part[v].tobytes() for part in parts)) for v in range(3)],
            "<u4",
        )
        return google_crc32c.value(
            spec.fingerprint.encode()
            + np.uint64(image).tobytes()
            + encoded
            + thumb.tobytes()
            + crc_V.tobytes()
        )

    thumb = rows.thumb_HW3.copy()
    start, flips = crc_of(thumb), {}
    # each bit's effect, reduced by those before it: Gaussian elimination over GF(2)
    for bit in range(40):
        flipped = thumb.copy()
        flipped.reshape(-1)[bit // 8] ^= 1 << bit % 8
        effect, used = crc_of(flipped) ^ start, 1 << bit
        while effect and effect.bit_length() in flips:
            other_effect, other_used = flips[effect.bit_length()]
            effect, used = effect ^ other_effect, used ^ other_used
        if effect:
            flips[effect.bit_length()] = effect, used
    rest, chosen = start, 0
    while rest:
        effect, used = flips[rest.bit_length()]
        rest, chosen = rest ^ effect, chosen ^ used
    for bit in range(40):
        thumb.reshape(-1)[bit // 8] ^= (chosen >> bit & 1) << bit % 8
    assert crc_of(thumb) == 0

    with open_writer(store_path, spec, frame) as writer:
        writer.put(image, replace(rows, thumb_HW3=thumb))
    store = FeatureStore.open(store_path)
    assert store.raw.seal.tolist() == [0, 0, 1, 0, 0]
    assert store.sealed.tolist() == [2] and np.array_equal(store.rows(2).thumb_HW3, thumb)


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


def test_statistics_are_those_of_all_sealed_tokens(store_path):
    """Against NumPy over the tokens themselves; two of the five images are not sealed."""
    frame = tiny_frame(5)
    spec = tiny_spec(frame)
    with open_writer(store_path, spec, frame) as writer:
        for image in (0, 1, 4):
            rows = tiny_rows(spec, image)
            shifted = replace(rows, patches_VTPD=(rows.patches_VTPD + np.float16(image)))
            stats = [
                row_stats(*map(torch.from_numpy, each))
                for each in zip(
                    shifted.cls_VTD,
                    shifted.patches_VTPD,
                    pooled_of(shifted.patches_VTPD),
                    strict=True,
                )
            ]
            writer.put(image, replace(shifted, stats_VS=torch.stack(stats).numpy()))
            writer.commit()
    store = FeatureStore.open(store_path)
    stats = store.stats().set_index(["view", "tokens"])
    for v, view in enumerate(("plain", "hflip", "vflip")):
        tokens = np.stack([store.patches[i, v] for i in (0, 1, 4)]).astype(float)
        norms = np.linalg.norm(tokens, axis=-1)
        expected = [
            tokens.size,
            tokens.mean(),
            tokens.std(),
            tokens.min(),
            tokens.max(),
            norms.mean(),
            0,
        ]
        columns = ["count", "mean", "std", "min", "max", "norm", "non_finite"]
        assert stats.loc[(view, "patch"), columns].tolist() == pytest.approx(expected, rel=1e-6)


def pooled_of(patches_VTPD: np.ndarray) -> np.ndarray:
    return np.stack([pool(torch.from_numpy(patches_TPD)).numpy() for patches_TPD in patches_VTPD])


def test_statistics_of_nothing_are_no_numbers(store_path):
    write_tiny(store_path, seal=0)
    stats = FeatureStore.open(store_path).stats()
    assert stats.columns.tolist() == [
        "view",
        "tokens",
        "count",
        "mean",
        "std",
        "min",
        "max",
        "norm",
        "non_finite",
    ]
    assert len(stats) == 6 and stats.drop(columns=["view", "tokens"]).isna().all(axis=None)


def test_the_parts_of_a_row_are_the_bytes_that_its_checksum_covers(store_path):
    write_tiny(store_path)
    store = FeatureStore.open(store_path)
    for image, view in np.ndindex(5, 3):
        parts = store.layout.row_parts(image, view)
        data = b"".join(path.read_bytes()[offset : offset + n] for path, offset, n in parts)
        assert google_crc32c.value(data) == store.row_crcs(image)[view]


def test_all_patches_become_an_array_only_as_a_copy(store_path):
    spec = write_tiny(store_path)
    patches = FeatureStore.open(store_path).patches
    whole = np.stack([tiny_rows(spec, i).patches_VTPD for i in range(5)])
    assert np.array_equal(np.asarray(patches), whole)
    assert (
        np.asarray(patches, np.float64).dtype == np.float64
        and np.array(patches, copy=True).dtype == np.float16
    )
    with pytest.raises(ValueError, match="take a copy, or one image"):
        np.array(patches, copy=False)
