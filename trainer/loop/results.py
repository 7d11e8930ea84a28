"""What finished heads leave: weights, out-of-fold tables, scores; and what a sweep found when all
its points are in."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit

from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.usable import usable_memory
from featurestore.errors import InputError
from featurestore.photos.sites import joined_sites
from trainer.config.sections import HeadConfig, PointConfig
from trainer.data.splits import describe_folds, n_partitions
from trainer.data.stream import Split
from trainer.data.tokens import TokenReader
from trainer.heads import kinds
from trainer.judge.baselines import blank_masses, fit_splits, mean_predictor
from trainer.judge.compare import LEAST_SITES, Comparison, compare, compare_pairs
from trainer.judge.report import draw_curves, draw_leaderboard
from trainer.judge.selection import honest_estimate, squared_errors
from trainer.loop.bank_trainer import BankTrainer
from trainer.loop.evaluate import HeldOut, Scores, oof_table, predict_held_out, score
from trainer.loop.plan import fit_bytes
from trainer.loop.prepare import Sweep
from trainer.loop.runs import (
    ALL_FILE,
    SUMMARY,
    WEIGHTS,
    RunFolder,
    SweepFolder,
    SweepResult,
    head_file,
)
from trainer.score.metrics import constrained, in_targets_order
from trainer.score.postprocess import Rule, apply, judge, rules_of

MOST_NOTED = 10  # failed points, one a note
MOST_PAIRED = 64  # points whose pairs are compared, from the top: 2016 pairs


@dataclass(frozen=True)
class Prediction:
    """Of one point's heads for what they hold out, averaged over views: raw masses, MASSES order,
    and States' probabilities."""

    raw_RN5: np.ndarray
    state_RNC: np.ndarray | None
    config: PointConfig
    states: Sequence[str]

    def by_rules(self, rules: Sequence[Rule]) -> np.ndarray:
        """(R, N, 5) grams in TARGETS order: constrained, then rules."""
        return apply(
            rules,
            constrained(self.raw_RN5, self.config.inference.constraints),
            self.state_RNC,
            self.states,
        )

    @functools.cached_property
    def masses_RN5(self) -> np.ndarray:
        """The same by the rules of the config: what is scored, compared and written."""
        return self.by_rules(rules_of(self.config.inference.postprocess))


@dataclass(frozen=True)
class PointResult:
    """What one point reached."""

    index: int
    name: str
    config: PointConfig
    held_out: dict[str, Prediction]
    """By `last` and, for trained heads, `best` weights."""
    errors_EQ: np.ndarray
    """Weighted squared errors on view 0 by epoch and split; one epoch for what has none."""
    best_epoch_Q: np.ndarray
    failed_Q: np.ndarray
    """Steps that a split's head took before it failed; -1 for those that are well."""
    failure: str | None = None
    """What happened and what to do, if it failed."""

    @property
    def failed(self) -> bool:
        return self.failure is not None


def close_bank(
    sweep: Sweep, trainer: BankTrainer, reader: TokenReader, runs: Mapping[int, RunFolder]
) -> list[PointResult]:
    """Predict with last and best weights under the TTA views; save heads, tables and curves of
    every point of a bank."""
    banks = {"best": trainer.bank.with_tensors(trainer.best), "last": trainer.averaged}
    by_view = [
        predict_held_out(
            list(banks.values()),
            sweep.data,
            reader,
            sweep.splits,
            sweep.base.trainer.batch_size,
            view,
        )
        for view in sweep.views
    ]
    held_out = {
        which: HeldOut.mean([masses[i] for masses in by_view]) for i, which in enumerate(banks)
    }
    # by its last step
    trainer.failed_QG[(trainer.failed_QG < 0) & ~np.isfinite(trainer.errors_QG[-1])] = (
        trainer.n_batches
    )
    results, errors_EQG = [], np.array(trainer.errors_QG)
    for which in WEIGHTS:
        save_heads(sweep, trainer, runs, which)
    for g, p in enumerate(trainer.points):
        predictions = {
            which: Prediction(
                each.masses_GRN5[g],
                None if each.state_GRNC is None else each.state_GRNC[g],
                trainer.configs[g],
                sweep.data.states,
            )
            for which, each in held_out.items()
        }
        failed_Q = trainer.failed_QG[:, g]
        results.append(
            PointResult(
                p,
                sweep.config.names[p],
                trainer.configs[g],
                predictions,
                errors_EQG[:, :, g],
                trainer.best_epoch_QG[:, g],
                failed_Q,
                loss_failure(failed_Q, sweep.n_batches),
            )
        )
        draw_curves(runs[p].path / "metrics.jsonl", runs[p].path / "training_curves.png")
        write_oof(sweep, results[-1], runs[p])
    return results


