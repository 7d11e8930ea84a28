"""Who sees what: equal steps for all folds, no held-out image, nothing depends on other heads."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.stream import Stream, everything, make_splits_of, mixup_share, validation_batches


def folds_table(n: int, n_folds: int, n_repeats: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {f"r{r:02d}": rng.permutation(np.arange(n) % n_folds) for r in range(n_repeats)}
    )


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(6, 40),
    n_folds=st.integers(2, 5),
    n_repeats=st.integers(1, 3),
    batch=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_no_held_out_image_is_in_a_batch_own_or_partner(n, n_folds, n_repeats, batch, seed):
    splits = make_splits_of(folds_table(n, n_folds, n_repeats, seed))
    stream = Stream(n, 4, splits, n_folds, batch, seed)
    for step in range(stream.n_steps):
        b = stream.batch(2, step)
        for q, split in enumerate(splits):
            seen = {*b.rows_U2[b.own_QB[q], 0], *b.rows_U2[b.own_QB[q][b.partner_QB[q]], 0]}
            assert seen <= set(split.train_N) and not seen & set(split.val_N)


def test_a_stream_depends_on_its_own_fold_alone():
    folds = folds_table(30, 5, 2)
    together = Stream(30, 4, make_splits_of(folds), 5, 8, seed=3).batch(1, 2)
    alone = Stream(30, 4, make_splits_of(folds, fold=3), 5, 8, seed=3).batch(1, 2)
    q = 8  # repeat 1, fold 3
    assert np.array_equal(together.rows_U2[together.own_QB[q]], alone.rows_U2[alone.own_QB[1]])
    assert np.array_equal(together.partner_QB[q], alone.partner_QB[1])
    assert np.array_equal(together.uniform_QB[q], alone.uniform_QB[1])


def test_an_epoch_shows_every_training_image_about_once_and_folds_share_rows():
    splits = make_splits_of(folds_table(100, 5, 1))
    stream = Stream(100, 20, splits, 5, 8, seed=0)
    batches = [stream.batch(0, step) for step in range(stream.n_steps)]
    assert stream.n_steps == 10
    for q, split in enumerate(splits):
        seen = np.concatenate([b.images_QB[q] for b in batches])
        assert sorted(seen) == sorted(split.train_N)
    reads = sum(len(b.rows_U2) for b in batches)
    assert reads < 1.6 * 100  # five folds of 80 samples would be 400 rows read alone
    assert len({tuple(row) for b in batches for row in b.rows_U2}) == 100


def test_folds_of_unequal_size_take_equal_steps():
    splits = make_splits_of(pd.DataFrame({"r00": np.repeat([0, 1, 2], [40, 15, 5])}))
    stream = Stream(60, 4, splits, 3, 8, seed=0)
    assert stream.n_steps == 5
    seen = [
        np.unique(np.concatenate([stream.batch(0, step).images_QB[q] for step in range(5)]))
        for q in range(3)
    ]
    # of 40 shown
    assert [len(split.train_N) for split in splits] == [20, 45, 55] and list(map(len, seen)) == [
        20,
        40,
        40,
    ]


def views_of(stream: Stream, epoch: int) -> dict[int, int]:
    """The view of every image that an epoch shows."""
    return dict(
        row for step in range(stream.n_steps) for row in stream.batch(epoch, step).rows_U2.tolist()
    )


def test_epochs_differ_in_order_and_views():
    stream = Stream(20, 4, make_splits_of(folds_table(20, 2, 1)), 2, 5, seed=0)
    first, second = (stream.batch(e, 0) for e in (0, 1))
    assert not np.array_equal(first.images_QB, second.images_QB)
    assert np.array_equal(first.rows_U2, stream.batch(0, 0).rows_U2)
    one, other = (views_of(stream, e) for e in (0, 1))
    assert len(one) == len(other) == 20 and set(one.values()) == set(other.values()) == {0, 1, 2, 3}
    assert sum(one[image] != other[image] for image in one) > 10  # 15 are expected


def test_no_two_addresses_share_their_draws():
    """Epochs, steps, repeats, folds and seeds, and what is drawn at one address."""
    splits = make_splits_of(folds_table(40, 2, 2))
    drawn = []
    for seed in (0, 1):
        stream = Stream(40, 4, splits, 2, 5, seed, site_N=np.zeros(40))
        for epoch, step in np.ndindex(2, 2):
            batch = stream.batch(epoch, step)
            drawn += [
                *batch.uniform_QB,
                *stream.dropout(epoch, step, (5,)),
                *stream.dropout(epoch, step, (5,), seed=1),
            ]
            for partner_B, site_partner_B in zip(
                batch.partner_QB, batch.site_partner_QB, strict=True
            ):
                assert sorted(partner_B) == sorted(site_partner_B) == list(range(5))
    values = np.concatenate(drawn)
    assert len(np.unique(values.astype(np.float32))) == len(values) == 2 * 4 * 4 * 3 * 5


def test_partners_of_one_site_are_of_that_site_and_not_mostly_themselves():
    site_N = np.arange(60) % 6
    stream = Stream(60, 2, make_splits_of(folds_table(60, 3, 1)), 3, 20, 0, site_N)
    batch = stream.batch(0, 0)
    sites = site_N[batch.images_QB]
    partners = np.take_along_axis(sites, batch.site_partner_QB, 1)
    assert np.array_equal(sites, partners)
    itself = batch.site_partner_QB == np.arange(20)
    assert itself.mean() < 0.5 and not np.array_equal(batch.site_partner_QB, batch.partner_QB)


def test_validation_shows_every_held_out_image_once_to_its_splits():
    splits = make_splits_of(folds_table(23, 4, 2))
    batches = validation_batches(splits, 23, 6, view=3)
    for q, split in enumerate(splits):
        rows = [b.rows_U2[b.own_QB[q][b.own_QB[q] >= 0]] for b in batches]
        assert np.concatenate(rows).tolist() == [[image, 3] for image in split.val_N]
    assert all(b.own_QB.min() >= -1 for b in batches)  # -1 where a split has fewer
    # 6 of a split at most, as in a step of training, so of 4 folds about 24
    assert all(b.own_QB.shape[1] <= 6 for b in batches)
    assert len(batches) == 1 + (max(len(split.val_N) for split in splits) > 6)
    read = np.concatenate([b.rows_U2[:, 0] for b in batches])
    assert read.tolist() == list(range(23))  # once for both repeats


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_their_beta_distribution(alpha):
    share = mixup_share(np.linspace(0.0005, 0.9995, 1000), alpha)
    assert abs(share.mean() - 0.5) < 1e-3
    assert abs(share.var() - 1 / (4 * (2 * alpha + 1))) < 2e-3


def test_the_refit_has_an_address_of_its_own_after_the_folds():
    """Saved sweeps were refitted by it: another address would draw other batches."""
    whole = everything(7, 3)
    assert (whole.repeat, whole.fold, whole.train_N.tolist(), len(whole.val_N)) == (
        0,
        3,
        [*range(7)],
        0,
    )


def test_only_columns_of_repeats_are_splits():
    folds = folds_table(6, 2, 2).assign(ratio=0, x01=1)
    assert [(s.repeat, s.fold) for s in make_splits_of(folds)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
