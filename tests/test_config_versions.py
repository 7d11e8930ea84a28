"""A sweep that an earlier version began goes on with the settings and to the scores it had then.

tests/saved/version1 is a sweep as it was stopped after two of its four epochs, before configs had a
version: sweep.json, folds.csv and its checkpoint. The scores are those it then ended with.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from sweeps import write_store

from trainer.loop.grid import SweepConfig, load_point
from trainer.loop.prepare import prepare_sweep
from trainer.loop.resume import resume_sweep

SAVED = Path(__file__).parent / "saved" / "version1"
SCORES = {
    "005_before__kind-ridge": 0.902933400,
    "006_before__kind-gpr__space-raw": 0.866708024,
    "007_before__kind-gpr__space-log1p": 0.806149905,
    "004_before__kind-cls_gating__space-log1p": 0.299968081,
    "003_before__kind-cls_gating__space-raw": 0.299960821,
    "002_before__kind-density__space-log1p": -0.036492847,
    "001_before__kind-density__space-raw": -0.037041019,
    "mean": 0.291043803,
    "ridge": 0.902933400,
}
TOLERANCE = 1e-4
"""float32 sums in another order; two epochs from the checkpoint spread them to some 1e-6."""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    shutil.copytree(SAVED, folder / "sweep")
    store = write_store(folder / "features.h5")
    with pytest.warns(UserWarning, match="sums are added in another order from here on"):
        resume_sweep(folder / "sweep", store=store, progress=False)
    return folder / "sweep"


def test_it_ends_with_the_scores_it_had(resumed):
    summary = json.loads((resumed / "summary.json").read_text())
    scores = {point["name"]: point["last"]["per_repeat_R"][0] for point in summary["points"]}
    scores |= {name: each["per_repeat_R"][0] for name, each in summary["baselines"].items()}
    assert {name: scores[name] for name in SCORES} == pytest.approx(SCORES, abs=TOLERANCE)


def test_its_runs_say_what_was_in_effect(resumed):
    """As the version that began it took it: keys it lacks, and ridge's own rule."""

    def in_effect(name: str) -> tuple:
        config = yaml.safe_load((resumed / name / "config.yaml").read_text())
        return (
            config["loss"]["space"],
            config["loss"]["scale"],
            config["head"]["normalize"],
            config["optimization"]["decay_biases"],
            config["augmentation"]["mixup"]["enabled"],
        )

    assert in_effect("001_before__kind-density__space-raw") == ("raw", "none", False, True, True)
    assert in_effect("005_before__kind-ridge") == ("average", "none", False, True, True)
    assert in_effect("007_before__kind-gpr__space-log1p")[0] == "log1p"


@pytest.mark.parametrize("version", ["", "config_version: 1", "config_version: 2"])
def test_what_was_saved_without_keys_means_what_it_meant(tmp_path, version):
    """Null, which asks the table or the store, came later."""
    text = PLAIN.replace("cv: {n_folds: 2}", version).replace("inference: {tta_indices: [0]}", "")
    (tmp_path / "config.yaml").write_text(text)
    saved = load_point(tmp_path / "config.yaml")
    cv = saved.cv
    assert (cv.n_folds, cv.groups, cv.strata) == (5, "site", ["Dry_Clover_g", "Dry_Dead_g"])
    assert saved.inference.tta_indices == [0, 1, 2, 3]

    written = SweepConfig.load(tmp_path / "config.yaml").base
    is_of_1 = version.endswith("1")
    assert written.cv.groups == ("site" if is_of_1 else None)
    assert written.inference.tta_indices == ([0, 1, 2, 3] if is_of_1 else None)


PLAIN = """
experiment: {name: remarks, seed: 0}
head: {kind: density}
optimization: {lr: 1e-2, weight_decay: 0.1, use_ema: false}
inference: {tta_indices: [0]}
cv: {n_folds: 2}
"""


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("loss: {beta: 2}", "loss.beta 2 counts spreads"),
        ("loss: {beta: [2, 3]}", "loss.beta 2 counts spreads"),
        ("loss: {beta: 2, scale: none}", None),
        ("loss: {beta: 2, scale: spread}", None),
        ("augmentation: {mixup: {alpha: 0.2}}", "augmentation.mixup says how to mix"),
        ("augmentation: {mixup: {kind: [none, patches]}}", "augmentation.mixup says how to mix"),
        ("augmentation: {mixup: {enabled: false, alpha: 0.2}}", None),
        ("augmentation: {mixup: {enabled: true, alpha: 0.2}}", None),
    ],
)
def test_what_a_changed_default_makes_of_a_key_is_said(tmp_path, store, more, says):
    (tmp_path / "sweep.yaml").write_text(PLAIN + more)
    config = SweepConfig.load(tmp_path / "sweep.yaml", {"dataset.store": str(store)})
    remarks = prepare_sweep(config, "cpu").remarks
    told = [remark for remark in remarks if "config_version 2" in remark]
    assert len(told) == (says is not None)
    assert all(says in remark for remark in told)