def loss_failure(failed_Q: np.ndarray, n_steps: int) -> str | None:
    """How far the first head to fail came, and how many did; None if all are well."""
    taken = failed_Q[failed_Q >= 0]
    if not taken.size:
        return None
    heads = f" ({taken.size} of {failed_Q.size} heads failed)" if failed_Q.size > 1 else ""
    return (
        f"its loss was no longer finite after {taken.min()} of {n_steps} steps{heads}; lower "
        "optimization.lr"
    )


def save_heads(
    sweep: Sweep, trainer: BankTrainer, runs: Mapping[int, RunFolder], which: str
) -> None:
    """Save the heads of every point but those whose weights are not finite: nobody should predict
    with them."""
    bank = trainer.averaged if which == "last" else trainer.bank.with_tensors(trainer.best)
    for g, p in enumerate(trainer.points):
        for q, split in enumerate(sweep.splits):
            state = bank.head_state(q, g)
            if all(tensor.isfinite().all() for tensor in state.values()):
                runs[p].save_head(_head_file(sweep, which, split), state)


def close_regressor(sweep: Sweep, p: int, run: RunFolder) -> PointResult:
    """Fit a point's regressor in every split, save it, predict what is held out under the TTA
    views.

    One that cannot be fitted has failed, as a head whose loss diverged has: the other points go on.
    """
    config, truth_N5 = sweep.config.points[p], in_targets_order(sweep.data.truth_N5)
    run.begin(sweep.run_config(p), sweep.data.store, sweep.data.states)
    views, failure = sorted({0, *sweep.views}), None
    try:
        fitted, by_view = fit_splits(sweep.data, sweep.folds, sweep.splits, config, views)
    except InputError as err:
        fitted, failure = [None] * len(sweep.splits), str(err)
        by_view = dict.fromkeys(views, blank_masses(sweep.data, sweep.splits))
    for split, state in zip(sweep.splits, fitted, strict=True):
        if state is not None:
            run.save_head(_head_file(sweep, "last", split), _tensors(state))
    prediction = Prediction(np.mean([by_view[v] for v in sweep.views], 0), None, config, [])
    errors_Q = squared_errors(
        truth_N5, constrained(by_view[0], config.inference.constraints), sweep.splits
    )
    if failure is None and not np.isfinite(errors_Q).all():
        failure = (
            "it predicts masses that are not finite; choose another loss.space, or leave "
            "the "
            "kind out"
        )
    blank = np.zeros(len(sweep.splits), int)
    result = PointResult(
        p,
        sweep.config.names[p],
        config,
        {"last": prediction},
        errors_Q[None],
        blank,
        blank - 1,
        failure,
    )
    run.log({"epoch": 0, "score": _score(sweep, result, "last").mean})
    write_oof(sweep, result, run)
    return result


def save_regressor(sweep: Sweep, p: int, run: RunFolder) -> None:
    """Fit a point's regressor on every image and save it."""
    run.begin(sweep.run_config(p), sweep.data.store, sweep.data.states)
    (state,) = fit_splits(sweep.data, sweep.folds, sweep.splits, sweep.config.points[p], [])[0]
    run.save_head(ALL_FILE.format(which="last"), _tensors(state))


