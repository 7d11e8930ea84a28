"""Photographs predicted by heads that read columns of the table beside them."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import biomass

from featurestore.photos.catalog import read_catalog
from predictor.members.table import Table
from predictor.predictor import Predictor

CONFIG = """
experiment: {name: beside, seed: 1}
targets: {yield_t: {}}
head:
  kind: [ridge, pooled_mlp, cls_gating, attention]
  features: [mean]
  columns: [rain_mm, season]
  shared_hidden: 8
  gate_hidden: 4
trainer: {num_epochs: 3, batch_size: 4}
optimization: {lr: 1e-2, weight_decay: 1e-2}
inference: {tta_indices: [0]}
cv: {n_folds: 2, groups: [plot]}
"""
KINDS = ("ridge", "pooled_mlp", "cls_gating", "attention")


@pytest.fixture(scope="module")
def data(pasture, tmp_path_factory) -> Path:
    """That pasture with wide tables; one photograph of each has no rain."""
    folder = tmp_path_factory.mktemp("beside") / "data"
    shutil.copytree(pasture, folder)
    train = read_catalog(folder / "train.csv")
    n = len(train)
    pd.DataFrame(
        {
            "image_path": train["path"],
            "rain_mm": [None, *range(10, 10 * n, 10)],
            "season": ["dry", "wet"] * (n // 2),
            "plot": list("aabbcc"),
            "yield_t": train["Dry_Total_g"],
        }
    ).to_csv(folder / "train.csv", index=False)
    test = read_catalog(folder / "test.csv")
    pd.DataFrame(
        {"image_path": test["path"], "rain_mm": [25, None], "season": ["wet", "monsoon"]}
    ).to_csv(folder / "test.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def sweep(data, built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("beside_sweep")
    (folder / "beside.yaml").write_text(CONFIG)
    labels = ["--csv", data / "train.csv", "--relabel"]
    biomass("store", "extend", built, folder / "labelled.h5", *labels)
    biomass(
        *("train", "--config", folder / "beside.yaml", "--store", folder / "labelled.h5"),
        *("--out", folder / "runs", "--device", "cpu"),
    )
    return next((folder / "runs").iterdir())


def run_of(sweep: Path, kind: str) -> Path:
    return next(sweep.glob(f"0*kind-{kind}*"))


def predicted(out: Path, *options: object) -> pd.Series:
    biomass("predict", "--out", out, "--tta", 1, "--device", "cpu", *options)
    return pd.read_csv(out).set_index("image_id")["yield_t"]


def changed(data: Path, folder: Path, **cells: object) -> Path:
    """test.csv with other cells; None drops a column."""
    table = pd.read_csv(data / "test.csv")
    for name, values in cells.items():
        table = table.drop(columns=name) if values is None else table.assign(**{name: values})
    table.to_csv(folder / "test.csv", index=False)
    return folder / "test.csv"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_read_at_prediction_as_in_training(kind, data, sweep, tmp_path):
    """Also for gaps and words, by every head of the folds."""
    told = biomass(
        *("predict", "--oof", "--run", run_of(sweep, kind), "--data", data),
        *("--out", tmp_path / "oof.csv", "--device", "cpu"),
    )
    assert "greatest difference" in told.output


@pytest.mark.parametrize("kind", ["ridge", "pooled_mlp"])
def test_a_gap_is_the_mean_and_an_unknown_word_is_none(kind, data, sweep, tmp_path):
    """The mean is that of the images that the head learned from."""
    run = run_of(sweep, kind)
    given = ["--run", run, "--data", data, "--only-folds", 0]
    plain = predicted(tmp_path / "a.csv", *given)
    train = read_catalog(data / "train.csv")
    fold = pd.read_csv(sweep / "folds.csv").set_index("image_id")["r00"]
    learned = train["image_id"].map(fold) != 0
    mean = train["rain_mm"][learned].mean()
    filled = changed(data, tmp_path, rain_mm=[25, mean], season=["wet", ""])
    same = predicted(tmp_path / "b.csv", *given, "--csv", filled)
    np.testing.assert_allclose(plain, same, rtol=1e-5)
    wetter = changed(data, tmp_path, rain_mm=[50, mean])
    other = predicted(tmp_path / "c.csv", *given, "--csv", wetter)
    assert abs(other.iloc[0] - plain.iloc[0]) > 1e-4
    assert other.iloc[1] == pytest.approx(plain.iloc[1], rel=1e-5)


@pytest.mark.parametrize(
    "cells, why",
    [
        ({"season": None}, "no column season, which the heads read beside the photographs"),
        ({"rain_mm": ["much", "25"]}, "rain_mm must be a number"),
    ],
)
def test_a_table_without_them_is_refused_before_any_work(
    cells, why, data, sweep, tmp_path, monkeypatch
):
    monkeypatch.setattr(Predictor, "stage", lambda *_: pytest.fail("a backbone was loaded"))
    csv = changed(data, tmp_path, **cells)
    given = ["--data", data, "--csv", csv, "--device", "cpu"]
    refused = biomass(
        *("predict", "--run", run_of(sweep, "ridge"), "--out", tmp_path / "o.csv", *given), code=3
    )
    assert why in refused.output and str(csv) in refused.output
    assert not (tmp_path / "o.csv").exists()


def test_photographs_without_a_table_are_refused(sweep):
    with pytest.raises(Exception, match="read rain_mm, season beside the photographs"):
        Predictor.load(run_of(sweep, "ridge"), device="cpu")


def test_a_stopped_prediction_keeps_no_photograph_whose_row_changed(data, sweep, tmp_path):
    """Only the photograph with another row is predicted anew, and its line of before goes next."""
    run = run_of(sweep, "ridge")
    counts = []
    for rain in ([25, 30], [25, 40], [25, 40]):
        csv = changed(data, tmp_path, rain_mm=rain)
        predictor = Predictor.load(run, table=csv, device="cpu")
        table = read_catalog(csv)
        paths = {row.image_id: data / row.path for row in table.itertuples()}
        kept = predictor.journal(tmp_path / "kept", 1, resume=True)
        predictor.predict(paths, 1, progress=False, kept=kept)
        counts.append(len((tmp_path / "kept").read_text().splitlines()))
    assert counts == [2, 3, 2]


def test_a_bundle_reads_them_too(data, sweep, tmp_path):
    run = run_of(sweep, "pooled_mlp")
    biomass("bundle", run, "--out", tmp_path / "bundle")
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert "needs the columns rain_mm, season" in readme
    ours = predicted(tmp_path / "a.csv", "--run", run, "--data", data)
    theirs = predicted(tmp_path / "b.csv", "--bundle", tmp_path / "bundle", "--data", data)
    pd.testing.assert_series_equal(ours, theirs)
    csv = changed(data, tmp_path, season=None)
    given = ["--data", data, "--csv", csv, "--out", tmp_path / "c.csv", "--device", "cpu"]
    refused = biomass("predict", "--bundle", tmp_path / "bundle", *given, code=3)
    assert "no column season" in refused.output


def test_a_table_that_no_head_reads_is_not_opened():
    assert Table.of([], Path("nowhere.csv")).images is None
