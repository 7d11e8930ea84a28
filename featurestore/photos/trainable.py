"""What could be trained from a table, and what is missing for it, in words.

`store build` says it before any work, `doctor` line by line.
"""

import difflib
from collections.abc import Iterable, Sequence

import pandas as pd

from featurestore.counts import count_of, for_count
from featurestore.format.spec import OWN_COLUMNS
from featurestore.photos.candidates import (
    Candidate,
    block_in_a_line,
    could_be_targets,
    known_cells,
)
from featurestore.photos.catalog import TARGETS
from featurestore.photos.sites import SITE_COLUMNS, count_sites, has_sites, possible_groups
from featurestore.photos.tables import number_in
from featurestore.photos.targets import has_preset

USUAL_FOLDS = 5  # of cv.n_folds
MOST_NAMED = 8


def what_could_be_trained(frame: pd.DataFrame, where: object) -> str:
    """A paragraph on a table: its photographs, possible targets, groups for folds, what keeps other
    columns from being targets, and how a config names them."""
    lines = {"targets": describe_targets(frame), "groups": describe_groups(frame)}
    if missing := [*missing_masses(frame), *almost_numbers(frame)]:
        lines["missing"] = _some(missing, "; ")
    if config := describe_config(frame):
        lines["train"] = config
    told = [f"  {name:<8} {text}" for name, text in lines.items()]
    return "\n".join([f"{where}: {count_of(len(frame), 'photograph')}", *told])


def describe_targets(frame: pd.DataFrame) -> str:
    """The columns that could be targets, what they are and how many photographs have them."""
    candidates = could_be_targets(frame)
    if not has_preset(frame.columns):
        return _named(candidates) or (
            "none: no column has numbers that differ, or 2 to 50 texts that come more than once; "
            "add one with what is to be predicted"
        )
    n_known = frame[list(TARGETS)].notna().all(axis=1).sum()
    others = [each for each in candidates if each.name not in TARGETS]
    besides = f"; besides: {_named(others)}" if others else ""
    return (
        f"csiro, the contest's five masses, of which {count_of(n_known, 'photograph', len(frame))} "
        f"{for_count(n_known, 'has', 'have')} all{besides}"
    )


def missing_masses(frame: pd.DataFrame) -> list[str]:
    """What the preset still needs, where some of its masses are there."""
    absent = [name for name in TARGETS if name not in frame]
    if not absent or len(absent) == len(TARGETS):
        return []
    others = frame.columns.difference([*OWN_COLUMNS, *TARGETS], sort=False)
    renamed = []
    for name in absent:
        if near := _spelled_nearly(name, others):
            renamed.append(f"{near} to {name}")
    hint = f"; rename {', '.join(renamed)} if that is meant" if renamed else ""
    return [f"`targets: csiro` would need {', '.join(absent)} too{hint}"]


def _spelled_nearly(mass: str, columns: Iterable[str]) -> str | None:
    """The column that is probably this mass: its name as a whole, or its word, as Clover is."""
    spelled = {column.casefold(): column for column in columns}
    whole = mass.casefold()
    for name in (whole, *whole.split("_")[1:-1]):
        if close := difflib.get_close_matches(name, spelled, 1, 0.75):
            return spelled[close[0]]
    return None


def almost_numbers(frame: pd.DataFrame) -> list[str]:
    """Columns of text that would be numbers but for some cells."""
    found = []
    for name in frame.columns.difference(["image_id", "path"], sort=False):
        if pd.api.types.is_numeric_dtype(frame[name]):
            continue
        cells = known_cells(frame[name])
        # each text once, since most columns have few
        no_numbers = [cell for cell in cells.unique() if number_in(cell) is None]
        texts = cells[cells.isin(no_numbers)]
        # where most cells are texts the column is meant as one
        if 0 < len(texts) <= len(cells) / 2:
            image_id = frame["image_id"][texts.index[0]]
            found.append(
                f"{name} is text, since {len(texts)} of its {len(cells)} cells are no numbers "
                f"({image_id}: {texts.iloc[0]!r}); empty or correct them"
            )
    return found


def describe_config(frame: pd.DataFrame) -> str:
    """What a config says for heads to learn of this table; empty where nothing could be learned."""
    if has_preset(frame.columns):
        return "a config without `targets:` learns the five masses, as configs/halves.yaml does"
    example = targets_line(frame)
    if not example:
        return ""
    return f"a config names what is to be learned, as configs/start.yaml does: `{example}`"


def targets_line(frame: pd.DataFrame) -> str:
    """A config's line for the first column that could be learned; empty where none could, and for
    the preset, which is the default."""
    candidates = could_be_targets(frame)
    if has_preset(frame.columns) or not candidates:
        return ""
    numbers = [each for each in candidates if each.kind != "class"]
    return block_in_a_line((numbers or candidates)[0])


def describe_groups(frame: pd.DataFrame) -> str:
    """What could be held out together: sites, and columns with how many values each has."""
    n_sites = count_sites(frame)
    columns = [name for name in possible_groups(frame) if name not in SITE_COLUMNS]
    others = _some([f"{name} ({frame[name].nunique()})" for name in columns])
    if not has_sites(frame):
        alone = "each photograph is held out on its own"
        if others:
            return (
                f"no State and Sampling_Date, so {alone} unless cv.groups names columns: {others}"
            )
        return f"no column says which photographs are of one place, so {alone}"

    sites = f"{count_of(n_sites or 0, 'site')} of State and Sampling_Date"
    if n_sites is None:
        sites = "State and Sampling_Date cannot be read as sites, as the warning says"
    elif n_sites < USUAL_FOLDS:
        sites += f", fewer than the {USUAL_FOLDS} folds that cv.n_folds is by default"
    return f"{sites}; besides: {others}" if others else sites


def _named(candidates: Sequence[Candidate]) -> str:
    return _some([f"{each.name} ({each})" for each in candidates])


def _some(items: Sequence[str], mark: str = ", ") -> str:
    """The first few, and how many more there are."""
    named = mark.join(items[:MOST_NAMED])
    n_more = len(items) - MOST_NAMED
    return f"{named}{mark}and {n_more} more" if n_more > 0 else named
