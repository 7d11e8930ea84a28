"""A bundle: everything an offline machine needs in one folder. What it may hold, its check before
use, the members in it.

How one is made is in `predictor.bundle.pack`. Nothing in a bundle is believed before `check_bundle`
has gone over all of it: names, kinds and sizes first, from what the folder says, then every byte.
"""

import codecs
import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featurestore.backbone.demo.model import NAME as PACKAGED
from featurestore.backbone.weights import kept_weights
from featurestore.disk.durable import file_sha256
from featurestore.disk.pickles import HEAD_BYTES, PICKLED, pickled
from featurestore.errors import InputError, MismatchError, NoAccessError, StoreDamaged, list_some
from predictor.members.member import Member
from trainer.loop.runs import RunFolder

FORMAT, FORMAT_VERSION = "biomass-bundle", 1
LISTING = "bundle.json"
# of a run in a bundle: where its spec.json says that the store lay
BACKBONE_FOLDER = "../../backbone"
UPLOAD_FILES = ("dataset-metadata.json", "kernel-metadata.json")
"""What upload tools read, users edit, and Kaggle takes away: not listed, and nothing here reads
them."""

NAME = r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]*"  # of a member, which is a folder's
MAX_LISTING, MAX_FILES, MAX_DEPTH, MAX_NESTING = 16 << 20, 10_000, 4, 64
EMPTY = "an empty folder"
MAX_TILE = 4096 * 4096  # pixels
MAX_BYTES = {  # of each kind of file there is; paths of no kind are refused
    rf"runs/{NAME}/config\.yaml": 1 << 20,
    rf"runs/{NAME}/spec\.json": 16 << 20,
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
    """The content of bundle.json: the members of the ensemble, and every file but itself and
    UPLOAD_FILES."""

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


class ListedSpec(Part):
    """The content of a run's spec.json in a bundle; what `store` may say is `StoreSpec`'s to
    check."""

    store: dict[str, Any]
    states: list[str]
    store_folder: str


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked."""

    path: Path
    listing: Listing
    sha256: str
    """Of bundle.json, which has that of every file: who knows it knows them all."""

    left_out: frozenset[str] = frozenset()
    """Heads that are missing or damaged, as paths in the bundle, where that was allowed."""

    def __str__(self) -> str:
        members = [
            f"\n  {m.name}: {m.weights} weights, folds {m.folds or 'all'}, share {m.weight:.3g}"
            for m in self.listing.members
        ]
        files = self.listing.files
        return (
            f"{self.path}: {len(files)} files, "
            f"{sum(file.size for file in files.values()) / 1e6:.1f} MB, all as listed; "
            f"members:{''.join(members)}\nsha256 of {LISTING}: {self.sha256}"
        )

    def members(
        self,
        folds: Sequence[int] | None = None,
        weights: str | None = None,
        backbone_weights: str | None = None,
    ) -> list[Member]:
        """The members, ready to predict; folds, weights: what was asked for, None is what is here.

        Raises InputError if that is not here, or the backbone's weights are nowhere.
        """
        loaded = [
            member
            for each in self.listing.members
            if (member := self._member(each, folds, weights)).heads
        ]
        if not loaded:
            raise StoreDamaged(
                f"{self.path}: no head is left that is as listed; copy the bundle again"
            )
        for member in [] if backbone_weights else loaded:
            if (
                kept_weights(member.spec, member.run.store_folders) is None
                and member.spec.tokens.model != PACKAGED
            ):
                raise InputError(
                    f"{self.path}: holds no weights of {member.spec.tokens.model}; give them with "
                    "--backbone-weights FILE.safetensors, or make it again: `biomass bundle SWEEP "
                    "--with-backbone`"
                )
        return loaded

    def _member(
        self, listed: ListedMember, folds: Sequence[int] | None, weights: str | None
    ) -> Member:
        if weights not in (None, listed.weights):
            raise InputError(
                f"{self.path}: has {listed.weights} weights of {listed.name}, not {weights}; leave "
                "--weights out"
            )
        run = self.path / "runs" / listed.name
        without = {
            path.rpartition("/")[2]
            for path in self.left_out
            if path.startswith(f"runs/{listed.name}/")
        }
        return Member.load(run, folds or listed.folds, listed.weights, without).weighing(
            listed.weight
        )


def load_members(
    path: Path,
    folds: Sequence[int] | None = None,
    weights: str | None = None,
    backbone_weights: str | None = None,
    allow_partial: bool = False,
) -> list[Member]:
    """Members of a bundle's folder, which is checked first, or the one that a run's folder is."""
    if not (path / LISTING).exists():
        return [Member.load(path, folds, weights or "last")]
    bundle = check_bundle(path, allow_partial=allow_partial)
    if bundle.left_out:
        warnings.warn(
            f"{path}: {len(bundle.left_out)} heads are missing or damaged; the others predict "
            "without them:"
            f"{list_some(sorted(bundle.left_out))}",
            stacklevel=2,
        )
    return bundle.members(folds, weights, backbone_weights)


def check_reach(run: RunFolder) -> None:
    """InputError if a run names what a bundle cannot hold, or asks for more than one may."""
    tokens, cv = run.spec.tokens, run.config.cv
    if ":" in tokens.model:  # timm's hf-hub:NAME and local-dir:PATH
        raise InputError(
            f"{run.path}: its backbone {tokens.model} is described on a hub or in a folder, where "
            "no bundle may "
            "look; build the store with a model that timm knows by name"
        )
    if (pixels := tokens.tile_height * tokens.tile_width) > MAX_TILE:
        raise InputError(
            f"{run.path}: tiles of {pixels} pixels, of at most {MAX_TILE}; choose another run"
        )
    if (n_heads := cv.repeats * cv.n_folds) > MAX_FILES:
        raise InputError(
            f"{run.path}: {n_heads} heads, of at most {MAX_FILES} files; choose another run"
        )


def _check_run(run: Path) -> None:
    """InputError if a run's folder in a bundle points out of it, or reaches too far."""
    spec = run / "spec.json"
    told = _validated(ListedSpec, _json(spec.read_bytes(), spec), spec)
    if told.store_folder != BACKBONE_FOLDER:
        raise InputError(
            f"{spec}: points out of the bundle, to {told.store_folder}; get the bundle elsewhere"
        )
    check_reach(RunFolder(run))


def check_bundle(path: Path, sha256: str | None = None, allow_partial: bool = False) -> Bundle:
    """The bundle in a folder, once all of it was found to be as listed.

    sha256 : of bundle.json, where it is known from elsewhere: then not even who rewrote the listing
        goes unseen.
    allow_partial : heads that are missing or damaged are left out instead of refused.

    Raises InputError, naming them, for files that are no part of a bundle, too large, too deep,
    links or pickles, for a listing that cannot be read or is of another version, and for runs that
    reach out of the bundle; StoreDamaged for files missing or changed; MismatchError for another
    sha256.
    """
    path = Path(path)
    text = _read_listing(path)
    found = hashlib.sha256(text).hexdigest()
    if sha256 is not None and found != sha256.strip().lower():
        raise MismatchError(
            f"{path / LISTING}: has sha256 {found}, expected {sha256}; this is another bundle, or "
            "it was changed"
        )
    listing = _parsed(text, path / LISTING)
    try:
        sizes = _walk(path)
        _refuse(path, "what no bundle holds", [*_strange(sizes, listing), *_misnamed(listing)])
        left_out = _damaged(path, listing, sizes)
    except OSError as err:
        raise InputError(
            f"{err.filename or path}: cannot be read ({err.strerror}); make it readable"
        ) from err
    heads = (
        {name for name in left_out if re.fullmatch(r"runs/[^/]+/weights/[^/]+", name)}
        if allow_partial
        else set()
    )
    if lost := [f"{name}: {why}" for name, why in left_out.items() if name not in heads]:
        raise StoreDamaged(
            f"{path}: files are not as {LISTING} lists them; copy the bundle "
            f"again:{list_some(lost)}"
        )
    for member in listing.members:
        _check_run(path / "runs" / member.name)
    return Bundle(path, listing, found, frozenset(heads))


def _refuse(path: Path, what: str, problems: list[str]) -> None:
    if problems:
        raise InputError(
            f"{path}: refused, it has {what}; remove that, or get the bundle "
            f"elsewhere:{list_some(problems)}"
        )


def _read_listing(path: Path) -> bytes:
    """Bytes of bundle.json, which is of a bounded size and not a link."""
    try:
        found = os.lstat(path / LISTING)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_LISTING:
            raise InputError(
                f"{path / LISTING}: not a file of at most {MAX_LISTING} bytes; get the bundle "
                "elsewhere"
            )
        return (path / LISTING).read_bytes()
    except PermissionError as err:
        raise NoAccessError.of(err, path / LISTING) from err
    except OSError as err:
        raise InputError(
            f"{path / LISTING}: cannot be read ({err.strerror}); `biomass bundle SWEEP --out DIR` "
            "makes a "
            "bundle"
        ) from err


def _parsed(text: bytes, where: Path) -> Listing:
    value = _json(text, where)
    told = (value.get("format"), value.get("format_version"))
    if told != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{where}: format {told[0]!r} version {told[1]!r}, this program reads {FORMAT!r} "
            "version "
            f"{FORMAT_VERSION}; use the biomass that made the bundle"
        )
    return _validated(Listing, value, where)


