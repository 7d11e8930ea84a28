"""Every flipped bit is found, named, and nothing else is."""

import errno
import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from test_store import flip_bit

from featurestore import FeatureStore, open_writer
from featurestore.manage.sums import _non_finite
from featurestore.manage.verify import VerifyReport, repair, verify


@pytest.mark.parametrize(
    "name", ["cls", "patches", "pooled", "stats", "thumbs", "crc32c", "seal", "catalog/State"]
)
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
    path, offset, n_bytes = (
        FeatureStore.open(tmp_path / "features.zarr").layout.extents["patches"].locate(0)
    )
    flip_bit(path, offset + n_bytes)
    report = FeatureStore.open(tmp_path / "features.zarr").verify()
    assert [(f.image_id, f.view, f.what) for f in report.faults] == [
        ("ID000", "plain", "its chunk checksum, or the zeros that follow it, changed")
    ]


def overwrite(place: tuple, data: bytes) -> None:
    path, offset, _ = place
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def extents_of(path):
    return FeatureStore.open(path).layout.extents


@pytest.mark.parametrize(
    "name", ["cls", "patches", "pooled", "stats", "thumbs", "crc32c", "catalog/State"]
)
def test_bytes_of_images_that_are_not_sealed_are_no_damage(store_path, name):
    """What a killed builder had begun to write."""
    write_tiny(store_path, seal=3)
    place = extents_of(store_path)[name].locate(3 * (3 if name == "patches" else 1) + 1)
    overwrite(place, b"\xff\x7c\x01")
    report = FeatureStore.open(store_path).verify()
    assert report and report.n_sealed == 3 and report.damaged == []


def test_a_seal_beyond_the_catalog_is_damage(store_path):
    write_tiny(store_path, n=3, reserve=2)
    overwrite(extents_of(store_path)["seal"].locate(4), b"\x07")
    (fault,) = FeatureStore.open(store_path).verify().faults
    assert (fault.image, fault.what) == (4, "sealed, but an id at or before it is gone")


def test_an_id_without_a_path_is_damage(store_path):
    """One flipped bit puts a free place in use."""
    write_tiny(store_path, n=3, reserve=2)
    overwrite(extents_of(store_path)["catalog/image_id"].locate(3), b"\x01")
    report = FeatureStore.open(store_path).verify()
    (fault,) = report.faults
    path, offset, _ = extents_of(store_path)["catalog/image_id"].locate(3)
    assert (fault.image, fault.what) == (3, "it has an id, but no path")
    assert fault.path == str(path) and report.damaged == [3]


