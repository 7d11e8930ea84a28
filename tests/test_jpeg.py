"""JPEGs that are damaged inside the picture, where Pillow notices nothing: found, told of, and
never in sound ones."""

import io
import re
import shutil
import sys

import numpy as np
import pytest
from commands import TINY, biomass
from damaged import hurt, with_hole, zeroed
from PIL import Image

from featurestore import FeatureStore
from featurestore.photos.images import find_damage, read_photograph
from featurestore.photos.jpeg import UNCHECKED

pytestmark = pytest.mark.filterwarnings("default")  # the commands print them

HEIGHT, WIDTH = 101, 203  # whole blocks in neither direction


def drawn(mode: str = "RGB") -> Image.Image:
    """A photograph in kind: slopes, leaves of some pixels, and noise."""
    rng = np.random.default_rng(3)
    leaves = np.kron(rng.normal(0, 30, (26, 51, 3)), np.ones((4, 4, 1)))[:HEIGHT, :WIDTH]
    slope = np.linspace(60, 160, HEIGHT)[:, None, None]
    pixels = slope + leaves + rng.normal(0, 10, (HEIGHT, WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def damage(tmp_path, jpeg: bytes) -> str | None:
    """What is found in a file, whose pixels Pillow decodes in any case."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg)
    photograph = read_photograph(path)
    assert photograph.pixels_HW3.shape == (HEIGHT, WIDTH, 3)
    assert photograph.damage == find_damage(path)
    return photograph.damage


@pytest.mark.parametrize("quality", [30, 60, 75, 92, 100])
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_L7_zeros_and_holes_are_found_at_any_quality(tmp_path, quality, progressive):
    whole = encoded(drawn(), quality=quality, progressive=progressive)
    assert damage(tmp_path, whole) is None
    for hurt_bytes in (
        zeroed(whole),
        zeroed(whole, 0.5, 0.6),
        with_hole(whole),
        with_hole(whole, 0.5, 0.6),
    ):
        assert "damaged inside the picture" in damage(tmp_path, hurt_bytes)


def test_L7_the_rows_that_are_lost_are_named(tmp_path):
    whole = encoded(drawn(), quality=75)
    found = damage(tmp_path, with_hole(whole, 0.4, 0.99))
    share, row = map(
        int, re.search(r"about (\d+)% of it is flat, from row (\d+) of 101 on", found).groups()
    )
    is_other = (
        np.ptp(read_photograph(tmp_path / "a.jpg").pixels_HW3[:, 64:-64].astype(int), 1).max(1) > 1
    )
    last = int(np.flatnonzero(is_other)[-1])  # the last row that shows anything
    assert abs(last + 1 - row) <= 1 and abs(share - 100 * (HEIGHT - row) / HEIGHT) < 1
    assert 30 < row < 60  # 40 % of the bytes are of about as many rows


def test_L7_zeros_that_outlast_the_picture_are_no_padding(tmp_path):
    whole = encoded(drawn(), quality=100)
    assert "extraneous bytes before marker 0xd9" in damage(tmp_path, zeroed(whole, 0.5, 0.999))
    assert damage(tmp_path, whole[:-2] + bytes(400) + whole[-2:]) is None  # some cameras fill up so


SOUND = {
    "grey": encoded(drawn("L"), quality=85),
    "CMYK": encoded(drawn("CMYK"), quality=85),
    "4:4:4": encoded(drawn(), quality=100, subsampling="4:4:4"),
    "4:1:1": encoded(drawn(), quality=30, subsampling="4:1:1"),
    "restart markers": encoded(drawn(), restart_marker_rows=1),
    "progressive with restart markers": encoded(drawn(), restart_marker_blocks=5, progressive=True),
    "RGB": encoded(drawn(), keep_rgb=True),
    "an odd Adobe transform": encoded(drawn("CMYK")).replace(
        b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\7"
    ),
    "an unknown JFIF version": encoded(drawn()).replace(b"JFIF\0\1\1", b"JFIF\0\7\1"),
    "bytes after the end": encoded(drawn()) + bytes(50) + encoded(drawn("L")),
    "several pictures": encoded(drawn(), "MPO", save_all=True, append_images=[drawn().rotate(180)]),
    "bytes before a header's marker": encoded(drawn()).replace(b"\xff\xc4", b"\0\0\xff\xc4", 1),
    "fill bytes before the end": encoded(drawn())[:-2] + b"\xff\xff\xff\xff\xd9",
    "EXIF that is broken": encoded(drawn(), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"),
}


@pytest.mark.parametrize("jpeg", SOUND.values(), ids=SOUND.keys())
def test_L7_what_is_odd_but_whole_is_not_refused(tmp_path, jpeg):
    assert damage(tmp_path, jpeg) is None


def test_L7_a_uniform_photograph_is_whole(tmp_path):
    assert damage(tmp_path, encoded(Image.new("RGB", (WIDTH, HEIGHT), "grey"))) is None


# -- in the commands


@pytest.fixture(scope="module")
def data(pasture, tmp_path_factory):
    """A pasture of its own whose first training and test photographs are damaged inside."""
    folder = shutil.copytree(pasture, tmp_path_factory.mktemp("damaged") / "data")
    for part in ("train", "test"):
        hurt(photographs(folder, part)[0])
    return folder


def photographs(data, part: str) -> list:
    return sorted((data / part).iterdir())


def build(data, out, *arguments, code: int = 0):
    return biomass(
        "store",
        "build",
        "--data",
        data,
        "--out",
        out,
        "--views",
        "plain",
        *TINY,
        *arguments,
        code=code,
    )


@pytest.fixture(scope="module")
def older(data, tmp_path_factory):
    """A store that sealed the damaged photograph, as every one did before they were checked."""
    out = tmp_path_factory.mktemp("older") / "f.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "simplejpeg", None)
        assert build(data, out).stderr.count(UNCHECKED) == 1
    assert FeatureStore.open(out).n_sealed == 6
    return out


def test_L7_build_stops_at_a_damaged_photograph_or_goes_without(data, tmp_path):
    out, first = tmp_path / "f.h5", photographs(data, "train")[0]
    stderr = build(data, out, code=3).stderr
    assert (
        f"{first}: damaged inside the picture" in stderr
        and "--skip-missing builds the others" in stderr
    )
    stderr = build(data, out, "--skip-missing").stderr
    assert "1 photograph skipped" in stderr and first.name in stderr
    catalog = FeatureStore.open(out).catalog.set_index("image_id")
    assert catalog["status"][first.stem] == "damaged" and (catalog["status"] == "ok").sum() == 5


def test_L7_predict_refuses_it_or_writes_the_mean(sweep, data, tmp_path):
    out, first = tmp_path / "s.csv", photographs(data, "test")[0]
    command = [
        "predict",
        "--data",
        data,
        "--sweep",
        sweep,
        "--out",
        out,
        "--device",
        "cpu",
        "--tta",
        1,
    ]
    assert f"{first}: damaged inside the picture" in biomass(*command, code=3).stderr
    assert not out.exists()
    stderr = biomass(*command, "--on-error", "mean", code=6).stderr
    assert "the training mean stands for 1 photograph" in stderr and first.name in stderr


def test_L7_out_of_fold_a_sealed_photograph_is_warned_of(sweep, data, tmp_path):
    command = [
        "predict",
        "--oof",
        "--data",
        data,
        "--sweep",
        sweep,
        "--out",
        tmp_path / "oof.csv",
        "--device",
        "cpu",
    ]
    stderr = biomass(*command, code=5).stderr  # the store's tokens are of the sound photograph
    first = photographs(data, "train")[0]
    assert (
        f"warning: {first}: damaged inside the picture" in stderr
        and "tokens are kept as they are" in stderr
    )
    assert (tmp_path / "oof.csv").exists()


def test_L7_an_older_store_goes_on_with_a_warning(data, older):
    first = photographs(data, "train")[0]
    stderr = build(data, older).stderr
    assert f"warning: {first}: damaged inside the picture" in stderr
    assert FeatureStore.open(older).n_sealed == 6


def test_L7_a_store_of_checked_photographs_reads_none_when_it_goes_on(pasture, built, monkeypatch):
    monkeypatch.setattr(
        "featurestore.photos.decode.find_damage", lambda path: pytest.fail(f"{path} was read")
    )
    build(pasture, built, "--views", "plain,hsv")


def test_L7_extend_warns_of_a_sealed_photograph(data, older, tmp_path):
    out, first = tmp_path / "more.h5", photographs(data, "train")[0]
    stderr = biomass("store", "extend", older, out, "--data", data, "--views", "plain,hflip").stderr
    assert f"warning: {first}: damaged inside the picture" in stderr
    assert FeatureStore.open(out).n_sealed == 6


def test_L7_extend_refuses_a_new_photograph_that_is_damaged(data, older, tmp_path):
    more = shutil.copytree(data, tmp_path / "data")
    first, second, *_ = photographs(more, "train")
    shutil.copy(first, first.with_name("new.jpg"))
    table = (more / "train.csv").read_text()
    rows = [line for line in table.splitlines() if second.stem in line]
    (more / "train.csv").write_text(table + "\n".join(rows).replace(second.stem, "new") + "\n")
    stderr = biomass("store", "extend", older, tmp_path / "new.h5", "--data", more, code=3).stderr
    assert "new.jpg: damaged inside the picture" in stderr and "--skip-missing" in stderr


def test_L7_import_warns_of_a_photograph_whose_tokens_are_there(data, tmp_path):
    tokens = {"cls_0": np.ones(192, np.float32), "patches_0": np.ones((16, 192), np.float32)}
    (tmp_path / "npz").mkdir()
    for photograph in photographs(data, "train"):
        np.savez(tmp_path / "npz" / photograph.stem, **tokens)
    stderr = biomass(
        "store",
        "import",
        tmp_path / "npz",
        "--out",
        tmp_path / "f.h5",
        "--data",
        data,
        "--backbone",
        "vit_tiny_patch16_dinov3_qkvb",
    ).stderr
    assert f"warning: {photographs(data, 'train')[0]}: damaged inside the picture" in stderr


def test_L7_verify_lists_it(data, older):
    assert "all as committed" in biomass("store", "verify", older).stdout
    stderr = biomass("store", "verify", older, "--data", data, code=4).stderr
    first = photographs(data, "train")[0]
    assert (
        f"{first.stem} (all views): its photograph is damaged inside the picture" in stderr
        and "1 fault" in stderr
    )


def test_L7_without_simplejpeg_predict_says_so_once(sweep, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    stderr = biomass(
        "predict", "--data", data, "--sweep", sweep, "--out", tmp_path / "s.csv", "--device", "cpu"
    ).stderr
    assert stderr.count(UNCHECKED) == 1 and (tmp_path / "s.csv").exists()
    command = ["predict", "--oof", "--data", data, "--sweep", sweep, "--out", tmp_path / "oof.csv"]
    assert biomass(*command, "--device", "cpu", code=5).stderr.count(UNCHECKED) == 1