def baselines(sweep: Sweep) -> dict[str, Scores]:
    """What every head has to beat, under the same views and constraints: the training mean, and
    ridge on all pooled rows.

    A sweep that did not ask for ridge must not die of it: where it cannot be fitted it is left out,
    with a warning.
    """
    raw = {"mean": mean_predictor(sweep.data, sweep.splits)}
    try:
        raw["ridge"] = _ridge(sweep)
    except InputError as err:
        warnings.warn(
            f"ridge on all pooled rows, to compare with, is left out: {err}", stacklevel=2
        )
    return {
        name: _scored(sweep, Prediction(each, None, sweep.base, []).by_rules([]))
        for name, each in raw.items()
    }


def _ridge(sweep: Sweep) -> np.ndarray:
    """(R, N, 5) raw masses. InputError where it does not fit in memory, or a split has too few
    images."""
    ridge = sweep.base.model_copy(update={"head": HeadConfig(kind="ridge")})
    need, usable = fit_bytes(ridge, sweep.data, sweep.splits), usable_memory()
    if need > usable.n_bytes:
        raise InputError(
            f"it would take {need / 1e9:.3g} GB of memory, usable are {usable}; as a point of the "
            "grid it can have "
            "fewer head.features"
        )
    return np.mean(
        list(fit_splits(sweep.data, sweep.folds, sweep.splits, ridge, sweep.views)[1].values()), 0
    )


def write_oof(sweep: Sweep, result: PointResult, run: RunFolder) -> None:
    tables = [
        oof_table(
            which,
            sweep.data,
            sweep.folds,
            sweep.splits,
            prediction.masses_RN5,
            prediction.state_RNC,
        )
        for which, prediction in sorted(result.held_out.items())
    ]
    run.write_table("oof.csv", pd.concat(tables))


def finish(
    sweep: Sweep, folder: SweepFolder, results: list[PointResult], beside: Mapping[str, Scores]
) -> SweepResult:
    """Rank the points, say what can be told apart, set the baselines beside them, write what a
    sweep leaves.

    The best point is the first that can be saved: what is for reports only stands at its place
    beside it, and is never chosen.
    """
    check_interrupt()
    scores = {r.index: {which: _score(sweep, r, which) for which in r.held_out} for r in results}
    results = sorted(
        results, key=lambda r: (r.failed, -np.nan_to_num(scores[r.index]["last"].mean, nan=-np.inf))
    )
    choices = [r for r in results if not kinds.load(r.config.head.kind).report_only]
    best = next((r for r in choices if not r.failed), None)
    site_N = joined_sites(sweep.folds["site"], sweep.data.catalog)
    comparisons, pairs = _compare(sweep, results, site_N, results.index(best) if best else 0)
    rows = [
        _summary_row(sweep, r, scores[r.index], c)
        for r, c in zip(results, comparisons, strict=True)
    ]
    summary = pd.DataFrame(rows + [_baseline_row(name, each) for name, each in beside.items()])
    honest = _honest(sweep, choices) if choices else None
    judged = _judged(sweep, best) if best else {}
    notes = _notes(results, _level(sweep, results, site_N, best, comparisons), honest, judged)
    notes += [
        describe_folds(sweep.folds),
        *(_over_repeats(sweep, scores[best.index]["last"]) if best else []),
        *sweep.remarks,
    ]
    folder.write_table("summary.csv", summary)
    folder.write_table("comparisons.csv", pairs)
    draw_leaderboard(summary, folder.path / "leaderboard.png", notes)
    folder.write_json(
        SUMMARY,
        {
            "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "best": best.name if best else None,
            "selected_by": "score_last: pooled out-of-fold score of the last epoch's moving "
            "averages",
            "notes": notes,
            "honest": honest,
            "postprocess": judged,
            "n_images": sweep.data.n_images,
            "n_heads": len(results) * len(sweep.splits),
            "fold": sweep.base.cv.fold if sweep.base.cv.lone_fold else None,
            "fingerprint": sweep.data.store.spec.fingerprint,
            "points": [
                _as_json(sweep, r, scores[r.index], c)
                for r, c in zip(results, comparisons, strict=True)
            ],
            "baselines": {name: _plain(each) for name, each in beside.items()},
        },
    )
    failed = {r.name: r.failure for r in results if r.failure}
    return SweepResult(folder.path, summary, best.name if best else None, notes, failed)


