"""Writing a store: rows are put, committed in groups, and resumed where a builder was killed.

Order of a commit: the rows' bytes, catalog cells, thumbnail and crc rows -> fdatasync -> seals ->
fdatasync. A seal is never durable before what it seals, so a reader that believes seals reads only
whole images. A new store is synced whole before it gets its name, which comes with a commit.
"""

import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.disk import durable
from featurestore.disk.interrupts import patient_keyboard
from featurestore.disk.maps import most_maps
from featurestore.disk.refusals import write_errors
from featurestore.errors import InputError, list_some
from featurestore.format.choose import create_store
from featurestore.format.layout import Layout
from featurestore.format.spec import Column, StoreSpec
from featurestore.read.open import open_reader
from featurestore.read.reader import Reader
from featurestore.read.rows import ImageRows, row_crcs
from featurestore.read.seals import as_bytes
from featurestore.read.sources.mapped import Mapped
from featurestore.write.agreement import check_labels, check_same
from featurestore.write.columns import catalog_cells, encode_column

# a group is one image or this long: a sync costs milliseconds, a lost group is computed again
COMMIT_SECONDS = 2.0
DROPPED = "dropped"  # the status of an image without tokens that is no longer asked for


class StoreWriter:
    """The one writer of a store; made by `open_writer`, which holds the lock."""

    def __init__(self, layout: Layout, store: Reader, name: Path | None = None) -> None:
        """name : of a store that is hidden until the next commit, and not synced before."""
        self._take(layout, store)
        self._name = name
        self._fds: dict[Path, int] = {}
        self._seals: dict[int, int] = {}
        self._last_commit = time.monotonic()
        self._wanted: set[str] | None = None
        # one thread writes what another computes, and a signal may unwind the other at any time
        self._lock = threading.RLock()

    def _take(self, layout: Layout, store: Reader) -> None:
        self._layout, self._store = layout, store
        # the files that a merge may have linked to its parts, which must keep their bytes
        is_zarr = layout.path.is_dir() and layout.spec.has_patches
        self._shards = frozenset(layout.extents["patches"].paths if is_zarr else ())

    @property
    def spec(self) -> StoreSpec:
        return self._layout.spec

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images of the catalog, in store order."""
        return self._store.image_ids

    def pending(self) -> list[int]:
        """Images to be put, in order: not sealed, and in the frame the writer was opened with."""
        open_N = self._unsealed()
        if self._wanted is None:
            return open_N.tolist()
        ids = self._store.image_ids
        return [image for image in open_N.tolist() if ids[image] in self._wanted]

    def _unsealed(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self._store.n_images), self._store.sealed)

    def put(self, image: int, rows: ImageRows) -> None:
        """Write one image's bytes; it is not there for readers until the commit that follows."""
        has_patches = self._layout.spec.has_patches
        arrays = {"cls": rows.cls_VTD, "pooled": rows.pooled_VT5D, "stats": rows.stats_VS}
        if self._layout.spec.thumb:
            arrays["thumbs"] = rows.thumb_HW3

        # all of it before the first byte is written
        if has_patches:
            self._check("patches", rows.patches_VTPD)
        for name, value in arrays.items():
            self._check(name, value)

        patch_crc_V = None
        if has_patches:  # a shard keeps them behind each row, too
            patch_crc_V = [durable.crc32c(row) for row in rows.patches_VTPD]
        arrays["crc32c"] = row_crcs(rows, patch_crc_V)

        with self._lock:
            if len(self._fds) >= most_maps() // 4:  # each stays open until it is synced
                self.commit()
            for name, value in arrays.items():
                self._write(name, image, value)
            if has_patches:
                extent = self._layout.extents["patches"]
                for view, row in enumerate(rows.patches_VTPD):
                    path, offset, _ = extent.locate_row(image, view)
                    parts = [row]
                    if extent.row_crc:
                        parts.append(patch_crc_V[view].to_bytes(4, "little"))
                    durable.pwrite(self._fd(path), parts, offset)
            for column in self._layout.spec.columns:
                if column.name in rows.facts:
                    cell = encode_column(column, [rows.facts[column.name]])
                    self._write_columns(image, {column.name: cell})
            # of the bytes as they now are on disk: a seal vouches for what was written
            self._seals[image] = self._store.seals.expected(image, image + 1)[0]

    def skip(self, statuses: Mapping[int, str]) -> None:
        """Note durably why unsealed images have no tokens; a later build tries them again."""
        column = self._column("status")
        with self._lock:
            for image, status in statuses.items():
                cell = encode_column(column, [status])
                # a build that changes nothing writes nothing
                stored = self._store.array(column.node)[image]
                if stored.tobytes() != cell.tobytes():
                    self._write_columns(image, {"status": cell})
            self._sync()

    def commit_if_due(self) -> None:
        if time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make all put images durable, then visible.

        An error of a sync is final: what it lost cannot be known.
        """
        with self._lock:
            # forgotten first: a failed sync must not be tried again and believed
            seals, self._seals = self._seals, {}
            if seals:
                self._sync()
                for image, seal in sorted(seals.items()):
                    self._write("seal", image, np.array([seal], "<u4"))
                # and the seals themselves: whoever is told of a commit may rely on it
                self._sync([self._layout.extents["seal"].paths[0]])
            self._close_files()
            if self._name:
                self._appear()
            self._last_commit = time.monotonic()

    def _appear(self) -> None:
        """Sync a hidden store, and give it its name."""
        # never twice: a failed sync must not be tried again and believed
        name, self._name = self._name, None
        try:
            durable.publish(self._layout.path, name)
        except BaseException:
            durable.remove(self._layout.path)
            raise
        self._store.close()
        layout = self._layout.renamed(name)
        self._take(layout, Reader(Mapped(layout)))

    def close(self) -> None:
        self._close_files()
        self._store.close()

    def add_images(self, frame: pd.DataFrame) -> None:
        """Give images that the catalog lacks the next free rows; InputError if they do not fit."""
        first = self._store.n_images
        if first + len(frame) > self._layout.n:
            raise InputError(
                f"{self._layout.path}: {len(frame)} new images, room for {self._layout.n - first}; "
                "build another store, by `biomass store build --reserve` if it shall grow"
            )
        cells = catalog_cells(self._layout.spec, frame)  # all fit, or none is written
        # an id's first byte puts its place in use: it is written last and in order, so that a place
        # in use is whole
        first_bytes = cells["image_id"][:, 0].tolist()
        cells["image_id"][:, 0] = 0
        self._write_columns(first, cells)
        self._sync()
        for image, byte in enumerate(first_bytes, first):
            path, offset, _ = self._layout.extents["catalog/image_id"].locate(image)
            durable.pwrite(self._fd(path), [bytes([byte])], offset)
        self._sync()
        self._close_files()
        self._store.refresh()

    def settle(self, frame: pd.DataFrame) -> None:
        """Make the catalog of all that is not sealed what the frame says.

        Nothing but a seal vouches for a cell.

        Images that the catalog lacks take the places of unsealed ones that the frame lacks (a
        rotten id, say), then free ones. What is left of the former is free again at the end of the
        catalog, and has the status `dropped` elsewhere.
        """
        stale = self._unsealed()
        # seals that do not match go first, before anything that they would vouch for changes
        self.unseal(stale[self._store.array("seal")[stale] != 0].tolist())

        known = self._store.catalog["image_id"]
        open_N = self._unsealed()
        is_asked_for = known.iloc[open_N].isin(frame["image_id"]).to_numpy()
        kept, strays = open_N[is_asked_for], open_N[~is_asked_for]
        is_new = ~frame["image_id"].isin(known)
        new = frame[is_new]

        by_id = frame.set_index("image_id", drop=False)
        self._rewrite(kept, by_id.loc[known.iloc[kept]])
        # strays make room first: in a store that is full there is no other
        self._rewrite(strays[: len(new)], new.iloc[: len(strays)])
        if len(new) > len(strays):
            self.add_images(new.iloc[len(strays) :])
        self._release(strays[len(new) :])
        self._wanted = set(frame["image_id"])

    def _rewrite(self, places: np.ndarray, frame: pd.DataFrame) -> None:
        """Give unsealed places in use these rows, where they differ."""
        if not len(places):
            return
        cells = catalog_cells(self._layout.spec, frame)
        cells = {name: values for name, values in cells.items() if name in frame}
        differs_N = np.zeros(len(places), bool)
        for name, values in cells.items():
            stored = as_bytes(self._store.array(self._column(name).node)[places])
            differs_N |= (stored != as_bytes(values)).any(1)
        for k in np.flatnonzero(differs_N).tolist():
            own = {name: values[k : k + 1] for name, values in cells.items()}
            self._write_columns(int(places[k]), own)
        self._sync()
        self._store.refresh()

    def _release(self, places: np.ndarray) -> None:
        """Free unsealed places at the end of the catalog; the others get the status `dropped`."""
        left = places.tolist()
        # one at a time, the last first: a crash in between leaves no hole in the catalog
        while left and left[-1] == self._store.n_images - 1:
            path, offset, n_bytes = self._layout.extents["catalog/image_id"].locate(left.pop())
            durable.pwrite(self._fd(path), [bytes(n_bytes)], offset)
            self._sync()
            self._store.refresh()
        if left:
            ids = self._store.catalog["image_id"].iloc[left].tolist()
            warnings.warn(
                f"{self._layout.path}: {len(left)} images that it has no tokens of are no longer "
                f"asked for; their status is now {DROPPED!r}:{list_some(ids)}",
                stacklevel=2,
            )
            self.skip(dict.fromkeys(left, DROPPED))

    def _column(self, name: str) -> Column:
        return next(column for column in self._layout.spec.columns if column.name == name)

    def _write_columns(self, first: int, cells: dict[str, np.ndarray]) -> None:
        """Encoded cells of some places from `first` on."""
        for name, values in cells.items():
            path, offset, _ = self._layout.extents[self._column(name).node].locate(first)
            durable.pwrite(self._fd(path), [values], offset)

    def unseal(self, images: list[int]) -> None:
        """Declare images absent, durably: they are damaged, and a build shall make them again.

        An id whose first byte was lost gets another one, since a catalog ends where an id is empty.
        """
        first_bytes = self._store.array("catalog/image_id")[:, 0]
        used = np.flatnonzero(first_bytes != 0)
        for image in images:
            self._write("seal", image, np.zeros(1, "<u4"))
            if len(used) and image < used[-1] and image not in used:
                path, offset, _ = self._layout.extents["catalog/image_id"].locate(image)
                durable.pwrite(self._fd(path), [b"?"], offset)
        self._sync()
        self._close_files()
        self._store.refresh()

    def _check(self, name: str, value: np.ndarray | None) -> None:
        """InputError unless these are all values of one image, as the array holds them."""
        array = self._layout.extents[name].array
        found = None if value is None else (value.dtype, value.shape)
        if found != (np.dtype(array.dtype), array.shape[1:]):
            raise InputError(
                f"{self._layout.path}: {name} of an image are {array.dtype} {array.shape[1:]}, "
                f"given {found}"
            )

    def _write(self, name: str, image: int, value: np.ndarray) -> None:
        path, offset, _ = self._layout.extents[name].locate(image)
        durable.pwrite(self._fd(path), [np.ascontiguousarray(value)], offset)

    def _fd(self, path: Path) -> int:
        if path not in self._fds:
            # a shard that was merged is a file of its part's as well
            if path in self._shards and os.stat(path).st_nlink > 1:
                durable.copy_whole(path, path)
                self._layout.accept(path)
                self._store.source.forget(path)
            self._fds[path] = self._layout.open_file(path, os.O_RDWR)
        return self._fds[path]

    def _sync(self, paths: Sequence[Path] | None = None) -> None:
        """Make files durable, None is all that were written; of a hidden store when it appears."""
        if self._name:
            return
        for path in self._fds if paths is None else paths:
            durable.datasync(self._fds[path])

    def _close_files(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


@contextmanager
def open_writer(
    path: Path,
    spec: StoreSpec,
    frame: pd.DataFrame,
    reserve: int = 0,
    wait: bool = False,
    lock: bool = True,
    shard_images: int | None = None,
    appears_late: bool = False,
) -> Iterator[StoreWriter]:
    """Hold the lock on a store, made if missing, its catalog holding at least the frame's images.

    MismatchError if the store at path has another fingerprint; LockedError if another builder is at
    work (unless told to wait). On leaving, also by an error, what was put is committed. In Python
    the first KeyboardInterrupt waits for the image in hand.

    shard_images : of a store that is made, see `create_store`.
    appears_late : one that is made gets its name with the first commit, and not before: all of it
        is then synced at once.
    """
    held = durable.locked(path, wait, command="biomass store build") if lock else nullcontext()
    advice = (
        "what is sealed is safe, the same command goes on from there once there is room and the "
        "disk is well"
    )
    with held, write_errors(path, advice):
        if path.exists():
            opened = _writer_of(path, spec, frame, reserve)
        else:
            opened = _writer_of_new(path, spec, frame, reserve, shard_images)
        with closing(opened) as writer:
            if not appears_late:
                writer.commit()
            with patient_keyboard("the same call goes on from here"):
                try:
                    yield writer
                finally:
                    writer.commit()


def _writer_of(path: Path, spec: StoreSpec, frame: pd.DataFrame, reserve: int) -> StoreWriter:
    """A writer of the store that is there, once it is known to be of these tokens and labels."""
    store = open_reader(path)
    try:
        if reserve and store.layout.n < max(store.n_images, len(frame)) + reserve:
            warnings.warn(
                f"{path}: has room for {store.layout.n} images, which does not change; "
                "`biomass store extend --reserve` makes a store with more",
                stacklevel=4,
            )
        check_same(store, spec)
        check_labels(store, frame)
        writer = StoreWriter(store.layout, store)
        writer.settle(frame)
    except BaseException:
        store.close()
        raise
    return writer


def _writer_of_new(
    path: Path,
    spec: StoreSpec,
    frame: pd.DataFrame,
    reserve: int,
    shard_images: int | None,
) -> StoreWriter:
    """A writer of an empty store with its catalog, which appears under its name when committed."""
    # hidden, so that it is no name that somebody gave a store
    hidden = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    durable.remove(hidden)  # of one that was killed
    try:
        layout = create_store(hidden, spec, len(frame) + reserve, shard_images)
        writer = StoreWriter(layout, Reader(Mapped(layout)), Path(os.path.abspath(path)))
        writer.add_images(frame)
    except BaseException:
        durable.remove(hidden)
        raise
    return writer


def image_bytes(spec: StoreSpec) -> int:
    """Bytes on disk of one image."""
    return sum(array.n_bytes for array in spec.arrays(1))
