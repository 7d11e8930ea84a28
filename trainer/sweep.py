"""run_sweep: the one training loop. Every head of every point and fold learns from one read of the rows."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from featurestore._bytes import locked
from featurestore._interrupts import check_interrupt
from featurestore.backbone import choose_device
from featurestore.errors import InputError, MismatchError
from trainer.baselines import baselines, pooled_features
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.config import PointConfig, SweepConfig
from trainer.data import TrainingData
from trainer.evaluate import Scores, oof_table, pooled_score, predict_held_out, score
from trainer.heads import Bank, HeadShape, Inputs, new_bank
from trainer.loss import LossWeights, initial_biases, multi_task_loss
from trainer.memory import keep_freed_memory
from trainer.metrics import constrained, in_targets_order, weighted_r2
from trainer.optimizer import BankOptimizer
from trainer.plan import Plan, plan_sweep
from trainer.pooling import TokenReader, compute_dtype
from trainer.report import draw_curves, draw_leaderboard
from trainer.runs import WEIGHTS, RunFolder, SweepFolder, read_json
from trainer.splits import make_splits, read_splits, save_splits
from trainer.stream import Batch, Split, Stream, make_splits_of, mixup_share


@dataclass(frozen=True)
class Sweep:
    """A sweep ready to run: its points, what they learn from and what each fold may see."""

    config: SweepConfig
    data: TrainingData
    folds: pd.DataFrame
    splits: list[Split]
    stream: Stream

    @property
    def base(self) -> PointConfig:
        return self.config.base

    @property
    def n_repeats(self) -> int:
        return self.base.cv.repeats

    def plan(self) -> Plan:
        return plan_sweep(self.config, self.data, self.splits, self.stream)


@dataclass(frozen=True)
class SweepResult:
    """Where a sweep's folder is and what it found, best point first."""

    path: Path
    summary: pd.DataFrame

    def table(self) -> str:
        """The leaderboard as text."""
        columns = ["name", "score_last", "sd_last", "score_best", "best_epoch"]
        return self.summary[columns].to_string(index=False, float_format=lambda x: f"{x:.4f}")


def prepare_sweep(config: SweepConfig, device: str = "auto", dtype: torch.dtype = torch.float32) -> Sweep:
    """Open the store, make the splits; all that can be refused is refused here, before any step."""
    base = config.base
    if base.dataset.store is None:
        raise InputError("dataset.store: no store; name one in the config or with --store")
    data = TrainingData.open(base.dataset.store, base, dtype, choose_device(device))
    folds = make_splits(data.catalog, base.cv.n_folds, base.cv.repeats, base.cv.groups, base.cv.strata,
                        base.experiment.seed)
    splits = make_splits_of(folds, base.cv.fold)
    return Sweep(config, data, folds, splits, new_stream(data, splits, base))


def new_stream(data: TrainingData, splits: list[Split], base: PointConfig) -> Stream:
    """The stream of some splits over a store, by the config's stream keys."""
    return Stream(data.n_images, len(data.store.view_names), splits, base.cv.n_folds, base.trainer.batch_size,
                  base.experiment.seed)


def run_sweep(config: SweepConfig, out: Path = Path("runs"), device: str = "auto", progress: bool = True) -> SweepResult:
    """Train every head of a sweep and leave its folder under `out`.

    InputError or MismatchError before any step if store and config do not fit.
    """
    sweep = prepare_sweep(config, device)
    folder = SweepFolder.create(out, sweep.base.experiment.name)
    save_splits(sweep.folds, folder.path / "folds.csv")
    plan = {"base": sweep.base.model_dump(mode="json"), "axes": config.axes, "passes": sweep.plan().passes, "device": device,
            "fingerprint": sweep.data.store.spec.fingerprint}
    folder.write_json("sweep.json", plan)  # last: a folder with it can be resumed
    return _run(sweep, folder, plan["passes"], progress)


