"""Folds of another tool by `train --folds`: without State, of one visit alone, or with copies of a
photograph held out apart."""

import json

import pandas as pd
import pytest
from commands import biomass
from sweeps import write_store
from test_splits import pasture

from featurestore.errors import InputError
from trainer.data.splits import describe_folds, make_splits, n_partitions, read_splits

SWEEP = """
experiment: {name: given, seed: 5}
head: {kind: %s}
trainer: {num_epochs: 1}
inference: {tta_indices: [0]}
augmentation: {mixup: {enabled: true, kind: same_site}}
optimization: {lr: 1e-2, weight_decay: 1e-2}
"""


def write_folds(path, ids, n_folds=3):
    """Two columns, image by image."""
    path.write_text(
        "image_id,fold\n" + "".join(f"{image_id},{i % n_folds}\n" for i, image_id in enumerate(ids))
    )
    return path


def write_sweep(tmp_path, kind="ridge"):
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP % kind)
    return path


def summary(runs):
    return json.loads(next(runs.glob("*/summary.json")).read_text())


@pytest.mark.parametrize("lacking", ["State", "Sampling_Date", "both", "empty"])
def test_folds_of_two_columns_need_no_state(tmp_path, lacking):
    columns = {"both": ["State", "Sampling_Date"]}.get(lacking, [lacking])
    strip = (
        (lambda frame: frame.assign(State=""))
        if lacking == "empty"
        else (lambda frame: frame.drop(columns=columns))
    )
    store = write_store(tmp_path / "features.h5", n=12, labels=strip)
    folds = write_folds(tmp_path / "folds.csv", [f"ID{i}" for i in range(12)])
    result = biomass(
        "train",
        "--config",
        write_sweep(tmp_path, "density"),
        "--store",
        store,
        "--folds",
        folds,
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    )
    notes = summary(tmp_path / "runs")["notes"]
    assert "12 images, each its own site, in 3 folds" in notes
    assert any(
        "does not tell State and Sampling_Date, so each photograph is its own site" in note
        for note in notes
    )
    assert any("same_site mixes nothing" in note for note in notes)
    assert "each photograph is its own site" in result.stdout
    written = pd.read_csv(next((tmp_path / "runs").glob("*/folds.csv")))
    assert written["site"].tolist() == written["image_id"].tolist()


def test_folds_without_state_tell_points_apart_by_images(tmp_path):
    store = write_store(
        tmp_path / "features.h5", n=12, labels=lambda frame: frame.drop(columns="State")
    )
    folds = write_folds(tmp_path / "folds.csv", [f"ID{i}" for i in range(12)])
    biomass(
        "train",
        "--config",
        write_sweep(tmp_path, "[ridge, pls]"),
        "--store",
        store,
        "--folds",
        folds,
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    )
    other = summary(tmp_path / "runs")["points"][1]["vs_best"]
    assert other["low"] <= other["difference"] <= other["high"]  # of 12 sites


@pytest.mark.filterwarnings("default")
def test_without_state_and_folds_each_photograph_is_held_out_alone(tmp_path):
    store = write_store(
        tmp_path / "features.h5", n=20, labels=lambda frame: frame.drop(columns="State")
    )
    result = biomass(
        "train",
        "--config",
        write_sweep(tmp_path),
        "--store",
        store,
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    )
    warning = (
        "each photograph is held out on its own (cv.groups none). Where several are of one place "
        "and visit, scores read too high and intervals too narrow; name what they share in "
        "cv.groups, columns such as Sampling_Date"
    )
    assert warning in result.stderr
    found = summary(tmp_path / "runs")["notes"]
    assert warning in found and "20 images, each held out on its own, in 5 folds" in found
    # what null stood for is saved
    saved = json.loads(next((tmp_path / "runs").glob("*/sweep.json")).read_text())["base"]["cv"]
    assert (saved["groups"], saved["n_folds"]) == ("none", 5)


@pytest.mark.filterwarnings("default")
def test_one_site_is_refused_with_advice_that_works(tmp_path):
    one_visit = {"State": "Tas", "Sampling_Date": "2015/9/4"}
    store = write_store(
        tmp_path / "features.h5", n=12, labels=lambda frame: frame.assign(**one_visit)
    )
    command = [
        "train",
        "--config",
        write_sweep(tmp_path),
        "--store",
        store,
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    ]
    refused = biomass(*command, code=3).stderr
    assert "all 12 images are of one site, Tas_2015/9/4" in refused
    assert "Set cv.groups to none to hold each photograph out on its own" in refused

    (tmp_path / "sweep.yaml").write_text(SWEEP % "ridge" + "cv: {groups: none}\n")
    said = biomass(*command).stderr
    assert "scores read too high and intervals too narrow; cv.groups site holds visits out" in said
    notes = summary(tmp_path / "runs")["notes"]
    assert "12 images, each held out on its own, in 5 folds" in notes


@pytest.mark.filterwarnings("default")
def test_folds_of_another_tool_that_tear_a_site_are_told(tmp_path):
    one_visit = {"State": "Tas", "Sampling_Date": "2015/9/4"}
    frame = pasture(range(12)).assign(**one_visit)
    folds = write_folds(tmp_path / "folds.csv", frame["image_id"])
    with pytest.warns(UserWarning, match="fold has 1 site in more than one fold; scores read too"):
        table = read_splits(folds, frame["image_id"], frame)
    assert describe_folds(table) == "12 images of 1 site in 3 folds"


