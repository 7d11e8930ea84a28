"""Reader: rows of a store, handed out only when their image is sealed and the seal matches.

It knows seals, catalog, rows and checksums, and nothing about where bytes come from: that is its
source's. What was never committed is never seen.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featurestore.disk.durable import page_aligned
from featurestore.errors import InputError, MismatchError, UsageError
from featurestore.format.layout import Layout
from featurestore.format.spec import OWN_COLUMNS
from featurestore.read.catalog import Catalog, row_name, texts
from featurestore.read.checksums import Checksums
from featurestore.read.positions import bounded, pairs_of
from featurestore.read.rows import ImageRows, RowArray, require_patches
from featurestore.read.seals import Seals
from featurestore.read.source import Row, Source

if TYPE_CHECKING:
    import pandas as pd


class Reader(AbstractContextManager):
    """A store open for reading: cheap to open, safe to fork, pickled as address and fingerprint.

    source : where its bytes come from.
    check : "seal" trusts sealed bytes (rot is found by `verify`); "first-touch" also compares each
        row's CRC-32C once.
    seals : those of another reader of the same source, whose comparisons are taken over.
    """

    def __init__(
        self,
        source: Source,
        check: Literal["seal", "first-touch"] = "seal",
        seals: Seals | None = None,
    ) -> None:
        if isinstance(source, str | os.PathLike):
            name = type(self).__name__
            raise UsageError(f"{name}({str(source)!r}): {name}.open opens the store at a path")
        if check not in ("seal", "first-touch"):
            raise UsageError(f"check {check!r}: choose 'seal' or 'first-touch'")
        self.source = source
        self.check = check
        self.path = source.path
        self.spec = source.layout.spec
        self.view_names = self.spec.tokens.view_names
        self.address = source.address
        """What opens it again, from any folder."""
        self.folder = source.folder
        """Where its backbone's weights are kept."""
        self.size_bytes = sum(each.array.n_bytes for each in source.layout.extents.values())
        """Bytes of all arrays, places without tokens included."""
        self.raw = RawArrays(source)
        """The arrays as they lie in the store, sealed or not: `store.raw.cls`, `.pooled` ..."""
        self.images = Catalog(source)
        self.seals = Seals(source, self.images, seals)
        self.checksums = Checksums(source)

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close files and connections. Arrays that were handed out stay as they are."""
        self.source.close()

    def __reduce__(self) -> tuple:
        return _reopened, (type(self), self.source, self.check, self.spec.fingerprint)

    def refresh(self) -> None:
        """Forget what was read of the catalog and seals.

        A builder has added images, committed some, or taken seals back.
        """
        self.source.refresh()
        # a row whose image was sealed anew may have other bytes than those that were compared
        stale_N = self.seals.refresh()
        self.checksums.forget(stale_N)
        self.images.forget()

    # -- what is in it

    @property
    def layout(self) -> Layout:
        """The shape of every array, and for local stores where it lies."""
        return self.source.layout

    @property
    def n_images(self) -> int:
        """Images in the catalog, sealed or not; reserved rows are not counted."""
        return self.images.n_images

    @property
    def n_sealed(self) -> int:
        """Images with a seal; whether it matches is checked when an image is read."""
        return self.seals.n_with_seal()

    @property
    def sealed(self) -> np.ndarray:
        """Positions of all committed images; each seal is checked once."""
        return self.seals.sealed()

    @property
    def skipped(self) -> list[int]:
        """Positions of images that a build left without tokens; their status says why."""
        open_N = self.seals.open_images()
        statuses = texts(self.array("catalog/status")[open_N])
        of_image = dict(zip(open_N.tolist(), statuses, strict=True))
        # "" is not built yet; "ok" without a seal was being built, or lost its seal
        return [image for image, status in of_image.items() if status not in ("", "ok")]

    @property
    def catalog(self) -> "pd.DataFrame":
        """One row an image, in store order.

        Columns are image_id, path, sha256, width, height, status, and the CSV's.
        """
        return self.images.frame

    def catalog_rows(self, images: slice | np.ndarray) -> "pd.DataFrame":
        """The catalog of some images alone, by position.

        Of a million images all of it takes seconds.
        """
        return self.images.rows(images)

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images of the catalog, in store order."""
        return self.images.ids

    def index(self, image: int | str) -> int:
        """Position of an image given by id or position.

        InputError with close names, or IndexError, if it is not there.

        UsageError for what is neither, a mask or a float say.
        """
        return self.images.index(image)

    def view_index(self, view: int | str) -> int:
        """Position of a view given by name or position."""
        if not isinstance(view, str):
            return bounded(view, len(self.view_names), "view")
        if view not in self.view_names:
            raise InputError(f"{self.path}: no view {view!r}; it has {', '.join(self.view_names)}")
        return self.view_names.index(view)

    # -- what may be read

    def require(self, image: int, views: Sequence[int] | None = None) -> None:
        """Raise unless the image is sealed, and with "first-touch" its rows are as committed.

        views : those that are about to be read; None is all of them.
        """
        if not self.seals.is_sealed(image):
            raise self.seals.refusal(image)
        if self.check == "first-touch":
            views = range(len(self.view_names)) if views is None else views
            self.check_rows([(image, view) for view in views])

    def require_all(self) -> None:
        """Raise unless every image of the catalog is sealed."""
        open_N = self.seals.open_images()  # compares all seals, in blocks
        for image in open_N if self.check == "seal" else range(self.n_images):
            self.require(int(image))

    def require_rows(self, rows_B2: Any) -> list[Row]:
        """Rows of patch tokens as (image, view) positions; raises unless each image is sealed.

        The patch tokens are not checked, see `check_rows`.
        """
        require_patches(self.source)
        pairs = pairs_of(rows_B2).tolist()
        rows = [(self.index(image), self.view_index(view)) for image, view in pairs]
        for image, _ in rows:
            self.require(image, ())
        return rows

    def check_rows(self, rows_B2: Any, patches: bool = True) -> None:
        """StoreDamaged unless rows of sealed images are what was committed.

        Each is compared with its CRC-32C once.

        patches : False where class tokens and pooled vectors alone are about to be read. Zarr keeps
            the patch tokens' own CRC-32C beside them, which then stands for them; in HDF5 they are
            read, since the row has one checksum for all.
        """
        if not self.source.checks_rows:
            self.checksums.check(rows_B2, patches)

    def row_crcs(self, image: int) -> np.ndarray:
        """(V,) uint32: CRC-32C of an image's rows as they were committed."""
        return self.array("crc32c")[image]

    def where(self, image: int, view: int) -> str:
        """A row's name and where it lies, for messages."""
        return row_name(self.source, image, view)

    # -- arrays and rows

    @property
    def patches(self) -> RowArray:
        """(N, V, T, P, D) float16 by image and view, see RowArray. InputError in a pooled store."""
        require_patches(self.source)
        return RowArray(self.source, self.images, self.require)

    @property
    def cls(self) -> np.ndarray:
        """(N, V, T, D) float16, read-only; InputError unless every image is sealed."""
        return self._whole("cls")

    @property
    def pooled(self) -> np.ndarray:
        """(N, V, T, 5, D) float32: mean, std, max, min and signed GeM(3) over patches.

        Every image must be sealed.
        """
        return self._whole("pooled")

    @property
    def thumbs(self) -> np.ndarray | None:
        """(N, h, w, 3) uint8, the photographs made small; None in a store without."""
        return self._whole("thumbs") if self.spec.thumb else None

    def _whole(self, name: str) -> np.ndarray:
        self.require_all()
        return self.array(name)[: self.n_images]

    def array(self, name: str) -> np.ndarray:
        """An array other than patches, read-only, as it lies in the store, sealed or not."""
        return self.source.array(name)

    def rows(self, image: int) -> ImageRows:
        """All of a sealed image, as it would be put into another store; no copy if mapped."""
        self.require(image)
        patches = None
        if self.spec.has_patches:
            patches = self.source.patches(image, range(len(self.view_names)))
        # of this moment: the catalog at hand may be from before it was sealed
        cells = self.catalog_rows(np.s_[image : image + 1])
        return ImageRows(
            self.array("cls")[image],
            patches,
            self.array("pooled")[image],
            self.array("stats")[image],
            self.array("thumbs")[image] if self.spec.thumb else None,
            {name: cells[name][0] for name in OWN_COLUMNS[2:]},
        )

    def take(self, rows_B2: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Gather patch tokens of (image, view) pairs into one buffer.

        Several rows are read at once.

        Parameters
        ----------
        rows_B2 : (B, 2) integers, image and view positions. UsageError for anything else: a mask or
            a flat list of positions would name other rows than it seems to.
        out : (B, T, P, D) float16, C-contiguous, filled and returned; made page-aligned if not
            given. (numpy's own large buffers begin 16 bytes into a page, where some CPUs' kernel
            copies are four times slower: measured on Zen 3.)
        """
        rows = self.require_rows(rows_B2)
        array = self.layout.extents["patches"].array
        shape = (len(rows), *array.row_shape)

        out = page_aligned(shape, array.dtype) if out is None else out
        if out.shape != shape or out.dtype != array.dtype or not out.flags.c_contiguous:
            raise InputError(
                f"take: out is {out.dtype} {out.shape}, needs C-contiguous float16 {shape}"
            )

        if self.check == "first-touch":
            self.check_rows(rows)
        self.source.read_into(rows, out)
        return out

    def will_need(self, rows_B2: Any) -> int:
        """Begin to fetch rows of patch tokens, from the disk into the page cache say.

        Returns how many of them were not at hand.

        Back when they are asked for, not when they are there; errors of fetching come when a row is
        read. For rows that will be touched where they are mapped. rows_B2 and errors as in `take`.
        """
        return self.source.will_need(self.require_rows(rows_B2))


class RawArrays:
    """`store.raw`: the arrays as they lie in the store, each read when it is asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getattr__(self, name: str) -> np.ndarray:
        # `_` first: copy and pickle ask for such names before there is a _source to look into
        if name.startswith("_") or name not in dir(self):
            raise AttributeError(name)
        return self._source.array(name)

    def __dir__(self) -> list[str]:
        names = self._source.layout.extents
        return [name for name in names if name != "patches" and "/" not in name]


def _reopened(
    kind: type[Reader],
    source: Source,
    check: str,
    fingerprint: str,
) -> Reader:
    """The reader that was pickled; MismatchError if another store has taken its place."""
    found = source.layout.spec.fingerprint
    if found != fingerprint:
        raise MismatchError(
            f"{source.path}: fingerprint {found}, the handle was made for {fingerprint}; the store "
            "was replaced, open it again"
        )
    return kind(source, check)