def resume_sweep(path: Path, progress: bool = True) -> SweepResult:
    """Go on with a sweep that was stopped, from the last checkpoint of each pass; on CPU to the same bits as without the stop.

    InputError if the folder is no sweep's; MismatchError if the store's tokens are no longer those it began with.
    """
    folder = SweepFolder(path)
    plan = read_json(path / "sweep.json", "base", "axes", "passes", "device", "fingerprint")
    if (path / "summary.json").exists():
        raise InputError(f"{path}: this sweep is finished, there is nothing to resume")
    sweep = prepare_sweep(SweepConfig.of(plan["base"], plan["axes"], path / "sweep.json"), plan["device"])
    if (found := sweep.data.store.spec.fingerprint) != plan["fingerprint"]:
        raise MismatchError(f"{sweep.data.store.path}: fingerprint {found}, the sweep began with {plan['fingerprint']}; bring "
                            "back that store, or begin a new sweep")
    begun = read_splits(path / "folds.csv", sweep.data.catalog["image_id"].tolist())
    splits = make_splits_of(begun, sweep.base.cv.fold)
    sweep = replace(sweep, folds=begun, splits=splits, stream=new_stream(sweep.data, splits, sweep.base))
    return _run(sweep, folder, plan["passes"], progress)


def _run(sweep: Sweep, folder: SweepFolder, passes: Sequence[Sequence[int]], progress: bool) -> SweepResult:
    keep_freed_memory()
    with locked(folder.path / "sweep"):
        results = [result for points in passes for result in run_pass(sweep, points, folder, progress)]
        done = _finish(sweep, folder, results)
        folder.remove_checkpoints()
        return done


@dataclass
class PointResult:
    """What one point reached: scores by last and best weights, and of each split the epoch that was best."""

    name: str
    scores: dict[str, Scores]
    best_epoch_Q: np.ndarray


@dataclass
class BankTrainer:
    """One bank under training, and the points it holds."""

    bank: Bank
    points: list[int]
    configs: list[PointConfig]
    optimizer: BankOptimizer
    weights: LossWeights
    best: dict[str, torch.Tensor]
    best_score_QG: np.ndarray
    best_epoch_QG: np.ndarray
    losses_QG: list[np.ndarray] = field(default_factory=list)
    """Of each step of the epoch under way."""

    @property
    def averaged(self) -> Bank:
        return self.bank.with_tensors(self.optimizer.average)

    def step(self, inputs: Inputs, sweep: Sweep, batch: Batch, scale: float) -> None:
        """Add one batch's gradients."""
        own = torch.from_numpy(batch.images_QB)
        labels = sweep.data.labels.take(own[:, None])
        if inputs.share_QGB is not None:
            partner = torch.from_numpy(np.take_along_axis(batch.images_QB, batch.partner_QB, 1))
            labels = labels.mix(sweep.data.labels.take(partner[:, None]), inputs.share_QGB)
        loss_QG = multi_task_loss(self.bank(inputs), labels, self.weights)
        (loss_QG.sum() * scale).backward()
        self.losses_QG.append(loss_QG.detach().cpu().numpy())

    def share(self, sweep: Sweep, batch: Batch, epoch: int) -> torch.Tensor | None:
        """(Q, G, B): the part of a sample that is its own row, by each point's mixup; None where nothing is mixed."""
        mixup = [config.augmentation.mixup for config in self.configs]
        mixing = epoch < round((1 - mixup[0].disable_ratio) * sweep.base.trainer.num_epochs)
        if not mixing or not any(m.enabled for m in mixup):
            return None
        shares = [mixup_share(batch.uniform_QB, m.alpha) if m.enabled else np.ones_like(batch.uniform_QB) for m in mixup]
        return torch.tensor(np.stack(shares, 1), dtype=sweep.data.dtype, device=sweep.data.device)

    def keep_best(self, raw_GRN5: np.ndarray, sweep: Sweep, epoch: int) -> np.ndarray:
        """Copy the averages of every head whose own fold it now predicts best; returns the fold scores (Q, G).

        A fold whose score is not defined (one image, no spread) keeps its latest weights.
        """
        truth = in_targets_order(sweep.data.truth_N5)
        score_QG = np.empty_like(self.best_score_QG)
        for q, split in enumerate(sweep.splits):
            raw_GN5 = raw_GRN5[:, split.repeat, split.val_N]
            for g, config in enumerate(self.configs):
                masses = constrained(raw_GN5[g], config.inference.constraints)
                score_QG[q, g] = weighted_r2(truth[split.val_N], masses)
        better = (score_QG > self.best_score_QG) | np.isnan(self.best_score_QG)
        for q, g in zip(*np.nonzero(better), strict=True):
            for name, average in self.optimizer.average.items():
                self.best[name][q, g] = average[q, g]
        self.best_score_QG[better], self.best_epoch_QG[better] = score_QG[better], epoch
        return score_QG


