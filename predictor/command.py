"""What `biomass predict` and `python -m predictor` both do: find the run, predict, write."""

from collections.abc import Callable, Sequence
from pathlib import Path

from featurestore._bytes import check_writable
from featurestore.catalog import target_rows
from featurestore.errors import UsageError
from predictor.predictor import predict
from predictor.submission import write_predictions
from trainer.runs import best_run, newest_sweep


def predict_to_file(data: Path, out: Path, say: Callable[[str], object], run: Path | None = None, sweep: Path | None = None,
                    folds: Sequence[int] | None = None, tta: int = 4, **options) -> Path:
    """Predict test.csv of `data` and write `out` and predictions.csv; returns the run that was used.

    Without a run or sweep it is the best run of the newest sweep under ./runs, and `say` is told so.
    """
    if run and sweep:
        raise UsageError("give --run or --sweep, not both: a sweep stands for its best run")
    if not run:
        sweep_folder = sweep or newest_sweep(Path("runs"))
        run = best_run(sweep_folder)
        say(f"heads of {run}, the best run of {'this' if sweep else 'the newest'} sweep")
    if out.is_dir() or out.name == "predictions.csv":
        raise UsageError(f"--out {out}: name a file; predictions.csv is the wide table that goes beside it")
    target_rows(data / "test.csv")  # a CSV no submission can follow is refused before the work
    check_writable(out.absolute().parent)
    write_predictions(data / "test.csv", predict(run, data, tta, folds=folds, **options), out)
    return run
