"""Checksums: whether the bytes of rows are still those that were committed."""

from typing import Any

import numpy as np

from featurestore.disk.durable import crc32c, crc32c_append
from featurestore.errors import StoreDamaged
from featurestore.read.catalog import row_name
from featurestore.read.positions import pairs_of
from featurestore.read.source import Source

AHEAD_BYTES = 512 << 20  # of rows that are to be compared, asked for ahead of the comparison
# how much of a row has been compared: nothing, all but its patch tokens, all of it
UNKNOWN = 0
VECTORS = 1
WHOLE = 2


class Checksums:
    """The checksums of one reader; each row is compared once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._spec = source.layout.spec
        n_views = len(self._spec.tokens.views)
        self._level_NV = np.zeros((source.layout.n, n_views), np.uint8)
        self._n_begun = source.n_begun

    def check(self, rows_B2: Any, patches: bool = True) -> None:
        """StoreDamaged unless rows are what was committed; see `Reader.check_rows`."""
        rows_B2 = pairs_of(rows_B2)

        self._source.array("crc32c")  # in a forked child a source begins anew with its first array
        if self._source.n_begun != self._n_begun:
            self._n_begun = self._source.n_begun
            self.forget(np.ones(len(self._level_NV), bool))

        # in HDF5 a row has one checksum for all, so that its patches must be read as well
        has_own_crc = self._spec.has_patches and self._source.layout.extents["patches"].row_crc
        level = VECTORS if has_own_crc and not patches else WHOLE

        level_B = self._level_NV[rows_B2[:, 0], rows_B2[:, 1]]
        unchecked = rows_B2[level_B < level].tolist()
        rows = list(dict.fromkeys(map(tuple, unchecked)))  # each once, in the order of reading

        n_ahead = 0
        if level == WHOLE and self._spec.has_patches:
            row_bytes = self._source.layout.extents["patches"].array.row_bytes
            n_ahead = max(1, AHEAD_BYTES // row_bytes)
            self._source.will_need(rows[:n_ahead])

        for position, row in enumerate(rows):
            if n_ahead:
                # one more for each that is compared, so that as many stay on their way
                last = position + n_ahead
                self._source.will_need(rows[last : last + 1])
            committed = self._source.array("crc32c")[row]
            is_right = False
            if level == VECTORS:
                # of the patches only the checksum that lies beside them is read
                patches_crc = self._source.patches_crc(*row)
                is_right = crc_with(self._source, patches_crc, *row) == committed
            # of VECTORS it may be the patches' own sum that rotted
            if not is_right and self.of_row(*row) != committed:
                name = row_name(self._source, *row)
                advice = self._source.distrust()
                raise StoreDamaged(
                    f"{name}: its bytes changed since they were committed; `biomass store verify "
                    f"{self._source.path}` lists all such rows{advice}"
                )
            self._level_NV[row] = level

    def of_row(self, image: int, view: int) -> int:
        """CRC-32C of a row's bytes as they are now."""
        cls = vector(self._source, "cls", image, view)
        patches = []
        if self._spec.has_patches:
            patches.append(np.ascontiguousarray(self._source.patches(image, (view,))[view]))
        pooled = vector(self._source, "pooled", image, view)
        stats = vector(self._source, "stats", image, view)
        return crc32c(cls, *patches, pooled, stats)

    def forget(self, images_N: np.ndarray) -> None:
        """Compare the rows of these images (a mask) again."""
        self._level_NV[images_N] = UNKNOWN


def crc_with(source: Source, patches_crc: int, image: int, view: int) -> int:
    """CRC-32C of a row whose patches have this one."""
    # chained in the format's order: cls, patches, pooled, stats (docs/format.md, section 5)
    cls_crc = crc32c(vector(source, "cls", image, view))
    append = crc32c_append(source.layout.extents["patches"].array.row_bytes)
    so_far = append(cls_crc, patches_crc)

    pooled = vector(source, "pooled", image, view)
    stats = vector(source, "stats", image, view)
    return crc32c(pooled, stats, start=so_far)


def vector(source: Source, name: str, image: int, view: int) -> np.ndarray:
    """A row's part of an array other than patches, contiguous."""
    return np.ascontiguousarray(source.array(name)[image, view])
