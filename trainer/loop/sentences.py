"""What a board says, in sentences for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featurestore.counts import count_of
from trainer.data.groups import unit_of
from trainer.data.splits import n_partitions
from trainer.heads import kinds
from trainer.judge.compare import LEAST_SITES, Comparison
from trainer.loop.baselines import BASELINES, LOGISTIC, tells_ranked
from trainer.loop.blends import Blend, Row
from trainer.loop.evaluate import Scores
from trainer.loop.prepare import Sweep
from trainer.loop.results import PointResult

MOST_NOTED = 10  # failed points, and those that chose spaces, one a note


def headline(
    sweep: Sweep,
    results: Sequence[PointResult],
    beside: Sequence[PointResult],
    scores: Mapping[str, Scores],
    chosen: Row | None,
) -> str | None:
    """Which regressor or baseline beats the best trained head, and how it is used; None where none
    does, or no head was trained.

    results, beside : points and baselines; scores : by name, of the training mean too.
    """
    merits = {}
    heads = []
    rivals = []
    rankable = [each for each in beside if tells_ranked(sweep.by, each.name)]
    for each in [*results, *rankable]:
        merits[each.name] = float(sweep.by.merit(scores[each.name].mean))
        if each.failed or not np.isfinite(merits[each.name]):
            continue
        is_head = kinds.load(each.config.head.kind).trained
        (heads if is_head else rivals).append(each)
    if not heads:
        return None
    head = max(heads, key=lambda each: merits[each.name])
    rival = max(rivals, key=lambda each: merits[each.name], default=head)
    if rival is head or merits[rival.name] <= merits[head.name]:
        if sweep.by.merit(scores["mean"].mean) > merits[head.name]:
            return (
                f"the training mean ({scores['mean'].mean:.4f}) beats every head: the best, "
                f"{head.name}, has {scores[head.name].mean:.4f}; try other optimization.lr or more "
                "trainer.num_epochs"
            )
        return None

    told = (
        f"{rival.name} ({scores[rival.name].mean:.4f}) beats the best trained head, {head.name} "
        f"({scores[head.name].mean:.4f})"
    )
    if kinds.load(rival.config.head.kind).report_only:
        return f"{told}; it is for reports only, and cannot predict"
    if chosen is None or chosen.name == rival.name:
        return f"{told}; `biomass predict` takes {rival.name}"
    return (
        f"{told}; `biomass predict` takes {chosen.name} ({scores[chosen.name].mean:.4f}), "
        f"`biomass predict --point {rival.name}` takes {rival.name}"
    )


def describe_beside(sweep: Sweep, chosen: Row, name: str) -> str:
    """What a baseline predicts beside the chosen row, in a sentence."""
    targets = sweep.data.targets
    what = "numbers"
    told = targets.names
    if name == LOGISTIC:
        what = "classes"
        told = [target.name for target in targets.classes]
    return f"{chosen.name} tells no {what}: predict takes {', '.join(told)} from {name}"


def describe_blend(blend: Blend) -> str:
    """Who is in a blend, in a sentence."""
    members, shares = blend.weighing()
    parts = [f"{share:.3f} {name}" for name, share in zip(members, shares, strict=True)]
    return f"{blend.name}: {', '.join(parts)}"


def describe_level(
    sweep: Sweep,
    results: Sequence[Row],
    site_N: np.ndarray,
    best: Row | None,
    comparisons: Sequence[Comparison],
) -> str:
    """How many rows cannot be told apart from the best, or why nobody knows."""
    if best is None:
        return "there is no best point: all failed, or are for reports only"
    held_out = np.concatenate([split.val_N for split in sweep.splits])
    n_sites = len(np.unique(site_N[held_out]))
    unit = unit_of(sweep.groups)
    if n_sites < LEAST_SITES:
        return (
            f"which points can be told apart from the best is not known: {n_sites} {unit}s are "
            f"held out, too few for an interval, which takes {LEAST_SITES}"
        )
    others = []
    for r, versus in zip(results, comparisons, strict=True):
        if r is not best and r.name not in BASELINES and not r.failed:
            others.append(versus)
    if not others:
        return "there is no other point to compare the best with"
    n_level = sum(not c.apart for c in others)
    # what stands on the board
    kind = "points and blends" if any(isinstance(r, Blend) for r in results) else "points"
    some = f"{n_level} of {len(others)} other {kind} cannot"
    if not n_level:
        some = f"all {len(others)} other {kind} can"
    return f"{some} be told apart from the best ({unit}-level bootstrap, 95 %)"


def describe_repeats(
    sweep: Sweep,
    best: Scores,
    kind: str,
) -> list[str]:
    """The interval of the chosen row's mean over repeats, if there is one, and what it covers.

    Source: Student's t of the repeats' scores, of which those on the same partition count once:
    they tell nothing new.
    """
    from scipy.special import stdtrit  # not at the top: .2 s that a sweep's start need not wait

    n = n_partitions(sweep.folds)
    # one regrouping has no spread
    if n < 2 or not np.isfinite(best.sd):
        return []
    half = float(-stdtrit(n - 1, 0.025)) * best.sd / np.sqrt(n)
    units = f"{unit_of(sweep.groups)}s"
    interval = f"{best.mean - half:.4f} to {best.mean + half:.4f}"
    return [
        f"best {kind}: the mean over {n} different regroupings is {best.mean:.4f}, 95 % interval "
        f"{interval}; it covers the luck of grouping these {units}, not other {units}: "
        "for those see low and high"
    ]


def board_notes(
    results: Sequence[Row],
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
            f"selected {'row' if honest['blends'] else 'point'}: {honest['last']:.4f} where its "
            f"choice never saw the reported fold ({'points alone, ' if honest['blends'] else ''}"
            f"on the plain view alone {honest['plain']:.4f}; with the epoch chosen so too "
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
    """How often a point's fits chose each space, for every amount."""
    n_fits = sum(next(iter(result.n_by_space.values())).values())
    chosen = []
    for name, n_by_space in result.n_by_space.items():
        counts = ", ".join(f"{space} {n}" for space, n in n_by_space.items())
        chosen.append(f"{name} {counts}")
    return f"{result.name}: spaces that {count_of(n_fits, 'fit')} chose: {'; '.join(chosen)}"
