"""What is served: stores and sweeps by name, named once at the start.

A store is opened anew when its files were replaced.
"""

import functools
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featurestore.disk.durable import crc32c
from featurestore.errors import BiomassError, InputError, NoAccessError, StoreDamaged
from featurestore.read.sources.pread import Pread
from featurestore.store import FeatureStore
from service.errors import ServiceError

HIDDEN = "the server's log says what is wrong"
ABSOLUTE = re.compile(r"(?<![\w.~-])/[^\s]")
# a file written within this time may be written again under the same time stamp: kernels tick every
# 1 to 10 ms
SETTLED_S = 0.1


@dataclass(frozen=True)
class Opened:
    """A store as one request sees it, from its first byte to its last."""

    name: str
    store: FeatureStore
    generation: str
    """16 hex digits over fingerprint, metadata, and device and inode of every file."""
    state: str
    """The generation, and a checksum of seals and ids: what was computed from sealed images holds
    as long as this stays."""

    @functools.cached_property
    def objects(self) -> dict[str, tuple[Path, int]]:
        """File and bytes of every object of a Zarr store, by its key; only those of the format."""
        root = self.store.path
        layout = self.store.layout
        nodes = [root, root / "catalog", *(root / name for name in layout.extents)]
        files = {path / "zarr.json": 0 for path in nodes} | layout.sizes
        return {str(path.relative_to(root)): (path, n_bytes) for path, n_bytes in files.items()}


