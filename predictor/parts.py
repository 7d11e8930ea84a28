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
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from featurestore.backbone.weights import from_every_folder
from featurestore.disk.durable import check_writable, file_sha256, locked, remove
from featurestore.disk.durations import parse_duration
from featurestore.errors import InputError, MismatchError, UsageError
from featurestore.format.spec import ViewSpec
from featurestore.photos.catalog import read_test
from predictor.end_to_end import (
    check_outside_bundles,
    check_places,
    find_runs,
    load_predictor,
    rows_to_follow,
    say_unusable,
    targets_of,
    usual_output,
)
from predictor.members.part_file import (
    Part,
    check_complete,
    check_same,
    parts_in,
    write_part,
)
from predictor.members.submission import write_predictions
from predictor.options import PredictOptions
from predictor.predicted import Predicted
from predictor.predictor import Predictor, photographs_of


def predict_part(
    part: str,
    asked: PredictOptions,
    say: Callable[[str], object],
    *,
    progress: bool = True,
    load: Callable[..., Predictor] = load_predictor,
) -> Path:
    """Predict a part of test.csv's photographs into the folder `asked.out`; returns the part's
    file.

    A part that is there is left as it is. What an attempt that was stopped had finished is taken
    up. Several attempts do not disturb each other: each keeps a journal of its own, and the part
    appears whole.

    part : `3/16`, counted from 0. A deadline is this part's own.
    load : gives the predictor, as `load_predictor`.

    Raises UsageError for options that need all photographs, and MismatchError where the folder has
    parts of another prediction.
    """
    start_s = time.monotonic()
    this = Part.parse(part)
    refuse_whole_only("--part", asked)
    folder = asked.out
    if folder is None:
        raise UsageError(f"--part {part}: name the folder of all parts with --out")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file; with --part it is the folder of all parts")
    end_s = start_s + parse_duration(asked.deadline) if asked.deadline else None

    runs = find_runs(asked, say)
    table = read_test(asked.test_csv)
    if targets := targets_of(runs[0]):
        rows_to_follow(asked.test_csv, table, targets, folder)
    check_outside_bundles(runs, {"--out": folder})
    images = table.images[this.slice(len(table.images))]

    predictor = load(asked, runs, say, backbones=False)
    if asked.interval is not None:
        predictor.intervals(asked.interval)  # what cannot be had is refused before the work
    about = _about(this, asked, runs, predictor)
    check_writable(folder)
    for found in parts_in(folder):
        check_same(found, about, f"--part {part}")

    path = folder / this.name
    attempts = f"{path.stem}.*.progress"
    if path.exists():
        say(f"{path}: is there already; remove it to predict it again")
    else:
        earlier = sorted(folder.glob(attempts))
        predicted, unusable = _attempt(
            path,
            images,
            asked,
            predictor,
            earlier,
            end_s,
            progress,
            say,
        )
        # a requeued attempt may end at the same moment, and would write the same partial file
        with locked(folder / "parts", wait=True, needed=False):
            if not path.exists():
                write_part(path, about, predicted, unusable)
    # only now: until the part is there, any of the journals may be what the next attempt goes on
    # from
    for done in folder.glob(attempts):
        remove(done)
    return path


def _about(
    part: Part,
    asked: PredictOptions,
    runs: Sequence[Path],
    predictor: Predictor,
) -> dict[str, Any]:
    """What a part's file says of itself: what it shares with all parts, and where the merge looks
    first."""
    return {
        "part": part.number,
        "parts": part.total,
        "table": file_sha256(asked.test_csv),
        "heads": _heads(predictor, asked.views),
        "options": _shared(asked),
        # without its number: parts by cuda:0 and cuda:1 go together, those by a CPU do not
        "device": predictor.devices[0].partition(":")[0],
        "torch": torch.__version__,
        "places": {
            "runs": [os.path.abspath(run) for run in runs],
            "csv": str(asked.csv) if asked.csv else None,
            "backbone_weights": from_every_folder(asked.backbone_weights),
        },
    }


