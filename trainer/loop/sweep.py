"""run_sweep: the one training loop. Every head of every point and fold learns from one read of the
rows."""

import os
import shlex
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from featurestore.disk.durable import locked
from featurestore.disk.interrupts import check_interrupt, deferred_interrupts
from featurestore.disk.messages import new_bar
from featurestore.disk.urls import is_url
from featurestore.errors import BiomassError, InputError, MismatchError, list_some
from featurestore.store import FeatureStore
from trainer.data.splits import describe_folds, save_splits
from trainer.data.stream import everything
from trainer.data.tokens import TokenReader
from trainer.heads import kinds
from trainer.loop.bank_trainer import BankTrainer, Scored, can_go_on
from trainer.loop.checkpoint import Checkpoint
from trainer.loop.evaluate import pooled_score, predict_held_out
from trainer.loop.events import Events
from trainer.loop.grid import SweepConfig
from trainer.loop.identity import Identity, check_facts, check_settings
from trainer.loop.memory import keep_freed_memory
from trainer.loop.plan import too_large
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.results import (
    PointResult,
    baselines,
    close_bank,
    close_regressor,
    finish,
    loss_failure,
    save_heads,
    save_regressor,
)
from trainer.loop.runs import RunFolder, SweepFolder, SweepResult, moved_places, read_json
from trainer.loop.threads import same_threads
from trainer.score.metrics import in_targets_order


def describe_plan(sweep: Sweep) -> str:
    """Heads, passes, bytes, memory; hours by a step timed here."""
    plan = sweep.plan()
    size = f"folds    {describe_folds(sweep.folds)}\n{plan}"
    if not plan.passes:
        return size
    notes = "".join(f"\nnote     {remark}" for remark in sweep.remarks)
    if refusal := too_large(plan, sweep.data.device):
        return f"{size}\nrefused  {refusal}{notes}"
    reader = sweep.reader()
    step_s = _step_s(sweep, plan.passes[0], reader)
    hours = plan.seconds(step_s, sweep.data.n_images, sweep.base.trainer.batch_size) / 3600
    return (
        f"{size}\ntokens   {reader.residency}\ntime     about {hours:.2g} h: a step takes "
        f"{1000 * step_s:.0f} ms here{notes}"
    )


def _step_s(sweep: Sweep, points: Sequence[int], reader: TokenReader) -> float:
    """Seconds of a training step of one pass, timed after one to warm up."""
    keep_freed_memory()
    trainers, times = sweep.trainers(points), []
    for step in range(3):
        start = time.monotonic()
        train_step(sweep, trainers, reader, 0, step % sweep.stream.n_steps)
        times.append(time.monotonic() - start)
    return min(times[1:])


def run_sweep(
    config: SweepConfig,
    out: Path = Path("runs"),
    device: str = "auto",
    progress: bool = True,
    check: bool = True,
) -> SweepResult:
    """Train every head of a sweep and leave its folder under `out`.

    check : compare every row with its checksum before it is used first.
    InputError or MismatchError before any step if store and config do not fit, or a pass does not
    fit in memory. StoreDamaged for a row that is not what was committed, before any head learns
    from it; the folder can be resumed.
    """
    sweep = prepare_sweep(config, device, check=check)
    costs = sweep.plan()
    if refusal := too_large(costs, sweep.data.device):
        raise InputError(refusal)
    folder = SweepFolder.create(out, sweep.base.experiment.name)
    save_splits(sweep.folds, folder.path / "folds.csv")
    base = config.base.model_dump(mode="json")
    base["dataset"]["store"] = sweep.data.store.address
    runs = {name: config.settings(index) for index, name in enumerate(config.names)}
    plan = {
        "base": base,
        "axes": config.axes,
        "runs": runs,
        "passes": costs.passes,
        "device": device,
        "threads": torch.get_num_threads(),
        **sweep.facts,
    }
    folder.write_json("sweep.json", plan)  # last: a folder with it can be resumed
    return _run(sweep, folder, costs.passes, sweep.base.cv.fold == "all", progress)


