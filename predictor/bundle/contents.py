"""The files of a bundle's folder: extra, missing, changed, or not what their names say."""

import codecs
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from featurestore.disk.durable import file_sha256
from featurestore.disk.pickles import HEAD_BYTES, PICKLED, pickled
from featurestore.errors import InputError, list_some
from predictor.bundle.listing import (
    LISTING,
    MAX_BYTES,
    MAX_FILES,
    MAX_LISTING,
    MAX_NESTING,
    UPLOAD_FILES,
    Listing,
    is_deep,
)

MAX_DEPTH = 4
EMPTY = "an empty folder"


def refuse(path: Path, what: str, problems: list[str]) -> None:
    """InputError listing the problems, if there are any; `what` says what they have in common."""
    if problems:
        raise InputError(
            f"{path}: refused, it has {what}; remove that, or get the bundle "
            f"elsewhere:{list_some(problems)}"
        )


def walk(path: Path) -> dict[str, int | str]:
    """Size of every file below the folder, by its path there, or why it is no regular file."""
    found: dict[str, int | str] = {}
    for name, why in _entries(path, ""):
        found[name] = why
        if len(found) > MAX_FILES + len(UPLOAD_FILES) + 1:
            raise InputError(f"{path}: more than {MAX_FILES} files; that is no bundle")
    return dict(sorted(found.items()))


def _entries(folder: Path, above: str) -> Iterator[tuple[str, int | str]]:
    with os.scandir(folder) as entries:  # not sorted here: there may be too many to hold
        empty = True
        for entry in entries:
            empty = False
            name = above + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                yield name, "a link"
            elif name.count("/") >= MAX_DEPTH:
                yield name, f"more than {MAX_DEPTH} folders deep"
            elif stat.S_ISDIR(status.st_mode):
                yield from _entries(folder / entry.name, name + "/")
            elif stat.S_ISREG(status.st_mode):
                yield name, status.st_size
            else:
                yield name, "neither a file nor a folder"
    if empty and above:
        yield above, EMPTY


def find_strange(sizes: dict[str, int | str], listing: Listing) -> Iterator[str]:
    """What is in the folder and must not be, and why."""
    for name, size in sizes.items():
        if isinstance(size, str):
            # all heads of a run may be missing
            if size != EMPTY or not any(each.startswith(name) for each in listing.files):
                yield f"{name}: {size}"
        elif name in UPLOAD_FILES or name == LISTING:
            if size > MAX_LISTING:
                yield f"{name}: {size} bytes, of at most {MAX_LISTING}"
        elif Path(name).suffix.lower() in PICKLED:
            yield (
                f"{name}: {Path(name).suffix} files can hold pickles, which are never read; "
                "weights are .safetensors"
            )
        elif name not in listing.files:
            yield f"{name}: extra, not listed in {LISTING}"
        elif size > (most := _most_bytes(name)):
            yield f"{name}: {size} bytes, of at most {most}"


def find_misnamed(listing: Listing) -> Iterator[str]:
    for name, file in listing.files.items():
        if not (most := _most_bytes(name)):
            yield f"{name}: listed, and not a kind of file that bundles have"
        elif file.size > most:
            yield f"{name}: listed with {file.size} bytes, of at most {most}"
    for member in listing.members:
        run = f"runs/{member.name}/"
        if not {run + "config.yaml", run + "spec.json"} <= set(listing.files):
            yield f"{run}: a member whose config.yaml or spec.json is not listed"
        if not any(name.startswith(run + "weights/") for name in listing.files):
            yield f"{run}: a member of which no head is listed"


def _most_bytes(name: str) -> int:
    """Bound of a path in a bundle; 0 where no such file may be."""
    for pattern, most in MAX_BYTES.items():
        if re.fullmatch(pattern, name):
            return most
    return 0


def find_damaged(path: Path, listing: Listing, sizes: dict[str, int | str]) -> dict[str, str]:
    """Listed files that are missing or changed, and how; InputError if one belies its name."""
    damaged: dict[str, str] = {}
    disguised: list[str] = []
    for name, file in listing.files.items():
        if name not in sizes:
            damaged[name] = "missing"
        # before its sha256: what is listed may be a pickle all the same. A wheel is a zip
        elif not name.endswith(".whl") and (what := pickled(path / name)):
            disguised.append(f"{name}: {what}, which is never read")
        # sizes before sums: a file that is cut need not be read
        elif sizes[name] != file.size:
            damaged[name] = f"changed, {sizes[name]} bytes instead of {file.size}"
        elif (found := file_sha256(path / name)) != file.sha256:
            damaged[name] = f"changed, sha256 {found} instead of {file.sha256}"
        elif why := _malformed(path / name):
            disguised.append(f"{name}: {why}")
    refuse(path, "files that are not what their names say", disguised)
    return damaged


def _malformed(path: Path) -> str | None:
    """Why a file is not of the kind that its name says, if it is not; nothing is loaded."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if path.suffix == ".whl":
        return None if head.startswith(b"PK\x03\x04") else "not a wheel"
    if path.suffix == ".safetensors":
        # it begins with the length of a JSON object, and that object
        n_bytes = int.from_bytes(head[:8], "little")
        sound = head[8:9] == b"{" and 8 + n_bytes <= path.stat().st_size
        return None if sound else "not safetensors"
    return _not_text(path)


def _not_text(path: Path) -> str | None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    nested = path.suffix in (".json", ".ipynb", ".yaml")
    try:
        with open(path, "rb") as file:
            # files that can nest are of one block
            for block in iter(lambda: file.read(1 << 24), b""):
                if "\0" in decoder.decode(block):
                    return "not text"
                if nested and is_deep(block):
                    return f"nested more than {MAX_NESTING} deep"
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "not text"
    return None
