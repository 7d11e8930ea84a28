"""A store that is served: opened anew when its files were replaced."""

import functools
import hashlib
import os
import secrets
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from featurestore.disk.durable import crc32c
from featurestore.errors import BiomassError, NoAccessError, StoreDamaged
from featurestore.read.sources.pread import Pread
from featurestore.store import FeatureStore
from service.errors import ServiceError
from service.pieces import Piece, Span

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

    @property
    def is_virtual(self) -> bool:
        """Whether it has no objects of its own as a Zarr store."""
        return self.store.path in self.store.layout.sizes

    def row_part(self, name: str, image: int, view: int) -> Piece:
        """A row's part of an array."""
        names = [n for n in ("cls", "patches", "pooled", "stats") if n in self.store.layout.extents]
        return Span(*self.store.layout.row_parts(image, view)[names.index(name)])

    def array_part(self, name: str, start: int, n_bytes: int) -> Piece:
        """Bytes of an array other than patches."""
        extent = self.store.layout.extents[name]
        return Span(extent.paths[0], extent.offset + start, n_bytes)

    def etag_of(self, name: str) -> str:
        """The ETag of an array other than patches, with its quotes."""
        return file_etag(self.generation, self.store.layout.extents[name].paths[0])

    @functools.cached_property
    def objects(self) -> dict[str, tuple[Path, int]]:
        """File and bytes of every object of a Zarr store, by its key; only those of the format."""
        root = self.store.path
        layout = self.store.layout
        nodes = [root, root / "catalog", *(root / name for name in layout.extents)]
        files = {path / "zarr.json": 0 for path in nodes} | layout.sizes
        objects = {}
        for path, n_bytes in files.items():
            objects[str(path.relative_to(root))] = path, n_bytes
        return objects


class Served:
    """A store under its name. `now()` gives it as it is on disk now."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
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
            if not os.path.exists(self.path):
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


def file_etag(generation: str, *paths: Path) -> str:
    """The ETag of bytes that a writer may still change: generation and modification times."""
    try:
        written = max(path.stat().st_mtime_ns for path in paths)
    except OSError as err:
        raise StoreDamaged(
            f"{err.filename}: gone since the store was opened; restore it or build the store again"
        ) from err
    settled = time.time_ns() - written > SETTLED_S * 1e9
    # a file may be written again within the same tick of the clock: such bytes match nothing
    unsettled = "" if settled else f"-{secrets.token_hex(4)}"
    return f'"{generation}-{written:x}{unsettled}"'
