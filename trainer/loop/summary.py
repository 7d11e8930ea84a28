"""What a sweep found when all its points are in: ranking, comparisons, notes in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from featurestore.disk.interrupts import check_interrupt
from featurestore.photos.sites import joined_sites
from trainer.data.splits import describe_folds
from trainer.heads import kinds
from trainer.judge import report
from trainer.judge.compare import Comparison, compare, compare_pairs
from trainer.judge.selection import honest_estimate, others_errors
from trainer.loop.baselines import completing, tells_ranked
from trainer.loop.blend_folder import save_blend, split_name
from trainer.loop.blends import (
    Blend,
    Row,
    blend_errors,
    blend_members,
    form_blends,
    has_their_rules,
)
from trainer.loop.board import (
    blend_json,
    chosen_json,
    parts_of,
    point_json,
    scores_json,
    summary_row,
)
from trainer.loop.evaluate import Scores
from trainer.loop.prepare import Sweep
from trainer.loop.result import SweepResult
from trainer.loop.results import PointResult, oof_of, score_mean, scored_of, scores_of
from trainer.loop.runs import SUMMARY, SweepFolder
from trainer.loop.sentences import (
    board_notes,
    describe_beside,
    describe_blend,
    describe_level,
    describe_repeats,
    headline,
)
from trainer.score.metrics import Score
from trainer.score.postprocess import judge, rules_of

MOST_PAIRED = 64  # points whose pairs are compared, from the top: 2016 pairs


def finish(
    sweep: Sweep,
    folder: SweepFolder,
    results: list[PointResult],
    beside: Sequence[PointResult],
) -> SweepResult:
    """Rank points, their blends and a baseline, say what can be told apart, write the results.

    The best point is the first that can be saved, the chosen row the first point, blend or baseline
    that can: what is for reports only stands at its place, and is never chosen.

    beside : the baselines that could be fitted. The one that tells what ranks is ranked with the
        points if one of them can be chosen and their rules are its own; others stand below them.
    """
    check_interrupt()
    board = _ranked(sweep, results, beside)
    rows = board.rows
    chosen = board.chosen

    site_N = joined_sites(sweep.folds["site"], sweep.data.catalog)
    reference = rows.index(chosen) if chosen else 0
    comparisons, pairs = _compare(sweep, rows, site_N, reference)
    honest = _honest(sweep, board) if board.choices else None
    judged = _judged(sweep, chosen)
    joined = _beside_chosen(sweep, chosen, beside)

    level = describe_level(sweep, rows, site_N, chosen, comparisons)
    notes = board_notes(rows, level, honest, judged)
    notes += [describe_blend(blend) for blend in board.blends]
    notes.append(describe_folds(sweep.folds, sweep.groups))
    if chosen:
        kind = "blend" if isinstance(chosen, Blend) else "run" if chosen in beside else "point"
        notes += describe_repeats(sweep, board.scores[chosen.name]["last"], kind)
    notes += [describe_beside(sweep, chosen, each) for each in joined]
    notes += sweep.remarks
    ranking = {name: by_weights["last"] for name, by_weights in board.scores.items()}
    told_first = headline(sweep, board.results, beside, ranking | board.baselines, chosen)

    summary = _summary(sweep, board, comparisons)
    points = []
    about_blends = []
    for r, versus in zip(rows, comparisons, strict=True):
        if isinstance(r, Blend):
            about_blends.append(blend_json(sweep, r, board.scores[r.name], versus))
        elif r not in beside:
            points.append(point_json(sweep, r, board.scores[r.name], versus))

    for blend in board.blends:
        _save_blend(sweep, folder, blend)
    folder.write_table("summary.csv", summary)
    folder.write_table("comparisons.csv", pairs)
    drawn = [told_first, *notes] if told_first else notes
    report.draw_leaderboard(summary, folder.path / "leaderboard.png", sweep.by, drawn)
    best = board.best.name if board.best else None
    taken = chosen_json(chosen, joined)
    # last: a folder with it is finished
    folder.write_json(
        SUMMARY,
        {
            "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "best": best,
            "chosen": taken,
            "selected_by": "score_last: pooled out-of-fold score of the last epoch's moving "
            "averages",
            "headline": told_first,
            "notes": notes,
            "honest": honest,
            "postprocess": judged,
            "n_images": sweep.data.n_images,
            "n_heads": len(results) * len(sweep.splits),
            "fold": sweep.base.cv.fold if sweep.base.cv.lone_fold else None,
            "fingerprint": sweep.data.store.spec.fingerprint,
            "points": points,
            "blends": about_blends,
            "baselines": {name: scores_json(each) for name, each in board.baselines.items()},
        },
    )
    failed = {r.name: r.failure for r in board.results if r.failure}
    return SweepResult(folder.path, summary, best, taken, told_first, notes, failed)


@dataclass(frozen=True)
class _Board:
    """Every row at its rank, and what may be chosen of them."""

    results: list[PointResult]
    """The points, as they rank among themselves."""
    rows: list[Row]
    """Points, blends and the baseline that is ranked with them."""
    scores: dict[str, dict[str, Scores]]
    """By name, then by weights; of baselines below the board too."""
    baselines: dict[str, Scores]
    choices: list[PointResult]
    """Points that are not for reports only."""
    members: list[PointResult]
    """Whom the blends are of."""
    blends: list[Blend]
    rival: list[PointResult]
    """The baseline among the rows, if there is one."""
    best: PointResult | None
    chosen: Row | None


def _ranked(sweep: Sweep, results: Sequence[PointResult], beside: Sequence[PointResult]) -> _Board:
    scores = {r.name: _scores(sweep, r) for r in results}
    results = sorted(results, key=lambda r: _rank(sweep.by, r, scores[r.name]))
    choices = [r for r in results if not kinds.load(r.config.head.kind).report_only]
    best = next((r for r in choices if not r.failed), None)

    baselines = {"mean": score_mean(sweep)}
    ranked = None
    for each in beside:
        scores[each.name] = _scores(sweep, _of_what_it_tells(each))
        baselines[each.name] = scores[each.name]["last"]
        if tells_ranked(sweep.by, each.name):
            ranked = each

    members = blend_members(sweep, choices, ranked)
    blends = form_blends(sweep, members)
    scores |= {blend.name: _scores(sweep, blend) for blend in blends}

    rival = [ranked] if best and has_their_rules(sweep, ranked) else []
    everyone = [*results, *blends, *rival]
    rows = sorted(everyone, key=lambda r: _rank(sweep.by, r, scores[r.name]))
    can_be_chosen = [*choices, *blends, *rival]
    chosen = next((r for r in rows if r in can_be_chosen and not r.failed), None)
    return _Board(results, rows, scores, baselines, choices, members, blends, rival, best, chosen)


def _summary(sweep: Sweep, board: _Board, comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """The table of the board: its rows, then baselines that are not among them."""
    table = []
    for r, versus in zip(board.rows, comparisons, strict=True):
        table.append(summary_row(sweep, r, board.scores[r.name], versus))
    names = [r.name for r in board.rows]
    for name, each in board.baselines.items():
        if name not in names:
            about = {"name": name, "score_last": each.mean, "sd_last": each.sd}
            table.append(about | parts_of(each))

    summary = pd.DataFrame(table)
    if sweep.data.targets.preset:  # behind the columns that it always had
        others = list(board.baselines["mean"].others)
        before = summary.columns.difference(others, sort=False)
        summary = summary[[*before, *others]]
    return summary


def _judged(sweep: Sweep, chosen: Row | None) -> dict[str, Any]:
    """What the score would be with one of the rules less or more, of the chosen row."""
    rules = rules_of(sweep.base.inference.postprocess)
    if not rules or not chosen:
        return {}
    last = chosen.held_out["last"]
    return judge(rules, lambda some: scores_of(sweep, last.by_rules(some), last.word_RNC).mean)


def _scores(sweep: Sweep, row: Row) -> dict[str, Scores]:
    """By which weights."""
    return {
        which: scores_of(sweep, prediction.values_RNK, prediction.word_RNC)
        for which, prediction in row.held_out.items()
    }


def _of_what_it_tells(baseline: PointResult) -> PointResult:
    """A baseline without the training mean, which stands for numbers where it tells none."""
    if kinds.tells_numbers(baseline.config.head.kind):
        return baseline
    last = baseline.held_out["last"]
    blank = replace(last, raw_RNK=np.full_like(last.raw_RNK, np.nan))
    return replace(baseline, held_out={"last": blank})


def _beside_chosen(
    sweep: Sweep,
    chosen: Row | None,
    beside: Sequence[PointResult],
) -> list[str]:
    """Names of baselines that predict together with the chosen row: they tell what it does not."""
    if chosen is None:
        return []
    by_name = {chosen.name: chosen}
    names = [chosen.name]
    if isinstance(chosen, Blend):
        by_name = {member.name: member for member in chosen.members}
        names, _ = chosen.weighing()
    told = [by_name[name].config.head.kind for name in names]
    needed = completing(sweep.data.targets, told)
    return [each.name for each in beside if each.name in needed]


def _rank(by: Score, row: Row, scores: Mapping[str, Scores]) -> tuple[bool, float]:
    """Those that failed last, then by score; one that is not defined stands behind all others."""
    merit = by.merit(scores["last"].mean)
    return row.failed, -np.nan_to_num(merit, nan=-np.inf)


def _save_blend(
    sweep: Sweep,
    folder: SweepFolder,
    blend: Blend,
) -> None:
    """A blend's folder: who predicts by which shares, and what they predict out of fold."""
    own = folder.run(blend.name)
    own.path.mkdir(exist_ok=True)
    own.write_table("oof.csv", oof_of(sweep, blend.held_out))
    members = [f"../{member.name}" for member in blend.members]
    names = [split_name(split) for split in sweep.splits]
    by_split = dict(zip(names, blend.share_QM.tolist(), strict=True))
    save_blend(own.path, members, blend.share_M.tolist(), by_split)


