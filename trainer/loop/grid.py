"""A sweep's YAML, read: a list for a scalar is a grid axis; keys a kind ignores add no points.

`trainer.config.sections` says what keys there are, and what they may hold.
"""

import difflib
import functools
import itertools
import json
import math
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from featurestore.disk.validation import wrong_keys
from featurestore.disk.yaml import as_yaml, read_yaml
from featurestore.errors import InputError, list_some
from trainer.config.section import Section, fields_of
from trainer.config.sections import (
    AugmentationConfig,
    HeadConfig,
    LossConfig,
    MixupConfig,
    OptimizationConfig,
    PointConfig,
)
from trainer.config.targets import TargetConfig, check_score, targets_of
from trainer.heads import kinds
from trainer.heads.reads import store_of, unknown_store
from trainer.loop.versions import NEWEST, check_space, of_version, resolved

SHARED = (
    "config_version",
    "experiment",
    "backbone",
    "dataset",
    "targets",
    "score",
    "trainer",
    "augmentation.mixup.disable_ratio",
    "inference",
    "cv",
)
"""Sections and keys that are one for all points: they make the stream, or belong to its pass."""


def load_point(path: Path) -> PointConfig:
    """Read a run's config, with what its version stands for written out. Raises InputError, also
    if it holds a grid."""
    first, axes = _split_axes(read_yaml(path), path)
    if axes:
        raise InputError(
            f"{path}: {', '.join(axes)}: a list where one value belongs; "
            "this is a sweep's config, a run has one value for each key"
        )
    point = resolved(SweepConfig.of(first, {}, path).base)
    check_space(point.head.kind, point.loss.space, path)
    return point


@dataclass(frozen=True)
class SweepConfig:
    """All points of a grid: the first one, and the axes along which the others differ."""

    base: PointConfig
    """The first point; keys that define the stream are equal in all."""

    axes: dict[str, list]
    """Values of each axis by dotted key, in the order of the file."""

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a sweep's YAML.

        Parameters
        ----------
        path : a YAML file of plain values. A list for a scalar, or a list of lists for a list, is a
            grid axis.
        overrides : values by dotted key, e.g. {"cv.fold": 0}, that replace or add to those of the
            file.

        Raises InputError, naming file and dotted key, for whatever cannot be read, is unknown, or
        has a wrong value.
        """
        raw = read_yaml(path)
        known = [key for key, _ in fields_of(PointConfig)]
        for key, value in (overrides or {}).items():
            if key not in known:
                hint = _nearest(key, known) or f"known: {known}"
                raise InputError(f"{path}: {key}: no such key to override; {hint}")
            _put(raw, key, value)
        first, axes = _split_axes(raw, path)
        # what a user writes without a version is new; `of` takes what was saved without one for old
        config = cls.of(first, axes, path, missing_version=NEWEST)
        config._check_spaces(path)
        return config

    @classmethod
    def of(
        cls,
        base: dict[str, Any],
        axes: dict[str, list],
        where: Path,
        missing_version: int = 1,
    ) -> Self:
        """The config that `base` (plain values) and `axes` came from; errors name `where`.

        missing_version : what a `base` without `config_version` is of; 1 for what was saved.
        """
        first = _validated(of_version(base, missing_version), where)
        checked = {}
        for key, values in axes.items():
            checked[key] = _axis_values(first, key, values, where)
        return cls(first, checked)

    def _check_spaces(self, where: Path) -> None:
        """Not part of `of`: it imports every kind, and torch with it."""
        if self.base.config_version == 1:
            return
        used_kinds = self.axes.get("head.kind", [self.base.head.kind])
        used_spaces = self.axes.get("loss.space", [self.base.loss.space])
        for kind, space in itertools.product(used_kinds, used_spaces):
            check_space(kind, space, where)

    @property
    def n_combinations(self) -> int:
        """At most so many points, known without making them: a grid may be huge by mistake."""
        return math.prod(len(values) for values in self.axes.values())

    @functools.cached_property
    def points(self) -> list[PointConfig]:
        """Every combination, the last axis fastest; of those that differ only in keys that their
        kind ignores, the first."""
        return [point for point, _ in self._members]

    @functools.cached_property
    def names(self) -> list[str]:
        """A folder name for each point, e.g. `001_exp013_dinov3__lr-0_002__weight_decay-0_01`."""
        digits = max(3, len(str(len(self._members))))
        ends = [key.rpartition(".")[2] for key in self.axes]
        names = []
        for index, (_, settings) in enumerate(self._members, 1):
            words = [f"{index:0{digits}d}_{self.base.experiment.name}"]
            for key, value in settings.items():
                parts = key.split(".")
                # the last part, or two where another axis ends alike
                n_parts = 1 if ends.count(parts[-1]) == 1 else 2
                word = "_".join(parts[-n_parts:])
                words.append(f"{word}-{_spoken(value)}")
            names.append(safe_name("__".join(words)))
        return names

    def with_cv(self, **values: Any) -> Self:
        """The same points with other values of some keys of `cv`."""
        cv = self.base.cv.model_copy(update=values)
        return replace(self, base=self.base.model_copy(update={"cv": cv}))

    def with_views(self, numbers: Sequence[int]) -> Self:
        """The same points, scored under these views."""
        inference = self.base.inference.model_copy(update={"tta_indices": list(numbers)})
        return replace(self, base=self.base.model_copy(update={"inference": inference}))

    def settings(self, index: int) -> dict[str, Any]:
        """A point's values on the axes that make a difference to it."""
        return self._members[index][1]

    @functools.cached_property
    def _members(self) -> list[tuple[PointConfig, dict[str, Any]]]:
        members: dict[str, tuple[PointConfig, dict[str, Any]]] = {}
        for values in itertools.product(*self.axes.values()):
            settings = dict(zip(self.axes, values, strict=True))
            point = functools.reduce(_replaced, settings.items(), self.base)
            # of what makes no difference the first value, so that such points are equal
            idle = {key: self.axes[key][0] for key in idle_keys(point) if key in settings}
            point = functools.reduce(_replaced, idle.items(), point)
            shown = {key: value for key, value in settings.items() if key not in idle}
            point = resolved(point)
            members.setdefault(_in_effect(point), (point, shown))
        return list(members.values())


