"""The README's three commands for a target of one's own, from a table to predictions."""

import shlex
from pathlib import Path

import pandas as pd
import pytest
from commands import biomass
from test_readme import README, ROOT

from featurestore.backbone.demo.drawing import draw_pasture
from featurestore.photos.catalog import read_catalog


@pytest.mark.system
@pytest.mark.filterwarnings("default")  # each photograph is held out on its own
def test_three_commands_lead_from_one_column_to_predictions(tmp_path, monkeypatch):
    draw_pasture(tmp_path / "data", seed=1, n_train=12, n_test=2)
    train, test = tmp_path / "data/train.csv", tmp_path / "data/test.csv"
    paths = read_catalog(test)[["path"]]
    known = read_catalog(train)[["path", "Dry_Total_g"]]
    known.set_axis(["image_path", "biomass"], axis=1).to_csv(train, index=False)
    paths.set_axis(["image_path"], axis=1).to_csv(test, index=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)

    fenced = README.split("```")[1::2]
    (session,) = [text.strip() for text in fenced if "--config configs/start.yaml" in text]
    commands = [shlex.split(line) for line in session.splitlines()]
    assert len(commands) == 3
    for name, *arguments in commands:
        assert name == "biomass"
        biomass(*arguments)
    assert list(pd.read_csv(Path("predictions.csv"))) == ["image_id", "biomass", "biomass_sd"]