def run_pass(sweep: Sweep, points: Sequence[int], folder: SweepFolder, progress: bool = True) -> list[PointResult]:
    """Train the heads of some points together; leaves their run folders finished."""
    base, data = sweep.base, sweep.data
    dtype = compute_dtype(data.device, base.trainer.use_amp, data.dtype)
    reader = TokenReader(data.store, data.device, dtype)
    trainers = new_trainers(sweep, points)
    checkpoint, every = folder.checkpoint(points, base.trainer.checkpoint_every), base.trainer.checkpoint_every
    first = load_checkpoint(checkpoint, trainers)
    runs = {p: RunFolder.create(folder.path / sweep.config.names[p], sweep.config.points[p], data.store, data.states, first)
            for p in points}
    epochs = base.trainer.num_epochs
    with tqdm(total=epochs, initial=first, desc="train", unit="epoch", disable=not progress, file=sys.stderr) as bar:
        for epoch in range(first, epochs):
            start = time.monotonic()
            train_epoch(sweep, trainers, reader, epoch)
            scores = _validate(sweep, trainers, reader, runs, epoch, time.monotonic() - start)
            if every and ((epoch + 1) % every == 0 or epoch + 1 == epochs):
                save_checkpoint(checkpoint, trainers, epoch + 1)
            bar.set_postfix(best=f"{max((s for s in scores if s == s), default=np.nan):.4f}", refresh=False)
            bar.update()
            check_interrupt()
    return [result for trainer in trainers for result in _close(sweep, trainer, reader, runs)]


def new_trainers(sweep: Sweep, points: Sequence[int]) -> list[BankTrainer]:
    """A trainer for each group of points whose heads have one shape and one treatment of channels."""
    groups: dict[tuple[HeadShape, bool], list[int]] = {}
    for p in points:
        point = sweep.config.points[p]
        shape = HeadShape.of(point.head, sweep.data.store.spec.tokens, sweep.data.states)
        groups.setdefault((shape, point.head.normalize), []).append(p)
    return [_new_trainer(sweep, shape, normalize, members) for (shape, normalize), members in groups.items()]