@pytest.mark.parametrize(
    ("groups", "n_folds", "says"),
    [
        ("site", 5, "13 sites; .*set cv.n_folds to 13 or less"),
        ("state", 5, "cv.n_folds is 5; set it to 3"),
    ],
)
def test_too_many_folds_are_refused_with_the_number_that_works(groups, n_folds, says):
    frame = pasture([i % 13 for i in range(20)])
    with pytest.raises(InputError, match=says):
        make_splits(frame, 14 if groups == "site" else n_folds, 1, groups, [], 0)
    assert make_splits(frame, 13 if groups == "site" else 3, 1, groups, [], 0)["r00"].nunique() in (
        13,
        3,
    )


@pytest.mark.parametrize("groups", ["state", "date"])
def test_one_state_or_date_is_told_to_take_sites(groups):
    """Which work then."""
    frame = (
        pasture(range(6), states=("Tas",))
        if groups == "state"
        else pasture(range(6)).assign(Sampling_Date="2015/9/4")
    )
    with pytest.raises(InputError, match="images are of .* set cv.groups to site"):
        make_splits(frame, 2, 1, groups, [], 0)
    assert make_splits(frame, 2, 1, "site", [], 0)["r00"].nunique() == 2


@pytest.mark.parametrize("header", ["image_id,fold", "image_id,site,group,r00"])
def test_K14_copies_that_folds_separate_are_named(tmp_path, header):
    """Ours would join their groups; a table that says it is ours may come from elsewhere too."""
    frame = pasture(range(6))
    frame.loc[[4, 5], "sha256"] = frame["sha256"][0], frame["sha256"][1]
    cells = "{0},{1}" if header == "image_id,fold" else "{0},{0},{0},{1}"
    rows = [
        cells.format(image_id, fold)
        for image_id, fold in zip(frame["image_id"], [0, 1, 0, 1, 1, 1], strict=True)
    ]
    table = tmp_path / "theirs.csv"
    table.write_text("\n".join([header, *rows]) + "\n")
    with pytest.warns(
        UserWarning, match=r"r00 holds 1 photograph .*\n  ID000 \(fold 0\) = ID004 \(fold 1\)$"
    ):
        read_splits(table, frame["image_id"], frame)


def test_K14_copies_kept_together_and_images_without_bytes_are_not_named(tmp_path):
    frame = pasture(range(6))
    frame.loc[2, "sha256"], frame.loc[[3, 4], "sha256"] = frame["sha256"][0], ""
    table = write_folds(tmp_path / "theirs.csv", frame["image_id"], 2)
    assert len(read_splits(table, frame["image_id"], frame)) == 6  # a warning would be an error


def test_repeats_on_the_same_partition_are_counted_once():
    folds = pd.DataFrame(
        {
            "image_id": list("abcd"),
            "site": list("wxyz"),
            "group": list("wxyz"),
            "r00": [0, 0, 1, 1],
            # r01 is r00 with other numbers
            "r01": [1, 1, 0, 0],
            "r02": [0, 1, 0, 1],
        }
    )
    assert n_partitions(folds) == 2
    assert (
        describe_folds(folds)
        == "4 images, each its own site, in 2 folds; 3 repeats, only 2 of them different"
    )
    assert describe_folds(folds[["image_id", "site", "group", "r00", "r02"]].assign(site="w")) == (
        "4 images of 1 site in 2 folds; 2 repeats, all different"
    )


def test_folds_of_another_tool_keep_image_ids_as_sites_and_groups_without_states(tmp_path):
    frame = pasture(range(4))[["image_id"]]
    folds = read_splits(
        write_folds(tmp_path / "theirs.csv", frame["image_id"], 2), frame["image_id"], frame
    )
    assert folds.columns.tolist() == ["image_id", "site", "group", "r00"]
    assert folds["site"].tolist() == folds["group"].tolist() == frame["image_id"].tolist()


def test_torn_copies_are_told_of_with_the_tables_name(tmp_path):
    frame = pasture(range(6))
    frame.loc[1, "sha256"] = frame["sha256"][0]
    table = write_folds(tmp_path / "theirs.csv", frame["image_id"], 2)
    with pytest.warns(UserWarning, match="theirs.csv: r00 holds 1 photograph and copies"):
        read_splits(table, frame["image_id"], frame)


def write_long(path, rows):
    path.write_text("image_id,repeat,fold\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_a_row_for_each_image_and_repeat_is_read_by_the_repeats_numbers(tmp_path):
    frame = pasture(range(3))
    # 10 after 2, though "10" sorts before it; rows in no order
    rows = ["ID002,10,0", "ID000,2,0", "ID001,10,1", "ID001,2,0", "ID000,10,0", "ID002,2,1"]
    folds = read_splits(write_long(tmp_path / "long.csv", rows), frame["image_id"], frame)
    assert folds.columns.tolist() == ["image_id", "site", "group", "r00", "r01"]
    assert folds[["r00", "r01"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    "rows, says",
    [
        (["ID000,0,0", "ID001,0,1", "ID000,1,0"], "these have none:\n  ID001 in repeat 1$"),
        (["ID000,0,0", "ID001,0,1", *["ID000,00,1"] * 2], "these have more:\n  ID000 in repeat 0$"),
        ([], "no rows; expected one for each image and repeat$"),
        (["ID000,a,0", "ID001,a,1"], "repeat must be a number, 0 or more; found:\n  'a'$"),
        (["ID000,0,0", "ID001,0,"], "r00 must be a fold number.*\n  ID001: ''$"),
    ],
    ids=["lacking", "more than once", "none", "no number", "no fold"],
)
def test_rows_that_are_no_whole_repeats_are_refused(tmp_path, rows, says):
    frame = pasture(range(2))
    table = write_long(tmp_path / "long.csv", rows)
    with pytest.raises(InputError, match=f"long.csv: (?s:.*){says}"):
        read_splits(table, frame["image_id"], frame)
