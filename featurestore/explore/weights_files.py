"""Files of backbone weights in a folder, and the stores that need them."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from featurestore.backbone.demo.model import NAME as DEMO
from featurestore.backbone.demo.model import WEIGHTS as DEMO_WEIGHTS
from featurestore.backbone.identify import Fit, fit, fits, is_backbone, naming
from featurestore.backbone.weights import UNKNOWN_WEIGHTS, cached_weights, is_random
from featurestore.backbone.weights_file import INDEX, PART, load_state, parts_of
from featurestore.disk.tensor_file import readable_name
from featurestore.errors import BiomassError, InputError
from featurestore.format.spec import StoreSpec
from featurestore.manage.transfer import open_store_or_archive

STORES = ".h5", ".hdf5", ".zarr"
CHECKPOINTS = ".pth", ".pt", ".bin", ".ckpt"
FROM_TORCH = ": made by torch.save; `biomass weights convert` it"


@dataclass
class WeightsFile:
    """One file of a backbone's weights."""

    path: Path
    n_bytes: int
    n_tensors: int
    names: str
    """Whose names the tensors have: timm, transformers, Meta, others."""
    fits: list[Fit] = field(default_factory=list)
    needed_by: list[Path] = field(default_factory=list)
    """Stores whose tokens these weights made."""

    def __str__(self) -> str:
        size = f"{self.n_bytes / 1e6:.1f} MB, {self.n_tensors} tensors, names of {self.names}"
        lines = [f"{self.path}: {size}"]
        lines += [f"  whole for {each}" for each in self.fits]
        if len(self.fits) > 1:
            lines.append("  (the tensors alone do not tell these apart)")
        lines += [f"  needed by {each}" for each in self.needed_by]
        if not self.fits:
            lines.append("  of no backbone that its shapes point to; check it with --backbone NAME")
        return "\n".join(lines)


@dataclass(frozen=True)
class StoreNeeds:
    """The weights that one store's tokens were made with, and where they are."""

    path: Path
    model: str
    size: tuple[int, int]
    weights_sha256: str
    where: str

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{self.path}: {self.model} at {height} x {width}, {self.weights_sha256[:16]}\n"
            f"  {self.where}"
        )


def check_weights(
    path: Path,
    model_name: str | None = None,
    image_size: int | None = None,
    store: Path | None = None,
) -> WeightsFile:
    """Which model a file is whole for, read as `store build --weights` reads it.

    model_name, image_size : the one to try; without it the store's, else those that the file's
        shapes point to.
    store : one whose weights the file may be; it then stands in `needed_by`.

    Raises InputError if the file fits none of them.
    """
    state = load_state(path)
    file = WeightsFile(path, path.stat().st_size, len(state), naming(state))
    if store:
        spec = open_store_or_archive(store).spec
        found = fit(path, spec.tokens.model, _size(spec))
        file.fits = [found]
        if found.weights_sha256 == spec.tokens.weights_sha256:
            file.needed_by = [store]
    elif model_name:
        size = (image_size, image_size) if image_size else None
        file.fits = [fit(path, model_name, size)]
    else:
        file.fits = fits(path)
    if not file.fits:
        raise InputError(
            f"{path}: of no backbone that its shapes point to; give --backbone NAME, and the error "
            "says what is missing"
        )
    return file


@dataclass(frozen=True)
class Listing:
    """Weights and stores of a folder."""

    files: list[WeightsFile]
    stores: list[StoreNeeds]
    pickles: list[Path]
    """Checkpoints that only `biomass weights convert` reads."""

    def __str__(self) -> str:
        lines = [str(each) for each in (*self.files, *self.stores)]
        lines += [f"{path}{FROM_TORCH}" for path in self.pickles]
        counts = f"{len(self.files)} files of weights, {len(self.stores)} stores"
        return "\n".join([*lines, counts])


def list_weights(folder: Path) -> Listing:
    """Weights and stores in a folder and all below it; links and hidden folders are not followed.

    Files without a class token, as those of heads, are left out, and so are stores that cannot be
    opened.
    """
    paths = list(_walk(folder))
    specs = {}
    for path in paths:
        if path.suffix in STORES:
            try:
                specs[path] = open_store_or_archive(path).spec
            except BiomassError:
                continue
    files = []
    for path in paths:
        file = _described(path)
        if file:
            _compare(file, specs)
            files.append(file)
    stores = [_needs(path, spec, files) for path, spec in specs.items()]
    pickles = [path for path in paths if path.suffix in CHECKPOINTS]
    return Listing(files, stores, pickles)


def as_json(value: object) -> str:
    """For machines; paths become texts."""

    def as_value(each: object) -> object:
        return str(each) if isinstance(each, Path) else asdict(each)

    return json.dumps(value, default=as_value)


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        zarrs = sorted(name for name in folders if name.endswith(".zarr"))
        # in place: os.walk goes into what is left there, and a store is not gone into
        folders[:] = sorted(n for n in folders if n not in zarrs and not n.startswith("."))
        for name in (*zarrs, *sorted(names)):
            yield Path(place) / name


def _described(path: Path) -> WeightsFile | None:
    """A file by its header alone; None if it is no backbone's, or cannot be read.

    Of a model in several files the index stands for all.
    """
    try:
        if path.name.endswith(INDEX):
            parts = parts_of(path)
        elif path.suffix == ".safetensors" and not PART.search(path.name):
            parts = [path]
        else:
            return None
        keys = set()
        for part in parts:
            with readable_name(part) as name, safe_open(name, "pt") as file:
                keys.update(file.keys())
        n_bytes = sum(part.stat().st_size for part in parts)
    except (BiomassError, SafetensorError, OSError):
        return None
    return WeightsFile(path, n_bytes, len(keys), naming(keys)) if is_backbone(keys) else None


def _compare(file: WeightsFile, specs: dict[Path, StoreSpec]) -> None:
    """Add the stores that need a file; if none does, the models that it fits."""
    # by model and size: many stores ask for the same, and each trial loads the weights
    tried: dict[tuple, Fit | None] = {}
    for store, spec in specs.items():
        key = spec.tokens.model, _size(spec)
        if key not in tried:
            try:
                tried[key] = fit(file.path, *key)
            except InputError:
                tried[key] = None
        found = tried[key]
        if found and found.weights_sha256 == spec.tokens.weights_sha256:
            file.needed_by.append(store)
            if found not in file.fits:
                file.fits.append(found)
    if not file.fits:
        file.fits = fits(file.path)


def _size(spec: StoreSpec) -> tuple[int, int]:
    return spec.tokens.tile_height, spec.tokens.tile_width


def _needs(store: Path, spec: StoreSpec, files: Sequence[WeightsFile]) -> StoreNeeds:
    tokens = spec.tokens
    here = [str(file.path) for file in files if store in file.needed_by]
    where = "not here: give the file by --weights or --backbone-weights"
    if here:
        where = ", ".join(here)
    elif tokens.weights_sha256 == UNKNOWN_WEIGHTS:
        where = "not recorded"
    elif is_random(spec):
        where = "random: drawn again"
    elif tokens.model == DEMO and _is_demos(spec):
        where = "in the program"
    elif cached := cached_weights(tokens.model):
        where = f"perhaps timm's download, {cached}"
    return StoreNeeds(store, tokens.model, _size(spec), tokens.weights_sha256, where)


def _is_demos(spec: StoreSpec) -> bool:
    return fit(DEMO_WEIGHTS, DEMO, _size(spec)).weights_sha256 == spec.tokens.weights_sha256