def _in_effect(point: PointConfig) -> str:
    """The same text for points that differ in spelling alone: no mixup has no kind, and pooled
    vectors are mixed in one way."""
    mixup = point.augmentation.mixup
    kind = kinds.load(point.head.kind)
    if not mixup.on:
        mixup = MixupConfig(enabled=False, disable_ratio=mixup.disable_ratio)
    elif kind.reads_pooled and mixup.kind == "pooled":
        mixup = mixup.model_copy(update={"kind": "patches"})
    head = point.head
    if point.dataset.stores and kind.reads_patches:
        head = head.model_copy(update={"store": store_of(point)})  # null is the first one
    effective = point.model_copy(
        update={"augmentation": AugmentationConfig(mixup=mixup), "head": head}
    )
    # model_dump_json refuses paths that are not UTF-8
    return json.dumps(effective.model_dump(mode="json"))


def idle_keys(point: PointConfig) -> list[str]:
    """Keys that make no difference: what its kind does not read, and settings of what is off."""
    kind = kinds.load(point.head.kind)
    mixup = point.augmentation.mixup
    patches = ("store",) if kind.reads_patches else ()
    read = ("kind", *patches, *kind.settings)
    idle = [f"head.{name}" for name in HeadConfig.model_fields if name not in read]
    # no kind lists it: all that draw anything read it
    if kind.seeded:
        idle.remove("head.seed")

    if not kind.trained:  # a regressor: no steps, no mixing, of the loss the space alone
        idle += [f"optimization.{name}" for name in OptimizationConfig.model_fields]
        idle += [f"loss.{name}" for name in LossConfig.model_fields if name != "space"]
        if "average" in kind.spaces and point.config_version == 1:
            idle.append("loss.space")
        return idle + [f"augmentation.mixup.{name}" for name in MixupConfig.model_fields]

    if not kind.has_trunk:
        weights = ("state_weight", "height_weight", "intervals", "interval_weight")
        idle += [f"loss.{name}" for name in weights]
    if not point.loss.intervals:
        idle.append("loss.interval_weight")
    if not mixup.enabled:
        idle.append("augmentation.mixup.kind")
    if not mixup.on:
        idle.append("augmentation.mixup.alpha")
    if not point.optimization.use_ema:
        idle += [f"optimization.ema_{name}" for name in ("decay", "start_ratio", "delay")]
    return idle


