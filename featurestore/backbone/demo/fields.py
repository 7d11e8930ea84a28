"""The drawn fields: a small data set of another task than the contest's.

Farms grow one crop each. A wide table has a yield (an amount), an NDVI (a level) and the crop (a
class) of each photograph. Leaves, light and camera are the pasture's.
"""

import datetime
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np

from featurestore.backbone.demo.drawing import (
    JPEG_QUALITY,
    SPECIES,
    Photo,
    Site,
    draw_photo,
    draw_photographs,
    mix,
    ndvi,
    weigh,
)
from featurestore.backbone.demo.leaves import QUADRAT_CM

CROPS = {"Ryegrass": "ryegrass", "WhiteClover": "clover", "Ryegrass_Clover": "mixture"}
"""What the table calls a species of the pasture."""
T_HA_PER_G = 100 / QUADRAT_CM.prod()
"""Tonnes a hectare of one gram in the frame: 1 g/cm2 is 100 t/ha."""
WITHOUT_SENSOR = 7
"""The NDVI of every seventh photograph was not measured."""


def draw_fields(
    out: Path,
    seed: int = 0,
    n_train: int = 90,
    n_test: int = 36,
    workers: int | None = None,
) -> None:
    """Draw photographs and tables under `out`, the tables last; one seed gives one set of bytes.

    train.csv has image_path, farm, date, yield_t_ha, ndvi and crop; test.csv has image_path alone.
    test_truth.csv has the columns of train.csv for the photographs of test.csv, whose farms are
    others.
    """
    plan = plan_fields(seed, n_train, n_test)
    table = draw_photographs(out, partial(_draw_field, out, seed), list(enumerate(plan)), workers)
    is_test = table["image_path"].str.startswith("test/")
    table.loc[~is_test & (table.index % WITHOUT_SENSOR == 0), "ndvi"] = np.nan
    table[is_test].to_csv(out / "test_truth.csv", index=False)
    table.loc[is_test, ["image_path"]].to_csv(out / "test.csv", index=False)
    table[~is_test].to_csv(out / "train.csv", index=False)


def plan_fields(seed: int, n_train: int, n_test: int) -> list[Photo]:
    """What will be drawn: 3 to 6 photographs a farm, and no farm is in both splits.

    The farm stands in the image_id, before the underscore.
    """
    # 6 and 7 are streams of draws that the pastures (0 to 4) and their training (5) do not use
    rng = np.random.default_rng([seed, 6])
    photos: list[Photo] = []
    n_farms = 0
    for split, n in (("train", n_train), ("test", n_test)):
        end = len(photos) + n
        for species in cycle(CROPS):
            if len(photos) == end:
                break
            n_farms += 1
            site = _plan_farm(rng, species)
            size = min(int(rng.integers(3, 7)), end - len(photos))
            names = [f"F{n_farms:02d}_{i}" for i in range(size)]
            photos += [_plan_field(rng, name, split, site) for name in names]
    return photos


def _plan_farm(rng: np.random.Generator, species: str) -> Site:
    date = datetime.date(2024, 3, 1) + datetime.timedelta(int(rng.integers(200)))
    return Site(
        state="",
        date=date.isoformat(),
        species=species,
        total_g=40 * rng.lognormal(0, 0.4),
        dead_share=rng.uniform(0.1, 0.4),
        clover_share=SPECIES[species][0] * rng.uniform(0.8, 1.3),
        soil_rgb=mix((94, 70, 54), (120, 94, 72), rng.random()),
        green_rgb=mix((112, 146, 60), (84, 134, 57), rng.random()),
        brightness=rng.uniform(0.95, 1.05),
        contrast=rng.uniform(0.96, 1.04),
        warmth=rng.uniform(-0.03, 0.03),
    )


def _plan_field(
    rng: np.random.Generator,
    image_id: str,
    split: str,
    site: Site,
) -> Photo:
    total_g = float(np.clip(site.total_g * rng.lognormal(0, 0.4), 2, 150))
    dead_g = total_g * site.dead_share
    clover_g = (total_g - dead_g) * site.clover_share
    return Photo(image_id, split, site, total_g - dead_g - clover_g, dead_g, clover_g)


def _draw_field(out: Path, seed: int, numbered: tuple[int, Photo]) -> dict[str, object]:
    """Draw one photograph into its file; its row of the table."""
    number, photo = numbered
    rng = np.random.default_rng([seed, 7, number])
    layers, picture = draw_photo(rng, photo)
    image_path = f"{photo.split}/{photo.image_id}.jpg"
    picture.save(out / image_path, quality=JPEG_QUALITY)
    return {
        "image_path": image_path,
        "farm": photo.image_id.partition("_")[0],
        "date": photo.site.date,
        "yield_t_ha": round(T_HA_PER_G * weigh(layers)["Dry_Total_g"], 4),
        "ndvi": ndvi(rng, layers),
        "crop": CROPS[photo.site.species],
    }
