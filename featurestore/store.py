"""FeatureStore: open a store of either format, map it, hand out rows without copying. Reading only.

A row is returned only when its image is sealed and the seal matches; what was never committed is
never seen.
"""

import json
import mmap
import os
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pandas as pd

from featurestore.disk.durable import crc32c, crc32c_append, crc32c_rows, page_aligned, pread_into
from featurestore.disk.maps import Maps
from featurestore.disk.threads import Pool
from featurestore.disk.urls import is_url
from featurestore.disk.usable import usable_cpus
from featurestore.errors import InputError, MismatchError, StoreDamaged
from featurestore.format.choose import open_layout
from featurestore.format.layout import Extent, Layout
from featurestore.format.spec import OWN_COLUMNS, STATS, StoreSpec
from featurestore.read.rows import ImageRows, ImageTokens, RowArray, bounded, pairs_of

TAKE_THREADS = min(4, usable_cpus())
# of more than a device's read-ahead or largest request the kernel silently reads the beginning
# alone
ADVISE_BYTES = 128 << 10
CHECK_AHEAD_BYTES = 512 << 20  # asked for at a time of rows that are compared with their checksums
# files that one store keeps open to read them by; of more, each is opened for each read
MOST_OPEN = 64
SEAL_BLOCK = 4096  # images whose catalog rows are copied at once to check their seals
# difflib takes some 10 us a name: of more, only those that begin like the one that is not there are
# compared
MANY_NAMES = 5000
UNKNOWN, SEALED = 0, 1  # what this process has checked of an image
VECTORS, WHOLE = 1, 2  # and of a row: its bytes but for the patch tokens, all of them


