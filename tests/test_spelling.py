"""Paths and CSVs as Windows, macOS and German spreadsheets write them."""

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import TINY, biomass
from PIL import Image
from sweeps import config, write_store

from featurestore import FeatureStore
from featurestore.errors import InputError
from featurestore.photos.catalog import read_catalog
from featurestore.photos.find import find_photographs, in_spelling_of, spelled_as
from trainer.loop.grid import SweepConfig
from trainer.loop.prepare import prepare_sweep

NFC = unicodedata.normalize("NFC", "Färm")
NFD = unicodedata.normalize("NFD", "Färm")


def folder(root: Path, on_disk: str, in_csv: str) -> Path:
    """One photograph, and a wide train.csv that names it."""
    file = root / on_disk
    file.parent.mkdir(parents=True)
    Image.fromarray(np.full((64, 128, 3), 120, np.uint8)).save(file)
    (root / "train.csv").write_text(f"image_path,State\n{in_csv},Tas\n")
    return root


def build(data: Path, out: Path) -> FeatureStore:
    biomass("store", "build", "--data", data, "--out", out, "--views", "1", *TINY)
    return FeatureStore.open(out)


@pytest.mark.parametrize(
    "on_disk, in_csv, image_id",
    [
        ("train/a.jpg", "train\\a.jpg", "a"),
        (f"train/{NFD}.jpg", f"train/{NFC}.jpg", NFC),
        (f"train/{NFC}.jpg", f"train/{NFD}.jpg", NFC),
        (f"{NFD}/{NFD}.jpg", f"{NFC}\\{NFC}.jpg", NFC),
        ("train/a\\b.jpg", "train/a\\b.jpg", "b"),
    ],
    ids=["backslash", "decomposed-on-disk", "decomposed-in-csv", "both", "a-backslash-in-a-name"],
)
def test_paths_by_windows_and_mac_find_their_photograph(tmp_path, on_disk, in_csv, image_id):
    data = folder(tmp_path, on_disk, in_csv)
    frame = read_catalog(data / "train.csv")
    assert frame["image_id"].tolist() == [image_id]
    assert find_photographs(frame, data) == [data / on_disk]


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_paths_by_windows_and_mac_make_one_store(tmp_path):
    data = folder(tmp_path / "data", f"train/{NFD}.jpg", f"train\\{NFC}.jpg")
    store = build(data, tmp_path / "f.h5")
    assert store.catalog["image_id"].tolist() == [NFC] and len(store.sealed) == 1
    # saved again, on a Mac
    (data / "train.csv").write_text(f"image_path,State\ntrain/{NFD}.jpg,Tas\n")
    assert (
        "0 of them now"
        in biomass(
            "store", "build", "--data", data, "--out", tmp_path / "f.h5", "--views", "1", *TINY
        ).stdout
    )
    assert biomass("store", "verify", tmp_path / "f.h5", "--data", data)


def test_a_store_keeps_ids_that_were_stems_of_paths_as_written():
    known = pd.DataFrame(
        {"image_id": [NFD, "a\\b", "c"], "path": [f"train/{NFD}.jpg", "a\\b.jpg", "d/c.jpg"]}
    )
    frame = pd.DataFrame(
        {
            "image_id": [NFC, "b", "c", "new"],
            "path": [f"train\\{NFC}.jpg", "a\\b.jpg", "e/c.jpg", "new.jpg"],
        }
    )
    ours = in_spelling_of(frame, known)
    assert ours["image_id"].tolist() == [NFD, "a\\b", "c", "new"]
    # another place is another path
    assert ours["path"].tolist() == [f"train/{NFD}.jpg", "a\\b.jpg", "e/c.jpg", "new.jpg"]
    assert spelled_as(["1"], ["site/1", "1"]) == ["1"] and spelled_as(["1"], ["site/1"]) == ["1"]


@pytest.mark.parametrize(
    "path", ["..\\out.jpg", "C:\\photos\\a.jpg", "\\photos\\a.jpg", "train\\..\\..\\out.jpg"]
)
def test_no_spelling_leads_out_of_the_folder(tmp_path, path):
    (tmp_path / "out.jpg").touch()
    data = folder(tmp_path / "data", "train/a.jpg", path)
    with pytest.raises(InputError, match="lies outside"):
        find_photographs(read_catalog(data / "train.csv"), data)


def test_ids_of_folds_and_images_are_matched_in_both_spellings(tmp_path):
    ids = [f"{NFC}{i}" for i in range(30)]
    store = write_store(tmp_path / "f.h5", labels=lambda frame: frame.assign(image_id=ids))
    decomposed = [unicodedata.normalize("NFD", each) for each in ids]
    pd.DataFrame({"image_id": decomposed, "fold": [i % 10 % 3 for i in range(30)]}).to_csv(
        tmp_path / "folds.csv", index=False
    )
    config(tmp_path, store)
    overrides = {"cv.folds": tmp_path / "folds.csv", "dataset.images": decomposed[:25]}
    assert (
        prepare_sweep(SweepConfig.load(tmp_path / "sweep.yaml", overrides), "cpu")
        .folds["image_id"]
        .tolist()
        == ids[:25]
    )
    biomass("store", "convert", store, tmp_path / "g.h5", "--images", ",".join(decomposed[:2]))
    assert FeatureStore.open(tmp_path / "g.h5").catalog["image_id"].tolist() == ids[:2]


def test_folds_with_semicolons_are_read(tmp_path, store):
    ids = FeatureStore.open(store).catalog["image_id"]
    folds = pd.DataFrame({"image_id": ids, "fold": [i % 10 % 3 for i in range(len(ids))]})
    tables = []
    for separator in (",", ";", "\t"):
        folds.to_csv(tmp_path / "folds.csv", index=False, sep=separator)
        config(tmp_path, store)
        chosen = SweepConfig.load(tmp_path / "sweep.yaml", {"cv.folds": tmp_path / "folds.csv"})
        tables.append(prepare_sweep(chosen, "cpu").folds)
    assert tables[1].equals(tables[0]) and tables[2].equals(tables[0])
