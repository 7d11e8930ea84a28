"""Stores made of others' rows: what is converted or merged is what a build would have made."""

import numpy as np
import pytest
from commands import TINY, biomass
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from test_store import flip_bit
from test_writer import digest

from featurestore import FeatureStore, open_writer

pytestmark = pytest.mark.filterwarnings(
    "default:.*left out", "default:.*agree only within rounding"
)


def write_part(path, images, **changes):
    """A store of some of the tiny images, as another machine would build it."""
    frame = tiny_frame(6).iloc[list(images)].reset_index(drop=True)
    spec = tiny_spec(tiny_frame(6), **changes)
    with open_writer(path, spec, frame) as writer:
        for place, image in enumerate(images):
            writer.put(place, tiny_rows(spec, image))
    return spec


def convert(*arguments, code=0):
    return biomass("store", "convert", *arguments, code=code)


def test_there_and_back_is_the_same_bytes(store_path, tmp_path):
    write_tiny(store_path)
    other = tmp_path / ("other.zarr" if store_path.suffix == ".h5" else "other.h5")
    back = tmp_path / f"back{store_path.suffix}"
    assert "5 of them copied" in convert(store_path, other).stdout
    convert(other, back)
    assert digest(back) == digest(store_path)
    assert "0 of them copied" in convert(other, back).stdout  # it was there already
    assert biomass("store", "diff", store_path, other).stdout.strip() == "no difference"


def test_unsealed_images_stay_behind_and_room_is_as_asked(store_path, tmp_path):
    write_tiny(store_path, seal=3, reserve=2)
    convert(store_path, tmp_path / "out.h5", "--reserve", 4)
    out = FeatureStore.open(tmp_path / "out.h5")
    assert (out.n_images, out.n_sealed, out.layout.n) == (3, 3, 7)
    assert np.array_equal(out.patches[2, 1], FeatureStore.open(store_path).patches[2, 1])


def test_some_images_and_views_are_those_rows(store_path, tmp_path):
    spec = write_tiny(store_path)
    (tmp_path / "ids.txt").write_text("ID003\nID001\n")
    convert(
        store_path,
        tmp_path / "out.zarr",
        "--images",
        tmp_path / "ids.txt",
        "--views",
        "vflip,plain",
    )
    out = FeatureStore.open(tmp_path / "out.zarr")
    assert out.catalog["image_id"].tolist() == ["ID001", "ID003"] and out.view_names == (
        "vflip",
        "plain",
    )
    assert np.array_equal(out["ID003"].patches("vflip"), tiny_rows(spec, 3).patches_VTPD[2])
    assert np.array_equal(out["ID003"].pooled("plain"), tiny_rows(spec, 3).pooled_VT5D[0])
    assert out.catalog["Dry_Total_g"].tolist() == [2.5, 5.5] and out.verify()
    convert(store_path, tmp_path / "two.h5", "--views", 2)
    assert FeatureStore.open(tmp_path / "two.h5").view_names == ("plain", "hflip")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--images", "ID009"], "no such images"),
        (["--views", "flip"], "views flip: the store has plain, hflip, vflip"),
        (["--layers", "-2"], "layers -2: the store has -1"),
        (["--layers", "x"], "give numbers with commas"),
        (["--views", "plain,plain"], "each view once"),
        (["--codec", "zstd", "--reserve", 1], "an archive keeps all"),
    ],
)
def test_what_the_source_lacks_is_named(tmp_path, arguments, message):
    write_tiny(tmp_path / "f.h5")
    code = 2 if "give numbers" in message or "archive" in message else 3
    assert (
        message in convert(tmp_path / "f.h5", tmp_path / "out.zarr", *arguments, code=code).stderr
    )
    assert not (tmp_path / "out.zarr").exists()


def test_a_copy_onto_itself_is_refused(store_path):
    write_tiny(store_path)
    before = digest(store_path)
    assert "is the source" in convert(store_path, store_path, code=2).stderr
    assert digest(store_path) == before


def test_rot_is_never_blessed(store_path, tmp_path):
    write_tiny(store_path)
    path, offset, _ = FeatureStore.open(store_path).layout.extents["patches"].locate(2 * 3 + 1)
    flip_bit(path, offset + 5)
    stderr = convert(store_path, tmp_path / "out.h5", code=4).stderr
    assert (
        "image 2 (ID002), view 'hflip': its bytes changed" in stderr and "--skip-damaged" in stderr
    )
    result = convert(store_path, tmp_path / "out.h5", "--skip-damaged")
    assert "ID002" in result.stderr and FeatureStore.open(tmp_path / "out.h5").n_sealed == 4
    assert FeatureStore.open(tmp_path / "out.h5").catalog["status"][2] == "damaged"


