"""Predictions of new photographs as `biomass predict` leaves them: a table, photographs, maps."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from featurestore.photos.targets import CSIRO

IDS = ("new 1", "new/2", "NEW-3")
"""One is the stem of its file, another has no file of its name, the last differs by case alone."""


def write_predictions(folder: Path) -> dict[str, Path]:
    """`predictions`, `data` and `explain` below a folder; the second photograph is the least
    certain, the third has no map."""
    rng = np.random.default_rng(0)
    data = folder / "data"
    explain = folder / "maps"
    (data / "test").mkdir(parents=True)
    explain.mkdir()
    table = pd.DataFrame({"image_id": IDS})
    for k, name in enumerate(CSIRO.names):
        value = 10.0 * (k + 1) + np.arange(3)
        half = np.array([2.0, 9.0, 4.0])
        table = table.assign(
            **{
                name: value,
                f"{name}_sd": half / 2,
                f"{name}_low": value - half,
                f"{name}_high": value + half,
            }
        )
    table.to_csv(folder / "predictions.csv", index=False)
    files = ["test/new 1.jpg", "test/b.jpg", "test/c.jpg"]
    for k, file in enumerate(files):
        pixels = rng.integers(0, 60, (300 * (k + 1), 600 * (k + 1), 3), np.uint8)
        Image.fromarray(pixels).save(data / file)
    pd.DataFrame({"image_id": IDS[1:], "image_path": files[1:]}).to_csv(
        data / "test.csv", index=False
    )
    return {"predictions": folder / "predictions.csv", "data": data, "explain": explain}
