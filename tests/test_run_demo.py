"""`biomass demo` in small: the whole path, to a bundle that predicts the same by itself."""

import os
import re
import zipfile
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from commands import biomass
from PIL import Image
from test_scripts import documented, printed

from featurestore.errors import InputError
from predictor.demo import CONFIG, run_demo, run_wheel
from trainer.loop.grid import SweepConfig

ROOT = Path(__file__).parent.parent
SCORE = re.compile("score on unseen sites.*: what was chosen .*, ridge .*, mean predictor .*")


@pytest.fixture
def small(monkeypatch):
    """The demo of `biomass demo`, small."""
    monkeypatch.setattr("predictor.demo.IMAGE_SIZE", 64)
    monkeypatch.setattr("predictor.demo.VIEWS", "1")
    monkeypatch.setattr(
        "predictor.demo.CONFIG",
        CONFIG.replace("num_epochs: 60", "num_epochs: 2")
        + "inference: {tta_indices: [0]}\ncv: {n_folds: 2}\n",
    )
    monkeypatch.setattr("predictor.demo.run_demo", partial(run_demo, n_train=10, n_test=4))


def test_the_demo_walks_the_whole_path(tmp_path, small, rendered):
    run = biomass("demo", "--out", tmp_path / "a")
    said = run.stdout
    look, own = run.stderr.splitlines()[-2:]
    assert look.startswith(f"look: biomass store serve {tmp_path}/a/features.h5 --sweep")
    assert own.startswith("with photographs of your own in data: biomass store build")
    assert SCORE.search(said)
    for word in (
        "leaderboard",
        "submission",
        "score on unseen sites",
        "unseen sites lie within",
        str(tmp_path / "a" / "features.h5"),
    ):
        assert word in said
    assert len(pd.read_csv(tmp_path / "a" / "submission.csv")) == 20
    assert "by the bundle's own wheel: every number is the same" in said
    for name in ("submission.csv", "predictions.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "a" / "offline" / name
        ).read_bytes()
    (sweep,) = (tmp_path / "a" / "runs").iterdir()
    drawn = [sweep / "leaderboard.png", *sweep.glob("*/training_curves.png")]
    assert len(drawn) == 1 + 6
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.width == 1100
    pictures = tmp_path / "a" / "offline" / "pictures"
    assert str(pictures / "report.html") in said and len(list(pictures.iterdir())) == 4 + 1
    biomass("bundle", "check", tmp_path / "a" / "bundle")  # predicting left nothing in it
    assert not list((tmp_path / "a").glob(".biomass*"))


@pytest.mark.system
def test_the_demo_repeats_itself(tmp_path, small, monkeypatch):
    monkeypatch.setattr("predictor.demo._from_bundle", lambda *_: 0.0)
    said = biomass("demo", "--out", tmp_path / "a").stdout
    told = printed("demo", "--out", tmp_path / "b")
    scores = ", ".join(f"{name} {value:.3f}" for name, value in told["scores"].items())
    assert SCORE.search(said)[0].endswith(f": {scores}")
    assert documented("demo") - set(told) == {"config"}
    tables = [(tmp_path / name / "submission.csv").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]


def test_it_is_the_bundles_wheel_that_predicts(tmp_path, monkeypatch):
    """Also where the demo was started in a checkout, which has a package of that name, too."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "bundle" / "wheel"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "biomass-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("predictor/__init__.py", "")
        wheel.writestr("predictor/__main__.py", "raise SystemExit(7)")
    with pytest.raises(InputError, match="biomass-0-py3-none-any.whl ended with exit code 7"):
        run_wheel(tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["bundle"]


def test_the_demos_config_is_the_one_in_configs(tmp_path):
    (tmp_path / "demo.yaml").write_text(CONFIG)
    ours, theirs = (
        SweepConfig.load(tmp_path / "demo.yaml"),
        SweepConfig.load(ROOT / "configs/demo.yaml"),
    )
    assert (ours.base, ours.axes) == (theirs.base, theirs.axes)
