"""Archives: what goes in comes out, other clients read the same bytes, rot has a name, int8 is a
store of its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import torch
import zarr
from conftest import VIEWS, tiny_frame, tiny_rows, tiny_spec, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_store import flip_bit
from test_writer import digest

from featurestore import FeatureStore
from featurestore.backbone.moments import pool
from featurestore.backbone.rounding import dequantise, int8_rounded, quantise
from featurestore.errors import InputError, StoreDamaged, UsageError
from featurestore.manage.archive import Archive
from featurestore.manage.archive_writer import write_archive
from featurestore.read.rows import row_crcs
from featurestore.write.writer import open_writer

FIELDS = ("cls_VTD", "patches_VTPD", "pooled_VT5D", "stats_VS", "thumb_HW3")
CODECS = ("zstd", "int8")


@pytest.fixture(scope="module", autouse=True)
def small_files():
    """Files of patches hold two images, blocks of the other arrays four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.manage.archive_layout.SHARD_BYTES", 1200)
        patch.setattr("featurestore.manage.archive_layout.BLOCK_BYTES", 13_000)
        yield


@pytest.fixture
def store(store_path) -> FeatureStore:
    write_tiny(store_path)
    return FeatureStore.open(store_path)


def archived(store: FeatureStore, codec: str, images=range(5), views=None) -> Archive:
    path = store.path.with_name(f"{codec}.zarr")
    write_archive(store, path, codec, images, views)
    return Archive.open(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """An archive of five images in zstd, once for all tests."""
    path = tmp_path_factory.mktemp("archive") / "features.h5"
    write_tiny(path)
    return archived(FeatureStore.open(path), "zstd").path


@pytest.fixture
def path(written, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(written, tmp_path / "zstd.zarr")


def restored(archive: Archive, path) -> FeatureStore:
    frame = archive.catalog[["image_id", "path", "State", "Dry_Total_g"]]
    with open_writer(path, archive.spec, frame) as writer:
        for image in writer.pending():
            writer.put(image, archive.rows(image))
    return FeatureStore.open(path)


def same(ours, theirs) -> bool:
    return (
        all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in FIELDS)
        and ours.facts == theirs.facts
    )


def test_zstd_gives_back_every_bit_and_the_very_same_seals(store, written, tmp_path):
    archive = archived(store, "zstd")
    assert digest(archive.path) == digest(written)  # whatever the store's format
    assert (
        archive.spec == store.spec
        and archive.catalog.equals(store.catalog)
        and archive.sealed.tolist() == [0, 1, 2, 3, 4]
    )
    assert all(same(archive.rows(i), store.rows(i)) for i in range(5))
    back = restored(archive, tmp_path / "back.h5")
    assert np.array_equal(back.raw.seal, store.raw.seal) and np.array_equal(
        archive._read("seal"), store.raw.seal
    )
    assert back.verify()


def test_some_images_and_views_in_the_order_asked(store):
    archive = archived(store, "zstd", [4, 0, 2], [2, 0])
    assert (
        archive.spec.tokens.views == (VIEWS[2], VIEWS[0])
        and archive.spec.fingerprint != store.spec.fingerprint
    )
    assert archive.catalog["image_id"].tolist() == ["ID004", "ID000", "ID002"]
    assert np.array_equal(archive.rows(0).patches_VTPD, store.rows(4).patches_VTPD[[2, 0]])
    assert np.array_equal(archive.rows(2).stats_VS, store.rows(2).stats_VS[[2, 0]])


def test_int8_is_a_store_of_the_rounded_tokens(store, tmp_path):
    archive = archived(store, "int8")
    assert (
        archive.spec.tokens.dtype == "int8" and archive.spec.fingerprint != store.spec.fingerprint
    )
    off = []
    for i in range(5):
        ours, original = archive.rows(i), store.rows(i)
        expected = int8_rounded(torch.from_dlpack(original.patches_VTPD))
        assert np.array_equal(ours.patches_VTPD, expected.numpy()) and np.array_equal(
            ours.cls_VTD, original.cls_VTD
        )
        assert np.array_equal(ours.pooled_VT5D[1], pool(expected[1]).numpy())
        assert ours.stats_VS[2, 7] == 2 * 6 * 7 and ours.stats_VS[2, 10] == expected[2].max()
        off.append(expected.double() - torch.tensor(original.patches_VTPD).double())
    off, tokens = (
        torch.stack(off),
        np.stack([store.rows(i).patches_VTPD for i in range(5)]).astype(float),
    )
    relative = np.linalg.norm(off, axis=-1) / np.linalg.norm(tokens, axis=-1)
    expected = {
        "max": float(off.abs().max()),
        "rms": float(off.square().mean()) ** 0.5,
        "max_relative": relative.max(),
        "rms_relative": (relative**2).mean() ** 0.5,
    }
    assert archive.error == pytest.approx(expected, rel=1e-5)
    back = restored(archive, tmp_path / "back.zarr")
    assert back.verify() and np.array_equal(back.raw.seal, archive._read("seal"))


def test_an_archive_is_the_source_of_another_and_int8_of_int8_loses_nothing(store, tmp_path):
    write_archive(archived(store, "zstd"), tmp_path / "a.zarr", "int8", range(5))
    once = archived(store, "int8")
    assert all(same(Archive.open(tmp_path / "a.zarr").rows(i), once.rows(i)) for i in range(5))
    report = write_archive(Archive.open(tmp_path / "a.zarr"), tmp_path / "b.zarr", "int8", range(5))
    assert report.error["max"] == 0 and "int8, patch tokens rounded by 0.00%" in str(report)
    assert Archive.open(tmp_path / "b.zarr").spec == Archive.open(tmp_path / "a.zarr").spec


@pytest.mark.parametrize("codec", CODECS)
def test_zarr_and_tensorstore_read_the_same_values(store, codec):
    archive = archived(store, codec)
    names = [
        "cls",
        "patches",
        "pooled",
        "stats",
        "thumbs",
        "crc32c",
        "seal",
        "catalog/image_id",
        "catalog/Dry_Total_g",
    ]
    found = {}
    for name in [*names, *(["patches_scale"] if codec == "int8" else [])]:
        theirs = ts.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{archive.path}/{name}/"}}
        ).result()
        found[name] = theirs.read().result()
        assert np.array_equal(found[name], zarr.open_array(archive.path / name, mode="r")[...]), (
            name
        )
    patches = found["patches"]
    if codec == "int8":  # by the formula of the format text, with numpy
        patches = (patches.astype(np.float32) * found["patches_scale"][..., None]).astype(
            np.float16
        )
    assert np.array_equal(patches, np.stack([archive.rows(i).patches_VTPD for i in range(5)]))
    assert found["cls"].tobytes() == store.cls.tobytes() and found["seal"].all()