class FeatureStore:
    """A store open for reading; cheap to open, safe to fork, pickled as its path and fingerprint.

    check : "seal" trusts sealed bytes (rot is found by `verify`); "first-touch" also compares each
        row's CRC-32C once.
    """

    is_remote = False
    """Whether rows come from a server, see featurestore.read.remote."""

    def __init__(self, layout: Layout, check: Literal["seal", "first-touch"] = "seal") -> None:
        self.layout, self.check = layout, check
        self.path, self.spec = layout.path, layout.spec
        self._maps = Maps(layout.open_file)
        self._fds: dict[Path, int] = {}
        self._state_N = np.zeros(layout.n, np.uint8)
        self._checked_NV = np.zeros((layout.n, len(self.view_names)), np.uint8)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        check: Literal["seal", "first-touch"] = "seal",
        *,
        cache: str | os.PathLike | None = None,
        cache_bytes: int | None = None,
    ) -> "FeatureStore":
        """Open the store at path, HDF5 file or Zarr folder; or one that a server offers,
        http://host:port/v1/stores/name.

        cache, cache_bytes : of a URL, the folder in which fetched rows are kept ($BIOMASS_CACHE or
            ~/.cache/biomass), and how much of it they may take (20 GB).

        InputError if it is something else; StoreDamaged if a file is missing, cut or not as its
        spec says.
        """
        if is_url(path):
            from featurestore.read.remote import RemoteStore

            return RemoteStore(path, check, cache, cache_bytes)
        return cls(open_layout(Path(path)), check)

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close file descriptors. Maps live as long as any view of them does."""
        while self._fds:
            os.close(self._fds.popitem()[1])
        self._maps.clear()

    def __reduce__(self) -> tuple:
        return _reopen, (str(self.path), self.check, self.spec.fingerprint)

    # -- what is in it

    @property
    def address(self) -> str:
        """What opens it again, from any folder."""
        return str(self.path.absolute())

    @property
    def folder(self) -> str:
        """Where its backbone's weights are kept."""
        return str(self.path.absolute().parent)

    @cached_property
    def n_images(self) -> int:
        """Images in the catalog, sealed or not; reserved rows are not counted."""
        used = self.array("catalog/image_id")[:, 0] != 0
        # up to the first gap: what follows was never finished
        return len(used) if used.all() else int(np.argmin(used))

    @cached_property
    def view_names(self) -> tuple[str, ...]:
        return self.spec.tokens.view_names

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays, places without tokens included."""
        return sum(extent.array.n_bytes for extent in self.layout.extents.values())

    @property
    def n_sealed(self) -> int:
        """Images with a seal; whether it matches is checked when an image is read."""
        return int(np.count_nonzero(self.array("seal")[: self.n_images]))

    @cached_property
    def catalog(self) -> pd.DataFrame:
        """One row an image, in store order: image_id, path, sha256, width, height, status, and the
        CSV's columns."""
        return self.catalog_rows(np.s_[: self.n_images])

    def catalog_rows(self, images: slice | np.ndarray) -> pd.DataFrame:
        """The catalog of some images alone, by position: of a million images all of it takes
        seconds."""
        return catalog_frame(
            self.spec, [self.array(column.node)[images] for column in self.spec.columns]
        )

    @cached_property
    def image_ids(self) -> list[str]:
        """Ids of all images of the catalog, in store order."""
        return _decode(self.array("catalog/image_id")[: self.n_images])

    @cached_property
    def _position(self) -> dict[str, int]:
        return dict(zip(self.image_ids, range(self.n_images), strict=True))

    def refresh(self) -> None:
        """Forget what was read of the catalog and seals: a builder has added images, committed
        some, or taken seals back."""
        open_N = self.array("seal")[:] == 0
        self._state_N[open_N], self._checked_NV[open_N] = UNKNOWN, UNKNOWN
        for name in ("n_images", "catalog", "image_ids", "_position"):
            self.__dict__.pop(name, None)

    def index(self, image: int | str) -> int:
        """Position of an image given by id or position; InputError with close names, or IndexError,
        if it is not there.

        UsageError for what is neither, a mask or a float say.
        """
        if isinstance(image, str):
            if image not in self._position:
                raise InputError(
                    f"{self.path}: no image {image!r}; {_suggest(image, self.image_ids)}"
                )
            return self._position[image]
        return bounded(image, self.n_images, "image")

    def view_index(self, view: int | str) -> int:
        """Position of a view given by name or position."""
        if isinstance(view, str):
            if view not in self.view_names:
                raise InputError(
                    f"{self.path}: no view {view!r}; it has {', '.join(self.view_names)}"
                )
            return self.view_names.index(view)
        return bounded(view, len(self.view_names), "view")

    # -- seals

    def is_sealed(self, image: int) -> bool:
        """Whether the image is committed: its seal is there and matches its catalog row, thumbnail
        and crc row."""
        if self._state_N[image] == UNKNOWN:
            self._check_seals(image, image + 1)
        # a repair may have taken it back
        return bool(self._state_N[image] != UNKNOWN and self.array("seal")[image])

    @property
    def sealed(self) -> np.ndarray:
        """Positions of all committed images; each seal is checked once."""
        unknown = np.flatnonzero(
            (self._state_N[: self.n_images] == UNKNOWN) & (self.array("seal")[: self.n_images] != 0)
        )
        first, end = (unknown[0], unknown[-1] + 1) if len(unknown) else (0, 0)
        for start in range(first, end, SEAL_BLOCK):
            self._check_seals(start, min(start + SEAL_BLOCK, end))
        return np.flatnonzero(
            (self._state_N[: self.n_images] != UNKNOWN) & (self.array("seal")[: self.n_images] != 0)
        )

    @property
    def skipped(self) -> list[int]:
        """Positions of images without tokens that a build was told to go without; their status says
        why."""
        open_N = np.flatnonzero(np.bincount(self.sealed, minlength=self.n_images) == 0)
        status = _decode(self.array("catalog/status")[open_N])
        return [int(i) for i, text in zip(open_N, status, strict=True) if text not in ("", "ok")]

    def _check_seals(self, start: int, end: int) -> None:
        """Note which images of a span have a seal that matches.

        What was never written is not touched: a hole of a file in a tmpfs that is full cannot be
        mapped (SIGBUS).
        """
        # compared first: flatnonzero of the map itself fails when a builder seals an image between
        # its two passes
        with_seal = start + np.flatnonzero(self.array("seal")[start:end] != 0)
        if not len(with_seal):
            return
        start, end = with_seal[0], with_seal[-1] + 1
        seal_N = self.array("seal")[start:end]
        matches = (seal_N != 0) & (seal_N == self.expected_seals(start, end))
        self._state_N[start:end] = np.maximum(self._state_N[start:end], matches)

    def expected_seals(self, start: int, end: int) -> np.ndarray:
        """(n,) uint32: what the seals of a span must be (docs/format.md, section 5)."""
        cells = [self.array(column.node)[start:end] for column in self.spec.columns]
        thumbs = self.array("thumbs")[start:end] if self.spec.thumb else None
        return seals(self.spec, start, cells, thumbs, self.array("crc32c")[start:end])

    def require(self, image: int, views: Sequence[int] | None = None) -> None:
        """Raise unless the image is sealed and, with check="first-touch", its rows are what was
        committed.

        views : those that are about to be read; None is all of them.
        """
        if not self.is_sealed(image):
            raise self._absent(image)
        if self.check == "first-touch":
            views = range(len(self.view_names)) if views is None else views
            self.check_rows([(image, view) for view in views])

    def check_rows(self, rows_B2: Any, patches: bool = True) -> None:
        """StoreDamaged unless rows of sealed images are what was committed; each is compared with
        its CRC-32C once.

        patches : False where class tokens and pooled vectors alone are about to be read. Zarr keeps
            the patch tokens' own CRC-32C beside them, which then stands for them; in HDF5 they are
            read, since the row has one checksum for all.
        """
        rows_B2 = pairs_of(rows_B2)
        level = WHOLE if patches or not self._has_patch_crc else VECTORS
        unchecked = rows_B2[self._checked_NV[rows_B2[:, 0], rows_B2[:, 1]] < level]
        rows = list(dict.fromkeys(map(tuple, unchecked.tolist())))
        n_ahead = 0
        if level == WHOLE and self.spec.has_patches:
            n_ahead = max(1, CHECK_AHEAD_BYTES // self.layout.extents["patches"].array.row_bytes)
            self._ask_for(rows[:n_ahead])
        for position, (image, view) in enumerate(rows):
            if n_ahead:
                self._ask_for(rows[position + n_ahead : position + n_ahead + 1])
            committed = self.array("crc32c")[image, view]
            is_right = level == VECTORS and self._vectors_crc(image, view) == committed
            # of VECTORS it may be the patches' own sum that rotted
            if not is_right and self.row_crc(image, view) != committed:
                raise StoreDamaged(
                    f"{self.where(image, view)}: its bytes changed since they were committed; "
                    f"`biomass store verify {self.path}` lists all such rows"
                )
            self._checked_NV[image, view] = level

    def require_all(self) -> None:
        """Raise unless every image of the catalog is sealed."""
        open_N = np.flatnonzero(np.bincount(self.sealed, minlength=self.n_images) == 0)
        for image in open_N if self.check == "seal" else range(self.n_images):
            self.require(int(image))

    def _absent(self, image: int) -> Exception:
        image_id, status = (
            _decode(self.array(f"catalog/{name}")[[image]])[0] for name in ("image_id", "status")
        )
        if status not in ("", "ok"):
            return InputError(
                f"{self.path}: image {image} ({image_id}) was skipped, its photograph was "
                f"{status}; "
                "build again once it is there, or read the others (store.sealed lists them)"
            )
        if self.array("seal")[image]:
            return StoreDamaged(
                f"{self.path}: the seal of image {image} ({image_id}) does not match its catalog "
                "row, "
                "thumbnail and checksums; build again"
            )
        return InputError(
            f"{self.path}: image {image} ({image_id}) is not built yet ({self.n_sealed} of "
            f"{self.n_images} are); run `biomass store build` to its end"
        )

    def row_crc(self, image: int, view: int) -> int:
        """CRC-32C of a row's bytes as they are now."""
        names = (
            ["cls", "patches", "pooled", "stats"]
            if self.spec.has_patches
            else ["cls", "pooled", "stats"]
        )
        return crc32c(*(np.ascontiguousarray(self.row(name, image, view)) for name in names))

    @property
    def _has_patch_crc(self) -> bool:
        return self.spec.has_patches and self.layout.extents["patches"].row_crc

    def _vectors_crc(self, image: int, view: int) -> int:
        """The same as `row_crc`, of the patches only the checksum that follows them being read."""
        path, offset, n_bytes = self.layout.extents["patches"].locate(
            image * len(self.view_names) + view
        )
        patches_crc = int.from_bytes(
            self._maps.get(path).map[offset + n_bytes : offset + n_bytes + 4], "little"
        )
        cls, pooled, stats = (
            np.ascontiguousarray(self.row(name, image, view)) for name in ("cls", "pooled", "stats")
        )
        return crc32c(pooled, stats, start=crc32c_append(n_bytes)(crc32c(cls), patches_crc))

    def row_crcs(self, image: int) -> np.ndarray:
        """(V,) uint32: CRC-32C of an image's rows as they were committed."""
        return self.array("crc32c")[image]

    def where(self, image: int, view: int) -> str:
        """A row's name, file and offset, for messages."""
        name = "patches" if self.spec.has_patches else "cls"
        row = image * len(self.view_names) + view if name == "patches" else image
        path, offset, _ = self.layout.extents[name].locate(row)
        return (
            f"{path} at byte {offset}: image {image} "
            f"({_decode(self.array('catalog/image_id')[[image]])[0]}), "
            f"view {self.view_names[view]!r}"
        )

    # -- arrays and rows

    @property
    def raw(self) -> SimpleNamespace:
        """The arrays as they lie on disk, mapped, sealed or not: `store.raw.cls`, `.pooled`,
        `.stats`, `.seal` ..."""
        return SimpleNamespace(
            **{
                name: self.array(name)
                for name in self.layout.extents
                if name != "patches" and "/" not in name
            }
        )

    @property
    def patches(self) -> RowArray:
        """(N, V, T, P, D) float16 by image and view, see RowArray. InputError in a pooled store."""
        self._patches_extent()
        return RowArray(self)

    @property
    def cls(self) -> np.ndarray:
        """(N, V, T, D) float16, mapped, read-only; InputError unless every image is sealed."""
        return self._whole("cls")

    @property
    def pooled(self) -> np.ndarray:
        """(N, V, T, 5, D) float32: mean, std, max, min and signed GeM(3) over patches; every image
        sealed."""
        return self._whole("pooled")

    @property
    def thumbs(self) -> np.ndarray | None:
        """(N, h, w, 3) uint8, the photographs made small; None in a store without."""
        return self._whole("thumbs") if self.spec.thumb else None

    def _whole(self, name: str) -> np.ndarray:
        self.require_all()
        return self.array(name)[: self.n_images]

    def array(self, name: str) -> np.ndarray:
        """A single-file array, mapped read-only, as it lies on disk."""
        return self._mapped(name, 0)

    def rows(self, image: int) -> ImageRows:
        """All of a sealed image, as it would be put into another store; nothing is copied."""
        self.require(image)
        patches = self.image_patches(image) if self.spec.has_patches else None
        # of this moment: the catalog at hand may be from before it was sealed
        cells = self.catalog_rows(np.s_[image : image + 1])
        facts = {name: cells[name][0] for name in OWN_COLUMNS[2:]}
        return ImageRows(
            self.array("cls")[image],
            patches,
            self.array("pooled")[image],
            self.array("stats")[image],
            self.array("thumbs")[image] if self.spec.thumb else None,
            facts,
        )

    def row(self, name: str, image: int, view: int) -> np.ndarray:
        if name == "patches":
            return self.image_patches(image, (view,))[view]
        return self.array(name)[image, view]

    def image_patches(self, image: int, asked: tuple = ()) -> np.ndarray:
        """(V, T, P, D) float16, mapped: a file holds whole images. Sealed or not: `patches` is what
        asks.

        asked : what this array will be indexed by; only what a store has to fetch for that must be
            there.
        """
        extent, n_views = self.layout.extents["patches"], len(self.view_names)
        file, within = divmod(image * n_views, extent.rows_per_file)
        return self._mapped("patches", file)[within : within + n_views]

    def _mapped(self, name: str, file: int) -> np.ndarray:
        """(rows in the file, *row shape), a strided view of the file's map."""
        extent = self.layout.extents[name]
        mapped = self._maps.get(extent.paths[file])
        if (name, file) not in mapped.arrays:
            mapped.arrays[name, file] = _array_of(extent, file, mapped.map)
        return mapped.arrays[name, file]

    def take(self, rows_B2: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Gather patch tokens of (image, view) pairs into one buffer, several rows being read at
        once.

        Parameters
        ----------
        rows_B2 : (B, 2) integers, image and view positions. UsageError for anything else: a mask or
            a flat list of positions would name other rows than it seems to.
        out : (B, T, P, D) float16, C-contiguous, filled and returned; made page-aligned if not
            given. (numpy's own large buffers begin 16 bytes into a page, where some CPUs' kernel
            copies are four times slower: measured on Zen 3.)
        """
        extent = self._patches_extent()
        rows = self._sealed_rows(rows_B2)
        shape = (len(rows), *extent.array.row_shape)
        out = page_aligned(shape, extent.array.dtype) if out is None else out
        if out.shape != shape or out.dtype != extent.array.dtype or not out.flags.c_contiguous:
            raise InputError(
                f"take: out is {out.dtype} {out.shape}, needs C-contiguous {extent.array.dtype} "
                f"{shape}"
            )
        if self.check == "first-touch":
            self.check_rows(rows)
        self._read_rows(rows, out)
        return out

    def _read_rows(self, rows: list[tuple[int, int]], out: np.ndarray) -> None:
        def read(row: tuple[int, int], into: np.ndarray) -> None:
            with self._placed(*row) as (fd, offset):
                pread_into(fd, into, offset)

        # pread frees the GIL, and a cold disk wants several requests
        with Pool(TAKE_THREADS) as pool:
            list(pool.map(read, rows, out))

    def will_need(self, rows_B2: Any) -> int:
        """Have the kernel read rows of patch tokens into the page cache; how many of them were not
        there.

        Back when they are asked for, not when they are there. For rows that will be touched where
        they are mapped; call it some rows ahead and from another thread: a cold row of 9.2 MB takes
        3 ms, a warm one 8 us. rows_B2 and errors as in `take`.
        """
        self._patches_extent()
        return self._ask_for(self._sealed_rows(rows_B2))

    def _ask_for(self, rows: list[tuple[int, int]]) -> int:
        n_bytes, n_cold = self.layout.extents["patches"].array.row_bytes, 0
        for row in rows:
            with self._placed(*row) as (fd, offset):
                if is_cached(fd, offset, n_bytes):
                    continue
                n_cold += 1
                for at in range(0, n_bytes, ADVISE_BYTES):
                    os.posix_fadvise(
                        fd, offset + at, min(ADVISE_BYTES, n_bytes - at), os.POSIX_FADV_WILLNEED
                    )
        return n_cold

    def _patches_extent(self) -> Extent:
        if not self.spec.has_patches:
            raise InputError(
                f"{self.path}: a pooled store, it holds no patch tokens; build one with them"
            )
        return self.layout.extents["patches"]

    def _sealed_rows(self, rows_B2: Any) -> list[tuple[int, int]]:
        """Pairs of an image, which is sealed, and a view, by position."""
        rows = [(self.index(i), self.view_index(v)) for i, v in pairs_of(rows_B2).tolist()]
        for image, _ in rows:
            self.require(image, ())
        return rows

    @contextmanager
    def _placed(self, image: int, view: int) -> Iterator[tuple[int, int]]:
        """File descriptor and offset of a row of patches."""
        path, offset, _ = self.layout.extents["patches"].locate(image * len(self.view_names) + view)
        with self.opened(path) as fd:
            yield fd, offset

    @contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        """The descriptor to read one of the store's files by. A store of few files keeps them open
        until `close`."""
        if len(self.layout.sizes) > MOST_OPEN:
            fd = self.layout.open_file(path)
            try:
                yield fd
            finally:
                os.close(fd)
            return
        if path not in self._fds:
            fd = self.layout.open_file(path)
            if self._fds.setdefault(path, fd) != fd:  # a thread that reads ahead was faster
                os.close(fd)
        yield self._fds[path]

    # -- people

    def __getitem__(self, image: int | str) -> ImageTokens:
        return ImageTokens(self, self.index(image))

    def __len__(self) -> int:
        return self.n_images

    def __contains__(self, image_id: object) -> bool:
        """Whether the catalog has an image of this id, sealed or not."""
        return image_id in self._position

    def __repr__(self) -> str:
        from featurestore.explore.pictures import store_text

        return store_text(self)

    def _repr_html_(self) -> str:
        from featurestore.explore.pictures import store_html

        return store_html(self)

    def _ipython_key_completions_(self) -> list[str]:
        return self.image_ids

    def nearest(self, image: int | str, k: int = 5, view: int | str = 0) -> pd.DataFrame:
        """The k sealed images most like this one by their class tokens; see
        featurestore.explore.pictures."""
        from featurestore.explore.pictures import nearest

        return nearest(self, image, k, view)

    def pca(self, image: int | str, view: int | str = 0, scale: int = 1) -> np.ndarray:
        """(H, W, 3) uint8: the photograph's patch tokens as colours, a patch a pixel; see
        featurestore.explore.pictures."""
        from featurestore.explore.pictures import pca

        return pca(self, image, view, scale)

    def to_xarray(self) -> Any:
        """The sealed images as an xarray.Dataset whose arrays are read when they are asked for; see
        featurestore.explore.pictures."""
        from featurestore.explore.pictures import to_xarray

        return to_xarray(self)

    def to_json(self) -> str:
        """Spec, fingerprint and counts, for machines."""
        counts = {
            "path": str(self.path),
            "n_images": self.n_images,
            "n_sealed": self.n_sealed,
            "n_room": self.layout.n,
        }
        return json.dumps(counts | json.loads(self.spec.to_json()), indent=1, ensure_ascii=False)

    def stats(self) -> pd.DataFrame:
        """Per view and token kind: count, mean, std, min, max, mean norm, non-finite values, of all
        sealed images.

        Merged from the stored rows' moments (Chan et al. 1979, parallel variance), so no token is
        read.
        """
        kinds, sealed = ("cls", "patch") if self.spec.has_patches else ("cls",), self.sealed
        return pd.DataFrame(
            [
                {"view": name, "tokens": kind, **_merge(self.array("stats")[sealed, v], kind)}
                for v, name in enumerate(self.view_names)
                for kind in kinds
            ]
        )

    def verify(self) -> Any:
        """Read every byte once and report every bad row; see featurestore.manage.verify."""
        from featurestore.manage.verify import verify

        return verify(self)


def _array_of(extent: Extent, file: int, mapped: mmap.mmap) -> np.ndarray:
    shape = (extent.rows_in(file), *extent.array.row_shape)
    dtype = np.dtype(extent.array.dtype)
    inner = (
        np.cumprod([dtype.itemsize, *extent.array.row_shape[:0:-1]])[::-1]
        if extent.array.row_shape
        else []
    )
    strides = (extent.stride, *(int(s) for s in inner))
    return np.ndarray(shape, dtype, mapped, extent.offset, strides)


def seals(
    spec: StoreSpec,
    start: int,
    cells: list[np.ndarray],
    thumbs_NHW3: np.ndarray | None,
    crc_NV: np.ndarray,
) -> np.ndarray:
    """(n,) uint32: the seals of n images from position `start` on; cells are their catalog columns,
    in order, as stored."""
    n = len(crc_NV)
    print_NF = np.broadcast_to(np.frombuffer(spec.fingerprint.encode(), np.uint8), (n, 64))
    number_N8 = np.arange(start, start + n, dtype="<u8").view(np.uint8).reshape(n, 8)
    thumbs = [] if thumbs_NHW3 is None else [thumbs_NHW3]
    crc_N = crc32c_rows(
        np.concatenate([print_NF, number_N8, *map(as_bytes, cells)], 1), *thumbs, crc_NV
    )
    crc_N[crc_N == 0] = 1
    return crc_N


def catalog_frame(spec: StoreSpec, cells: list[np.ndarray]) -> pd.DataFrame:
    """One row an image, from the catalog's columns as stored."""
    return pd.DataFrame(
        {
            column.name: _decode(values) if column.kind == "text" else np.array(values)
            for column, values in zip(spec.columns, cells, strict=True)
        }
    )


def _reopen(path: str, check: str, fingerprint: str) -> FeatureStore:
    store = FeatureStore.open(path, check)
    if store.spec.fingerprint != fingerprint:
        raise MismatchError(
            f"{path}: fingerprint {store.spec.fingerprint}, the handle was made for {fingerprint}; "
            "the store was replaced, open it again"
        )
    return store


def is_cached(fd: int, offset: int, n_bytes: int) -> bool:
    """Whether a row seems to be in the page cache: its first byte, which is evicted first, and its
    middle one, which a read around a neighbouring row does not bring."""
    byte = [bytearray(1)]
    try:
        return all(os.preadv(fd, byte, offset + at, os.RWF_NOWAIT) for at in (0, n_bytes // 2))
    except OSError:  # not there, or this file system cannot tell
        return False


def _suggest(name: str, names: list[str]) -> str:
    import difflib

    if len(names) > MANY_NAMES:
        ordered = sorted(names)
        at = bisect(ordered, name)
        names = ordered[max(0, at - MANY_NAMES // 2) : at + MANY_NAMES // 2]
    close = difflib.get_close_matches(name, names, 3, 0.5)
    return f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(names[:3])}, ..."


def as_bytes(column: np.ndarray) -> np.ndarray:
    """(n, width) uint8 of catalog cells, numbers as their eight bytes."""
    return np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1)


def _decode(cells_NW: np.ndarray) -> list[str]:
    width = cells_NW.shape[1]
    # a rotten byte must not keep the catalog from being read; the image's seal tells of it
    return [
        cell.decode(errors="replace")
        for cell in np.ascontiguousarray(cells_NW).view(f"S{width}")[:, 0].tolist()
    ]


def _merge(rows_NS: np.ndarray, kind: str) -> dict[str, float]:
    fields = {
        name.removeprefix(f"{kind}_"): rows_NS[:, s]
        for s, name in enumerate(STATS)
        if name.startswith(f"{kind}_")
    }
    count = fields["count"].sum()
    if not count:
        return dict.fromkeys(("count", "mean", "std", "min", "max", "norm", "non_finite"), np.nan)
    mean = (fields["count"] * fields["mean"]).sum() / count
    m2 = (fields["m2"] + fields["count"] * (fields["mean"] - mean) ** 2).sum()
    return {
        "count": count,
        "mean": mean,
        "std": np.sqrt(m2 / count),
        "min": fields["min"].min(),
        "max": fields["max"].max(),
        "norm": fields["norm"].mean(),
        "non_finite": fields["non_finite"].sum(),
    }
