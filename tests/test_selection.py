"""trainer.judge.selection: an estimate worked out by hand, and one on noise, where every choice is
luck."""

import numpy as np
import pytest
from preset import BY, WEIGHTS

from trainer.data.stream import Split
from trainer.judge import selection
from trainer.score.metrics import weighted_r2


def squared_errors(truth_N5, prediction_RN5, splits):
    return BY.split_errors(truth_N5, prediction_RN5, splits)


def honest_estimate(errors_EGQ, truth_N5, splits):
    return selection.honest_estimate(BY, errors_EGQ, truth_N5, splits)


TWO = [Split(0, f, np.array([1 - f]), np.array([f])) for f in range(2)]
TRUTH = np.array([[1.0, 0, 0, 1, 1], [0, 0, 0, 0, 4]])
SST = 4.88  # by hand in test_metrics


def folds_of(n_images: int, n_folds: int, n_repeats: int) -> list[Split]:
    rng = np.random.default_rng(0)
    folds = [rng.permutation(n_images) % n_folds for _ in range(n_repeats)]
    return [
        Split(r, f, np.flatnonzero(fold != f), np.flatnonzero(fold == f))
        for r, fold in enumerate(folds)
        for f in range(n_folds)
    ]


def truth_of(n_images: int) -> np.ndarray:
    return np.random.default_rng(1).gamma(2, 10, (n_images, 5))


def test_squared_errors_by_hand():
    prediction = TRUTH + [[0, 0, 0, 0, 1], [1, 0, 0, 2, 0]]
    assert squared_errors(TRUTH, prediction[None], TWO) == pytest.approx([0.5, 0.1 + 0.2 * 4])


def test_squared_errors_leave_out_what_is_unknown():
    truth = np.array([[np.nan, 0, 0, 1, 1], [0, 0, 0, 0, 4]])
    assert squared_errors(truth, np.nan_to_num(truth)[None] + 2, TWO) == pytest.approx(
        [4 * 0.9, 4 * 1.0]
    )


def test_squared_errors_of_a_repeat_are_of_what_it_holds_out():
    truth, splits = truth_of(13), folds_of(13, 3, 2)
    prediction = truth + np.random.default_rng(2).normal(size=(2, 13, 5))
    expected = [
        (WEIGHTS * (prediction[s.repeat, s.val_N] - truth[s.val_N]) ** 2).sum() for s in splits
    ]
    np.testing.assert_allclose(squared_errors(truth, prediction, splits), expected)


def test_squared_errors_of_a_batch_are_its_members():
    truth, splits = truth_of(13), folds_of(13, 3, 2)
    batch = truth + np.random.default_rng(2).normal(size=(4, 2, 13, 5))
    np.testing.assert_allclose(
        squared_errors(truth, batch, splits), [squared_errors(truth, p, splits) for p in batch]
    )


def test_a_failed_head_has_no_error():
    prediction = np.stack([TRUTH])
    prediction[0, 1] = np.nan
    assert np.isnan(squared_errors(TRUTH, prediction, TWO)).tolist() == [False, True]


def test_each_fold_is_predicted_by_the_choice_of_the_others():
    # Last epoch: fold 0 sees fold 1 and takes point 1, fold 1 sees fold 0 and takes point 0.
    # With the epoch: fold 0 takes point 0 of epoch 0 (.1 on fold 1), fold 1 still point 0 of epoch
    # 1.
    errors_EGQ = np.array([[[2.0, 0.1], [3, 4]], [[0.5, 0.9], [1.5, 0.3]]])
    found = honest_estimate(errors_EGQ, TRUTH, TWO)
    assert found.score == pytest.approx(1 - (1.5 + 0.9) / SST) and found.chosen_G == [1, 1]
    assert found.score_epoch == pytest.approx(1 - (2.0 + 0.9) / SST) and found.chosen_epoch_G == [
        2,
        0,
    ]


