"""trainer.data.strata: folds are balanced by any columns, each split as its kind says."""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from featurestore.errors import InputError
from trainer.data.splits import make_splits
from trainer.data.strata import decided, stratum_of


def table(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "image_id": [f"ID{i:03d}" for i in range(n)],
            "Farm": [f"farm {i}" for i in rng.integers(0, 40, n)],
            "Clover_g": rng.choice([0, 1.5, 4], n),
            "Height_cm": rng.uniform(3, 20, n),
            "Cover": rng.uniform(0, 1, n) * rng.integers(0, 2, n),
            "Species": rng.choice(["Rye", "rye ", "Fescue", "Phalaris"], n),
        }
    )


def same_partition(a, b):
    """Whether two lists of labels split images in the same way."""
    pairs = set(zip(list(a), list(b), strict=True))
    return len(pairs) == len(set(a)) == len(set(b))


@pytest.mark.parametrize(
    ("column", "kind", "account"),
    [
        ("Clover_g", None, lambda cells: cells > 0),
        ("Height_cm", None, lambda cells: cells > np.median(cells)),
        ("Cover", None, lambda cells: cells > 0),  # who does not say share means an amount
        ("Cover", "share", lambda cells: cells > np.median(cells)),
        ("Clover_g", "level", lambda cells: cells > np.median(cells)),
        ("Height_cm", "amount", lambda cells: cells > 0),
        ("Clover_g", "class", lambda cells: cells),
        ("Species", None, lambda cells: cells.str.strip().str.lower()),
    ],
)
def test_a_column_is_split_as_its_kind_says(column, kind, account):
    frame = table()
    kinds = {} if kind is None else {column: kind}
    assert same_partition(stratum_of(frame, [column], kinds), account(frame[column]))


def test_a_number_that_is_negative_somewhere_is_a_level():
    frame = table()
    frame["Slope"] = frame["Height_cm"].round() - 10  # 0 here and there
    assert (frame["Slope"] == 0).any()
    expected = frame["Slope"] > frame["Slope"].median()
    assert same_partition(stratum_of(frame, ["Slope"], {}), expected)


def test_missing_values_are_a_stratum_of_their_own():
    frame = table()
    frame.loc[3:40, "Height_cm"] = np.nan
    frame.loc[20:60, "Species"] = ""
    height = np.where(
        frame["Height_cm"].isna(), "?", frame["Height_cm"] > frame["Height_cm"].median()
    )
    assert same_partition(stratum_of(frame, ["Height_cm"], {}), height)
    species = frame["Species"].str.strip().str.lower()
    assert same_partition(stratum_of(frame, ["Species"], {}), species)
    both = [f"{a} {b}" for a, b in zip(height, species, strict=True)]
    assert same_partition(stratum_of(frame, ["Height_cm", "Species"], {}), both)


def test_strata_of_two_amounts_are_numbered_as_bits():
    """So that draws of the contest's strata stay what they were."""
    frame = pd.DataFrame({"a": [0, 1.0, 0, 1], "b": [0, 0, 1.0, 1]})
    assert stratum_of(frame, ["a", "b"], {}).tolist() == [0, 1, 2, 3]
    assert stratum_of(frame, [], {}).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("strata", [["Species"], ["Height_cm"], ["Species", "Clover_g"]])
def test_folds_are_as_balanced_as_scikit_learns(strata):
    frame = table()
    stratum_N = stratum_of(frame, strata, {})
    folds = make_splits(frame, 4, 3, ["Farm"], strata, 1)

    def imbalance(fold_N):
        counts = pd.crosstab(fold_N, stratum_N)
        return (counts / counts.sum()).std(ddof=0).mean()

    theirs = []
    for seed in range(10):
        fold_N = np.zeros(len(frame), int)
        splitter = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
        for fold, (_, held_out) in enumerate(splitter.split(stratum_N, stratum_N, frame["Farm"])):
            fold_N[held_out] = fold
        theirs.append(imbalance(fold_N))
    for repeat in ("r00", "r01", "r02"):
        assert imbalance(folds[repeat]) <= np.median(theirs)


def test_null_is_the_contests_strata_where_both_are_there():
    frame = pd.DataFrame({"Dry_Dead_g": [0.0], "Dry_Clover_g": [1.0]})
    assert decided(None, frame) == ["Dry_Clover_g", "Dry_Dead_g"]
    assert decided(None, frame[["Dry_Dead_g"]]) == [] == decided([], frame)
    assert decided(["Dry_Dead_g"], frame) == ["Dry_Dead_g"]


@pytest.mark.parametrize(
    ("strata", "kinds", "says"),
    [
        (["Specie"], {}, "cv.strata: no column Specie in the catalog, which has image_id, Farm"),
        (["Species"], {"Species": "amount"}, "cv.strata: Species is text, expected the numbers"),
        (["image_id", "Farm"], {}, "image_id, Farm make 300 strata of 300 images; .* 256 at most"),
    ],
    ids=["missing", "text", "too many"],
)
def test_a_wrong_stratum_is_refused(strata, kinds, says):
    with pytest.raises(InputError, match=says):
        stratum_of(table(300), strata, kinds)
