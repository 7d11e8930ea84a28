"""The drawn cover: its tables, what a mass is, and how strange the ground is."""

import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from featurestore.backbone.demo.leaves import QUADRAT_CM, Layer

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from _cover import (  # noqa: E402
    FULL_G,
    LEVEL_COVER,
    cover_of,
    draw_cover,
    masses_of_cover,
    plan_cover,
)


def squares(level: float, *corners_cm: tuple[float, float, float]) -> Layer:
    """Square leaves (x, y, side)."""
    outlines = [[(x, y), (x + a, y), (x + a, y + a), (x, y + a)] for x, y, a in corners_cm]
    outline_SE2 = np.array(outlines, float).reshape(-1, 4, 2)
    n = len(outline_SE2)
    return Layer(outline_SE2, np.full((n, 3), 90.0), np.full(n, level))


def test_cover_counts_what_is_seen_once_and_by_the_leaf_on_top():
    leaves = {
        "Dry_Clover_g": squares(0.9, (10, 10, 7)),  # hides half of the green square
        "Dry_Dead_g": squares(0.0),
        "Dry_Green_g": squares(0.2, (13.5, 10, 7), (40, 10, 7), (40, 10, 7)),
    }
    found = cover_of(leaves)
    whole = QUADRAT_CM.prod()
    # Pillow counts the pixels on the edges of a polygon too: 0.05 cm
    assert found["Dry_Clover_g"] == pytest.approx(49 / whole, rel=0.02)
    assert found["Dry_Green_g"] == pytest.approx((49 + 49 / 2) / whole, rel=0.02)
    assert found["Dry_Dead_g"] == 0


def test_mass_levels_off_with_cover():
    third = LEVEL_COVER * np.log(3 / 2)  # where exp(-cover / LEVEL_COVER) is 2/3
    found = masses_of_cover({"Dry_Clover_g": third, "Dry_Dead_g": 2 * third, "Dry_Green_g": 0.0})
    assert found["Dry_Clover_g"] == FULL_G / 3
    assert found["Dry_Dead_g"] == round(FULL_G * 5 / 9, 4)
    assert found["GDM_g"] == FULL_G / 3 and found["Dry_Green_g"] == 0


@pytest.fixture(scope="module")
def cover(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cover")
    draw_cover(out, seed=5, n_train=6, n_sites=4, workers=1)
    return out


def test_tables_are_the_contests_and_masses_sum_as_printed(cover):
    rows = pd.read_csv(cover / "train.csv", dtype=str)
    rows["image_id"] = rows["sample_id"].str.split("__").str[0]
    m = rows.pivot(index="image_id", columns="target_name", values="target").map(Decimal)
    assert len(m) == 6 and rows.groupby(["State", "Sampling_Date"]).ngroups == 4
    assert (m["GDM_g"] == m["Dry_Green_g"] + m["Dry_Clover_g"]).all()
    assert (m["Dry_Total_g"] == m["GDM_g"] + m["Dry_Dead_g"]).all()
    assert pd.read_csv(cover / "test.csv").empty


def test_one_seed_gives_one_set_of_bytes_whatever_the_workers(cover, tmp_path):
    draw_cover(tmp_path, seed=5, n_train=6, n_sites=4, workers=2)
    files = sorted(path.relative_to(cover) for path in cover.rglob("*") if path.is_file())
    assert len(files) == 6 + 4
    for file in files:
        assert (tmp_path / file).read_bytes() == (cover / file).read_bytes()


def test_photographs_of_a_site_share_its_ground_and_light():
    plan = plan_cover(seed=1, n_train=50, n_sites=10)
    grounds = {}
    for photo, ground in plan:
        grounds.setdefault(photo.site.date, set()).add((photo.site, ground))
    assert len(grounds) == 10 and all(len(shared) == 1 for shared in grounds.values())
    light = [site.brightness for ((site, _),) in map(tuple, grounds.values())]
    assert max(light) - min(light) > 0.2  # the pasture's sites differ by at most .1
