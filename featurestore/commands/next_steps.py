"""The command that usually follows, for people to paste."""

import itertools
import shlex
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from featurestore.commands.reporting import JSON, QUIET, is_set
from featurestore.commands.running import typed_words
from featurestore.disk.urls import is_url
from featurestore.errors import BiomassError

CONFIGS = ("first.yaml", "configs/start.yaml")
"""A user's own config by the README's name for it, and that of a checkout."""
FIRST_TRY = ("--backbone", "vit_demo_patch16_dinov3", "--image-size", 192, "--views", 4)
"""Of a build: the small backbone that comes with the package."""
ANY_SHAPE = ("--crop", "squash")


def say_next(command: str, label: str = "next") -> None:
    """One line on stderr, which --quiet and --json leave out."""
    from featurestore.disk.messages import say

    if not is_set(QUIET) and not is_set(JSON):
        say(f"{label}: {command}")


def biomass(*words: object) -> str:
    """A command as it is typed."""
    return shlex.join(["biomass", *map(str, words)])


def same_without(option: str) -> str:
    """What was typed, less one flag."""
    words = typed_words(click.get_current_context().find_root())
    return biomass(*[word for word in words if word != option])


def build_first(data: Path | str, fits: bool = False) -> str:
    """The build of a first store, which a CPU can do.

    fits : the default crop takes all photographs; else they may be of any shape.
    """
    crop = () if fits else ANY_SHAPE
    return biomass("store", "build", "--data", data, "--out", "features.h5", *crop, *FIRST_TRY)


def train_with(path: Path | str) -> str:
    """Training on a store, by a config that fits its columns; where none is there, one is written
    first."""
    from featurestore.store import FeatureStore

    with FeatureStore.open(path) as store:
        catalog = store.catalog
        kind = "density" if store.spec.has_patches else "pooled_mlp"
    # a config that is there already is the user's: it is named, and never written over
    for name in CONFIGS:
        if _fits(Path(name), catalog.columns):
            return biomass("train", "--config", name, "--store", path)

    from featurestore.photos.trainable import targets_line

    numbered = (f"first-{i}.yaml" for i in itertools.count(2))
    names = itertools.chain(["first.yaml"], numbered)
    name = next(each for each in names if not Path(each).exists())
    lines = [
        "experiment: {name: first, seed: 0}",
        f"head: {{kind: [{kind}, ridge]}}",
        "optimization: {lr: [1e-3, 3e-3], weight_decay: 1e-2}",
    ]
    if targets := targets_line(catalog):
        lines.insert(0, targets)
    write = shlex.join(["printf", r"%s\n", *lines])
    return f"{write} > {name}; {biomass('train', '--config', name, '--store', path)}"


def _fits(config: Path, columns: Collection[str]) -> bool:
    """Whether a config is there and learns columns of this table."""
    from featurestore.disk.yaml import read_yaml
    from featurestore.photos.targets import has_preset

    if not config.is_file():
        return False
    settings: dict[str, Any] = {}
    with suppress(BiomassError):
        settings = read_yaml(config)
    if "head" not in settings:
        return False
    targets = settings.get("targets")
    return set(targets) <= set(columns) if isinstance(targets, dict) else has_preset(columns)


def data_beside(store: Path | str) -> Path:
    """The folder of photographs that a store is probably of: `data`, beside it if that is there."""
    beside = Path("data") if is_url(store) else Path(store).parent / "data"
    return beside if beside.is_dir() else Path("data")
