"""What `store build`, `train` and `predict` will say of a data folder.

Of its train.csv and test.csv, and of the photographs they name.

Nothing is written. Of the photographs headers are read; whole files, where two look equal.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd

from featurestore.checks import FAIL, OK, WARN, Check
from featurestore.counts import count_of, for_count
from featurestore.disk.durable import file_sha256
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
from featurestore.photos.sites import copies_told, count_sites, doubts_about_sites, has_sites
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
LOOKED_AT = 1 << 16  # bytes of photographs of one size, before they are read whole


def check_data(folder: Path) -> Iterator[Check]:
    """A line for each table, its photographs, and what training needs of train.csv."""
    train, test = folder / "train.csv", folder / "test.csv"
    if train.is_file():
        try:
            frame = read_catalog(train)
        except InputError as err:
            yield Check("train.csv", FAIL, str(err))
        else:
            yield Check("train.csv", OK, count_of(len(frame), "image"))
            yield from _photographs(
                frame,
                folder,
                "train photos",
                "store build",
                "build with --skip-missing",
            )
            yield from check_labels(frame)
            yield from check_sites(frame)
    if test.is_file():
        try:
            asked = read_test(test)
        except InputError as err:
            yield Check("test.csv", FAIL, str(err))
        else:
            frame = asked.images
            rows = f", {len(asked.rows)} rows of a submission" if asked.is_long else ""
            yield Check("test.csv", OK, f"{count_of(len(frame), 'image')}{rows}")
            yield from _photographs(
                frame,
                folder,
                "test photos",
                "predict",
                "predict with --on-error mean",
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
            str(err),
            "train refuses them, unless `targets:` names columns of its own: those may have gaps",
        )
    else:
        yield Check("labels", OK, "every image has all masses")
    for remark in balance_remarks(frame):
        yield Check("labels", FAIL if unbalanced(frame) else WARN, remark)
    for remark in (*height_remarks(frame), *zero_remarks(frame)):
        yield Check("labels", WARN, remark)


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
        yield Check("sites", FAIL, doubts[0])
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
        yield Check("sites", WARN, doubt)


def _photographs(
    frame: pd.DataFrame,
    folder: Path,
    name: str,
    command: str,
    without: str,
) -> Iterator[Check]:
    """Whether the photographs are there and can be used, from their headers.

    without : how the command goes on without those that cannot.
    """
    try:
        paths = find_photographs(
            frame,
            folder,
            missing=True,
            allow=f"`biomass {command} --allow-outside`",
        )
    except InputError as err:
        yield Check(name, FAIL, str(err))
        return
    size, unusable = inspect_photographs(paths, Crop.unsized(DEFAULT_CROP, None, MAX_PIXELS))
    n_of = Counter(each.status for each in unusable.values())
    bad = [each.why for each in unusable.values() if each.status != "aspect"]
    if bad:
        missing, mend = "", "mend or replace them"
        if n_of["missing"]:
            missing = f", {n_of['missing']} of them missing"
            mend = "put the missing ones there and mend or replace the others"
        if n_of["missing"] == len(bad):
            mend = "put them there"
        found = f"{len(bad)} of {len(paths)} cannot be used{missing}:{list_some(bad)}"
        yield Check(name, FAIL, found, f"{mend}, or {without}")
    elif n_of["aspect"]:
        found = (
            f"{n_of['aspect']} of {len(paths)} {for_count(n_of['aspect'], 'has', 'have')} not the "
            f"aspect that --crop {DEFAULT_CROP} (the default) needs, 2:1"
        )
        yield Check(
            name,
            WARN,
            found,
            "build the store with --crop squash or center, with --crop whole if all are alike, or "
            "with --fit crop or pad",
        )
    else:
        shown = f", the first of {size[0]} x {size[1]} pixels" if size else ""
        yield Check(name, OK, f"all {len(paths)} are there{shown}")

    # folds are made of train.csv alone
    if name == "train photos":
        sound = [i for i in range(len(paths)) if i not in unusable]
        digests = _digests([paths[i] for i in sound])
        if same := copies_told(frame["image_id"].iloc[sound], digests):
            yield Check("same photos", WARN, same)


def _digests(paths: list[Path]) -> list[str]:
    """sha256 of files that are equal to others, "" of all that are not: few are read whole."""
    sizes = _shared(paths, lambda path: path.stat().st_size)
    starts = _shared([path for path in paths if path in sizes], _start)
    digests = _shared([path for path in paths if path in starts], file_sha256)
    return [digests.get(path, "") for path in paths]


def _shared(paths: list[Path], key: Callable[[Path], Hashable]) -> dict[Path, Hashable]:
    """The key of each file that shares it; files that cannot be read have none."""
    key_of: dict[Path, Hashable] = {}
    for path in dict.fromkeys(paths):
        with suppress(OSError):
            key_of[path] = key(path)
    n_of = Counter(key_of[path] for path in paths if path in key_of)
    return {path: each for path, each in key_of.items() if n_of[each] > 1}


def _start(path: Path) -> tuple[int, bytes]:
    """Size and first bytes: uncompressed photographs of one camera are all of one size."""
    with open(path, "rb") as fp:
        return path.stat().st_size, fp.read(LOOKED_AT)
