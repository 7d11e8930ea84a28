"""`--csv FILE` instead of the data folder's own table; paths start from the folder all the same."""

import shutil

import pandas as pd
import pytest
from commands import TINY, biomass

from featurestore import FeatureStore
from featurestore.photos.catalog import read_catalog


@pytest.fixture
def photographs(pasture, tmp_path):
    """A folder of photographs without tables."""
    return shutil.copytree(pasture, tmp_path / "data", ignore=shutil.ignore_patterns("*.csv"))


def german(pasture, path, **columns):
    """The pasture's train.csv as one target for each photograph, saved by a German spreadsheet."""
    frame = read_catalog(pasture / "train.csv")[["path", "Dry_Total_g"]].assign(**columns)
    frame.to_csv(path, index=False, sep=";", decimal=",")
    return path


def test_a_store_is_built_from_another_table(pasture, photographs, tmp_path):
    labels = german(pasture, tmp_path / "labels.csv")
    out = tmp_path / "f.h5"
    build = ["store", "build", "--data", photographs, "--csv", labels, "--out", out, *TINY]
    said = biomass(*build, "--views", "plain").stderr
    assert f"{labels}: read with separator ; and decimal comma\n" in said
    catalog = FeatureStore.open(out).catalog
    expected = read_catalog(pasture / "train.csv")
    assert (catalog["Dry_Total_g"] == expected["Dry_Total_g"]).all()
    assert catalog["path"].tolist() == expected["path"].tolist()


def test_other_labels_need_no_photographs(pasture, built, tmp_path):
    labels = german(pasture, tmp_path / "labels.csv", Paddock="north")
    biomass("store", "extend", built, tmp_path / "o.h5", "--csv", labels, "--relabel")
    catalog = FeatureStore.open(tmp_path / "o.h5").catalog
    assert (catalog["Paddock"] == "north").all() and "GDM_g" not in catalog

    more = pd.concat([pd.read_csv(labels, sep=";"), pd.DataFrame({"path": ["new.jpg"]})])
    more.to_csv(labels, index=False, sep=";")
    extend = ["store", "extend", built, tmp_path / "p.h5", "--csv", labels, "--relabel"]
    assert "1 image needs its photograph; give --data" in biomass(*extend, code=2).stderr


def test_predict_takes_another_table(pasture, photographs, sweep, tmp_path):
    rows = pd.read_csv(pasture / "test.csv")
    first = rows[rows["image_path"] == rows["image_path"][0]]
    first.to_csv(tmp_path / "some.csv", index=False)
    some = tmp_path / "some.csv"
    predict = ["predict", "--data", photographs, "--csv", some, "--sweep", sweep, "--tta", 1]

    out = tmp_path / "s.csv"
    biomass(*predict, "--device", "cpu", "--out", out)
    assert pd.read_csv(out)["sample_id"].tolist() == first["sample_id"].tolist()
    assert "is read to predict" in biomass(*predict, "--out", some, code=2).stderr


def test_oof_takes_it_for_the_training_table(pasture, photographs, sweep, tmp_path):
    labels = german(pasture, tmp_path / "labels.csv")
    predict = ["predict", "--oof", "--data", photographs, "--sweep", sweep, "--device", "cpu"]
    out = tmp_path / "oof.csv"
    assert "train.csv: No such file" in biomass(*predict, "--out", out, code=3).stderr
    biomass(*predict, "--csv", labels, "--out", out)
    assert set(pd.read_csv(out)["image_id"]) == set(read_catalog(labels)["image_id"])
