"""What is held out together: `cv.groups` as labels of images, and in words."""

import pandas as pd

from featurestore.counts import count_of, for_count
from featurestore.errors import InputError, list_some
from featurestore.photos.columns import ids_of
from featurestore.photos.dates import no_dates_among
from featurestore.photos.sites import (
    SITE_COLUMNS,
    digests_of,
    has_sites,
    possible_groups,
    share_copies,
    shared_values,
    site_of,
)

Groups = str | list[str]
"""`cv.groups` once it is decided: a word, or columns."""

COLUMNS = {"site": SITE_COLUMNS, "date": ("Sampling_Date",), "state": ("State",)}
NOUNS = {"site": "site", "date": "date", "state": "State", "none": "photograph"}
NEARLY_ALL = 0.9  # of the photographs: so many groups are about as many


def decided(groups: Groups | None, frame: pd.DataFrame) -> Groups:
    """`cv.groups` for a catalog: null is `site` where that is known, else `none`."""
    if groups is not None:
        return groups
    return "site" if has_sites(frame) else "none"


def add_groups(folds: pd.DataFrame, frame: pd.DataFrame, groups: Groups) -> None:
    """Give a table of image_id, a row for each of the catalog's, the columns site and group.

    group : what is held out together. Images of equal bytes share one, and so do the groups they
        belong to: a copy must not be in train and val.
    site : what errs together. For groups "date" and "state" the visit, where it is known, else
        the group before copies join it.

    InputError for columns that are missing or empty for some images.
    """
    if groups == "none":
        label_N = ids_of(frame)
    else:
        columns = COLUMNS[groups] if isinstance(groups, str) else groups
        label_N = shared_values(frame, columns, "cv.groups")
    # whole dates or States are held out, yet photographs of one visit still err together
    visits_are_known = groups in ("date", "state") and has_sites(frame)
    site_N = site_of(frame) if visits_are_known else label_N
    folds["site"] = site_N.to_numpy()
    folds["group"] = share_copies(label_N, digests_of(frame))


def sites_for(frame: pd.DataFrame, groups: Groups) -> pd.Series:
    """The site of each image where another tool dealt the folds: by the columns of groups, else the
    visit, and where that is not known or groups are "none" the photograph."""
    if not isinstance(groups, str):
        return shared_values(frame, groups, "cv.groups")
    if groups != "none" and has_sites(frame):
        return site_of(frame)
    return ids_of(frame)


def noun_of(groups: Groups) -> str:
    """One of what is held out together."""
    return NOUNS[groups] if isinstance(groups, str) else "group"


def unit_of(groups: Groups) -> str:
    """One of what errs together, the column site of a folds table."""
    return "site" if groups in ("date", "state") else noun_of(groups)


def counted(groups: Groups, n: int) -> str:
    """`1 site`, `3 States`, `14 groups by Farm and Date`."""
    text = f"{n} {noun_of(groups)}{'' if n == 1 else 's'}"
    return text if isinstance(groups, str) else f"{text} by {' and '.join(groups)}"


def check_count(
    group: pd.Series,
    groups: Groups,
    n_folds: int,
    repeats: int,
    leaves_one_out: bool,
) -> None:
    """InputError where the images' groups cannot be dealt into so many folds.

    leaves_one_out : every group is a fold of its own, and there is one way to do so.
    """
    names = sorted(set(group))
    n_groups = len(names)
    noun = noun_of(groups)
    if n_groups == 1:
        raise InputError(_only_one(groups, names[0], len(group)))
    if not leaves_one_out:
        if n_groups < n_folds:
            raise InputError(
                f"{n_folds} folds (cv.n_folds) but the images are of {counted(groups, n_groups)}; "
                f"a {noun} stays in one fold, so set cv.n_folds to {n_groups} or less, or add "
                "images"
            )
        return

    if n_folds != n_groups:
        raise InputError(
            f"each {noun} is left out once: the images are of {counted(groups, n_groups)}, "
            f"cv.n_folds is {n_folds}; set it to {n_groups} or null:{list_some(names)}"
        )
    if repeats != 1:
        raise InputError(
            f"each {noun} is left out once, which can be done in one way: cv.repeats is {repeats}; "
            "set it to 1"
        )


def _only_one(groups: Groups, name: str, n_images: int) -> str:
    if groups == "none":
        return f"all {n_images} images are copies of one photograph; none can be held out"
    noun = noun_of(groups)
    all_of = for_count(n_images, "the one image is", f"all {n_images} images are")
    only = f"{all_of} of one {noun}, {name}"
    if groups in ("date", "state"):
        return f"{only}; none can be held out, set cv.groups to site or none"
    return (
        f"{only}; it stays in one fold, so none can be held out. Set cv.groups to none to hold "
        f"each photograph out on its own: scores then tell of further photographs of this {noun}, "
        f"not of other {noun}s"
    )


def doubts_about_groups(folds: pd.DataFrame, frame: pd.DataFrame, groups: Groups) -> list[str]:
    """Why scores may read too high: photographs that may be of one place are held out apart."""
    n_images = len(folds)
    n_groups = folds["group"].nunique()
    if groups != "none":
        doubts = [] if isinstance(groups, str) else _texts_among_dates(frame, groups)
        if n_groups <= NEARLY_ALL * n_images:
            return doubts
        advice = "" if isinstance(groups, str) else "; name fewer or other columns in cv.groups"
        return [
            *doubts,
            f"{counted(groups, n_groups)} for {n_images} photographs: nearly each is held out on "
            "its own. Where several are of one place and visit, scores read too high and "
            f"intervals too narrow{advice}",
        ]

    could_be = possible_groups(frame)
    if has_sites(frame):
        advice = "cv.groups site holds visits out whole"
    elif could_be:
        advice = f"name what they share in cv.groups, columns such as {', '.join(could_be)}"
    else:
        advice = "put what they share (farm, plot, date) into train.csv and name it in cv.groups"
    return [
        "each photograph is held out on its own (cv.groups none). Where several are of one place "
        f"and visit, scores read too high and intervals too narrow; {advice}"
    ]


def _texts_among_dates(frame: pd.DataFrame, columns: list[str]) -> list[str]:
    """Of columns that are dates but for some cells, whose rows may be of a day that others have."""
    doubts = []
    for column in columns:
        if texts := no_dates_among(frame, column):
            doubts.append(
                f"cv.groups: {column}: {count_of(len(texts), 'cell', len(frame))} "
                f"{for_count(len(texts), 'is no date', 'are no dates')}, so one "
                "visit may be held out apart from itself; write them as 2015-07-21:"
                f"{list_some(texts)}"
            )
    return doubts


def told(folds: pd.DataFrame, groups: Groups) -> str:
    """What the images of a folds table are of, to follow their number in a sentence."""
    if groups == "none":
        return ", each held out on its own,"
    if groups != "site":
        return f" of {counted(groups, folds['group'].nunique())}"
    n_sites = folds["site"].nunique()
    if n_sites == len(folds):
        return ", each its own site,"
    return f" of {counted('site', n_sites)}"
