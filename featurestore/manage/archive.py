"""Archives: a smaller copy of a store's sealed images, to keep and to send, not to train on.

An archive is a Zarr v3 group of the arrays that docs/format.md names, compressed by codecs of the
Zarr v3 registry, so any client reads it. Which images and views go in, and making a store of them
again, is `convert`'s.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from featurestore.counts import count_of
from featurestore.disk.durations import duration
from featurestore.disk.maps import refuse_too_many
from featurestore.errors import NoAccessError, StoreDamaged, list_some
from featurestore.format.layout import read_spec
from featurestore.format.spec import OWN_COLUMNS
from featurestore.format.zarr import count_images, read_metadata
from featurestore.manage.archive_layout import (
    BLOCK_NAMES,
    Scheme,
    check_array,
    check_attributes,
)
from featurestore.read.catalog import catalog_frame
from featurestore.read.positions import bounded
from featurestore.read.rows import ImageRows, row_crcs
from featurestore.read.seals import seals

if TYPE_CHECKING:
    import zarr
from featurestore.manage.archive_int8 import dequantised


@dataclass(frozen=True)
class ArchiveReport:
    """What `write_archive` did; error is None where nothing was lost."""

    path: Path
    codec: str
    n_images: int
    seconds: float
    bytes_in: int
    bytes_out: int
    error: dict[str, float] | None

    def __str__(self) -> str:
        return (
            f"{self.path}: {count_of(self.n_images, 'image')} in {duration(self.seconds)}, "
            f"{_kept(self.bytes_in, self.bytes_out)}, {_lost(self.codec, self.error)}"
        )


class Archive:
    """An archive open for reading; it has spec, catalog, sealed and rows(image), as a store."""

    def __init__(
        self,
        path: Path,
        scheme: Scheme,
        attributes: dict,
        root: "zarr.Group",
    ) -> None:
        self.path = path
        self.spec = scheme.spec
        self.codec = scheme.codec
        self.error: dict[str, float] | None = attributes["error"]
        self.bytes_in: int = attributes["bytes_in"]
        self.bytes_out: int = attributes["bytes_out"]
        self._scheme = scheme
        self._root = root
        self._block: tuple[int, dict[str, np.ndarray]] = (-1, {})  # its number, and its arrays

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Archive":
        """Open the archive at path; what its metadata says is checked before any array is read.

        InputError if it is something else or of a newer version; StoreDamaged if a file is missing
        or not as its spec says.
        """
        import zarr

        path = Path(os.path.abspath(path))
        attributes = read_metadata(path, "group").get("attributes", {})
        check_attributes(path, attributes)
        spec = read_spec(path, attributes["spec"], attributes["format_version"])
        scheme = Scheme(attributes["codec"], spec, count_images(path))
        for array in scheme.arrays:
            check_array(path, array, scheme)
        # zarr would follow them
        links = [str(each) for each in path.rglob("*") if each.is_symlink()]
        if links:
            raise StoreDamaged(
                f"{path}: holds links; an archive's own files are not followed "
                f"elsewhere:{list_some(links)}"
            )
        root = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
        return cls(path, scheme, attributes, root)

    @property
    def n_images(self) -> int:
        return self._scheme.n

    def __len__(self) -> int:
        return self.n_images

    @cached_property
    def catalog(self) -> pd.DataFrame:
        """One row an image, as the store's."""
        return catalog_frame(self.spec, self._cells)

    @cached_property
    def _cells(self) -> list[np.ndarray]:
        return [self._read(column.node) for column in self.spec.columns]

    @cached_property
    def _seal_N(self) -> np.ndarray:
        return self._read("seal")

    @cached_property
    def _crc_NV(self) -> np.ndarray:
        return self._read("crc32c")

    @property
    def sealed(self) -> np.ndarray:
        """Positions of the images whose tokens are here: all."""
        return np.arange(self.n_images)

    def row_crcs(self, image: int) -> np.ndarray:
        """(V,) uint32: CRC-32C of an image's rows as they were archived."""
        return self._crc_NV[image]

    def rows(self, image: int) -> ImageRows:
        """All of an image, decoded, as a store takes it.

        StoreDamaged, naming image and view, if it is not what was archived.
        """
        image = bounded(image, self.n_images, "image")
        small = self._small_arrays(image)
        patches = None
        if self.spec.has_patches:
            try:
                patches = self._read("patches", image)
            except StoreDamaged:
                # which view it is: each lies in a chunk of its own
                for view, name in enumerate(self.spec.tokens.view_names):
                    self._read("patches", (image, view), f" of {self._name(image)}, view {name!r}")
                raise
            if self.codec == "int8":
                patches = dequantised(patches, small["patches_scale"])
        rows = ImageRows(
            small["cls"],
            patches,
            small["pooled"],
            small["stats"],
            small.get("thumbs"),
            {name: self.catalog[name][image] for name in OWN_COLUMNS[2:]},
        )
        self._check(image, rows)
        return rows

    def _small_arrays(self, image: int) -> dict[str, np.ndarray]:
        """An image's part of all arrays but patches.

        They are decoded for all images that were written together; the last such block stays at
        hand.
        """
        size = self._root["cls"].chunks[0]
        number = image // size
        if self._block[0] != number:
            span = slice(number * size, (number + 1) * size)
            what = f" of {self._name(image)} or near it"
            names = [array.name for array in self._scheme.arrays if array.name in BLOCK_NAMES]
            self._block = number, {name: self._read(name, span, what) for name in names}
        return {name: values[image % size] for name, values in self._block[1].items()}

    def _check(self, image: int, rows: ImageRows) -> None:
        wrong = np.flatnonzero(row_crcs(rows) != self._crc_NV[image])
        if len(wrong):
            raise StoreDamaged(
                f"{self.path}: {self._name(image)}, view "
                f"{self.spec.tokens.view_names[wrong[0]]!r}: its bytes are not those archived "
                "(CRC-32C differs); take another copy of the archive"
            )
        # and the seal: nothing else vouches for the catalog's cells and the thumbnail
        cells = [column[image : image + 1] for column in self._cells]
        thumb = None if rows.thumb_HW3 is None else rows.thumb_HW3[None]
        crc_1V = self._crc_NV[image : image + 1]
        (expected,) = seals(self.spec, image, cells, thumb, crc_1V)
        if expected != self._seal_N[image]:
            raise StoreDamaged(
                f"{self.path}: {self._name(image)}: its seal does not match its catalog row, "
                "thumbnail and checksums; take another copy of the archive"
            )

    def _name(self, image: int) -> str:
        return f"image {image} ({self.catalog['image_id'][image]})"

    def _read(self, name: str, key: Any = ..., what: str = "") -> np.ndarray:
        """Decoded values of an array; StoreDamaged if they cannot be had."""
        try:
            return np.asarray(self._root[name][key])
        except PermissionError as err:
            raise NoAccessError.of(err, self.path / name) from err
        except (ValueError, RuntimeError, OSError, KeyError) as err:
            # what zarr's codecs raise for rot and for cut files
            refuse_too_many(self.path / name, err)
            raise StoreDamaged(
                f"{self.path / name}{what}: cannot be decoded ({str(err).splitlines()[0][:200]}); "
                "take another copy of the archive"
            ) from err

    def to_json(self) -> str:
        """What `FeatureStore.to_json` says of a store, beside the codec and what it lost."""
        known = {
            "path": str(self.path),
            "n_images": self.n_images,
            "codec": self.codec,
            "error": self.error,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
        spec = json.loads(self.spec.to_json())
        return json.dumps(known | spec, indent=1, ensure_ascii=False)

    def __repr__(self) -> str:
        t = self.spec.tokens
        return (
            f"Archive {self.path}\n"
            f"  a compressed copy, not mapped: `biomass store convert {self.path} OUT.h5` makes a "
            "store of it\n"
            f"  {self.n_images} images x {len(t.views)} views\n"
            f"  codec    {_lost(self.codec, self.error)}; {_kept(self.bytes_in, self.bytes_out)}\n"
            f"  tokens   {t.n_tiles} tile(s) x (1 + {t.grid[0]} x {t.grid[1]}) x {t.width} "
            f"{t.dtype}\n"
            f"  backbone {t.model}, layers {list(t.layers)}, {t.crop_and_fit} {t.tile_height} x "
            f"{t.tile_width}\n"
            f"  views    {', '.join(t.view_names)}"
        )


def _kept(bytes_in: int, bytes_out: int) -> str:
    return f"{bytes_in / 1e9:.3g} GB in {bytes_out / 1e9:.3g} GB (ratio {bytes_in / bytes_out:.2f})"


def _lost(codec: str, error: dict[str, float] | None) -> str:
    if error is None:
        return f"{codec}, nothing lost"
    return (
        f"{codec}, patch tokens rounded by {error['rms_relative']:.2%} of their norm (rms; at most "
        f"{error['max_relative']:.2%}), single values by at most {error['max']:.3g}"
    )
