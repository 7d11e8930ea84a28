"""trainer.data.groups: photographs that share any columns are held out together, and what is said
of them."""

import json

import numpy as np
import pandas as pd
import pytest
from commands import biomass
from sklearn.model_selection import LeaveOneGroupOut
from sweeps import write_store

from featurestore.errors import InputError
from featurestore.photos.sites import joined_sites, possible_groups, shared_values
from service.explore.sweeps import plan as plan_of
from trainer.data.groups import counted, decided, doubts_about_groups, unit_of
from trainer.data.splits import describe_folds, make_splits, read_splits

FARM_AND_DATE = ["Farm", "Date"]


def farms(n=60, seed=0):
    """A catalog of photographs of 4 farms on 5 dates, without State and Sampling_Date."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "image_id": [f"ID{i:03d}" for i in range(n)],
            "Farm": rng.choice(["North", "South", "East", "West"], n),
            "Date": rng.choice([f"2021-03-{day:02d}" for day in range(1, 6)], n),
            "Plot": rng.integers(0, 7, n).astype(float),
            "sha256": [f"{i:064x}" for i in range(n)],
        }
    )


def splits(frame, groups=FARM_AND_DATE, n_folds=4, repeats=2, **others):
    return make_splits(frame, n_folds, repeats, groups, [], 5, **others)


@pytest.mark.parametrize("groups", [["Farm"], FARM_AND_DATE, ["Farm", "Plot"]], ids="+".join)
def test_what_shares_all_columns_is_held_out_together(groups):
    frame = farms()
    folds = splits(frame, groups)
    number_N = frame.groupby(groups).ngroup()  # pandas' own account
    pairs = pd.DataFrame({"ours": folds["group"], "theirs": number_N}).drop_duplicates()
    assert len(pairs) == number_N.nunique() == folds["group"].nunique()
    assert folds["site"].tolist() == folds["group"].tolist()
    for repeat in ("r00", "r01"):
        assert folds.groupby(number_N)[repeat].nunique().max() == 1
        assert sorted(folds[repeat].unique()) == [0, 1, 2, 3]


@pytest.mark.parametrize("groups", [["Farm"], FARM_AND_DATE, ["Plot"]], ids="+".join)
def test_leave_one_out_is_scikit_learns(groups):
    frame = farms()
    folds = make_splits(frame, None, 1, groups, [], 5, "leave_one_out")
    expected_N = np.full(len(frame), -1)
    parts = LeaveOneGroupOut().split(expected_N, groups=frame.groupby(groups).ngroup())
    for fold, (_, held_out) in enumerate(parts):
        expected_N[held_out] = fold
    pairs = set(zip(folds["r00"], expected_N, strict=True))
    assert len(pairs) == expected_N.max() + 1 == folds["r00"].max() + 1


def test_leave_one_out_of_states_is_groups_state():
    frame = farms().rename(columns={"Farm": "State"})
    by_columns = make_splits(frame, None, 1, ["State"], [], 5, "leave_one_out")
    by_word = make_splits(frame, None, 1, "state", [], 5)
    pd.testing.assert_frame_equal(by_columns, by_word)


def test_each_photograph_alone_but_copies_together():
    frame = farms(20)
    frame.loc[[3, 11], "sha256"] = frame["sha256"][7]
    folds = splits(frame, "none")
    assert folds["site"].tolist() == frame["image_id"].tolist()
    assert folds["group"][[3, 7, 11]].unique().tolist() == ["ID003"]
    assert folds["group"].nunique() == 18
    assert len(set(joined_sites(folds["site"], frame))) == 18
    assert describe_folds(folds, "none").startswith("20 images, each held out on its own, in 4")


def test_values_that_join_to_one_text_stay_apart():
    frame = pd.DataFrame({"a": ["x_y", "x", "x"], "b": ["z", "y_z", "y_z"]})
    labels = shared_values(frame, ["a", "b"])
    assert labels[0] != labels[1] == labels[2]


def test_spellings_of_a_value_are_one():
    """Of dates too, in whatever column."""
    frame = pd.DataFrame(
        {
            "Farm": ["North", "north ", "NORTH", "South"],
            "Date": ["2021-03-02", "2/3/2021", "2 March 2021", "2021/3/2"],
        }
    ).assign(image_id=list("abcd"))
    assert shared_values(frame[:1], FARM_AND_DATE).tolist() == ["North_2021/3/2"]
    with pytest.raises(InputError, match=r"Date: day and month .* could be swapped"):
        shared_values(frame, FARM_AND_DATE)  # 2/3/2021
    frame.loc[1, "Date"] = "20210302"
    assert shared_values(frame, FARM_AND_DATE).tolist() == ["NORTH_2021/3/2"] * 3 + [
        "South_2021/3/2"
    ]


def test_a_missing_column_is_refused_with_those_that_are_there():
    says = "cv.groups: no column Field in the catalog, which has image_id, Farm, Date, Plot"
    with pytest.raises(InputError, match=says):
        splits(farms(), ["Farm", "Field"])


def test_missing_values_are_listed():
    frame = farms()
    frame.loc[4, "Plot"] = np.nan
    says = r"cv.groups: column Plot is empty for 1 image; .*\n  ID004"
    with pytest.raises(InputError, match=says):
        splits(frame, ["Plot"])


@pytest.mark.parametrize(
    ("n_folds", "repeats", "says"),
    [
        (5, 1, "each group is left out once: .* 4 groups by Farm, cv.n_folds is 5; set it to 4"),
        (4, 3, "each group is left out once, which can be done in one way: cv.repeats is 3"),
    ],
)
def test_leave_one_out_has_one_way(n_folds, repeats, says):
    with pytest.raises(InputError, match=says):
        splits(farms(), ["Farm"], n_folds, repeats, splitter="leave_one_out")


def test_one_group_is_refused_with_advice():
    frame = farms().assign(Farm="North")
    with pytest.raises(InputError, match="of one group, North; .* Set cv.groups to none"):
        splits(frame, ["Farm"])
    with pytest.raises(InputError, match="all 60 images are copies of one photograph"):
        splits(frame.assign(sha256="0" * 64), "none")


def test_date_needs_no_state():
    """The site, what errs together, is then all that is known of the visit."""
    frame = farms().rename(columns={"Date": "Sampling_Date"})
    folds = splits(frame, "date")
    assert folds["site"].tolist() == folds["group"].tolist()
    assert folds["site"].nunique() == 5
    visits = splits(frame.rename(columns={"Farm": "State"}), "date")
    assert visits["site"].nunique() > 15 and visits["group"].nunique() == 5


def test_null_is_site_where_that_is_known():
    frame = farms()
    assert decided(None, frame) == "none" and decided(["Farm"], frame) == ["Farm"]
    visits = frame.rename(columns={"Farm": "State", "Date": "Sampling_Date"})
    assert decided(None, visits) == "site" and decided("none", visits) == "none"


def test_about_as_many_groups_as_photographs_are_warned_of():
    frame = farms(40).assign(Time=[f"{i // 60}h{i % 60}" for i in range(40)])
    folds = splits(frame, ["Farm", "Time"])
    (doubt,) = doubts_about_groups(folds, frame, ["Farm", "Time"])
    assert doubt.startswith("40 groups by Farm and Time for 40 photographs: nearly each is held")
    assert not doubts_about_groups(splits(frame), frame, FARM_AND_DATE)


def test_a_text_among_the_dates_of_a_group_is_named():
    frame = farms()
    frame.loc[3, "Date"] = "yesterday"
    (said,) = doubts_about_groups(splits(frame), frame, FARM_AND_DATE)
    assert said.startswith("cv.groups: Date: 1 of 60 cells is no date, so one visit may")
    assert said.endswith(":\n  ID003: 'yesterday'")


def test_columns_that_could_be_groups_are_named():
    """Text of which each value is of two photographs at least."""
    frame = farms(40).assign(Note=[f"note {i}" for i in range(40)], Region="Alps", path="a.jpg")
    assert possible_groups(frame) == ["Farm", "Date"]
    (doubt,) = doubts_about_groups(splits(frame, "none"), frame, "none")
    assert "scores read too high" in doubt and doubt.endswith("columns such as Farm, Date")
    (doubt,) = doubts_about_groups(splits(frame, "none"), frame[["image_id"]], "none")
    assert "put what they share (farm, plot, date) into train.csv" in doubt


@pytest.mark.parametrize(
    ("groups", "n", "text", "unit"),
    [
        ("site", 1, "1 site", "site"),
        ("date", 3, "3 dates", "site"),
        ("state", 4, "4 States", "site"),
        ("none", 9, "9 photographs", "photograph"),
        (FARM_AND_DATE, 2, "2 groups by Farm and Date", "group"),
    ],
    ids=str,
)
def test_groups_in_words(groups, n, text, unit):
    assert counted(groups, n) == text and unit_of(groups) == unit


def test_folds_of_another_tool_get_their_sites_by_columns(tmp_path):
    frame = farms(12)
    table = tmp_path / "theirs.csv"
    fold_N = frame["Farm"].factorize()[0]
    rows = [
        f"{image_id},{fold}\n" for image_id, fold in zip(frame["image_id"], fold_N, strict=True)
    ]
    table.write_text("image_id,fold\n" + "".join(rows))
    folds = read_splits(table, frame["image_id"], frame, groups=["Farm"])
    assert folds["site"].tolist() == frame["Farm"].tolist()


SWEEP = """
experiment: {name: farms, seed: 5}
head: {kind: [ridge, density]}
trainer: {num_epochs: 1}
inference: {tta_indices: [0]}
optimization: {lr: 1e-2, weight_decay: 1e-2}
augmentation: {mixup: {enabled: true, kind: same_site}}
cv: {groups: [Farm, Date], strata: [Farm, Height_Ave_cm], n_folds: 3, repeats: 2}
"""


def with_farms(frame):
    """Labels of farms and dates in place of States."""
    farm = np.array(["North", "South", "East", "West"])[np.arange(len(frame)) % 4]
    date = [f"2021-03-{1 + i % 3:02d}" for i in range(len(frame))]
    return frame.drop(columns=["State", "Sampling_Date"]).assign(Farm=farm, Date=date)


@pytest.mark.parametrize(("fold", "code"), [(3, 0), (4, 3)], ids=["last", "beyond"])
def test_one_farm_is_held_out_by_its_fold(tmp_path, fold, code):
    """How many folds there are is known once the table is."""
    store = write_store(tmp_path / "features.h5", n=36, labels=with_farms)
    (tmp_path / "sweep.yaml").write_text(
        """
