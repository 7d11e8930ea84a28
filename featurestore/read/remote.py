"""RemoteStore: a store that a server offers, as if it lay here. Rows are fetched ahead, checked,
and mapped from a cache.

What the server answers is written down in docs/service.md. No row of patches is returned that does
not have the checksum of what was committed there; what `cls` and `pooled` read alone are compared
with, see `RemoteStore`.
"""

import hashlib
import json
import os
import queue
import reprlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featurestore.disk.durable import crc32c, crc32c_append
from featurestore.disk.threads import Pool, starting
from featurestore.disk.urls import default_root
from featurestore.errors import InputError, MismatchError, NoThreadError, StoreDamaged, UsageError
from featurestore.format.layout import MOST_IMAGES
from featurestore.format.spec import StoreSpec, canonical_json
from featurestore.read.cache import CACHE_BYTES, Cache
from featurestore.read.http import Http, the_only_store
from featurestore.read.rows import asked_views
from featurestore.store import UNKNOWN, FeatureStore

N_REQUESTS = 6  # in flight at once
BLOCK_BYTES = 8 << 20  # of an array that is fetched whole
OWN = ("seal", "metadata_crc32c")  # arrays that a cache has of its own, not the store's

Row = tuple[int, int]


class RemoteStore(FeatureStore):
    """A FeatureStore whose path is a URL. Arrays are fetched at their first use, rows of patches
    one by one.

    check : rows of patches, and what belongs to them, are compared with their CRC-32C in any case
        when they are read; rows of a pooled store with "first-touch".
    cache, cache_bytes : see `FeatureStore.open`.
    """

    is_remote = True

    def __init__(
        self,
        url: str,
        check: Literal["seal", "first-touch"] = "seal",
        cache: str | os.PathLike | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self._url = the_only_store(url)
        self._given = cache and str(cache), cache_bytes
        self._asked_check = check
        self._begin()

    def _begin(self) -> None:
        """Ask the server what it has, and take a cache; in a forked child, a connection and a cache
        of its own."""
        self._pid, self._lock, self._fetching = os.getpid(), threading.RLock(), threading.RLock()
        self._http = Http(self._url)
        weakref.finalize(self, self._http.close)
        spec, n = self._described()
        seal_N = self._seals(n)
        folder, most_bytes = self._given
        self._cache = Cache(
            Path(folder).expanduser() if folder else default_root(),
            self._key(spec, n),
            spec,
            n,
            CACHE_BYTES if most_bytes is None else most_bytes,
        )
        weakref.finalize(self, Cache.close, self._cache)
        super().__init__(self._cache.layout, "seal" if spec.has_patches else self._asked_check)
        self.path = self._http.url
        self._seal_N, self._kept = seal_N, set()
        self._here_NV = np.zeros((n, len(self.view_names)), bool)
        self._flying: dict[Row, Future] = {}
        self._threads = _Threads(N_REQUESTS)
        weakref.finalize(self, self._threads.stop)

    def _described(self) -> tuple[StoreSpec, int]:
        """Spec and room of the store, as the server tells them."""
        about = self._http.json()
        spec, n = about.get("spec"), about.get("n_room")
        if not isinstance(spec, dict | str) or type(n) is not int or not 1 <= n <= MOST_IMAGES:
            found = f"spec {type(spec).__name__}, n_room {reprlib.repr(n)}"
            raise InputError(
                f"{self._http.url}: the answer tells of no store ({found}); is this URL a store's, "
                "as "
                "`biomass store serve` prints it?"
            )
        self._http.check_generation(str(about.get("generation", "")))
        spec = StoreSpec.from_json(
            spec if isinstance(spec, str) else json.dumps(spec), self._http.url
        )
        self._check_same(spec)
        return spec, n

    def _check_same(self, spec: StoreSpec) -> None:
        """A forked child must find what its parent had."""
        known = self.__dict__.get("spec", spec)
        if known.to_json() != spec.to_json():
            raise MismatchError(f"{self._http.url}: the store was replaced, open it again")

    def _key(self, spec: StoreSpec, n: int) -> str:
        """What names a cache: stores of one key have the same arrays, and mostly the same rows."""
        return hashlib.sha256(canonical_json([spec.to_json(), n]).encode()).hexdigest()[:32]

    def _ready(self) -> None:
        if os.getpid() != self._pid:
            self._begin()
        if self._cache is None:
            raise UsageError(f"{self.path}: this handle was closed; open the store again")

    def close(self) -> None:
        """Let go of connections and cache; nothing can be read any more. Rows that were handed out
        stay as they are."""
        super().close()
        if self._cache is not None and os.getpid() == self._pid:
            self._threads.stop()
            with self._lock:
                self._cache.close()
                self._http.close()
                self._cache = None
        self._cache = None

    def __reduce__(self) -> tuple:
        return _reopen, (self.path, self.spec.fingerprint, self._asked_check, *self._given)

    @property
    def address(self) -> str:
        return self.path

    @property
    def folder(self) -> str:
        """A run's own folder: a server offers no backbone's weights."""
        return "."

    def where(self, image: int, view: int) -> str:
        return (
            f"{self.path}: image {image} ({self.image_ids[image]}), view {self.view_names[view]!r}"
        )

    def refresh(self) -> None:
        """Ask for the seals again, and for all else at its next use if images were sealed or
        added."""
        self._ready()
        seal_N = self._seals(self.layout.n)
        with self._lock:
            changed_N = seal_N != self._seal_N
            self._seal_N = seal_N
            self._state_N[changed_N], self._checked_NV[changed_N], self._here_NV[changed_N] = (
                UNKNOWN,
                UNKNOWN,
                False,
            )
            if changed_N.any() or not seal_N.all():
                self._kept.clear()
        super().refresh()

    @cached_property
    def n_images(self) -> int:
        """Images in the catalog, sealed or not."""
        count = FeatureStore.n_images.func
        if self._seal_N[count(self) :].any():  # whose rows of the catalog came without their ids
            self._distrust()
        return count(self)

    def check_rows(self, rows_B2: Any, patches: bool = True) -> None:
        """As in a FeatureStore, of a pooled store; rows of patches are compared when they are
        fetched."""
        if self.spec.has_patches:
            return
        try:
            super().check_rows(rows_B2, patches)
        except StoreDamaged as err:
            raise self._damaged(err) from err

    def _absent(self, image: int) -> Exception:
        err = super()._absent(image)
        return self._damaged(err) if isinstance(err, StoreDamaged) else err

    def _damaged(self, err: StoreDamaged) -> StoreDamaged:
        """What was damaged on its way is not kept."""
        self._distrust()
        return StoreDamaged(
            f"{err} (on the server's machine; if all is well there, ask again: it is fetched anew)"
        )

    def _distrust(self) -> None:
        """Have every array fetched again when it is asked for next: one is not what was
        committed."""
        with self._fetching, self._lock:
            self._kept.clear()
            self._cache.forget_arrays()
        super().refresh()

    def verify(self) -> Any:
        """UsageError: `biomass store verify` reads files where they lie."""
        from featurestore.manage.verify import verify

        return verify(self)

    # -- arrays that are fetched whole

    @property
    def raw(self) -> "_Raw":
        """The arrays as they lie on disk, fetched when one is asked for."""
        return _Raw(self)

    def array(self, name: str) -> np.ndarray:
        """An array other than patches, mapped from the cache; fetched at its first use."""
        if os.getpid() != self._pid or self._cache is None:
            self._ready()
        if name == "seal":
            return self._seal_N
        if name not in self._kept and name not in OWN:
            self._fetch_array(name)
        return self._mapped(name, 0)

    def _seals(self, n: int) -> np.ndarray:
        seal_N = self._http.bytes("/arrays/seal", 4 * n).view("<u4")
        seal_N.flags.writeable = False
        return seal_N

    def _fetch_array(self, name: str) -> None:
        with self._fetching, self._lock:
            if name in self._kept:
                return
            stamp = self._stamp(name)
            if not self._cache.has_array(name, stamp):
                self._drop_maps(self._cache.write_array(name, self._blocks(name), stamp))
            self._kept.add(name)

    def _stamp(self, name: str) -> str:
        """What an array's bytes follow from: seals vouch for their images' catalog rows, thumbnails
        and checksums of rows.

        For no image without a seal, whose catalog row may change: as long as there are such, the
        catalog is fetched each time.
        """
        growing = (
            os.urandom(8).hex() if name.startswith("catalog/") and not self._seal_N.all() else ""
        )
        return hashlib.sha256(self._seal_N.tobytes()).hexdigest() + growing

    def _blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Offset and bytes of an array's blocks, in order; some are in flight at once, and no
        more."""
        n_bytes, path = self.layout.extents[name].array.n_bytes, f"/arrays/{name}"
        spans = [(at, min(at + BLOCK_BYTES, n_bytes)) for at in range(0, n_bytes, BLOCK_BYTES)]
        if len(spans) < 2:
            yield 0, self._http.bytes(path, n_bytes)
            return
        with Pool(N_REQUESTS) as pool:
            waiting = iter(
                [
                    (span, pool.submit(self._http.bytes, path, n_bytes, span))
                    for span in spans[:N_REQUESTS]
                ]
            )
            flying, rest = deque(waiting), iter(spans[N_REQUESTS:])
            while flying:
                span, block = flying.popleft()
                yield span[0], block.result()
                flying += [
                    (span, pool.submit(self._http.bytes, path, n_bytes, span))
                    for span in islice(rest, 1)
                ]

    # -- rows of patches

    def image_patches(self, image: int, asked: tuple = ()) -> np.ndarray:
        """(V, T, P, D) float16, mapped from the cache: of it, what is asked for is there."""
        self._ready()
        views = asked_views(asked, len(self.view_names))
        if len(views) > 1:
            self._fetch([(image, view) for view in views])
        while True:
            for view in views:
                self._need(image, view)
            # no other thread's row may take the place of these before they are mapped
            with self._lock:
                if self._here_NV[image, views].all():
                    self._cache.use(self._row(image, 0))
                    return super().image_patches(image)

    def will_need(self, rows_B2: Any) -> int:
        """Begin to fetch rows that are not in the cache; how many those are. Errors come when a row
        is asked for."""
        self._ready()
        self._patches_extent()
        return self._fetch(self._sealed_rows(rows_B2))

    def _read_rows(self, rows: list[Row], out: np.ndarray) -> None:
        self._ready()
        self._fetch(rows)
        for (image, view), row_TPD in zip(rows, out, strict=True):
            np.copyto(row_TPD, self.image_patches(image, (view,))[view])

    def _fetch(self, rows: list[Row]) -> int:
        """Have the threads fetch what is not there, several at once; how many that is."""
        absent = [row for row in dict.fromkeys(rows) if not self._is_here(*row)]
        with self._lock:
            for row in absent:
                if row not in self._flying:
                    self._flying[row] = self._threads.submit(
                        weakref.WeakMethod(self._fetch_row), *row
                    )
        return len(absent)

    def _need(self, image: int, view: int) -> None:
        """Come back when a row is here: it was, a thread has just fetched it, or it is fetched
        now."""
        while not self._is_here(image, view):
            future = self._flying.get((image, view))
            if future is None or future.cancel():
                self._fetch_row(image, view)
            else:
                future.result()

    def _is_here(self, image: int, view: int) -> bool:
        """Whether a row is in the cache; compared with its checksum once by this process, whoever
        wrote it."""
        if self._here_NV[image, view]:
            return True
        with self._lock:
            if not self._cache.begun(self._row(image, view)):
                return False
            rows_VTPD = super().image_patches(image)
        if (
            self._crc_with(crc32c(rows_VTPD[view]), image, view)
            != self.array("crc32c")[image, view]
        ):
            return False
        with self._lock:
            # its file was not emptied meanwhile
            if np.may_share_memory(rows_VTPD, super().image_patches(image)):
                self._note(image, view)
        return bool(self._here_NV[image, view])

    def _fetch_row(self, image: int, view: int) -> None:
        try:
            tokens_TPD, patches_crc = self._downloaded(image, view)
            with self._lock:
                if self._cache is not None and not self._here_NV[image, view]:
                    self._drop_maps(
                        self._cache.write_row(self._row(image, view), tokens_TPD, patches_crc)
                    )
                    self._note(image, view)
        finally:
            with self._lock:
                self._flying.pop((image, view), None)

    def _downloaded(self, image: int, view: int) -> tuple[np.ndarray, int]:
        """(T, P, D) float16, checked, and its CRC-32C; a row that was spoilt on its way is asked
        for once more."""
        array = self.layout.extents["patches"].array
        for _ in range(2):
            row = self._http.bytes(f"/rows/@{image}/{view}?tokens=patches", array.row_bytes)
            tokens_TPD = row.view(array.dtype).reshape(array.row_shape)
            patches_crc = crc32c(tokens_TPD)
            if self._crc_with(patches_crc, image, view) == self.array("crc32c")[image, view]:
                return tokens_TPD, patches_crc
        where = self.where(image, view)
        # it may be cls, pooled or the checksum itself that came wrong, and is kept
        self._distrust()
        raise StoreDamaged(
            f"{where}: its bytes do not have the checksum they were committed with; run `biomass "
            "store verify` on "
            "the server's machine"
        )

    def _crc_with(self, patches_crc: int, image: int, view: int) -> int:
        """CRC-32C of a row whose patches have this one; they are not read again."""
        cls, pooled, stats = (
            np.ascontiguousarray(self.array(name)[image, view])
            for name in ("cls", "pooled", "stats")
        )
        append = crc32c_append(self.layout.extents["patches"].array.row_bytes)
        return crc32c(pooled, stats, start=append(crc32c(cls), patches_crc))

    def _note(self, image: int, view: int) -> None:
        """A row is here."""
        self._here_NV[image, view] = True
        if self._here_NV[image].all():
            self._cache.complete(image, int(self._seal_N[image]))

    def _row(self, image: int, view: int) -> int:
        return image * len(self.view_names) + view

    def _drop_maps(self, emptied: list[int]) -> None:
        """Forget the maps of files that were emptied; views of them stay valid, of the rows as they
        were."""
        extent, n_views = self.layout.extents.get("patches"), len(self.view_names)
        for file in emptied:
            first = file * extent.rows_per_file // n_views
            self._here_NV[first : first + extent.rows_in(file) // n_views] = False
            self._maps.drop(extent.paths[file])


class _Raw:
    """`store.raw` without fetching what nobody asks for."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> np.ndarray:
        if name == "patches" or name not in self._store.layout.extents:
            raise AttributeError(name)
        return self._store.array(name)

    def __dir__(self) -> list[str]:
        return [
            name for name in self._store.layout.extents if name != "patches" and "/" not in name
        ]


class _Threads:
    """Threads that fetch rows in the order asked. Daemons: what nobody waits for must not keep a
    program from ending."""

    def __init__(self, n: int) -> None:
        self._n, self._tasks, self._begun = n, queue.SimpleQueue(), False

    def submit(self, method: weakref.WeakMethod, *arguments: int) -> Future:
        """Have a method called, if its object is still there by then."""
        if not self._begun:
            self._begin()
        future: Future = Future()
        self._tasks.put((future, method, arguments))
        return future

    def _begin(self) -> None:
        """Start the threads, or as many as the system starts; NoThreadError if that is none."""
        for _ in range(self._n):
            thread = threading.Thread(
                target=_work, args=(self._tasks,), name="fetch-rows", daemon=True
            )
            try:
                with starting():
                    thread.start()
            except NoThreadError:
                if self._begun:
                    return
                raise
            self._begun = True

    def stop(self) -> None:
        """End; what was not begun is cancelled."""
        with suppress(queue.Empty):
            while (task := self._tasks.get_nowait()) is not None:
                task[0].cancel()
        for _ in range(self._n):
            self._tasks.put(None)


def _work(tasks: queue.SimpleQueue) -> None:
    while (task := tasks.get()) is not None:
        future, method, arguments = task
        call = method()
        if call is not None and future.set_running_or_notify_cancel():
            try:
                future.set_result(call(*arguments))
            except BaseException as err:  # whoever waits for the row gets it
                future.set_exception(err)
        del task, future, method, call


def _reopen(
    url: str, fingerprint: str, check: str, cache: str | None, cache_bytes: int | None
) -> RemoteStore:
    store = RemoteStore(url, check, cache, cache_bytes)
    if store.spec.fingerprint != fingerprint:
        raise MismatchError(
            f"{url}: fingerprint {store.spec.fingerprint}, the handle was made for {fingerprint}; "
            "the store was "
            "replaced, open it again"
        )
    return store