@pytest.mark.parametrize("codec", CODECS)
def test_a_flipped_bit_of_patches_is_told_by_image_and_view(store, codec):
    archive = archived(store, codec)
    image = archive._root["patches"].shards[0]  # the first one in the second file
    flip_bit(archive.path / "patches/c/1/0/0/0/0", 20)
    with pytest.raises(
        StoreDamaged, match=rf"patches of image {image} \(ID00{image}\), view 'plain'"
    ):
        Archive.open(archive.path).rows(image)
    assert same(Archive.open(archive.path).rows(0), archive.rows(0))


@pytest.mark.parametrize(
    "name",
    [
        "cls/c/0/0/0/0",
        "pooled/c/0/0/0/0/0",
        "thumbs/c/0/0/0/0",
        "catalog/State/c/0/0",
        "crc32c/c/0/0",
    ],
)
def test_a_flipped_bit_elsewhere_is_told_by_its_array(path, name):
    flip_bit(path / name, 20)
    with pytest.raises(StoreDamaged, match=name.split("/c/")[0]):
        Archive.open(path).rows(0)


def test_values_changed_by_another_program_are_told_by_image_and_view(path):
    zarr.open_array(path / "cls", mode="r+")[3, 1] = 0
    zarr.open_array(path / "catalog/Dry_Total_g", mode="r+")[1] = 99
    with pytest.raises(
        StoreDamaged, match=r"image 3 \(ID003\), view 'hflip': its bytes are not those archived"
    ):
        Archive.open(path).rows(3)
    with pytest.raises(StoreDamaged, match=r"image 1 \(ID001\): its seal"):
        Archive.open(path).rows(1)


def test_a_missing_file_is_an_error_never_zeros(path):
    (path / "seal/c/0").unlink()
    with pytest.raises(StoreDamaged, match="seal/c/0: missing"):
        Archive.open(path)


def test_rot_in_the_source_is_not_archived_and_nothing_is_left(store, store_path):
    path, offset, _ = store.layout.extents["patches"].locate(7)
    flip_bit(path, offset)
    with pytest.raises(StoreDamaged, match="image 2"):
        archived(FeatureStore.open(store_path), "zstd")
    assert not list(store_path.parent.glob("zstd.zarr*[!k]"))


@pytest.mark.parametrize("codec", CODECS)
def test_a_store_does_not_open_an_archive_and_says_what_to_do(store, codec):
    archive = archived(store, codec)
    with pytest.raises(
        InputError, match=f"an archive.*biomass store convert {archive.path} OUT.h5"
    ):
        FeatureStore.open(archive.path)
    assert (
        "not mapped" in repr(archive)
        and f"codec    {codec}" in repr(archive)
        and "ratio" in repr(archive)
    )


