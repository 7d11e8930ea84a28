"""A store that lies elsewhere: rows are fetched ahead, checked, and mapped from a cache.

No row of patches is handed out that does not have the checksum of what was committed. How bytes
come is left to an origin: a server's, or a bucket's.
"""

import hashlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import numpy as np

from featurestore.disk.durable import crc32c
from featurestore.disk.threads import Pool
from featurestore.disk.urls import default_root
from featurestore.errors import MismatchError, StoreDamaged, UsageError
from featurestore.format.layout import Layout
from featurestore.format.spec import StoreSpec, canonical_json
from featurestore.read.catalog import count_images, row_name
from featurestore.read.checksums import crc_with
from featurestore.read.source import Files, Row
from featurestore.read.sources.cache import CACHE_BYTES, Cache
from featurestore.read.sources.cache_folder import take_own, take_shared
from featurestore.read.sources.fetch_threads import FetchThreads
from featurestore.read.sources.mapped import Mapped
from featurestore.read.sources.origin import Origin

N_REQUESTS = 6  # in flight at once
BLOCK_BYTES = 8 << 20  # of an array that is fetched whole
OWN = ("seal", "metadata_crc32c")  # arrays that a cache has of its own, not the store's


class Fetched:
    """A Source whose path is a URL.

    Arrays are fetched at their first use, rows of patches one by one. Both are kept in a cache, and
    mapped from there.

    cache, cache_bytes : see `FeatureStore.open`.
    """

    folder = "."  # a run's own folder: elsewhere there are no backbone's weights

    def __init__(
        self,
        origin: Origin,
        cache: str | os.PathLike | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self._origin = origin
        self.manner = origin.manner
        self._given = cache and str(cache), cache_bytes
        self.layout: Layout | None = None
        self.n_begun = 0
        self._begin()

    def _begin(self) -> None:
        """Ask what is there, and take a cache.

        In a forked child, a connection of its own, and a cache if processes do not share one.
        """
        self._lock = threading.RLock()
        weakref.finalize(self, self._origin.close)
        spec, n = self._origin.begin()
        self.path = self.address = self._origin.url
        # a forked child must find what its parent had
        if self.layout is not None and self.layout.spec.to_json() != spec.to_json():
            raise MismatchError(f"{self.path}: the store was replaced, open it again")
        seal_N = self._origin.seals(n)

        folder, most_bytes = self._given
        # what may still change is cached by each process for itself, as it found it
        key, take = cache_key(spec, n), take_own
        if not self._origin.grows:
            # seals vouch for the rest: processes that share a folder read the same bytes
            key, take = cache_key(spec, n, seal_N), take_shared
        self._cache = Cache(
            Path(folder).expanduser() if folder else default_root(),
            key,
            spec,
            n,
            CACHE_BYTES if most_bytes is None else most_bytes,
            take,
        )
        weakref.finalize(self, Cache.close, self._cache)
        self.layout = self._cache.layout
        self.checks_rows = spec.has_patches
        self._patches = self.layout.extents.get("patches")
        self._cached = Mapped(self.layout)

        self._seal_N = seal_N
        self._kept: set[str] = set()  # arrays that the cache holds as they are now
        self._here_NV = np.zeros((n, len(spec.tokens.views)), bool)
        self._flying: dict[Row, Future] = {}
        self._has_rotten_ids = False
        self._threads = FetchThreads(N_REQUESTS)
        weakref.finalize(self, self._threads.stop)
        self.n_begun += 1
        # last: a child that could not begin must not go on with its parent's cache
        self._pid = os.getpid()

    def _ready(self) -> None:
        if os.getpid() != self._pid:
            self._begin()
        if self._cache is None:
            raise UsageError(f"{self.path}: this handle was closed; open the store again")

    def close(self) -> None:
        """Let go of connections and cache; nothing can be read any more.

        Rows that were handed out stay as they are.
        """
        self._cached.close()
        # a forked child that closes what it never used leaves its parent's threads and cache alone
        if self._cache is not None and os.getpid() == self._pid:
            self._threads.stop()
            with self._lock:
                self._cache.close()
                self._origin.close()
                self._cache = None
        self._cache = None

    def __reduce__(self) -> tuple:
        return Fetched, (self._origin, *self._given)

    def place(self, image: int, view: int) -> str:
        return self.path

    def refresh(self) -> None:
        """Ask for the seals again, and at its next use for all else if images changed.

        They changed if some were sealed or added.
        """
        self._ready()
        self._origin.check_same()
        seal_N = self._origin.seals(self.layout.n)
        with self._lock:
            changed_N = seal_N != self._seal_N
            self._seal_N = seal_N
            self._here_NV[changed_N] = False
            if changed_N.any() or not seal_N.all():
                self._kept.clear()

    def distrust(self) -> str:
        with self._lock:
            self._kept.clear()
            self._cache.forget_arrays(self.layout.extents)
        return f" ({self._origin.where}if all is well there, ask again: it is fetched anew)"

    def files(self) -> Files:
        self._ready()
        return self._origin.files()

    # -- arrays that are fetched whole

    def array(self, name: str) -> np.ndarray:
        """An array other than patches, mapped from the cache; fetched at its first use."""
        if os.getpid() != self._pid or self._cache is None:
            self._ready()
        if name == "seal":
            return self._seal_N
        if name not in self._kept and name not in OWN:
            self._fetch_array(name)
            if name == "catalog/image_id":
                self._check_ids()
        return self._cached.array(name)

    def _check_ids(self) -> None:
        """Have all arrays fetched anew, once, where images with a seal came without an id.

        If they still do, the ids are not kept: they are fetched at each use until they are right.
        """
        name = "catalog/image_id"
        if self._lacks_ids() and not self._has_rotten_ids:
            self.distrust()
            self._fetch_array(name)
        self._has_rotten_ids = self._lacks_ids()
        if self._has_rotten_ids:
            with self._lock:
                self._kept.discard(name)
                self._cache.forget_arrays([name])

    def _lacks_ids(self) -> bool:
        """Whether images have a seal, but came without an id.

        Their rows of the catalog were damaged on their way.
        """
        n = count_images(self._cached.array("catalog/image_id"))
        return bool(self._seal_N[n:].any())

    def _fetch_array(self, name: str) -> None:
        with self._lock:
            if name in self._kept:
                return
            stamp = self._stamp(name)
            with self._cache.fetching_array(name):
                if not self._cache.has_array(name, stamp):
                    blocks = self._blocks(name)
                    self._drop_maps(self._cache.write_array(name, blocks, stamp))
            self._kept.add(name)

    def _stamp(self, name: str) -> str:
        """What an array's bytes follow from.

        Seals vouch for their images' catalog rows, thumbnails and checksums of rows.

        For no image without a seal, whose catalog row may change: as long as there are such, the
        catalog is fetched each time.
        """
        stamp = hashlib.sha256(self._seal_N.tobytes()).hexdigest()
        may_change = self._origin.grows and not self._seal_N.all()
        if name.startswith("catalog/") and may_change:
            stamp += os.urandom(8).hex()
        return stamp

    def _blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Offset and bytes of an array's blocks, in order.

        Some are in flight at once, and no more.
        """
        array = self.layout.extents[name].array
        n_bytes = array.n_bytes
        spans = [(at, min(at + BLOCK_BYTES, n_bytes)) for at in range(0, n_bytes, BLOCK_BYTES)]
        if len(spans) < 2:
            yield 0, self._origin.array(array, (0, n_bytes))
            self._origin.check_same()
            return

        with Pool(N_REQUESTS) as pool:

            def begin(span: tuple[int, int]) -> tuple[int, Future]:
                return span[0], pool.submit(self._origin.array, array, span)

            flying = deque(map(begin, spans[:N_REQUESTS]))
            rest = iter(spans[N_REQUESTS:])
            while flying:
                offset, block = flying.popleft()
                yield offset, block.result()
                # one begins as one is taken: memory holds a few blocks, however long the array
                flying.extend(map(begin, islice(rest, 1)))
        self._origin.check_same()  # before it counts as kept

    # -- rows of patches

    def patches(self, image: int, views: Sequence[int]) -> np.ndarray:
        """(V, T, P, D) float16, mapped from the cache: of it, these views are there."""
        self._ready()
        views = list(views)
        # by the threads, several at once; a single view is fetched by whoever waits for it
        if len(views) > 1:
            self._fetch([(image, view) for view in views])
        while True:
            for view in views:
                self._need(image, view)
            # no other thread's row may take the place of these before they are mapped
            with self._lock:
                self._drop_maps(self._cache.replaced(image))
                if self._here_NV[image, views].all():
                    self._cache.use(image)
                    return self._cached.patches(image, views)

    def patches_crc(self, image: int, view: int) -> int:
        return crc32c(self.patches(image, (view,))[view])

    def will_need(self, rows: Sequence[Row]) -> int:
        """Begin to fetch rows that are not in the cache; how many those are.

        Errors come when a row is read.
        """
        self._ready()
        return self._fetch(rows)

    def read_into(self, rows: Sequence[Row], out: np.ndarray) -> None:
        self._ready()
        self._fetch(rows)
        for (image, view), row_TPD in zip(rows, out, strict=True):
            np.copyto(row_TPD, self.patches(image, (view,))[view])

    def _fetch(self, rows: Sequence[Row]) -> int:
        """Have the threads fetch what is not there, several at once; how many that is."""
        absent = [row for row in dict.fromkeys(rows) if not self._is_here(*row)]
        with self._lock:
            for row in absent:
                if row not in self._flying:
                    # weak: a row that nobody waits for must not keep its store open
                    fetch = weakref.WeakMethod(self._fetch_row)
                    self._flying[row] = self._threads.submit(fetch, *row)
        return len(absent)

    def _need(self, image: int, view: int) -> None:
        """Come back when a row is here.

        It was, a thread has just fetched it, or it is fetched now.
        """
        while not self._is_here(image, view):
            future = self._flying.get((image, view))
            # what no thread has begun is fetched here, ahead of what was asked for before it
            if future is None or future.cancel():
                self._fetch_row(image, view)
            else:
                future.result()

    def _is_here(self, image: int, view: int) -> bool:
        """Whether a row is in the cache.

        This process compares it with its checksum once, whoever wrote it.
        """
        if self._here_NV[image, view]:
            return True
        with self._lock:
            self._drop_maps(self._cache.replaced(image))
            if not self._cache.begun(image, view):
                return False
            rows_VTPD = self._cached.patches(image, (view,))
        if not self._is_committed(crc32c(rows_VTPD[view]), image, view):
            return False
        with self._lock:
            # its file was not emptied meanwhile
            if np.may_share_memory(rows_VTPD, self._cached.patches(image, (view,))):
                self._note(image, view)
        return bool(self._here_NV[image, view])

    def _fetch_row(self, image: int, view: int) -> None:
        try:
            with self._cache.fetching_row(image, view):
                if self._is_here(image, view):  # by another process, just now
                    return
                tokens_TPD, patches_crc = self._downloaded(image, view)
                with self._lock:
                    if self._cache is not None and not self._here_NV[image, view]:
                        emptied = self._cache.write_row(image, view, tokens_TPD, patches_crc)
                        self._drop_maps(emptied)
                        self._note(image, view)
        finally:
            with self._lock:
                self._flying.pop((image, view), None)

    def _downloaded(self, image: int, view: int) -> tuple[np.ndarray, int]:
        """(T, P, D) float16, checked, and its CRC-32C.

        A row that was spoilt on its way is fetched once more.
        """
        array = self._patches.array
        for _ in range(2):
            row = self._origin.row(image, view, array)
            tokens_TPD = row.view(array.dtype).reshape(array.row_shape)
            patches_crc = crc32c(tokens_TPD)
            if self._is_committed(patches_crc, image, view):
                return tokens_TPD, patches_crc

        # of a store that was replaced meanwhile the bytes are others, and nothing is damaged
        self._origin.check_same()
        name = row_name(self, image, view)
        # it may be cls, pooled or the checksum itself that came wrong, and is kept
        self.distrust()
        raise StoreDamaged(
            f"{name}: its bytes do not have the checksum they were committed with "
            f"({self._origin.where}`biomass store verify` finds all such rows)"
        )

    def _is_committed(self, patches_crc: int, image: int, view: int) -> bool:
        """Whether a row whose patches have this CRC-32C is what was committed."""
        return crc_with(self, patches_crc, image, view) == self.array("crc32c")[image, view]

    def _note(self, image: int, view: int) -> None:
        """A row is here."""
        self._here_NV[image, view] = True
        if self._here_NV[image].all():
            self._cache.complete(image, int(self._seal_N[image]))

    def _drop_maps(self, emptied: list[int]) -> None:
        """Forget the maps of files that were emptied.

        Views of them stay valid, of the rows as they were.
        """
        for file in emptied:
            self._here_NV[self._patches.images_in(file)] = False
            self._cached.forget(self._patches.paths[file])


def cache_key(spec: StoreSpec, n: int, seal_N: np.ndarray | None = None) -> str:
    """What names a cache: stores of one key have the same arrays, and mostly the same rows.

    seal_N : of a store that does not change, whose rows are then all the same.
    """
    told = [spec.to_json(), n]
    if seal_N is not None:
        told.append(crc32c(seal_N))
    text = canonical_json(told)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
