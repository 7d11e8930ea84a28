"""Publishing: a finished Zarr store becomes objects below a URL, each with the bytes of a file.

Every object is created where there is none, and nothing is ever overwritten. Checksums of rows come
first: they settle which store is published there, should several be at it. Other arrays and all
metadata follow, then shards, then the seals; the root's zarr.json comes last, and before that no
reader finds a store. So whoever stops, or is overtaken, leaves what another run of the same command
completes; whoever brings other bytes is refused by the first that differ.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.disk.durable import check_writable, locked, remove
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.threads import Pool
from featurestore.disk.urls import object_url, published_url
from featurestore.errors import InputError, MismatchError, StoreDamaged, list_some
from featurestore.format.choose import open_layout
from featurestore.format.layout import Layout
from featurestore.read.sources.object_client import ObjectClient, ObjectFacts

ROOT = "zarr.json"
PROBE = "catalog/zarr.json"  # the same bytes in every store
N_THREADS = 3  # each holds a shard in memory
PIECE = 16 << 20
MD5 = re.compile(r'"?([0-9a-f]{32})"?')

Progress = Callable[[int], object]


class Publisher:
    """Puts one store at a URL.

    InputError at once where this account may not write, or where the server overwrites objects
    although it is told to create them.
    """

    def __init__(self, url: str) -> None:
        self.url = published_url(url)
        self._client = ObjectClient(self.url)
        self._there = self._client.list()
        self._probe()

    def _probe(self) -> None:
        """See that nothing is overwritten, by an object that is the same in all stores."""
        content = _empty_group()
        if PROBE in self._there:
            content, _ = self._client.get(PROBE)
        try:
            self._client.create(PROBE, content)
            is_overwritten = self._client.create(PROBE, content) is not None
        except InputError as err:
            if "NotImplemented" not in str(err):
                raise
            is_overwritten = True
        if is_overwritten:
            raise InputError(
                f"{self.url}: the server does not create objects conditionally (If-None-Match: *), "
                "so that two runs could overwrite each other; publish to a server that does"
            )
        self._there = self._client.list()

    def publish(self, folder: Path, progress: Progress = lambda n_bytes: None) -> int:
        """Put what is not there yet; how many objects that was.

        MismatchError if other bytes or objects are there, StoreDamaged if one changed on its way.
        """
        layout = open_layout(folder)
        first, shards, seals = stages(layout)
        keys = [*first, *shards, *seals, ROOT]
        self._refuse_others(keys)

        n_put = 0
        for stage in (first[:1], first[1:], shards):
            with Pool(N_THREADS) as pool:
                for is_put, n_bytes in pool.map(lambda key: self._put(folder, key), stage):
                    n_put += is_put
                    progress(n_bytes)
                    check_interrupt()

        # whatever removed an object meanwhile: seals must not stand for what is gone
        self._there = self._client.list()
        if gone := sorted({*first, *shards} - self._there.keys()):
            raise StoreDamaged(
                f"{self.url}: objects are gone that were there just now; stop what removes them "
                f"and start again:{list_some(gone)}"
            )
        for key in (*seals, ROOT):
            is_put, n_bytes = self._put(folder, key)
            n_put += is_put
            progress(n_bytes)
        return n_put

    def _refuse_others(self, keys: list[str]) -> None:
        others = sorted(self._there.keys() - set(keys))
        if others:
            raise MismatchError(
                f"{self.url}: holds objects of something else; choose another name, or remove "
                f"them:{list_some(others)}"
            )

    def _put(self, folder: Path, key: str) -> tuple[bool, int]:
        """Whether an object was created, and its length; it has the file's bytes in any case."""
        path = folder / key
        n_bytes = os.path.getsize(path)
        facts = self._there.get(key)
        e_tag = None if facts else self._client.create(key, path)
        if e_tag is None:
            self._check_same(key, path, n_bytes, facts)
            return False, n_bytes

        if MD5.fullmatch(e_tag) and not self._is_same(key, path, e_tag):
            raise StoreDamaged(
                f"{self.url}/{key}: its bytes changed on their way; remove the object and start "
                "again"
            )
        return True, n_bytes

    def _check_same(self, key: str, path: Path, n_bytes: int, facts: ObjectFacts | None) -> None:
        """MismatchError unless the object that is there has the bytes of a file."""
        facts = facts or self._client.facts(key)
        is_same = facts.size == n_bytes and self._is_same(key, path, facts.e_tag)
        if not is_same:
            raise MismatchError(
                f"{self.url}/{key}: other bytes than this store's; another store is published "
                "there, or was begun: choose another name, or remove what is there"
            )

    def _is_same(self, key: str, path: Path, e_tag: str) -> bool:
        """Whether an object of a file's length has its bytes.

        They are read where the ETag is not their MD5: it may look like one and be none, of objects
        that the server encrypts (SSE-KMS) for instance.
        """
        found = MD5.fullmatch(e_tag)
        if found and found[1] == _md5(path):
            return True
        return all(
            self._client.get_range(key, start, start + len(piece)).tobytes() == piece
            for start, piece in _pieces(path)
        )


def stages(layout: Layout) -> tuple[list[str], list[str], list[str]]:
    """Keys in the order in which objects are put: first ones, shards of patches, seals.

    Each stage is there before the next begins.
    """

    def key(path: Path) -> str:
        return path.relative_to(layout.path).as_posix()

    by_name = {name: [key(path) for path in e.paths] for name, e in layout.extents.items()}
    shards = by_name.pop("patches", [])
    seals = by_name.pop("seal")
    metadata = [f"{name}/{ROOT}" for name in ("catalog", *sorted(layout.extents))]
    first = by_name.pop("crc32c")
    for paths in by_name.values():
        first += paths
    return first + metadata, shards, seals


@contextmanager
def scratch_store(folder: Path | None, url: str, *parts: str) -> Iterator[Path]:
    """Where a store is made before it is published: the same place for the same store.

    It is removed once it was, and left after an error: the next run goes on from there. LockedError
    while another run is at it, which would remove it under this one.

    folder : None is the system's for temporary files.
    parts : what tells this store from others that are to be published there.
    """
    folder = folder or Path(tempfile.gettempdir())
    check_writable(folder)
    name = hashlib.sha256("\n".join((object_url(url), *parts)).encode()).hexdigest()[:16]
    path = folder / f"biomass-{name}.zarr"
    in_use = path.with_suffix(".scratch")
    with locked(in_use, needed=False):
        yield path
        remove(path)
        remove(path.with_name(path.name + ".lock"))
        remove(in_use.with_name(in_use.name + ".lock"))


def _empty_group() -> bytes:
    """The zarr.json of a group without attributes, as zarr-python writes it here."""
    import zarr

    with tempfile.TemporaryDirectory(prefix="biomass-probe-") as folder:
        zarr.create_group(folder, zarr_format=3)
        return Path(folder, ROOT).read_bytes()


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        at = 0
        while piece := file.read(PIECE):
            yield at, piece
            at += len(piece)
