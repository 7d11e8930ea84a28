"""How many photographs a second do a machine's cores decode and crop? By each decoder that is
installed, and by `decode`, which build and predict use.

Milliseconds are of one core (CPU time of the calling thread), so busy neighbours change them
little. The photograph is scikit-learn's `china.jpg`, enlarged, with noise, as a JPEG of quality 90.
"""

import argparse
import hashlib
import io
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from _bench import context, finish, spread, work_folder
from PIL import Image
from sklearn.datasets import load_sample_images

from featurestore.photos.crop import Crop, plan_crop
from featurestore.photos.decode import decode
from featurestore.photos.jpeg import scan_warning
from featurestore.photos.picture import Picture

SIZES = {"2000x1000": (2000, 1000), "12 MP": (4096, 3072)}
TILES = (224, 960)
PATCH = 16
CORES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    measured = {}
    with work_folder(None) as folder:
        for name, size in SIZES.items():
            jpeg = photograph(*size)
            path = folder / "photograph.jpg"
            path.write_bytes(jpeg)
            measured[name] = of_size(size, jpeg, path, options.rounds)
    config = {key: str(value) for key, value in vars(options).items()}
    finish({"core_ms": measured, **context(config, ["pillow", "torchvision", "simplejpeg"])})


def photograph(width: int, height: int) -> bytes:
    small = Image.fromarray(load_sample_images().images[0])
    pixels = np.asarray(small.resize((width, height), Image.Resampling.LANCZOS))
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    noisy = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    noisy.save(file, "JPEG", quality=90)
    return file.getvalue()


def of_size(size: tuple[int, int], jpeg: bytes, path: Path, rounds: int) -> dict[str, dict]:
    """Milliseconds of a core for each step, and for `decode` whole."""
    picture = Picture(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    steps: dict[str, Callable[[], object]] = dict(decoders(jpeg))
    steps["check for damage"] = lambda: scan_warning(jpeg)
    steps["SHA-256"] = lambda: hashlib.sha256(jpeg).hexdigest()
    for side in TILES:
        crop = crop_for(size, side)
        steps[f"Pillow, draft for {side}"] = lambda crop=crop: drafted(jpeg, crop)
        steps[f"crop to {side}"] = lambda crop=crop: crop(picture)
        steps[f"decode() to {side}, thumbnail"] = lambda crop=crop: decode(path, crop, (96, 192))
    found = {}
    for name, step in steps.items():
        step()
        found[name] = spread(core_ms(step) for _ in range(rounds))
        told = f"{name:30} {found[name]['median']:7.1f} ms"
        if name.startswith("decode()"):
            told += f", {CORES * 1000 / found[name]['median']:.0f} a second by {CORES} cores"
        print(told)
    return found


def crop_for(size: tuple[int, int], side: int) -> Crop:
    width, height = size
    kind = "halves" if width == 2 * height else "squash"
    return plan_crop(kind, side, PATCH, "bicubic", width / height)


def decoders(jpeg: bytes) -> dict[str, Callable[[], object]]:
    found = {"Pillow": lambda: Image.open(io.BytesIO(jpeg)).convert("RGB")}
    if find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = lambda: simplejpeg.decode_jpeg(jpeg)
        found["simplejpeg, to Pillow"] = lambda: Image.fromarray(simplejpeg.decode_jpeg(jpeg))
    if find_spec("torchvision"):
        import torch
        from torchvision.io import decode_jpeg

        coded = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
        found["torchvision"] = lambda: decode_jpeg(coded)
    if find_spec("cv2"):
        import cv2

        values = np.frombuffer(jpeg, np.uint8)
        found["OpenCV"] = lambda: cv2.imdecode(values, cv2.IMREAD_COLOR_RGB)
    pixels = np.asarray(found["Pillow"]())
    for name, decoder in found.items():
        if name == "Pillow":
            continue
        other = np.asarray(decoder())
        if name == "torchvision":
            other = other.transpose(1, 2, 0)
        apart = np.abs(pixels.astype(int) - other).max()
        print(f"{name:30} pixels differ from Pillow's by up to {apart}")
    return found


def drafted(jpeg: bytes, crop: Crop) -> Image.Image:
    """Decoded at a half, quarter or eighth of its size, where the tiles need no more."""
    image = Image.open(io.BytesIO(jpeg))
    image.draft("RGB", crop.frame_size)
    image.load()
    return image


def core_ms(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return 1000 * (time.thread_time() - start)


if __name__ == "__main__":
    main()
