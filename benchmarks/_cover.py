"""The drawn cover: a second data set, on strange ground, whose masses follow what is seen.

Plants, camera and tables are those of `drawing`. Soil, stones, litter and light differ strongly
from site to site, there are few sites, and a mass levels off with the share of the picture that its
plants cover, where the pasture's adds up leaf by leaf, hidden or not.
"""

import datetime
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from featurestore.backbone.demo.drawing import (
    FINE,
    HEIGHT,
    JPEG_QUALITY,
    SPECIES,
    STATES,
    WIDTH,
    Photo,
    Site,
    draw_photographs,
    expose,
    lay_soil,
    mix,
    paint,
    sow_leaves,
    with_sums,
    write_tables,
)
from featurestore.backbone.demo.leaves import QUADRAT_CM, RGB, Layer, scatter, sow_blades, tint
from featurestore.backbone.demo.pastures import MASSES

CLOVER, DEAD, GREEN = MASSES
FULL_G = 60.0
"""What a mass levels off towards; a component alone on the whole picture has .92 of it."""
LEVEL_COVER = 0.4
"""Share of the picture that gives 1 - 1/e of it."""

# Our choice: grounds that a farm could have.
SOILS: list[RGB] = [
    (52, 44, 40),  # black clay
    (94, 70, 54),  # the pasture's brown
    (150, 82, 52),  # red earth
    (176, 150, 112),  # pale sand
    (112, 110, 106),  # grey silt
]
STONES: list[RGB] = [
    (150, 148, 144),  # granite
    (196, 186, 166),  # limestone
    (90, 86, 84),  # basalt
    (170, 120, 90),  # ironstone
]
LITTERS: list[RGB] = [
    (92, 66, 46),  # bark
    (150, 112, 78),  # fresh leaves
    (128, 122, 112),  # weathered ones
]
CORNERS = 10  # of a stone's outline


@dataclass(frozen=True)
class Ground:
    """What lies under a site's plants and is not weighed.

    Areas are those of the mean photograph of the site, as shares of the quadrat.
    """

    stone_share: float
    stone_cm: float
    stone_rgb: RGB
    litter_share: float
    litter_cm: float
    litter_rgb: RGB


def draw_cover(
    out: Path, seed: int = 0, n_train: int = 120, n_sites: int = 12, workers: int | None = None
) -> None:
    """Draw photographs and tables under `out`, the tables last, in the contest's layout.

    One seed gives one set of bytes, whatever `workers` is. There are no test photographs.
    """
    plan = plan_cover(seed, n_train, n_sites)
    write_tables(out, draw_photographs(out, partial(_draw_photo, out, seed), plan, workers))


def plan_cover(seed: int, n_train: int, n_sites: int) -> list[tuple[Photo, Ground]]:
    """What will be drawn, in the order of the image ids; sites have about equally many."""
    rng = np.random.default_rng([seed, 10])
    days = rng.permutation(340)[:n_sites]
    numbers = 100_000_000 + rng.choice(2_000_000_000, n_train, replace=False)
    sites = []
    for s, day in enumerate(days.tolist()):
        state = STATES[s % len(STATES)]
        sites.append(_plan_site(seed, state, day))

    plan = []
    for i, number in enumerate(numbers.tolist()):
        site, ground = sites[i % n_sites]
        photo = _plan_photo(seed, number, site)
        plan.append((photo, ground))
    return sorted(plan, key=lambda each: each[0].image_id)


def _plan_site(seed: int, state: str, day: int) -> tuple[Site, Ground]:
    rng = np.random.default_rng([seed, 11, day])
    date = datetime.date(2015, 1, 5) + datetime.timedelta(day)
    species = str(rng.choice(list(SPECIES)))
    site = Site(
        state=state,
        date=f"{date.year}/{date.month}/{date.day}",
        species=species,
        total_g=40 * rng.lognormal(0, 0.4),
        dead_share=rng.uniform(0.05, 0.5),
        clover_share=rng.uniform(0.0, 0.5),
        soil_rgb=mix(*_two_of(rng, SOILS), rng.uniform(0, 0.5)),
        green_rgb=mix((112, 146, 60), (84, 134, 57), rng.random()),
        brightness=rng.uniform(0.75, 1.25),
        contrast=rng.uniform(0.8, 1.2),
        warmth=rng.uniform(-0.12, 0.12),
    )
    ground = Ground(
        stone_share=rng.choice([0, 1]) * rng.uniform(0.05, 0.4),
        stone_cm=rng.uniform(1, 5),
        stone_rgb=mix(*_two_of(rng, STONES), rng.uniform(0, 0.5)),
        litter_share=rng.choice([0, 1]) * rng.uniform(0.1, 0.5),
        litter_cm=rng.uniform(2, 6),
        litter_rgb=mix(*_two_of(rng, LITTERS), rng.uniform(0, 0.5)),
    )
    return site, ground


