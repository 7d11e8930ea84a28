"""Which folder a row of a sweep's board is: a run's, or a blend's."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.errors import InputError, list_some
from trainer.heads import kinds
from trainer.loop.baselines import BASELINES, completing
from trainer.loop.blend_folder import is_blend, shared_runs
from trainer.loop.chosen import best_run, chosen_run
from trainer.loop.runs import RunFolder
from trainer.score.metrics import Score


def row_of(sweep: Path, name: str | None = None) -> Path:
    """The folder of a row by its name or the beginning of it, of `best`, the best point, or (None,
    `chosen`) of what the sweep chose.

    InputError if the sweep is not finished, has no such row, or several names begin so.
    """
    if name in (None, "chosen"):
        return chosen_run(sweep)
    best = best_run(sweep)
    if name == "best":
        return best
    known = row_names(sweep)
    if name in known:
        return sweep / name
    begins = [each for each in known if name and each.startswith(name)]
    if len(begins) > 1:
        raise InputError(
            f"{sweep}: {len(begins)} points begin with {name}; give more of the name:"
            f"{list_some(begins)}"
        )
    if not begins:
        raise InputError(f"{sweep}: no point {name or repr(name)}; it has:{list_some(known)}")
    return sweep / begins[0]


def completed(sweep: Path, rows: Sequence[Path], say: Callable[[str], object]) -> list[Path]:
    """Folders of a sweep's rows, and of its baselines that tell targets which these do not; `say`
    is told of them.

    Sweeps of before there were such runs have none.
    """
    told = []
    for row in rows:
        for run in shared_runs(row):
            if run.share > 0:
                folder = RunFolder(run.path)
                told.append(folder.config.head.kind)

    together = list(rows)
    # of whichever run came last: all of a sweep learn the same targets
    for name in completing(folder.targets, told):
        beside = sweep / name
        if (beside / "config.yaml").exists():
            say(f"beside them {beside}, which tells targets that they do not")
            together.append(beside)
    return together


def row_names(sweep: Path) -> list[str]:
    """Names of a sweep's runs and blends, as they stand on its board."""
    # a refit is what the sweep chose, trained once more, and no row of its board
    found = [path for path in sorted(sweep.iterdir()) if path.name != "refit"]
    return [path.name for path in found if (path / "config.yaml").exists() or is_blend(path)]


def describe_row(found: Path, name: str | None = None) -> str:
    """Whose heads they are, for people."""
    if name not in (None, "best", "chosen"):
        why = "the row of this sweep that was asked for"
    elif is_blend(found):
        why = "the chosen blend of this sweep"
    elif name != "best" and found.name in BASELINES:
        why = f"the {found.name} on this sweep's board, which it chose"
    else:
        why = "the best run of this sweep"
    if not is_blend(found):
        return f"{found}, {why}"
    parts = [f"{run.share:.3f} {run.path.name}" for run in shared_runs(found) if run.share > 0]
    return f"{found}, {why} ({', '.join(parts)})"


def outdone(sweep: Path, found: Path) -> str | None:
    """Which regressor of a sweep's board scored better than the row that predicts, in a sentence;
    None where none did."""
    board = pd.read_csv(sweep / "summary.csv")
    scores = board.set_index("name")["score_last"].dropna().to_dict()
    first = RunFolder(shared_runs(found)[0].path)
    by = Score.of(first.config.score, first.targets)
    own = by.merit(scores.get(found.name, np.nan))
    # the best one that can predict
    better = [name for name, score in scores.items() if by.merit(score) > own]
    for name in sorted(better, key=lambda name: -by.merit(scores[name])):
        told = (
            f"{name} scored better on this sweep's board: {scores[name]:.4f}, and "
            f"{scores[found.name]:.4f} {found.name}"
        )
        run = RunFolder(sweep / name)
        if (run.path / "config.yaml").exists():
            kind = kinds.load(run.config.head.kind)
            if not kind.trained and not kind.report_only:
                return f"{told}; `--point {name}` takes it"
        elif name in BASELINES:
            return f"{told}; it was not kept, so train again to use it"
    return None
