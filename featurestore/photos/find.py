"""Which file each path of a catalog means, however its name is spelled."""

import os
import stat
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Self

import numpy as np
import pandas as pd

from featurestore.counts import count_of, for_count
from featurestore.errors import InputError, NoAccessError
from featurestore.photos.tables import error_listing


def normalise_path(path: str) -> str:
    """The path with `/` and composed letters (NFC).

    Windows writes a backslash, and macOS takes umlauts apart.
    """
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def spelled_as(ids: Iterable[str], known: Collection[str]) -> list[str]:
    """Ids as `known` spells them, where `normalise_path` makes both equal.

    Ids are often stems of paths, and were once taken from paths as written.
    """
    ids, known = list(ids), dict.fromkeys(known)
    # an id that is here as it is stands for itself, and is no other one's spelling
    own = set(ids)
    other = {_normalise_id(each): each for each in known if each not in own}
    return [each if each in known else other.get(_normalise_id(each), each) for each in ids]


def in_spelling_of(frame: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The frame with ids and paths as a store's catalog spells them."""
    if known.empty:
        return frame
    ids = spelled_as(frame["image_id"], known["image_id"])
    path_of = dict(zip(known["image_id"], known["path"], strict=True))
    paths = []
    for image_id, path in zip(ids, frame["path"], strict=True):
        there = path_of.get(image_id, path)
        paths.append(there if normalise_path(there) == normalise_path(path) else path)
    return frame.assign(
        image_id=np.array(ids, object),
        path=np.array(paths, object),
    )


def _normalise_id(image_id: str) -> str:
    # ids were once stems as Linux sees them, to which a backslash is a letter: photos\IMG_1
    return normalise_path(image_id.rsplit("\\", 1)[-1])


def find_photographs(
    frame: pd.DataFrame,
    root: Path,
    outside: bool = False,
    missing: bool = False,
    allow: str = "",
    without: str = "",
) -> list[Path]:
    """The resolved file of each image of a catalog, in the catalog's order.

    A path that is not there as written is looked for as `normalise_path` gives it, whichever way
    the file's own name is composed. Raises InputError listing every path that is absolute, has `..`
    or leads out of root through a symlink, unless `outside` allows them; and listing every file
    that is not there, unless `missing` does.

    allow, without : options of the command that was typed, if it has some, by which photographs may
        lie outside, and by which it goes without missing ones.
    """
    home = os.path.realpath(root)
    folders: dict[str, _Folder] = {}
    listings: dict[str, dict[str, str]] = {}  # a folder of a million names is listed once
    found, away, inside, unsure = [], [], [], []
    for path in frame["path"]:
        head, name = _split(path)
        if head not in folders:
            folders[head] = _Folder.of(home, head)
        folder = folders[head]
        if name and _is_regular(f"{folder.place}/{name}"):
            # all else is known of its folder, and most folders hold many
            file, is_astray = Path(folder.place, name), folder.is_astray
        else:
            file, is_astray = _resolved(home, path, listings)
            unsure.append((path, file))
        found.append(file)
        if is_astray and file.is_relative_to(home) and not PureWindowsPath(path).is_absolute():
            inside.append(f"{path} -> {file.relative_to(home)}")
        elif is_astray:
            away.append(f"{path} -> {file}")
    if not outside:
        _refuse_astray(root, len(found), away, inside, allow)
    gone = [(path, file) for path, file in unsure if not _is_file(file)]
    if gone and not missing:
        gone = _with_near_names(gone)
        raise error_listing(
            root,
            f"{count_of(len(gone), 'photograph', len(found))} {for_count(len(gone), 'is', 'are')} "
            "missing; is this the folder that the paths start from?"
            f"{f' ({without} goes without them)' if without else ''}",
            gone,
            most=len(gone),
        )
    return found


def _with_near_names(gone: Sequence[tuple[str, Path]]) -> list[str]:
    """Paths of files that are not there, each with one beside it of another case or suffix."""
    names: dict[Path, dict[str, str]] = {}
    told = []
    for path, file in gone:
        if file.parent not in names:
            there: list[str] = []
            with suppress(OSError):  # no such folder, or one that may not be listed
                there = sorted(os.listdir(file.parent))
            names[file.parent] = {Path(name).stem.casefold(): name for name in there}
        near = names[file.parent].get(file.stem.casefold())
        told.append(f"{path} (there is {near})" if near and near != file.name else path)
    return told


def _refuse_astray(root: Path, n: int, away: list[str], inside: list[str], allow: str) -> None:
    """InputError for photographs outside, and for those inside whose paths would be wrong in
    another place."""
    problems = []
    other = f", or allow it with {allow}" if allow else ""
    if away:
        problem = (
            f"{count_of(len(away), 'photograph', n)} {for_count(len(away), 'lies', 'lie')} "
            f"outside; use relative paths below it{other}"
        )
        problems.append(error_listing(root, problem, away, most=len(away)))
    if inside:
        problem = (
            f"{count_of(len(inside), 'photograph', n)} {for_count(len(inside), 'has', 'have')} a "
            f"path that is absolute or has `..`; write paths relative to this folder{other}"
        )
        problems.append(error_listing(root, problem, inside, most=len(inside)))
    if problems:
        raise InputError("\n".join(map(str, problems)))


@dataclass(frozen=True)
class _Folder:
    """A folder as paths of a catalog name it."""

    place: str
    """From the root, without links."""
    is_astray: bool
    """Its files lie outside, or are named in a way that may lead there."""

    @classmethod
    def of(cls, home: str, head: str) -> Self:
        place = os.path.realpath(os.path.join(home, head))
        return cls(place, _is_astray(home, head, Path(place)))


def _split(path: str) -> tuple[str, str]:
    """A path up to its last `/`, and the name behind that; no name where it may be none."""
    at = path.rfind("/") + 1
    name = path[at:]
    is_name = name not in ("", ".", "..") and "\\" not in path
    return path[:at], name if is_name else ""


def _is_regular(place: str) -> bool:
    """Whether a file lies there that is no link."""
    try:
        return stat.S_ISREG(os.lstat(place).st_mode)
    except (OSError, ValueError):  # a name that no file can have
        return False


def _resolved(home: str, path: str, listings: dict[str, dict[str, str]]) -> tuple[Path, bool]:
    """The file that a path means, however it is spelled, and whether it lies outside."""
    spelled, place = path, os.path.join(home, path)
    if not os.path.lexists(place):
        spelled = normalise_path(path)
        place = _composed(home, spelled, listings)
    # links are followed before it is judged where the file lies
    file = Path(os.path.realpath(place))
    return file, _is_astray(home, spelled, file)


def _is_astray(home: str, spelled: str, file: Path) -> bool:
    is_absolute = os.path.isabs(spelled) or PureWindowsPath(spelled).is_absolute()
    has_parent = ".." in PurePosixPath(spelled).parts
    return is_absolute or has_parent or not file.is_relative_to(home)


def _is_file(path: Path) -> bool:
    """Whether there is such a file.

    NoAccessError where a folder above it does not let this account know.
    """
    try:
        return path.is_file()
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err


def _composed(home: str, path: str, listings: dict[str, dict[str, str]]) -> str:
    """The file that a normalised path means below a folder whose names may be decomposed.

    listings : of folders, to be used again.
    """
    place = home
    for part in PurePosixPath(path).parts:
        if part != ".." and not os.path.lexists(os.path.join(place, part)):
            if place not in listings:
                try:
                    names = os.listdir(place) if os.path.isdir(place) else []
                except PermissionError as err:
                    raise NoAccessError.of(err, place) from err
                listings[place] = {unicodedata.normalize("NFC", name): name for name in names}
            part = listings[place].get(part, part)
        place = os.path.join(place, part)
    return place