def _attempt(
    path: Path,
    images: pd.DataFrame,
    asked: PredictOptions,
    predictor: Predictor,
    earlier: Sequence[Path],
    end_s: float | None,
    progress: bool,
    say: Callable[[str], object],
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Predict a part's photographs: their rows of the wide table, and why some cannot be used.

    path : of the part, beside which the attempt keeps its journal; earlier : journals of others.
    end_s : the deadline, by time.monotonic().
    """
    paths = photographs_of(images, asked.data, asked.takes_mean, asked.allow_outside)
    journal = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.progress")
    kept = predictor.journal(journal, asked.views, resume=True, earlier=earlier)
    unusable: dict[str, str] = {}
    predicted = predictor.predict(
        paths,
        asked.views,
        progress,
        deadline_s=None if end_s is None else end_s - time.monotonic(),
        kept=kept,
        unusable=unusable if asked.takes_mean else None,
        say=say,
    )
    return predicted, unusable


def merge_parts(folder: Path, asked: PredictOptions, say: Callable[[str], object]) -> Predicted:
    """Write what all parts in a folder predicted, as `predict_files` would have; returns what was
    written.

    asked : heads and weights that are not given are those that the parts name, where they were
        then; other options are the parts' own, and are refused if they say otherwise.

    Raises InputError naming parts that are missing or damaged, MismatchError for parts of another
    table, other heads, options or number.
    """
    refuse_whole_only("--merge", asked)
    parts = parts_in(folder)
    check_complete(folder, parts)
    about = parts[0].about
    places = about["places"]
    asked = _as_parts(asked, about, folder)

    if file_sha256(asked.test_csv) != about["table"]:
        raise MismatchError(
            f"{asked.test_csv}: is not the table that the parts in {folder} are of, "
            f"{places['csv'] or 'test.csv'}; give that one with --data or --csv"
        )
    if asked.run or asked.sweep or asked.bundle or asked.point:
        runs = find_runs(asked, say)
    else:
        runs = _runs_there(folder, places)
    table = read_test(asked.test_csv)
    out = asked.out or usual_output(table, targets_of(runs[0]))
    check_places([asked.test_csv, asked.data / "train.csv"], runs, out)

    predictor = load_predictor(asked, runs, say, backbones=False)
    if _heads(predictor, asked.views) != about["heads"]:
        raise MismatchError(
            f"{folder}: its parts are of other heads than {', '.join(map(str, runs))} has now; "
            "name theirs with --run, --sweep or --bundle, or predict the parts again"
        )
    targets = predictor.combiner.targets
    rows = rows_to_follow(asked.test_csv, table, targets, out)

    tables = []
    unusable: dict[str, str] = {}
    for part in parts:
        predicted, reasons = part.rows()
        expected = table.images["image_id"][part.part.slice(len(table.images))]
        if list(predicted["image_id"]) != list(expected):
            raise InputError(f"{part.path}: has other photographs than {asked.test_csv}; remove it")
        tables.append(predicted)
        unusable |= reasons
    wide = pd.concat(tables, ignore_index=True)
    if asked.interval is not None:
        wide = predictor.intervals(asked.interval).added(wide, unusable)

    beside = write_predictions(rows, wide, out, targets)
    say_unusable(unusable, say)
    return Predicted(out, beside, len(wide), unusable)


SHARED = {
    "tta": "--tta",
    "average": "--average",
    "constraints": "--constraints",
    "on_error": "--on-error",
    "interval": "--interval",
    "blend": "--blend",
    "folds": "--only-folds",
    "weights": "--epoch",
    "precision": "--precision",
    "allow_partial": "--allow-partial",
    "max_pixels": "--max-pixels",
}
"""What all parts of a prediction have in common, as commands name it."""


def _shared(asked: PredictOptions) -> dict[str, Any]:
    """The options that all parts of a prediction share, as JSON has them; those that are not given
    are what they mean."""
    meant = {
        "tta": [view.name for view in asked.views],
        "average": asked.average or "mean",
        "on_error": asked.on_error or "fail",
        "folds": sorted(set(asked.folds)) if asked.folds else None,
        "allow_partial": bool(asked.allow_partial),
    }
    shared = {}
    for name, option in SHARED.items():
        shared[option] = meant[name] if name in meant else getattr(asked, name)
    return shared


def _as_parts(asked: PredictOptions, about: dict[str, Any], folder: Path) -> PredictOptions:
    """The options of a merge, with those of the parts where they are not given; MismatchError for
    one that the parts had otherwise."""
    chosen = {name: about["options"][option] for name, option in SHARED.items()}
    for name, theirs in chosen.items():
        value = getattr(asked, name)
        if not value:
            continue
        if name == "tta":
            value = [view.name for view in asked.views]
        if value != theirs:
            had = f"with {theirs}" if theirs else "without it"
            raise MismatchError(
                f"{SHARED[name]} {value}: the parts in {folder} were predicted {had}; leave it out"
            )
    return replace(
        asked,
        **(chosen | {"tta": ",".join(chosen["tta"])}),
        backbone_weights=asked.backbone_weights or about["places"]["backbone_weights"],
        # heads and backbones do not run again
        device="auto",
    )


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


def _heads(predictor: Predictor, views: Sequence[ViewSpec]) -> str:
    """sha256 of all that makes combined predictions what they are, besides options."""
    rules = []
    for member in predictor.members:
        # the last digits of a fitted share may be another processor's
        share = round(member.weight, 9)
        rules.append([share, member.config.inference.model_dump(mode="json")])
    text = json.dumps([predictor.key(views), rules])
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_whole_only(option: str, asked: PredictOptions) -> None:
    """UsageError for what needs all photographs at once, beside an option that makes parts."""
    if asked.explain:
        raise UsageError(
            f"--explain does not go with {option}: report.html shows all photographs; predict "
            "those that you want to see with --csv and --explain"
        )
    if asked.oof:
        raise UsageError(
            f"--oof does not go with {option}: it compares all photographs with oof.csv; leave "
            "one of them out"
        )
