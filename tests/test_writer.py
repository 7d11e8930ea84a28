"""Commits, resume, locks; test_crash kills the builder."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny

from featurestore import FeatureStore, open_writer
from featurestore.disk import durable
from featurestore.errors import InputError, LockedError, MismatchError
from featurestore.write.writer import StoreWriter


def digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return hashlib.sha256(
        b"".join(str(f.relative_to(path)).encode() + f.read_bytes() for f in files)
    ).hexdigest()


def test_B05_a_failed_sync_is_never_believed(store_path, monkeypatch):
    frame = tiny_frame()
    spec = tiny_spec(frame)
    calls = []

    def failing(fd):
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")

    with (
        pytest.raises(InputError, match="Input/output error"),
        open_writer(store_path, spec, frame) as writer,
    ):
        monkeypatch.setattr(durable, "datasync", failing)
        writer.put(0, tiny_rows(spec, 0))
    assert FeatureStore.open(store_path).n_sealed == 0


def test_B05_what_a_failed_sync_may_have_lost_is_not_sealed_by_the_next_commit(
    store_path, monkeypatch
):
    """The kernel tells of a lost page once: a second sync of the same file succeeds without it."""
    frame = tiny_frame()
    spec = tiny_spec(frame)

    def failing(fd):
        raise OSError(5, "Input/output error")

    with open_writer(store_path, spec, frame) as writer:
        writer.put(0, tiny_rows(spec, 0))
        with monkeypatch.context() as patch:
            patch.setattr(durable, "datasync", failing)
            with pytest.raises(OSError, match="Input/output error"):
                writer.commit()
        writer.put(1, tiny_rows(spec, 1))
        writer.commit()
        assert FeatureStore.open(store_path).sealed.tolist() == [1]
    assert FeatureStore.open(store_path).sealed.tolist() == [1]
    write_tiny(store_path)
    assert FeatureStore.open(store_path).sealed.tolist() == [0, 1, 2, 3, 4]


def test_B08_C4_two_builders_at_once_one_is_refused(store_path):
    frame = tiny_frame()
    with open_writer(store_path, tiny_spec(frame), frame):
        with pytest.raises(LockedError, match=f'"pid": {os.getpid()}'):
            write_tiny(store_path)
        FeatureStore.open(store_path)  # readers are welcome
    write_tiny(store_path)


def test_C10_other_tokens_are_refused_with_both_values(store_path):
    write_tiny(store_path)
    frame = tiny_frame()
    with (
        pytest.raises(MismatchError, match=r"seed: store 0, asked 1"),
        open_writer(store_path, tiny_spec(frame, seed=1), frame),
    ):
        pass


def test_changed_labels_are_refused_by_image(store_path):
    write_tiny(store_path)
    frame = tiny_frame().assign(Dry_Total_g=[1, 2.5, 99, 5.5, 7])
    with (
        pytest.raises(MismatchError, match="Dry_Total_g.*\n  ID002"),
        open_writer(store_path, tiny_spec(frame), frame),
    ):
        pass


def test_reserved_rows_take_new_images(store_path):
    write_tiny(store_path, n=4, reserve=2)
    frame = tiny_frame(6)
    spec = tiny_spec(frame)
    with open_writer(store_path, spec, frame) as writer:
        assert writer.pending() == [4, 5]
        writer.put(4, tiny_rows(spec, 4))
    store = FeatureStore.open(store_path)
    assert (store.n_images, store.n_sealed) == (6, 5)
    assert np.array_equal(store.patches[4, 0], tiny_rows(spec, 4).patches_VTPD[0])
    with (
        pytest.raises(InputError, match="room for 0"),
        open_writer(store_path, tiny_spec(tiny_frame(7)), tiny_frame(7)),
    ):
        pass


def test_a_text_too_long_for_its_column_is_refused(store_path):
    write_tiny(store_path, n=4, reserve=2)
    frame = tiny_frame(5).assign(
        path=["train/ä 0.jpg", "train/ä 1.jpg", "train/ä 2.jpg", "train/ä 3.jpg", "x" * 100]
    )
    with (
        pytest.raises(InputError, match="path: 'xxx"),
        open_writer(store_path, tiny_spec(frame), frame),
    ):
        pass
    assert FeatureStore.open(store_path).n_images == 4


def test_new_images_without_a_label_have_none_rather_than_zero(store_path):
    write_tiny(store_path, n=4, reserve=1)
    frame = tiny_frame(5).drop(columns="Dry_Total_g")
    with open_writer(store_path, tiny_spec(tiny_frame(5)), frame):
        pass
    assert np.isnan(FeatureStore.open(store_path).catalog["Dry_Total_g"][4])


def test_a_column_of_another_kind_is_refused(store_path):
    write_tiny(store_path, n=4, reserve=1)
    frame = tiny_frame(5).assign(Dry_Total_g="heavy")
    with (
        pytest.raises(MismatchError, match="'Dry_Total_g' is number in the store, text in the CSV"),
        open_writer(store_path, tiny_spec(tiny_frame(5)), frame),
    ):
        pass


def test_C3_growth_torn_by_power_loss_is_taken_up_again(store_path):
    """An id in the middle never reached the disk: what follows is not in use, and the next build
    writes it again."""
    write_tiny(store_path, n=2, reserve=3)
    frame = tiny_frame(5)
    with open_writer(store_path, tiny_spec(frame), frame):
        pass
    path, offset, _ = FeatureStore.open(store_path).layout.extents["catalog/image_id"].locate(3)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\0")
    assert FeatureStore.open(store_path).n_images == 3
    with open_writer(store_path, tiny_spec(frame), frame) as writer:
        assert writer.image_ids == frame["image_id"].tolist()


def test_a_store_of_a_like_name_is_left_alone(store_path):
    other = store_path.with_name(f"features.new{store_path.suffix}")
    write_tiny(other)
    write_tiny(store_path)
    assert FeatureStore.open(other).n_sealed == 5


def test_C4_one_lock_for_all_names_of_a_store(tmp_path):
    write_tiny(tmp_path / "f.h5", seal=2)
    (tmp_path / "alias.h5").symlink_to(tmp_path / "f.h5")
    frame = tiny_frame()
    with open_writer(tmp_path / "f.h5", tiny_spec(frame), frame), pytest.raises(LockedError):
        write_tiny(tmp_path / "alias.h5")


def test_what_is_put_must_be_of_the_arrays_dtype_and_shape(store_path):
    frame = tiny_frame()
    spec = tiny_spec(frame)
    rows = tiny_rows(spec, 0)
    with open_writer(store_path, spec, frame) as writer:
        for wrong in (
            replace(rows, patches_VTPD=rows.patches_VTPD.astype(np.float32)),
            replace(rows, cls_VTD=rows.cls_VTD[:2]),
            replace(rows, thumb_HW3=None),
        ):
            with pytest.raises(InputError, match="of an image are"):
                writer.put(0, wrong)
    assert FeatureStore.open(store_path).n_sealed == 0


def test_a_seal_that_does_not_match_is_taken_back_before_its_image_is_made_again(store_path):
    spec = write_tiny(store_path)
    path, offset, _ = FeatureStore.open(store_path).layout.extents["thumbs"].locate(2)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff\xff")
    reader = FeatureStore.open(store_path)
    with open_writer(store_path, spec, tiny_frame()) as writer:
        assert writer.pending() == [2] and reader.array("seal")[2] == 0


def test_a_reader_hands_out_no_image_whose_seal_was_taken_back(store_path):
    spec = write_tiny(store_path)
    reader = FeatureStore.open(store_path)
    assert reader.patches[3, 0].shape == (2, 6, 7)
    with open_writer(store_path, spec, tiny_frame()) as writer:
        writer.unseal([3])
    with pytest.raises(InputError, match="not built yet|skipped"):
        reader.patches[3, 0]
    assert reader.sealed.tolist() == [0, 1, 2, 4]


def test_facts_are_those_of_the_moment_whatever_catalog_is_at_hand(store_path):
    write_tiny(store_path, seal=1)
    reader = FeatureStore.open(store_path)
    assert reader.catalog["sha256"][4] == ""
    write_tiny(store_path)
    assert reader.rows(4).facts == tiny_rows(reader.spec, 4).facts


def test_images_nobody_asks_for_any_more_are_dropped_and_may_come_back(store_path):
    write_tiny(store_path, seal=1)
    frame, spec = tiny_frame(), tiny_spec(tiny_frame())
    fewer = frame.drop(index=2).reset_index(drop=True)
    with (
        pytest.warns(UserWarning, match="no longer asked for.*\n  ID002"),
        open_writer(store_path, spec, fewer) as writer,
    ):
        assert writer.pending() == [1, 3, 4]
    assert FeatureStore.open(store_path).skipped == [2]
    write_tiny(store_path)
    assert (
        FeatureStore.open(store_path).n_sealed == 5
        and FeatureStore.open(store_path).catalog["status"][2] == "ok"
    )


def test_a_shard_of_two_names_is_copied_and_read_anew(tmp_path):
    path = tmp_path / "features.zarr"
    spec = write_tiny(path, n=3, seal=2)
    rows = tiny_rows(spec, 2)
    with FeatureStore.open(path) as store:
        shard = store.layout.extents["patches"].paths[0]
        os.link(shard, tmp_path / "of-a-part")
        before = shard.read_bytes()
        assert not store.source.patches(2, [0]).any()  # it is mapped
        writer = StoreWriter(store.layout, store)
        writer.put(2, rows)
        writer.commit()
        assert np.array_equal(store.patches[2], rows.patches_VTPD)
    assert (tmp_path / "of-a-part").read_bytes() == before
