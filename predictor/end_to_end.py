"""What `biomass predict` and `python -m predictor` both do: find the heads, predict, write."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.counts import count_of
from featurestore.disk.durable import check_writable
from featurestore.disk.durations import parse_duration
from featurestore.disk.tables import find_table
from featurestore.errors import UsageError, list_some
from featurestore.photos.catalog import ToPredict, read_test
from featurestore.photos.targets import Targets
from predictor.bundle.listing import LISTING
from predictor.checks import check_file_name, check_oof_alone, check_sources, is_run_or_blend
from predictor.extras.blend import weighed
from predictor.extras.explain import PICTURE_S
from predictor.members.member import say_lone_folds
from predictor.members.oof import check_held_out
from predictor.members.submission import (
    check_targets,
    is_prediction,
    wide_path,
    write_predictions,
)
from predictor.members.sweep_rows import completed, describe_row, outdone, row_of
from predictor.options import PredictOptions
from predictor.parity import check_oof
from predictor.predicted import Predicted
from predictor.predictor import Predictor, photographs_of
from trainer.loop.blend_folder import is_blend, shared_runs
from trainer.loop.newest import newest_sweep
from trainer.loop.runs import RunFolder


def predict_to_file(
    data: Path,
    out: Path | None,
    say: Callable[[str], object],
    **options: Any,
) -> Predicted:
    """As `predict_files`, of the options by name: what notebooks call."""
    return predict_files(PredictOptions(data, out, **options), say)


def predict_files(asked: PredictOptions, say: Callable[[str], object]) -> Predicted:
    """Predict test.csv, write the submission and the wide table (`submission.wide_path`); returns
    what was written.

    say : told what a person should know.
    """
    start_s = time.monotonic()
    runs = find_runs(asked, say, alone=asked.oof)
    data, csv = asked.data, asked.csv
    tables = [data / "test.csv", data / "train.csv", *([csv] if csv else [])]
    if asked.oof:
        out = asked.out or Path("oof_predictions.csv")
        check_places(tables, runs, out, asked.explain)
        _compare_out_of_fold(asked, runs, out, say)
        return Predicted(out)

    # what cannot be followed or read is refused before anything heavy is loaded
    table = read_test(asked.test_csv)
    targets = targets_of(runs[0])
    out = asked.out or usual_output(table, targets)
    check_places(tables, runs, out, asked.explain)
    end_s = start_s + parse_duration(asked.deadline) if asked.deadline else None
    predicted = _predict_test(asked, runs, table, targets, out, say, end_s)
    say_unusable(predicted.unusable, say)
    return predicted


def _compare_out_of_fold(
    asked: PredictOptions,
    runs: Sequence[Path],
    out: Path,
    say: Callable[[str], object],
) -> None:
    """The training photographs by the heads that held them out, beside what the sweep wrote."""
    check_oof_alone(
        tta=asked.tta,
        average=asked.average,
        constraints=asked.constraints,
        on_error=asked.on_error,
        deadline=asked.deadline,
        interval=asked.interval,
        blend=asked.blend,
        explain=asked.explain,
    )
    # members without a share too: they may have one in some fold
    members = [part.path for each in runs for part in shared_runs(each)]
    train_csv = asked.csv or asked.data / "train.csv"
    predictor = Predictor.load(members, table=train_csv, **asked.of_heads())
    say_lone_folds(predictor.members, say)

    blend = runs[0] if len(runs) == 1 and is_blend(runs[0]) else None
    check_oof(predictor, asked.data, out, say, asked.resume, asked.allow_outside, blend, asked.csv)


def _predict_test(
    asked: PredictOptions,
    runs: Sequence[Path],
    table: ToPredict,
    targets: Targets | None,
    out: Path,
    say: Callable[[str], object],
    end_s: float | None,
) -> Predicted:
    """Predict test.csv and write all files.

    table : what test.csv asks for.
    targets : None of a bundle, whose files are not yet checked.
    end_s : the deadline, by time.monotonic().
    """
    rows = None
    if targets:
        rows = rows_to_follow(asked.test_csv, table, targets, out)
    paths = photographs_of(table.images, asked.data, asked.takes_mean, asked.allow_outside)
    predictor = load_predictor(asked, runs, say)
    if not targets:
        targets = predictor.combiner.targets
        rows = rows_to_follow(asked.test_csv, table, targets, out)

    # all that may refuse comes before the photographs, which may take hours
    views = asked.views
    intervals = None
    if asked.interval is not None:
        intervals = predictor.intervals(asked.interval)
    explainer = None
    if asked.explain:
        explainer = predictor.explainer(asked.explain, views, list(paths.values()))
    kept = predictor.journal(out.with_name(out.name + ".progress"), views, asked.resume)

    left_s = None
    if end_s is not None:
        drawing_s = PICTURE_S * len(paths) if explainer else 0
        left_s = end_s - time.monotonic() - drawing_s

    unusable: dict[str, str] = {}
    predicted = predictor.predict(
        paths,
        views,
        deadline_s=left_s,
        kept=kept,
        unusable=unusable if asked.takes_mean else None,
        explainer=explainer,
        say=say,
    )
    if intervals:
        predicted = intervals.added(predicted, unusable)
    wide = write_predictions(rows, predicted, out, targets)

    # pictures come last, so that they never stand between a deadline and the submission
    report = None
    if explainer:
        report = explainer.report(paths, predicted, unusable, asked.interval)
        say(f"pictures: {report}")
    kept.close()
    return Predicted(out, wide, len(predicted), unusable, report)


def load_predictor(
    asked: PredictOptions,
    runs: Sequence[Path],
    say: Callable[[str], object],
    *,
    backbones: bool = True,
) -> Predictor:
    """The predictor of all heads; `say` is told what a person should know of them.

    backbones : False loads none before it is needed.

    Raises InputError for a refit with `--on-error mean`: it has no out-of-fold table.
    """
    weigh = partial(weighed, how=asked.blend, say=say) if asked.blend else None
    predictor = Predictor.load(
        runs,
        weigh=weigh,
        table=asked.test_csv,
        backbones=backbones,
        **asked.of_heads(),
    )
    say_lone_folds(predictor.members, say)
    if untold := predictor.combiner.untold:
        say(untold)
    if asked.takes_mean:
        check_held_out(predictor.members, "--on-error mean")
    return predictor


def targets_of(run: Path) -> Targets | None:
    """What a run or a blend predicts; None of a bundle, whose files are not yet checked."""
    if (run / LISTING).exists():
        return None
    folder = RunFolder(shared_runs(run)[0].path)
    folder.config  # noqa: B018 -- what is no run's folder is told apart by it
    return folder.targets


def usual_output(asked: ToPredict, targets: Targets | None) -> Path:
    """Where the submission goes, or the wide table where it is alone."""
    is_lone = targets is not None and not _has_submission(asked, targets)
    return Path("predictions.csv" if is_lone else "submission.csv")


def say_unusable(unusable: Mapping[str, str], say: Callable[[str], object]) -> None:
    """Name photographs that could not be used."""
    if unusable:
        reasons = list_some(list(unusable.values()), len(unusable))
        counted = count_of(len(unusable), "photograph")
        say(f"warning: the training mean stands for {counted}:{reasons}")


def _has_submission(asked: ToPredict, targets: Targets) -> bool:
    """Whether a long table is asked for: by a long test.csv, and always by the preset."""
    return asked.is_long or targets.preset is not None


def rows_to_follow(
    test_csv: Path,
    asked: ToPredict,
    targets: Targets,
    out: Path,
) -> pd.DataFrame | None:
    """The rows of the submission; None where there is none.

    UsageError where it would take the name of the wide table beside it.
    """
    if not _has_submission(asked, targets):
        return None
    if out.name == "predictions.csv":
        raise UsageError(
            f"--out {out}: name a file; predictions.csv is the wide table that goes beside it"
        )
    check_targets(test_csv, asked.rows, targets)
    return asked.rows


def find_runs(
    asked: PredictOptions,
    say: Callable[[str], object],
    alone: bool = False,
) -> list[Path]:
    """The folders of runs, blends or a bundle meant: those given, else what the sweep given chose,
    or the newest one under ./runs, with the sweep's baselines that tell targets which it does not.

    A point is a row of the sweep's board instead, or `best`, the best point of its grid.
    alone : without baselines.
    """
    check_sources(asked.run, asked.sweep, asked.bundle, asked.point)
    if asked.bundle:
        return [asked.bundle]
    if asked.run:
        return list(asked.run)

    folder, why = (asked.sweep, "") if asked.sweep else newest_sweep(Path("runs"))
    found = row_of(folder, asked.point)
    say(f"heads of {describe_row(found, asked.point)}" + (f": {why}" if why else ""))
    if alone:
        return [found]
    if rival := outdone(folder, found):
        say(f"warning: {rival}")
    return completed(folder, [found], say)


def check_places(
    tables: Sequence[Path],
    runs: Sequence[Path],
    out: Path,
    explain: Path | None = None,
) -> None:
    """UsageError for an output that is also an input, that lies in a bundle, or whose place another
    output takes."""
    parts = [part.path for each in runs for part in shared_runs(each)]
    # a blend has a table of its own, and so has each of its members
    known = [find_table(folder / "oof.csv") for folder in [*runs, *parts]]
    check_output(out, [*tables, *known])
    check_outside_bundles(runs, {"--out": out, "--explain": explain})
    pictures = [explain, explain / "report.html"] if explain else []
    tables_of = map(os.path.realpath, (out, wide_path(out)))
    if not set(tables_of).isdisjoint(map(os.path.realpath, pictures)):
        raise UsageError(
            f"--explain {explain}: report.html and pictures would take the place of --out {out}; "
            "name another folder"
        )


def check_outside_bundles(runs: Sequence[Path], named: Mapping[str, Path | None]) -> None:
    """UsageError for an output, by its option, that lies in a bundle."""
    bundles = [folder for folder in runs if (folder / LISTING).exists()]
    for option, path in named.items():
        if path and any(
            Path(os.path.realpath(path)).is_relative_to(os.path.realpath(bundle))
            for bundle in bundles
        ):
            raise UsageError(
                f"{option} {path}: lies in the bundle, which must not change; name a place "
                "outside of it"
            )


def check_output(out: Path, read: Sequence[Path] = ()) -> None:
    """UsageError or InputError unless the output can be written where it shall go, which is none of
    the files to be read, and nothing but a table that predict may write over."""
    check_file_name(out)
    # by the file, not its name: links lead to one file in many ways
    if os.path.realpath(out) in map(os.path.realpath, read):
        raise UsageError(
            f"--out {out}: is read to predict, and would be written over; name another file"
        )
    if (wide := wide_path(out)).is_dir():
        raise UsageError(f"--out {out}: {wide} is a folder, where the wide table goes; name a file")
    for path in (out, wide):
        if path.exists() and not is_prediction(path):
            beside = "" if path == out else f"the wide table goes to {path}, which "
            raise UsageError(
                f"--out {out}: {beside}is there, and is no table of predictions; name another file"
            )
    # `predict --oof` writes tables that begin alike, so a run's own is known by its place
    place = Path(os.path.realpath(out))
    if place.name == "oof.csv" and is_run_or_blend(place.parent):
        raise UsageError(f"--out {out}: is a run's out-of-fold table; name another file")
    check_writable(out.absolute().parent)