def _head_file(sweep: Sweep, which: str, split: Split) -> str:
    return (
        head_file(which, split.repeat, split.fold, sweep.base.cv.repeats)
        if sweep.holds_out
        else ALL_FILE.format(which=which)
    )


def _tensors(state: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in state.items()}


def _score(sweep: Sweep, result: PointResult, which: str) -> Scores:
    return _scored(sweep, result.held_out[which].masses_RN5)


def _scored(sweep: Sweep, masses_RN5: np.ndarray) -> Scores:
    state = sweep.data.catalog.get("State", pd.Series("", sweep.data.catalog.index))
    return score(in_targets_order(sweep.data.truth_N5), masses_RN5, sweep.splits, state)


def _compare(
    sweep: Sweep, results: Sequence[PointResult], site_N: np.ndarray, reference: int
) -> tuple[list[Comparison], pd.DataFrame]:
    """Every point against one of them, and a table of all pairs of the first MOST_PAIRED."""
    masses_GRN5 = np.stack([r.held_out["last"].masses_RN5 for r in results])
    truth_N5, seed = in_targets_order(sweep.data.truth_N5), sweep.base.experiment.seed
    pairs = compare_pairs(truth_N5, masses_GRN5[:MOST_PAIRED], site_N, seed)
    rows = [
        {"better": results[a].name, "other": results[b].name, **vars(c)}
        for (a, b), c in pairs.items()
    ]
    columns = ["better", "other", *(field.name for field in fields(Comparison))]
    return compare(truth_N5, masses_GRN5, site_N, reference, seed), pd.DataFrame(
        rows, columns=columns
    )


def _honest(sweep: Sweep, results: Sequence[PointResult]) -> dict[str, Any]:
    """What the selected point is worth, by choices that never saw the fold they are scored on.

    `last` is like score_last: points chosen and scored by their last weights under all views.
    `epoch` chooses among all epochs too, by what was noted while training: the plain view, without
    rules; `plain` is `last` on that view, to compare with it.
    """
    truth_N5 = in_targets_order(sweep.data.truth_N5)
    last_GQ = np.stack(
        [squared_errors(truth_N5, r.held_out["last"].masses_RN5, sweep.splits) for r in results]
    )
    n_epochs = max(len(r.errors_EQ) for r in results)
    noted_EGQ = np.stack(
        [np.broadcast_to(r.errors_EQ, (n_epochs, len(sweep.splits))) for r in results], 1
    )
    last, noted = (
        honest_estimate(errors, truth_N5, sweep.splits) for errors in (last_GQ[None], noted_EGQ)
    )
    return {
        "last": last.score,
        "sd_last": last.sd,
        "last_per_repeat": last.per_repeat_R,
        "plain": noted.score,
        "epoch": noted.score_epoch,
        "sd_epoch": noted.sd_epoch,
        "epoch_per_repeat": noted.per_repeat_epoch_R,
        "points": [r.name for r in results],
        "chosen_by_last": last.chosen_G,
        "chosen_with_epoch": noted.chosen_epoch_G,
    }


def _judged(sweep: Sweep, best: PointResult) -> dict[str, float]:
    """Score of the best point with all rules, with none, and with each left out."""
    rules = best.config.inference.postprocess
    if not rules:
        return {}
    return judge(
        rules_of(rules), lambda some: _scored(sweep, best.held_out["last"].by_rules(some)).mean
    )


def _summary_row(
    sweep: Sweep, result: PointResult, scores: Mapping[str, Scores], versus: Comparison
) -> dict:
    last, best = scores["last"], scores.get("best")
    epochs = (
        {
            "score_best": best.mean,
            "sd_best": best.sd,
            "best_epoch": float(np.mean(result.best_epoch_Q)),
        }
        if best
        else {}
    )
    return {
        "name": result.name,
        "score_last": last.mean,
        "sd_last": last.sd,
        "vs_best": versus.difference,
        "low": versus.low,
        "high": versus.high,
        "apart": versus.apart,
        "failed": result.failed,
        **epochs,
        **sweep.config.settings(result.index),
        **_parts(last),
    }


