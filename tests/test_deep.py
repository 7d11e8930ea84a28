"""16-bit photographs whose values have fewer bits: warned of, read by `--bits`, and alike in every
later command."""

import hashlib
import json
import shutil
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from commands import TINY, biomass
from conftest import SWEEP, tiny_frame, tiny_spec
from PIL import Image
from test_images import chunk, png

from featurestore import FeatureStore
from featurestore.errors import InputError
from featurestore.format.spec import StoreSpec
from featurestore.photos.decode import dark_remark
from featurestore.photos.images import find_brightest, read_photograph
from predictor.predictor import Predictor

pytestmark = pytest.mark.filterwarnings("default")  # what commands warn of is read from stderr

GRAY, COLOUR, GRAY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6
TWELVE = 4095


def deep_png(path, values_WC: np.ndarray, colour: int, *extra: bytes):
    """A row of 16-bit samples."""
    return png(path, len(values_WC), 1, 16, colour, values_WC.astype(">u2").tobytes(), *extra)


def as_8_bits(value: int, greatest: int) -> int:
    """The nearest of 256 levels, in exact numbers."""
    return round(Fraction(255 * int(value), greatest))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_L13_every_gray_value_is_scaled_exactly(tmp_path, bits):
    values = np.arange(1 << bits)
    pixels_WC = read_photograph(deep_png(tmp_path / "a.png", values, GRAY), bits).pixels_HW3[0]
    assert pixels_WC.T.tolist() == [[as_8_bits(value, (1 << bits) - 1) for value in values]] * 3


@pytest.mark.parametrize("colour, n_samples", [(COLOUR, 3), (COLOUR_ALPHA, 4)])
def test_L13_colours_are_read_with_all_their_bits(tmp_path, colour, n_samples):
    values_WC = np.random.default_rng(2).integers(0, TWELVE + 1, (60, n_samples))
    values_WC[:, 3:] = 65535  # alpha, which has all bits
    found = read_photograph(deep_png(tmp_path / "a.png", values_WC, colour), 12).pixels_HW3[0]
    expected = [[as_8_bits(value, TWELVE) for value in row[:3]] for row in values_WC]
    assert found.tolist() == expected
    assert find_brightest(tmp_path / "a.png") == values_WC[:, :3].max()


def test_L13_gray_with_alpha_lies_over_white(tmp_path):
    values_WC = np.array([[2048, 65535], [2048, 0], [4095, 65535]])
    found = read_photograph(deep_png(tmp_path / "a.png", values_WC, GRAY_ALPHA), 12).pixels_HW3[0]
    assert found[:, 0].tolist() == [128, 255, 255]
    assert find_brightest(tmp_path / "a.png") == 4095


@pytest.mark.parametrize("colour, key", [(GRAY, b"\1\2"), (COLOUR, b"\1\2" * 3)])
def test_L13_the_transparent_value_is_white_and_its_neighbour_is_not(tmp_path, colour, key):
    n_samples = len(key) // 2
    values_WC = np.repeat([[0x102], [0x103]], n_samples, 1)  # alike in their high bytes
    path = deep_png(tmp_path / "a.png", values_WC, colour, chunk(b"tRNS", key))
    assert read_photograph(path, 10).pixels_HW3[0].tolist() == [[255] * 3, [65] * 3]


def test_L13_a_value_of_more_bits_is_refused_not_clipped(tmp_path):
    path = deep_png(tmp_path / "a.png", np.array([7, 4096]), GRAY)
    with pytest.raises(InputError, match="a.png: 16-bit values up to 4096, more than the 4095 of"):
        read_photograph(path, 12)


def test_L13_eight_bit_pictures_do_not_depend_on_bits(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (9, 9), (1, 20, 250)).save(tmp_path / name)
        ours, theirs = (read_photograph(tmp_path / name, bits).pixels_HW3 for bits in (12, None))
        assert np.array_equal(ours, theirs)
        assert find_brightest(tmp_path / name) is None


def test_L13_a_remark_comes_only_where_all_are_dark(tmp_path):
    dark, bright, other = (tmp_path / name for name in ("dark.png", "bright.png", "other.png"))
    deep_png(dark, np.array([0, 900, 8191]), GRAY)
    deep_png(bright, np.array([0, 8192]), GRAY)
    Image.new("L", (9, 9)).save(other)
    assert "--bits 13" in dark_remark([other, dark])
    assert dark_remark([dark, bright]) is None
    assert dark_remark([other, tmp_path / "missing.png"]) is None


def test_L13_fingerprints_without_bits_are_those_of_older_stores():
    spec = tiny_spec(tiny_frame())
    assert spec.fingerprint == "7743362f455afdadbf30a37004ea051cf51430698aefdfea61979d14726803c2"
    assert "bits" not in spec.to_json()


def test_L13_bits_are_a_part_of_the_fingerprint_and_come_back():
    spec = tiny_spec(tiny_frame(), bits=12)
    told = json.loads(spec.to_json())
    text = spec.to_json().rpartition(',"tokens":')[2][:-1]
    assert told["tokens"]["bits"] == 12
    assert spec.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    assert StoreSpec.from_json(spec.to_json(), "here") == spec


# -- in the commands


