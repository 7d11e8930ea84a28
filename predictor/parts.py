"""A prediction cut into parts, whose only state is files: predict one of them, and merge all.

A part's photographs are predicted as if they were the whole table, then combined; what needs all
photographs, which are intervals and the order of test.csv, waits for the merge.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from featurestore.backbone.weights import from_every_folder
from featurestore.disk.durable import check_writable, file_sha256, locked, remove
from featurestore.disk.durations import parse_duration
from featurestore.errors import InputError, MismatchError, UsageError
from featurestore.photos.catalog import read_test
from featurestore.photos.views import chosen_tta
from predictor.end_to_end import (
    OnError,
    check_outside_bundles,
    check_places,
    find_runs,
    load_predictor,
    rows_to_follow,
    say_unusable,
    targets_of,
    usual_output,
)
from predictor.extras.blend import Blend
from predictor.members.combine import Average
from predictor.members.part_file import (
    Part,
    check_complete,
    check_same,
    parts_in,
    write_part,
)
from predictor.members.submission import write_predictions
from predictor.predicted import Predicted
from predictor.predictor import Predictor, photographs_of


def predict_part(
    part: str,
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
    interval: float | None = None,
    blend: Blend | None = None,
    allow_outside: bool = False,
    csv: Path | None = None,
    resume: bool = True,  # noqa: ARG001  a part always goes on
    explain: Path | None = None,
    oof: bool = False,
    progress: bool = True,
    load: Callable[..., Predictor] = load_predictor,
    **options,
) -> Path:
    """Predict a part of test.csv's photographs into the folder `out`; returns the part's file.

    A part that is there is left as it is. What an attempt that was stopped had finished is taken
    up. Several attempts do not disturb each other: each keeps a journal of its own, and the part
    appears whole.

    part : `3/16`, counted from 0; options as `predict_to_file`. A deadline is this part's own.
    load : gives the predictor, as `load_predictor`.

    Raises UsageError for options that need all photographs, and MismatchError where the folder has
    parts of another prediction.
    """
    start_s = time.monotonic()
    this = Part.parse(part)
    refuse_whole_only("--part", explain, oof)
    if out is None:
        raise UsageError(f"--part {part}: name the folder of all parts with --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; with --part it is the folder of all parts")
    runs = find_runs(run, sweep, bundle, say, point)
    test_csv = csv or data / "test.csv"
    table = read_test(test_csv)
    if targets := targets_of(runs[0]):
        rows_to_follow(test_csv, table, targets, out)
    check_outside_bundles(runs, {"--out": out})
    images = table.images[this.slice(len(table.images))]

    takes_mean = on_error == "mean"
    predictor = load(
        runs,
        test_csv,
        say,
        average=average,
        constraints=constraints,
        blend=blend,
        takes_mean=takes_mean,
        backbones=False,
        **options,
    )
    if interval is not None:
        predictor.intervals(interval)  # what cannot be had is refused before the work
    tta = 4 if tta is None else tta
    about = {
        "part": this.number,
        "parts": this.total,
        "table": file_sha256(test_csv),
        "heads": _heads(predictor, tta),
        "options": _chosen(
            tta=tta,
            average=average,
            constraints=constraints,
            on_error=on_error,
            interval=interval,
            blend=blend,
            **options,
        ),
        "device": predictor.devices[0].partition(":")[0],
        "torch": torch.__version__,
        "places": _places(runs, csv, **options),
    }
    check_writable(out)
    path = out / this.name
    for found in parts_in(out):
        check_same(found, about, f"--part {part}")

    attempts = f"{path.stem}.*.progress"
    if path.exists():
        say(f"{path}: is there already; remove it to predict it again")
    else:
        paths = photographs_of(images, data, takes_mean, allow_outside)
        attempt = out / f"{path.stem}.{secrets.token_hex(4)}.progress"
        earlier = sorted(out.glob(attempts))
        kept = predictor.journal(attempt, tta, resume=True, earlier=earlier)
        unusable: dict[str, str] = {}
        left_s = None
        if deadline:
            left_s = start_s + parse_duration(deadline) - time.monotonic()
        predicted = predictor.predict(
            paths,
            tta,
            progress,
            deadline_s=left_s,
            kept=kept,
            unusable=unusable if takes_mean else None,
            say=say,
        )
        # a requeued attempt may end at the same moment, and would write the same partial file
        with locked(out / "parts", wait=True, needed=False):
            if not path.exists():
                write_part(path, about, predicted, unusable)
    for done in out.glob(attempts):
        remove(done)
    return path


def merge_parts(
    folder: Path,
    data: Path,
    out: Path | None,
    say: Callable[[str], object],
    run: Sequence[Path] = (),
    sweep: Path | None = None,
    bundle: Path | None = None,
    point: str | None = None,
    csv: Path | None = None,
    backbone_weights: str | None = None,
    explain: Path | None = None,
    oof: bool = False,
    **given,
) -> Predicted:
    """Write what all parts in a folder predicted, as `predict_to_file` would have; returns what was
    written.

    run, sweep, bundle, point, backbone_weights : None are those that the parts name, where they
        were then.
    given : other options, which the parts had too; left out they are those of the parts.

    Raises InputError naming parts that are missing or damaged, MismatchError for parts of another
    table, other heads, options or number.
    """
    refuse_whole_only("--merge", explain, oof)
    parts = parts_in(folder)
    check_complete(folder, parts)
    about = parts[0].about
    chosen = {name: about["options"][option] for name, option in SHARED.items()}
    places = about["places"]
    _check_given(given, chosen, folder)

    test_csv = csv or data / "test.csv"
    if file_sha256(test_csv) != about["table"]:
        raise MismatchError(
            f"{test_csv}: is not the table that the parts in {folder} are of, "
            f"{places['csv'] or 'test.csv'}; give that one with --data or --csv"
        )
    is_given = run or sweep or bundle or point
    runs = find_runs(run, sweep, bundle, say, point) if is_given else _runs_there(folder, places)
    table = read_test(test_csv)
    out = out or usual_output(table, targets_of(runs[0]))
    check_places([test_csv, data / "train.csv"], runs, out)

    predictor = load_predictor(
        runs,
        test_csv,
        say,
        average=chosen["average"],
        constraints=chosen["constraints"],
        blend=chosen["blend"],
        takes_mean=chosen["on_error"] == "mean",
        backbones=False,
        backbone_weights=backbone_weights or places["backbone_weights"],
        **{name: chosen[name] for name in OF_HEADS},
    )
    if _heads(predictor, ",".join(chosen["tta"])) != about["heads"]:
        raise MismatchError(
            f"{folder}: its parts are of other heads than {', '.join(map(str, runs))} has now; "
            "name theirs with --run, --sweep or --bundle, or predict the parts again"
        )
    targets = predictor.combiner.targets
    rows = rows_to_follow(test_csv, table, targets, out)
    tables = []
    unusable: dict[str, str] = {}
    for part in parts:
        predicted, reasons = part.rows()
        expected = table.images["image_id"][part.part.slice(len(table.images))]
        if list(predicted["image_id"]) != list(expected):
            raise InputError(f"{part.path}: has other photographs than {test_csv}; remove it")
        tables.append(predicted)
        unusable |= reasons
    wide = pd.concat(tables, ignore_index=True)
    if chosen["interval"] is not None:
        wide = predictor.intervals(chosen["interval"]).added(wide, unusable)
    beside = write_predictions(rows, wide, out, targets)
    say_unusable(unusable, say)
    return Predicted(out, beside, len(wide), unusable)


OF_HEADS = {
    "folds": "--only-folds",
    "weights": "--epoch",
    "precision": "--precision",
    "allow_partial": "--allow-partial",
    "max_pixels": "--max-pixels",
}
"""Options of `Predictor.load` that decide what is predicted, as commands name them."""
SHARED = {
    "tta": "--tta",
    "average": "--average",
    "constraints": "--constraints",
    "on_error": "--on-error",
    "interval": "--interval",
    "blend": "--blend",
    **OF_HEADS,
}
"""What all parts of a prediction have in common."""
EVERYWHERE = ("allow_outside", "deadline", "device", "resume")
"""Options that a part may have, and that do not concern the merge."""


def _chosen(**options) -> dict[str, Any]:
    """The options that all parts of a prediction share, as JSON has them; those that are not given
    are what they mean."""
    folds = options.get("folds")
    meant = {
        "tta": [view.name for view in chosen_tta(options["tta"])],
        "average": options["average"] or "mean",
        "on_error": options["on_error"] or "fail",
        "folds": sorted(set(folds)) if folds else None,
        "allow_partial": bool(options.get("allow_partial")),
    }
    chosen = {}
    for name, option in SHARED.items():
        chosen[option] = meant.get(name, options.get(name))
    return chosen


def _check_given(given: dict[str, Any], chosen: dict[str, Any], folder: Path) -> None:
    """MismatchError for an option of --merge that the parts had otherwise."""
    for name, value in given.items():
        if name in EVERYWHERE or not value:
            continue
        if name == "tta":
            value = [view.name for view in chosen_tta(value)]
        if value != chosen[name]:
            raise MismatchError(
                f"{SHARED[name]} {value}: the parts in {folder} were predicted with "
                f"{chosen[name]}; leave it out"
            )


def _places(runs: Sequence[Path], csv: Path | None, **options) -> dict[str, Any]:
    """Where a part found what it read: the merge looks there first."""
    return {
        "runs": [os.path.abspath(run) for run in runs],
        "csv": str(csv) if csv else None,
        "backbone_weights": from_every_folder(options.get("backbone_weights")),
    }


def _runs_there(folder: Path, places: dict[str, Any]) -> list[Path]:
    """The runs that the parts name; InputError where one is gone."""
    runs = [Path(run) for run in places["runs"]]
    for run in runs:
        if not run.exists():
            raise InputError(
                f"{folder}: its parts are of {run}, which is not there; name it where it is now "
                "with --run, --sweep or --bundle"
            )
    return runs


def _heads(predictor: Predictor, tta: int | str) -> str:
    """sha256 of all that makes combined predictions what they are, besides options."""
    rules = []
    for member in predictor.members:
        # the last digits of a fitted share may be another processor's
        share = round(member.weight, 9)
        rules.append([share, member.config.inference.model_dump(mode="json")])
    return hashlib.sha256(json.dumps([predictor.key(tta), rules]).encode()).hexdigest()


def refuse_whole_only(option: str, explain: Path | None, oof: bool) -> None:
    """UsageError for what needs all photographs at once, beside an option that makes parts."""
    if explain:
        raise UsageError(
            f"--explain does not go with {option}: report.html shows all photographs; predict "
            "those that you want to see with --csv and --explain"
        )
    if oof:
        raise UsageError(
            f"--oof does not go with {option}: it compares all photographs with oof.csv; leave "
            "one of them out"
        )