@pytest.mark.parametrize("name", ["patches", "pooled"])
def test_a_disk_that_cannot_read_is_reported_by_row(store_path, monkeypatch, name):
    write_tiny(store_path)
    extent = extents_of(store_path)[name]
    path, start, n_bytes = extent.locate(4 if name == "patches" else 1)
    preadv = os.preadv

    def failing(fd, buffers, offset):
        here = os.readlink(f"/proc/self/fd/{fd}") == str(path)
        if here and offset < start + n_bytes and start < offset + len(buffers[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    faults = FeatureStore.open(store_path).verify().faults
    expected = ["hflip"] if name == "patches" else ["hflip", "plain", "vflip"]
    assert sorted((fault.image_id, fault.view) for fault in faults) == [
        ("ID001", view) for view in expected
    ]
    assert all(
        "cannot be read: " in fault.what and "Input/output error" in fault.what for fault in faults
    )


@pytest.mark.parametrize("image, view", [(0, 2), (3, 1)])
def test_a_fault_names_image_view_file_and_offset(store_path, image, view):
    write_tiny(store_path)
    path, offset, n_bytes = extents_of(store_path)["patches"].locate(3 * image + view)
    flip_bit(path, offset + n_bytes - 1)
    (fault,) = FeatureStore.open(store_path).verify().faults
    what = {
        ".h5": "its bytes are not those committed (CRC-32C differs)",
        ".zarr": "its chunk checksum, or the zeros that follow it, changed",
    }[store_path.suffix]
    where = f"{path} at byte {offset}"
    assert str(fault) == f"ID00{image} {('plain', 'hflip', 'vflip')[view]}: {what} ({where})"


def test_padding_that_is_not_zero_is_named_by_its_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("featurestore.format.zarr.CHUNK_BYTES", 200)
    path = tmp_path / "features.zarr"
    write_tiny(path)
    file, start, n_bytes = next(each for each in FeatureStore.open(path).layout.padding if each[2])
    overwrite((file, start + n_bytes - 2, 2), b"\x01\x01")
    (fault,) = FeatureStore.open(path).verify().faults
    assert str(fault) == f"its padding is not zero ({file} at byte {start + n_bytes - 2})"


@pytest.mark.parametrize(
    "value", [np.inf, -np.inf, np.nan, -np.nan], ids=["inf", "-inf", "nan", "-nan"]
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_value_that_is_not_finite_is_seen_by_its_bits(dtype, value):
    finite = np.array([0.0, -0.0, np.finfo(dtype).max, np.finfo(dtype).min], dtype)
    assert not _non_finite(finite) and not _non_finite(finite[:0])
    assert _non_finite(np.append(finite, np.array(value, dtype)))


def test_repair_takes_back_the_seals_of_damaged_images_alone(store_path):
    write_tiny(store_path)
    path, offset, _ = extents_of(store_path)["pooled"].locate(3)
    flip_bit(path, offset)
    assert repair(store_path).damaged == [3]
    assert FeatureStore.open(store_path).sealed.tolist() == [0, 1, 2, 4]


def test_photographs_that_changed_or_went_are_named_and_are_no_damage(tmp_path):
    frame, root = tiny_frame(3), tmp_path / "data"
    (root / "train").mkdir(parents=True)
    spec = tiny_spec(frame)
    with open_writer(tmp_path / "f.h5", spec, frame) as writer:
        for image in writer.pending():
            rows = tiny_rows(spec, image)
            content = f"photograph {image}".encode()
            (root / frame["path"][image]).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            writer.put(image, replace(rows, facts={**rows.facts, "sha256": digest}))
            writer.commit()
    changed, gone = root / frame["path"][0], root / frame["path"][2]
    changed.write_bytes(b"another photograph")
    gone.unlink()
    report = verify(FeatureStore.open(tmp_path / "f.h5"), images=root)
    assert [str(fault) for fault in report.faults] == [
        f"ID000 (all views): its photograph changed since it was encoded ({changed} at byte 0)",
        f"ID002 (all views): its photograph is missing ({gone} at byte 0)",
    ]
    assert report.damaged == []
    assert [(fault.image, fault.image_id, fault.view) for fault in report.faults] == [
        (0, "ID000", None),
        (2, "ID002", None),
    ]


def test_faults_are_in_the_order_of_images(store_path):
    """Bytes of rows are looked at before seals and catalog, which may damage an image before."""
    write_tiny(store_path)
    places = extents_of(store_path)
    for name, image in (("cls", 3), ("seal", 1), ("cls", 0)):
        path, offset, n_bytes = places[name].locate(image)
        flip_bit(path, offset + n_bytes - 1)
    images = [fault.image for fault in FeatureStore.open(store_path).verify().faults]
    assert images == sorted(images) and set(images) == {0, 1, 3}


def test_the_pace_says_what_set_it():
    report = VerifyReport(1, n_bytes=3_000_000_000, seconds=2.0, waited_s=1.5)
    assert report.pace() == "3 GB in 2 s, 1.5 GB/s, as fast as the disk allows"
    report.waited_s = 0.5
    assert report.pace() == "3 GB in 2 s, 1.5 GB/s, as fast as the checksum allows"


@pytest.mark.parametrize("image, view", [(1, 2), (4, 0)])
def test_a_committed_value_that_is_not_finite_is_named_by_its_row(tmp_path, image, view):
    """As a writer that does not look would leave it: its checksum holds."""
    frame = tiny_frame(5)
    spec = tiny_spec(frame)
    with open_writer(tmp_path / "f.h5", spec, frame) as writer:
        for each in writer.pending():
            rows = tiny_rows(spec, each)
            if each == image:
                rows.cls_VTD[view, 1, 3] = np.nan
            writer.put(each, rows)
            writer.commit()
    (fault,) = FeatureStore.open(tmp_path / "f.h5").verify().faults
    assert (fault.image, fault.view) == (image, ("plain", "hflip", "vflip")[view])
    assert fault.what == "values of cls are not finite"


def test_rows_of_several_pieces_are_read_in_turn(store_path, monkeypatch):
    """Buffers are used again: a piece must not be overwritten before it is summed."""
    monkeypatch.setattr("featurestore.read.files.OpenFiles.piece_bytes", 64)
    write_tiny(store_path)
    assert FeatureStore.open(store_path).verify()
    path, offset, n_bytes = extents_of(store_path)["cls"].locate(4)
    flip_bit(path, offset + n_bytes - 1)
    (fault, *_) = FeatureStore.open(store_path).verify().faults
    assert fault.image == 4
