"""Pictures and the report of other targets than the contest's."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from PIL import Image

from featurestore.photos.catalog import read_catalog
from featurestore.photos.decode import decode
from featurestore.photos.targets import Targets
from predictor.extras.picture import draw_picture
from predictor.extras.report import About, Entry, write_report
from predictor.extras.shown import Shown
from predictor.predictor import Predictor
from predictor.predictor import test_photographs as photographs_of

CONFIG = """
experiment: {name: other, seed: 1}
targets:
  yield_t: {sum_of: [grain_t, straw_t]}
  grain_t: {}
  straw_t: {}
  soil_c: {kind: level, weight: LEVEL}
  cover: {kind: share}
  crop: {kind: class, auxiliary: true}
head: {kind: [density, cls_gating, ridge], shared_hidden: 8, gate_hidden: 4}
trainer: {num_epochs: 2, batch_size: 4}
optimization: {lr: 1e-2, weight_decay: 1e-2}
inference: {tta_indices: [0]}
cv: {n_folds: 2, groups: [plot]}
"""


@pytest.fixture(scope="module")
def data(pasture, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "data"
    shutil.copytree(pasture, folder)
    train = read_catalog(folder / "train.csv")
    n = len(train)
    labels = pd.DataFrame(
        {
            "image_path": train["path"],
            "plot": list("aabbcc"),
            "grain_t": train["Dry_Green_g"],
            "straw_t": train["Dry_Dead_g"],
            "yield_t": train["Dry_Green_g"] + train["Dry_Dead_g"],
            "soil_c": np.linspace(-4, -1, n),
            "cover": np.linspace(0.1, 0.9, n),
            "crop": ["oat", "<rye>"] * (n // 2),
        }
    )
    labels.to_csv(folder / "train.csv", index=False)
    test = read_catalog(folder / "test.csv")
    test[["path"]].rename(columns={"path": "image_path"}).to_csv(folder / "test.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def trained(data, built, tmp_path_factory):
    """A function (weight of the level) -> the sweep's folder."""
    folder = tmp_path_factory.mktemp("other_sweep")
    labels = ["--csv", data / "train.csv", "--relabel"]
    biomass("store", "extend", built, folder / "labelled.h5", *labels)

    def train(level: str) -> Path:
        config = folder / f"{level}.yaml"
        config.write_text(CONFIG.replace("LEVEL", level))
        biomass(
            *("train", "--config", config, "--store", folder / "labelled.h5"),
            *("--out", folder / level, "--device", "cpu"),
        )
        return next((folder / level).iterdir())

    return train


@pytest.fixture(scope="module")
def sweep(trained) -> Path:
    return trained("1")


def explained(sweep: Path, kind: str, data: Path, out: Path, *options: object) -> str:
    """The page of a prediction by a run of this kind."""
    run = next(sweep.glob(f"0*kind-{kind}*"))
    biomass(
        *("predict", "--run", run, "--data", data, "--out", out / "p.csv", "--tta", 2),
        *("--device", "cpu", "--explain", out / "seen", *options),
    )
    return (out / "seen/report.html").read_text()


@pytest.mark.parametrize("kind", ["density", "cls_gating", "ridge"])
def test_the_page_has_a_column_of_each_target(sweep, data, tmp_path, kind):
    page = explained(sweep, kind, data, tmp_path, "--interval", 0.5)
    heads = re.findall(r'role="columnheader"><button type="button">(.*?)<', page)
    numbers = ["yield_t", "± of yield_t", "Interval", "grain_t", "straw_t", "soil_c", "cover"]
    table = pd.read_csv(tmp_path / "p.csv")
    words = ["crop"] if "crop" in table else []
    assert heads == ["Photograph", *numbers, *words]
    assert "Predictions of 2 photographs" in page and "<rye>" not in page
    assert not re.search(r"Dry|Total|Grams|\d g\b", page)
    for value in table["yield_t"]:
        assert f"<b>{value:.3g}</b>" in page
    for name in table["image_id"]:
        with Image.open(tmp_path / "seen" / f"{name}.png") as picture:
            assert picture.width >= 600


def test_maps_sum_to_amounts_and_average_to_levels_and_shares(sweep, data, tmp_path):
    run = next(sweep.glob("0*kind-density*"))
    predictor, photographs = Predictor.load([run], device="cpu"), photographs_of(data)
    explainer = predictor.explainer(tmp_path / "seen", 2)
    raws = predictor.raws(photographs, 2, progress=False, explainer=explainer)
    for image_id, path in photographs.items():
        seen = explainer.map(image_id, decode(path, predictor.backbone.crop).facts["sha256"])
        (raw,) = raws[image_id]
        names = predictor.combiner.targets.names
        expected = dict(zip(names, raw.values_HVK.mean((0, 1)), strict=True))
        for name in ("grain_t", "straw_t"):
            assert seen.layer(name).sum() == pytest.approx(expected[name], rel=1e-4)
        for name in ("soil_c", "cover"):
            assert seen.layer(name).mean() == pytest.approx(expected[name], rel=1e-4)


def test_a_level_that_weighs_most_is_mapped_on_its_own_scale(trained, data, tmp_path):
    page = explained(trained("9"), "density", data, tmp_path)
    assert "what the heads say of soil_c in each patch" in page
    assert re.search(r'y="103">-\d', page)  # the histogram begins below 0


def test_where_there_are_classes_alone_the_least_certain_word_comes_first(tmp_path):
    targets = Targets.of({"crop": {"kind": "class", "values": ["oat", "rye"]}})
    rows = [("a", "oat", 0.9), ("b", "rye", 0.5), ("c", None, np.nan), ("d", "oat", 0.7)]
    table = pd.DataFrame(rows, columns=["image_id", "crop", "crop_probability"])
    about = About([], ["plain"], None, None, Shown(targets))
    entries = [Entry(f"{image_id}.png", "", "", 0, 0) for image_id in table["image_id"]]
    page = write_report(tmp_path / "report.html", about, table, entries).read_text()
    assert re.findall(r'class="id">(.)<', page) == ["b", "d", "a", "c"]
    assert "Beside a word stands its probability" in page and "± is" not in page
    foot = draw_picture(Image.new("RGB", (60, 40)), None, table.loc[0], shown=about.shown)
    assert foot.width >= 600