def _json(text: bytes, where: Path) -> dict[str, Any]:
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


def _validated(kind: type[P], value: dict[str, Any], where: Path) -> P:
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


def _walk(path: Path) -> dict[str, int | str]:
    """Size of every file below the folder, or why it is none, by its path there; no link is
    followed."""
    found: dict[str, int | str] = {}
    for name, why in _entries(path, ""):
        found[name] = why
        if len(found) > MAX_FILES + len(UPLOAD_FILES) + 1:
            raise InputError(f"{path}: more than {MAX_FILES} files; that is no bundle")
    return dict(sorted(found.items()))


def _entries(folder: Path, above: str) -> Iterator[tuple[str, int | str]]:
    with os.scandir(folder) as entries:  # not sorted here: there may be too many to hold
        empty = True
        for entry in entries:
            name, mode, empty = above + entry.name, entry.stat(follow_symlinks=False), False
            if stat.S_ISLNK(mode.st_mode):
                yield name, "a link"
            elif name.count("/") >= MAX_DEPTH:
                yield name, f"more than {MAX_DEPTH} folders deep"
            elif stat.S_ISDIR(mode.st_mode):
                yield from _entries(folder / entry.name, name + "/")
            else:
                yield (
                    name,
                    mode.st_size if stat.S_ISREG(mode.st_mode) else "neither a file nor a folder",
                )
    if empty and above:
        yield above, EMPTY


