"""Which folder of a finished sweep its best point is, and what it chose."""

from pathlib import Path

from featurestore.errors import InputError
from trainer.loop.runs import SUMMARY, read_json


def best_run(sweep: Path) -> Path:
    """The run of a finished sweep's best point. InputError if there is none."""
    return sweep / _finished(sweep)["best"]


def chosen_run(sweep: Path) -> Path:
    """The folder of what a finished sweep chose, a run's or a blend's.

    Of sweeps of before there were blends, the best point's. InputError if there is none.
    """
    summary = _finished(sweep)
    chosen = summary.get("chosen")
    return sweep / (chosen["name"] if chosen else summary["best"])


def _finished(sweep: Path) -> dict:
    """summary.json of a finished sweep that has a best point; InputError for another folder."""
    if not (sweep / SUMMARY).exists():
        if (sweep / "sweep.json").exists():
            raise InputError(
                f"{sweep}: this sweep is not finished; "
                f"`biomass train --resume {sweep}` goes on with it"
            )
        if (sweep / "config.yaml").exists():
            raise InputError(f"{sweep}: a run's folder, not a sweep's; give it as --run")
    summary = read_json(sweep / SUMMARY, "best")
    if summary["best"] is None:
        raise InputError(
            f"{sweep}: there is no best run: all points failed, or are for reports only; lower "
            "optimization.lr or add another head.kind, and train again"
        )
    return summary