def resume_sweep(
    path: Path,
    fold: str | None = None,
    store: Path | str | None = None,
    progress: bool = True,
    check: bool = True,
) -> SweepResult:
    """Go on with a sweep that was stopped, from the last checkpoint of each pass; on CPU to the
    same bits as without the stop.

    It computes with as many threads as the sweep began with, and warns where torch cannot set that
    number.

    store : where its store is now, path or URL; None is where it was, or where it is if it was
        moved together with the sweep.
    fold : "all" refits the chosen point on all images afterwards; so it can be asked of a finished
        sweep too.
    check : as in `run_sweep`.
    InputError if the folder is no sweep's, or the images that can be used are others; MismatchError
    if tokens, labels, folds, or settings that move a number are no longer those it began with.
    """
    plan = read_json(path / "sweep.json", "base", "axes", "passes", "device", "fingerprint")
    with same_threads(plan.get("threads"), path / "sweep.json"):
        return _resume(path, plan, fold, store, progress, check)


def _resume(
    path: Path, plan: dict, fold: str | None, store: Path | str | None, progress: bool, check: bool
) -> SweepResult:
    plan["base"]["dataset"]["store"] = str(
        store or _found_store(plan["base"]["dataset"]["store"], path, plan["fingerprint"])
    )
    given = SweepConfig.of(plan["base"], plan["axes"], path / "sweep.json")
    # its folds as it wrote them: they hold whatever made them, and its runs' configs go on naming
    # that
    sweep = prepare_sweep(
        given.with_folds(path / "folds.csv"), plan["device"], begun=True, check=check
    )
    sweep = replace(sweep, config=sweep.config.with_folds(given.base.cv.folds))
    began = {"pooled_dtype": "float32", **plan}
    advice = "bring back that store and folds.csv, or begin a new sweep"
    check_facts(began, sweep.facts, f"{sweep.data.store.path}, {path / 'folds.csv'}", advice)
    folder, whole = SweepFolder(path), fold == "all" or sweep.base.cv.fold == "all"
    if folder.is_finished and (not whole or folder.is_refitted):
        raise InputError(
            f"{path}: this sweep is finished, there is nothing to resume; --fold all refits its "
            "best point on all "
            "images"
        )
    if folder.is_finished:
        _check_finished(sweep, folder, "labels" in plan)
    _check_checkpoints(sweep, folder, plan["passes"])
    return _run(sweep, folder, plan["passes"], whole, progress)


def _check_checkpoints(sweep: Sweep, folder: SweepFolder, passes: Sequence[Sequence[int]]) -> None:
    """MismatchError, before regressors are fitted and their runs written, if a checkpoint is not of
    these passes and settings."""
    plan = folder.path / "sweep.json"
    trained = {
        p for p, point in enumerate(sweep.config.points) if kinds.load(point.head.kind).trained
    }
    if {p for points in passes for p in points} != trained:
        raise MismatchError(
            f"{plan}: its passes train the points {list(passes)}, its grid has {sorted(trained)} "
            "to train; bring "
            "back the file as it was"
        )
    known = {folder.checkpoint("refit"), *map(folder.checkpoint, passes)}
    for file in sorted(folder.checkpoint("refit").parent.glob("*.safetensors")):
        if file.with_name(file.name.removeprefix("previous_")) not in known:
            raise MismatchError(
                f"{file}: of no pass in {plan.name}; bring back that file as it was, or remove the "
                "checkpoint to "
                "train from the first epoch"
            )
    for points in passes:
        Checkpoint(folder.checkpoint(points)).check(Identity.of(sweep, points))


def _check_finished(sweep: Sweep, folder: SweepFolder, has_digests: bool) -> None:
    """A refit must be of the point that was chosen, as it was trained; MismatchError if sweep.json
    says something else now."""
    if (best := folder.result().best) is None:
        return
    plan = folder.path / "sweep.json"
    if best not in sweep.config.names:
        raise MismatchError(
            f"{plan}: has no point {best} any more, which the sweep found best; bring back the "
            "file as it was"
        )
    now = sweep.run_config(sweep.config.names.index(best))
    check_settings(
        folder.run(best).config,
        now,
        str(plan),
        f"it was {best}'s when the sweep was trained: bring that back",
    )
    if not has_digests:
        warnings.warn(
            f"{plan}: made before sweeps kept digests of labels and folds; whether they are still "
            "the same is not "
            "known",
            stacklevel=4,
        )


def _found_store(recorded: str, sweep: Path, fingerprint: str) -> str:
    """Where the sweep's store is: where it was, or at the same place beside the sweep, if all was
    moved together."""
    if is_url(recorded):
        return recorded
    for place in (Path(recorded), *moved_places(Path(recorded), sweep)):
        if (
            place.name == Path(recorded).name
            and os.path.exists(place)
            and _has_fingerprint(place, fingerprint)
        ):
            if place != Path(recorded):
                warnings.warn(
                    f"{recorded}: not there, or another store now; the sweep's store is {place}",
                    stacklevel=4,
                )
            return str(place)
    if not Path(recorded).exists():
        raise InputError(
            f"{recorded}: the sweep's store is no longer there, nor at the same place beside "
            f"{sweep} or above it; "
            "name its place with --store"
        )
    return recorded


