"""Which formats are read, by content: pixels, orientation and damage of each, what is refused by
name, and why headers of JPEG and PNG are parsed here."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from featurestore.errors import InputError
from featurestore.photos import kinds
from featurestore.photos.images import find_brightest, inspect_photograph, read_photograph

ORIENTATION = 0x0112
HEIC = pytest.param("HEIF", marks=pytest.mark.skipif(not kinds.can_read_heic(), reason="no heif"))
EXACT = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
}


def noise(height: int = 9, width: int = 7, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), np.uint8)


def encoded(kind: str, pixels: np.ndarray | Image.Image, **options) -> bytes:
    if kind == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block.tobytes()


def put(folder: Path, data: bytes) -> Path:
    (folder / "a.jpg").write_bytes(data)  # whatever it is: content decides
    return folder / "a.jpg"


@pytest.mark.parametrize("kind", EXACT)
def test_lossless_formats_come_back_bit_for_bit(tmp_path, kind):
    path = put(tmp_path, encoded(kind, noise(), **EXACT[kind]))
    assert inspect_photograph(path) == (7, 9)
    assert np.array_equal(read_photograph(path).pixels_HW3, noise())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", HEIC])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_every_format_lies_upright(tmp_path, kind, orientation):
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :16] = 255
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    upright = np.rot90(stored, turns)
    path = put(tmp_path, encoded(kind, stored, exif=exif(orientation)))
    assert inspect_photograph(path) == upright.shape[1::-1]
    found = read_photograph(path).pixels_HW3
    assert np.array_equal(found > 127, upright > 127)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_alpha_lies_over_white(tmp_path, kind):
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 51))
    path = put(tmp_path, encoded(kind, image, **EXACT[kind]))
    assert read_photograph(path).pixels_HW3[0, 0].tolist() == [255, 204, 204]


def test_sixteen_bits_of_a_tiff_are_scaled_as_those_of_a_png(tmp_path):
    values = np.array([[0, 128, 129, 4095, 65535]], np.uint16)
    found = {}
    for kind in ("PNG", "TIFF"):
        path = put(tmp_path, encoded(kind, Image.fromarray(values)))
        found[kind] = read_photograph(path).pixels_HW3[0, :, 0].tolist()
        assert find_brightest(path) == 65535
    assert found["PNG"] == found["TIFF"] == [0, 0, 1, 16, 255]

    path = put(tmp_path, encoded("TIFF", Image.fromarray(values[:, :4])))
    assert read_photograph(path, bits=12).pixels_HW3[0, :, 0].tolist() == [0, 8, 8, 255]


def test_several_pages_give_the_first(tmp_path):
    pages = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("TIFF", "WEBP"):
        path = put(tmp_path, encoded(kind, pages[0], save_all=True, append_images=pages[1:]))
        assert np.abs(read_photograph(path).pixels_HW3[0, 0] - np.array([255, 0, 0])).max() < 8


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP", HEIC])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_refused_by_name(tmp_path, kind, share):
    data = encoded(kind, noise(60, 80))
    path = put(tmp_path, data[: int(len(data) * share)])
    with pytest.raises(InputError, match="a.jpg: "):
        read_photograph(path)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP", HEIC])
def test_the_pixel_cap_holds_before_anything_is_decoded(tmp_path, kind):
    path = put(tmp_path, encoded(kind, noise(40, 50)))
    for reader in (inspect_photograph, read_photograph, find_brightest):
        with pytest.raises(InputError, match="50 x 40 pixels; between 1 and 1,999 are read"):
            reader(path, max_pixels=1999)


OTHERS = {
    "GIF": b"GIF89a",
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "AVIF": b"\0\0\0\x20ftypavif\0\0\0\0mif1miaf",
    "Canon raw": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "video": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "RIFF": b"RIFF\0\0\0\0AVI LIST",
    "PDF": b"%PDF-1.7",
    "HTML or XML": b"\n <svg",
    "Photoshop": b"8BPS\0\1",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_by_file_and_format(tmp_path, name):
    path = put(tmp_path, OTHERS[name] + bytes(50))
    with pytest.raises(InputError, match=f"a.jpg: a {name} file, whatever its name; save it as "):
        inspect_photograph(path)


def test_an_unknown_format_is_told_by_its_first_bytes(tmp_path):
    with pytest.raises(InputError, match="a.jpg: of no known format, it starts with b'hello'"):
        inspect_photograph(put(tmp_path, b"hello"))


@pytest.mark.parametrize("tag", [(kinds.DNG_VERSION, 1), (kinds.NEW_SUBFILE_TYPE, 1)])
def test_the_preview_in_a_raw_file_is_not_taken_for_the_photograph(tmp_path, tag):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag[0]] = tag[1]
    path = put(tmp_path, encoded("TIFF", noise(), tiffinfo=tags))
    with pytest.raises(InputError, match="a.jpg: a camera's raw file"):
        read_photograph(path)


def test_heic_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "can_read_heic", lambda: False)
    path = put(tmp_path, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    with pytest.raises(InputError, match="a.jpg: a HEIC photograph; `pip install pillow-heif`"):
        inspect_photograph(path)


# -- why headers of JPEG and PNG are parsed here: what Pillow says of the same bytes


def test_pillow_does_not_see_in_headers_that_a_file_was_cut(tmp_path):
    for kind, decoder in (("JPEG", JpegImageFile), ("PNG", PngImageFile)):
        cut = encoded(kind, noise(40, 40))[:-40]
        assert decoder(io.BytesIO(cut)).size == (40, 40)
        with pytest.raises(InputError, match="cut short"):
            inspect_photograph(put(tmp_path, cut))


def test_pillow_warns_of_broken_exif(tmp_path):
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(8)
    data = encoded("JPEG", noise(40, 40), exif=broken)
    with pytest.warns(UserWarning, match="[Cc]orrupt EXIF"):
        JpegImageFile(io.BytesIO(data)).getexif().get(ORIENTATION)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photograph(put(tmp_path, data)).width == 40


def test_pillow_does_not_compare_the_checksum_of_pixels(tmp_path):
    data = bytearray(encoded("PNG", noise(40, 40)))
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start], "big")
    data[start + 4 + length] ^= 1  # of the checksum alone
    assert np.array_equal(np.asarray(PngImageFile(io.BytesIO(data))), noise(40, 40))
    with pytest.raises(InputError, match="does not match its checksum"):
        read_photograph(put(tmp_path, bytes(data)))
