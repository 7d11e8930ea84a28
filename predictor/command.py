"""What `biomass predict` and `python -m predictor` both do: find the heads, predict, write."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from featurestore._bytes import check_writable
from featurestore.catalog import target_rows
from featurestore.errors import InputError, UsageError, list_some
from predictor.blend import Blend, weighed
from predictor.bundle import LISTING
from predictor.deadline import parse_duration
from predictor.explain import PICTURE_S
from predictor.intervals import Intervals
from predictor.parity import check_oof
from predictor.predictor import Predictor, test_photographs
from predictor.submission import write_predictions
from trainer.runs import best_run, newest_sweep

IN_PART = 6  # exit code: the submission is whole, but some of its rows are training means


def predict_to_file(data: Path, out: Path, say: Callable[[str], object], run: Sequence[Path] = (), sweep: Path | None = None,
                    bundle: Path | None = None, tta: int | str = 4, on_error: str = "fail",
                    deadline: str | None = None, resume: bool = False,
                    interval: float | None = None, blend: Blend | None = None, oof: bool = False,
                    explain: Path | None = None, **options) -> int:
    """Predict test.csv of `data` and write `out` and predictions.csv; returns the exit code, 0 or IN_PART.

    run : folders of runs, several as an ensemble. Without a run, sweep or bundle, the best run of the newest sweep under ./runs.
    on_error : `fail` lists all photographs that cannot be used before work starts; `mean` writes the training mean for them.
    deadline : `8h30m` from now; resume : take up what a stopped prediction of this output had finished.
    interval : level of the intervals in predictions.csv; blend : how an ensemble's members are weighed, None as they say.
    oof : the training photographs instead, see `check_oof`; views, constraints and rules are the run's then.
    explain : folder for a picture of every photograph and report.html, drawn when the submission is written.
    say : told what a person should know; options as `Predictor.load`.
    """
    start = time.monotonic()
    runs = find_runs(run, sweep, bundle, say)
    check_output(out)
    if oof and explain:
        raise UsageError("--explain draws what a prediction sees: leave --oof or --explain out")
    if oof:
        check_oof(Predictor.load(runs, **options), data, out, say, resume)
        return 0
    target_rows(data / "test.csv")  # a CSV no submission can follow is refused before the work
    paths = test_photographs(data, missing=on_error == "mean")
    weigh = partial(weighed, how=blend, say=say) if blend else None
    predictor = Predictor.load(runs, weigh=weigh, **options)
    intervals = Intervals.of(predictor.members, interval) if interval is not None else None
    drawing_s = PICTURE_S * len(paths) if explain else 0.0
    budget_s = parse_duration(deadline) - (time.monotonic() - start) - drawing_s if deadline else None
    kept = predictor.journal(out.with_name(out.name + ".progress"), tta, resume)
    explainer = predictor.explainer(explain, tta) if explain else None
    unusable = {} if on_error == "mean" else None
    table = predictor.predict(paths, tta, deadline_s=budget_s, kept=kept, unusable=unusable, explainer=explainer, say=say)
    if intervals:
        table = intervals.added(table, unusable or ())
    write_predictions(data / "test.csv", table, out)
    if explainer:
        say(f"pictures: {explainer.report(paths, table, unusable or {}, interval)}")
    kept.close()
    if unusable:
        say(f"the training mean stands for {len(unusable)} photographs:{list_some(list(unusable.values()), len(unusable))}")
    return IN_PART if unusable else 0


def find_runs(run: Sequence[Path], sweep: Path | None, bundle: Path | None, say: Callable[[str], object]) -> list[Path]:
    """The runs or bundle meant: those given, else the best run of the sweep given, else of the newest one under ./runs."""
    if bool(run) + bool(sweep) + bool(bundle) > 1:
        raise UsageError("give one of --run, --sweep and --bundle: a sweep stands for its best run, a bundle for all runs in it")
    if bundle and not (bundle / LISTING).exists():
        raise InputError(f"{bundle}: no bundle, it has no {LISTING}; `biomass bundle SWEEP --out DIR` makes one")
    if bundle or run:
        return [bundle] if bundle else list(run)
    folder = sweep or newest_sweep(Path("runs"))
    best = best_run(folder)
    say(f"heads of {best}, the best run of {'this' if sweep else 'the newest'} sweep")
    return [best]


def check_output(out: Path) -> None:
    """UsageError or InputError unless the output can be written where it shall go."""
    if out.is_dir() or out.name == "predictions.csv":
        raise UsageError(f"--out {out}: name a file; predictions.csv is the wide table that goes beside it")
    check_writable(out.absolute().parent)
