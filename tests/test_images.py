"""Decoding and cropping: real small files in every mode, damage named, tiles that hold the right
pixels."""

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurestore.errors import InputError
from featurestore.photos.crop import Crop, plan_crop
from featurestore.photos.images import inspect_photograph, read_photograph, to_rgb
from featurestore.photos.picture import Picture


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, image: Image.Image | np.ndarray, **options) -> Path:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def pixels(path: Path) -> list:
    return read_photograph(path).pixels_HW3.reshape(-1, 3).tolist()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    path: Path, width: int, height: int, bits: int, colour: int, samples: bytes, *extra: bytes
) -> Path:
    """A one-row PNG made by hand, for what Pillow does not write; samples are the packed row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(b"\0" + samples))
        + chunk(b"IEND", b"")
    )
    return path


def exif(orientation: int) -> bytes:
    return (
        b"Exif\0\0II*\0\x08\0\0\0\x01\0"
        + struct.pack("<HHIHxx", 0x0112, 3, 1, orientation)
        + bytes(4)
    )


def test_png_comes_back_bit_for_bit_with_the_hash_of_its_file(tmp_path):
    path = save(tmp_path / "a.png", noise(5, 7))
    photograph = read_photograph(path)
    assert np.array_equal(photograph.pixels_HW3, noise(5, 7))
    assert photograph.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (photograph.width, photograph.height) == inspect_photograph(path) == (7, 5)


def test_content_decides_not_the_suffix(tmp_path):
    path = save(tmp_path / "a.jpg", noise(5, 7), format="PNG")
    assert np.array_equal(read_photograph(path).pixels_HW3, noise(5, 7))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(tmp_path, orientation, suffix):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # white in the top left corner only
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }[orientation]
    path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif(orientation))
    found = read_photograph(path).pixels_HW3
    assert inspect_photograph(path) == (24, 16)
    assert np.array_equal(found > 127, upright > 127)


@pytest.mark.parametrize(
    "block",
    [b"Exif\0\0II*\0\xff\xff\xff\0", b"Exif\0\0MM", b"Exif\0\0junk", exif(9)],
    ids=["offset", "short", "junk", "nine"],
)
def test_broken_exif_is_upright_without_a_warning(tmp_path, block):
    assert inspect_photograph(save(tmp_path / "a.jpg", noise(8, 24), exif=block)) == (24, 8)
    assert read_photograph(tmp_path / "a.jpg").width == 24


@pytest.mark.parametrize(
    "mode, value, rgb",
    [
        ("1", 1, [255, 255, 255]),
        ("L", 100, [100, 100, 100]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("LA", (0, 51), [204, 204, 204]),
        ("RGBA", (255, 0, 0, 51), [255, 204, 204]),
        ("RGBA", (9, 9, 9, 0), [255, 255, 255]),
        ("I;16", 25700, [100, 100, 100]),
        ("I;16", 65535, [255, 255, 255]),
        ("I;16", 128, [0, 0, 0]),
        ("I;16", 129, [1, 1, 1]),
    ],
)
def test_png_of_each_mode_has_this_rgb(tmp_path, mode, value, rgb):
    assert pixels(save(tmp_path / "a.png", Image.new(mode, (1, 1), value))) == [rgb]


@pytest.mark.parametrize(
    "mode, value, rgb",
    [
        ("PA", (0, 0), [255, 255, 255]),
        ("La", (20, 51), [224, 224, 224]),
        ("RGBa", (51, 0, 0, 51), [255, 204, 204]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
        ("YCbCr", (100, 128, 128), [100, 100, 100]),
        ("I;16B", 25700, [100, 100, 100]),
        ("I", 25700, [100, 100, 100]),
    ],
)
def test_modes_no_file_of_ours_decodes_to_are_defined_too(mode, value, rgb):
    assert np.asarray(to_rgb(Image.new(mode, (1, 1), value))).tolist() == [[rgb]]


@pytest.mark.parametrize(
    "image",
    [Image.new("F", (1, 1)), Image.new("HSV", (1, 1)), Image.new("I", (1, 1), 70000)],
    ids=lambda image: image.mode,
)
def test_pixels_without_a_defined_rgb_are_refused(image):
    with pytest.raises(ValueError, match="mode|65535"):
        to_rgb(image)


@pytest.mark.parametrize(
    "transparency, second",
    [
        (None, [9, 8, 7]),
        (1, [255, 255, 255]),
        (b"\xff\x33", [206, 206, 205]),
    ],
    ids=["opaque", "one entry", "alpha of each entry"],
)
def test_palette_transparency_lies_over_white(tmp_path, transparency, second):
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 9, 8, 7])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    assert pixels(save(tmp_path / "a.png", image, **options)) == [[1, 2, 3], second]


@pytest.mark.parametrize(
    "bits, colour, samples, key, rgb",
    [
        (2, 0, bytes([0b00011011]), b"\0\2", [[0] * 3, [85] * 3, [255] * 3, [255] * 3]),
        (8, 0, bytes([1, 2, 3, 4]), b"\0\2", [[1] * 3, [255] * 3, [3] * 3, [4] * 3]),
        (
            16,
            0,
            struct.pack(">4H", 257, 514, 515, 771),
            struct.pack(">H", 514),
            [[1] * 3, [255] * 3, [2] * 3, [3] * 3],
        ),
        (
            16,
            2,
            struct.pack(">12H", *[0x1234] * 3, *[0x5678] * 3, *[0] * 6),
            struct.pack(">3H", *[0x1234] * 3),
            [[255] * 3, [0x56] * 3, [0] * 3, [0] * 3],
        ),
    ],
    ids=["gray 2 bit", "gray 8 bit", "gray 16 bit", "colour 16 bit"],
)
def test_the_transparent_colour_is_white(tmp_path, bits, colour, samples, key, rgb):
    assert pixels(png(tmp_path / "a.png", 4, 1, bits, colour, samples, chunk(b"tRNS", key))) == rgb


def test_cmyk_jpeg_is_inverted_as_adobe_means_it(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert np.abs(np.array(pixels(path)) - [255, 0, 0]).max() <= 2


def test_icc_profile_changes_no_pixel(tmp_path):
    plain = save(tmp_path / "a.jpg", noise(8, 8))
    assert pixels(
        save(tmp_path / "b.jpg", noise(8, 8), icc_profile=b"not even a profile")
    ) == pixels(plain)


def test_animated_png_gives_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    assert pixels(save(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:]))[
        0
    ] == [255, 0, 0]


def test_bytes_after_the_picture_are_fine(tmp_path):
    path = save(tmp_path / "a.jpg", noise(8, 8))
    whole = pixels(path)
    path.write_bytes(path.read_bytes() + bytes(100_000))  # as phones append a video
    assert inspect_photograph(path) == (8, 8) and pixels(path) == whole


def jpeg(**options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(40, 40)).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "a HTML or XML file, whatever its name; save it as JPEG, PNG"),
        (b"GIF89a" + bytes(30), "a GIF file"),
        (jpeg()[:-900], "no JPEG end-of-image marker"),
        (jpeg()[:100], "cut short"),
        # a thumbnail's end is not the picture's
        (jpeg(exif=exif(1) + b"\xff\xd9")[:-900], "no JPEG end-of-image marker"),
        (b"\xff\xd8\xff\xda\0\2\xff\xd9", "without a frame header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(3), "cut short"),
    ],
    ids=["empty", "html", "gif", "jpeg tail", "jpeg header", "thumbnail", "no frame", "png header"],
)
def test_damage_is_named_by_both_readers(tmp_path, data, reason):
    (tmp_path / "a.jpg").write_bytes(data)
    for reader in (inspect_photograph, read_photograph):
        with pytest.raises(InputError, match=f"a.jpg: .*{reason}"):
            reader(tmp_path / "a.jpg")


@pytest.mark.parametrize("left", [-1, -13, -40])
def test_a_png_cut_short_is_refused(tmp_path, left):
    path = save(tmp_path / "a.png", noise(9, 9))
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match="a.png: cut short"):
        inspect_photograph(path)


def test_a_flipped_bit_in_png_pixels_is_refused(tmp_path):
    path = save(tmp_path / "a.png", noise(9, 9))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="a.png: the PNG chunk at byte .* checksum"):
        read_photograph(path)


def test_pixels_that_stop_inside_a_whole_file_are_refused(tmp_path):
    path = png(tmp_path / "a.png", 900, 1, 8, 2, noise(1, 900).tobytes())
    data, start = path.read_bytes(), 8 + 25
    length = struct.unpack(">I", data[start : start + 4])[0]
    half = data[start + 8 : start + 8 + length // 2]
    path.write_bytes(data[:start] + chunk(b"IDAT", half) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match="a.png: image file is truncated"):
        read_photograph(path)


@pytest.mark.parametrize("side", [0, 8945])
def test_the_pixel_cap_reads_the_header_only(tmp_path, side):
    path = png(tmp_path / "a.png", side, side, 8, 2, b"")
    with pytest.raises(
        InputError, match=f"a.png: {side} x {side} pixels; between 1 and 80,000,000"
    ):
        inspect_photograph(path)


def test_a_second_header_cannot_slip_past_the_cap(tmp_path):
    path = png(tmp_path / "a.png", 9000, 9000, 8, 0, bytes(1))
    small = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    path.write_bytes(path.read_bytes()[:-12] + small + chunk(b"IEND", b""))
    with pytest.raises(InputError, match="headers say both"):
        read_photograph(path)


def test_a_missing_file_a_folder_and_a_pipe_are_named(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe.jpg")
    for path, reason in (
        (tmp_path / "no.jpg", "No such file"),
        (tmp_path, "Is a directory"),
        (pipe, "no file but a pipe"),  # nobody writes into it: to open it would wait for ever
    ):
        with pytest.raises(InputError, match=f"{path}: {reason}"):
            inspect_photograph(path)


def test_squash_of_the_right_size_changes_nothing():
    assert np.array_equal(Crop("squash", 5, 7, "bicubic")(noise(5, 7)), noise(5, 7)[None])


@pytest.mark.parametrize("width", [40, 41])
def test_halves_never_look_at_each_other(width):
    picture = noise(20, width)
    left, right = Crop("halves", 6, 6, "bicubic")(picture)
    squash = Crop("squash", 6, 6, "bicubic")
    assert np.array_equal(left, squash(picture[:, :20])[0])
    assert np.array_equal(right, squash(picture[:, 20:])[0])


def test_halves_of_the_right_size_are_the_pixels_themselves():
    tiles = Crop("halves", 5, 5, "bilinear")(noise(5, 10))
    assert np.array_equal(np.concatenate(tiles, axis=1), noise(5, 10))
    assert tiles.shape == (2, 5, 5, 3) and tiles.flags.c_contiguous and tiles.flags.writeable


@pytest.mark.parametrize(
    "kind, width, advice",
    [("halves", 150, "use squash, center or whole"), ("whole", 150, "use squash")],
)
def test_an_aspect_that_does_not_fit_is_refused(kind, width, advice):
    crop = plan_crop(kind, 28, 14, "bicubic", aspect=2.0)
    crop(noise(100, 192))  # 4 % off
    with pytest.raises(
        InputError, match=f"{width} x 100 .*1.500.* needs 2.000 within 5%; {advice}"
    ):
        crop(noise(100, width))


@pytest.mark.parametrize(
    "kind, aspect, tile",
    [
        ("squash", 2.0, (28, 28)),
        ("halves", 2.0, (28, 28)),
        ("whole", 2.0, (28, 56)),
        ("whole", 0.5, (56, 28)),
        ("whole", 1.45, (28, 42)),
        ("whole", 1.0, (28, 28)),
    ],
)
def test_planned_tiles_hold_whole_patches(kind, aspect, tile):
    crop = plan_crop(kind, 28, 14, "bicubic", aspect)
    assert (crop.height, crop.width) == tile
    assert crop(noise(60, round(60 * aspect))).shape == (crop.n_tiles, *tile, 3)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("squash", 30, 14, "bicubic", 1.0), "not a multiple of the patch size 14; use 28 or 42"),
        (("squash", 5, 14, "bicubic", 1.0), "use 14$"),
        (("middle", 28, 14, "bicubic", 1.0), "use squash, halves, grid:RxC, center or whole"),
        (("squash", 28, 14, "cubic", 1.0), "use one of nearest, .*bicubic"),
        (("whole", 28, 14, "bicubic", 1.2), "28 x 28, the nearest .* miss the aspect 1.200"),
        (("whole", 448, 14, "bicubic", 1000.0), "more than 80,000,000 pixels"),
    ],
)
def test_a_crop_that_cannot_work_is_refused(arguments, reason):
    with pytest.raises(InputError, match=reason):
        plan_crop(*arguments)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 3000), (3000, 1)])
def test_odd_pictures_can_be_squashed(height, width):
    assert Crop("squash", 28, 28, "bicubic")(noise(height, width)).shape == (1, 28, 28, 3)


def test_thumbnail_has_the_size_asked_for():
    small = Picture(Image.fromarray(noise(300, 500))).thumbnail(3, 5)
    assert small.shape == (3, 5, 3) and small.dtype == np.uint8
    assert abs(small.mean() - 127.5) < 5  # of noise, averaged
