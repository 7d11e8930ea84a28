"""A prediction whose parts run on an engine, and are merged when all are there."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
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
from predictor.options import PredictOptions
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
    asked: PredictOptions,
    say: Callable[[str], object],
) -> Predicted:
    """As `predict_files`, its parts by an engine, in `OUT.parts` until they are merged; the same
    call goes on from there.

    engine : `ray` or `ray://HOST:PORT`; all its nodes see the files of this one at their places.
    n_parts : None is what is there of a call before, else one for each `PART_IMAGES` photographs.
    """
    check_engine(engine)
    refuse_whole_only("--engine", asked)
    if asked.deadline:
        raise UsageError(
            "--deadline does not go with --engine, whose parts begin one after another; leave it "
            "out, or predict with --part"
        )
    runs = find_runs(asked, say)
    table = read_test(asked.test_csv)
    out = asked.out or usual_output(table, targets_of(runs[0]))
    check_places([asked.test_csv, asked.data / "train.csv"], runs, out)
    # all that are missing are listed here, not part by part
    photographs_of(table.images, asked.data, asked.takes_mean, asked.allow_outside)

    folder = out.with_name(out.name + ".parts")
    check_writable(folder)
    there = parts_in(folder)
    # parts of another number are of another prediction, so a call that goes on keeps it
    if n_parts is None and there:
        n_parts = there[0].part.total
    n_images = len(table.images)
    n_parts = n_parts or min(n_images, max(LEAST_PARTS, -(-n_images // PART_IMAGES)))

    # by these runs, not by what was asked: the newest sweep may be another one by the last part
    asked = replace(asked, out=folder, run=runs, sweep=None, bundle=None, point=None)
    finished = {found.part for found in there}
    items = {}
    for number in range(n_parts):
        part = Part(number, n_parts)
        if part not in finished:
            items[f"part {number}"] = {**_as_json(asked), "part": str(part)}
    if items:
        with new_bar("predict", n_parts, "part", initial=n_parts - len(items)) as bar:
            run_items(
                "predictor.on_engine:predict_item",
                items,
                engine=engine,
                bar=bar,
                devices=asked.device.split(","),
                folder=folder,
            )
    predicted = merge_parts(folder, replace(asked, out=out), say)
    remove(folder)
    return predicted


def predict_item(device: str, part: str, **item: Any) -> str:
    """A part, by what its item says; an engine's task."""
    for name in PLACES:
        if item[name]:
            item[name] = Path(item[name])
    item["run"] = [Path(run) for run in item["run"]]
    asked = PredictOptions(**item, device=device)

    def keep_quiet(_text: str) -> None:
        """What all parts would say is said once, at the merge."""

    return str(predict_part(part, asked, keep_quiet, progress=False, load=_kept_predictor))


_kept: dict[str, Predictor] = {}


def _kept_predictor(
    asked: PredictOptions,
    runs: Sequence[Path],
    say: Callable[[str], object],
    **options: Any,
) -> Predictor:
    """As `load_predictor`, once for all parts that a process does one after another."""
    key = repr([asked, runs, options])
    if key not in _kept:
        # one at a time: two may not fit in memory
        _kept.clear()
        _kept[key] = load_predictor(asked, runs, say, **options)
    return _kept[key]


def _as_json(asked: PredictOptions) -> dict[str, Any]:
    """Options as JSON has them, their paths from the root; without the device, which an engine
    chooses for each part."""
    ready = asdict(asked)
    del ready["device"]
    for name in PLACES:
        if ready[name]:
            ready[name] = os.path.abspath(ready[name])
    ready["run"] = [os.path.abspath(run) for run in asked.run]
    ready["backbone_weights"] = from_every_folder(asked.backbone_weights)
    return ready
