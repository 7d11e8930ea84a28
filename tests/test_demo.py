import hashlib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featurestore.backbone.demo.drawing import draw_pasture, plan_pasture
from featurestore.backbone.demo.leaves import QUADRAT_CM, Layer, area_cm2

TARGETS = ["Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g"]


@pytest.fixture(scope="module")
def pasture(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pasture")
    draw_pasture(out, seed=5, n_train=6, n_test=2, workers=1)
    return out


def hashes(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def masses(path: Path) -> pd.DataFrame:
    """One row an image, in the digits that were printed."""
    rows = pd.read_csv(path, dtype=str)
    rows[["image_id", "target_name"]] = rows["sample_id"].str.split("__", expand=True).to_numpy()
    return rows.pivot(index="image_id", columns="target_name", values="target").map(Decimal)


def site_names(photos, split: str) -> set[tuple[str, str]]:
    return {(photo.site.state, photo.site.date) for photo in photos if photo.split == split}


def test_train_table_is_laid_out_as_the_contests(pasture):
    train = pd.read_csv(pasture / "train.csv")
    assert ",".join(train) == (
        "sample_id,image_path,Sampling_Date,State,Species,Pre_GSHH_NDVI,Height_Ave_cm,"
        "target_name,target"
    )
    assert train["target_name"].tolist() == 6 * TARGETS
    assert train["image_path"].str.fullmatch(r"train/ID\d{9,10}\.jpg").all()
    assert (train["image_path"].str[6:-4] + "__" + train["target_name"]).equals(train["sample_id"])
    assert train["Sampling_Date"].str.fullmatch(r"201\d/[1-9]\d?/[1-9]\d?").all()
    assert train["Pre_GSHH_NDVI"].between(0.1, 0.92).all() and (train["Height_Ave_cm"] > 0).all()


def test_test_tables_name_the_same_rows_and_no_metadata(pasture):
    test, blank, truth = (
        pd.read_csv(pasture / f"{name}.csv") for name in ("test", "sample_submission", "test_truth")
    )
    assert [list(table) for table in (test, blank, truth)] == [
        ["sample_id", "image_path", "target_name"],
        ["sample_id", "target"],
        ["sample_id", "target"],
    ]
    assert len(test) == 10
    assert all(test["sample_id"].equals(table["sample_id"]) for table in (blank, truth))
    assert (blank["target"] == 0).all() and truth["target"].sum() > 0


@pytest.mark.parametrize("table", ["train.csv", "test_truth.csv"])
def test_masses_sum_exactly_as_printed(pasture, table):
    m = masses(pasture / table)
    assert (m["GDM_g"] == m["Dry_Green_g"] + m["Dry_Clover_g"]).all()
    assert (m["Dry_Total_g"] == m["GDM_g"] + m["Dry_Dead_g"]).all()
    assert (m["Dry_Total_g"] > 0).all()


def test_wa_alone_has_no_dead_matter(pasture):
    train = pd.read_csv(pasture / "train.csv")
    wa = train[(train["State"] == "WA") & (train["target_name"] == "Dry_Dead_g")]
    assert len(wa) and (wa["target"] == 0).all()
    assert all((photo.dead_g == 0) == (photo.site.state == "WA") for photo in plan_pasture(seed=5))


def test_photographs_are_the_tables_and_small_2_to_1_rgb_jpegs(pasture):
    files = sorted(str(path.relative_to(pasture)) for path in pasture.rglob("*.jpg"))
    tables = pd.concat([pd.read_csv(pasture / "test.csv"), pd.read_csv(pasture / "train.csv")])
    assert files == sorted(tables["image_path"].unique())
    for name in files:
        with Image.open(pasture / name) as image:
            assert (image.format, image.mode, image.width) == ("JPEG", "RGB", 2 * image.height)
        assert (pasture / name).stat().st_size < 1_000_000


def test_one_seed_one_result_whatever_the_workers(pasture, tmp_path):
    draw_pasture(tmp_path, seed=5, n_train=6, n_test=2, workers=3)
    assert hashes(tmp_path) == hashes(pasture)


def test_another_seed_shares_no_file(pasture, tmp_path):
    draw_pasture(tmp_path, seed=6, n_train=2, n_test=1)
    assert not {name for name in hashes(tmp_path) if name.endswith(".jpg")} & set(hashes(pasture))
    assert not set(hashes(tmp_path).values()) & set(hashes(pasture).values())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_site_is_in_both_splits(seed):
    photos = plan_pasture(seed)
    train, test = site_names(photos, "train"), site_names(photos, "test")
    assert len(train) >= 16 and len(test) >= 5 and not train & test
    assert {state for state, _ in test} == {"Tas", "Vic", "NSW", "WA"}
    assert len({photo.image_id for photo in photos}) == len(photos) == 156


def test_mass_is_of_leaves_with_their_middle_in_the_frame():
    square_E2 = np.array([[0, 0], [2, 0], [2, 2], [0, 2]])
    leaves_SE2 = square_E2 + np.array([[10, 10], [-0.5, 3], [-1.5, 3], QUADRAT_CM])[:, None]
    assert area_cm2(Layer(leaves_SE2, np.zeros((4, 3)), np.zeros(4))) == 8