experiment: {name: farms, seed: 5}
head: {kind: ridge}
optimization: {lr: 1e-2, weight_decay: 1e-2}
inference: {tta_indices: [0]}
cv: {groups: Farm, splitter: leave_one_out}
"""
    )
    train = ["train", "--config", tmp_path / "sweep.yaml", "--store", store, "--device", "cpu"]
    result = biomass(*train, "--fold", fold, "--plan", code=code)
    if code:
        assert "no fold 4 (cv.fold); the 4 folds are numbered from 0" in result.stderr
    else:
        assert "only fold 3 of 4 is trained" in result.stdout


def test_a_table_with_farms_and_dates_is_trained_by_the_command(tmp_path):
    """Masses as ever, farms in place of States: plan, training, resume, intervals, page's words."""

    store = write_store(tmp_path / "features.h5", n=36, labels=with_farms)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    train = ["train", "--config", tmp_path / "sweep.yaml", "--store", store, "--device", "cpu"]
    plan = biomass(*train, "--plan").stdout
    assert "36 images of 12 groups by Farm and Date in 3 folds; 2 repeats, all different" in plan

    biomass(*train, "--out", tmp_path / "runs")
    (sweep,) = (tmp_path / "runs").iterdir()
    folds = pd.read_csv(sweep / "folds.csv")
    assert folds["site"].nunique() == 12 and "North_2021/3/1" in set(folds["group"])
    summary = json.loads((sweep / "summary.json").read_text())
    told = " ".join(summary["notes"])
    assert "(group-level bootstrap, 95 %)" in told and "not other groups" in told
    assert summary["points"][1]["vs_best"]["low"] is not None
    saved = json.loads((sweep / "sweep.json").read_text())["base"]["cv"]
    assert saved["groups"] == FARM_AND_DATE and saved["strata"] == ["Farm", "Height_Ave_cm"]

    assert plan_of(sweep)[0]["folds"] == "3 x 2 repeats, Farm and Date kept together"

    (sweep / "summary.json").unlink()
    before = (sweep / "summary.csv").read_bytes()
    biomass("train", "--resume", sweep)
    assert (sweep / "summary.csv").read_bytes() == before
