"""What is wrong with this installation, machine or folder, one line a check.

Of the standard library alone, and packaging where it is there: it must run where numpy, torch or
h5py do not load. What may crash is tried in a process of its own. Folders are tried with temporary
files, stores are only opened.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from featurestore.checks import FAIL, OK, WARN, Check
from featurestore.counts import count_of
from featurestore.disk.terminal import hung
from featurestore.disk.urls import CACHE, as_kept, default_root, is_elsewhere
from featurestore.disk.usable import (
    PROC,
    Mount,
    meminfo,
    mounts,
    read,
    usable_cpus,
    usable_memory,
)
from featurestore.errors import BiomassError
from featurestore.explore.installation import (
    check_heic,
    check_loading,
    check_packages,
    check_pair,
    check_starting,
    check_temporary,
)
from featurestore.explore.machine import (
    check_cpu,
    check_file_system,
    check_memory,
    check_threads,
    probe,
)

TABLES = ("train.csv", "test.csv")  # what makes a folder one of data


MODIFIED = (
    'a command that ended in "Bus error" (SIGBUS) while it read this store: the store was modified'
)


def examine(path: Path | str) -> list[Check]:
    """All checks: the installation, the machine, the folder at path, and a store there.

    path : or a store's URL; the folder is then the one that its rows are kept in.
    """
    mounted = mounts(read(PROC / "self/mountinfo"))
    n_cpus = usable_cpus()
    n_cores = len(os.sched_getaffinity(0))
    return [
        *check_packages(),
        check_heic(),
        check_pair(),
        check_temporary(),
        check_starting(),
        *check_loading(),
        check_cpu(read(PROC / "cpuinfo"), n_cpus),
        check_threads(os.environ.get("OMP_NUM_THREADS"), n_cpus, n_cores),
        check_memory(meminfo(), usable_memory()),
        *(check_served(path, mounted) if is_elsewhere(path) else check_place(path, mounted)),
    ]


def table(checks: list[Check], width: int | None = None) -> str:
    """The report for people, aligned; what a check lists stands below it, one a line.

    width : of the terminal; None breaks no line.
    """
    longest = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        # below a sentence that ends in a colon are the items that it speaks of
        found, *items = check.found.split("\n")
        advice = f"; {check.advice}" if check.advice else ""
        if items and advice:
            found, advice = found.removesuffix(":"), f"{advice}:"
        line = f"{check.level:<4}  {check.name:<{longest}}  {found}{advice}"
        lines.append(hung(line, width, longest + 8))
        lines += [hung(" " * (longest + 8) + item, width, longest + 12) for item in items]
    return "\n".join(lines)


def to_json(checks: list[Check]) -> str:
    """The report for machines: a list of objects with name, level, found and advice."""
    return json.dumps([asdict(check) for check in checks], indent=1)


def check_served(url: str, mounted: list[Mount]) -> Iterator[Check]:
    """The folder that rows from elsewhere are kept in, made if missing, and the store, opened."""
    folder = default_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        yield Check(
            "cache",
            FAIL,
            f"{folder}: {err.strerror}",
            f"choose another folder with {CACHE}",
        )
        return
    yield from check_folder(folder, mounted, FAIL)
    yield check_store(url)


def check_place(path: Path, mounted: list[Mount]) -> Iterator[Check]:
    """The folder at or around path, tried with temporary files, and the store or data there."""
    if path.name in TABLES:
        path = path.parent
    folder, store = locate(path)
    if not os.path.isdir(folder):
        yield Check("folder", FAIL, f"{folder}: no such folder", "make it, or give another")
        return
    is_data = store is None and any(os.path.isfile(folder / name) for name in TABLES)
    # a store or photographs can be read where nothing can be written
    yield from check_folder(folder, mounted, WARN if store or is_data else FAIL)
    if store:
        yield check_store(store)
    if is_data:
        yield from check_tables(folder)


def check_tables(folder: Path) -> Iterator[Check]:
    """The data in the folder, or why it cannot be looked at."""
    try:
        from featurestore.photos.data_folder import check_data

        yield from check_data(folder)
    except Exception as err:  # what a package raises that does not load: anything
        yield Check(
            "data",
            FAIL,
            f"{folder}: {type(err).__name__}: {' '.join(str(err).split())}",
            "if a line above FAILs, put that right first; else report this",
        )


def check_folder(folder: Path, mounted: list[Mount], read_only: str) -> Iterator[Check]:
    """A folder that is there; read_only : the level of one where nothing can be written."""
    yield check_file_system(folder, mounted)
    yield probe("free room", folder)
    writing = probe("writing", folder)
    if writing.level == OK:  # the others need files of their own
        yield from (
            writing,
            *(probe(name, folder) for name in ("flock", "mmap", "sparse files", "fdatasync")),
        )
    else:
        yield Check(writing.name, read_only, writing.found, writing.advice)


def locate(path: Path) -> tuple[Path, Path | None]:
    """The folder to try, and the store at path or around it, if there is one.

    Nothing is ever tried inside of a store.
    """
    path = Path(os.path.realpath(path))
    # the outermost: the arrays of a Zarr store have a zarr.json of their own
    around = [
        each
        for each in (path, *path.parents)
        if each.suffix == ".zarr" or os.path.isfile(each / "zarr.json")
    ]
    if around:
        return around[-1].parent, around[-1]
    is_store = os.path.isfile(path) or path.suffix in {".h5", ".hdf5"}
    return (path.parent, path) if is_store else (path, None)


def check_store(path: Path | str) -> Check:
    """One line about the store, or why it does not open."""
    try:
        from featurestore.read.open import open_reader

        with open_reader(path) as store:
            n_sealed = len(store.sealed)
            n_skipped = len(store.skipped)
            n_open = store.n_images - n_sealed - n_skipped
            skipped = f", {n_skipped} skipped" if n_skipped else ""
            found = (
                f"{store.path}: {count_of(n_sealed, 'image', store.n_images)} sealed{skipped}, "
                f"{count_of(len(store.view_names), 'view')}, {store.spec.tokens.model}"
            )
    except BiomassError as err:  # it says what to do
        cause = MODIFIED if os.path.exists(path) else ""
        return Check("store", FAIL, " ".join(str(err).split()), cause)
    except Exception as err:  # what a package raises that does not load: anything
        shown = as_kept(path) if is_elsewhere(path) else path
        return Check(
            "store",
            FAIL,
            f"{shown}: {type(err).__name__}: {' '.join(str(err).split())}",
            "if a line above FAILs, put that right first; else report this",
        )
    if n_open:
        return Check(
            "store",
            WARN,
            found,
            "the `biomass store build` that began it goes on from there",
        )
    return Check("store", OK, found)
