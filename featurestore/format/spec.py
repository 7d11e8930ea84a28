"""What a store is: what changes a token, its fingerprint, and the arrays that follow.

The text of `docs/format.md` is normative; this module is its vocabulary. How the arrays lie on disk
is left to the formats.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from featurestore.errors import StoreDamaged

FORMAT = "biomass-feature-store"
ARCHIVE_FORMAT = "biomass-feature-archive"  # its smaller copies, see featurestore.manage.archive
FORMAT_VERSIONS = (1, 2)
"""That are read; 2 is written where a store uses a crop or a fit that 1 does not know."""
FIRST_CROPS = ("squash", "halves", "whole")
GRID = re.compile(r"grid:([1-9][0-9]?)x([1-9][0-9]?)")
Fit = Literal["squash", "crop", "pad"]
"""What becomes of a photograph whose aspect does not fit its crop."""
DECODE_RULES = 1  # raised when featurestore.photos.images would give other pixels for the same file
MAX_PIXELS = 80_000_000  # of a photograph, unless told: 320 MB as Pillow holds them
# the places of `pooled` and `stats`, in this order by the format (docs/format.md, 1 and 3)
POOLED = ("mean", "std", "max", "min", "gem3")
STATS = tuple(
    f"{kind}_{field}"
    for kind in ("cls", "patch")
    for field in ("count", "non_finite", "min", "max", "mean", "m2", "norm")
)
# of the catalog: a build is given the first two, and finds the others as it reads photographs
OWN_COLUMNS = ("image_id", "path", "sha256", "width", "height", "status")

Count = Annotated[int, Field(ge=1)]


class Record(BaseModel):
    """A frozen part of the spec.

    Unknown keys are refused: a newer store must not be half understood.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def changed(self, **fields: Any) -> Self:
        """The record with some fields changed, checked anew.

        pydantic's own copy would keep a cached fingerprint.
        """
        kept = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**kept | fields)


ANY_ASPECT = ("squash", "center")


def named_crop(text: str) -> str:
    """A crop by the one name that it has in a spec; ValueError for none."""
    if text == "grid:1x2":
        return "halves"
    if text in (*FIRST_CROPS, "center") or GRID.fullmatch(text):
        return text
    raise ValueError(f"crop {text!r} is unknown; use squash, halves, grid:RxC, center or whole")


def crop_grid(crop: str) -> tuple[int, int]:
    """Rows and columns of a crop's tiles."""
    if found := GRID.fullmatch(crop):
        return int(found[1]), int(found[2])
    return (1, 2) if crop == "halves" else (1, 1)


