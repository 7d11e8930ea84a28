"""bundle.json and the spec.json of its runs: what they may say, read without belief in a byte."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featurestore.errors import InputError

FORMAT = "biomass-bundle"
FORMAT_VERSION = 1
LISTING = "bundle.json"
# of a run in a bundle: where its spec.json says that the store lay
BACKBONE_FOLDER = "../../backbone"
UPLOAD_FILES = ("dataset-metadata.json", "kernel-metadata.json")
"""What upload tools read, users edit and Kaggle removes: not listed, and never read here."""

NAME = r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]*"  # of a member, which is a folder's
MAX_LISTING = 16 << 20  # bytes
MAX_FILES = 10_000
MAX_NESTING = 64
MAX_TILE = 4096 * 4096  # pixels
MAX_BYTES = {  # of each kind of file there is; paths of no kind are refused
    rf"runs/{NAME}/config\.yaml": 1 << 20,
    rf"runs/{NAME}/spec\.json": 16 << 20,
    rf"runs/{NAME}/stores\.json": 16 << 20,
    rf"runs/{NAME}/oof\.csv": 1 << 30,
    rf"runs/{NAME}/weights/{NAME}\.safetensors": 4 << 30,
    rf"backbone/{NAME}\.safetensors": 64 << 30,
    rf"backbone/{NAME}\.txt": 1 << 20,
    rf"wheel/{NAME}\.whl": 64 << 20,
    r"README\.md|predict\.ipynb": 1 << 20,
}


class Part(BaseModel):
    """A frozen part of bundle.json; what is unknown is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


P = TypeVar("P", bound=Part)


class ListedFile(Part):
    """A file: its size in bytes, and the sha256 of them in hex."""

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ListedMember(Part):
    """A run: whose heads are here, and their share in the ensemble."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    weights: Literal["best", "last"]
    folds: list[int] | None
    """null is all."""

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ListedBackbone(Part):
    """A backbone that members need, whether or not its weights are here."""

    model: str
    weights_sha256: str
    file: str | None
    licence: str


class Listing(Part):
    """The content of bundle.json: the ensemble's members, and all other files."""

    format: Literal["biomass-bundle"]
    format_version: Literal[1]
    biomass: str
    """Version that made it."""

    members: Annotated[list[ListedMember], Field(min_length=1)]
    backbones: list[ListedBackbone]
    files: Annotated[dict[str, ListedFile], Field(max_length=MAX_FILES)]

    @field_validator("members")
    @classmethod
    def _an_ensemble(cls, members: list[ListedMember]) -> list[ListedMember]:
        if len({member.name for member in members}) < len(members):
            raise ValueError("a run is there twice")
        if not 0 < sum(member.weight for member in members) < float("inf"):
            raise ValueError("the shares sum to nothing that can be divided by")
        return members


class ListedStore(Part):
    """What stores.json says of each further store of a run in a bundle; `StoreSpec` checks
    `store`."""

    store: dict[str, Any]
    store_folder: str


class ListedSpec(ListedStore):
    """The content of a run's spec.json in a bundle."""

    states: list[str]
    targets: dict[str, Any] | None = None
    """Of other tasks than the preset, as `Targets.to_json`."""
    columns: dict[str, list[str]] | None = None
    """Of heads that read columns, as `InputColumns.to_json`."""


def parse_listing(text: bytes, where: Path) -> Listing:
    value = parse_json(text, where)
    told = (value.get("format"), value.get("format_version"))
    if told != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{where}: format {told[0]!r} version {told[1]!r}, this program reads {FORMAT!r} "
            f"version {FORMAT_VERSION}; use the biomass that made the bundle"
        )
    return validated(Listing, value, where)


def parse_json(text: bytes, where: Path) -> dict[str, Any]:
    """A JSON object; InputError if it is none, or too deep."""
    if is_deep(text):
        raise InputError(f"{where}: nested more than {MAX_NESTING} deep; get the bundle elsewhere")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(value, dict):
            raise ValueError("no object")
        return value
    except (ValueError, RecursionError) as err:
        raise InputError(
            f"{where}: not the JSON of a bundle ({err}); get the bundle elsewhere"
        ) from err


def validated(kind: type[P], value: dict[str, Any], where: Path) -> P:
    try:
        return kind.model_validate(value)
    except ValidationError as err:
        first = err.errors()[0]
        raise InputError(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}; get the bundle elsewhere"
        ) from err


def _unique(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there twice")
    return value


def is_deep(text: bytes) -> bool:
    """Whether more than MAX_NESTING brackets are open at once, those in strings too: no parser
    shall go so deep."""
    depth = 0
    for found in re.finditer(rb"[\[{]|[\]}]", text):
        depth += 1 if found.group() in b"[{" else -1
        if depth > MAX_NESTING:
            return True
    return False
