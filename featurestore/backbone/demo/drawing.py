"""The drawn pasture: a small data set in the contest's layout, whose masses are known.

A leaf is an outline in centimetres; its mass is its area times a mass per square centimetre. What
overlaps is hidden but weighed, as in a real quadrat. Reading the CSVs back is `catalog`'s, decoding
is `images`'.
"""

import datetime
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from featurestore.backbone.demo.leaves import (
    QUADRAT_CM,
    RGB,
    Layer,
    area_cm2,
    sow_blades,
    sow_clover,
)
from featurestore.disk.threads import Pool
from featurestore.disk.usable import usable_cpus

TARGETS = ["Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g"]
WIDTH, HEIGHT = 768, 384
# leaves are drawn this much larger, then averaged down: Pillow draws without anti-aliasing
FINE = 2
PIXELS_PER_CM = WIDTH * FINE / QUADRAT_CM[0]
JPEG_QUALITY = 90
# of leaf; a pasture leaf has 0.003-0.006, the rest stands for stems, which are not drawn
G_PER_CM2 = 0.015

# The numbers below are ours, chosen for masses spread like the contest's that even a random
# backbone can see.
# Ten sites hold the contest's mix of States, and the first four sites of a split already hold all
# of them.
STATES = ["WA", "Tas", "Vic", "NSW", "Tas", "Vic", "Tas", "NSW", "Vic", "Tas"]
TOTAL_G = {"Tas": 36.0, "Vic": 40.0, "NSW": 52.0, "WA": 30.0}  # median over a State's sites
# in WA no dead matter was sorted out
DEAD_SHARE = {"Tas": 0.22, "Vic": 0.28, "NSW": 0.42, "WA": 0.0}
SPECIES = {  # clover's share of the mass, length and width of a blade in cm
    "Ryegrass": (0.0, 8.0, 0.34),
    "Ryegrass_Clover": (0.25, 7.5, 0.34),
    "Fescue": (0.0, 9.0, 0.40),
    "Phalaris_Clover": (0.20, 9.0, 0.40),
    "WhiteClover": (0.60, 7.0, 0.34),
    "SubcloverDalkeith": (0.40, 7.0, 0.34),
}
STRAW = (206, 182, 132)


@dataclass(frozen=True)
class Site:
    """One visit (State and date): what its photographs share.

    Colours are in 0-255; warmth 0 is neutral light.
    """

    state: str
    date: str
    species: str
    total_g: float
    dead_share: float
    clover_share: float
    soil_rgb: RGB
    green_rgb: RGB
    brightness: float
    contrast: float
    warmth: float


@dataclass(frozen=True)
class Photo:
    """One photograph to draw.

    Its masses are what is sown; the true ones are those of the leaves that came up.
    """

    image_id: str
    split: str
    site: Site
    green_g: float
    dead_g: float
    clover_g: float


def draw_pasture(
    out: Path,
    seed: int = 0,
    n_train: int = 120,
    n_test: int = 36,
    workers: int | None = None,
) -> None:
    """Draw photographs and tables under `out`, the tables last.

    One seed gives one set of bytes, whatever `workers` is.

    train.csv, test.csv, sample_submission.csv, train/*.jpg and test/*.jpg are laid out as the
    contest's; test_truth.csv (sample_id, target) is ours: the true masses of the test photographs,
    to score a demonstration with.
    """
    photos = plan_pasture(seed, n_train, n_test)
    write_tables(out, draw_photographs(out, partial(_draw_photo, out, seed), photos, workers))


def draw_photographs(
    out: Path,
    draw: Callable[[Any], Mapping],
    plan: Sequence,
    workers: int | None = None,
) -> pd.DataFrame:
    """Draw what is planned in threads; the wide table.

    draw : takes one of `plan`, saves its photograph in out/train or out/test, returns its row of
        the table.
    """
    for split in ("train", "test"):
        (out / split).mkdir(parents=True, exist_ok=True)
    # on two cores processes took 6.4 to 10.4 s and threads 9.4 to 10.4, but only threads need no
    # __main__ guard
    with Pool(workers or usable_cpus()) as pool:
        return pd.DataFrame(pool.map(draw, plan))


def plan_pasture(seed: int = 0, n_train: int = 120, n_test: int = 36) -> list[Photo]:
    """What will be drawn, in the order of the image ids.

    Sites have 1 to 10 photographs, and none is in both splits.
    """
    rng = np.random.default_rng([seed, 0])
    days = iter(rng.permutation(max(340, n_train + n_test)))  # no two sites share a date
    numbers = iter(100_000_000 + rng.choice(2_000_000_000, n_train + n_test, replace=False))
    photos = []
    for split, n in (("train", n_train), ("test", n_test)):
        # n draws are enough for n photographs; sites that begin behind the last one are empty
        ends = np.minimum(rng.integers(1, 11, n).cumsum(), n)
        sizes = np.diff(ends, prepend=0)
        for state, size in zip(itertools.cycle(STATES), sizes[sizes > 0]):
            site = _plan_site(seed, state, int(next(days)))
            photos += [_plan_photo(seed, int(next(numbers)), split, site) for _ in range(size)]
    return sorted(photos, key=lambda photo: photo.image_id)