def test_a_pooled_store_is_archived_too(tmp_path):
    frame = tiny_frame()
    spec = tiny_spec(frame).model_copy(update={"has_patches": False})
    with open_writer(tmp_path / "f.h5", spec, frame) as writer:
        for image in writer.pending():
            rows = tiny_rows(spec, image)
            writer.put(
                image,
                type(rows)(
                    rows.cls_VTD, None, rows.pooled_VT5D, rows.stats_VS, rows.thumb_HW3, rows.facts
                ),
            )
    store = FeatureStore.open(tmp_path / "f.h5")
    archive = archived(store, "zstd")
    assert all(np.array_equal(row_crcs(archive.rows(i)), store.raw.crc32c[i]) for i in range(5))
    with pytest.raises(InputError, match="no patch tokens to round; use codec zstd"):
        archived(store, "int8")


@pytest.mark.parametrize(
    "name, codec, images, error, why",
    [
        ("a.h5", "zstd", [0], InputError, "HDF5 reads zstd by a plugin only"),
        ("a.zarr", "gzip", [0], UsageError, "zstd, int8"),
        ("a.zarr", "zstd", [], InputError, "at least one"),
        ("a.zarr", "zstd", [1, 1], InputError, "each once"),
    ],
    ids=["hdf5", "codec", "none", "twice"],
)
def test_what_cannot_be_an_archive_is_refused(store, name, codec, images, error, why):
    with pytest.raises(error, match=why):
        write_archive(store, store.path.with_name(name), codec, images)


def test_an_archive_that_is_there_is_not_written_over(store):
    archived(store, "zstd")
    with pytest.raises(InputError, match="exists already"):
        archived(store, "zstd")


def test_unsealed_images_are_not_archived(tmp_path):
    write_tiny(tmp_path / "f.h5", seal=2)
    with pytest.raises(InputError, match="image 2 .* is not built yet"):
        archived(FeatureStore.open(tmp_path / "f.h5"), "zstd")
    assert len(archived(FeatureStore.open(tmp_path / "f.h5"), "zstd", [0, 1])) == 2


FOREIGN = {
    "another codec": ("cls", lambda node: node["codecs"][1].update(name="gzip")),
    "huge chunks": (
        "cls",
        lambda node: node["chunk_grid"]["configuration"].update(chunk_shape=[10**9, 3, 2, 7]),
    ),
    "another dtype": ("stats", lambda node: node.update(data_type="float32")),
    "another shape": ("crc32c", lambda node: node.update(shape=[5, 4])),
    "no sharding": (
        "patches",
        lambda node: node.update(codecs=node["codecs"][0]["configuration"]["codecs"]),
    ),
    "huge count": ("seal", lambda node: node.update(shape=[2**60])),
    "no codecs": ("pooled", lambda node: node.pop("codecs")),
    "newer": ("", lambda node: node["attributes"].update(format_version=2)),
    "codec of the future": ("", lambda node: node["attributes"].update(codec="int4")),
    "odd error": ("", lambda node: node["attributes"].update(error="none")),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_metadata_is_refused_before_it_costs_anything(path, what):
    name, change = FOREIGN[what]
    node = json.loads((path / name / "zarr.json").read_text())
    change(node)
    (path / name / "zarr.json").write_text(json.dumps(node))
    with pytest.raises((StoreDamaged, InputError), match=str(path)):
        Archive.open(path)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float16,
        st.tuples(st.integers(1, 4), st.integers(1, 9)),
        elements=st.floats(-65504, 65504, width=16),
    )
)
def test_rounding_is_within_half_a_step_and_settles_at_once(tokens):
    x = torch.from_numpy(tokens)
    q, scale = quantise(x)
    once = dequantise(q, scale)
    assert torch.isfinite(once).all() and q.abs().max() <= 127
    step = scale.double()[:, None] * 0.5001 + x.double().abs() * 2**-11 + 2**-25
    assert ((once.double() - x.double()).abs() <= step).all()
    assert torch.equal(int8_rounded(once).view(torch.int16), once.view(torch.int16))


def test_predicted_tokens_equal_the_restored_row(built, pasture, tmp_path):
    """Bit for bit: what predict does with a spec of int8, and what came back from the archive."""
    from featurestore.backbone.load import restore_backbone
    from featurestore.photos.decode import decode

    write_archive(FeatureStore.open(built), tmp_path / "a.zarr", "int8", [3])
    archive = Archive.open(tmp_path / "a.zarr")
    backbone = restore_backbone(archive.spec.tokens, "random", "cpu", "fp32")
    decoded = decode(pasture / archive.catalog["path"][0], backbone.crop)
    for v, view in enumerate(archive.spec.tokens.views):
        cls_TD, patches_TPD = backbone.tokens(
            decoded.tiles_THW3, archive.catalog["image_id"][0], view
        )
        assert np.array_equal(cls_TD.numpy(), archive.rows(0).cls_VTD[v])
        assert np.array_equal(patches_TPD.numpy(), archive.rows(0).patches_VTPD[v])
    assert not np.array_equal(patches_TPD.numpy(), FeatureStore.open(built).patches[3, 1])
