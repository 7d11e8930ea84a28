"""A bundle: all that an offline machine needs in one folder, checked before use.

How one is made is in `predictor.bundle.pack`. Nothing in a bundle is believed before `check_bundle`
has gone over all of it: names, kinds and sizes first, from what the folder says, then every byte.
"""

import hashlib
import os
import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.backbone.demo.model import NAME as PACKAGED
from featurestore.backbone.weights import kept_weights
from featurestore.counts import count_of, for_count
from featurestore.errors import InputError, MismatchError, NoAccessError, StoreDamaged, list_some
from predictor.bundle.contents import find_damaged, find_misnamed, find_strange, refuse, walk
from predictor.bundle.listing import (
    BACKBONE_FOLDER,
    LISTING,
    MAX_FILES,
    MAX_LISTING,
    MAX_TILE,
    ListedMember,
    ListedSpec,
    ListedStore,
    Listing,
    parse_json,
    parse_listing,
    validated,
)
from predictor.members.member import Member
from trainer.loop.blend_folder import shared_runs
from trainer.loop.runs import RunFolder


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked."""

    path: Path
    listing: Listing
    sha256: str
    """Of bundle.json, which has that of every file: who knows it knows them all."""

    left_out: frozenset[str] = frozenset()
    """Heads that are missing or damaged, as paths in the bundle, where that was allowed."""

    @property
    def n_bytes(self) -> int:
        """Of all files that are listed."""
        return sum(file.size for file in self.listing.files.values())

    def values(self) -> dict[str, Any]:
        """For machines."""
        return {
            "path": self.path,
            "n_files": len(self.listing.files),
            "n_bytes": self.n_bytes,
            "members": [member.model_dump() for member in self.listing.members],
            "sha256": self.sha256,
        }

    def __str__(self) -> str:
        members = [
            f"\n  {m.name}: {m.weights} weights, folds {m.folds or 'all'}, share {m.weight:.3g}"
            for m in self.listing.members
        ]
        return (
            f"{self.path}: {len(self.listing.files)} files, {self.n_bytes / 1e6:.1f} MB, "
            "all as listed; "
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
        loaded = []
        for each in self.listing.members:
            member = self._member(each, folds, weights)
            if member.heads:  # all of them may be among what is left out
                loaded.append(member)
        if not loaded:
            raise StoreDamaged(
                f"{self.path}: no head is left that is as listed; copy the bundle again"
            )
        for member in [] if backbone_weights else loaded:
            for name, spec in member.specs.items():
                kept = kept_weights(spec, member.run.store_folders(name))
                if kept is None and spec.tokens.model != PACKAGED:
                    raise InputError(
                        f"{self.path}: holds no weights of {spec.tokens.model}; give them with "
                        "--backbone-weights FILE.safetensors, or make it again: `biomass bundle "
                        "SWEEP --with-backbone`"
                    )
        return loaded

    def _member(
        self,
        listed: ListedMember,
        folds: Sequence[int] | None,
        weights: str | None,
    ) -> Member:
        run = self.path / "runs" / listed.name
        if weights and RunFolder(run).weights_for(weights) != listed.weights:
            raise InputError(
                f"{self.path}: has {listed.weights} weights of {listed.name}, not {weights}; leave "
                "--epoch out"
            )
        own = [path for path in self.left_out if path.startswith(f"runs/{listed.name}/")]
        without = {path.rpartition("/")[2] for path in own}
        member = Member.load(run, folds or listed.folds, listed.weights, without)
        return member.weighing(listed.weight)


def load_members(
    path: Path,
    folds: Sequence[int] | None = None,
    weights: str | None = None,
    backbone_weights: str | None = None,
    allow_partial: bool = False,
) -> list[Member]:
    """Members of a bundle's folder, which is checked first, of a blend's, or the one that a run's
    folder is."""
    if not (path / LISTING).exists():
        return [
            Member.load(run.path, folds, weights or "last").weighing(run.share)
            for run in shared_runs(path)
            if run.share > 0
        ]
    bundle = check_bundle(path, allow_partial=allow_partial)
    if n_left_out := len(bundle.left_out):
        are = for_count(n_left_out, "is", "are")
        warnings.warn(
            f"{path}: {count_of(n_left_out, 'head')} {are} missing or damaged; the others predict "
            f"without them:{list_some(sorted(bundle.left_out))}",
            stacklevel=2,
        )
    return bundle.members(folds, weights, backbone_weights)


def check_reach(run: RunFolder) -> None:
    """InputError if a run names what a bundle cannot hold, or asks for more than one may."""
    cv = run.config.cv
    for tokens in [spec.tokens for spec in run.specs.values()]:
        if ":" in tokens.model:  # timm's hf-hub:NAME and local-dir:PATH
            raise InputError(
                f"{run.path}: its backbone {tokens.model} is described on a hub or in a folder, "
                "where no bundle may look; build the store with a model that timm knows by name"
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
    told: dict[str, ListedStore] = {
        str(spec): validated(ListedSpec, parse_json(spec.read_bytes(), spec), spec)
    }
    stores = run / "stores.json"  # of a run that learned from several
    if stores.exists():
        for name, store in parse_json(stores.read_bytes(), stores).items():
            told[f"{stores}: {name}"] = validated(ListedStore, store, stores)
    for where, each in told.items():
        if each.store_folder != BACKBONE_FOLDER:
            raise InputError(
                f"{where}: points out of the bundle, to {each.store_folder}; "
                "get the bundle elsewhere"
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
    listing = parse_listing(text, path / LISTING)
    try:
        # names, kinds and sizes first: nothing that they do not allow is ever opened
        sizes = walk(path)
        strange = [*find_strange(sizes, listing), *find_misnamed(listing)]
        refuse(path, "what no bundle holds", strange)
        left_out = find_damaged(path, listing, sizes)
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err
    except OSError as err:
        raise InputError(
            f"{err.filename or path}: cannot be read ({err.strerror}); make it readable"
        ) from err
    # of heads alone some may be missing: the others predict all the same
    heads = set()
    if allow_partial:
        heads = {name for name in left_out if re.fullmatch(r"runs/[^/]+/weights/[^/]+", name)}
    if lost := [f"{name}: {why}" for name, why in left_out.items() if name not in heads]:
        raise StoreDamaged(
            f"{path}: files are not as {LISTING} lists them; copy the bundle "
            f"again:{list_some(lost)}"
        )
    for member in listing.members:
        _check_run(path / "runs" / member.name)
    return Bundle(path, listing, found, frozenset(heads))


def _read_listing(path: Path) -> bytes:
    """Bytes of bundle.json, which is of a bounded size and not a link."""
    try:
        # lstat: a link may lead out of the bundle, a pipe never ends
        found = os.lstat(path / LISTING)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_LISTING:
            raise InputError(
                f"{path / LISTING}: not a file of at most {MAX_LISTING} bytes; "
                "get the bundle elsewhere"
            )
        return (path / LISTING).read_bytes()
    except PermissionError as err:
        raise NoAccessError.of(err, path / LISTING) from err
    except OSError as err:
        raise InputError(
            f"{path / LISTING}: cannot be read ({err.strerror}); `biomass bundle SWEEP --out DIR` "
            "makes a bundle"
        ) from err
