"""Where one fold stands for a whole sweep, everything that uses it says so."""

import json

import pytest
from commands import biomass
from conftest import SWEEP

from service.explore import sweeps as shown

ONLY = "only fold 1 of 2 is trained (cv.fold, --fold)"
pytestmark = pytest.mark.filterwarnings("ignore:.*random weights")


@pytest.fixture(scope="module")
def lone(built, tmp_path_factory):
    """A sweep of one fold, and what train printed."""
    folder = tmp_path_factory.mktemp("lone")
    (folder / "small.yaml").write_text(
        SWEEP.format(store=built).replace("density, attention, pooled_mlp, ridge, gpr", "ridge")
    )
    said = biomass(
        "train",
        "--config",
        folder / "small.yaml",
        "--out",
        folder / "runs",
        "--device",
        "cpu",
        "--fold",
        1,
    )
    return next((folder / "runs").iterdir()), said.stdout


def test_summary_and_table_say_that_one_fold_was_trained(lone):
    folder, printed = lone
    summary = json.loads((folder / "summary.json").read_text())
    assert (
        summary["fold"] == 1
        and any(note.startswith(ONLY) for note in summary["notes"])
        and ONLY in printed
    )
    assert "spaces that 1 fit chose" in printed


def test_a_sweep_of_every_fold_says_nothing(sweep):
    summary = json.loads((sweep / "summary.json").read_text())
    assert summary["fold"] is None and "only fold" not in json.dumps(summary)


def test_the_page_says_that_one_fold_was_trained(lone):
    told = shown.describe(lone[0], shown.plan(lone[0]))
    assert told["settings"]["folds"].startswith("only fold 1 of 2") and any(
        note.startswith(ONLY) for note in told["notes"]
    )


def test_predict_and_bundle_say_that_one_fold_was_trained(lone, pasture, tmp_path):
    folder, _ = lone
    to = ["--data", pasture, "--out", tmp_path / "s.csv", "--device", "cpu", "--tta", 1]
    assert ONLY in biomass("predict", "--sweep", folder, *to).stderr
    assert ONLY in biomass("bundle", folder, "--out", tmp_path / "b").stderr
    assert (
        ONLY
        in biomass(
            "predict", "--bundle", tmp_path / "b", "--backbone-weights", "random", *to
        ).stderr
    )


def test_a_plan_says_so_before_anything_is_trained(lone):
    config = lone[0].parent.parent / "small.yaml"
    assert (
        ONLY
        in biomass("train", "--config", config, "--fold", 1, "--plan", "--device", "cpu").stdout
    )