def test_one_point_has_its_plain_score():
    truth, splits = truth_of(20), folds_of(20, 4, 3)
    prediction = truth + np.random.default_rng(2).normal(0, 5, (3, 20, 5))
    found = honest_estimate(squared_errors(truth, prediction, splits)[None, None], truth, splits)
    score_R = weighted_r2(truth, prediction)
    assert found.per_repeat_R == pytest.approx(score_R.tolist())
    assert (found.score, found.sd) == pytest.approx((score_R.mean(), score_R.std(ddof=1)))
    assert found.score_epoch == found.score and found.chosen_G == [12]


@pytest.mark.parametrize(
    "n_epochs, n_points, score",
    [(1, 100, "score"), (20, 5, "score_epoch")],
    ids=["points", "epochs"],
)
def test_the_best_of_much_noise_is_not_what_it_seems(n_epochs, n_points, score):
    truth, splits, rng = truth_of(30), folds_of(30, 5, 2), np.random.default_rng(2)
    naive, honest = [], []
    for _ in range(60):  # sweeps whose points are all worth the same
        noisy = truth + rng.normal(0, 12, (n_epochs, n_points, 2, 30, 5))
        score_EG = weighted_r2(truth, noisy).mean(-1)
        naive.append(score_EG.max() - score_EG.mean())
        honest.append(
            getattr(honest_estimate(squared_errors(truth, noisy, splits), truth, splits), score)
            - score_EG.mean()
        )
    assert np.mean(naive) > 0.1
    assert abs(np.mean(honest)) < 3 * np.std(honest) / np.sqrt(60) < 0.05


def test_a_point_that_is_better_is_chosen_and_keeps_its_score():
    truth, splits = truth_of(60), folds_of(60, 5, 2)
    prediction = truth + np.random.default_rng(2).normal(0, 12, (4, 2, 60, 5)) * np.reshape(
        [1, 1, 0.3, 1], (4, 1, 1, 1)
    )
    found = honest_estimate(squared_errors(truth, prediction, splits)[None], truth, splits)
    assert found.chosen_G == [0, 0, 10, 0] and found.score == pytest.approx(
        weighted_r2(truth, prediction[2]).mean()
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_failed_in_one_split_is_never_chosen(value):
    # by fold 0 alone point 0 would predict fold 1
    errors_EGQ = np.array([[[0.1, value], [0.5, 0.9]]])
    found = honest_estimate(errors_EGQ, TRUTH, TWO)
    assert found.score == pytest.approx(1 - 1.4 / SST) and found.chosen_G == [0, 2]


def test_an_epoch_before_a_failure_may_be_chosen():
    found = honest_estimate(np.array([[[0.1, 0.2]], [[np.nan, 0.1]]]), TRUTH, TWO)
    assert np.isnan(found.score) and found.score_epoch == pytest.approx(1 - 0.3 / SST)


def test_where_all_failed_there_is_no_estimate():
    found = honest_estimate(np.full((2, 3, 2), np.nan), TRUTH, TWO)
    assert np.isnan(
        [found.score, found.score_epoch]
    ).all() and found.chosen_G == found.chosen_epoch_G == [0, 0, 0]


def test_one_fold_a_repeat_leaves_nothing_to_choose_by():
    one = [split for split in folds_of(20, 4, 3) if split.fold == 1]
    found = honest_estimate(np.ones((2, 3, 3)), truth_of(20), one)
    assert np.isnan(
        [found.score, found.score_epoch, *found.per_repeat_R]
    ).all() and found.chosen_G == [0, 0, 0]


def test_one_repeat_has_no_spread():
    assert np.isnan(honest_estimate(np.ones((1, 2, 2)), TRUTH, TWO).sd)


def test_only_the_folds_of_the_same_repeat_decide():
    splits = [*TWO, *(Split(1, s.fold, s.train_N, s.val_N) for s in TWO)]
    # point 0 is better in repeat 0, point 1 in repeat 1
    errors_EGQ = np.array([[[1.0, 1, 2, 2], [2, 2, 1, 1]]])
    found = honest_estimate(errors_EGQ, TRUTH, splits)
    assert found.per_repeat_R == pytest.approx([1 - 2 / SST] * 2) and found.chosen_G == [2, 2]