class Served:
    """A store under its name. `now()` gives it as it is on disk now."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = Path(os.path.abspath(path))
        self._lock = threading.Lock()
        self._opened: Opened | None = None

    def now(self) -> Opened:
        """The store, opened anew if its files were replaced, with an up-to-date catalog.

        ServiceError `store-gone` if it is not there, `store-damaged` if a file is missing or cut.
        Some system calls a file.
        """
        with self._lock:
            if self._opened is None or self._is_other():
                self._opened = self._open_again()
            try:
                self._renew()
            except (OSError, StoreDamaged):  # it went just now
                self._opened = self._open_again()
            return self._opened

    def require(self) -> None:
        """InputError or StoreDamaged, which name the path, if there is no store."""
        self._opened = self._open()

    def _is_other(self) -> bool:
        """Whether a file was replaced or cut, or other metadata written over it."""
        layout = self._opened.store.layout
        try:
            found = {path: os.stat(path) for path in layout.sizes}
        except OSError:
            return True
        for path, each in found.items():
            is_same_file = (each.st_dev, each.st_ino) == layout.inodes[path]
            if not is_same_file or each.st_size != layout.sizes[path]:
                return True
        try:
            return int(self._opened.store.array("metadata_crc32c")[0]) != self._metadata
        except StoreDamaged:  # it went just now
            return True

    def _open_again(self) -> Opened:
        try:
            return self._open()
        except NoAccessError as err:
            raise ServiceError(
                "store-damaged",
                f"store {self.name!r}: the server's account may not read a file of it now",
                "the server's log says which; let the account read it",
            ) from err
        except BiomassError as err:
            if not self.path.exists():
                raise ServiceError(
                    "store-gone",
                    f"store {self.name!r} is not there now",
                    "ask again once it is back",
                ) from err
            raise ServiceError(
                "store-damaged",
                f"store {self.name!r}: a file of it is missing, cut or not what it was",
                "the server's log says which; restore it or build the store again",
            ) from err

    def _open(self) -> Opened:
        store = FeatureStore(Pread.open(self.path))
        files = ";".join(f"{dev}:{ino}" for dev, ino in store.layout.inodes.values())
        metadata = int(store.array("metadata_crc32c")[0])
        what = f"{store.spec.fingerprint};{metadata};{files}"
        generation = hashlib.sha256(what.encode()).hexdigest()[:16]
        self._metadata = metadata
        self._written = ()
        return Opened(self.name, store, generation, generation)

    def _renew(self) -> None:
        """Read again what a writer may have changed, if the files were written to since.

        Ids, seals, or all of it.
        """
        store = self._opened.store
        arrays = {
            name: store.layout.extents[name].paths[0]
            for name in ("metadata_crc32c", "catalog/image_id", "seal")
        }
        written = tuple(os.stat(path).st_mtime_ns for path in arrays.values())
        if written == self._written:
            return
        crc = crc32c(*(store.array(name)[:] for name in arrays))
        state = f"{self._opened.generation}-{crc:08x}"
        if state != self._opened.state:
            # another reader of the same files: who works with this one keeps its catalog
            anew = FeatureStore(store.source, store.check, store.seals)
            self._opened = replace(self._opened, store=anew, state=state)
        # () matches no time stamps: look again at the next request
        self._written = written if time.time_ns() - max(written) > SETTLED_S * 1e9 else ()


class Library:
    """All that the server may answer from, by names in addresses; nothing else is opened.

    stores : Served by name. sweep_folders : folder of each sweep, by name. data : folder of the
        photographs, or None. max_pixels : the most that one may have, None is the store's.
    predictions : a table of `biomass predict`, explain : the folder of its pictures, or None.
    """

    def __init__(
        self,
        stores: Sequence[Path],
        sweeps: Sequence[Path] = (),
        data: Path | None = None,
        max_pixels: int | None = None,
        predictions: Path | None = None,
        explain: Path | None = None,
    ) -> None:
        paths, folders = (
            [Path(os.path.abspath(path)) for path in given] for given in (stores, sweeps)
        )
        self.stores = {
            name: Served(name, path) for name, path in _by_name(paths, lambda path: path.stem)
        }
        self.sweep_folders = dict(_by_name(folders, lambda path: path.name))
        self.data = data and Path(os.path.abspath(data))
        self.max_pixels = max_pixels
        self.predictions = predictions and Path(os.path.abspath(predictions))
        self.explain = explain and Path(os.path.abspath(explain))

    def require_all(self) -> None:
        """InputError or StoreDamaged unless all stores open and all sweeps have a sweep.json."""
        for served in self.stores.values():
            served.require()
        for folder in self.sweep_folders.values():
            if (folder.parent / "sweep.json").is_file():
                raise InputError(f"{folder}: a run's folder, not a sweep's; give {folder.parent}")
            if not (folder / "sweep.json").is_file():
                raise InputError(
                    f"{folder}: not a sweep's folder: it has no sweep.json; give one that `biomass "
                    "train` made, e.g. runs/20261228_123456_halves"
                )

    def sweep(self, name: str) -> Path:
        """A sweep's folder; ServiceError `not-found` if it is unknown or not there now."""
        if name not in self.sweep_folders:
            served = ", ".join(self.sweep_folders) or "none; start with --sweep DIR"
            raise ServiceError("not-found", f"no sweep {name!r}", f"served: {served}")
        if not (self.sweep_folders[name] / "sweep.json").is_file():
            raise ServiceError(
                "not-found", f"sweep {name!r} is not there now", "ask again once it is back"
            )
        return self.sweep_folders[name]

    def without_paths(self, text: str) -> str:
        """A message fit for anybody: served files by name; HIDDEN if another path is in it."""
        known = {str(served.path): name for name, served in self.stores.items()}
        known |= {str(path): name for name, path in self.sweep_folders.items()} | (
            {str(self.data): "data"} if self.data else {}
        )
        if self.predictions:
            known[str(self.predictions)] = self.predictions.name
        # the longest first: a store may lie below a sweep's folder
        for path in sorted(known, key=len, reverse=True):
            if path != "/":
                text = re.sub(
                    rf"{re.escape(path)}(?![^\s/:,;'\")])", lambda _, name=known[path]: name, text
                )
        return HIDDEN if ABSOLUTE.search(text) else text


def _by_name(paths: Iterable[Path], naming: Callable[[Path], str]) -> Iterable[tuple[str, Path]]:
    """(name, path) of each; a name that is taken gets -2, -3 ... behind it.

    What is not UTF-8 in a name becomes `?`.
    """
    taken: set[str] = set()
    for path in paths:
        stem = naming(path).encode(errors="replace").decode()  # an address holds UTF-8 alone
        name = stem
        n = 1
        while name in taken:
            n += 1
            name = f"{stem}-{n}"
        taken.add(name)
        yield name, path