@pytest.fixture(scope="module")
def data(pasture, tmp_path_factory):
    """A pasture whose photographs are 16-bit gray PNGs with values of 12 bits; their names are as
    before."""
    folder = shutil.copytree(pasture, tmp_path_factory.mktemp("deep") / "data")
    for part in ("train", "test"):
        for path in (folder / part).iterdir():
            gray = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
            Image.fromarray(gray * 16 + 7).save(path, "PNG", compress_level=1)
    return folder


def build(data, out, *arguments, code: int = 0):
    command = ["store", "build", "--data", data, "--out", out, "--views", "plain", *TINY]
    return biomass(*command, *arguments, code=code)


@pytest.fixture(scope="module")
def twelve(data, tmp_path_factory):
    """The store of that pasture, its values read as 12 bits."""
    out = tmp_path_factory.mktemp("twelve") / "f.h5"
    assert "nearly black" not in build(data, out, "--bits", 12).stderr
    return out


@pytest.fixture(scope="module")
def run(twelve, tmp_path_factory):
    """A run of a ridge on that store."""
    folder = tmp_path_factory.mktemp("ridge")
    kinds = "[cls_gating, density, attention, pooled_mlp, ridge, gpr]"
    (folder / "ridge.yaml").write_text(SWEEP.format(store=twelve).replace(kinds, "ridge"))
    biomass("train", "--config", folder / "ridge.yaml", "--out", folder / "runs", "--device", "cpu")
    sweep = next((folder / "runs").iterdir())
    return next(path.parent for path in sweep.glob("*/config.yaml"))


def test_L13_build_warns_before_it_writes_and_names_the_bits(data, tmp_path):
    stderr = build(data, tmp_path / "f.h5", "--plan").stderr
    assert "6 were looked at, and no value is above" in stderr
    assert "`biomass store build --bits 12`" in stderr


def test_L13_a_store_of_12_bits_looks_as_one_of_8_would(data, twelve, pasture):
    store = FeatureStore.open(twelve)
    path = pasture / store.catalog["path"][0]
    gray = np.asarray(Image.open(path).convert("L")).astype(int)
    pixels = read_photograph(data / store.catalog["path"][0], store.spec.tokens.bits).pixels_HW3
    assert np.abs(pixels[..., 0] - gray).max() <= 1
    assert abs(store.thumbs[0].mean() - gray.mean()) < 2
    assert "16-bit photographs read as 12 bits" in biomass("store", "info", twelve).stdout


def test_L13_a_build_that_goes_on_must_name_the_same_bits(data, twelve):
    assert "bits: store 12, asked None" in build(data, twelve, code=5).stderr
    build(data, twelve, "--bits", 12)


def test_L13_extend_and_verify_follow_the_store(data, twelve, tmp_path):
    out, whole = tmp_path / "out.h5", tmp_path / "whole.h5"
    command = ["store", "extend", twelve, out, "--data", data, "--views", "plain,hflip"]
    assert "nearly black" not in biomass(*command).stderr
    biomass(
        "store",
        "build",
        "--data",
        data,
        "--out",
        whole,
        "--views",
        "plain,hflip",
        *TINY,
        "--bits",
        12,
    )
    assert biomass("store", "diff", out, whole).stdout == "no difference\n"
    assert "all as committed" in biomass("store", "verify", out, "--data", data).stdout


def test_L13_predict_makes_the_stores_tokens(data, run, tmp_path):
    command = ["predict", "--data", data, "--run", run, "--device", "cpu"]
    biomass(*command, "--oof", "--out", tmp_path / "oof.csv")  # exit code 5 were they others
    assert "nearly black" not in biomass(*command, "--out", tmp_path / "s.csv").stderr


def test_L13_a_bundle_predicts_the_same(data, run, tmp_path):
    biomass("bundle", run, "--out", tmp_path / "b")
    assert Predictor.load(tmp_path / "b", device="cpu").backbone.crop.bits == 12
    for name, heads in (("a.csv", ["--run", run]), ("b.csv", ["--bundle", tmp_path / "b"])):
        biomass("predict", "--data", data, *heads, "--device", "cpu", "--out", tmp_path / name)
    ours, theirs = (pd.read_csv(tmp_path / name) for name in ("a.csv", "b.csv"))
    assert ours.equals(theirs)


def test_L13_predict_warns_of_dark_photographs_where_the_store_names_no_bits(sweep, data, tmp_path):
    command = ["predict", "--data", data, "--sweep", sweep, "--out", tmp_path / "s.csv", "--tta", 1]
    stderr = biomass(*command, "--device", "cpu").stderr
    assert stderr.count("the 16-bit photographs are nearly black: 2 were looked at") == 1


def test_L13_import_takes_bits_and_warns_without(data, tmp_path):
    tokens = {"cls_0": np.ones(192, np.float32), "patches_0": np.ones((16, 192), np.float32)}
    (tmp_path / "npz").mkdir()
    for photograph in (data / "train").iterdir():
        np.savez(tmp_path / "npz" / photograph.stem, **tokens)
    command = ["store", "import", tmp_path / "npz", "--data", data]
    command += ["--backbone", "vit_tiny_patch16_dinov3_qkvb"]
    stderr = biomass(*command, "--out", tmp_path / "a.h5").stderr
    assert "`biomass store import --bits 12`" in stderr
    assert "nearly black" not in biomass(*command, "--out", tmp_path / "b.h5", "--bits", 12).stderr
    a, b = (FeatureStore.open(tmp_path / name) for name in ("a.h5", "b.h5"))
    assert b.spec.tokens.bits == 12 and b.thumbs.mean() > 10 * a.thumbs.mean()
