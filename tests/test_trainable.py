"""What could be trained from a table, in words: before a build, and as lines of the doctor."""

import numpy as np
import pandas as pd
import yaml
from commands import TINY, biomass

from featurestore.photos.catalog import TARGETS
from featurestore.photos.trainable import what_could_be_trained


def told(**columns) -> list[str]:
    n = len(next(iter(columns.values()), [0, 1]))
    ids = {"image_id": [f"p{i}" for i in range(n)], "path": [f"p{i}.jpg" for i in range(n)]}
    frame = pd.DataFrame({**ids, **columns})
    first, *lines = what_could_be_trained(frame, "labels.csv").splitlines()
    assert first == f"labels.csv: {n} photographs"
    return lines


def test_targets_groups_and_what_is_missing():
    assert told(
        mass=[1.5, 2.5, np.nan, 3.5],
        crop=["rye", "oats", "rye", "oats"],
        farm=["A", "A", "B", "B"],
        fresh=["1.5", "lost", "2.5", "-"],
    ) == [
        "  targets  mass (amount, 3 of 4 photographs), crop (class of 2 values, 4 of 4 "
        "photographs), farm (class of 2 values, 4 of 4 photographs)",
        "  groups   no State and Sampling_Date, so each photograph is held out on its own unless "
        "cv.groups names columns: crop (2), farm (2)",
        "  missing  fresh is text, since 2 of its 4 cells are no numbers (p1: 'lost'); empty or "
        "correct them",
        "  train    a config names what is to be learned, as configs/start.yaml does: "
        "`targets: {mass: {}}`",
    ]


def test_the_contests_masses_are_the_preset():
    masses = {name: [1.5, 2.5, np.nan, 3.5] for name in TARGETS}
    place = {"State": ["NSW", "NSW", "Vic", "Vic"], "Sampling_Date": ["2015/9/4"] * 4}
    targets, groups, config = told(**masses, **place, Height_Ave_cm=[1, 2, 3.5, 9])
    assert targets == (
        "  targets  csiro, the contest's five masses, of which 3 of 4 photographs have all; "
        "besides: State (class of 2 values, 4 of 4 photographs), Height_Ave_cm (amount, 4 of 4 "
        "photographs)"
    )
    assert groups == (
        "  groups   2 sites of State and Sampling_Date, fewer than the 5 folds that cv.n_folds is "
        "by default"
    )
    assert config.startswith("  train    a config without `targets:` learns the five masses")


def test_nothing_but_paths():
    targets, groups = told()
    assert "none: no column has numbers that differ" in targets
    assert "no column says which photographs are of one place" in groups


def test_a_few_of_the_masses_name_the_others():
    *_, missing, _ = told(GDM_g=[1.5, 2.5], Dry_Dead_g=[0, 1.5])
    assert missing == (
        "  missing  `targets: csiro` would need Dry_Green_g, Dry_Clover_g, Dry_Total_g too"
    )


def test_a_mass_that_is_spelled_otherwise_is_named():
    masses = {name: [0, 1.5] for name in TARGETS if name not in ("Dry_Clover_g", "GDM_g")}
    for clover in ("Clover", "Dry_clover_g", "Dry Clover (g)"):
        *_, missing, _ = told(**masses, **{clover: [1.5, 2]}, Dry_Weeds_g=[0, 1.5])
        assert missing == (
            "  missing  `targets: csiro` would need Dry_Clover_g, GDM_g too; rename "
            f"{clover} to Dry_Clover_g if that is meant"
        )


def test_many_columns_are_counted():
    targets, *_ = told(**{f"x{i}": [0.0, i + 1.5] for i in range(12)})
    assert targets.endswith("x7 (amount, 2 of 2 photographs), and 4 more")


def test_the_block_of_a_class_and_of_a_name_that_yaml_would_read_otherwise():
    crops = ["rye", "oats", "rye", "oats"]
    for name, columns in (("crop, main", {"crop, main": crops}), ("-", {"-": [-1.5, 2, 0, 0]})):
        block = told(**columns)[-1].split("`")[1]
        kind = "class" if len(name) > 1 else "level"
        assert yaml.safe_load(block) == {"targets": {name: {"kind": kind}}}


def test_a_plan_says_it_before_any_work(pasture, tmp_path):
    data = ["--data", pasture, "--out", tmp_path / "f.h5"]
    plan = biomass("store", "build", *data, *TINY, "--plan", "--views", "plain")
    assert f"{pasture / 'train.csv'}: 6 photographs\n  targets  csiro" in plan.stderr
    assert "6 to build" in plan.stdout
    # the weights are not even read
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    bad = ["--weights", tmp_path / "bad.safetensors"]
    stopped = biomass("store", "build", *data, *TINY, *bad, code=3)
    assert "  targets  csiro" in stopped.stderr