def safe_name(text: str) -> str:
    """The text as an ASCII path component of at most 200 characters, no dots or blanks."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "_", text)[:200]


def _spoken(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(_spoken(each) for each in value)
    if isinstance(value, float):
        return f"{value:g}".replace(".", "_")
    return as_yaml(value).split("\n")[0]  # null, true, density: as in the file


def _split_axes(raw: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, list]]:
    """The first point as nested plain values, and the axes; refuses unknown keys and wrong axes."""
    first: dict[str, Any] = {}
    axes: dict[str, list] = {}
    for key, annotation, value in _leaves(raw, PointConfig, "", path):
        # whether a list is a value of the key, alone or among others (`list[int] | None`)
        choices = annotation, *typing.get_args(annotation)
        is_list_key = any(typing.get_origin(choice) is list for choice in choices)
        holds_lists = isinstance(value, list) and any(isinstance(each, list) for each in value)
        if isinstance(value, list) and (holds_lists or not is_list_key):
            _check_axis(key, value, path)
            axes[key] = value
            value = value[0]
        _put(first, key, value)
    return first, axes


def _leaves(
    raw: Any,
    section: type[Section],
    prefix: str,
    path: Path,
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, annotation, value) of every value, in the order of the file."""
    if not isinstance(raw, dict | None):
        raise InputError(
            f"{path}: {prefix[:-1]}: found {reprlib.repr(raw)}, expected a section with keys "
            f"{', '.join(section.model_fields)}"
        )
    for name, value in (raw or {}).items():
        _refuse_unknown(name, section, prefix, path)
        annotation = section.model_fields[name].annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _leaves(value, annotation, f"{prefix}{name}.", path)
        else:
            if name == "targets":
                _refuse_unknown_settings(value, path)
            yield f"{prefix}{name}", annotation, value


def _refuse_unknown_settings(targets: Any, path: Path) -> None:
    """Of targets that are sections; whatever else they may be is told where it is validated."""
    if not isinstance(targets, dict):
        return
    for target, settings in targets.items():
        if isinstance(settings, dict):
            for name in settings:
                _refuse_unknown(name, TargetConfig, f"targets.{target}.", path)


def _refuse_unknown(
    name: str,
    section: type[Section],
    prefix: str,
    path: Path,
) -> None:
    if name not in section.model_fields:
        here = [f"{prefix}{field}" for field in section.model_fields]
        keys = [key for key, _ in fields_of(PointConfig)]
        elsewhere = [key for key in keys if key.rsplit(".", 1)[-1] == name]
        hint = _nearest(f"{prefix}{name}", here + elsewhere)
        hint = hint or f"known here: {', '.join(section.model_fields)}"
        raise InputError(f"{path}: {prefix}{name}: unknown key; {hint}")


def _nearest(key: str, known: list[str]) -> str:
    """A hint, or nothing if no key is near; its last word counts, sections are mostly shared."""
    words = {each.rsplit(".", 1)[-1]: each for each in known}
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], words, n=1)
    return f"did you mean {words[near[0]]}?" if near else ""


def _check_axis(key: str, values: list, path: Path) -> None:
    if any(key == shared or key.startswith(f"{shared}.") for shared in SHARED):
        raise InputError(
            f"{path}: {key}: found {reprlib.repr(values)}, but it cannot be a grid axis: points "
            "share rows, partners and draws in one pass; give one value here, "
            "and each other its own sweep"
        )
    if not values:
        raise InputError(f"{path}: {key}: no values; a grid axis needs at least one")


def _axis_values(base: PointConfig, key: str, values: list, path: Path) -> list:
    """The axis' values in the schema's types, each one valid; none twice, in whatever spelling."""
    checked: list = []
    for raw in values:
        data = base.model_dump()
        _put(data, key, raw)
        value = functools.reduce(getattr, key.split("."), _validated(data, path))
        if value in checked:
            raise InputError(
                f"{path}: {key}: {value!r} is there twice; every value of a grid axis is one point"
            )
        checked.append(value)
    return checked


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the sections it needs.

    What is no section stays as it is, for the schema to refuse.
    """
    name, _, rest = key.partition(".")
    if not rest:
        # of what is named, stores say, only those that the value names are replaced
        both = isinstance(value, dict) and isinstance(tree.get(name), dict)
        tree[name] = tree[name] | value if both else value
        return
    if tree.get(name) is None:
        tree[name] = {}
    if isinstance(tree[name], dict):
        _put(tree[name], rest, value)


def _replaced(section: Any, setting: tuple[str, Any]) -> Any:
    """The section with one dotted key set to a value already found valid."""
    key, value = setting
    name, _, rest = key.partition(".")
    if rest:
        value = _replaced(getattr(section, name), (rest, value))
    return section.model_copy(update={name: value})


def _validated(data: dict[str, Any], path: Path) -> PointConfig:
    """The model, or InputError with every wrong key: pydantic's own error ends here."""
    try:
        point = PointConfig.model_validate(data, context={"kinds": kinds.names()})
    except ValidationError as err:
        wrong = wrong_keys(err)
        text = wrong[0] if len(wrong) == 1 else f"{len(wrong)} keys are wrong:" + list_some(wrong)
        raise InputError(f"{path}: {text}") from err
    if wrong := unknown_store(point):
        raise InputError(f"{path}: {wrong}")
    if point.has_own_targets:
        try:
            check_score(point.score, targets_of(point.targets))
        except InputError as err:
            raise InputError(f"{path}: {err}") from err
    return point
