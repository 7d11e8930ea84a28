"""run_sweep: the one training loop, read from top to bottom.

Every head of every point and fold learns from one read of the rows: `run_sweep` plans,
`train_sweep` goes through the passes, `train_pass` through epochs and steps, `train_step` through
the banks that share a batch.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from featurestore.disk.durable import locked
from featurestore.disk.interrupts import check_interrupt, deferred_interrupts, go_on_with
from featurestore.disk.messages import new_bar
from featurestore.errors import InputError, list_some
from trainer.data.dataset import inputs_of
from trainer.data.readers import TokenReaders
from trainer.data.stream import Batch
from trainer.heads import kinds
from trainer.heads.bank import Outputs
from trainer.loop.bank_trainer import BankTrainer, Scored, can_go_on
from trainer.loop.baselines import completing
from trainer.loop.begin import FITS, Begun, Item, begin_sweep
from trainer.loop.checkpoint import Checkpoint
from trainer.loop.evaluate import pooled_score, predict_held_out
from trainer.loop.events import Events
from trainer.loop.fits import close_baselines, close_regressor, save_regressor
from trainer.loop.grid import SweepConfig
from trainer.loop.identity import Identity
from trainer.loop.memory import keep_freed_memory
from trainer.loop.notes import Note
from trainer.loop.prepare import Sweep
from trainer.loop.refit import RefitMember, end_refit, refit_members
from trainer.loop.result import SweepResult
from trainer.loop.results import PointResult, close_bank, loss_failure, save_heads
from trainer.loop.runs import RunFolder, SweepFolder
from trainer.loop.summary import finish
from trainer.loop.trained import load_results, save_results


def run_sweep(
    config: SweepConfig,
    out: Path = Path("runs"),
    device: str = "auto",
    progress: bool = True,
    check: bool = True,
) -> SweepResult:
    """Train every head of a sweep and leave its folder under `out`.

    check : compare every row with its checksum before it is used first.

    Raises InputError or MismatchError before any step if store and config do not fit, or a pass
    does not fit in memory. StoreDamaged for a row that is not what was committed, before any head
    learns from it; the folder can be resumed.
    """
    begun = begin_sweep(config, out, device, check)
    return train_sweep(begun, begun.sweep.base.cv.fold == "all", progress)


def train_sweep(begun: Begun, refits: bool, progress: bool) -> SweepResult:
    """What is fitted on pooled rows, then every pass over the tokens, then the results; of a
    finished sweep the refit alone. What is trained by now is read.

    refits : train what the sweep chose on all images afterwards. LockedError where another process
        is at the sweep or at one of its passes.
    """
    keep_freed_memory()
    sweep = begun.sweep
    folder = begun.folder
    options = ("--fold", "all") if refits and sweep.base.cv.fold != "all" else ()
    way_on = go_on_with(begun.command(*options))
    # opened where something is left to train: on a device it is every row of the store
    reader = functools.cache(sweep.reader)
    with locked(folder.path / "sweep"), begun.all_locked(), deferred_interrupts(way_on):
        if folder.is_finished:
            result = folder.result()
        else:
            baselines, results = fit_points(begun, progress)
            for points in begun.passes:
                results += pass_results(begun, points, reader, progress)
            result = finish(sweep, folder, results, baselines)
        if refits and (failure := _refit(sweep, folder, result, reader(), progress)):
            result = replace(result, failed=result.failed | {"refit": failure})
        folder.remove_checkpoints()
        return result


def train_alone(begun: Begun, item: Item, progress: bool) -> list[PointResult]:
    """One pass, or what is fitted, while other processes are at others; what is trained by now is
    read. Of a finished sweep nothing.

    LockedError where another process is at it.
    """
    keep_freed_memory()
    way_on = go_on_with(begun.command("--pass", item))
    with locked(begun.lock(item)), deferred_interrupts(way_on):
        # asked under the lock: the sweep may have been finished while this process began
        if begun.folder.is_finished:
            return []
        if item == FITS:
            baselines, results = fit_points(begun, progress)
            return [*baselines, *results]
        points = begun.passes[item]
        return pass_results(begun, points, begun.sweep.reader, progress)


def fit_points(begun: Begun, progress: bool) -> tuple[list[PointResult], list[PointResult]]:
    """The baselines beside the board, and the points that are fitted on pooled rows."""
    sweep = begun.sweep
    folder = begun.folder
    runs = begun.runs
    fitted = []
    for p in runs:
        head = sweep.config.points[p].head
        if not kinds.load(head.kind).trained:
            fitted.append(p)
    n_beside = len(completing(sweep.data.targets, []))
    n_fits = (n_beside + len(fitted)) * len(sweep.splits)
    with new_bar("fit", n_fits, "fit", progress) as bar:
        baselines = close_baselines(sweep, folder, bar.update)
        results = []
        for p in fitted:
            note = Note(folder.fit_note(p))
            results.append(close_regressor(sweep, p, runs[p], note, bar.update))
    return baselines, results


def pass_results(
    begun: Begun,
    points: Sequence[int],
    reader: Callable[[], TokenReaders],
    progress: bool,
) -> list[PointResult]:
    """What the points of a pass came to: as it was saved, or else trained now and saved."""
    sweep = begun.sweep
    folder = begun.folder
    runs = begun.runs
    note = Note(folder.pass_note(points))
    identity = Identity.of(sweep, points)
    results = load_results(note, sweep, runs, identity)
    if results is not None:
        return results

    opened = reader()
    checkpoint = Checkpoint(folder.checkpoint(points))
    trainers = train_pass(sweep, points, runs, checkpoint, opened, progress)
    results = []
    while trainers:  # a bank is gone before the next pass makes its own
        results += close_bank(sweep, trainers.pop(0), opened, runs)
    save_results(note, results, runs, identity)
    return results


def train_pass(
    sweep: Sweep,
    points: Sequence[int],
    runs: Mapping[int, RunFolder],
    checkpoint: Checkpoint,
    reader: TokenReaders,
    progress: bool,
) -> list[BankTrainer]:
    """Train the heads of some points together, from their checkpoint if there is one.

    Their state is kept after the last epoch and on an exception, to go on from.
    """
    settings = sweep.base.trainer
    n_epochs = settings.num_epochs
    n_steps = sweep.stream.n_steps
    trainers = sweep.trainers(points)
    identity = Identity.of(sweep, points)
    checkpoint.load(trainers, identity)

    first = len(trainers[0].errors_QG)  # epochs that the checkpoint ended; all banks agree
    for p in points:
        runs[p].begin(sweep.run_config(p), sweep.data, first)
    told = [runs[p].path for p in points] if settings.tensorboard else []
    events = Events(told, first)
    try:
        with new_bar("train", n_epochs, "epoch", progress, initial=first) as bar:
            for epoch in range(first, n_epochs):
                start = time.monotonic()
                # from its first step, or from where a stop left it
                for step in range(trainers[0].n_batches - epoch * n_steps, n_steps):
                    train_step(sweep, trainers, reader, epoch, step)
                    check_interrupt()
                # a device computes on after its steps have been launched
                trainers[-1].noted()
                train_s = time.monotonic() - start

                records, scored = score_epoch(sweep, trainers, reader, train_s)
                # before the trainers know: a resume drops lines of epochs they do not know
                for p, record in records.items():
                    runs[p].log({"epoch": epoch, **record})
                    events.log(runs[p].path, epoch, record)
                for trainer, each in zip(trainers, scored, strict=True):
                    trainer.keep_best(each)

                n_done = epoch + 1
                is_due = settings.checkpoint_every > 0 and n_done % settings.checkpoint_every == 0
                if is_due or n_done == n_epochs:
                    checkpoint.save(trainers, identity)

                # the score of whoever leads at this epoch, on view 0
                scores = [record["score"] for record in records.values()]
                known = [score for score in scores if not np.isnan(score)]
                notes = {"ms/step": f"{1000 * train_s / n_steps:.0f}"}
                if known:  # a refit holds nothing out
                    notes = {"score": f"{max(known):.4f}", **notes}
                bar.set_postfix(notes, refresh=False)
                bar.update()
                check_interrupt()
    except BaseException:
        # a stop between two steps, or a fault: a row that rotted, a full disk, too little memory
        if can_go_on(trainers) and not checkpoint.has_tried(trainers):
            checkpoint.save(trainers, identity)
        raise
    finally:
        events.close()
    return trainers


def train_step(
    sweep: Sweep,
    trainers: Sequence[BankTrainer],
    reader: TokenReaders,
    epoch: int,
    step: int,
) -> None:
    """One batch of every split, for every bank: its rows are read once and serve all of them."""
    stream = sweep.stream
    settings = sweep.base.trainer
    batch = stream.batch(epoch, step)
    rows = reader.step(batch.rows_U2)
    # the last epochs train on unmixed photographs, as those to predict are
    disable_ratio = sweep.base.augmentation.mixup.disable_ratio
    mixes = epoch < round((1 - disable_ratio) * settings.num_epochs)
    banks = [trainer.bank for trainer in trainers]
    partners = {trainer.partners for trainer in trainers if mixes and trainer.can_mix}
    shared = sweep.data.inputs(batch, rows, banks, partners)
    if step + 1 < stream.n_steps:  # read ahead while this batch computes
        reader.expect(stream.batch(epoch, step + 1).rows_U2)

    is_last = epoch * stream.n_steps + step + 1 == sweep.n_batches

    def learn(trainer: BankTrainer) -> None:
        own = inputs_of(trainer.bank, shared)
        inputs = trainer.inputs(own, sweep.data, stream, batch, (epoch, step), mixes)
        outputs = trainer.bank(inputs)
        loss_QG = trainer.loss(outputs, inputs)
        trainer.step(loss_QG, settings.gradient_accumulation_steps, is_last)

    sweep.data.each_bank(learn, trainers, shared, banks)


def score_epoch(
    sweep: Sweep,
    trainers: Sequence[BankTrainer],
    reader: TokenReaders,
    train_s: float,
) -> tuple[dict[int, dict], list[Scored]]:
    """Score the averages of all heads on view 0 of what they hold out: what is to be logged of each
    point, and of each bank."""
    averaged = [trainer.averaged for trainer in trainers]
    batch_size = sweep.base.trainer.batch_size
    # a refit holds nothing out: its latest weights are its best
    by_loss = sweep.base.trainer.best_by == "loss" and sweep.holds_out
    loss_sums = [np.zeros(trainer.failed_QG.shape) for trainer in trainers]

    def add_loss(b: int, outputs: Outputs, batch: Batch) -> None:
        if by_loss:
            loss_sums[b] += trainers[b].held_out_loss(outputs, batch)

    predictions = predict_held_out(
        averaged,
        sweep.data,
        reader,
        sweep.splits,
        batch_size,
        see=add_loss,
    )

    n_held_out_Q1 = np.array([[len(split.val_N)] for split in sweep.splits])
    records = {}
    scored = []
    for trainer, prediction, sum_QG in zip(trainers, predictions, loss_sums, strict=True):
        values_GRNK = trainer.constrained(prediction.values_GRNK)
        scored_GRNK = sweep.scored(values_GRNK, prediction.word_GRNC)
        held_out_loss_QG = sum_QG / n_held_out_Q1 if by_loss else None
        each = Scored.of(
            sweep.by,
            scored_GRNK,
            sweep.scored_truth_NK,
            sweep.splits,
            held_out_loss_QG,
        )
        scored.append(each)
        loss_QG = trainer.noted().mean(0)
        score_G = pooled_score(sweep.by, sweep.scored_truth_NK, scored_GRNK, sweep.splits)
        for g, p in enumerate(trainer.points):
            records[p] = {
                "loss": loss_QG[:, g].mean(),
                "score": float(score_G[g]),
                "fold_loss": loss_QG[:, g].tolist(),
                "fold_score": sweep.by.merit(each.merit_QG[:, g]).tolist(),
                "lr": trainer.optimizer.lr(g),
                "train_s": train_s,
            }
            if by_loss:
                records[p]["fold_val_loss"] = held_out_loss_QG[:, g].tolist()
    return records, scored


def _refit(
    sweep: Sweep,
    folder: SweepFolder,
    result: SweepResult,
    reader: TokenReaders,
    progress: bool,
) -> str | None:
    """Train each member of what the sweep chose on every image, as many steps as the heads of each
    fold took; the estimate is the sweep's.

    Returns why one failed, or None.
    """
    members = refit_members(sweep, folder)
    if not members:
        failed = list_some([f"{name}: {why}" for name, why in result.failed.items()])
        raise InputError(
            f"{folder.path}: no point can be refitted: all failed, or are for reports only{failed}"
        )

    for member in members:
        check_interrupt()
        if member.is_done:
            continue
        failure = _refit_member(member, reader, progress)
        if failure:
            return f"{member.name}: {failure}" if len(members) > 1 else failure
    end_refit(folder, members)
    return None


def _refit_member(member: RefitMember, reader: TokenReaders, progress: bool) -> str | None:
    whole = member.whole
    if not member.is_trained:
        try:
            save_regressor(whole, member.p, member.run)
        except InputError as err:
            return str(err)
        return None

    runs = {member.p: member.run}
    (trainer,) = train_pass(
        whole,
        [member.p],
        runs,
        Checkpoint(member.checkpoint),
        reader,
        progress,
    )
    save_heads(whole, trainer, runs, "last")
    if member.is_done:
        return None
    # no head was saved, though its loss may have been finite: its last step spoilt the weights
    trainer.failed_QG[trainer.failed_QG < 0] = trainer.n_batches
    return loss_failure(trainer.failed_QG[:, 0], whole.n_batches)
