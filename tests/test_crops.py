"""Crops besides halves, squash and whole, and photographs whose aspect does not fit: by hand, and
mixed phone photographs through build and predict."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from commands import TINY, biomass
from conftest import tiny_frame, tiny_spec
from imported import MODEL, demo_backbone, write_tokens
from PIL import Image
from read_by_the_text import TextReader
from test_writer import digest

from featurestore import FeatureStore
from featurestore.errors import InputError
from featurestore.photos.crop import Crop, plan_crop
from featurestore.photos.kinds import can_read_heic
from featurestore.photos.picture import Picture


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def test_a_grid_is_its_squares_row_by_row():
    picture = noise(10, 15)
    tiles = Crop("grid:2x3", 5, 5, "bicubic")(picture)
    expected = [picture[y : y + 5, x : x + 5] for y in (0, 5) for x in (0, 5, 10)]
    assert np.array_equal(tiles, expected)


def test_center_is_the_largest_square_of_portrait_and_landscape():
    crop = Crop("center", 6, 6, "bicubic")
    assert np.array_equal(crop(noise(6, 11))[0], noise(6, 11)[:, 2:8])
    assert np.array_equal(crop(noise(11, 6))[0], noise(11, 6)[2:8])


def test_a_fit_crops_the_middle_or_squashes():
    portrait = noise(40, 30)
    for kind, part in (("halves", portrait[12:27]), ("grid:3x1", portrait[:, 8:21])):
        cropped = Crop(kind, 6, 6, "bicubic", fit="crop")(portrait)
        assert np.array_equal(cropped, Crop(kind, 6, 6, "bicubic", fit="squash")(part))
    squashed = Crop("halves", 6, 6, "bicubic", fit="squash")(portrait)
    whole = Crop("squash", 6, 6, "bicubic")
    assert np.array_equal(squashed[0], whole(portrait[:, :15])[0])


def test_an_aspect_that_fits_is_never_cropped():
    picture = noise(100, 192)  # 4 % off
    plain = Crop("halves", 6, 6, "bicubic")(picture)
    assert np.array_equal(Crop("halves", 6, 6, "bicubic", fit="crop")(picture), plain)


def test_whole_with_a_fit_takes_the_first_aspect_for_all():
    crop = plan_crop("whole", 28, 14, "bicubic", aspect=2.0, fit="crop")
    assert crop(noise(60, 120)).shape == crop(noise(120, 60)).shape == (1, 28, 56, 3)


@pytest.mark.parametrize(
    "kind, fit, reason",
    [
        ("grid:0x2", None, "crop 'grid:0x2' is unknown; use squash, halves, grid:RxC, center"),
        ("middle", None, "unknown"),
        ("center", "crop", "takes photographs of any aspect; leave --fit out"),
    ],
)
def test_a_crop_that_cannot_be_is_refused(kind, fit, reason):
    with pytest.raises(InputError, match=reason):
        plan_crop(kind, 28, 14, "bicubic", 1.0, fit)


def test_a_photograph_with_fewer_pixels_than_tiles_is_refused():
    with pytest.raises(InputError, match="1 x 1 pixels is too small for crop 'halves'"):
        Crop("halves", 6, 6, "bicubic", fit="squash")(noise(1, 1))


def test_the_ways_out_are_named():
    with pytest.raises(
        InputError, match="use squash, center or whole, or build with --fit squash, crop or pad"
    ):
        Crop("halves", 6, 6, "bicubic").check(40, 30)


def test_one_by_two_is_halves_in_the_spec():
    assert plan_crop("grid:1x2", 28, 14, "bicubic", 2.0) == plan_crop(
        "halves", 28, 14, "bicubic", 2.0
    )
    tokens = tiny_spec(tiny_frame()).tokens
    with pytest.raises(ValueError, match="called 'halves' in a spec"):
        tokens.changed(crop="grid:1x2", n_tiles=2)
    with pytest.raises(ValueError, match="has no 2 tiles"):
        tokens.changed(crop="grid:2x2", n_tiles=2)


def test_the_format_version_rises_where_a_store_needs_it_and_nowhere_else():
    spec = tiny_spec(tiny_frame())
    for crop, n_tiles, fit, version in (
        ("halves", 2, None, 1),
        ("squash", 1, None, 1),
        ("whole", 1, None, 1),
        ("halves", 2, "crop", 2),
        ("center", 1, None, 2),
        ("grid:2x3", 6, None, 2),
    ):
        tokens = spec.tokens.changed(crop=crop, n_tiles=n_tiles, fit=fit)
        assert spec.changed(tokens=tokens).format_version == version
        assert ("fit" in tokens.model_dump()) == (fit is not None)


# -- mixed phone photographs, end to end


@pytest.fixture(scope="module")
def phone(pasture, tmp_path_factory):
    """A pasture whose photographs are 2016 x 1512 and 504 x 378, lie on their side, and are of four
    formats."""
    data = shutil.copytree(pasture, tmp_path_factory.mktemp("phone") / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = ["JPEG", "HEIF" if can_read_heic() else "WEBP", "WEBP", "PNG"]
    if can_read_heic():
        from pillow_heif import register_heif_opener

        register_heif_opener()
    for part in ("train", "test"):
        for i, path in enumerate(sorted((data / part).iterdir())):
            image = Image.open(path).resize((504, 378) if i else (2016, 1512))
            options = {"exif": exif.tobytes()} if i % 2 == 0 or kinds[i % 4] == "HEIF" else {}
            image.save(path, kinds[i % 4], **options)
    return data


SWEEP = """\
experiment: {{name: phone, seed: 3}}
dataset: {{store: {store}}}
head: {{kind: density}}
trainer: {{num_epochs: 1, batch_size: 3}}
optimization: {{lr: 1e-2, weight_decay: 0.01}}
inference: {{tta_indices: [0]}}
cv: {{n_folds: 2, groups: date}}
"""


def build(data, out, *more, code: int = 0):
    where = "--data", data, "--out", out, "--views", "plain,hflip"
    return biomass("store", "build", *where, *TINY, *more, code=code)


@pytest.mark.parametrize("form", ["h5", "zarr"])
def test_phone_photographs_are_built_and_read_by_the_text(phone, tmp_path, form):
    out = tmp_path / f"f.{form}"
    said = build(phone, out, "--crop", "grid:3x4", code=3).stderr
    assert "has aspect 0.750" in said and "or build with --fit squash, crop or pad" in said
    build(phone, out, "--crop", "grid:3x4", "--fit", "crop")
    store, text = FeatureStore.open(out), TextReader(out)
    assert store.spec.format_version == 2 and store.spec.tokens.n_tiles == 12
    assert text.sealed() == list(store.sealed) and len(text.sealed()) == 6
    assert text.is_as_committed(0, 1)
    sizes = set(zip(store.catalog["width"], store.catalog["height"], strict=True))
    assert (1512, 2016) in sizes and (504, 378) in sizes
    rows, columns = store.spec.tokens.grid
    assert store.pca(0).shape == (3 * rows, 4 * columns, 3)
    assert store.array("thumbs").shape[1:3] == (144, 192)
    assert "grid:3x4, fit crop" in repr(store)


def test_a_store_of_version_2_is_copied_extended_and_compared(phone, tmp_path):
    first = tmp_path / "f.h5"
    build(phone, first, "--crop", "center")
    biomass("store", "convert", first, tmp_path / "f.zarr")
    biomass("store", "diff", first, tmp_path / "f.zarr")
    biomass("store", "convert", first, tmp_path / "a.zarr", "--codec", "zstd")
    root = json.loads((tmp_path / "a.zarr/zarr.json").read_text())
    assert root["attributes"]["format_version"] == 2
    biomass("store", "convert", tmp_path / "a.zarr", tmp_path / "g.h5")
    biomass("store", "diff", first, tmp_path / "g.h5")
    biomass(
        "store",
        "extend",
        first,
        tmp_path / "more.h5",
        "--views",
        "plain,hflip,vflip",
        "--data",
        phone,
    )
    assert FeatureStore.open(tmp_path / "more.h5").spec.format_version == 2
    biomass("store", "verify", tmp_path / "more.h5", "--data", phone)


@pytest.mark.parametrize("fit", ["crop", pytest.param("squash", marks=pytest.mark.system), "pad"])
def test_parts_of_version_2_merge_to_the_store_of_all(phone, tmp_path, fit):
    """In Zarr, and as an archive, and back in HDF5: the same file as a build of all."""
    options = "--crop", "grid:1x3" if fit != "pad" else "grid:2x2", "--fit", fit
    build(phone, tmp_path / "whole.h5", *options)
    table = pd.read_csv(phone / "train.csv")
    paths = table["image_path"].unique()
    parts = [tmp_path / "a.h5", tmp_path / "b.zarr"]
    for part, some in zip(parts, (paths[:2], paths[2:]), strict=True):
        csv = tmp_path / f"{part.stem}.csv"
        table[table["image_path"].isin(some)].to_csv(csv, index=False)
        build(phone, part, *options, "--csv", csv)
    biomass("store", "merge", *parts, "--out", tmp_path / "merged.zarr")
    biomass("store", "diff", tmp_path / "whole.h5", tmp_path / "merged.zarr")
    assert TextReader(tmp_path / "merged.zarr").is_as_committed(5, 1)
    biomass("store", "verify", tmp_path / "merged.zarr", "--data", phone)
    codec = "--codec", "zstd"
    biomass("store", "convert", tmp_path / "merged.zarr", tmp_path / "archive.zarr", *codec)
    biomass("store", "convert", tmp_path / "archive.zarr", tmp_path / "back.h5")
    assert digest(tmp_path / "back.h5") == digest(tmp_path / "whole.h5")


def test_parts_cut_otherwise_are_not_merged(phone, tmp_path):
    first, other, center = (tmp_path / f"{name}.h5" for name in ("a", "b", "c"))
    build(phone, first, "--crop", "halves", "--fit", "crop")
    build(phone, other, "--crop", "halves", "--fit", "squash")
    build(phone, center, "--crop", "center")
    merge = "store", "merge", "--out", tmp_path / "m.h5", first
    assert "fit: store 'squash', asked 'crop'" in biomass(*merge, other, code=5).stderr
    refused = biomass(*merge, center, code=5).stderr
    assert "crop: store 'center', asked 'halves'" in refused
    assert "fit: store None, asked 'crop'" in refused
    assert not (tmp_path / "m.h5").exists()


def test_tokens_of_the_middle_are_imported_and_predict_accepts_them(phone, tmp_path):
    backbone, weights = demo_backbone(64, tmp_path, crop="center")
    write_tokens(tmp_path / "npz", sorted((phone / "train").iterdir()), backbone)
    out = tmp_path / "f.zarr"
    made = "--backbone", MODEL, "--weights", weights, "--crop", "center"
    biomass("store", "import", tmp_path / "npz", "--out", out, "--data", phone, *made)
    store, text = FeatureStore.open(out), TextReader(out)
    assert store.spec.tokens == backbone.spec and store.spec.format_version == 2
    assert text.sealed() == list(range(6)) and text.is_as_committed(5, 1)
    assert store.thumbs.shape[1:3] == (192, 192)
    biomass("store", "convert", out, tmp_path / "f.h5")
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(store=tmp_path / "f.h5"))
    biomass("train", "--config", tmp_path / "sweep.yaml", "--out", tmp_path / "runs")
    (sweep,) = (tmp_path / "runs").iterdir()
    predict = "predict", "--data", phone, "--sweep", sweep, "--device", "cpu", "--oof"
    biomass(*predict, "--out", tmp_path / "oof.csv")


def test_predict_cuts_as_build_did(phone, tmp_path):
    """`predict --oof` makes the tokens of the training photographs again, and agrees."""
    store = tmp_path / "f.h5"
    build(phone, store, "--crop", "grid:1x3", "--fit", "crop")
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(store=store))
    where = "--out", tmp_path / "runs", "--device", "cpu"
    biomass("train", "--config", tmp_path / "sweep.yaml", *where)
    (sweep,) = (tmp_path / "runs").iterdir()
    test = "predict", "--data", phone, "--sweep", sweep, "--device", "cpu"
    biomass(*test, "--out", tmp_path / "s.csv", "--explain", tmp_path / "pictures")
    assert np.isfinite(pd.read_csv(tmp_path / "s.csv")["target"]).all()
    biomass(*test, "--oof", "--out", tmp_path / "oof.csv")


def test_thumbnails_show_what_the_tiles_show():
    picture = Picture(Image.fromarray(noise(40, 30)))
    crop = Crop("center", 6, 6, "bicubic")
    found = crop.thumbnail(picture, 10, 10).astype(int)
    expected = Picture(crop.framed(picture)).thumbnail(10, 10)
    assert crop.framed(picture).size == (30, 30)
    assert np.abs(found - expected).mean() < 5  # its filter looks past the cut
