"""Photographs predicted, end to end, by heads that learned from the demo's backbone at two
scales."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import biomass

from featurestore.photos.decode import decode
from predictor.members.member import Member, by_spec
from predictor.photographs import in_step
from predictor.predictor import Predictor
from trainer.loop.runs import RunFolder

SIZES = {"small": 64, "large": 96}
CONFIG = """
experiment: {name: two, seed: 1}
dataset: {stores: {small: SMALL, large: LARGE}}
head:
  kind: [ridge, pooled_mlp, density]
  features: [[cls, large/mean]]
  store: [small, large]
  shared_hidden: 8
loss: {beta: 10}
trainer: {num_epochs: 2, batch_size: 4}
optimization: {lr: 1e-2, weight_decay: 1e-2}
inference: {tta_indices: [0, 1]}
cv: {n_folds: 2}
"""


@pytest.fixture(scope="module")
def stores(pasture, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    for name, size in SIZES.items():
        biomass(
            *("store", "build", "--data", pasture, "--out", folder / f"{name}.h5"),
            *("--backbone", "vit_demo_patch16_dinov3", "--image-size", size),
            *("--views", "plain,hflip", "--device", "cpu"),
        )
    return {name: folder / f"{name}.h5" for name in SIZES}


@pytest.fixture(scope="module")
def sweep(stores, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.yaml").write_text(
        CONFIG.replace("SMALL", str(stores["small"])).replace("LARGE", str(stores["large"]))
    )
    told = biomass("train", "--config", folder / "two.yaml", "--out", folder, "--device", "cpu")
    return Path(told.stdout.strip().splitlines()[-1])


def runs_of(sweep: Path) -> dict[str, Path]:
    """By kind, and by the store of kinds that read patches."""
    found = {path.parent.name: path.parent for path in sorted(sweep.glob("0*/config.yaml"))}
    names = ["ridge", "pooled_mlp", "density-small", "density-large"]
    chosen = {}
    for name in names:
        kind, _, store = name.partition("-")
        chosen[name] = next(
            run
            for folder, run in found.items()
            if f"kind-{kind}" in folder and folder.endswith(store)
        )
    return chosen


@pytest.fixture(scope="module")
def bundle(sweep, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    runs = runs_of(sweep)
    # one backbone, at both scales: its weights are there once
    told = biomass(
        "bundle", runs["ridge"], runs["density-large"], "--out", out, "--with-backbone"
    ).output
    assert "all as listed" in told
    return out


@pytest.mark.parametrize("name", ["ridge", "pooled_mlp", "density-large"])
def test_held_out_photographs_are_predicted_as_the_sweep_predicted_their_tokens(
    tmp_path, pasture, sweep, name
):
    """Exit code 0: tokens of all stores are made as they were stored, and read in their order."""
    run = runs_of(sweep)[name]
    biomass("predict", "--oof", "--data", pasture, "--run", run, "--out", tmp_path / "oof.csv")


def test_only_tokens_that_heads_read_are_made(sweep):
    runs = runs_of(sweep)
    read = {name: list(Member.load(run).specs) for name, run in runs.items()}
    assert read == {
        "ridge": ["small", "large"],
        "pooled_mlp": ["small", "large"],
        "density-small": ["small"],
        "density-large": ["large"],
    }


def test_members_are_grouped_by_the_tokens_they_share(sweep):
    small, large, both = (
        Member.load(runs_of(sweep)[name]) for name in ("density-small", "density-large", "ridge")
    )
    assert by_spec([small, large, small]) == [[0, 2], [1]]
    assert by_spec([small, large, both]) == [[0, 1, 2]]


def test_an_ensemble_says_of_each_member_what_it_says_alone(tmp_path, pasture, sweep):
    """Each backbone runs once, and maps on other grids are drawn on one."""
    runs = runs_of(sweep)
    arguments = "predict", "--data", pasture, "--device", "cpu", "--tta", 2
    all_runs = [option for run in runs.values() for option in ("--run", run)]
    pictures = "--explain", tmp_path / "pictures"
    biomass(*arguments, *all_runs, "--out", tmp_path / "all" / "s.csv", *pictures)
    page = (tmp_path / "pictures" / "report.html").read_text()
    assert "vit_demo_patch16_dinov3, halves" in page
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2

    predictor = Predictor.load(list(runs.values()), device="cpu")
    assert len(predictor.stage(0, "cpu").backbones) == 2
    photographs = {path.stem: path for path in sorted((pasture / "test").iterdir())}
    together = predictor.raws(photographs, 2, progress=False)
    for m, run in enumerate(runs.values()):
        alone = Predictor.load(run, device="cpu").raws(photographs, 2, progress=False)
        for image_id, (raw,) in alone.items():
            np.testing.assert_array_equal(raw.values_HVK, together[image_id][m].values_HVK)


def test_a_prediction_goes_on_from_what_is_kept(tmp_path, pasture, sweep):
    predictor = Predictor.load(runs_of(sweep)["ridge"], device="cpu")
    photographs = {path.stem: path for path in sorted((pasture / "test").iterdir())}
    file = tmp_path / "kept"
    kept = predictor.journal(file, 2, resume=True)
    table = predictor.predict(photographs, 2, progress=False, kept=kept)
    again = predictor.journal(file, 2, resume=True)
    for backbone in predictor.stage(0, "cpu").backbones.values():
        backbone.model.cpu().to("meta")  # nothing is computed a second time
    pd.testing.assert_frame_equal(
        predictor.predict(photographs, 2, progress=False, kept=again), table
    )


def test_what_is_damaged_for_one_crop_is_left_out_of_all():
    ids = list("abcde")
    decodings = [iter([(i, i + "1") for i in "abde"]), iter([(i, i + "2") for i in "acde"])]
    found = list(in_step(decodings, ids))
    assert found == [("a", ["a1", "a2"]), ("d", ["d1", "d2"]), ("e", ["e1", "e2"])]


def test_a_photograph_of_the_first_member_is_decoded_for_its_backbone(pasture, sweep):
    predictor = Predictor.load(runs_of(sweep)["density-large"], device="cpu")
    path = next(iter(sorted((pasture / "test").iterdir())))
    decoded = decode(path, predictor.backbone.crop)
    assert decoded.tiles_THW3.shape[1:3] == (96, 96)
    raw = predictor.raw(decoded, "a", predictor.members[0].spec.tokens.views)
    assert raw.values_HVK.shape == (2, 2, 5)


def test_a_bundle_predicts_as_its_runs(tmp_path, pasture, sweep, bundle):
    runs = runs_of(sweep)
    arguments = "predict", "--data", pasture, "--device", "cpu", "--tta", 2
    both = "--run", runs["ridge"], "--run", runs["density-large"]
    biomass(*arguments, *both, "--out", tmp_path / "runs" / "s.csv")
    biomass(*arguments, "--bundle", bundle, "--out", tmp_path / "bundle" / "s.csv")
    for file in ("s.csv", "s.predictions.csv"):
        ours, theirs = (tmp_path / folder / file for folder in ("runs", "bundle"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_bundle_holds_each_backbone_once_and_no_path_of_this_machine(sweep, bundle, stores):
    assert len(list((bundle / "backbone").glob("*.safetensors"))) == 1
    readme = (bundle / "README.md").read_text()
    assert "halves, 64 x 64 pixels; halves, 96 x 96 pixels" in readme
    run = bundle / "runs" / runs_of(sweep)["ridge"].name
    assert list(json.loads((run / "stores.json").read_text())) == ["large"]
    for file in ("config.yaml", "spec.json", "stores.json"):
        assert str(stores["large"].parent) not in (run / file).read_text()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"store_folder": "/etc"}, "stores.json: large: points out of the bundle, to /etc"),
        ({"store": 5}, "store: Input should be a valid dictionary"),
        ({"tile_height": 1 << 20, "tile_width": 1 << 20}, "tiles of 1099511627776 pixels"),
    ],
    ids=["folder", "store", "size"],
)
def test_a_bundle_whose_further_store_reaches_out_is_refused(
    tmp_path, sweep, bundle, change, message
):
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    name = f"runs/{runs_of(sweep)['ridge'].name}/stores.json"
    told = json.loads((broken / name).read_text())
    if "tile_height" in change:
        spec = RunFolder((broken / name).parent).specs["large"]
        larger = spec.changed(tokens=spec.tokens.model_copy(update=change))
        change = {"store": json.loads(larger.to_json())}
    told["large"] |= change
    text = json.dumps(told).encode()
    (broken / name).write_bytes(text)
    listing = json.loads((broken / "bundle.json").read_text())
    # as who wants to be believed would
    listing["files"][name] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (broken / "bundle.json").write_text(json.dumps(listing))
    assert message in biomass("bundle", "check", broken, code=3).stderr
