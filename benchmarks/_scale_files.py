"""Photographs and tables of many images: a hundred small files, each linked thousands of times."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from featurestore.photos.targets import CSIRO

N_FOLDERS = 100
SIZE = 128, 64  # pixels, width and height of a photograph
A_SITE = 200  # photographs


def write_photographs(data: Path, n_images: int) -> list[str]:
    """Photographs below a data folder, in N_FOLDERS folders; their paths as a table has them."""
    rng = np.random.default_rng(0)
    coarse_N443 = rng.integers(0, 256, (N_FOLDERS, 4, 4, 3), np.uint8)
    paths = []
    for folder, pixels in enumerate(coarse_N443):
        place = data / "photos" / f"{folder:03d}"
        place.mkdir(parents=True)
        first = place / "first.jpg"
        # smooth, as photographs are: noise would take the decoder longer
        Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(first)
        for number in range(folder * n_images // N_FOLDERS, (folder + 1) * n_images // N_FOLDERS):
            name = f"ID{number:09d}.jpg"
            os.link(first, place / name)
            paths.append(f"photos/{folder:03d}/{name}")
        first.unlink()
    return paths


def write_test(data: Path, paths: list[str]) -> None:
    """A test.csv as the contest's, a row for each photograph and target."""
    target_names = list(CSIRO.names)
    with open(data / "test.csv", "w") as file:
        file.write("sample_id,image_path,target_name\n")
        for path in paths:
            stem = Path(path).stem
            file.writelines(f"{stem}__{name},{path},{name}\n" for name in target_names)


def site_columns(n_images: int) -> dict[str, object]:
    """State and Sampling_Date of photographs, of which A_SITE that follow each other are a site."""
    site = np.arange(n_images) // A_SITE
    return {
        "State": np.array(["Tas", "Vic", "NSW", "WA"], object)[site % 4],
        "Sampling_Date": [f"{1990 + s // 336 % 30}/{1 + s // 28 % 12}/{1 + s % 28}" for s in site],
    }


def write_train(data: Path, paths: list[str]) -> None:
    """A wide train.csv of 12 columns."""
    rng = np.random.default_rng(0)
    n_images = len(paths)
    site = np.arange(n_images) // A_SITE
    green, dead, clover = rng.gamma(2, 10, (3, n_images)).round(4)
    masses = green, dead, clover, green + clover, green + clover + dead
    frame = pd.DataFrame(
        {
            "image_id": [Path(path).stem for path in paths],
            "image_path": paths,
            **site_columns(n_images),
            "Species": np.array(["Ryegrass", "Clover", "Lucerne"], object)[site % 3],
            "Pre_GSHH_NDVI": rng.random(n_images).round(2),
            "Height_Ave_cm": rng.gamma(2, 4, n_images).round(4),
            **dict(zip(CSIRO.names, masses, strict=True)),
        }
    )
    frame.to_csv(data / "train.csv", index=False, float_format="%.4f")
