"""Which images are held out together: site of each image -> repeats and folds, as one small table.

The table is made once, saved as `folds.csv` and read back by all. `trainer.data.stream` decides
what is done with a fold.
"""

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from featurestore.counts import count_of
from featurestore.disk.durable import write_whole
from featurestore.errors import InputError, NoAccessError, list_some
from featurestore.photos.columns import require_columns
from featurestore.photos.find import spelled_as
from featurestore.photos.separators import separator_of
from trainer.config.scoring import USUAL_FOLDS
from trainer.data.groups import Groups, add_groups, check_count, sites_for, told
from trainer.data.partition import Counts, Measure, draw
from trainer.data.strata import stratum_of
from trainer.heads.group_parts import group_parts

KEYS = ["image_id", "site", "group"]


def make_splits(
    frame: pd.DataFrame,
    n_folds: int | None,
    repeats: int,
    groups: Groups,
    strata: Sequence[str],
    seed: int,
    splitter: str = "balanced",
    kinds: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """The folds table: image_id, site, group; in r00, r01, ... the fold that holds an image out.

    Every repeat is an independent draw: a random partition of the groups, made as balanced as
    scikit-learn's StratifiedGroupKFold would make it, and no more. The same images give the same
    folds in whatever order they come; repeat r depends on them, the seed and r alone.

    Parameters
    ----------
    frame : one row an image: image_id, the columns of groups and strata, and sha256 if known.
    n_folds : 2 or more; None is USUAL_FOLDS, or the number of groups where each is left out once.
    repeats : how many regroupings; 1 where each group is left out once: there is one way to do so.
    groups : what is kept together, see `add_groups`; "state" leaves each State out once.
    strata, kinds : columns whose parts are spread evenly over the folds, see `stratum_of`. Unused
        where each group is left out once.
    seed : 0 or more; with the repeat's number it seeds the draw of that repeat.
    splitter : "balanced" as above; "leave_one_out" makes a fold of each group; "group_kfold" is
        scikit-learn's GroupKFold, one repeat, which looks neither at strata nor at the seed.

    Raises InputError for missing columns or values, ids given twice, or fewer groups than folds.

    On the contest's images random folds read .08 too high. One ridge over 100 such draws scores
    .684, sd .015, range .638 to .725; over 20 unstratified ones sd .021.
    StratifiedGroupKFold(shuffle=True), which shuffles only groups of about the same class
    distribution, gave 22 distinct partitions in 100 draws of the contest's 30 sites, so that its sd
    (.008) was too small.
    """
    require_columns(frame, ["image_id"])
    ids = frame["image_id"].astype(str).reset_index(drop=True)
    folds = pd.DataFrame({"image_id": ids})
    _refuse_twice(folds["image_id"])

    add_groups(folds, frame, groups)
    # by name, so that the order of images does not matter
    group_N = np.unique(folds["group"], return_inverse=True)[1]
    leaves_one_out = groups == "state" or splitter == "leave_one_out"
    if n_folds is None:
        n_folds = int(group_N.max()) + 1 if leaves_one_out else USUAL_FOLDS
    check_count(folds["group"], groups, n_folds, repeats, leaves_one_out)
    if leaves_one_out:
        folds["r00"] = group_N
        return folds

    if splitter == "group_kfold":
        folds["r00"] = group_parts(group_N, n_folds)
        return folds

    counts = Counts.of(group_N, stratum_of(frame, strata, kinds), n_folds)
    measure = Measure.of(counts)
    for repeat in range(repeats):
        # of its own, so that a repeat does not depend on how many there are
        rng = np.random.default_rng([seed, repeat])
        folds[f"r{repeat:02d}"] = draw(counts, measure, rng)[group_N]
    return folds


def save_splits(folds: pd.DataFrame, path: Path) -> None:
    """Write the folds table as a CSV that appears whole or not at all."""
    write_whole(path, folds.to_csv(index=False, lineterminator="\n"))


def read_splits(
    path: Path,
    image_ids: Iterable[str],
    frame: pd.DataFrame | None = None,
    without: Iterable[str] = (),
    groups: Groups = "site",
) -> pd.DataFrame:
    """The folds table of a CSV, ours or another tool's, in the order of `image_ids`.

    Columns as `make_splits` leaves them. With a catalog (`frame`, one row an image) it may be
    another tool's: image_id, and `fold` or r00, r01, ..., or `repeat` and `fold` with a row for
    each image and repeat; what else it has is not looked at. Its sites are then by `groups`, see
    `sites_for`, and a site in two folds is warned of. Copies of a photograph in two folds are
    warned of, whoever made the table. Rows of the ids in `without` are left out.

    Raises InputError if the file cannot be read, an id is unknown, missing or there twice, in some
    repeat or at all, a fold is not an integer, folds are not 0, 1, 2, ..., or a group is in two
    folds of a repeat.
    """
    table = _read_csv(path)
    image_ids = list(image_ids)
    without = list(without)
    if "image_id" in table:
        table["image_id"] = spelled_as(table["image_id"], [*image_ids, *without])
        table = table[~table["image_id"].isin(without)].reset_index(drop=True)
    if {"image_id", "repeat", "fold"} <= set(table.columns):
        table = _column_a_repeat(path, table)
    if frame is not None and not {"site", "group"} <= set(table.columns):
        table = _of_another_tool(path, table, frame, groups)

    columns = list(table.columns)
    n_repeats = max(1, len(columns) - len(KEYS))
    expected = KEYS + [f"r{repeat:02d}" for repeat in range(n_repeats)]
    if columns != expected:
        raise InputError(
            f"{path}: columns are {', '.join(columns)}; expected {', '.join(expected)}"
        )

    _refuse_twice(table["image_id"], str(path))
    unknown = sorted(set(table["image_id"]) - set(image_ids))
    missing = sorted(set(image_ids) - set(table["image_id"]))
    if unknown or missing:
        message = (
            f"{path}: made for other images than the store's; make new folds, or to resume bring "
            "back the store as it was"
        )
        for ids, what in ((unknown, "only there"), (missing, "missing there")):
            if ids:
                message += f"\n{len(ids)} {what}:{list_some(ids)}"
        raise InputError(message)

    table = table.set_index("image_id").loc[image_ids].reset_index()
    for repeat in table.columns[len(KEYS) :]:
        table[repeat] = _checked_folds(path, table, repeat)
    if frame is not None:
        _warn_of_torn_copies(path, table, frame)
    return table


def _warn_of_torn_copies(path: Path, folds: pd.DataFrame, frame: pd.DataFrame) -> None:
    """Say which photographs of equal bytes a repeat holds out apart: their heads learn from what
    they are scored on."""
    if "sha256" not in frame:
        return
    digests = frame.set_index(frame["image_id"].astype(str))["sha256"]
    digest_N = folds["image_id"].map(digests).fillna("")
    is_known_N = digest_N != ""  # older stores keep none
    by_digest = folds[is_known_N].groupby(digest_N[is_known_N], sort=False)
    for repeat in folds.columns[len(KEYS) :]:
        torn = []
        for _, copies in by_digest:
            if copies[repeat].nunique() > 1:
                pairs = copies[["image_id", repeat]].to_numpy()
                torn.append(" = ".join(f"{image_id} (fold {fold})" for image_id, fold in pairs))
        if torn:
            warnings.warn(
                f"{path}: {repeat} holds {count_of(len(torn), 'photograph')} and copies of equal "
                "bytes out apart; scores read too high where heads learn from what they are scored "
                "on:"
                f"{list_some(torn)}",
                stacklevel=3,
            )


def _column_a_repeat(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """A table with a row for each image and repeat as image_id, r00, r01, ..., in the order of the
    repeats' numbers."""
    if table.empty:
        raise InputError(f"{path}: no rows; expected one for each image and repeat")
    is_number_N = table["repeat"].str.fullmatch("[0-9]{1,9}")
    if not is_number_N.all():
        found = table.loc[~is_number_N, "repeat"].unique()
        raise InputError(
            f"{path}: repeat must be a number, 0 or more; found:{list_some([*map(repr, found)])}"
        )
    table = table.assign(repeat=table["repeat"].astype(np.int64))
    is_twice_N = table.duplicated(["image_id", "repeat"])
    if is_twice_N.any():
        raise InputError(
            f"{path}: an image must have one row in each repeat, these have more:"
            + list_some(_images_in_repeats(table[is_twice_N]))
        )

    fold_NR = table.pivot(index="image_id", columns="repeat", values="fold")
    lacking = fold_NR.isna().stack()
    if lacking.any():
        rows = lacking[lacking].index.to_frame()
        raise InputError(
            f"{path}: an image must have one row in each repeat, these have none:"
            + list_some(_images_in_repeats(rows))
        )
    fold_NR.columns = [f"r{number:02d}" for number in range(fold_NR.shape[1])]
    return fold_NR.reset_index()


def _images_in_repeats(rows: pd.DataFrame) -> list[str]:
    pairs = rows[["image_id", "repeat"]].drop_duplicates().to_numpy()
    return [f"{image_id} in repeat {repeat}" for image_id, repeat in pairs]


def _of_another_tool(
    path: Path,
    table: pd.DataFrame,
    frame: pd.DataFrame,
    groups: Groups,
) -> pd.DataFrame:
    """Its folds in our columns, each image its own group: what it kept together is not known."""
    repeats = [column for column in table.columns if re.fullmatch("fold|r[0-9]{2,}", column)]
    if "image_id" not in table or not repeats:
        raise InputError(
            f"{path}: columns are {', '.join(table.columns)}; expected image_id, "
            "and fold or r00, r01, ..., or repeat and fold"
        )
    ids = table["image_id"]
    site_N = sites_for(frame, groups).to_numpy()
    sites = pd.Series(site_N, frame["image_id"].astype(str))
    columns = {
        "image_id": ids,
        # of an id that no image has the site is empty; whoever called refuses the id
        "site": ids.map(sites).fillna(""),
        "group": ids,
    }
    ours = pd.DataFrame(columns)
    for number, column in enumerate(repeats):
        ours[f"r{number:02d}"] = table[column]
        n_folds = table[column].groupby(ours["site"]).nunique()
        if torn := n_folds.index[n_folds > 1].tolist():
            warnings.warn(
                f"{path}: {column} has {count_of(len(torn), 'site')} in more than one fold; scores "
                "read too high where heads learn from the visit they are scored on (.08 on the "
                f"contest's data):{list_some(torn)}",
                stacklevel=3,
            )
    return ours


def n_partitions(folds: pd.DataFrame) -> int:
    """How many of a table's repeats are different partitions, however their folds are numbered."""
    # numbered by first appearance, equal partitions are equal arrays
    partitions = set()
    for repeat in folds.columns[len(KEYS) :]:
        fold_N, _ = pd.factorize(folds[repeat])
        partitions.add(fold_N.tobytes())
    return len(partitions)


def describe_folds(folds: pd.DataFrame, groups: Groups = "site") -> str:
    """Images, groups, folds and repeats of a folds table, in a sentence.

    groups : what the table holds out together.
    """
    n_folds, repeats = shape_of(folds)
    text = f"{count_of(len(folds), 'image')}{told(folds, groups)} in {n_folds} folds"
    if repeats == 1:
        return text

    different = n_partitions(folds)
    how_many = "all different" if different == repeats else f"only {different} of them different"
    return f"{text}; {repeats} repeats, {how_many}"


def shape_of(folds: pd.DataFrame) -> tuple[int, int]:
    """Folds of each repeat, and repeats, of a folds table. InputError if repeats have different
    numbers of folds."""
    n_folds = {}
    for column in folds.columns[len(KEYS) :]:
        n_folds[column] = int(folds[column].max()) + 1
    if len(set(n_folds.values())) > 1:
        raise InputError(
            f"folds table: repeats have different numbers of folds ({n_folds}); "
            "give them one sweep each"
        )
    return next(iter(n_folds.values())), len(n_folds)


def _refuse_twice(image_id: pd.Series, where: str = "catalog") -> None:
    if image_id.duplicated().any():
        twice = image_id[image_id.duplicated()].unique().tolist()
        raise InputError(
            f"{where}: image_id must be unique, these are there more than once:" + list_some(twice)
        )


def _read_csv(path: Path) -> pd.DataFrame:
    """Every cell as text: an id may look like a number, a site like NA."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        separator = separator_of(path, text, KEYS)
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err
    except (OSError, ValueError) as err:  # pandas' parser errors and bad UTF-8 are ValueErrors
        raise InputError(
            f"{path}: not a readable folds table ({err}); expected a CSV as `folds.csv`"
        ) from err
    return table


def _checked_folds(path: Path, table: pd.DataFrame, repeat: str) -> pd.Series:
    """The repeat's column as integers, once it is known to be a partition of the groups."""
    wrong = ~table[repeat].str.fullmatch("[0-9]{1,9}")
    if wrong.any():
        cells = table.loc[wrong, ["image_id", repeat]].to_numpy()
        found = [f"{image_id}: {fold!r}" for image_id, fold in cells]
        raise InputError(
            f"{path}: {repeat} must be a fold number, 0 or more; found:" + list_some(found)
        )
    fold = table[repeat].astype(np.int64)
    present = sorted(fold.unique().tolist())
    if len(present) < 2 or present != list(range(len(present))):
        raise InputError(
            f"{path}: {repeat} has folds {present}; expected two or more, 0, 1, 2, ..., "
            "none left out"
        )
    n_folds = fold.groupby(table["group"]).nunique()
    if (n_folds > 1).any():
        raise InputError(
            f"{path}: {repeat} has groups in more than one fold, so heads would be scored on what "
            "they learned from:" + list_some(n_folds.index[n_folds > 1].tolist())
        )
    return fold