def _has_fingerprint(store: Path, fingerprint: str) -> bool:
    try:
        with FeatureStore.open(store) as opened:
            return opened.spec.fingerprint == fingerprint
    except BiomassError:
        return False


def _run(
    sweep: Sweep, folder: SweepFolder, passes: Sequence[Sequence[int]], whole: bool, progress: bool
) -> SweepResult:
    keep_freed_memory()
    asked = " --fold all" if whole and sweep.base.cv.fold != "all" else ""
    way_on = f"biomass train --resume {shlex.quote(str(folder.path))}{asked} goes on from here"
    with locked(folder.path / "sweep"), deferred_interrupts(way_on):
        reader = sweep.reader()
        result = (
            folder.result()
            if folder.is_finished
            else _train(sweep, folder, passes, reader, progress)
        )
        if whole and (failure := _refit(sweep, folder, result, reader, progress)):
            result = replace(result, failed=result.failed | {"refit": failure})
        folder.remove_checkpoints()
        return result


def _train(
    sweep: Sweep,
    folder: SweepFolder,
    passes: Sequence[Sequence[int]],
    reader: TokenReader,
    progress: bool,
) -> SweepResult:
    """What is fitted on pooled rows, then every pass over the tokens."""
    runs = {p: folder.run(name) for p, name in enumerate(sweep.config.names)}
    results, beside = [], baselines(sweep)
    for p, point in enumerate(sweep.config.points):
        if not kinds.load(point.head.kind).trained:
            check_interrupt()
            results.append(close_regressor(sweep, p, runs[p]))
    for points in passes:
        results += _run_pass(
            sweep, points, runs, Checkpoint(folder.checkpoint(points)), reader, progress
        )
    return finish(sweep, folder, results, beside)


def _run_pass(
    sweep: Sweep,
    points: Sequence[int],
    runs: Mapping[int, RunFolder],
    checkpoint: Checkpoint,
    reader: TokenReader,
    progress: bool,
) -> list[PointResult]:
    """Train a pass and keep what it reached; its banks are gone before the next one makes its
    own."""
    trainers = _train_pass(sweep, points, runs, checkpoint, reader, progress)
    return [result for trainer in trainers for result in close_bank(sweep, trainer, reader, runs)]


def _refit(
    sweep: Sweep, folder: SweepFolder, result: SweepResult, reader: TokenReader, progress: bool
) -> str | None:
    """Train the best point on every image, as many steps as the heads of each fold took; its
    estimate is the sweep's.

    Returns why it failed, or None.
    """
    if result.best is None:
        failed = list_some([f"{name}: {why}" for name, why in result.failed.items()])
        raise InputError(
            f"{folder.path}: no point can be refitted: all failed, or are for reports only{failed}"
        )
    p = sweep.config.names.index(result.best)
    whole = Sweep.of(
        sweep.config,
        sweep.data,
        sweep.folds,
        [everything(sweep.data.n_images, sweep.base.cv.n_folds)],
    )
    runs = {p: folder.refit}
    if kinds.load(sweep.config.points[p].head.kind).trained:
        (trainer,) = _train_pass(
            whole, [p], runs, Checkpoint(folder.checkpoint("refit")), reader, progress
        )
        save_heads(whole, trainer, runs, "last")
        if not folder.is_refitted:
            trainer.failed_QG[trainer.failed_QG < 0] = trainer.n_batches
            return loss_failure(trainer.failed_QG[:, 0], whole.n_batches)
        return None
    try:
        save_regressor(whole, p, runs[p])
    except InputError as err:
        return str(err)
    return None