@pytest.fixture(scope="module")
def layered(pasture, tmp_path_factory):
    """A store of two layers, and those a build makes of one of them and of pooled vectors alone."""
    folder = tmp_path_factory.mktemp("layers")
    for name, arguments in (
        ("both", ["--layers", "-4,-1"]),
        ("last", ["--layers", "-1"]),
        ("half", ["--layers", "-4,-1", "--pooled-dtype", "float16"]),
        ("half last", ["--layers", "-1", "--pooled-dtype", "float16"]),
        ("pooled", ["--layers", "-4,-1", "--tokens", "pooled"]),
    ):
        biomass(
            "store",
            "build",
            "--data",
            pasture,
            "--out",
            folder / f"{name}.h5",
            "--views",
            "plain,hsv",
            *TINY,
            *arguments,
        )
    return folder


@pytest.mark.parametrize(
    "source, name, arguments",
    [
        ("both", "last", ["--layers", "-1"]),
        ("half", "half last", ["--layers", "-1"]),
        ("both", "pooled", ["--tokens", "pooled"]),
    ],
)
def test_layers_and_pooled_vectors_alone_are_what_a_build_makes(
    layered, tmp_path, source, name, arguments
):
    convert(layered / f"{source}.h5", tmp_path / "out.h5", *arguments)
    assert digest(tmp_path / "out.h5") == digest(layered / f"{name}.h5")


def test_layers_of_a_pooled_store_cannot_be_told_apart(layered, tmp_path):
    assert (
        "layers of a pooled store"
        in convert(layered / "pooled.h5", tmp_path / "out.h5", "--layers", -1, code=3).stderr
    )


def test_a_killed_copy_goes_on(tmp_path):
    from featurestore.manage import transfer

    write_tiny(tmp_path / "f.h5")
    copied = []

    def interrupt_after_two(n_bytes):
        copied.append(n_bytes)
        if len(copied) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer.convert(tmp_path / "f.h5", tmp_path / "out.zarr", progress=interrupt_after_two)
    assert FeatureStore.open(tmp_path / "out.zarr").n_sealed == 2
    assert transfer.convert(tmp_path / "f.h5", tmp_path / "out.zarr").n_copied == 3


def test_parts_merge_to_the_store_built_in_one_go(tmp_path):
    write_part(tmp_path / "a.h5", [0, 1, 2])
    write_part(tmp_path / "b.zarr", [2, 3, 4, 5])  # one image is in both
    write_part(tmp_path / "whole.h5", range(6))
    biomass(
        "store", "merge", tmp_path / "a.h5", tmp_path / "b.zarr", "--out", tmp_path / "merged.h5"
    )
    assert digest(tmp_path / "merged.h5") == digest(tmp_path / "whole.h5")


def test_parts_that_contradict_each_other_are_refused(tmp_path):
    write_part(tmp_path / "a.h5", [0, 1])
    write_part(tmp_path / "b.h5", [1, 2], seed=1)
    merge = ["store", "merge", tmp_path / "a.h5", "--out", tmp_path / "m.h5"]
    assert "seed: store 1, asked 0" in biomass(*merge, tmp_path / "b.h5", code=5).stderr
    spec = tiny_spec(tiny_frame(6))
    frame = tiny_frame(6).iloc[[1]].reset_index(drop=True)
    with open_writer(tmp_path / "c.h5", spec, frame) as writer:
        writer.put(0, tiny_rows(spec, 4))  # other tokens under the same id
    assert "ID001: its tokens in" in biomass(*merge, tmp_path / "c.h5", code=5).stderr
    with open_writer(tmp_path / "d.h5", spec, frame.assign(Dry_Total_g=77.0)) as writer:
        writer.put(0, tiny_rows(spec, 1))
    assert "ID001: its labels in" in biomass(*merge, tmp_path / "d.h5", code=5).stderr
    assert not (tmp_path / "m.h5").exists()


