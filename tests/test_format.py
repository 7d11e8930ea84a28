"""A store of each format against docs/format.md: as other programs read it, and as a reader made
from that text alone does."""

import hashlib
import json
import re
import struct
from pathlib import Path

import google_crc32c
import h5py
import numpy as np
import pytest
import tensorstore as ts
import xarray as xr
import zarr
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from read_by_the_text import TextReader
from stored import KINDS, sealed_images, write_kind
from test_store import flip_bit

from featurestore import FeatureStore, StoreSpec
from featurestore.errors import StoreDamaged

FORMAT_TEXT = (Path(__file__).parent.parent / "docs/format.md").read_text()


def attributes_and_reader(path):
    """Root attributes and a function from array name to all its values, by h5py or zarr-python."""
    if path.suffix == ".h5":
        file = h5py.File(path, "r")
        return dict(file.attrs), lambda name: file[name][...]
    root = zarr.open_group(path, mode="r")
    return dict(root.attrs), lambda name: root[name][...]


def h5py_reads(path, name, n):
    with h5py.File(path, "r") as file:
        return file[name][:n]


def zarr_python_reads(path, name, n):
    return zarr.open_group(path, mode="r")[name][:n]


def tensorstore_reads(path, name, n):
    return (
        ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/{name}/"}})
        .result()[:n]
        .read()
        .result()
    )


def xarray_reads(path, name, n):
    *group, name = name.split("/")
    with xarray_open(path, group=group[0] if group else None) as data:
        return data[name][:n].values


def xarray_open(path, **options):
    """HDF5 as netCDF-4 through h5netcdf, Zarr through zarr-python."""
    engine = (
        {"engine": "h5netcdf"}
        if path.suffix == ".h5"
        else {"engine": "zarr", "consolidated": False}
    )
    return xr.open_dataset(path, mask_and_scale=False, **engine, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("store_path", "client_reads"),
    [
        ("h5", h5py_reads),
        ("zarr", zarr_python_reads),
        ("zarr", tensorstore_reads),
        ("h5", xarray_reads),
        ("zarr", xarray_reads),
    ],
    ids=["h5py", "zarr-python", "tensorstore", "xarray-netcdf4", "xarray-zarr"],
    indirect=["store_path"],
)
def test_every_client_reads_every_array_byte_for_byte(store_path, client_reads, kind):
    held = write_kind(store_path, kind)
    # rows that were never written are refused, see below
    if "patches" in held and store_path.suffix == ".zarr":
        held["patches"] = held["patches"][sealed_images(held)]
    differing = [
        name
        for name, array in held.items()
        if client_reads(store_path, name, len(array)).tobytes() != array.tobytes()
    ]
    assert differing == []


def test_the_spec_is_the_text_that_was_written(store_path):
    spec = write_tiny(store_path)
    text = attributes_and_reader(store_path)[0]["spec"]
    assert (text.decode() if isinstance(text, bytes) else text) == spec.to_json()


@pytest.mark.parametrize("what", ["flipped", "unwritten"])
def test_zarr_clients_refuse_a_bad_row_by_themselves(tmp_path, what):
    path = tmp_path / "features.zarr"
    write_tiny(path, seal=5 if what == "flipped" else 0)
    shard = path / "patches/c/0/0/0/0/0"
    if what == "flipped":
        data = bytearray(shard.read_bytes())
        data[7] ^= 1
        shard.write_bytes(data)
    with pytest.raises(ValueError, match="(?i)crc32c|checksum"):
        zarr.open_array(path / "patches", mode="r")[0, 0]
    with pytest.raises(ValueError, match="(?i)crc|digest"):
        tensorstore_reads(path, "patches", 1)


def test_rows_lie_where_the_text_says(store_path):
    spec = write_tiny(store_path, n=12)
    row_bytes = 2 * 6 * 7 * 2
    if store_path.suffix == ".h5":
        with h5py.File(store_path) as file:
            first = file["patches"].id.get_chunk_info_by_coord((0,) * 5).byte_offset
        path, offset = store_path, first + (4 * 3 + 1) * row_bytes
        assert first % 4096 == 0
    else:  # two images of three rows a shard, each row rounded up to 4096 with its checksum
        path, offset = store_path / "patches/c/2/0/0/0/0", 1 * 4096
    assert (
        path.read_bytes()[offset : offset + row_bytes]
        == tiny_rows(spec, 4).patches_VTPD[1].tobytes()
    )