def _train_pass(
    sweep: Sweep,
    points: Sequence[int],
    runs: Mapping[int, RunFolder],
    checkpoint: Checkpoint,
    reader: TokenReader,
    progress: bool,
) -> list[BankTrainer]:
    """Train the heads of some points together; their state is kept after the last epoch and on an
    exception, to go on from."""
    base, trainers, identity = sweep.base, sweep.trainers(points), Identity.of(sweep, points)
    checkpoint.load(trainers, identity)
    first, epochs, every = (
        len(trainers[0].errors_QG),
        base.trainer.num_epochs,
        base.trainer.checkpoint_every,
    )
    for p in points:
        runs[p].begin(sweep.run_config(p), sweep.data.store, sweep.data.states, first)
    events = Events([runs[p].path for p in points] if base.trainer.tensorboard else [], first)
    try:
        with new_bar("train", epochs, "epoch", progress, initial=first) as bar:
            for epoch in range(first, epochs):
                start = time.monotonic()
                train_epoch(sweep, trainers, reader, epoch)
                records, scored = _validate(sweep, trainers, reader, time.monotonic() - start)
                # before the trainers know: a resume drops lines of epochs they do not know
                for p, record in records.items():
                    runs[p].log({"epoch": epoch, **record})
                    events.log(runs[p].path, epoch, record)
                for trainer, each in zip(trainers, scored, strict=True):
                    trainer.keep_best(each)
                if epoch + 1 == epochs or (every and (epoch + 1) % every == 0):
                    checkpoint.save(trainers, identity)
                bar.set_postfix(_progress(records, sweep.stream.n_steps), refresh=False)
                bar.update()
                check_interrupt()
    except BaseException:
        # a stop between two steps, or a fault: a row that rotted, a full disk, too little memory
        if can_go_on(trainers):
            checkpoint.save(trainers, identity)
        raise
    return trainers


def train_epoch(
    sweep: Sweep, trainers: Sequence[BankTrainer], reader: TokenReader, epoch: int
) -> None:
    """One epoch of every bank, or what is left of it; the rows of a step are read once and serve
    all of them."""
    for step in range(trainers[0].n_batches - epoch * sweep.stream.n_steps, sweep.stream.n_steps):
        train_step(sweep, trainers, reader, epoch, step)
        check_interrupt()


def train_step(
    sweep: Sweep, trainers: Sequence[BankTrainer], reader: TokenReader, epoch: int, step: int
) -> None:
    """One batch of every split, for every bank."""
    stream, base = sweep.stream, sweep.base.trainer
    batch = stream.batch(epoch, step)
    asking = {trainer.bank.kind for trainer in trainers}
    shared = sweep.data.inputs(batch, reader.step(sweep.data.stored(batch.rows_U2)), asking)
    if step + 1 < stream.n_steps:
        reader.expect(sweep.data.stored(stream.batch(epoch, step + 1).rows_U2))
    mixing = epoch < round((1 - sweep.base.augmentation.mixup.disable_ratio) * base.num_epochs)
    last = epoch * stream.n_steps + step + 1 == sweep.n_batches
    for trainer in trainers:
        inputs = trainer.inputs(shared, sweep.data, stream, batch, (epoch, step), mixing)
        trainer.step(inputs, batch, base.gradient_accumulation_steps, last)


def _validate(
    sweep: Sweep, trainers: Sequence[BankTrainer], reader: TokenReader, train_s: float
) -> tuple[dict[int, dict], list[Scored]]:
    """Score the averages of all heads on view 0 of what they hold out: what is to be logged of each
    point, and of each bank."""
    batch_size = sweep.base.trainer.batch_size
    predictions = predict_held_out(
        [t.averaged for t in trainers], sweep.data, reader, sweep.splits, batch_size
    )
    truth_N5, records, scored = in_targets_order(sweep.data.truth_N5), {}, []
    for trainer, prediction in zip(trainers, predictions, strict=True):
        masses_GRN5 = trainer.masses(prediction.masses_GRN5)
        scored.append(Scored.of(masses_GRN5, truth_N5, sweep.splits))
        loss_QG = np.mean(trainer.losses_QG, 0)
        for g, p in enumerate(trainer.points):
            records[p] = {
                "loss": loss_QG[:, g].mean(),
                "score": pooled_score(truth_N5, masses_GRN5[g], sweep.splits),
                "fold_loss": loss_QG[:, g].tolist(),
                "fold_score": scored[-1].score_QG[:, g].tolist(),
                "lr": trainer.optimizer.lr(g),
                "train_s": train_s,
            }
    return records, scored


def _progress(records: Mapping[int, dict], n_steps: int) -> dict[str, str]:
    best = max((r["score"] for r in records.values() if r["score"] == r["score"]), default=np.nan)
    # the score of whoever leads at this epoch, on the plain view
    return {
        "score": f"{best:.4f}",
        "ms/step": f"{1000 * next(iter(records.values()))['train_s'] / n_steps:.0f}",
    }
