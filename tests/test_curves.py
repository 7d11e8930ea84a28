"""Training curves: a picture depends on its own run alone."""

import json

import pytest

from featurestore.photos.targets import CSIRO
from trainer.judge import report
from trainer.score.metrics import Score

RUNS = {
    "rises": [(9.0, -3.0), (4.0, 0.5), (3.0, 0.7)],
    "fails": [(2.0, 0.1), (float("nan"), float("nan"))],
    "long": [(1e6 / (k + 1), k / 50) for k in range(40)],
}


@pytest.mark.parametrize("score", ["contest", "rmse"])
@pytest.mark.usefixtures("rendered")
def test_a_picture_shows_nothing_of_the_one_before(score, tmp_path):
    by = Score.of(score, CSIRO)
    for name, epochs in RUNS.items():
        lines = []
        for loss, value in epochs:
            folds = {"fold_loss": [loss, loss / 2], "fold_score": [value, value - 0.1]}
            lines.append(json.dumps({"loss": loss, "score": value, **folds}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def drawn(name: str) -> bytes:
        report.draw_curves(tmp_path / f"{name}.jsonl", tmp_path / "curves.png", by)
        return (tmp_path / "curves.png").read_bytes()

    alone = {}
    for name in RUNS:
        report._curves_figure.cache_clear()
        alone[name] = drawn(name)
    assert len(set(alone.values())) == len(RUNS)
    after_others = {name: drawn(name) for name in reversed(RUNS)}
    assert after_others == alone