def _strange(sizes: dict[str, int | str], listing: Listing) -> Iterator[str]:
    """What is in the folder and must not be, and why."""
    for name, size in sizes.items():
        if isinstance(size, str):
            # all heads of a run may be missing
            if size != EMPTY or not any(each.startswith(name) for each in listing.files):
                yield f"{name}: {size}"
        elif name in UPLOAD_FILES or name == LISTING:
            if size > MAX_LISTING:
                yield f"{name}: {size} bytes, of at most {MAX_LISTING}"
        elif Path(name).suffix.lower() in PICKLED:
            yield (
                f"{name}: {Path(name).suffix} files can hold pickles, which are never read; "
                "weights are .safetensors"
            )
        elif name not in listing.files:
            yield f"{name}: extra, not listed in {LISTING}"
        elif size > (most := _most_bytes(name)):
            yield f"{name}: {size} bytes, of at most {most}"


def _misnamed(listing: Listing) -> Iterator[str]:
    for name, file in listing.files.items():
        if not (most := _most_bytes(name)):
            yield f"{name}: listed, and not a kind of file that bundles have"
        elif file.size > most:
            yield f"{name}: listed with {file.size} bytes, of at most {most}"
    for member in listing.members:
        run = f"runs/{member.name}/"
        if not {run + "config.yaml", run + "spec.json"} <= set(listing.files):
            yield f"{run}: a member whose config.yaml or spec.json is not listed"
        if not any(name.startswith(run + "weights/") for name in listing.files):
            yield f"{run}: a member of which no head is listed"


def _most_bytes(name: str) -> int:
    """Bound of a path in a bundle; 0 where no such file may be."""
    return next((most for pattern, most in MAX_BYTES.items() if re.fullmatch(pattern, name)), 0)


def _damaged(path: Path, listing: Listing, sizes: dict[str, int | str]) -> dict[str, str]:
    """Listed files that are missing or changed, and how; InputError if one is not what its name
    says."""
    damaged, disguised = {}, []
    for name, file in listing.files.items():
        if name not in sizes:
            damaged[name] = "missing"
        elif why := _pickled(path / name):
            disguised.append(f"{name}: {why}")
        elif sizes[name] != file.size:
            damaged[name] = f"changed, {sizes[name]} bytes instead of {file.size}"
        elif (found := file_sha256(path / name)) != file.sha256:
            damaged[name] = f"changed, sha256 {found} instead of {file.sha256}"
        elif why := _malformed(path / name):
            disguised.append(f"{name}: {why}")
    _refuse(path, "files that are not what their names say", disguised)
    return damaged


def _pickled(path: Path) -> str | None:
    """What a file is by its first bytes, where they are of a kind that can hold pickles; a wheel is
    a zip."""
    what = None if path.suffix == ".whl" else pickled(path)
    return what and f"{what}, which is never read"


def _malformed(path: Path) -> str | None:
    """Why a file is not of the kind that its name says, if it is not; nothing is loaded."""
    head = _head(path)
    if path.suffix == ".whl":
        return None if head.startswith(b"PK\x03\x04") else "not a wheel"
    if path.suffix == ".safetensors":  # the length of a JSON object, and that object
        sound = head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size
        return None if sound else "not safetensors"
    return _not_text(path)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def _not_text(path: Path) -> str | None:
    decoder, nested = (
        codecs.getincrementaldecoder("utf-8")(),
        path.suffix in (".json", ".ipynb", ".yaml"),
    )
    try:
        with open(path, "rb") as file:
            # files that can nest are of one block
            for block in iter(lambda: file.read(1 << 24), b""):
                if "\0" in decoder.decode(block):
                    return "not text"
                if nested and is_deep(block):
                    return f"nested more than {MAX_NESTING} deep"
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "not text"
    return None
