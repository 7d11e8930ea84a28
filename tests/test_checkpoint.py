"""What a pass leaves behind to go on from: the newest state, and the one before it."""

import resource
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from sweeps import config, train_epoch

from featurestore.errors import InputError, MismatchError, StoreDamaged
from trainer.loop.bank_trainer import BankTrainer, Scored, can_go_on
from trainer.loop.checkpoint import Checkpoint
from trainer.loop.identity import Identity
from trainer.loop.prepare import Sweep, prepare_sweep


def one_density(tmp_path: Path, store: Path) -> Sweep:
    return prepare_sweep(config(tmp_path, store, kind="[density]", lr="[1e-2]"), "cpu")


def saved_twice(
    sweep: Sweep, points: Sequence[int], folder: Path
) -> tuple[Checkpoint, list[BankTrainer]]:
    """Two epochs of some points, each with a checkpoint."""
    name = f"points{points[0]}-{points[-1]}.safetensors"
    checkpoint = Checkpoint(folder / "checkpoints" / name)
    trainers = sweep.trainers(points)
    for epoch in range(2):
        train_epoch(sweep, trainers, sweep.reader(), epoch)
        checkpoint.save(trainers, Identity.of(sweep, points))
    return checkpoint, trainers


def flipped(whole: bytes) -> bytes:
    """One bit of the last tensor."""
    return whole[:-2] + bytes([whole[-2] ^ 0x40]) + whole[-1:]


