"""A row of a sweep's board, as a row of summary.csv and as summary.json tells it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.judge.compare import Comparison
from trainer.loop.baselines import BASELINES
from trainer.loop.blend_folder import split_name
from trainer.loop.blends import Blend, Row
from trainer.loop.evaluate import Scores
from trainer.loop.prepare import Sweep
from trainer.loop.results import PointResult

IF_THERE = ("others", "classes")
"""Of scores, what summary.json has where there is any."""


def chosen_json(
    chosen: Row | None,
    beside: Sequence[str] = (),
) -> dict[str, Any] | None:
    """What `predict` takes: its name on the board, and the runs that predict together.

    beside : baselines that tell what it does not. Shares count among runs that tell a target.
    """
    if chosen is None:
        return None
    members = [chosen.name]
    shares = [1.0]
    if isinstance(chosen, Blend):
        members, shares = chosen.weighing()
    for name in beside:
        members.append(name)
        shares.append(1.0)
    return {"name": chosen.name, "members": members, "shares": shares}


def blend_json(
    sweep: Sweep,
    blend: Blend,
    scores: Mapping[str, Scores],
    versus: Comparison,
) -> dict:
    """Of summary.json's `blends`."""
    return {
        "name": blend.name,
        "members": [member.name for member in blend.members],
        "shares": blend.share_M.tolist(),
        "vs_best": vars(versus),
        "last": scores_json(scores["last"]),
    }


def summary_row(
    sweep: Sweep,
    result: Row,
    scores: Mapping[str, Scores],
    versus: Comparison,
) -> dict:
    """Of summary.csv: scores, difference to the chosen row, settings of a point."""
    last = scores["last"]
    row = {
        "name": result.name,
        "score_last": last.mean,
        "sd_last": last.sd,
        "vs_best": versus.difference,
        "low": versus.low,
        "high": versus.high,
        "apart": versus.apart,
        # of baselines it says nothing
        "failed": None if result.name in BASELINES else result.failed,
    }
    if "best" in scores:  # trained heads: regressors have no epochs to choose among
        row["score_best"] = scores["best"].mean
        row["sd_best"] = scores["best"].sd
        row["best_epoch"] = float(np.mean(result.best_epoch_Q))
    if isinstance(result, PointResult) and result.name not in BASELINES:
        row |= sweep.config.settings(result.index)
    return row | parts_of(last)


def parts_of(scores: Scores) -> dict:
    """Scores of each target and each State, as columns."""
    parts = {f"r2_{target}": value for target, value in scores.per_target.items()}
    for name, about in scores.classes.items():
        parts[f"accuracy_{name}"] = about["accuracy"]
        parts[f"f1_{name}"] = about["macro_f1"]
    parts |= {f"score_{state}": value for state, value in scores.per_state.items()}
    return scores.others | parts


def point_json(
    sweep: Sweep,
    result: PointResult,
    scores: Mapping[str, Scores],
    versus: Comparison,
) -> dict:
    """Of summary.json's `points`."""
    names = [split_name(split) for split in sweep.splits]
    steps = dict(zip(names, result.failed_Q.tolist(), strict=True))
    spaces = {} if result.n_by_space is None else {"spaces": result.n_by_space}
    return {
        "name": result.name,
        **spaces,
        "best_epoch_Q": result.best_epoch_Q.tolist(),
        "vs_best": vars(versus),
        "failed": result.failure,
        "failed_at_batch": {name: step for name, step in steps.items() if step >= 0},
        **{which: scores_json(each) for which, each in scores.items()},
    }


def scores_json(scores: Scores) -> dict:
    """Scores as JSON holds them."""
    told = vars(scores) | {"per_repeat_R": scores.per_repeat_R.tolist()}
    return {name: value for name, value in told.items() if value or name not in IF_THERE}
