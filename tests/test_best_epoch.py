"""Which epoch's weights are kept as best, by masses made by hand; and the batch at which a head
failed."""

import numpy as np
import pytest
import torch
from preset import BY
from sklearn.metrics import r2_score
from sweeps import config

from trainer.loop.bank_trainer import Scored
from trainer.loop.prepare import prepare_sweep
from trainer.loop.sweep import train_step

N_POINTS = 2


@pytest.fixture(scope="module")
def sweep(store, tmp_path_factory):
    """Two points, two repeats of three folds."""
    given = config(tmp_path_factory.mktemp("best"), store, kind="[density]", repeats=2)
    return prepare_sweep(given, "cpu", torch.float64)


class Judged:
    """A trainer whose averages of an epoch are all that epoch's number, and whose weights are
    -1."""

    def __init__(self, sweep) -> None:
        self.splits, (self.trainer,) = sweep.splits, sweep.trainers(range(N_POINTS))
        self.truth_N5 = sweep.data.truth_table_NK
        self.n_epochs = 0
        with torch.no_grad():
            for tensor in self.trainer.bank.tensors.values():
                tensor.fill_(-1)

    def after(self, off_by_QG: np.ndarray, truth_N5: np.ndarray | None = None) -> np.ndarray:
        """End an epoch in which every mass that a head holds out is off by so many grams; fold
        scores."""
        truth_N5 = self.truth_N5 if truth_N5 is None else truth_N5
        masses_GRN5 = np.full(
            (N_POINTS, 2, *truth_N5.shape), 1e6
        )  # nobody may look at other images' masses
        for q, split in enumerate(self.splits):
            held_out = truth_N5[split.val_N]
            for g in range(N_POINTS):
                masses_GRN5[g, split.repeat, split.val_N] = held_out + off_by_QG[q, g]
        for average in self.trainer.optimizer.average.values():
            average.fill_(self.n_epochs)
        self.n_epochs += 1
        scored = Scored.of(BY, masses_GRN5, truth_N5, self.splits)
        self.trainer.keep_best(scored)
        return scored.merit_QG

    @property
    def kept_QG(self) -> list[list[int]]:
        """The epoch whose averages are kept, which must be the epoch that is told."""
        for tensor in self.trainer.best.values():
            flat = tensor.flatten(2)
            assert (flat == flat[..., :1]).all()
            assert (flat[..., 0].numpy() == self.trainer.best_epoch_QG).all()
        return self.trainer.best_epoch_QG.astype(int).tolist()


@pytest.fixture
def judged(sweep) -> Judged:
    return Judged(sweep)


EVEN = np.full((6, N_POINTS), 2.0)


def test_better_replaces_worse_does_not(judged):
    for off_by in (3, 2, 5):
        judged.after(np.full((6, N_POINTS), float(off_by)))
    assert judged.kept_QG == [[1, 1]] * 6


def test_of_equal_epochs_the_first_is_kept(judged):
    for _ in range(3):
        judged.after(EVEN)
    assert judged.kept_QG == [[0, 0]] * 6


def test_every_head_is_judged_by_what_it_holds_out(judged):
    judged.after(EVEN)
    better = EVEN.copy()
    better[1, 0], better[4, 1], better[5, 0] = 1, 1.5, 3
    judged.after(better)
    assert judged.kept_QG == [[0, 0], [1, 0], [0, 0], [0, 0], [0, 1], [0, 0]]


def test_scores_are_r2_of_the_fold_alone(judged):
    off_by = np.arange(12.0).reshape(6, 2)
    found_QG = judged.after(off_by)
    for q, split in enumerate(judged.splits):
        truth = judged.truth_N5[split.val_N]
        weights = np.broadcast_to([0.1, 0.1, 0.1, 0.2, 0.5], truth.shape).ravel()
        for g in range(N_POINTS):
            guess = (truth + off_by[q, g]).ravel()
            assert found_QG[q, g] == pytest.approx(
                r2_score(truth.ravel(), guess, sample_weight=weights)
            )
    assert judged.trainer.best_score_QG == pytest.approx(found_QG)


def test_a_fold_without_a_score_keeps_its_latest_weights(judged):
    """Of one value in all masses R2 is not defined."""
    even = judged.truth_N5.copy()
    even[judged.splits[2].val_N] = 7.0
    for off_by in (1.0, 2.0, 3.0):
        score_QG = judged.after(np.full((6, N_POINTS), off_by), even)
    assert np.isnan(score_QG[2]).all() and judged.kept_QG[2] == [2, 2]
    assert judged.kept_QG[0] == judged.kept_QG[1] == [0, 0]


def test_a_head_that_fails_keeps_the_best_before(judged):
    judged.after(EVEN)
    failed = EVEN.copy()
    failed[3, 1] = np.nan
    judged.after(failed)
    assert judged.kept_QG == [[0, 0]] * 6
    assert (
        np.isnan(judged.trainer.errors_QG[1][3, 1])
        and np.isfinite(judged.trainer.errors_QG[1]).sum() == 11
    )


def test_errors_are_weighted_squares_of_what_each_split_holds_out(judged):
    off_by = np.arange(12.0).reshape(6, 2)
    judged.after(off_by)
    n_Q = np.array([[len(split.val_N)] for split in judged.splits])
    assert judged.trainer.errors_QG[0] == pytest.approx(n_Q * off_by**2)  # the weights sum to 1


def test_masses_obey_each_points_constraints(sweep):
    (trainer,) = sweep.trainers(range(N_POINTS))
    clip = trainer.configs[1].model_copy(
        update={
            "inference": trainer.configs[1].inference.model_copy(update={"constraints": "clip"})
        }
    )
    trainer.configs = [trainer.configs[0], clip]
    raw = np.array(
        [3.0, 10, 2, 77, 88]
    )  # GDM above Total; Dead and Clover are differences, whatever was predicted
    ordered, clipped = trainer.constrained(np.tile(raw, (N_POINTS, 1, 1, 1)))[:, 0, 0]
    assert ordered == pytest.approx([2, 0, 3, 5, 5])  # (.5 * 3 + .2 * 10) / .7
    assert clipped == pytest.approx([2, 0, 8, 10, 10])


def test_the_first_batch_without_a_finite_loss_is_noted_and_stays(tmp_path, store):
    sweep = prepare_sweep(config(tmp_path, store, kind="[cls_gating]", lr="[1e-2, 1e30]"), "cpu")
    (trainer,), reader, losses_QG = sweep.trainers(range(2)), sweep.reader(), []
    for epoch, step in np.ndindex(2, sweep.stream.n_steps):
        train_step(sweep, [trainer], reader, epoch, step)
        losses_QG.append(trainer.losses_QG[-1].numpy())
    trainer.noted()
    finite_Q = np.isfinite(np.array(losses_QG)[..., 1])
    assert not finite_Q[-2:].any()  # so there are several to choose from
    assert trainer.failed_QG[:, 1].tolist() == (~finite_Q).argmax(0).tolist()
    assert trainer.failed_QG[:, 0].tolist() == [-1, -1, -1]