def _plan_site(seed: int, state: str, day: int) -> Site:
    rng = np.random.default_rng([seed, 1, day])
    date = datetime.date(2015, 1, 5) + datetime.timedelta(day)
    species = str(rng.choice(list(SPECIES)))
    dry, lush = rng.random(2)
    return Site(
        state=state,
        date=f"{date.year}/{date.month}/{date.day}",
        species=species,
        total_g=TOTAL_G[state] * rng.lognormal(0, 0.5),
        dead_share=DEAD_SHARE[state] * rng.uniform(0.4, 1.6),
        clover_share=SPECIES[species][0] * rng.uniform(0.5, 1.5),
        soil_rgb=mix((94, 70, 54), (120, 94, 72), dry),
        green_rgb=mix((112, 146, 60), (84, 134, 57), lush),
        # brightness of 0.9-1.1 and such cost a ridge on random tokens 0.1 of R2 against none (4
        # seeds, folds by site)
        brightness=rng.uniform(0.95, 1.05),
        contrast=rng.uniform(0.96, 1.04),
        warmth=rng.uniform(-0.03, 0.03),
    )


def _plan_photo(seed: int, number: int, split: str, site: Site) -> Photo:
    rng = np.random.default_rng([seed, 2, number])
    total_g = np.clip(site.total_g * rng.lognormal(0, 0.4), 1, 180)
    dead_share = np.clip(site.dead_share * rng.lognormal(0, 0.3), 0, 0.8)
    dead_g = total_g * dead_share
    clover_share = np.clip(site.clover_share * rng.lognormal(0, 0.3), 0, 0.95)
    clover_g = (total_g - dead_g) * clover_share
    green_g = total_g - dead_g - clover_g
    return Photo(f"ID{number}", split, site, green_g, dead_g, clover_g)


def _draw_photo(out: Path, seed: int, photo: Photo) -> dict[str, object]:
    """Draw one photograph into its file; its row of the wide table."""
    # keyed by the photograph, so threads may draw them in any order
    rng = np.random.default_rng([seed, 3, int(photo.image_id[2:])])
    layers, picture = draw_photo(rng, photo)
    image_path = f"{photo.split}/{photo.image_id}.jpg"
    picture.save(out / image_path, quality=JPEG_QUALITY)
    return {
        "image_id": photo.image_id,
        "image_path": image_path,
        "Sampling_Date": photo.site.date,
        "State": photo.site.state,
        "Species": photo.site.species,
        "Pre_GSHH_NDVI": ndvi(rng, layers),
        "Height_Ave_cm": round(0.7 * _blade_cm(photo) * rng.lognormal(0, 0.2), 4),
        **weigh(layers),
    }


def draw_photo(rng: np.random.Generator, photo: Photo) -> tuple[dict[str, Layer], Image.Image]:
    """The leaves of one photograph, by target, and its picture as the camera sees it."""
    layers = sow_leaves(rng, photo)
    picture = paint(lay_soil(rng, photo.site), list(layers.values()))
    return layers, expose(rng, picture, photo.site)


def _blade_cm(photo: Photo) -> float:
    """Blades are longer where there is more of them, so height says something about mass."""
    return SPECIES[photo.site.species][1] * ((photo.green_g + 5) / 30) ** 0.45


def sow_leaves(rng: np.random.Generator, photo: Photo) -> dict[str, Layer]:
    """The photograph's leaves by target; dead blades are shorter and lie lower."""
    blade_cm, width_cm = _blade_cm(photo), SPECIES[photo.site.species][2]
    clover_cm2, dead_cm2, green_cm2 = (
        g / G_PER_CM2 for g in (photo.clover_g, photo.dead_g, photo.green_g)
    )
    return {
        "Dry_Clover_g": sow_clover(rng, clover_cm2, (0.2, 0.9)),
        "Dry_Dead_g": sow_blades(rng, dead_cm2, 0.8 * blade_cm, 0.9 * width_cm, STRAW, (0, 0.85)),
        "Dry_Green_g": sow_blades(
            rng,
            green_cm2,
            blade_cm,
            width_cm,
            photo.site.green_rgb,
            (0.1, 1),
        ),
    }


def weigh(layers: dict[str, Layer]) -> dict[str, float]:
    """All five targets in grams."""
    of_one_g = 1e4 * G_PER_CM2
    return with_sums({name: round(of_one_g * area_cm2(layer)) for name, layer in layers.items()})