def _compare(
    sweep: Sweep,
    results: Sequence[Row],
    site_N: np.ndarray,
    reference: int,
) -> tuple[list[Comparison], pd.DataFrame]:
    """Every row against one of them, and a table of all pairs of the first MOST_PAIRED."""
    scored_GRNK = np.stack([scored_of(sweep, r.held_out["last"]) for r in results])
    truth_NK = sweep.scored_truth_NK
    seed = sweep.base.experiment.seed
    pairs = compare_pairs(sweep.by, truth_NK, scored_GRNK[:MOST_PAIRED], site_N, seed)
    rows = [
        {"better": results[a].name, "other": results[b].name, **vars(c)}
        for (a, b), c in pairs.items()
    ]
    columns = ["better", "other", *(field.name for field in fields(Comparison))]
    table = pd.DataFrame(rows, columns=columns)
    return compare(sweep.by, truth_NK, scored_GRNK, site_N, reference, seed), table


def _honest(sweep: Sweep, board: _Board) -> dict[str, Any]:
    """What the selected row is worth, by choices that never saw the fold they are scored on.

    `last` is like score_last: points and blends chosen and scored by their last weights under all
    views. `epoch` chooses among points alone, and among all epochs too, by what was noted while
    training: view 0, without rules; `plain` is the choice by the last epoch on that view, to
    compare with it.
    """
    results = [*board.choices, *board.rival]
    truth_NK = sweep.scored_truth_NK
    scored_GRNK = np.stack([scored_of(sweep, r.held_out["last"]) for r in results])
    last_GQ = sweep.by.split_errors(truth_NK, scored_GRNK, sweep.splits)
    formed = blend_errors(sweep, board.members, [blend.name for blend in board.blends])
    others_GQ = others_errors(last_GQ, sweep.splits)
    last = honest_estimate(
        sweep.by,
        np.concatenate([last_GQ, formed.own_BQ])[None],
        truth_NK,
        sweep.splits,
        np.concatenate([others_GQ, formed.others_BQ])[None],
    )

    # a regressor has one epoch, which counts as each of a head's
    n_epochs = max(len(r.errors_EQ) for r in results)
    shape_EQ = (n_epochs, len(sweep.splits))
    noted_EGQ = np.stack([np.broadcast_to(r.errors_EQ, shape_EQ) for r in results], 1)
    noted = honest_estimate(sweep.by, noted_EGQ, truth_NK, sweep.splits)
    return {
        "last": last.score,
        "sd_last": last.sd,
        "last_per_repeat": last.per_repeat_R,
        "plain": noted.score,
        "epoch": noted.score_epoch,
        "sd_epoch": noted.sd_epoch,
        "epoch_per_repeat": noted.per_repeat_epoch_R,
        "points": [r.name for r in results],
        "blends": formed.names,
        "chosen_by_last": last.chosen_G,
        "chosen_with_epoch": noted.chosen_epoch_G,
    }