def _new_trainer(sweep: Sweep, shape: HeadShape, normalize: bool, points: list[int]) -> BankTrainer:
    data, configs = sweep.data, [sweep.config.points[p] for p in points]
    t = data.store.spec.tokens
    biases = [initial_biases(data.labels, split.train_N, t.n_tiles, t.n_patches) for split in sweep.splits]
    moments = data.moments(sweep.splits) if normalize else None
    bank = new_bank(shape, sweep.splits, [c.head.dropout for c in configs], sweep.base.experiment.seed, data.dtype, biases,
                    moments, data.device)
    settings = sweep.base.trainer
    n_steps = -(-settings.num_epochs * sweep.stream.n_steps // settings.gradient_accumulation_steps)
    optimizer = BankOptimizer(bank, configs, n_steps)
    blank = np.full((len(sweep.splits), len(points)), np.nan)
    best = {name: tensor.detach().clone() for name, tensor in bank.tensors.items()}
    weights = LossWeights.of(configs, data.dtype, data.device)
    return BankTrainer(bank, points, configs, optimizer, weights, best, blank, np.zeros(blank.shape, int))


def train_epoch(sweep: Sweep, trainers: Sequence[BankTrainer], reader: TokenReader, epoch: int) -> None:
    """One epoch of every bank; the rows of a step are read once and serve all of them."""
    stream, every = sweep.stream, sweep.base.trainer.gradient_accumulation_steps
    last = sweep.base.trainer.num_epochs * stream.n_steps - 1
    for step in range(stream.n_steps):
        batch = stream.batch(epoch, step)
        inputs = sweep.data.inputs(batch, reader.step(batch.rows_U2))
        place = epoch * stream.n_steps + step
        for trainer in trainers:
            mine = replace(inputs, partner_QB=batch.partner_QB, share_QGB=trainer.share(sweep, batch, epoch),
                           dropout_QBTS=_dropout(sweep, trainer, epoch, step))
            trainer.step(mine, sweep, batch, 1 / every)
            if (place + 1) % every == 0 or place == last:
                trainer.optimizer.step()


def _dropout(sweep: Sweep, trainer: BankTrainer, epoch: int, step: int) -> torch.Tensor | None:
    """Uniforms that all points of a split share; None for heads without dropout."""
    width = trainer.bank.shape.shared_hidden
    if not width or not any(config.head.dropout for config in trainer.configs):
        return None
    shape = (sweep.base.trainer.batch_size, sweep.data.store.spec.tokens.n_tiles, width)
    return torch.from_numpy(sweep.stream.dropout(epoch, step, shape)).to(sweep.data.device)


def _validate(sweep: Sweep, trainers: Sequence[BankTrainer], reader: TokenReader, runs: dict[int, RunFolder], epoch: int,
              train_s: float) -> list[float]:
    """Score the averages of all heads on view 0 of what they hold out, keep the best, log a line a point."""
    raw = predict_held_out([t.averaged for t in trainers], sweep.data, reader, sweep.splits, sweep.base.trainer.batch_size)
    pooled, truth_N5 = [], in_targets_order(sweep.data.truth_N5)
    for trainer, raw_GRN5 in zip(trainers, raw, strict=True):
        fold_score_QG = trainer.keep_best(raw_GRN5, sweep, epoch)
        loss_QG = np.mean(trainer.losses_QG, 0)
        trainer.losses_QG.clear()
        for g, p in enumerate(trainer.points):
            masses_RN5 = constrained(raw_GRN5[g], trainer.configs[g].inference.constraints)
            pooled.append(pooled_score(truth_N5, masses_RN5, sweep.splits))
            runs[p].log({"epoch": epoch, "loss": loss_QG[:, g].mean(), "score": pooled[-1],
                         "fold_loss": loss_QG[:, g].tolist(), "fold_score": fold_score_QG[:, g].tolist(),
                         "lr": trainer.optimizer.lr(g), "train_s": train_s})
    return pooled


def _scores(sweep: Sweep, raw_RN5: np.ndarray, config: PointConfig) -> Scores:
    state = sweep.data.catalog.get("State", pd.Series("", sweep.data.catalog.index))
    return score(in_targets_order(sweep.data.truth_N5), constrained(raw_RN5, config.inference.constraints), sweep.splits, state)


def _close(sweep: Sweep, trainer: BankTrainer, reader: TokenReader, runs: dict[int, RunFolder]) -> list[PointResult]:
    """Score last and best weights with the TTA views, save heads, tables and curves of every point of a bank."""
    views = sweep.base.inference.tta_indices if sweep.base.cv.tta else [0]
    banks = {"best": trainer.bank.with_tensors(trainer.best), "last": trainer.averaged}
    by_view = [predict_held_out(list(banks.values()), sweep.data, reader, sweep.splits, sweep.base.trainer.batch_size, view)
               for view in views]
    raw = {which: np.mean([masses[i] for masses in by_view], 0) for i, which in enumerate(banks)}
    truth_N5 = in_targets_order(sweep.data.truth_N5)
    results = []
    for g, p in enumerate(trainer.points):
        for which in WEIGHTS:
            for q, split in enumerate(sweep.splits):
                runs[p].save_head(which, split.repeat, split.fold, sweep.n_repeats, banks[which].head_state(q, g))
        masses = {which: constrained(raw[which][g], trainer.configs[g].inference.constraints) for which in WEIGHTS}
        runs[p].write_table("oof.csv", pd.concat([oof_table(which, sweep.data, sweep.folds, sweep.splits, truth_N5, masses[which])
                                                  for which in WEIGHTS]))
        draw_curves(runs[p].path / "metrics.jsonl", runs[p].path / "training_curves.png")
        scores = {which: _scores(sweep, raw[which][g], trainer.configs[g]) for which in WEIGHTS}
        results.append(PointResult(sweep.config.names[p], scores, trainer.best_epoch_QG[:, g]))
    return results


def _finish(sweep: Sweep, folder: SweepFolder, results: list[PointResult]) -> SweepResult:
    """Rank the points, set the baselines beside them, write what a sweep leaves."""
    truth_N5 = in_targets_order(sweep.data.truth_N5)
    state = sweep.data.catalog.get("State", pd.Series("", sweep.data.catalog.index))
    features = pooled_features(sweep.data.store.pooled[:, 0])
    beside = {name: score(truth_N5, prediction, sweep.splits, state)
              for name, prediction in baselines(features, truth_N5, sweep.splits).items()}
    results = sorted(results, key=lambda r: np.nan_to_num(r.scores["last"].mean, nan=-np.inf), reverse=True)
    summary = pd.DataFrame([_summary_row(sweep, r) for r in results] + [_baseline_row(n, s) for n, s in beside.items()])
    folder.write_table("summary.csv", summary)
    folder.write_json("summary.json", {
        "best": results[0].name, "selected_by": "score_last: pooled out-of-fold score of the last epoch's moving averages",
        "note": "score_best chose each head's epoch by the very fold that scores it, so it is optimistic",
        "n_images": sweep.data.n_images, "n_heads": len(results) * len(sweep.splits), "fingerprint":
        sweep.data.store.spec.fingerprint, "points": [_as_json(r) for r in results],
        "baselines": {name: vars(s) | {"per_repeat_R": s.per_repeat_R.tolist()} for name, s in beside.items()}})
    draw_leaderboard(summary, folder.path / "leaderboard.png")
    return SweepResult(folder.path, summary)


def _summary_row(sweep: Sweep, result: PointResult) -> dict:
    point = sweep.config.points[sweep.config.names.index(result.name)]
    axes = {key: _value(point, key) for key in sweep.config.axes}
    last, best = result.scores["last"], result.scores["best"]
    return {"name": result.name, "score_last": last.mean, "sd_last": last.sd, "score_best": best.mean, "sd_best": best.sd,
            "best_epoch": float(np.mean(result.best_epoch_Q)), **axes, **_parts(last)}


def _baseline_row(name: str, scores: Scores) -> dict:
    return {"name": name, "score_last": scores.mean, "sd_last": scores.sd, **_parts(scores)}


def _parts(scores: Scores) -> dict:
    return {f"r2_{k}": v for k, v in scores.per_target.items()} | {f"score_{k}": v for k, v in scores.per_state.items()}


def _as_json(result: PointResult) -> dict:
    scores = {which: vars(s) | {"per_repeat_R": s.per_repeat_R.tolist()} for which, s in result.scores.items()}
    return {"name": result.name, "best_epoch_Q": result.best_epoch_Q.tolist(), **scores}


def _value(point: PointConfig, key: str) -> object:
    value: object = point
    for name in key.split("."):
        value = getattr(value, name)
    return value
