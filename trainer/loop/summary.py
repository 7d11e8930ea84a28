"""What a sweep found when all its points are in: ranking, comparisons, notes in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from featurestore.disk.interrupts import check_interrupt
from featurestore.photos.sites import joined_sites
from trainer.data.splits import describe_folds, n_partitions
from trainer.heads import kinds
from trainer.judge.compare import LEAST_SITES, Comparison, compare, compare_pairs
from trainer.judge.report import draw_leaderboard
from trainer.judge.selection import honest_estimate, squared_errors
from trainer.loop.evaluate import Scores
from trainer.loop.prepare import Sweep
from trainer.loop.results import PointResult, scores_of
from trainer.loop.runs import SUMMARY, SweepFolder, SweepResult
from trainer.score.metrics import in_targets_order
from trainer.score.postprocess import judge, rules_of

MOST_NOTED = 10  # failed points, and those that chose spaces, one a note
MOST_PAIRED = 64  # points whose pairs are compared, from the top: 2016 pairs


def finish(
    sweep: Sweep, folder: SweepFolder, results: list[PointResult], beside: Mapping[str, Scores]
) -> SweepResult:
    """Rank the points beside the baselines, say what can be told apart, write the results.

    The best point is the first that can be saved: what is for reports only stands at its place
    beside it, and is never chosen.
    """
    check_interrupt()
    scores = {}
    for r in results:
        scores[r.index] = {}
        for which, prediction in r.held_out.items():
            scores[r.index][which] = scores_of(sweep, prediction.masses_RN5)

    # those that failed last, then by score; one that is not defined stands behind all others
    def rank(r: PointResult) -> tuple[bool, float]:
        score = scores[r.index]["last"].mean
        return r.failed, -np.nan_to_num(score, nan=-np.inf)

    results = sorted(results, key=rank)
    choices = [r for r in results if not kinds.load(r.config.head.kind).report_only]
    best = next((r for r in choices if not r.failed), None)

    site_N = joined_sites(sweep.folds["site"], sweep.data.catalog)
    comparisons, pairs = _compare(sweep, results, site_N, results.index(best) if best else 0)
    honest = _honest(sweep, choices) if choices else None
    rules = rules_of(best.config.inference.postprocess) if best else []
    judged = {}
    if rules:
        last = best.held_out["last"]
        judged = judge(rules, lambda some: scores_of(sweep, last.by_rules(some)).mean)

    notes = _notes(results, _level(sweep, results, site_N, best, comparisons), honest, judged)
    notes.append(describe_folds(sweep.folds))
    if best:
        notes += _over_repeats(sweep, scores[best.index]["last"])
    notes += sweep.remarks

    rows = []
    points = []
    for r, versus in zip(results, comparisons, strict=True):
        rows.append(_summary_row(sweep, r, scores[r.index], versus))
        points.append(_as_json(sweep, r, scores[r.index], versus))
    for name, each in beside.items():
        rows.append({"name": name, "score_last": each.mean, "sd_last": each.sd, **_parts(each)})
    summary = pd.DataFrame(rows)

    folder.write_table("summary.csv", summary)
    folder.write_table("comparisons.csv", pairs)
    draw_leaderboard(summary, folder.path / "leaderboard.png", notes)
    # last: a folder with it is finished
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
            "points": points,
            "baselines": {name: _scores_json(each) for name, each in beside.items()},
        },
    )
    failed = {r.name: r.failure for r in results if r.failure}
    return SweepResult(folder.path, summary, best.name if best else None, notes, failed)


def _compare(
    sweep: Sweep, results: Sequence[PointResult], site_N: np.ndarray, reference: int
) -> tuple[list[Comparison], pd.DataFrame]:
    """Every point against one of them, and a table of all pairs of the first MOST_PAIRED."""
    masses_GRN5 = np.stack([r.held_out["last"].masses_RN5 for r in results])
    truth_N5 = in_targets_order(sweep.data.truth_N5)
    seed = sweep.base.experiment.seed
    pairs = compare_pairs(truth_N5, masses_GRN5[:MOST_PAIRED], site_N, seed)
    rows = [
        {"better": results[a].name, "other": results[b].name, **vars(c)}
        for (a, b), c in pairs.items()
    ]
    columns = ["better", "other", *(field.name for field in fields(Comparison))]
    table = pd.DataFrame(rows, columns=columns)
    return compare(truth_N5, masses_GRN5, site_N, reference, seed), table


def _honest(sweep: Sweep, results: Sequence[PointResult]) -> dict[str, Any]:
    """What the selected point is worth, by choices that never saw the fold they are scored on.

    `last` is like score_last: points chosen and scored by their last weights under all views.
    `epoch` chooses among all epochs too, by what was noted while training: view 0, without rules;
    `plain` is `last` on that view, to compare with it.
    """
    truth_N5 = in_targets_order(sweep.data.truth_N5)
    last_GQ = np.stack(
        [squared_errors(truth_N5, r.held_out["last"].masses_RN5, sweep.splits) for r in results]
    )
    last = honest_estimate(last_GQ[None], truth_N5, sweep.splits)

    # a regressor has one epoch, which counts as each of a head's
    n_epochs = max(len(r.errors_EQ) for r in results)
    shape_EQ = (n_epochs, len(sweep.splits))
    noted_EGQ = np.stack([np.broadcast_to(r.errors_EQ, shape_EQ) for r in results], 1)
    noted = honest_estimate(noted_EGQ, truth_N5, sweep.splits)
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


def _summary_row(
    sweep: Sweep, result: PointResult, scores: Mapping[str, Scores], versus: Comparison
) -> dict:
    last = scores["last"]
    row = {
        "name": result.name,
        "score_last": last.mean,
        "sd_last": last.sd,
        "vs_best": versus.difference,
        "low": versus.low,
        "high": versus.high,
        "apart": versus.apart,
        "failed": result.failed,
    }
    if "best" in scores:  # trained heads: regressors have no epochs to choose among
        row["score_best"] = scores["best"].mean
        row["sd_best"] = scores["best"].sd
        row["best_epoch"] = float(np.mean(result.best_epoch_Q))
    return {**row, **sweep.config.settings(result.index), **_parts(last)}


def _parts(scores: Scores) -> dict:
    parts = {f"r2_{target}": value for target, value in scores.per_target.items()}
    return parts | {f"score_{state}": value for state, value in scores.per_state.items()}


def _as_json(
    sweep: Sweep, result: PointResult, scores: Mapping[str, Scores], versus: Comparison
) -> dict:
    names = [f"r{s.repeat:02d}_fold{s.fold}" for s in sweep.splits]
    steps = dict(zip(names, result.failed_Q.tolist(), strict=True))
    spaces = {} if result.n_by_space is None else {"spaces": result.n_by_space}
    return {
        "name": result.name,
        **spaces,
        "best_epoch_Q": result.best_epoch_Q.tolist(),
        "vs_best": vars(versus),
        "failed": result.failure,
        "failed_at_batch": {name: step for name, step in steps.items() if step >= 0},
        **{which: _scores_json(each) for which, each in scores.items()},
    }


def _scores_json(scores: Scores) -> dict:
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
    held_out = np.concatenate([split.val_N for split in sweep.splits])
    n_sites = len(np.unique(site_N[held_out]))
    if n_sites < LEAST_SITES:
        return (
            f"which points can be told apart from the best is not known: {n_sites} sites are held "
            f"out, too few for an interval, which takes {LEAST_SITES}"
        )
    others = [
        c for r, c in zip(results, comparisons, strict=True) if r is not best and not r.failed
    ]
    if not others:
        return "there is no other point to compare the best with"
    n_level = sum(not c.apart for c in others)
    some = f"{n_level} of {len(others)} other points cannot"
    if not n_level:
        some = f"all {len(others)} other points can"
    return f"{some} be told apart from the best (site-level bootstrap, 95 %)"


def _over_repeats(sweep: Sweep, best: Scores) -> list[str]:
    """The interval of the best point's mean over repeats, if there is one, and what it covers.

    Source: Student's t of the repeats' scores, of which those on the same partition count once:
    they tell nothing new.
    """
    n = n_partitions(sweep.folds)
    if n < 2 or not np.isfinite(best.sd):
        return []
    half = float(-stdtrit(n - 1, 0.025)) * best.sd / np.sqrt(n)
    interval = f"{best.mean - half:.4f} to {best.mean + half:.4f}"
    return [
        f"best point: the mean over {n} different regroupings is {best.mean:.4f}, 95 % interval "
        f"{interval}; it covers the luck of grouping these sites, not other sites: "
        "for those see low and high"
    ]


def _notes(
    results: Sequence[PointResult],
    level: str,
    honest: Mapping[str, Any] | None,
    judged: Mapping[str, float],
) -> list[str]:
    """The leaderboard in sentences."""
    failed = [f"failed, not ranked: {r.name}: {r.failure}" for r in results if r.failed]
    n_more = len(failed) - MOST_NOTED
    if n_more > 0:
        failed[MOST_NOTED:] = [f"failed, not ranked: {n_more} more, which summary.json names"]
    if results[0].failed:
        return ["every point failed", *failed]

    notes = [level]
    if honest and np.isfinite(honest["last"]):
        notes.append(
            f"selected point: {honest['last']:.4f} where its choice never saw the reported fold "
            f"(on the plain view alone {honest['plain']:.4f}; with the epoch chosen so too "
            f"{honest['epoch']:.4f})"
        )
    notes += failed
    choosing = [r for r in results if r.n_by_space]
    notes += [_spaces_note(r) for r in choosing[:MOST_NOTED]]
    if judged:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in judged.items())
        notes.append(f"post-processing: {scores}")
    return notes


def _spaces_note(result: PointResult) -> str:
    """How often a point's fits chose each space, for every mass."""
    n_fits = sum(next(iter(result.n_by_space.values())).values())
    chosen = []
    for mass, n_by_space in result.n_by_space.items():
        counts = ", ".join(f"{space} {n}" for space, n in n_by_space.items())
        chosen.append(f"{mass} {counts}")
    return f"{result.name}: spaces that {n_fits} fits chose: {'; '.join(chosen)}"
