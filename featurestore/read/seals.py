"""Seals: which images of a store are committed.

A seal vouches for an image's catalog row, thumbnail and checksums of rows (docs/format.md, section
5).
"""

import numpy as np

from featurestore.disk.durable import crc32c_rows
from featurestore.errors import InputError, StoreDamaged
from featurestore.format.spec import StoreSpec
from featurestore.read.catalog import Catalog, texts
from featurestore.read.source import Source

SEAL_BLOCK = 4096  # images whose catalog rows are copied at once to check their seals


class Seals:
    """The seals of one reader. Each is computed and compared once, for as long as its value stays.

    known : the seals of another reader of the same source, whose comparisons are taken over.
    """

    def __init__(self, source: Source, catalog: Catalog, known: "Seals | None" = None) -> None:
        self._source = source
        self._catalog = catalog
        self._spec = source.layout.spec
        # the value that was found right, so that another one is compared again; 0 is no seal
        self._right_N = known._right_N.copy() if known else np.zeros(source.layout.n, np.uint32)
        self._n_begun = source.n_begun

    def is_sealed(self, image: int) -> bool:
        """Whether the image has a seal that matches."""
        seal = self._seals()[image]  # a repair may have taken it back
        if seal != self._right_N[image]:
            self._compare(image, image + 1)
        return bool(seal != 0 and seal == self._right_N[image])

    def sealed(self) -> np.ndarray:
        """Positions of all images whose seal matches."""
        n = self._catalog.n_images
        seal_N = self._seals()[:n]
        is_unknown_N = (seal_N != 0) & (self._right_N[:n] != seal_N)
        unknown = np.flatnonzero(is_unknown_N)
        if len(unknown):
            end = int(unknown[-1]) + 1
            for start in range(int(unknown[0]), end, SEAL_BLOCK):
                self._compare(start, min(start + SEAL_BLOCK, end))

        is_right_N = (seal_N != 0) & (self._right_N[:n] == seal_N)
        return np.flatnonzero(is_right_N)

    def _seals(self) -> np.ndarray:
        """The seals as they are; nothing counts as compared in a source that began anew."""
        seal_N = self._source.array("seal")
        if self._source.n_begun != self._n_begun:
            self._n_begun = self._source.n_begun
            self._right_N[:] = 0
        return seal_N

    def open_images(self) -> np.ndarray:
        """Positions of the images of the catalog whose seal is absent or does not match."""
        is_open_N = np.ones(self._catalog.n_images, bool)
        is_open_N[self.sealed()] = False
        return np.flatnonzero(is_open_N)

    def n_with_seal(self) -> int:
        """Images with a seal, whether it matches or not."""
        return int(np.count_nonzero(self._source.array("seal")[: self._catalog.n_images]))

    def _compare(self, start: int, end: int) -> None:
        """Note which images of a span have a seal that matches.

        What was never written is not touched: a hole of a file in a tmpfs that is full cannot be
        mapped (SIGBUS).
        """
        # compared first: flatnonzero of the map itself fails when a builder seals an image between
        # its two passes
        with_seal = start + np.flatnonzero(self._source.array("seal")[start:end] != 0)
        if not len(with_seal):
            return
        start = int(with_seal[0])
        end = int(with_seal[-1]) + 1
        seal_N = self._source.array("seal")[start:end].copy()
        matches_N = (seal_N != 0) & (seal_N == self.expected(start, end))
        self._right_N[start:end] = np.where(matches_N, seal_N, self._right_N[start:end])

    def expected(self, start: int, end: int) -> np.ndarray:
        """(n,) uint32: what the seals of a span must be."""
        array = self._source.array
        cells = [array(column.node)[start:end] for column in self._spec.columns]
        thumbs = array("thumbs")[start:end] if self._spec.thumb else None
        return seals(self._spec, start, cells, thumbs, array("crc32c")[start:end])

    def refusal(self, image: int) -> Exception:
        """Why an image that is not sealed cannot be read, to be raised."""
        path = self._source.path
        array = self._source.array
        image_id = texts(array("catalog/image_id")[[image]])[0]
        status = texts(array("catalog/status")[[image]])[0]
        if status not in ("", "ok"):
            return InputError(
                f"{path}: image {image} ({image_id}) was skipped, its photograph was {status}; "
                "build again once it is there, or read the others (store.sealed lists them)"
            )
        if array("seal")[image]:
            advice = self._source.distrust()
            if advice:  # the catalog is fetched anew as well
                self._catalog.forget()
            return StoreDamaged(
                f"{path}: the seal of image {image} ({image_id}) does not match its catalog row, "
                f"thumbnail and checksums; build again{advice}"
            )
        return InputError(
            f"{path}: image {image} ({image_id}) is not built yet ({self.n_with_seal()} of "
            f"{self._catalog.n_images} are); run `biomass store build` to its end"
        )

    def refresh(self) -> np.ndarray:
        """(all places,) bool: images whose seal is not the one that was compared.

        These are forgotten.
        """
        seal_N = self._source.array("seal")[:]
        stale_N = (seal_N == 0) | (seal_N != self._right_N)
        self._right_N[stale_N] = 0
        return stale_N


def seals(
    spec: StoreSpec,
    start: int,
    cells: list[np.ndarray],
    thumbs_NHW3: np.ndarray | None,
    crc_NV: np.ndarray,
) -> np.ndarray:
    """(n,) uint32: the seals of n images from position `start` on.

    cells : their catalog columns, in order, as stored.
    """
    n = len(crc_NV)
    # fingerprint and place are part of it: an image's bytes that were copied to another
    # store, or to another place of this one, do not count as committed there
    print_F = np.frombuffer(spec.fingerprint.encode(), np.uint8)
    print_NF = np.broadcast_to(print_F, (n, len(print_F)))
    number_N = np.arange(start, start + n, dtype="<u8")
    number_N8 = number_N.view(np.uint8).reshape(n, 8)
    row_NB = np.concatenate([print_NF, number_N8, *map(as_bytes, cells)], 1)
    thumbs = [] if thumbs_NHW3 is None else [thumbs_NHW3]

    crc_N = crc32c_rows(row_NB, *thumbs, crc_NV)
    crc_N[crc_N == 0] = 1  # 0 means that there is no seal
    return crc_N


def as_bytes(column: np.ndarray) -> np.ndarray:
    """(n, width) uint8 of catalog cells, numbers as their eight bytes."""
    return np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1)