def with_sums(units: dict[str, int]) -> dict[str, float]:
    """All five targets in grams, from clover, dead and green in whole 0.1 mg.

    So the sums hold to the last printed digit.
    """
    units = dict(units)
    units["GDM_g"] = units["Dry_Green_g"] + units["Dry_Clover_g"]
    units["Dry_Total_g"] = units["GDM_g"] + units["Dry_Dead_g"]
    return {name: n / 1e4 for name, n in units.items()}


def ndvi(rng: np.random.Generator, layers: dict[str, Layer]) -> float:
    """An NDVI: it rises with the green cover, saturates, and is as noisy as a hand-held sensor."""
    green_cm2 = area_cm2(layers["Dry_Green_g"]) + area_cm2(layers["Dry_Clover_g"])
    leaf_area_index = green_cm2 / QUADRAT_CM.prod()
    # 0.2 over bare soil, 0.85 under a closed canopy
    index = 0.85 - 0.65 * np.exp(-leaf_area_index) + rng.normal(0, 0.05)
    return round(float(np.clip(index, 0.1, 0.92)), 2)


def mix(a: RGB, b: RGB, share: float) -> RGB:
    return tuple(x + share * (y - x) for x, y in zip(a, b, strict=True))


def lay_soil(rng: np.random.Generator, site: Site) -> Image.Image:
    """Bare ground at FINE resolution: the site's colour under coarse, middle and fine noise."""
    relief = np.ones((HEIGHT, WIDTH), np.float32)
    for cells, strength in ((24, 0.06), (96, 0.09), (WIDTH, 0.12)):
        noise = Image.fromarray(strength * rng.standard_normal((cells // 2, cells), np.float32))
        relief += np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    rgb_HW3 = np.array(site.soil_rgb, np.float32) * relief[..., None]
    soil = Image.fromarray(np.clip(rgb_HW3, 0, 255).astype(np.uint8))
    return soil.resize((WIDTH * FINE, HEIGHT * FINE), Image.Resampling.NEAREST)


def paint(ground: Image.Image, layers: list[Layer]) -> Image.Image:
    """All leaves from the ground up, the low ones in shade; averaged down to the picture's size."""
    leaves = []
    for layer in layers:
        # x and y of each edge point in one row, as Pillow takes them
        n_numbers = 2 * layer.outline_SE2.shape[1]
        outline_SX = layer.outline_SE2.reshape(-1, n_numbers) * PIXELS_PER_CM
        # light falls in from above: what lies on the ground gets 80 % of it
        rgb_S3 = layer.rgb_S3 * (0.8 + 0.2 * layer.level_S[:, None])
        fills = [tuple(rgb) for rgb in rgb_S3.astype(int).tolist()]
        leaves += zip(layer.level_S, outline_SX.tolist(), fills, strict=True)
    draw = ImageDraw.Draw(ground)
    for _, outline, rgb in sorted(leaves, key=itemgetter(0)):
        draw.polygon(outline, fill=rgb)
    return ground.reduce(FINE)


def expose(rng: np.random.Generator, picture: Image.Image, site: Site) -> Image.Image:
    """The site's light, falling off to one side, and the sensor's noise."""
    x = np.asarray(picture, np.float32)
    across_W1 = np.linspace(-1, 1, WIDTH, dtype=np.float32)[:, None]
    fall_off_W1 = 1 + rng.uniform(-0.05, 0.05) * across_W1
    tint_3 = np.array([1 + site.warmth, 1, 1 - site.warmth], np.float32)
    gain_W3 = fall_off_W1 * tint_3 * site.brightness
    noise_HW1 = 3 * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
    # contrast about a middle grey of 110
    x = (x * gain_W3 - 110) * site.contrast + 110 + noise_HW1
    return Image.fromarray(np.clip(x, 0, 255).astype(np.uint8))


def write_tables(out: Path, wide: pd.DataFrame) -> None:
    """The contest's long tables, five rows an image, and the truth it does not publish."""
    long = wide.melt(wide.columns.difference(TARGETS, sort=False), TARGETS, "target_name", "target")
    long = long.sort_values(["image_id", "target_name"])
    long.insert(0, "sample_id", long.pop("image_id") + "__" + long["target_name"])

    is_test = long["image_path"].str.startswith("test/")
    test = long[is_test]
    test[["sample_id", "image_path", "target_name"]].to_csv(out / "test.csv", index=False)
    test[["sample_id", "target"]].to_csv(out / "test_truth.csv", index=False)
    test[["sample_id"]].assign(target=0.0).to_csv(out / "sample_submission.csv", index=False)
    long[~is_test].to_csv(out / "train.csv", index=False)
