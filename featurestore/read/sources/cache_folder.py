"""The folder of a cache: who may use it, other caches beside it, and what goes wrong with one.

A folder is a sparse Zarr store of the same format. What is whole in it is not written down: a row
is there if its bytes have their checksum.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from featurestore.disk.durable import locked, remove
from featurestore.disk.urls import CACHE
from featurestore.errors import BiomassError, InputError, LockedError
from featurestore.format.choose import create_store, open_layout
from featurestore.format.layout import Layout
from featurestore.format.spec import StoreSpec

OURS = re.compile(r"[0-9a-f]{32}-[0-9]{1,2}\.zarr")  # nothing else in that folder is ever removed
SLOTS = 64  # processes that read the same store on this machine, each from a folder of its own
TRIES = 10  # to share a folder that others remove


def take_own(
    root: Path,
    key: str,
    spec: StoreSpec,
    n: int,
    held: ExitStack,
) -> tuple[Layout, bool]:
    """The first folder for this key that no process uses, locked; and that nobody shares it."""
    for number in range(SLOTS):
        path = _named(root, key, number)
        try:
            _enter(held, path)
        except LockedError:
            continue
        return _opened(path, spec, n), True
    raise LockedError(
        f"{root}: {SLOTS} processes use caches of this store; wait for one to end, or choose "
        f"another {CACHE}"
    )


def take_shared(
    root: Path,
    key: str,
    spec: StoreSpec,
    n: int,
    held: ExitStack,
) -> tuple[Layout, bool]:
    """The one folder for this key, which processes share; and whether nobody used it just now."""
    path = _named(root, key, 0)
    for _ in range(TRIES):
        # alone first: only then may a folder that is not sound be made anew
        is_alone = False
        with suppress(LockedError), ExitStack() as alone:
            _enter(alone, path)
            _opened(path, spec, n)
            is_alone = True
        _enter(held, path, wait=True, shared=True)
        if layout := _sound(path, spec, n):
            return layout, is_alone
        held.close()  # removed, or not finished, by somebody else in between
    raise LockedError(f"{path}: removed by other processes again and again; choose another {CACHE}")


def _named(root: Path, key: str, number: int) -> Path:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(os.path.realpath(root)) / f"{key}-{number}.zarr"


def _enter(
    held: ExitStack,
    path: Path,
    wait: bool = False,
    shared: bool = False,
) -> None:
    try:
        held.enter_context(locked(path, wait, shared=shared))
    except InputError as err:
        raise InputError(
            f"{path.parent}: rows cannot be kept here; choose another folder with {CACHE} ({err})"
        ) from err


def _opened(path: Path, spec: StoreSpec, n: int) -> Layout:
    """The cache that is there if it is sound, else a new one."""
    if layout := _sound(path, spec, n):
        return layout
    _drop_files(path)
    return create_store(path, spec, n)


def _sound(path: Path, spec: StoreSpec, n: int) -> Layout | None:
    with suppress(BiomassError, OSError):
        layout = open_layout(path)
        if layout.n == n and layout.spec.to_json() == spec.to_json():
            return layout
    return None


def other_caches(root: Path, own: Path) -> list[tuple[Path, int]]:
    """Caches of other stores, and their bytes; that which was used least recently first."""

    def used_ns(path: Path) -> int:
        # a process writes its name into the lock when it takes a cache
        lock = path.with_name(path.name + ".lock")
        return lock.stat().st_mtime_ns if lock.exists() else 0

    inside = Path(os.path.realpath(root)).iterdir()
    found = [path for path in inside if OURS.fullmatch(path.name) and path != own]
    others = []
    for path in sorted(found, key=used_ns):
        files = []
        for folder, _, names in os.walk(path):
            files += [Path(folder) / name for name in names]
        others.append((path, sum(map(disk_bytes, files))))
    return others


def drop(path: Path) -> None:
    """Remove another cache, unless a process is using it."""
    with suppress(BiomassError, OSError), locked(path):
        _drop_files(path)


def _drop_files(path: Path) -> None:
    remove(path.with_suffix(".json"))
    remove(path.with_suffix(".claims"))
    remove(path)


def disk_bytes(path: Path) -> int:
    with suppress(FileNotFoundError):  # another process may have removed it
        # blocks, of 512 bytes whatever the file system: files are sparse, their size says nothing
        return os.stat(path).st_blocks * 512
    return 0


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """What goes wrong with a cache that was sound when it was opened."""
    try:
        yield
    except FileNotFoundError as err:
        raise InputError(
            f"{path}: removed while its rows were in use; open the store again"
        ) from err
    except OSError as err:
        raise unusable(path, err) from err


def unusable(path: Path, err: OSError) -> InputError:
    free = f", {shutil.disk_usage(path).free / 1e9:.3g} GB are free there" if path.exists() else ""
    return InputError(
        f"{path}: rows cannot be kept here ({err.strerror}{free}); make room, choose another "
        f"folder with {CACHE}, or a smaller cache_bytes"
    )
