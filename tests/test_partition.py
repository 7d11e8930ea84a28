"""trainer.data.partition: every regrouping is a draw of its own, as balanced as scikit-learn's, on
visits like the contest's."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from featurestore.photos.sites import site_of
from trainer.data.partition import Counts, Measure, draw
from trainer.data.splits import make_splits

STRATA = ["Dry_Clover_g", "Dry_Dead_g"]
SIZES = {  # 30 visits of 1 to 22 photographs: 357
    "Tas": [22, 21, 20, 18, 16, 14, 12, 9, 5, 1],
    "Vic": [20, 18, 17, 15, 14, 12, 8, 5, 3],
    "NSW": [19, 16, 13, 11, 8, 5, 2, 1],
    "WA": [15, 11, 6],
}


def thirty_sites(seed):
    """Dead is 0 in all of WA, Clover in about 38 % of the images, in most visits either everywhere
    or nearly nowhere."""
    rng = np.random.default_rng(seed)
    visits = [(state, n) for state, sizes in SIZES.items() for n in sizes]
    images = []
    for day, (state, n) in enumerate(visits):
        has_clover = rng.random(n) < rng.choice([0.04, 0.5, 0.97], p=[0.35, 0.15, 0.5])
        has_dead = rng.random(n) < (0 if state == "WA" else rng.choice([0.7, 0.98]))
        images += [
            (state, f"2015/{day % 12 + 1}/{day // 12 + 1}", *masses)
            for masses in zip(has_clover, has_dead, strict=True)
        ]
    frame = pd.DataFrame(images, columns=["State", "Sampling_Date", *STRATA])
    frame[STRATA] *= rng.gamma(2, 5, (len(frame), 2))
    return frame.assign(image_id=[f"ID{i:03d}" for i in range(len(frame))])


@pytest.fixture(scope="module", params=[3, 9])
def visits(request):
    """(N,) site and stratum of each image, as positions."""
    frame = thirty_sites(request.param)
    site_N = np.unique(site_of(frame), return_inverse=True)[1]
    return site_N, ((frame[STRATA] > 0) @ [1, 2]).to_numpy()


def draws(visits, n, n_folds=5):
    counts = Counts.of(*visits, n_folds)
    measure = Measure.of(counts)
    return [draw(counts, measure, np.random.default_rng([3, repeat])) for repeat in range(n)]


def by_sklearn(visits, seed, n_folds=5):
    site_N, stratum_N = visits
    fold_G = np.zeros(site_N.max() + 1, int)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(stratum_N, stratum_N, site_N)):
        fold_G[site_N[held_out]] = fold
    return fold_G


def imbalance(visits, fold_G):
    """By a table: the std over folds of each stratum's share, their mean; and the std of folds'
    shares of all images."""
    table = pd.crosstab(fold_G[visits[0]], visits[1])
    return (table / table.sum()).std(ddof=0).mean(), (table.sum(axis=1) / len(visits[0])).std(
        ddof=0
    )


def together(fold_G):
    """(pairs,) bool: which pairs of groups are held out together."""
    return np.equal.outer(fold_G, fold_G)[np.triu_indices(len(fold_G), 1)]


def jaccard(pairs):
    """Mean over all two draws of the share of the pairs kept together by one that both keep
    together."""
    return np.mean([(a & b).sum() / (a | b).sum() for a, b in itertools.combinations(pairs, 2)])


def test_every_draw_is_another_partition(visits):
    assert len({together(fold_G).tobytes() for fold_G in draws(visits, 100)}) == 100
    # why we do not leave it to that
    assert len({together(by_sklearn(visits, seed)).tobytes() for seed in range(20)}) < 10


@pytest.mark.parametrize("n_folds", [3, 5, 8])
def test_no_draw_is_less_balanced_than_sklearn(visits, n_folds):
    theirs = np.min([imbalance(visits, by_sklearn(visits, seed, n_folds)) for seed in range(10)], 0)
    ours = np.max([imbalance(visits, fold_G) for fold_G in draws(visits, 10, n_folds)], 0)
    assert (ours <= theirs + 1e-9).all()


def test_draws_share_about_as_many_pairs_as_unstratified_ones(visits):
    free = [np.random.default_rng(seed).permutation(np.arange(30) % 5) for seed in range(30)]
    ours, unstratified = (
        jaccard([together(fold_G) for fold_G in some]) for some in (draws(visits, 30), free)
    )
    assert unstratified == pytest.approx(0.1, abs=0.01) and ours == pytest.approx(
        unstratified, abs=0.03
    )


def test_every_pair_of_sites_meets_about_as_often_as_by_chance(visits):
    pairs = [together(fold_G) for fold_G in draws(visits, 200)]
    rate = np.mean(pairs, 0)
    assert rate.mean() == pytest.approx(5 / 29, abs=0.015)  # of 29 others 5 share a fold of six
    assert np.quantile(rate, [0.1, 0.9]) == pytest.approx([0.10, 0.26], abs=0.05)
    # two visits that hold much of a stratum cannot meet; of scikit-learn's 100 draws .78
    assert (rate == 0).mean() < 0.05


def test_a_sum_of_squares_gives_the_imbalance_that_a_table_gives(visits):
    counts, fold_G = Counts.of(*visits, 4), np.random.default_rng(0).integers(0, 4, 30)
    assert counts.imbalance_of(fold_G) == pytest.approx(imbalance(visits, fold_G), rel=1e-12)


def test_the_measure_is_sklearns_partition():
    """Where no two groups are equally uneven and no fold stays empty."""
    first = np.array([23, 21, 1, 8, 12, 25, 19, 0, 27, 15])
    groups = np.repeat(np.arange(10), first), np.repeat(np.arange(10), 26)
    visits = np.concatenate(groups), np.repeat([0, 1], [len(group) for group in groups])
    assert np.array_equal(
        together(Measure.of(Counts.of(*visits, 3)).fold_G), together(by_sklearn(visits, 0, 3))
    )


def test_four_sites_make_four_folds_by_every_seed():
    frame = thirty_sites(3)
    frame = frame[site_of(frame).isin(site_of(frame).unique()[[0, 4, 11, 28]])]
    for seed in range(40):  # scikit-learn leaves a fold empty by two seeds of five
        assert sorted(
            make_splits(frame, 4, 1, "site", STRATA, seed).groupby("site")["r00"].first()
        ) == [0, 1, 2, 3]


def test_a_fold_per_group_is_one_partition():
    visits = np.repeat(np.arange(7), 2), np.arange(14) % 3
    assert all(sorted(fold_G) == list(range(7)) for fold_G in draws(visits, 5, n_folds=7))


def test_where_one_partition_alone_is_balanced_every_draw_is_that():
    visits = np.repeat(np.arange(4), [3, 1, 1, 1]), np.zeros(6, int)
    assert {(fold_G == fold_G[0]).tobytes() for fold_G in draws(visits, 10, 2)} == {
        np.array([1, 0, 0, 0], bool).tobytes()
    }


def test_hundreds_of_sites_are_dealt_as_evenly():
    rng = np.random.default_rng(2)
    visits = np.append(np.arange(300), rng.integers(0, 300, 700)), rng.integers(0, 4, 1000)
    first, second = draws(visits, 2)
    enough = imbalance(visits, by_sklearn(visits, 0))
    assert (
        np.array([imbalance(visits, first), imbalance(visits, second)]) <= np.array(enough) + 0.002
    ).all()
    assert jaccard([together(first), together(second)]) < 0.15
