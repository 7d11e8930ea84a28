"""`biomass doctor DATA` says of a data folder what build, train and predict would."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from commands import biomass

from featurestore.explore import doctor
from featurestore.explore.doctor import FAIL, OK, WARN
from featurestore.photos.catalog import read_catalog
from featurestore.photos.labels import label_remarks


@pytest.fixture
def data(pasture, tmp_path):
    return shutil.copytree(pasture, tmp_path / "data")


def found(folder: Path) -> list[tuple[str, str, str]]:
    """Name, level and text of each line about the data."""
    names = ("train.csv", "train photos", "test.csv", "test photos", "targets", "labels")
    names += ("sites", "same photos", "data")
    return [
        (check.name, check.level, f"{check.found}; {check.advice}")
        for check in doctor.check_place(folder, [])
        if check.name in names
    ]


def the(folder: Path, name: str, level: str) -> str:
    """The one text of that name and level."""
    (text,) = [text for each, at, text in found(folder) if (each, at) == (name, level)]
    return text


def relabelled(data: Path, **columns: object) -> Path:
    """The folder with other columns in a wide train.csv; None takes one out."""
    frame = read_catalog(data / "train.csv")
    frame = frame.assign(**columns).drop(
        columns=[name for name, value in columns.items() if value is None]
    )
    frame.to_csv(data / "train.csv", index=False)
    return data


def test_a_sound_folder_by_its_name_or_its_tables(data, torch_untried):
    assert {(name, level) for name, level, _ in found(data) if name != "sites"} == {
        ("train.csv", OK),
        ("train photos", OK),
        ("targets", OK),
        ("labels", OK),
        ("test.csv", OK),
        ("test photos", OK),
    }
    assert the(data, "sites", WARN).startswith(
        "2 sites of State and Sampling_Date, fewer than the 5 folds that cv.n_folds is by default"
    )
    assert found(data / "train.csv") == found(data)
    checks = json.loads(biomass("doctor", data, "--json").stdout)
    assert [each["found"] for each in checks if each["name"] == "train.csv"] == ["6 images"]
    # as the README's quick start
    assert biomass("doctor", data).stderr.endswith(
        f"next: biomass store build --data {data} --out features.h5 "
        "--backbone vit_demo_patch16_dinov3 --image-size 192 --views 4\n"
    )


def test_a_missing_and_a_damaged_photograph_are_named(data, torch_untried):
    first, second, *_ = sorted((data / "train").iterdir())
    first.unlink()
    second.write_text("<html>404</html>")
    next((data / "test").iterdir()).unlink()
    said = the(data, "train photos", FAIL)
    assert (
        "2 of 6 cannot be used, 1 of them missing" in said
        and first.name in said
        and second.name in said
    )
    assert "--on-error mean" in the(data, "test photos", FAIL)
    lines = biomass("doctor", data, code=3).stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if "train photos" in line)
    assert lines[at].endswith(
        "1 of them missing; put the missing ones there and mend or replace the others, or "
        "build with --skip-missing:"
    )
    assert [line.split(":")[0].strip() for line in lines[at + 1 : at + 3]] == [
        str(first),
        str(second),
    ]


def test_photographs_of_equal_bytes_are_named(data):
    first, second, third, *_ = sorted((data / "train").iterdir())
    second.write_bytes(first.read_bytes())
    # of one size, and equal at their start
    third.write_bytes(first.read_bytes()[:-1] + b"x")
    said = the(data, "same photos", WARN)
    assert said.startswith("photographs with the same bytes under several ids; folds will keep")
    assert said.split(":")[1].split("; ")[0].strip() == f"{first.stem} = {second.stem}"


def test_a_train_csv_of_one_letter(data):
    (data / "train.csv").write_text("x")
    assert "no rows; expected a header line and at least one image" in the(data, "train.csv", FAIL)
    (data / "test.csv").write_text("image_path|target_name\na.jpg|1,5\n")
    assert "its cells are separated by '|'" in the(data, "test.csv", FAIL)


def test_labels_that_train_would_refuse(data):
    known = read_catalog(data / "train.csv")["GDM_g"]
    assert "1 image lacks a mass" in the(
        relabelled(data, GDM_g=[*known[:-1], None]), "labels", FAIL
    )


def test_a_table_of_other_targets_is_told_what_could_be_learned(data):
    frame = read_catalog(data / "train.csv")
    mass = ["1.5", "2", "lost", "3", "4.5", ""]
    table = pd.DataFrame({"image_path": frame["path"], "ndvi": [-0.5, 1, 2, 2.5, 1, None]})
    table.assign(mass=mass, crop=["rye", "oats"] * 3).to_csv(data / "train.csv", index=False)
    assert {name for name, _, _ in found(data)} >= {"targets", "sites"}
    assert "labels" not in {name for name, _, _ in found(data)}
    assert the(data, "targets", OK) == (
        "ndvi (level, 5 of 6 photographs), crop (class of 2 values, 6 of 6 photographs); a "
        "config names what is to be learned, as configs/start.yaml does: "
        "`targets: {ndvi: {kind: level}}`"
    )
    assert "mass is text, since 1 of its 5 cells are no numbers" in the(data, "targets", WARN)
    frame[["path"]].to_csv(data / "train.csv", index=False)
    assert "none: no column has numbers that differ" in the(data, "targets", FAIL)


def test_without_one_of_the_five_masses_the_others_are_targets_and_need_not_add_up(data):
    total = read_catalog(data / "train.csv")["Dry_Total_g"] * 10
    lacking = relabelled(data, GDM_g=None, Dry_Total_g=total, Height_Ave_cm="tall")
    assert "Dry_Total_g (amount, 6 of 6 photographs)" in the(lacking, "targets", OK)
    assert "`targets: csiro` would need GDM_g too" in the(lacking, "targets", WARN)
    assert "labels" not in {name for name, _, _ in found(lacking)}
    assert list(label_remarks(read_catalog(data / "train.csv"))) == []


def test_sums_that_are_off(data):
    total = read_catalog(data / "train.csv")["Dry_Total_g"]
    said = the(relabelled(data, Dry_Total_g=total * 10), "labels", FAIL)
    assert "6 masses are not the sum of their parts" in said and "train refuses 6" in said
    assert "train accepts them" in the(relabelled(data, Dry_Total_g=total + 0.3), "labels", WARN)


def test_heights_of_text_and_masses_of_zero(data):
    assert "6 cells are no numbers" in the(relabelled(data, Height_Ave_cm="tall"), "labels", WARN)
    zero = dict.fromkeys(["Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g"], 0)
    assert "all masses are 0" in the(relabelled(data, Height_Ave_cm=1, **zero), "labels", WARN)


def test_sites(data):
    dates = [f"2015/9/{day}" for day in range(1, 7)]
    assert the(relabelled(data, Sampling_Date=dates), "sites", OK).startswith(
        "6 sites of State and Sampling_Date"
    )
    assert "could be swapped" in the(
        relabelled(data, Sampling_Date=[*dates[:4], "3/4/2015", "2015-04-03"]), "sites", FAIL
    )
    texts = relabelled(data, Sampling_Date=[*dates[:5], "yesterday"])
    assert "1 of 6 cells is no date" in the(texts, "sites", WARN)
    assert "'yesterday'" in the(texts, "sites", WARN)
    assert "train with cv.groups none" in the(
        relabelled(data, Sampling_Date="2015/9/4", State="Tas"), "sites", WARN
    )
    farms = relabelled(data, Sampling_Date=None, Farm=["North", "South"] * 3)
    said = the(farms, "sites", WARN)
    assert "each photograph is held out on its own unless cv.groups names columns: Spec" in said
    assert "Farm (2)" in said and "name what these share in cv.groups" in said


def test_photographs_that_the_default_crop_refuses(data, torch_untried):
    from PIL import Image

    file = sorted((data / "train").iterdir())[0]
    Image.new("RGB", (100, 100)).save(file)
    assert "--crop squash" in the(data, "train photos", WARN)
    assert "--out features.h5 --crop squash --backbone" in biomass("doctor", data).stderr
    (data / "train.csv").write_text("image_path\n../out.jpg\n")
    assert "lies outside" in the(data, "train photos", FAIL)


def test_a_folder_of_test_photographs_alone(data):
    (data / "train.csv").unlink()
    assert {name for name, _, _ in found(data)} == {"test.csv", "test photos"}


def test_nothing_of_a_folder_without_tables(tmp_path):
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "other.csv")
    assert found(tmp_path) == []
