"""A prediction whose parts run on an engine, and are merged when all are there."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featurestore.backbone.weights import from_every_folder
from featurestore.disk.durable import check_writable, remove
from featurestore.disk.messages import new_bar
from featurestore.engines.choose import check_engine, run_items
from featurestore.errors import UsageError
from featurestore.photos.catalog import read_test
from predictor.end_to_end import (
    check_places,
    find_runs,
    load_predictor,
    targets_of,
    usual_output,
)
from predictor.members.part_file import Part, parts_in
from predictor.parts import merge_parts, predict_part, refuse_whole_only
from predictor.predicted import Predicted
from predictor.predictor import Predictor, photographs_of

PART_IMAGES = 1000
"""Photographs of a part, where there are many: minutes of work."""
LEAST_PARTS = 8
PLACES = ("data", "out", "csv")


def predict_on_engine(
    engine: str,
    n_parts: int | None,
    data: Path,
    out: Path | None,
    say: Callable[[str], object],
    run: Sequence[Path] = (),
    sweep: Path | None = None,
    bundle: Path | None = None,
    point: str | None = None,
    csv: Path | None = None,
    device: str = "auto",
    allow_outside: bool = False,
    deadline: str | None = None,
    explain: Path | None = None,
    oof: bool = False,
    **options,
) -> Predicted:
    """As `predict_to_file`, its parts by an engine, in `OUT.parts` until they are merged; the same
    call goes on from there.

    engine : `ray` or `ray://HOST:PORT`; all its nodes see the files of this one at their places.
    n_parts : None is what is there of a call before, else one for each `PART_IMAGES` photographs.
    """
    check_engine(engine)
    refuse_whole_only("--engine", explain, oof)
    if deadline:
        raise UsageError(
            "--deadline does not go with --engine, whose parts begin one after another; leave it "
            "out, or predict with --part"
        )
    runs = find_runs(run, sweep, bundle, say, point)
    test_csv = csv or data / "test.csv"
    table = read_test(test_csv)
    out = out or usual_output(table, targets_of(runs[0]))
    check_places([test_csv, data / "train.csv"], runs, out)
    # all that are missing are listed here, not part by part
    takes_mean = options.get("on_error") == "mean"
    photographs_of(table.images, data, takes_mean, allow_outside)

    folder = out.with_name(out.name + ".parts")
    check_writable(folder)
    there = parts_in(folder)
    if n_parts is None and there:
        n_parts = there[0].part.total
    n_images = len(table.images)
    n_parts = n_parts or min(n_images, max(LEAST_PARTS, -(-n_images // PART_IMAGES)))

    shared = {
        **options,
        "data": data,
        "out": folder,
        "csv": csv,
        "run": [os.path.abspath(each) for each in runs],
        "allow_outside": allow_outside,
    }
    finished = {found.part for found in there}
    items = {}
    for number in range(n_parts):
        part = Part(number, n_parts)
        if part not in finished:
            items[f"part {number}"] = _as_json({**shared, "part": str(part)})
    if items:
        with new_bar("predict", n_parts, "part", initial=n_parts - len(items)) as bar:
            run_items(
                "predictor.on_engine:predict_item",
                items,
                engine=engine,
                bar=bar,
                devices=device.split(","),
                folder=folder,
            )
    predicted = merge_parts(folder, data, out, say, run=runs, csv=csv, **options)
    remove(folder)
    return predicted


def predict_item(device: str, **item: Any) -> str:
    """A part, by what its item says; an engine's task."""
    for name in PLACES:
        if item[name]:
            item[name] = Path(item[name])
    runs = [Path(run) for run in item.pop("run")]
    path = predict_part(
        say=_keep_quiet, run=runs, device=device, progress=False, load=_kept_predictor, **item
    )
    return str(path)


_kept: dict[str, Predictor] = {}


def _kept_predictor(
    runs: Sequence[Path], test_csv: Path, say: Callable[[str], object], **options
) -> Predictor:
    """As `load_predictor`, once for all parts that a process does one after another."""
    key = repr([runs, test_csv, sorted(options.items())])
    if key not in _kept:
        _kept.clear()
        _kept[key] = load_predictor(runs, test_csv, say, **options)
    return _kept[key]


def _as_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON has them, their paths from the root."""
    ready = dict(arguments)
    for name in PLACES:
        if ready[name]:
            ready[name] = os.path.abspath(ready[name])
    ready["backbone_weights"] = from_every_folder(ready.get("backbone_weights"))
    return ready


def _keep_quiet(_text: str) -> None:
    """What all parts would say is said once, at the merge."""