def test_seal_crc_row_and_fingerprint_follow_the_text(store_path):
    spec = write_tiny(store_path)
    attributes, read = attributes_and_reader(store_path)
    fields = json.loads(attributes["spec"])
    canonical = json.dumps(
        fields["tokens"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert (
        fields["fingerprint"] == hashlib.sha256(canonical.encode()).hexdigest() == spec.fingerprint
    )
    image, view = 3, 2
    row = b"".join(
        read(name)[image, view].tobytes() for name in ("cls", "patches", "pooled", "stats")
    )
    assert read("crc32c")[image, view] == google_crc32c.value(row)
    nodes = [
        "catalog/"
        + re.sub(
            r"[^A-Za-z0-9_-]", lambda m: "".join(f"~{b:02x}" for b in m[0].encode()), c["name"]
        )
        for c in fields["columns"]
    ]
    cells = b"".join(read(node)[image].tobytes() for node in nodes)
    sealed = (
        fields["fingerprint"].encode()
        + struct.pack("<Q", image)
        + cells
        + read("thumbs")[image].tobytes()
        + read("crc32c")[image].tobytes()
    )
    assert read("seal")[image] == (google_crc32c.value(sealed) or 1)


def test_every_array_and_stat_of_the_code_is_in_the_text():
    spec = tiny_spec(tiny_frame())
    from featurestore.format.spec import OWN_COLUMNS, POOLED, STATS

    names = [a.name for a in spec.arrays(3) if "/" not in a.name]
    for word in [
        *names,
        *OWN_COLUMNS,
        *POOLED,
        *STATS,
        *type(spec).model_fields,
        *type(spec.tokens).model_fields,
        *type(spec.tokens.views[0]).model_fields,
    ]:
        assert f"`{word}`" in FORMAT_TEXT, word


def test_dimensions_are_named(store_path):
    write_tiny(store_path)
    expected = ["image", "view", "tile", "patch", "channel"]
    if store_path.suffix == ".h5":
        with h5py.File(store_path) as file:
            assert [dim.label for dim in file["patches"].dims] == expected
    else:
        assert (
            list(zarr.open_array(store_path / "patches", mode="r").metadata.dimension_names)
            == expected
        )


def test_column_names_are_escaped_and_come_back(store_path):
    from featurestore import open_writer

    frame = tiny_frame().assign(**{"N/ha (kg) é": np.arange(5.0)})
    with open_writer(store_path, tiny_spec(frame), frame):
        pass
    assert FeatureStore.open(store_path).catalog["N/ha (kg) é"].tolist() == [0, 1, 2, 3, 4]
    assert attributes_and_reader(store_path)[1]("catalog/N~2fha~20~28kg~29~20~c3~a9").tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_a_store_of_65_gb_is_laid_out_without_writing_it(store_path):
    """Full size: 357 images x 20 views x 3600 patches x 1280."""
    from featurestore.format.choose import create_store

    frame = tiny_frame()
    views = tuple({"name": f"view{i}"} for i in range(20))
    spec = tiny_spec(frame, n_tiles=1, tile_height=960, tile_width=960, width=1280, views=views)
    create_store(store_path, spec, 357)
    used = sum(
        f.stat().st_blocks * 512 for f in [store_path, *store_path.rglob("*")] if f.is_file()
    )
    store = FeatureStore.open(store_path)
    assert store.layout.extents["patches"].array.n_bytes == 65_802_240_000
    assert used < 10e6


def test_xarray_names_the_dimensions(store_path):
    write_tiny(store_path)
    with xarray_open(store_path) as root, xarray_open(store_path, group="catalog") as catalog:
        assert root["patches"].dims == ("image", "view", "tile", "patch", "channel")
        assert root["cls"].dims == ("image", "view", "tile", "channel")
        assert dict(root.sizes) | {
            "image": 5,
            "view": 3,
            "tile": 2,
            "patch": 6,
            "channel": 7,
        } == dict(root.sizes)
        assert catalog["State"].dims == ("image", "State~byte")


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_made_from_the_text_alone_believes_and_reads_what_ours_does(store_path, kind):
    held = write_kind(store_path, kind)
    theirs, ours = TextReader(store_path), FeatureStore.open(store_path)
    assert theirs.sealed() == ours.sealed.tolist() == sealed_images(held)
    assert [
        name
        for name in held
        if name != "patches" and theirs.cells(name).tobytes() != held[name].tobytes()
    ] == []
    assert theirs.arrays.keys() == held.keys() | {"metadata_crc32c"}
    assert theirs.metadata_crc() == theirs.cells("metadata_crc32c")[0]
    for image, view in np.ndindex(len(theirs.sealed()), 3):
        assert theirs.is_as_committed(image, view)
        if kind != "pooled":
            row = theirs.patches(image, view)
            assert (
                row.tobytes()
                == ours.patches[image, view].tobytes()
                == held["patches"][image, view].tobytes()
            )


@pytest.mark.parametrize(
    "name",
    ["catalog/image_id", "catalog/State", "catalog/N~2fha~20~c3~a9", "thumbs", "crc32c", "seal"],
)
def test_ours_and_the_text_disown_an_image_by_the_same_flipped_bit(store_path, name):
    write_kind(store_path, "growing")
    path, offset, _ = FeatureStore.open(store_path).layout.extents[name].locate(1)
    flip_bit(path, offset)
    assert (
        TextReader(store_path).sealed() == FeatureStore.open(store_path).sealed.tolist() == [0, 2]
    )


def test_ours_and_the_text_end_the_catalog_where_an_id_is_empty(store_path):
    write_kind(store_path, "growing")
    path, offset, n_bytes = (
        FeatureStore.open(store_path).layout.extents["catalog/image_id"].locate(1)
    )
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(n_bytes))
    assert TextReader(store_path).sealed() == FeatureStore.open(store_path).sealed.tolist() == [0]


@pytest.mark.parametrize(
    "change, told",
    [
        (
            lambda fields: fields["tokens"].update(mean=[float("inf"), 0.5, 0.5]),
            "Out of range|finite",
        ),
        (
            lambda fields: fields["columns"].append(fields["columns"][-1]),
            "two columns have one name",
        ),
    ],
    ids=["not finite", "a column twice"],
)
def test_a_spec_that_cannot_be_is_damage(change, told):
    fields = json.loads(tiny_spec(tiny_frame(2)).to_json())
    change(fields)
    with pytest.raises(StoreDamaged, match=f"features.h5: its spec cannot be read: .*({told})"):
        StoreSpec.from_json(json.dumps(fields), "features.h5")
