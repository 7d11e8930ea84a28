"""Photographs that would take too much: bounded in pixels, in parts and in seconds, by one cap for
every command; and large ones, turned and resized in little memory."""

import io
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import TINY, biomass
from conftest import tiny_frame, tiny_spec
from PIL import Image

from featurestore import FeatureStore
from featurestore.errors import InputError
from featurestore.format.spec import MAX_PIXELS, made_together
from featurestore.photos import limits
from featurestore.photos.images import find_damage, inspect_photograph, read_photograph
from featurestore.photos.picture import BAND, UPRIGHT, Picture

PIXELS = 768 * 384  # of a pasture's photograph


def jpeg(width: int = 64, height: int = 48, **options) -> bytes:
    rng = np.random.default_rng(5)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def with_scans(data: bytes, n: int) -> bytes:
    """A progressive JPEG whose last scan follows n times more, as no decoder minds."""
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * n + data[-2:]


@pytest.mark.parametrize("reader", [read_photograph, find_damage])
def test_a_jpeg_of_endless_scans_is_refused(tmp_path, reader):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(progressive=True) + jpeg(progressive=True) * 99)
    reader(path)  # what follows the picture's end is not counted
    path.write_bytes(with_scans(jpeg(progressive=True), 100))
    with pytest.raises(InputError, match="a.jpg: more than 100 scans"):
        reader(path)


@pytest.mark.system
def test_scans_up_to_the_bound_take_little_time(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(with_scans(jpeg(4000, 3000, progressive=True, quality=10), 89))
    start_s = time.thread_time()
    read_photograph(path)
    assert time.thread_time() - start_s < limits.MOST_S


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
def test_decoding_ends_when_its_time_is_over(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.open(io.BytesIO(jpeg())).save(path)
    read_photograph(path)
    monkeypatch.setattr(limits, "MOST_S", -1.0)
    with pytest.raises(InputError, match=f"a.{suffix}: more than -1 seconds of decoding"):
        read_photograph(path)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xd8\xff" + bytes(200), b"\xff\xd8" + b"\xff\xfe\0\2" * 101],
    ids=["stray bytes", "empty comments"],
)
def test_headers_without_end_are_refused(tmp_path, monkeypatch, data):
    monkeypatch.setattr(limits, "MOST_PARTS", 100)
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(InputError, match="a.jpg: more than 100 parts"):
        inspect_photograph(tmp_path / "a.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_and_resized_a_large_one_rows_first(monkeypatch, orientation):
    rng = np.random.default_rng(3)
    stored = Image.fromarray(rng.integers(0, 256, (2 * BAND + 9, BAND + 5, 3), np.uint8))
    upright = stored.transpose(UPRIGHT[orientation]) if orientation > 1 else stored
    picture = Picture(stored, orientation)
    assert picture.size == upright.size
    for method in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.NEAREST):
        for box in ((0, 0, *upright.size), (3, 7, 250, 200)):
            expected = upright.crop(box).resize((24, 17), method)
            assert picture.resized(box, (24, 17), method) == expected
            rows_first = upright.crop(box).resize((24, box[3] - box[1]), method)
            with monkeypatch.context() as patch:
                patch.setattr("featurestore.photos.picture.LARGE", 1)
                in_bands = picture.resized(box, (24, 17), method)
            assert in_bands == rows_first.resize((24, 17), method)
    small = picture.thumbnail(30, 20).astype(int)
    assert np.abs(small - upright.resize((20, 30), reducing_gap=2.0)).mean() < 8


def test_the_cap_of_several_makers_is_the_greatest():
    spec = tiny_spec(tiny_frame())

    def of(*told: str) -> int:
        makers = [{"max_pixels": each} if each else {} for each in told]
        return spec.changed(made_by=made_together(makers)).max_pixels

    assert of("90000000", "") == 90_000_000
    assert of("9", "") == MAX_PIXELS
    assert of("9", "10") == 10


def build(data, out, *more, code: int = 0):
    where = "--data", data, "--out", out, "--views", "plain"
    return biomass("store", "build", *where, *TINY, *more, code=code)


def test_one_cap_for_build_predict_and_verify(pasture, sweep, tmp_path):
    out = tmp_path / "f.h5"
    said = build(pasture, out, "--max-pixels", PIXELS - 1, code=3).stderr
    assert f"768 x 384 pixels; between 1 and {PIXELS - 1:,} are read" in said
    assert "raise --max-pixels" in said

    build(pasture, out, "--max-pixels", PIXELS)
    spec = FeatureStore.open(out).spec
    assert spec.made_by["max_pixels"] == str(PIXELS) and spec.max_pixels == PIXELS
    build(pasture, out)  # goes on with what the store has
    biomass("store", "verify", out, "--data", pasture, "--max-pixels", PIXELS)

    where = "--data", pasture, "--sweep", sweep, "--out", tmp_path / "s.csv", "--device", "cpu"
    said = biomass("predict", *where, "--max-pixels", PIXELS - 1, code=3).stderr
    assert "raise --max-pixels" in said


def test_a_store_without_the_key_has_the_usual_cap(built):
    spec = FeatureStore.open(built).spec
    assert "max_pixels" not in spec.made_by and spec.max_pixels == MAX_PIXELS


@pytest.mark.system
def test_108_megapixels_are_built_within_1500_megabytes(tmp_path):
    """With the demo's backbone, upright and as a phone stores a portrait (EXIF 6)."""
    (tmp_path / "data").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(1).integers(0, 256, (900, 1200, 3), np.uint8)
    large = Image.fromarray(noise).resize((12000, 9000))
    large.save(tmp_path / "data/a.jpg", quality=92)
    large.save(tmp_path / "data/b.jpg", quality=92, exif=exif)
    (tmp_path / "data/train.csv").write_text("image_path,g\na.jpg,1\nb.jpg,2\n")
    command = "store build --backbone vit_demo_patch16_dinov3 --image-size 192 --views 4"
    command += f" --crop squash --max-pixels 120000000 --data {tmp_path}/data --out {tmp_path}/f.h5"
    # not getrusage, which counts what the parent held when it forked
    program = "import cli, sys; cli.main(sys.argv[1:], standalone_mode=False)"
    program += "; print(open('/proc/self/status').read())"
    python = sys.executable, "-c", program
    done = subprocess.run([*python, *command.split()], check=True, capture_output=True, text=True)
    peak_kb = int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1])
    assert peak_kb * 1024 < 1.5e9
