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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featurestore.disk.durable import check_writable, locked, remove, rename
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.threads import Pool
from featurestore.disk.urls import object_url, published_url
from featurestore.errors import InputError, MismatchError, StoreDamaged, list_some
from featurestore.format.choose import open_layout
from featurestore.format.layout import Layout
from featurestore.read.sources.object_client import NotThere, ObjectClient, ObjectFacts

ROOT = "zarr.json"
PROBE = "catalog/zarr.json"  # the same bytes in every store
N_THREADS = 3  # each holds a shard in memory
PIECE = 16 << 20
MD5 = re.compile(r'"?([0-9a-f]{32})"?')

Progress = Callable[[int], object]


@dataclass(frozen=True)
class PutShard:
    """A shard that was put before the rest of its store."""

    e_tag: str
    """Of its object, as the server told it then."""
    md5: str


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

    def check_free(self) -> None:
        """MismatchError if any object is there, but for what was put to try the server."""
        self._refuse_others([PROBE])

    def publish(
        self,
        folder: Path,
        progress: Progress = lambda n_bytes: None,
        put: Mapping[str, PutShard] | None = None,
    ) -> int:
        """Put what is not there yet; how many objects that was.

        put : all shards of patches, by key, where they are in the bucket already. Those of `folder`
            count for their lengths alone.

        MismatchError if other bytes or objects are there, StoreDamaged if one changed on its way,
        or is gone.
        """
        layout = open_layout(folder)
        first, shards, seals = stages(layout)
        keys = [*first, *shards, *seals, ROOT]
        self._refuse_others(keys)
        if put is not None:
            self._check_put(folder, put)

        n_put = 0
        for stage in (first[:1], first[1:], shards if put is None else []):
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
        if put is not None:
            self._check_put(folder, put)
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

    def _check_put(self, folder: Path, put: Mapping[str, PutShard]) -> None:
        """StoreDamaged unless all shards that were put before are there, unchanged."""
        wrong = []
        for key, shard in put.items():
            facts = self._there.get(key)
            n_bytes = os.path.getsize(folder / key)
            is_there = facts is not None and facts.size == n_bytes
            if not (is_there and _is_still(self._client, key, facts, shard)):
                wrong.append(key)
        if wrong:
            raise StoreDamaged(
                f"{self.url}: objects are gone or changed since their parts put them; remove what "
                "is left of them, and those parts' folders from the plan's `parts`, and build them "
                f"again:{list_some(wrong)}"
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
        if found and found[1] == file_md5(path):
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


def put_shard(
    client: ObjectClient,
    key: str,
    path: Path,
    md5: str,
    others: Callable[[], Collection[str]] = tuple,
) -> PutShard:
    """Create an object of a shard where there is none; what is there then.

    md5 : of the file at path. others : those of other attempts at this shard, one of which may have
        put it before.

    Raises MismatchError for any other object, StoreDamaged if the shard changed on its way.
    """
    try:
        facts = client.facts(key)
    except NotThere:
        facts = None
    e_tag = None if facts else client.create(key, path)
    if e_tag is not None:
        n_bytes = os.path.getsize(path)
        if MD5.fullmatch(e_tag) and _md5_there(client, key, n_bytes, e_tag, {md5}) != md5:
            raise StoreDamaged(
                f"{client.url}/{key}: its bytes changed on their way; remove the object and start "
                "again"
            )
        return PutShard(e_tag, md5)

    facts = facts or client.facts(key)
    known = {md5, *others()}
    there = _md5_there(client, key, facts.size, facts.e_tag, known)
    if there not in known:
        raise MismatchError(
            f"{client.url}/{key}: bytes that no attempt at this part has made; another store is "
            "published there, or was begun: choose another name, or remove what is there"
        )
    return PutShard(facts.e_tag, there)


def _is_still(client: ObjectClient, key: str, facts: ObjectFacts, shard: PutShard) -> bool:
    """Whether an object of the right length is the one that was put, or has its bytes."""
    if facts.e_tag and facts.e_tag.strip('"') == shard.e_tag.strip('"'):
        return True
    return _md5_there(client, key, facts.size, facts.e_tag, {shard.md5}) == shard.md5


def _md5_there(
    client: ObjectClient,
    key: str,
    n_bytes: int,
    e_tag: str,
    known: Collection[str],
) -> str:
    """MD5 of an object, which is read unless its ETag is one of those that are known."""
    found = MD5.fullmatch(e_tag)
    if found and found[1] in known:
        return found[1]
    digest = hashlib.md5(usedforsecurity=False)
    for start in range(0, n_bytes, PIECE):
        digest.update(client.get_range(key, start, min(start + PIECE, n_bytes)))
    return digest.hexdigest()


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
    gone = path.with_suffix(".gone")
    with locked(in_use, needed=False):
        remove(gone)
        yield path
        # under another name: half of it must not be taken for a store to go on with
        if path.exists():
            rename(path, gone)
            remove(gone)
        remove(path.with_name(path.name + ".lock"))
        remove(in_use.with_name(in_use.name + ".lock"))


def _empty_group() -> bytes:
    """The zarr.json of a group without attributes, as zarr-python writes it here."""
    import zarr

    with tempfile.TemporaryDirectory(prefix="biomass-probe-") as folder:
        zarr.create_group(folder, zarr_format=3)
        return Path(folder, ROOT).read_bytes()


def file_md5(path: Path) -> str:
    """Of a file's bytes, in hex: what most servers tell as the ETag of an object."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        at = 0
        while piece := file.read(PIECE):
            yield at, piece
            at += len(piece)