@contextmanager
def full_disk():
    """Writing beyond fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "damaged", [lambda whole: whole[:1000], flipped], ids=["cut", "a bit flipped"]
)
def test_a_damaged_checkpoint_costs_the_epochs_since_the_one_before(tmp_path, store, damaged):
    sweep = prepare_sweep(config(tmp_path, store), "cpu")
    identity = Identity.of(sweep, range(4))
    checkpoint, _ = saved_twice(sweep, range(4), tmp_path)
    checkpoint.path.write_bytes(damaged(checkpoint.path.read_bytes()))
    fresh = sweep.trainers(range(4))
    with pytest.warns(UserWarning, match="going on from previous_points0-3.safetensors"):
        checkpoint.load(fresh, identity)
    assert [trainer.n_batches for trainer in fresh] == [sweep.stream.n_steps] * len(fresh)
    checkpoint.previous.write_bytes(b"")
    with pytest.raises(StoreDamaged, match="not a checkpoint of this sweep"):
        checkpoint.load(fresh, identity)


def test_a_full_disk_keeps_the_whole_checkpoint_where_the_newest_was_damaged(tmp_path, store):
    sweep = one_density(tmp_path, store)
    identity = Identity.of(sweep, [0])
    checkpoint, trainers = saved_twice(sweep, [0], tmp_path)
    checkpoint.path.write_bytes(b"")
    whole = checkpoint.previous.read_bytes()
    with pytest.warns(UserWarning, match="going on from previous_points0-0.safetensors"):
        checkpoint.load(trainers, identity)
    train_epoch(sweep, trainers, sweep.reader(), 1)
    with full_disk(), pytest.raises(InputError, match="cannot be written"):
        checkpoint.save(trainers, identity)
    assert checkpoint.previous.read_bytes() == whole
    checkpoint.save(trainers, identity)
    assert checkpoint.previous.read_bytes() == whole


def test_a_whole_checkpoint_becomes_the_previous_one(tmp_path, store):
    sweep = one_density(tmp_path, store)
    identity = Identity.of(sweep, [0])
    checkpoint, trainers = saved_twice(sweep, [0], tmp_path)
    newest = checkpoint.path.read_bytes()
    checkpoint.load(trainers, identity)
    train_epoch(sweep, trainers, sweep.reader(), 2)
    checkpoint.save(trainers, identity)
    assert checkpoint.previous.read_bytes() == newest != checkpoint.path.read_bytes()


def test_settings_are_compared_where_the_newest_is_cut(tmp_path, store):
    sweep = one_density(tmp_path, store)
    checkpoint, _ = saved_twice(sweep, [0], tmp_path)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:1000])
    checkpoint.check(Identity.of(sweep, [0]))
    other = prepare_sweep(config(tmp_path, store, kind="[density]", lr="[2e-2]"), "cpu")
    with pytest.raises(MismatchError, match="optimization.lr was 0.01 and is 0.02 now"):
        checkpoint.check(Identity.of(other, [0]))


def test_a_bank_whose_epoch_broke_off_at_its_end_is_not_whole(tmp_path, store):
    sweep = one_density(tmp_path, store)
    (trainer,) = sweep.trainers([0])
    train_epoch(sweep, [trainer], sweep.reader(), 0)
    scores_QG = np.ones(trainer.failed_QG.shape)
    trainer.best_QGn = trainer.best_QGn[:0]
    trainer.best_score_QG[:] = np.nan
    with pytest.raises(RuntimeError, match="size"):
        trainer.keep_best(Scored(scores_QG, scores_QG))
    assert not trainer.is_whole and not can_go_on([trainer])


def test_heads_that_failed_are_still_marked_after_a_resume(tmp_path, store):
    sweep = prepare_sweep(config(tmp_path, store, kind="[cls_gating]", lr="[1e-2, 1e30]"), "cpu")
    checkpoint, (trainer,) = (
        Checkpoint(tmp_path / "checkpoints" / "points0-1.safetensors"),
        sweep.trainers([0, 1]),
    )
    identity = Identity.of(sweep, [0, 1])
    train_epoch(sweep, [trainer], sweep.reader(), 0)
    checkpoint.save([trainer], identity)
    (fresh,) = sweep.trainers([0, 1])
    checkpoint.load([fresh], identity)
    # the first step of the optimiser spoils the second batch
    assert (fresh.failed_QG == [[-1, 1]] * 3).all()
    train_epoch(sweep, [fresh], sweep.reader(), 1)
    assert (fresh.failed_QG == [[-1, 1]] * 3).all()


def test_a_flipped_bit_is_found_before_anything_is_restored(tmp_path, store):
    sweep = one_density(tmp_path, store)
    checkpoint, (trainer,) = (
        Checkpoint(tmp_path / "checkpoints" / "points0-0.safetensors"),
        sweep.trainers([0]),
    )
    identity = Identity.of(sweep, [0])
    checkpoint.save([trainer], identity)
    checkpoint.path.write_bytes(flipped(checkpoint.path.read_bytes()))
    train_epoch(sweep, [trainer], sweep.reader(), 0)
    trained = {name: tensor.detach().clone() for name, tensor in trainer.bank.tensors.items()}
    with pytest.raises(StoreDamaged, match="CRC-32C of its tensors"):
        checkpoint.load([trainer], identity)
    assert all(torch.equal(trainer.bank.tensors[name], tensor) for name, tensor in trained.items())


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, store):
    sweep = prepare_sweep(config(tmp_path, store), "cpu")
    checkpoint, trainers = (
        Checkpoint(tmp_path / "checkpoints" / "points0-3.safetensors"),
        sweep.trainers(range(4)),
    )
    identity = Identity.of(sweep, range(4))
    train_epoch(sweep, trainers, sweep.reader(), 0)
    checkpoint.save(trainers, identity)
    train_epoch(sweep, trainers, sweep.reader(), 1)
    with full_disk(), pytest.raises(InputError, match="cannot be written"):
        checkpoint.save(trainers, identity)
    fresh = sweep.trainers(range(4))
    checkpoint.load(fresh, identity)
    assert [trainer.n_batches for trainer in fresh] == [sweep.stream.n_steps] * len(fresh)
    assert [p.name for p in checkpoint.path.parent.iterdir()] == ["previous_points0-3.safetensors"]