def _two_of(rng: np.random.Generator, colours: list[RGB]) -> list[RGB]:
    return [colours[i] for i in rng.choice(len(colours), 2, replace=False)]


def _plan_photo(seed: int, number: int, site: Site) -> Photo:
    """Cover differs more within a site than between sites, as where a herd has grazed in part."""
    rng = np.random.default_rng([seed, 12, number])
    total_g = np.clip(site.total_g * rng.lognormal(0, 0.7), 1, 180)
    dead_share = np.clip(site.dead_share * rng.lognormal(0, 0.4), 0, 0.8)
    clover_share = np.clip(site.clover_share * rng.lognormal(0, 0.4), 0, 0.95)
    dead_g = total_g * dead_share
    living_g = total_g - dead_g
    clover_g = living_g * clover_share
    return Photo(
        image_id=f"ID{number}",
        split="train",
        site=site,
        green_g=living_g - clover_g,
        dead_g=dead_g,
        clover_g=clover_g,
    )


def _draw_photo(out: Path, seed: int, plan: tuple[Photo, Ground]) -> dict[str, object]:
    """Draw one photograph into its file; its row of the wide table."""
    photo, ground = plan
    rng = np.random.default_rng([seed, 13, int(photo.image_id[2:])])
    lying = lay(rng, ground)
    leaves = sow_leaves(rng, photo)
    soil = lay_soil(rng, photo.site)
    painted = paint(soil, [*lying, *leaves.values()])
    picture = expose(rng, painted, photo.site)
    image_path = f"train/{photo.image_id}.jpg"
    picture.save(out / image_path, quality=JPEG_QUALITY)

    covers = cover_of(leaves)
    living = covers[GREEN] + covers[CLOVER]
    ndvi = 0.2 + 0.65 * living + rng.normal(0, 0.05)
    return {
        "image_id": photo.image_id,
        "image_path": image_path,
        "Sampling_Date": photo.site.date,
        "State": photo.site.state,
        "Species": photo.site.species,
        "Pre_GSHH_NDVI": round(float(np.clip(ndvi, 0, 1)), 2),
        "Height_Ave_cm": round(5 * rng.lognormal(living, 0.2), 4),
        **masses_of_cover(covers),
    }


def lay(rng: np.random.Generator, ground: Ground) -> list[Layer]:
    """Stones and litter of one photograph, below every leaf: each photograph has its own amount."""
    quadrat_cm2 = QUADRAT_CM.prod()
    stone_cm2 = ground.stone_share * quadrat_cm2 * rng.lognormal(0, 0.4)
    litter_cm2 = ground.litter_share * quadrat_cm2 * rng.lognormal(0, 0.4)
    stones = _sow_stones(rng, stone_cm2, ground.stone_cm, ground.stone_rgb)
    litter = sow_blades(rng, litter_cm2, ground.litter_cm, 0.5, ground.litter_rgb, (0, 1))
    # levels of leaves begin at 0
    stones = replace(stones, level_S=stones.level_S - 2)
    litter = replace(litter, level_S=litter.level_S - 1)
    return [stones, litter]


def _sow_stones(rng: np.random.Generator, sown_cm2: float, size_cm: float, rgb: RGB) -> Layer:
    """Rounded outlines of uneven radius, about so much area of them in the frame."""
    stone_cm2 = np.pi / 4 * size_cm**2
    # as many more as frame and margin are larger than the frame
    n = rng.poisson(1.4 * sown_cm2 / stone_cm2)
    radius_S1 = size_cm / 2 * rng.lognormal(0, 0.35, (n, 1))
    radius_SE = radius_S1 * rng.uniform(0.8, 1.1, (n, CORNERS))
    turn_E = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    way_E2 = np.stack([np.cos(turn_E), np.sin(turn_E)], -1)
    around_SE2 = radius_SE[..., None] * way_E2
    outline_SE2 = scatter(rng, n)[:, None] + around_SE2
    return Layer(outline_SE2, tint(rng, n, rgb), rng.random(n))


def cover_of(leaves: dict[str, Layer]) -> dict[str, float]:
    """Share of the picture, in [0, 1], on which each kind of leaf is what one sees."""
    marked = []
    for channel, name in enumerate(MASSES):
        layer = leaves[name]
        # as `paint` takes light from what lies low, so much more is given
        light_S1 = 0.8 + 0.2 * layer.level_S[:, None]
        marked.append(replace(layer, rgb_S3=255.5 * np.eye(3)[channel] / light_S1))
    black = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE))
    painted_HW3 = np.asarray(paint(black, marked), np.float64)
    share_3 = painted_HW3.mean((0, 1)) / 255
    return dict(zip(MASSES, share_3.tolist(), strict=True))


def masses_of_cover(covers: dict[str, float]) -> dict[str, float]:
    """All five targets in grams."""
    units = {}
    for name, share in covers.items():
        mass_g = FULL_G * -np.expm1(-share / LEVEL_COVER)
        units[name] = round(1e4 * mass_g)
    return with_sums(units)