def test_parts_with_other_columns_are_joined(tmp_path):
    write_part(tmp_path / "a.h5", [0, 1])
    frame = (
        tiny_frame(6)
        .iloc[[4, 5]]
        .reset_index(drop=True)
        .drop(columns="State")
        .assign(Species="a long name of a grass")
    )
    spec = tiny_spec(frame)
    with open_writer(tmp_path / "b.h5", spec, frame) as writer:
        for place in (0, 1):
            writer.put(place, tiny_rows(spec, place + 4))
    biomass("store", "merge", tmp_path / "a.h5", tmp_path / "b.h5", "--out", tmp_path / "m.h5")
    catalog = FeatureStore.open(tmp_path / "m.h5").catalog
    assert catalog["Species"].tolist() == ["", "", *["a long name of a grass"] * 2]
    assert catalog["State"].tolist() == ["Tas", "Vic", "", ""]


def test_a_place_that_holds_something_else_is_refused(tmp_path):
    write_part(tmp_path / "a.h5", [0, 1])
    write_part(tmp_path / "b.h5", [0, 1, 2])
    spec, frame = tiny_spec(tiny_frame(6)), tiny_frame(6).iloc[[0, 1]].reset_index(drop=True)
    with open_writer(tmp_path / "c.h5", spec, frame) as writer:
        for place in (0, 1):
            writer.put(place, tiny_rows(spec, place + 7))
    convert(tmp_path / "b.h5", tmp_path / "out.h5")
    before = digest(tmp_path / "out.h5")
    assert (
        "images that are not to be copied"
        in convert(tmp_path / "a.h5", tmp_path / "out.h5", code=5).stderr
    )
    convert(tmp_path / "a.h5", tmp_path / "two.h5")
    assert (
        "holds other rows of these images"
        in convert(tmp_path / "c.h5", tmp_path / "two.h5", code=5).stderr
    )
    assert digest(tmp_path / "out.h5") == before


def test_long_lists_and_odd_numbers(tmp_path):
    write_tiny(tmp_path / "f.h5")
    many = ",".join(f"ID{i:03d}" for i in range(200))
    assert (
        "no such images"
        in convert(tmp_path / "f.h5", tmp_path / "o.h5", "--images", many, code=3).stderr
    )
    assert (
        "the store has 3"
        in convert(tmp_path / "f.h5", tmp_path / "o.h5", "--views", 0, code=2).stderr
    )
    convert(tmp_path / "f.h5", tmp_path / "o.h5", "--reserve", -1, code=2)


def made_by(path, images, **made):
    frame = tiny_frame(6).iloc[list(images)].reset_index(drop=True)
    spec = tiny_spec(tiny_frame(6)).changed(made_by=made)
    with open_writer(path, spec, frame) as writer:
        for place, image in enumerate(images):
            writer.put(place, tiny_rows(spec, image))


def test_parts_of_different_making_are_warned_of_and_all_named(tmp_path):
    made_by(tmp_path / "a.h5", [0, 1], precision="bf16", torch="2.8", numpy="2.1")
    made_by(tmp_path / "b.h5", [2, 3], precision="fp32", torch="2.8", numpy="2.2")
    made_by(tmp_path / "c.h5", [4], precision="bf16", torch="2.8", numpy="2.1")
    parts = [tmp_path / f"{name}.h5" for name in "abc"]
    said = biomass("store", "merge", *parts, "--out", tmp_path / "m.h5").stderr
    assert (
        f"precision: bf16 in {parts[0]}, fp32 in {parts[1]}; tokens agree only within rounding"
        in said
    )
    assert "torch:" not in said and "numpy:" not in said
    spec = FeatureStore.open(tmp_path / "m.h5").spec
    assert spec.made_by == {"precision": "bf16 + fp32", "torch": "2.8", "numpy": "2.1 + 2.2"}
    assert spec.precision == "fp32"  # what predict computes in
    made_by(tmp_path / "d.h5", [5], precision="bf16", device="cpu")
    said = biomass(
        "store", "merge", tmp_path / "m.h5", tmp_path / "d.h5", "--out", tmp_path / "n.h5"
    ).stderr
    assert f"torch: 2.8 in {tmp_path / 'm.h5'}, unknown in {tmp_path / 'd.h5'}" in said
    assert FeatureStore.open(tmp_path / "n.h5").spec.made_by["precision"] == "bf16 + fp32"


def test_parts_of_one_making_merge_without_a_warning(tmp_path):
    for name, images in (("a", [0, 1]), ("b", [2])):
        made_by(tmp_path / f"{name}.h5", images, precision="bf16")
    assert (
        "warning"
        not in biomass(
            "store", "merge", tmp_path / "a.h5", tmp_path / "b.h5", "--out", tmp_path / "m.h5"
        ).stderr
    )
    spec = FeatureStore.open(tmp_path / "m.h5").spec
    assert spec.made_by == {"precision": "bf16"} and spec.precision == "bf16"
