"""Heads trained on tokens of unknown weights: blended by their tables alone, and predicting with a
file of weights that is given and believed."""

import re
import shutil

import pandas as pd
import pytest
from commands import biomass
from imported import MODEL, demo_backbone, write_tokens
from safetensors.torch import load_file, save_file

from predictor.members.journal import journal_key
from predictor.members.member import Member, check_alike

UNKNOWN = "the weights that made these tokens are unknown"
pytestmark = pytest.mark.filterwarnings(f"ignore:{UNKNOWN}:UserWarning")
YAML = """
experiment: {name: imported, seed: 3}
head: {kind: [ridge, gpr, pooled_mlp], shared_hidden: 8}
trainer: {num_epochs: 2, batch_size: 4}
optimization: {lr: 1.0e-2, weight_decay: 0.01}
inference: {tta_indices: [0]}
cv: {n_folds: 2, groups: date}
"""


@pytest.fixture(scope="module")
def folder(pasture, tmp_path_factory):
    """Tokens of the demo's backbone, imported without its weights; heads trained on them."""
    place = tmp_path_factory.mktemp("unknown")
    backbone, weights = demo_backbone(64, place)
    shutil.move(weights, place / "true.safetensors")
    other = {name: tensor + 0.01 for name, tensor in load_file(place / "true.safetensors").items()}
    save_file(other, place / "other.safetensors")
    photographs = sorted((pasture / "train").glob("*.jpg"))
    npz = write_tokens(place / "npz", photographs, backbone)
    (place / "imported.yaml").write_text(YAML)
    options = ["--data", pasture, "--backbone", MODEL, "--image-size", 64]
    biomass("store", "import", npz, "--out", place / "a.h5", *options)
    given = ["--config", place / "imported.yaml", "--store", place / "a.h5", "--device", "cpu"]
    biomass("train", *given, "--out", place / "a")

    # as if the same had been trained on another import
    shutil.copytree(place / "a", place / "b")
    shutil.copy(place / "a.h5", place / "b.h5")
    for config in place.glob("b/*/*/config.yaml"):
        config.write_text(config.read_text().replace("a.h5", "b.h5"))
    return place


def runs_of(folder, name):
    return sorted(folder.glob(f"{name}/*/00*"))


def predict(pasture, out, runs, *options, code=0):
    given = [word for run in runs for word in ("--run", run)]
    options = ["--data", pasture, "--device", "cpu", "--out", out, *options]
    return biomass("predict", *given, *options, code=code).stderr


@pytest.mark.filterwarnings("default:vit_demo:UserWarning")
def test_a_blend_is_weighed_without_a_backbone_and_predicts_with_the_file_given(
    folder, pasture, tmp_path
):
    runs, out = runs_of(folder, "a"), tmp_path / "s.csv"
    blend = ["--blend", "fitted", "--tta", 2]
    refused = predict(pasture, out, runs, *blend, code=5)
    assert "weights: " in refused and "fitting gains" in refused and not out.exists()
    assert "give the file, if you know which it was, with --backbone-weights" in refused
    random = predict(pasture, out, runs, *blend, "--backbone-weights", "random", code=5)
    assert "nobody recorded which weights" in random

    true = folder / "true.safetensors"
    said = predict(pasture, out, runs, *blend, "--backbone-weights", true)
    assert f"{true} could not be compared with them" in said
    assert re.findall("weights: .*", said) == re.findall("weights: .*", refused)
    found = pd.read_csv(tmp_path / "s.predictions.csv")
    assert len(found) == 2 and (found["Dry_Total_g"] > 0).all()

    # the blend that the sweep chose
    sweep = ["--sweep", runs[0].parent, "--point", "blend_equal", "--tta", 2]
    predict(pasture, tmp_path / "chosen.csv", [], *sweep, "--backbone-weights", true)


@pytest.mark.filterwarnings("ignore:vit_demo:UserWarning")
def test_oof_tells_the_weights_that_made_the_tokens_from_others(folder, pasture, tmp_path):
    run, out = runs_of(folder, "a")[:1], tmp_path / "o.csv"
    predict(pasture, out, run, "--oof", "--backbone-weights", folder / "true.safetensors")
    other = ["--oof", "--backbone-weights", folder / "other.safetensors"]
    assert "g from oof.csv, more than" in predict(pasture, out, run, *other, code=5)


def test_two_stores_of_unknown_weights_are_not_taken_for_one_backbone(folder, pasture, tmp_path):
    both = [runs_of(folder, "a")[0], runs_of(folder, "b")[0]]
    given = ["--backbone-weights", folder / "true.safetensors"]
    refused = predict(pasture, tmp_path / "s.csv", both, *given, code=3)
    assert "tokens of 2 stores" in refused
    assert str(folder / "a.h5") in refused and str(folder / "b.h5") in refused
    check_alike([Member.load(run) for run in runs_of(folder, "a")])


def test_photographs_finished_with_other_weights_are_not_taken_up_again(folder):
    members = [Member.load(runs_of(folder, "a")[0])]
    files = [str(folder / name) for name in ("true.safetensors", "other.safetensors")]
    keys = {journal_key(members, ["plain"], None, file) for file in files}
    assert len(keys | {journal_key(members, ["plain"], None)}) == 3


@pytest.mark.filterwarnings("ignore:vit_demo:UserWarning")
def test_a_bundle_holds_their_heads_and_takes_the_file_where_it_predicts(folder, pasture, tmp_path):
    runs, bundle = runs_of(folder, "a"), tmp_path / "bundle"
    true = ["--backbone-weights", folder / "true.safetensors"]
    whole = ["bundle", *runs, "--out", bundle, "--with-backbone"]
    for options in ([], true):
        assert "none can be accepted" in biomass(*whole, *options, code=5).stderr
    made = biomass("bundle", *runs, "--blend", "fitted", "--out", bundle).stderr
    assert f"without the weights of {MODEL}" in made
    told = ["predict", "--data", pasture, "--device", "cpu", "--tta", 1, "--bundle", bundle]
    assert "nobody recorded" in biomass(*told, "--out", tmp_path / "s.csv", code=5).stderr
    biomass(*told, "--out", tmp_path / "s.csv", *true)
    predict(pasture, tmp_path / "r.csv", runs, "--blend", "fitted", "--tta", 1, *true)
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "r.csv").read_bytes()


@pytest.mark.filterwarnings("default:nobody recorded:UserWarning")
def test_merging_two_such_stores_says_what_nobody_knows(folder, tmp_path):
    parts = [folder / "a.h5", folder / "b.h5"]
    said = biomass("store", "merge", *parts, "--out", tmp_path / "both.h5").stderr
    assert "merge them only if you know that they were the same" in said


def test_such_a_store_is_not_extended_by_any_file(folder, pasture, tmp_path):
    given = ["--views", 3, "--data", pasture, "--weights", folder / "true.safetensors"]
    refused = biomass("store", "extend", folder / "a.h5", tmp_path / "c.h5", *given, code=5).stderr
    assert "none can be accepted" in refused
