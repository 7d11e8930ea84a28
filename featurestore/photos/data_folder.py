"""What `store build`, `train` and `predict` will say of a data folder.

Of its train.csv and test.csv, and of the photographs they name.

Nothing is written, and of the photographs only headers are read.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from featurestore.checks import FAIL, OK, WARN, Check
from featurestore.errors import InputError, list_some
from featurestore.format.spec import MAX_PIXELS
from featurestore.photos.catalog import read_catalog, read_test
from featurestore.photos.crop import Crop
from featurestore.photos.decode import inspect_photographs
from featurestore.photos.find import find_photographs
from featurestore.photos.labels import (
    balance_remarks,
    height_remarks,
    masses_of,
    unbalanced,
    zero_remarks,
)
from featurestore.photos.sites import count_sites, doubts_about_sites, has_sites
from featurestore.photos.targets import has_preset
from featurestore.photos.trainable import (
    USUAL_FOLDS,
    almost_numbers,
    describe_config,
    describe_groups,
    describe_targets,
    missing_masses,
)

# that of `store build`: write/config.py has it too, and lies above this room
DEFAULT_CROP = "halves"


def check_data(folder: Path) -> Iterator[Check]:
    """A line for each table, its photographs, and what training needs of train.csv."""
    train, test = folder / "train.csv", folder / "test.csv"
    if train.is_file():
        try:
            frame = read_catalog(train)
        except InputError as err:
            yield Check("train.csv", FAIL, _one_line(err))
        else:
            yield Check("train.csv", OK, f"{len(frame)} images")
            yield _photographs(
                frame,
                folder,
                "train photos",
                "store build",
                "put them there, or build with --skip-missing",
            )
            yield from check_labels(frame)
            yield from check_sites(frame)
    if test.is_file():
        try:
            asked = read_test(test)
        except InputError as err:
            yield Check("test.csv", FAIL, _one_line(err))
        else:
            frame = asked.images
            rows = f", {len(asked.rows)} rows of a submission" if asked.is_long else ""
            yield Check("test.csv", OK, f"{len(frame)} images{rows}")
            yield _photographs(
                frame,
                folder,
                "test photos",
                "predict",
                "put them there, or predict with --on-error mean",
            )


def check_labels(frame: pd.DataFrame) -> Iterator[Check]:
    """What could be learned of the table, what keeps columns from it, and whether the contest's
    five masses, where they are, are whole and add up."""
    targets, config = describe_targets(frame), describe_config(frame)
    if config:
        yield Check("targets", OK, targets, config)
    else:
        yield Check("targets", FAIL, targets, "a store can be built without; train refuses it")
    for missing in (*missing_masses(frame), *almost_numbers(frame)):
        yield Check("targets", WARN, missing)
    if has_preset(frame.columns):
        yield from check_masses(frame)


def check_masses(frame: pd.DataFrame) -> Iterator[Check]:
    """Whether the contest's five masses can be learned: all there, and in balance."""
    try:
        masses_of(frame)
    except InputError as err:
        yield Check(
            "labels",
            FAIL,
            _one_line(err),
            "train refuses them, unless `targets:` names columns of its own: those may have gaps",
        )
    else:
        yield Check("labels", OK, "every image has all masses")
    for remark in balance_remarks(frame):
        yield Check("labels", FAIL if unbalanced(frame) else WARN, _one_line(remark))
    for remark in (*height_remarks(frame), *zero_remarks(frame)):
        yield Check("labels", WARN, _one_line(remark))


def check_sites(frame: pd.DataFrame) -> Iterator[Check]:
    """What there is to make folds of, and what is doubtful about it."""
    groups = describe_groups(frame)
    if not has_sites(frame):
        yield Check(
            "sites",
            WARN,
            groups,
            "scores read too high where several photographs are of one place and visit; name "
            "what these share in cv.groups",
        )
        return
    doubts, n_sites = doubts_about_sites(frame), count_sites(frame)
    if n_sites is None:
        yield Check("sites", FAIL, _one_line(doubts[0]))
        return
    if n_sites < USUAL_FOLDS:
        advice = (
            f"set cv.n_folds to {n_sites} or fewer"
            if n_sites > 1
            else "train with cv.groups none, which holds each photograph out on its own"
        )
        yield Check("sites", WARN, groups, advice)
    else:
        yield Check("sites", OK, groups)
    for doubt in doubts:
        yield Check("sites", WARN, _one_line(doubt))


def _photographs(
    frame: pd.DataFrame,
    folder: Path,
    name: str,
    command: str,
    advice: str,
) -> Check:
    try:
        paths = find_photographs(
            frame,
            folder,
            missing=True,
            allow=f"`biomass {command} --allow-outside`",
        )
    except InputError as err:
        return Check(name, FAIL, _one_line(err))
    size, unusable = inspect_photographs(paths, Crop.unsized(DEFAULT_CROP, None, MAX_PIXELS))
    other_aspect = [each.why for each in unusable.values() if each.status == "aspect"]
    bad = [each.why for each in unusable.values() if each.status != "aspect"]
    if bad:
        n_missing = sum(each.status == "missing" for each in unusable.values())
        found = (
            f"{len(bad)} of {len(paths)} cannot be used, {n_missing} of them "
            f"missing:{list_some(bad, 5)}"
        )
        return Check(name, FAIL, _one_line(found), advice)
    if other_aspect:
        found = (
            f"{len(other_aspect)} of {len(paths)} have not the aspect that --crop {DEFAULT_CROP} "
            "(the default) needs, 2:1"
        )
        return Check(
            name,
            WARN,
            found,
            "build the store with --crop squash or center, with --crop whole if all are alike, or "
            "with --fit crop or pad",
        )
    return Check(
        name,
        OK,
        f"all {len(paths)} are there"
        + (f", the first of {size[0]} x {size[1]} pixels" if size else ""),
    )


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