class ViewSpec(Record):
    """One named transform: flips, then at most one colour change.

    Amounts of the change are drawn from [-amount, amount].
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    hflip: bool = False
    vflip: bool = False
    transpose: bool = False
    colour: Literal["brightness", "contrast", "hsv", "gamma"] | None = None
    amounts: tuple[float, ...] = ()


class TokenSpec(Record):
    """Everything that changes a token, and nothing else; the fingerprint is taken of it."""

    # behind a serializer like `_without_unused` infinities would become null, which nobody refuses
    model_config = ConfigDict(ser_json_inf_nan="constants")

    model: str
    weights_sha256: str
    layers: tuple[int, ...]
    decode_rules: int = DECODE_RULES
    crop: str
    fit: Fit | None = None
    """None refuses an aspect that does not fit, and is left out of the JSON."""

    tile_height: Count
    tile_width: Count
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: Count
    n_tiles: Count
    width: Count
    views: Annotated[tuple[ViewSpec, ...], Field(min_length=1)]
    seed: int
    dtype: Literal["float16", "int8"] = "float16"
    """How a token was rounded; int8: patch tokens with a scale each, see
    featurestore.backbone.rounding, and then to float16 as well."""

    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """How many bits the values of 16-bit photographs have, where that was given."""

    @model_serializer(mode="wrap")
    def _without_unused(self, fields_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `bits` and `fit` out where they were not given.

        Fingerprints are then what they were before there were such keys.
        """
        fields = fields_of(self)
        for name in ("bits", "fit"):
            if fields[name] is None:
                del fields[name]
        return fields

    @model_validator(mode="after")
    def _crop_and_tiles_agree(self) -> "TokenSpec":
        if self.crop != named_crop(self.crop):
            raise ValueError(f"crop {self.crop!r} is called {named_crop(self.crop)!r} in a spec")
        if self.crop not in FIRST_CROPS and math.prod(self.tile_grid) != self.n_tiles:
            raise ValueError(f"crop {self.crop!r} has no {self.n_tiles} tiles")
        if self.fit and self.crop in ANY_ASPECT:
            raise ValueError(f"crop {self.crop!r} takes any aspect, it needs no fit")
        return self

    @property
    def tile_grid(self) -> tuple[int, int]:
        """Rows and columns of tiles on a photograph."""
        return (1, self.n_tiles) if self.crop in FIRST_CROPS else crop_grid(self.crop)

    def laid_out(self, tiles_ThwX: np.ndarray) -> np.ndarray:
        """(R h, C w, X): grids of tiles where they lie on the photograph."""
        rows, columns = self.tile_grid
        _, h, w, x = tiles_ThwX.shape
        grid_RChwX = tiles_ThwX.reshape(rows, columns, h, w, x)
        grid_RhCwX = grid_RChwX.swapaxes(1, 2)
        return grid_RhCwX.reshape(rows * h, columns * w, x)

    @property
    def crop_and_fit(self) -> str:
        """Both, for people."""
        return self.crop + (f", fit {self.fit}" if self.fit else "")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches on one tile."""
        return self.tile_height // self.patch_size, self.tile_width // self.patch_size

    @property
    def n_patches(self) -> int:
        return math.prod(self.grid)

    @cached_property
    def view_names(self) -> tuple[str, ...]:
        return tuple(view.name for view in self.views)


class Column(Record):
    """One column of the catalog: a float64 number, or UTF-8 text padded with zeros.

    width : bytes of a text.
    """

    name: Annotated[str, Field(min_length=1)]
    kind: Literal["number", "text"]
    width: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _text_has_width(self) -> "Column":
        if (self.kind == "text") != (self.width > 0):
            raise ValueError(f"a {self.kind} column of width {self.width}")
        return self

    @cached_property
    def node(self) -> str:
        """Path of the array; a byte outside [A-Za-z0-9_-] becomes ~ and two hex digits."""
        letters = []
        for byte in self.name.encode():
            # isalnum alone would keep letters of Latin-1
            is_kept = byte < 128 and chr(byte).isalnum() or byte in b"_-"
            letters.append(chr(byte) if is_kept else f"~{byte:02x}")
        return "catalog/" + "".join(letters)


AND = " + "
ROUNDING = ("precision", "device", "torch", "timm", "batch")
"""Parts of `made_by` that tokens agree only within rounding between."""


def made_together(makers: Sequence[dict[str, str]]) -> dict[str, str]:
    """`made_by` of a store whose rows come from several; what differs is named side by side."""
    together = {}
    keys = dict.fromkeys(key for maker in makers for key in maker)  # each once, in their order
    for key in keys:
        # split: a maker may be several itself
        words = [word for maker in makers for word in maker.get(key, "unknown").split(AND)]
        together[key] = AND.join(dict.fromkeys(words))  # each once, in the order of makers
    return together


class StoreSpec(Record):
    """The JSON of the root attribute `spec`."""

    tokens: TokenSpec
    has_patches: bool = True
    pooled_dtype: Literal["float32", "float16"] = "float32"
    thumb: tuple[Count, Count] | None = None
    columns: tuple[Column, ...]
    made_by: dict[str, str] = {}
    """Versions, device, precision and source of weights; where parts of a store were made
    differently, each of them, by AND."""

    @property
    def format_version(self) -> int:
        """1 wherever a program that knows no other can read the store."""
        is_first = self.tokens.crop in FIRST_CROPS and self.tokens.fit is None
        return 1 if is_first else 2

    @property
    def precision(self) -> str:
        """What tokens are computed in to agree with these: the most exact of what made them."""
        made_in = self.made_by.get("precision", "fp32").split(AND)
        return "fp32" if "fp32" in made_in else made_in[0]

    @property
    def batch(self) -> int:
        """Tiles that the backbone takes at once; where nothing is told, those of one photograph."""
        told = self.made_by.get("batch", "").split(AND)
        sizes = [int(each) for each in told if each.isdecimal()]
        return max(sizes, default=self.tokens.n_tiles)

    @property
    def max_pixels(self) -> int:
        """The most pixels that a photograph may have; of several makers the most generous."""
        told = self.made_by.get("max_pixels", "").split(AND)
        return max(int(each) if each.isdecimal() else MAX_PIXELS for each in told)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of the canonical JSON of `tokens`."""
        text = canonical_json(self.tokens.model_dump(mode="json"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        return canonical_json({**self.model_dump(mode="json"), "fingerprint": self.fingerprint})

    @classmethod
    def from_json(cls, text: str, where: str) -> "StoreSpec":
        """StoreDamaged if the text is no spec of this version, or its fingerprint is wrong."""
        try:
            fields = json.loads(text)
            fingerprint = fields.pop("fingerprint")
            spec = cls.model_validate(fields)
            found = spec.fingerprint  # has no text for numbers that are not finite
            names = [column.name for column in spec.columns]
            if len(set(names)) < len(names):
                raise ValueError("two columns have one name")
        except (ValueError, KeyError, AttributeError, RecursionError) as err:
            raise StoreDamaged(f"{where}: its spec cannot be read: {_first_line(err)}") from err
        if found != fingerprint:
            raise StoreDamaged(
                f"{where}: its spec says fingerprint {fingerprint}, its content gives {found}"
            )
        return spec

    def arrays(self, n: int) -> list["Array"]:
        """All arrays of a store with room for n images, in the order of the format text."""
        # dtypes name their byte order: a file means the same on every machine
        t = self.tokens
        shape = (n, len(t.views), t.n_tiles)
        dims = ("image", "view", "tile")
        arrays = [Array("cls", (*shape, t.width), "<f2", (*dims, "channel"))]
        if self.has_patches:
            arrays.append(
                Array("patches", (*shape, t.n_patches, t.width), "<f2", (*dims, "patch", "channel"))
            )
        pooled_dtype = np.dtype(self.pooled_dtype).newbyteorder("<").str
        arrays += [
            Array(
                "pooled",
                (*shape, len(POOLED), t.width),
                pooled_dtype,
                (*dims, "pooling", "channel"),
            ),
            Array("stats", (*shape[:2], len(STATS)), "<f8", ("image", "view", "stat")),
        ]
        if self.thumb:
            arrays.append(
                Array(
                    "thumbs",
                    (n, *self.thumb, 3),
                    "|u1",
                    ("image", "thumb_row", "thumb_column", "colour"),
                )
            )
        arrays += [
            Array("crc32c", shape[:2], "<u4", ("image", "view")),
            Array("seal", (n,), "<u4", ("image",)),
            Array("metadata_crc32c", (1,), "<u4", ("once",)),
        ]
        return arrays + [_column_array(column, n) for column in self.columns]


@dataclass(frozen=True)
class Array:
    """One array of the format: its name, shape, little-endian dtype and dimension names."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]

    @property
    def row_axes(self) -> int:
        """Leading axes that count rows: (image, view) for tokens, (image,) for all else."""
        return 2 if self.name == "patches" else 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[self.row_axes :]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[: self.row_axes])

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.row_bytes


def max_pixels_told(max_pixels: int) -> dict[str, str]:
    """What `made_by` says of the most pixels of a photograph: nothing where they are the usual."""
    return {} if max_pixels == MAX_PIXELS else {"max_pixels": str(max_pixels)}


def batch_told(batch: int, n_tiles: int) -> dict[str, str]:
    """What `made_by` says of tiles at once: nothing where they are those of one photograph."""
    return {} if batch == n_tiles else {"batch": str(batch)}


def whole_rows(batch: int, n_tiles: int) -> int:
    """The most tiles up to `batch` that are whole rows; of less than one row, `batch` itself."""
    return batch if batch < n_tiles else batch // n_tiles * n_tiles


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, UTF-8 as it is."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _column_array(column: Column, n: int) -> Array:
    if column.kind == "number":
        return Array(column.node, (n,), "<f8", ("image",))
    # ~b is followed by no hex digit, so this is the name of no other column
    of_byte = f"{column.node.split('/')[1]}~byte"
    return Array(column.node, (n, column.width), "|u1", ("image", of_byte))


def _first_line(err: Exception) -> str:
    if isinstance(err, ValidationError):
        first = err.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(err).splitlines()[0] if str(err) else type(err).__name__
