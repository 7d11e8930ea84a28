"""A blend's folder: blend.json names the runs that predict together, and the share of each.

A sweep has one for each blend on its board, `refit` is another; `predict` and `bundle` take them
like a run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.disk.durable import write_whole
from featurestore.errors import InputError
from trainer.data.stream import Split
from trainer.loop.runs import BLEND, dump_json, read_json


@dataclass(frozen=True)
class SharedRun:
    """A run's folder, and its share in what several predict together."""

    path: Path
    share: float


def save_blend(
    folder: Path,
    members: Sequence[str],
    shares: Sequence[float],
    shares_by_split: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write blend.json.

    members : paths that start at the folder; shares_by_split : those that the out-of-fold table
        was made with, by `split_name`.
    """
    about = {"members": members, "shares": shares}
    if shares_by_split:
        about["shares_by_split"] = shares_by_split
    write_whole(folder / BLEND, dump_json(about))


def shared_runs(folder: Path) -> list[SharedRun]:
    """The runs that a folder stands for: a blend's members, those without a share too, or the
    folder itself."""
    if not is_blend(folder):
        return [SharedRun(folder, 1.0)]
    told = _read(folder)
    runs = []
    for member, share in zip(told["members"], told["shares"], strict=True):
        path = _beside(folder, member)
        runs.append(SharedRun(path, float(share)))
    return runs


def is_blend(folder: Path) -> bool:
    return (folder / BLEND).is_file()


def shares_of(folder: Path, repeat: int, fold: int) -> list[float]:
    """Of a blend's members, as a split's out-of-fold predictions have them."""
    told = _read(folder)
    by_split = told.get("shares_by_split", {})
    return by_split.get(_name(repeat, fold), told["shares"])


def split_name(split: Split) -> str:
    """As summary.json and blend.json name a repeat and fold."""
    return _name(split.repeat, split.fold)


def _name(repeat: int, fold: int) -> str:
    return f"r{repeat:02d}_fold{fold}"


def _beside(folder: Path, member: str) -> Path:
    """Of `../NAME` the folder beside, whose path names no blend."""
    return folder.parent / member[3:] if member.startswith("../") else folder / member


def _read(folder: Path) -> dict:
    told = read_json(folder / BLEND, "members", "shares")
    members = told["members"]
    shares = told["shares"]
    are_shares = all(isinstance(share, int | float) and share >= 0 for share in shares)
    if len(members) != len(shares) or not are_shares or not sum(shares) > 0:
        raise InputError(
            f"{folder / BLEND}: a share of at least 0 belongs to each member; train the sweep again"
        )
    return told
