"""`biomass demo` in small: the whole path, and the same result again."""

from pathlib import Path

import pandas as pd

from predictor.demo import CONFIG, run_demo
from trainer.grid import SweepConfig

ROOT = Path(__file__).parent.parent


def test_the_demo_walks_the_whole_path_and_repeats_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("predictor.demo.IMAGE_SIZE", 64)
    monkeypatch.setattr("predictor.demo.VIEWS", "1")
    monkeypatch.setattr("predictor.demo.CONFIG", CONFIG.replace("num_epochs: 60", "num_epochs: 2")
                        + "inference: {tta_indices: [0]}\ncv: {n_folds: 2}\n")
    lines: list[str] = []
    scores = [run_demo(tmp_path / name, 0, lines.append, n_train=10, n_test=4) for name in ("a", "b")]
    assert scores[0] == scores[1]
    assert set(scores[0]) == {"best run", "ridge", "mean predictor"}
    said = "\n".join(lines)
    for word in ("leaderboard", "submission", "score on unseen sites", "unseen sites lie within",
                 str(tmp_path / "a" / "features.h5")):
        assert word in said
    first, second = (pd.read_csv(tmp_path / name / "submission.csv") for name in ("a", "b"))
    assert len(first) == 20 and first.equals(second)


def test_the_demos_config_is_the_one_in_configs(tmp_path):
    (tmp_path / "demo.yaml").write_text(CONFIG)
    ours, theirs = SweepConfig.load(tmp_path / "demo.yaml"), SweepConfig.load(ROOT / "configs/demo.yaml")
    assert (ours.base, ours.axes) == (theirs.base, theirs.axes)