def _baseline_row(name: str, scores: Scores) -> dict:
    return {"name": name, "score_last": scores.mean, "sd_last": scores.sd, **_parts(scores)}


def _parts(scores: Scores) -> dict:
    return {f"r2_{k}": v for k, v in scores.per_target.items()} | {
        f"score_{k}": v for k, v in scores.per_state.items()
    }


def _as_json(
    sweep: Sweep, result: PointResult, scores: Mapping[str, Scores], versus: Comparison
) -> dict:
    names = [f"r{s.repeat:02d}_fold{s.fold}" for s in sweep.splits]
    failed = {
        name: step for name, step in zip(names, result.failed_Q.tolist(), strict=True) if step >= 0
    }
    return {
        "name": result.name,
        "best_epoch_Q": result.best_epoch_Q.tolist(),
        "vs_best": vars(versus),
        "failed": result.failure,
        "failed_at_batch": failed,
        **{which: _plain(each) for which, each in scores.items()},
    }


def _plain(scores: Scores) -> dict:
    return vars(scores) | {"per_repeat_R": scores.per_repeat_R.tolist()}


def _level(
    sweep: Sweep,
    results: Sequence[PointResult],
    site_N: np.ndarray,
    best: PointResult | None,
    comparisons: Sequence[Comparison],
) -> str:
    """How many points cannot be told apart from the best, or why nobody knows."""
    if best is None:
        return "there is no best point: all failed, or are for reports only"
    n_sites = len(np.unique(site_N[np.concatenate([s.val_N for s in sweep.splits])]))
    if n_sites < LEAST_SITES:
        return (
            f"which points can be told apart from the best is not known: {n_sites} sites are held "
            "out, too few for an "
            f"interval, which takes {LEAST_SITES}"
        )
    others = [
        c for r, c in zip(results, comparisons, strict=True) if r is not best and not r.failed
    ]
    if not others:
        return "there is no other point to compare the best with"
    n_level = sum(not c.apart for c in others)
    some = (
        f"{n_level} of {len(others)} other points cannot"
        if n_level
        else f"all {len(others)} other points can"
    )
    return f"{some} be told apart from the best (site-level bootstrap, 95 %)"


def _over_repeats(sweep: Sweep, best: Scores) -> list[str]:
    """The interval of the best point's mean over repeats, and what it covers; nothing where there
    is none.

    Source: Student's t of the repeats' scores, of which those on the same partition count once:
    they tell nothing new.
    """
    n = n_partitions(sweep.folds)
    if n < 2 or not np.isfinite(best.sd):
        return []
    half = float(-stdtrit(n - 1, 0.025)) * best.sd / np.sqrt(n)
    return [
        f"best point: the mean over {n} different regroupings is {best.mean:.4f}, 95 % interval "
        f"{best.mean - half:.4f} to "
        f"{best.mean + half:.4f}; it covers the luck of grouping these sites, not other sites: for "
        "those see low and high"
    ]


def _notes(
    results: Sequence[PointResult],
    level: str,
    honest: Mapping[str, Any] | None,
    judged: Mapping[str, float],
) -> list[str]:
    """The leaderboard in sentences."""
    failed = [f"failed, not ranked: {r.name}: {r.failure}" for r in results if r.failed]
    more = len(failed) - MOST_NOTED
    failed[MOST_NOTED:] = (
        [f"failed, not ranked: {more} more, which summary.json names"] if more > 0 else []
    )
    if results[0].failed:
        return ["every point failed", *failed]
    notes = [level]
    if honest and np.isfinite(honest["last"]):
        notes.append(
            f"selected point: {honest['last']:.4f} where its choice never saw the reported fold "
            "(on the plain view "
            f"alone {honest['plain']:.4f}; with the epoch chosen so too {honest['epoch']:.4f})"
        )
    notes += failed
    if judged:
        notes.append(
            "post-processing: " + ", ".join(f"{name} {value:.4f}" for name, value in judged.items())
        )
    return notes
