"""What `biomass predict` and `python -m predictor` both do: find the heads, predict, write."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd

from featurestore.disk.durable import check_writable
from featurestore.disk.durations import parse_duration
from featurestore.disk.tables import find_table
from featurestore.errors import UsageError, list_some
from featurestore.photos.catalog import ToPredict, read_test
from featurestore.photos.targets import Targets
from predictor.bundle.listing import LISTING
from predictor.checks import check_file_name, check_oof_alone, check_sources
from predictor.extras.blend import Blend, weighed
from predictor.extras.explain import PICTURE_S
from predictor.members.combine import Average
from predictor.members.member import say_lone_folds
from predictor.members.oof import check_held_out
from predictor.members.submission import check_targets, write_predictions
from predictor.members.sweep_rows import completed, describe_row, outdone, row_of
from predictor.parity import check_oof
from predictor.predicted import Predicted
from predictor.predictor import Predictor, photographs_of
from trainer.loop.blend_folder import is_blend, shared_runs
from trainer.loop.newest import newest_sweep
from trainer.loop.runs import RunFolder

OnError = Literal["fail", "mean"]


def predict_to_file(
    data: Path,
    out: Path | None,
    say: Callable[[str], object],
    run: Sequence[Path] = (),
    sweep: Path | None = None,
    bundle: Path | None = None,
    point: str | None = None,
    tta: int | str | None = None,
    average: Average | None = None,
    constraints: str | None = None,
    on_error: OnError | None = None,
    deadline: str | None = None,
    resume: bool = False,
    interval: float | None = None,
    blend: Blend | None = None,
    oof: bool = False,
    explain: Path | None = None,
    allow_outside: bool = False,
    csv: Path | None = None,
    **options,
) -> Predicted:
    """Predict test.csv of `data`, write `out` and the wide table (`submission.wide_path`); returns
    what was written.

    out : None is submission.csv, predictions.csv where there is one table alone, or
        oof_predictions.csv with `oof`.

    run : folders of runs, several as an ensemble. Without a run, sweep or bundle, what the newest
        sweep under ./runs chose.
    point : of the sweep, a row of its board; None is what it chose.
    tta : views, None is 4.
    on_error : None or `fail` lists all photographs that cannot be used before work starts; `mean`
        writes the training mean.
    deadline : `8h30m` from now; resume : take up what a stopped prediction of this output had
        finished.
    interval : level of the intervals in the wide table; blend : how an ensemble's members are
        weighed, None as they say.
    oof : the training photographs instead, see `check_oof`; all that the run says by itself cannot
        be chosen then.
    explain : folder for a picture of every photograph and report.html, drawn when the submission is
        written.
    allow_outside : also take photographs that are not below `data`.
    csv : the table to read, instead of test.csv or with `oof` of train.csv.
    say : told what a person should know; options as `Predictor.load`.
    """
    start_s = time.monotonic()
    runs = find_runs(run, sweep, bundle, say, point, alone=oof)
    tables = [data / "test.csv", data / "train.csv", *([csv] if csv else [])]
    if oof:
        out = out or Path("oof_predictions.csv")
        check_places(tables, runs, out, explain)
        check_oof_alone(
            tta=tta,
            average=average,
            constraints=constraints,
            on_error=on_error,
            deadline=deadline,
            interval=interval,
            blend=blend,
            explain=explain,
        )
        # members without a share too: they may have one in some fold
        parts = [part.path for each in runs for part in shared_runs(each)]
        predictor = Predictor.load(parts, table=csv or data / "train.csv", **options)
        say_lone_folds(predictor.members, say)
        blend = runs[0] if len(runs) == 1 and is_blend(runs[0]) else None
        check_oof(predictor, data, out, say, resume, allow_outside, blend, csv)
        return Predicted(out)

    # what cannot be followed or read is refused before anything heavy is loaded
    asked = read_test(csv or data / "test.csv")
    targets = targets_of(runs[0])
    out = out or usual_output(asked, targets)
    check_places(tables, runs, out, explain)
    predicted = _predict_test(
        data,
        csv or data / "test.csv",
        asked,
        targets,
        out,
        say,
        runs,
        tta=4 if tta is None else tta,
        average=average,
        constraints=constraints,
        takes_mean=on_error == "mean",
        end_s=start_s + parse_duration(deadline) if deadline else None,
        resume=resume,
        interval=interval,
        blend=blend,
        explain=explain,
        allow_outside=allow_outside,
        **options,
    )
    say_unusable(predicted.unusable, say)
    return predicted


def _predict_test(
    data: Path,
    test_csv: Path,
    asked: ToPredict,
    targets: Targets | None,
    out: Path,
    say: Callable[[str], object],
    runs: Sequence[Path],
    *,
    tta: int | str,
    average: Average | None,
    constraints: str | None,
    takes_mean: bool,
    end_s: float | None,
    resume: bool,
    interval: float | None,
    blend: Blend | None,
    explain: Path | None,
    allow_outside: bool,
    **options,
) -> Predicted:
    """Predict test.csv and write all files.

    targets : None of a bundle, whose files are not yet checked.
    takes_mean : `--on-error mean`; end_s : the deadline, by time.monotonic().
    """
    rows = None
    if targets:
        rows = rows_to_follow(test_csv, asked, targets, out)
    paths = photographs_of(asked.images, data, takes_mean, allow_outside)
    predictor = load_predictor(
        runs,
        test_csv,
        say,
        average=average,
        constraints=constraints,
        blend=blend,
        takes_mean=takes_mean,
        **options,
    )
    if not targets:
        targets = predictor.combiner.targets
        rows = rows_to_follow(test_csv, asked, targets, out)
    intervals = predictor.intervals(interval) if interval is not None else None
    explainer = predictor.explainer(explain, tta, list(paths.values())) if explain else None
    kept = predictor.journal(out.with_name(out.name + ".progress"), tta, resume)

    left_s = None
    if end_s is not None:
        drawing_s = PICTURE_S * len(paths) if explain else 0
        left_s = end_s - time.monotonic() - drawing_s

    unusable: dict[str, str] = {}
    table = predictor.predict(
        paths,
        tta,
        deadline_s=left_s,
        kept=kept,
        unusable=unusable if takes_mean else None,
        explainer=explainer,
        say=say,
    )
    if intervals:
        table = intervals.added(table, unusable)
    wide = write_predictions(rows, table, out, targets)

    # pictures come last, so that they never stand between a deadline and the submission
    report = None
    if explainer:
        report = explainer.report(paths, table, unusable, interval)
        say(f"pictures: {report}")
    kept.close()
    return Predicted(out, wide, len(table), unusable, report)


def load_predictor(
    runs: Sequence[Path],
    test_csv: Path,
    say: Callable[[str], object],
    *,
    blend: Blend | None,
    takes_mean: bool,
    **options,
) -> Predictor:
    """The predictor of all heads; `say` is told what a person should know of them.

    takes_mean : `--on-error mean`, which a refit is refused; options as `Predictor.load`.
    """
    weigh = partial(weighed, how=blend, say=say) if blend else None
    predictor = Predictor.load(runs, weigh=weigh, table=test_csv, **options)
    say_lone_folds(predictor.members, say)
    if untold := predictor.combiner.untold:
        say(untold)
    if takes_mean:
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
        say(f"warning: the training mean stands for {len(unusable)} photographs:{reasons}")


def _has_submission(asked: ToPredict, targets: Targets) -> bool:
    """Whether a long table is asked for: by a long test.csv, and always by the preset."""
    return asked.is_long or targets.preset is not None


def rows_to_follow(
    test_csv: Path, asked: ToPredict, targets: Targets, out: Path
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
    run: Sequence[Path],
    sweep: Path | None,
    bundle: Path | None,
    say: Callable[[str], object],
    point: str | None = None,
    alone: bool = False,
) -> list[Path]:
    """The folders of runs, blends or a bundle meant: those given, else what the sweep given chose,
    or the newest one under ./runs, with the sweep's baselines that tell targets which it does not.

    point : a row of the sweep's board instead, or `best`, the best point of its grid.
    alone : without baselines.
    """
    check_sources(run, sweep, bundle, point)
    if bundle or run:
        return [bundle] if bundle else list(run)
    folder, why = (sweep, "") if sweep else newest_sweep(Path("runs"))
    found = row_of(folder, point)
    say(f"heads of {describe_row(found, point)}" + (f": {why}" if why else ""))
    rival = None if alone else outdone(folder, found)
    if rival:
        say(f"warning: {rival}")
    return [found] if alone else completed(folder, [found], say)


def check_places(
    tables: Sequence[Path],
    runs: Sequence[Path],
    out: Path,
    explain: Path | None = None,
) -> None:
    """UsageError for an output that is also an input, or that lies in a bundle."""
    parts = [part.path for each in runs for part in shared_runs(each)]
    known = [find_table(folder / "oof.csv") for folder in [*runs, *parts]]
    check_output(out, [*tables, *known])
    check_outside_bundles(runs, {"--out": out, "--explain": explain})


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
    the files to be read."""
    check_file_name(out)
    if os.path.realpath(out) in map(os.path.realpath, read):
        raise UsageError(
            f"--out {out}: is read to predict, and would be written over; name another file"
        )
    check_writable(out.absolute().parent)
