"""A store of each format against docs/format.md, as other programs read it: none of our reading code is used here."""

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
import zarr
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny

FORMAT_TEXT = (Path(__file__).parent.parent / "docs/format.md").read_text()
ARRAYS = ["cls", "patches", "pooled", "stats", "thumbs", "crc32c", "seal", "catalog/image_id", "catalog/Dry_Total_g"]


def attributes_and_reader(path):
    """Root attributes and a function from array name to all its values, by h5py or zarr-python."""
    if path.suffix == ".h5":
        file = h5py.File(path, "r")
        return dict(file.attrs), lambda name: file[name][...]
    root = zarr.open_group(path, mode="r")
    return dict(root.attrs), lambda name: root[name][...]


def test_h5py_and_zarr_read_every_array_bit_for_bit(store_path):
    spec = write_tiny(store_path)
    attributes, read = attributes_and_reader(store_path)
    text = attributes["spec"]
    assert (text.decode() if isinstance(text, bytes) else text) == spec.to_json()
    rows = [tiny_rows(spec, i) for i in range(5)]
    assert np.array_equal(read("patches"), np.stack([r.patches_VTPD for r in rows]))
    assert np.array_equal(read("cls"), np.stack([r.cls_VTD for r in rows]))
    assert np.array_equal(read("pooled"), np.stack([r.pooled_VT5D for r in rows]))
    assert np.array_equal(read("stats"), np.stack([r.stats_VS for r in rows]))
    assert np.array_equal(read("thumbs"), np.stack([r.thumb_HW3 for r in rows]))
    assert bytes(read("catalog/path")[3]).rstrip(b"\0").decode() == tiny_frame()["path"][3]
    assert read("catalog/Dry_Total_g").tolist() == tiny_frame()["Dry_Total_g"].tolist()


@pytest.mark.parametrize("name", ARRAYS)
def test_tensorstore_reads_the_same_values_as_zarr(tmp_path, name):
    write_tiny(tmp_path / "features.zarr")
    theirs = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/features.zarr/{name}/"}}).result()
    assert np.array_equal(theirs.read().result(), zarr.open_array(tmp_path / "features.zarr" / name, mode="r")[...])


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
    theirs = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/patches/"}}).result()
    with pytest.raises(ValueError, match="(?i)crc|digest"):
        theirs[0, 0].read().result()


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
    assert path.read_bytes()[offset:offset + row_bytes] == tiny_rows(spec, 4).patches_VTPD[1].tobytes()


def test_seal_crc_row_and_fingerprint_follow_the_text(store_path):
    spec = write_tiny(store_path)
    attributes, read = attributes_and_reader(store_path)
    fields = json.loads(attributes["spec"])
    canonical = json.dumps(fields["tokens"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert fields["fingerprint"] == hashlib.sha256(canonical.encode()).hexdigest() == spec.fingerprint
    image, view = 3, 2
    row = b"".join(read(name)[image, view].tobytes() for name in ("cls", "patches", "pooled", "stats"))
    assert read("crc32c")[image, view] == google_crc32c.value(row)
    nodes = ["catalog/" + re.sub(r"[^A-Za-z0-9_-]", lambda m: "".join(f"~{b:02x}" for b in m[0].encode()), c["name"])
             for c in fields["columns"]]
    cells = b"".join(read(node)[image].tobytes() for node in nodes)
    sealed = (fields["fingerprint"].encode() + struct.pack("<Q", image) + cells + read("thumbs")[image].tobytes()
              + read("crc32c")[image].tobytes())
    assert read("seal")[image] == (google_crc32c.value(sealed) or 1)


def test_every_array_and_stat_of_the_code_is_in_the_text():
    spec = tiny_spec(tiny_frame())
    from featurestore.spec import OWN_COLUMNS, POOLED, STATS

    names = [a.name for a in spec.arrays(3) if "/" not in a.name]
    for word in [*names, *OWN_COLUMNS, *POOLED, *STATS, *type(spec).model_fields, *type(spec.tokens).model_fields,
                 *type(spec.tokens.views[0]).model_fields]:
        assert f"`{word}`" in FORMAT_TEXT, word


def test_dimensions_are_named(store_path):
    write_tiny(store_path)
    expected = ["image", "view", "tile", "patch", "channel"]
    if store_path.suffix == ".h5":
        with h5py.File(store_path) as file:
            assert [dim.label for dim in file["patches"].dims] == expected
    else:
        assert list(zarr.open_array(store_path / "patches", mode="r").metadata.dimension_names) == expected


def test_column_names_are_escaped_and_come_back(store_path):
    from featurestore import FeatureStore, open_writer

    frame = tiny_frame().assign(**{"N/ha (kg) é": np.arange(5.0)})
    with open_writer(store_path, tiny_spec(frame), frame):
        pass
    assert FeatureStore.open(store_path).catalog["N/ha (kg) é"].tolist() == [0, 1, 2, 3, 4]
    assert attributes_and_reader(store_path)[1]("catalog/N~2fha~20~28kg~29~20~c3~a9").tolist() == [0, 1, 2, 3, 4]


def test_a_store_of_65_gb_is_laid_out_without_writing_it(store_path):
    """Full size: 357 images x 20 views x 3600 patches x 1280."""
    from featurestore import FeatureStore
    from featurestore.formats import create_store

    frame = tiny_frame()
    views = tuple({"name": f"view{i}"} for i in range(20))
    spec = tiny_spec(frame, n_tiles=1, tile_height=960, tile_width=960, width=1280, views=views)
    create_store(store_path, spec, 357)
    used = sum(f.stat().st_blocks * 512 for f in [store_path, *store_path.rglob("*")] if f.is_file())
    store = FeatureStore.open(store_path)
    assert store.layout.extents["patches"].array.n_bytes == 65_802_240_000
    assert used < 10e6


def test_xarray_names_the_dimensions_and_reads_the_same_bytes(store_path):
    """HDF5 as netCDF-4 through h5netcdf, Zarr through zarr-python; none of our code reads here."""
    import xarray as xr

    spec = write_tiny(store_path)
    options = {"engine": "h5netcdf"} if store_path.suffix == ".h5" else {"engine": "zarr", "consolidated": False}
    with xr.open_dataset(store_path, mask_and_scale=False, **options) as root, \
            xr.open_dataset(store_path, group="catalog", mask_and_scale=False, **options) as catalog:
        assert root["patches"].dims == ("image", "view", "tile", "patch", "channel")
        assert root["cls"].dims == ("image", "view", "tile", "channel")
        assert dict(root.sizes) | {"image": 5, "view": 3, "tile": 2, "patch": 6, "channel": 7} == dict(root.sizes)
        whole = np.stack([tiny_rows(spec, i).patches_VTPD for i in range(5)])
        assert root["patches"].isel(image=3, view=1).values.tobytes() == whole[3, 1].tobytes()
        assert root["patches"].values.tobytes() == whole.tobytes()
        assert catalog["State"].dims == ("image", "State~byte")
        assert catalog["Dry_Total_g"].values.tolist() == tiny_frame()["Dry_Total_g"].tolist()
