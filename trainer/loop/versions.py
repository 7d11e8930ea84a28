"""What a config means, by its version: keys that are missing or null as the values they stand for.

Version 1 is what was saved before there was a `config_version`. A default that changed since is
written into it, so that sweeps and runs of before go on meaning what they meant.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurestore.errors import InputError
from featurestore.photos.targets import CSIRO_STRATA
from trainer.config.sections import PointConfig
from trainer.heads import kinds

NEWEST = 2

DEFAULTS_OF_1 = {
    "head": {"normalize": False},
    "loss": {"space": "raw", "scale": "none"},
    "optimization": {"decay_biases": True},
    "augmentation": {"mixup": {"enabled": True}},
}
"""Values that version 1 gave to keys whose default is another one now."""

SAVED_WITHOUT = {
    "cv": {"n_folds": 5, "groups": "site", "strata": list(CSIRO_STRATA)},
    "inference": {"tta_indices": [0, 1, 2, 3]},
}
"""Values of keys that a config was saved without, of whatever version: since null depends on the
table and the store, a sweep saves what it stood for."""


def of_version(data: Mapping[str, Any], missing: int) -> dict[str, Any]:
    """A point's plain values with its version, and what that version alone knows.

    missing : the version of a config that names none: what was saved is older than the key, what a
        user writes is new.
    """
    versioned = {"config_version": missing, **data}
    is_of_1 = versioned["config_version"] == 1
    if is_of_1:
        versioned = _under(DEFAULTS_OF_1, versioned)
    if is_of_1 or missing == 1:
        versioned = _under(SAVED_WITHOUT, versioned)
    return versioned


def resolved(point: PointConfig) -> PointConfig:
    """The same point with every null that its kind decides, and version 1's rule for ridge, written
    out: a config of the newest version."""
    kind = kinds.load(point.head.kind)
    space = point.loss.space
    if space is None:
        space = kind.default_space
    if point.config_version == 1 and "average" in kind.spaces:
        # ridge read no loss.space then: it averaged raw and log1p whatever that said
        space = "average"
    normalize = point.head.normalize
    if normalize is None:
        normalize = kind.normalizes
    return point.model_copy(
        update={
            "config_version": NEWEST,
            "head": point.head.model_copy(update={"normalize": normalize}),
            "loss": point.loss.model_copy(update={"space": space}),
        }
    )


def check_space(kind: str, space: str | None, where: Path) -> None:
    """InputError if a kind cannot be fitted in a space."""
    known = kinds.load(kind).spaces
    if space is not None and space not in known:
        raise InputError(
            f"{where}: loss.space: found {space!r}, head.kind {kind} takes {', '.join(known)}; "
            "null is its own default"
        )


def _under(defaults: Mapping[str, Any], values: Any) -> Any:
    """The values, with defaults for what they do not have; a section is filled key by key.

    What is no section stays as it is, for the schema to refuse.
    """
    if values is None:
        return dict(defaults)
    if not isinstance(values, Mapping):
        return values
    filled = dict(values)
    for key, default in defaults.items():
        if isinstance(default, Mapping):
            filled[key] = _under(default, values.get(key))
        else:
            filled.setdefault(key, default)
    return filled
