"""trainer.data.splits: no group on both sides, one seed one result, and a folds table that comes
back as it was."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold

from featurestore.errors import InputError
from featurestore.photos.sites import joined_sites, site_of
from trainer.data.splits import make_splits, read_splits, save_splits, shape_of
from trainer.heads.group_parts import group_parts

STRATA = ["Dry_Clover_g", "Dry_Dead_g"]


def pasture(sites, seed=0, states=("Tas", "Vic", "NSW")):
    """A catalog whose i-th image is of site number sites[i]."""
    rng = np.random.default_rng(seed)
    site = np.asarray(sites, dtype=np.int64)
    return pd.DataFrame(
        {
            "image_id": [f"ID{i:03d}" for i in range(len(site))],
            "State": np.array(states)[site % len(states)],
            "Sampling_Date": [f"2015/{s % 12 + 1}/{s % 28 + 1}" for s in site],
            "Dry_Clover_g": rng.choice([0, 3.5], len(site)),
            "Dry_Dead_g": rng.choice([0, 8.25], len(site)),
            "sha256": [f"{i:064x}" for i in range(len(site))],
        }
    )


@pytest.fixture
def catalog():
    return pasture(np.arange(60) * 7 % 13)


def splits(frame, n_folds=3, repeats=2, groups="site", strata=STRATA, seed=5):
    return make_splits(frame, n_folds, repeats, groups, strata, seed)


def test_group_kfold_is_scikit_learns():
    """Sites of unequal size, in any order; strata and seed make no difference."""
    rng = np.random.default_rng(0)
    site_N = rng.permutation(np.repeat(np.arange(11), rng.integers(1, 9, 11)))
    frame = pd.DataFrame(
        {
            "image_id": [f"ID{i}" for i in range(len(site_N))],
            "State": "Tas",
            "Sampling_Date": [f"2015-09-{site + 1:02d}" for site in site_N],
        }
    )
    folds = make_splits(frame, 4, 1, "site", ["Dry_Clover_g"], 3, "group_kfold")
    expected_N = np.full(len(site_N), -1)
    parts = GroupKFold(4).split(site_N, groups=folds["group"])
    for fold, (_, held_out) in enumerate(parts):
        expected_N[held_out] = fold
    assert folds["r00"].tolist() == expected_N.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_parts_of_groups_are_scikit_learns(seed):
    """Few sizes, so that groups and parts are often level."""
    rng = np.random.default_rng(seed)
    names_M = np.array([f"site {name}" for name in rng.permutation(12)])
    group_N = rng.permutation(np.repeat(names_M, rng.integers(1, 4, 12)))
    part_N = group_parts(group_N, 5)
    for part, (_, held_out_n) in enumerate(GroupKFold(5).split(group_N, groups=group_N)):
        assert np.flatnonzero(part_N == part).tolist() == held_out_n.tolist()


def folds_per_group(folds, repeat="r00"):
    return folds.groupby("group")[repeat].nunique()


@pytest.mark.parametrize("groups", ["site", "date"])
def test_another_spelling_of_dates_gives_the_same_folds(catalog, groups):
    respelled = catalog.copy()
    respelled["Sampling_Date"] = [
        f"{y}-{int(m):02d}-{int(d):02d}" if i % 2 else f"{y}/{m}/{d}"
        for i, (y, m, d) in enumerate(catalog["Sampling_Date"].str.split("/"))
    ]
    pd.testing.assert_frame_equal(splits(respelled, groups=groups), splits(catalog, groups=groups))


def test_table_has_one_column_a_repeat(catalog):
    folds = splits(catalog, repeats=3)
    assert folds.columns.tolist() == ["image_id", "site", "group", "r00", "r01", "r02"]
    assert folds["image_id"].tolist() == catalog["image_id"].tolist()


@settings(max_examples=40, deadline=None)
@given(
    sites=st.lists(st.integers(0, 30), min_size=5, max_size=40),
    n_folds=st.integers(2, 5),
    groups=st.sampled_from(["site", "date"]),
    seed=st.integers(0, 99),
)
def test_groups_stay_together_and_no_fold_is_empty(sites, n_folds, groups, seed):
    frame = pasture(sites, seed)
    n_groups = (frame["Sampling_Date"] if groups == "date" else site_of(frame)).nunique()
    assume(n_groups >= n_folds)
    folds = splits(frame, n_folds, 2, groups, seed=seed)
    for repeat in ("r00", "r01"):
        assert folds_per_group(folds, repeat).max() == 1
        assert sorted(folds[repeat].unique()) == list(range(n_folds))


def test_one_seed_one_result(catalog):
    assert splits(catalog).equals(splits(catalog))
    assert not splits(catalog).equals(splits(catalog, seed=6))


def test_order_of_images_does_not_matter(catalog):
    shuffled = catalog.sample(frac=1, random_state=1)
    assert splits(shuffled).sort_values("image_id", ignore_index=True).equals(splits(catalog))


def test_a_repeat_does_not_depend_on_how_many_there_are(catalog):
    many = splits(catalog, repeats=4)
    assert many.iloc[:, :5].equals(splits(catalog, repeats=2)) and not many["r00"].equals(
        many["r03"]
    )


def test_strata_are_spread():
    frame = pasture(np.repeat(np.arange(30), 2))
    frame["Dry_Clover_g"] = np.repeat([0.0, 1.0], 30)  # the last 15 sites have clover
    clover = (
        splits(frame, strata=["Dry_Clover_g"])
        .assign(clover=frame["Dry_Clover_g"])
        .groupby("r00")["clover"]
        .mean()
    )
    assert clover.between(0.45, 0.55).all()


def test_by_date_joins_states():
    frame = pasture([0, 1, 2, 3]).assign(Sampling_Date=["a", "a", "b", "c"])
    folds = splits(frame, groups="date")
    assert folds["group"].tolist() == ["a", "a", "b", "c"] and folds["r00"][0] == folds["r00"][1]


def test_by_state_leaves_each_state_out_once(catalog):
    folds = splits(catalog, n_folds=3, repeats=1, groups="state")
    assert dict(folds[["group", "r00"]].to_numpy().tolist()) == {"NSW": 0, "Tas": 1, "Vic": 2}


@pytest.mark.parametrize(
    ("n_folds", "repeats", "says"),
    [(5, 1, "are of 3 States, cv.n_folds is 5; set it to 3"), (3, 2, "cv.repeats is 2")],
)
def test_by_state_has_one_way(catalog, n_folds, repeats, says):
    with pytest.raises(InputError, match=says):
        splits(catalog, n_folds, repeats, "state")


def test_copies_join_their_sites():
    frame = pasture([0, 1, 2, 3, 4, 5])
    frame.loc[[1, 2], "sha256"] = frame["sha256"][0]
    frame.loc[5, "sha256"] = frame["sha256"][4]
    site = site_of(frame)
    group = splits(frame)["group"]
    assert (
        group[[0, 1, 2]].nunique() == 1
        and group[4] == group[5]
        and group[3] == site[3]
        and group.nunique() == 3
    )
    assert group[0] == min(site[:3])


def test_sites_that_hold_copies_are_one_whatever_the_groups_are(tmp_path):
    frame = pasture(range(6))
    frame.loc[4, "sha256"] = frame["sha256"][2]
    table = tmp_path / "theirs.csv"
    table.write_text(
        "image_id,fold\n"
        + "".join(f"{image_id},{i % 2}\n" for i, image_id in enumerate(frame["image_id"]))
    )
    folds = read_splits(table, frame["image_id"], frame)
    joined = joined_sites(folds["site"], frame)
    assert joined[2] == joined[4] and len(set(joined)) == 5 and folds["group"].nunique() == 6


@pytest.mark.parametrize("digest", ["", None], ids=["empty", "none"])
def test_images_without_bytes_are_no_copies(digest):
    assert splits(pasture(range(6)).assign(sha256=digest))["group"].nunique() == 6


def test_a_table_without_digests_keeps_its_sites():
    assert splits(pasture(range(6)).drop(columns="sha256"))["group"].nunique() == 6


@pytest.mark.parametrize(
    "strata",
    [[], ["Dry_Dead_g"], STRATA],
    ids=["no strata", "one stratum", "every stratum smaller than the folds"],
)
def test_few_images_still_make_folds(strata):
    frame = pasture(range(5)).assign(Dry_Dead_g=1.0, Dry_Clover_g=[0, 0, 1, 1, 0])
    assert sorted(splits(frame, n_folds=5, strata=strata)["r01"]) == [0, 1, 2, 3, 4]


def test_no_fold_is_left_without_an_image():
    """Four sites for four folds, which scikit-learn deals out by their strata: one fold gets two of
    them."""
    frame = pasture([2, 2, 3, 3, 4, 3, 4, 1, 3], states=["Tas"])
    frame["Dry_Clover_g"] = [1.0, 1, 0, 1, 1, 1, 1, 0, 0]
    assert sorted(splits(frame, n_folds=4).groupby("group")["r00"].first()) == [0, 1, 2, 3]


def test_repeats_have_equal_numbers_of_folds():
    table = pd.DataFrame(
        {
            "image_id": list("abc"),
            "site": list("stu"),
            "group": list("stu"),
            "r00": [0, 1, 2],
            "r01": [1, 0, 2],
        }
    )
    assert shape_of(table) == (3, 2)
    with pytest.raises(InputError, match="different numbers of folds"):
        shape_of(table.assign(r01=[0, 1, 1]))


def test_a_site_of_one_image_is_held_out_once():
    folds = splits(pasture([0] * 9 + [1] * 9 + [2]))
    assert (folds["r00"] == folds["r00"].iloc[-1]).sum() == 1


@pytest.mark.parametrize("column", ["image_id", "State", "Sampling_Date", "Dry_Clover_g"])
def test_a_missing_column_is_named(catalog, column):
    with pytest.raises(InputError, match=f"no column {column} in the catalog"):
        splits(catalog.drop(columns=column))


@pytest.mark.parametrize(("column", "value"), [("State", ""), ("Sampling_Date", None)])
def test_an_empty_value_is_listed(catalog, column, value):
    catalog.loc[3, column] = value
    with pytest.raises(InputError, match=rf"column {column} is empty for 1 image.*\n  ID003"):
        splits(catalog)


def test_more_folds_than_sites_are_refused(catalog):
    with pytest.raises(InputError, match="14 folds .* 13 sites"):
        splits(catalog, n_folds=14)


def test_an_image_given_twice_is_listed(catalog):
    with pytest.raises(InputError, match=r"more than once:\n  ID007"):
        splits(pd.concat([catalog, catalog.iloc[[7]]]))


def test_folds_come_back_as_they_were(catalog, tmp_path):
    catalog["image_id"] = [f"{i:04d}" for i in range(60)]  # ids stay text
    folds = splits(catalog.replace("Tas", "NA"))
    save_splits(folds, tmp_path / "folds.csv")
    pd.testing.assert_frame_equal(read_splits(tmp_path / "folds.csv", catalog["image_id"]), folds)
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]


def test_folds_come_in_the_order_asked(catalog, tmp_path):
    save_splits(splits(catalog), tmp_path / "folds.csv")
    ids = catalog["image_id"].tolist()[::-1]
    assert read_splits(tmp_path / "folds.csv", ids)["image_id"].tolist() == ids


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image_id,site,group,r00\na,s,s,0\nb,t,t,1\n", r"1 missing there:\n  c"),
        (
            "image_id,site,group,r00\na,s,s,0\nb,t,t,1\nd,u,u,1\n",
            r"1 only there:\n  d\n1 missing there:\n  c",
        ),
        ("image_id,site,group,r00\na,s,s,0\nb,t,t,1\nb,t,t,1\n", r"more than once:\n  b"),
        (
            "image_id,site,group,r00\na,s,s,0\nb,t,t,1.5\nc,u,u,1\n",
            r"r00 must be a fold number.*\n  b: '1.5'",
        ),
        (
            "image_id,site,group,r00\na,s,s,0\nb,t,t,-1\nc,u,u,1\n",
            r"r00 must be a fold number.*\n  b: '-1'",
        ),
        (
            "image_id,site,group,r00\na,s,s,0\nb,t,t\nc,u,u,1\n",
            r"r00 must be a fold number.*\n  b: ''",
        ),
        ("image_id,site,group,r00\na,s,s,0\nb,t,t,2\nc,u,u,2\n", r"r00 has folds \[0, 2\]"),
        ("image_id,site,group,r00\na,s,s,0\nb,t,t,0\nc,u,u,0\n", r"r00 has folds \[0\]"),
        (
            "image_id,site,group,r00,r01\na,s,s,0,0\nb,t,t,1,0\nc,t,t,1,1\n",
            r"r01 has groups in more than one .*\n  t",
        ),
        ("image_id,site,group\na,s,s\n", "columns are .*; expected image_id, site, group, r00"),
        ("", "not a readable folds table"),
        ('image_id,site,group,r00\na,s,s,0,1\nb,"', "not a readable folds table"),
    ],
)
def test_a_wrong_folds_table_is_refused(tmp_path, text, says):
    path = tmp_path / "folds.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"folds.csv: (?s:.*){says}"):
        read_splits(path, ["a", "b", "c"])


def test_an_absent_folds_table_is_named(tmp_path):
    with pytest.raises(InputError, match="folds.csv: not a readable folds table"):
        read_splits(tmp_path / "folds.csv", ["a"])


def test_images_of_one_date_are_told_to_group_by_site():
    frame = pasture(np.arange(6)).assign(Sampling_Date="2015/9/4")
    with pytest.raises(
        InputError,
        match="all 6 images are of one date, 2015/9/4; none can be held out, set cv.groups",
    ):
        splits(frame, groups="date")
