"""The YAML of a sweep as typed, frozen models; a list for a scalar is a grid axis.

Plain values only: the code that uses them builds the objects. Whether they fit a store is checked where one is opened.
"""

import difflib
import functools
import itertools
import math
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from featurestore.errors import InputError, list_some
from featurestore.yaml import read_yaml


def _number(value: Any) -> Any:
    """`2e-3` is text to PyYAML (YAML 1.1 wants a dot); where the schema says number, it is one."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # pydantic's refusal names what was found


def _exactly(*names: str) -> AfterValidator:
    def check(value: list[str]) -> list[str]:
        if value != list(names):
            raise ValueError(f"found {reprlib.repr(value)}, expected {list(names)}: others are not supported yet")
        return value

    return AfterValidator(check)


Number = Annotated[float, BeforeValidator(_number)]
PositiveNumber = Annotated[Number, Field(gt=0)]
Weight = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
BelowOne = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountFromZero = Annotated[int, Field(ge=0)]
Fold = Annotated[CountFromZero | None, BeforeValidator(lambda value: None if value == "all" else value)]


class Section(BaseModel):
    """Frozen, nothing unknown, and strict: a bool is not a number, a number is not a string."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ExperimentConfig(Section):
    name: Annotated[str, Field(min_length=1)]
    """Opens the names of the sweep's folder and of its runs."""

    seed: CountFromZero
    """Seeds folds, stream, initial weights and dropout; one seed, one result."""


class BackboneConfig(Section):
    model_name: str | None = None
    """timm name the store must have been built with; null = whichever it was."""

    hidden_dim: Count | None = None
    """Width D of its tokens; null = not checked."""

    num_patches: Count | None = None
    """Patches P of one tile; null = not checked."""


class DatasetConfig(Section):
    store: Annotated[Path, Field(strict=False)] | None = None
    """The feature store; null = given on the command line."""

    img_size: Count | None = None
    """Side of a tile in pixels; null = not checked."""

    num_aug_patterns: Count | None = None
    """Views V of each image; null = not checked."""

    target_cols: Annotated[list[str], _exactly("Dry_Total_g", "GDM_g", "Dry_Green_g")] = [
        "Dry_Total_g", "GDM_g", "Dry_Green_g",
    ]
    """Masses of the main loss, in the order of `loss.main_weights`."""

    aux_target_cols: Annotated[list[str], _exactly("Dry_Dead_g", "Dry_Clover_g")] = ["Dry_Dead_g", "Dry_Clover_g"]
    """Masses of the auxiliary loss."""


class HeadConfig(Section):
    kind: Literal["cls_gating", "density"]
    """`cls_gating`: the CLS token weighs the patches, then an MLP. `density`: grams of each patch, summed."""

    gate_hidden: Count | None = None
    """Hidden width of the gate; null = D // 4. `cls_gating` only."""

    shared_hidden: Count = 512
    """Width of the layer all outputs share. `cls_gating` only."""

    dropout: BelowOne = 0.2
    """Rate after the shared layer. `cls_gating` only."""

    normalize: bool = False
    """Bring each channel to mean 0 and std 1, by the rows of the training fold alone."""


class LossConfig(Section):
    beta: PositiveNumber = 1.0
    """Grams below which smooth L1 is quadratic."""

    main_weights: Annotated[list[Weight], Field(min_length=3, max_length=3)] = [1.0, 0.5, 0.3]
    """Weights of Total, GDM and Green."""

    state_weight: Weight = 0.1
    """Weight of the State's cross-entropy."""

    height_weight: Weight = 0.1
    """Weight of the height's smooth L1."""

    aux_weight: Weight = 0.1
    """Weight of the smooth L1 of Dead and Clover."""


class TrainerConfig(Section):
    num_epochs: Count = 200
    """Epochs: each walks once through the training images, in a new order and whole batches; a remainder is left out."""

    batch_size: Count = 32
    """Images of a step of one fold."""

    gradient_accumulation_steps: Count = 1
    """Batches whose gradients make one step of the optimiser."""

    use_amp: bool = True
    """Multiply in half precision where the device is faster at it; sums stay in float32."""

    checkpoint_every: CountFromZero = 0
    """Epochs between checkpoints to resume from; 0 = none."""


class OptimizationConfig(Section):
    lr: PositiveNumber
    """Peak learning rate of AdamW."""

    weight_decay: Weight
    """Decoupled weight decay of AdamW."""

    warmup_rate: Share = 0.1
    """First part of the steps, in which the rate rises linearly; then it falls as a cosine."""

    use_ema: bool = True
    """Score and save the moving average of the weights."""

    ema_decay: BelowOne = 0.997
    """Share of itself the average keeps at a step: 0.997 looks back over some 300."""

    ema_start_ratio: Share = 0.025
    """First part of the steps, in which the average follows the weights exactly."""


class MixupConfig(Section):
    enabled: bool = True
    """Mix each image with a partner of its batch."""

    alpha: PositiveNumber = 1.0
    """Beta(alpha, alpha) draws the share of the first image."""

    disable_ratio: Share = 0.2
    """Last part of the epochs, which trains on unmixed rows."""


class AugmentationConfig(Section):
    mixup: MixupConfig = MixupConfig()
    """Zhang et al. 2018, arXiv:1710.09412."""


class InferenceConfig(Section):
    tta_indices: Annotated[list[CountFromZero], Field(min_length=1)] = [0, 1, 2, 3]
    """Views averaged when `best` and `last` are scored; 0 to 3 are the plain flips."""

    constraints: Literal["order", "clip"] = "order"
    """How averaged masses are made to hold Total >= GDM >= Green >= 0: isotonic projection, or clipping upwards."""


class CvConfig(Section):
    n_folds: Annotated[int, Field(ge=2)] = 5
    """Parts the groups are dealt into; the number of States for groups `state`."""

    repeats: Count = 1
    """Regroupings, each with all its folds; 20 give error bars."""

    groups: Literal["site", "date", "state"] = "site"
    """What is held out together; `state` leaves one State out."""

    strata: list[str] = ["Dry_Clover_g", "Dry_Dead_g"]
    """Columns whose > 0 is spread evenly over the folds."""

    fold: Fold = None
    """Train only this fold of each repeat; null or all = every one."""

    tta: bool = True
    """Score `best` and `last` with the views of `inference.tta_indices` too."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold is not None and self.fold >= self.n_folds:
            raise ValueError(f"fold {self.fold} does not exist: n_folds is {self.n_folds}, the first fold is 0")
        return self


class PointConfig(Section):
    """One hyper-parameter setting, complete: what is saved beside the weights."""

    experiment: ExperimentConfig
    """What this is called and the seed."""

    backbone: BackboneConfig = BackboneConfig()
    """What the store's tokens must come from."""

    dataset: DatasetConfig = DatasetConfig()
    """Which store, and which masses are learned."""

    head: HeadConfig
    """The small model."""

    loss: LossConfig = LossConfig()
    """The multi-task loss."""

    trainer: TrainerConfig = TrainerConfig()
    """How long and in what portions."""

    optimization: OptimizationConfig
    """AdamW, its schedule, the moving average."""

    augmentation: AugmentationConfig = AugmentationConfig()
    """What is done to rows on their way to the heads."""

    inference: InferenceConfig = InferenceConfig()
    """How finished heads predict."""

    cv: CvConfig = CvConfig()
    """What is held out."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a resolved config. Raises InputError, also if it holds a grid."""
        first, axes = _split_axes(read_yaml(path), path)
        if axes:
            raise InputError(f"{path}: {', '.join(axes)}: a list where one value belongs; "
                             "this is a sweep's config, a run has one value for each key")
        return _validated(first, path)


SHARED = ("experiment", "backbone", "dataset", "trainer", "augmentation.mixup.disable_ratio", "inference", "cv")
"""Sections and keys that are one for all points: they make the stream, or belong to the pass over it."""


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
        path : a YAML file of plain values. A list for a scalar, or a list of lists for a list, is a grid axis.
        overrides : values by dotted key, e.g. {"cv.fold": 0}, that replace or add to those of the file.

        Raises InputError, naming file and dotted key, for whatever cannot be read, is unknown, or has a wrong value.
        """
        raw = read_yaml(path)
        for key, value in (overrides or {}).items():
            _check_override(key, path)
            _put(raw, key, value)
        first, axes = _split_axes(raw, path)
        base = _validated(first, path)
        return cls(base, {key: _axis_values(base, key, values, path) for key, values in axes.items()})

    @classmethod
    def of(cls, base: dict[str, Any], axes: dict[str, list], where: Path) -> Self:
        """The config that `base` (as plain values) and `axes` came from; `where` is named by errors."""
        first = _validated(base, where)
        return cls(first, {key: _axis_values(first, key, values, where) for key, values in axes.items()})

    @property
    def n_points(self) -> int:
        """How many points there are, known without making them: a grid may be huge by mistake."""
        return math.prod(len(values) for values in self.axes.values())

    @functools.cached_property
    def points(self) -> list[PointConfig]:
        """Every combination, the last axis fastest."""
        return [
            functools.reduce(_replaced, zip(self.axes, values, strict=True), self.base)
            for values in self._combinations()
        ]

    @functools.cached_property
    def names(self) -> list[str]:
        """A folder name for each point, e.g. `001_exp013_dinov3__lr-0_002__weight_decay-0_01`."""
        digits = max(3, len(str(self.n_points)))
        return [self._name(f"{index:0{digits}d}", values) for index, values in enumerate(self._combinations(), 1)]

    def _combinations(self) -> Iterator[tuple]:
        return itertools.product(*self.axes.values())

    def _name(self, index: str, values: tuple) -> str:
        words = [key.rsplit(".", 1)[-1] for key in self.axes]
        settings = [f"{word}-{_spoken(value)}" for word, value in zip(words, values, strict=True)]
        return safe_name("__".join([f"{index}_{self.base.experiment.name}", *settings]))


def dump_yaml(model: PointConfig) -> str:
    """The config as YAML, every default written out; `PointConfig.load` of it gives an equal config."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)


def safe_name(text: str) -> str:
    """The text as one ASCII path component, at most 200 characters: no separators, dots or blanks."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "_", text)[:200]


def _spoken(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(_spoken(each) for each in value)
    if isinstance(value, float):
        return f"{value:g}".replace(".", "_")
    return yaml.safe_dump(value).split("\n")[0]  # null, true, density: as in the file


def _split_axes(raw: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, list]]:
    """The first point as nested plain values, and the axes. Refuses unknown keys and axes where none may be."""
    first: dict[str, Any] = {}
    axes: dict[str, list] = {}
    for key, annotation, value in _leaves(raw, PointConfig, "", path):
        if _is_axis(annotation, value):
            _check_axis(key, value, path)
            axes[key], value = value, value[0]
        _put(first, key, value)
    return first, axes


def _leaves(raw: Any, section: type[Section], prefix: str, path: Path) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, annotation, value) of every value, in the order of the file."""
    if not isinstance(raw, dict | None):
        raise InputError(f"{path}: {prefix[:-1]}: found {reprlib.repr(raw)}, expected a section with keys "
                         f"{', '.join(section.model_fields)}")
    for name, value in (raw or {}).items():
        _refuse_unknown(name, section, prefix, path)
        annotation = section.model_fields[name].annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _leaves(value, annotation, f"{prefix}{name}.", path)
        else:
            yield f"{prefix}{name}", annotation, value


def _check_override(key: str, path: Path) -> None:
    known = list(_keys(PointConfig))
    if key not in known:
        raise InputError(f"{path}: {key}: no such key to override; {_nearest(key, known) or f'known: {known}'}")


def _refuse_unknown(name: str, section: type[Section], prefix: str, path: Path) -> None:
    if name not in section.model_fields:
        here = [f"{prefix}{field}" for field in section.model_fields]
        elsewhere = [key for key in _keys(PointConfig) if key.rsplit(".", 1)[-1] == name]
        hint = _nearest(f"{prefix}{name}", here + elsewhere) or f"known here: {', '.join(section.model_fields)}"
        raise InputError(f"{path}: {prefix}{name}: unknown key; {hint}")


def _nearest(key: str, known: list[str]) -> str:
    """A hint, or nothing if no key is near; the last word counts, since the sections before it are mostly shared."""
    words = {each.rsplit(".", 1)[-1]: each for each in known}
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], words, n=1)
    return f"did you mean {words[near[0]]}?" if near else ""


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _is_axis(annotation: Any, value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return typing.get_origin(annotation) is not list or any(isinstance(each, list) for each in value)


def _check_axis(key: str, values: list, path: Path) -> None:
    if any(key == shared or key.startswith(f"{shared}.") for shared in SHARED):
        raise InputError(f"{path}: {key}: found {reprlib.repr(values)}, but it cannot be a grid axis: points share "
                         "rows, partners and draws in one pass; give one value here, and each other its own sweep")
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
            raise InputError(f"{path}: {key}: {value!r} is there twice; every value of a grid axis is one point")
        checked.append(value)
    return checked


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the sections it needs; what is no section stays as it is, for the schema to refuse."""
    name, _, rest = key.partition(".")
    if not rest:
        tree[name] = value
        return
    if tree.get(name) is None:
        tree[name] = {}
    if isinstance(tree[name], dict):
        _put(tree[name], rest, value)


def _replaced(section: Any, setting: tuple[str, Any]) -> Any:
    """The section with one dotted key set to a value already found valid."""
    key, value = setting
    name, _, rest = key.partition(".")
    return section.model_copy(update={name: _replaced(getattr(section, name), (rest, value)) if rest else value})


def _validated(data: dict[str, Any], path: Path) -> PointConfig:
    """The model, or InputError with every wrong key: pydantic's own error ends here."""
    try:
        return PointConfig.model_validate(data)
    except ValidationError as err:
        wrong = [_explained(error) for error in err.errors(include_url=False)]
        several = f"{len(wrong)} keys are wrong:" + list_some(wrong)
        raise InputError(f"{path}: {wrong[0] if len(wrong) == 1 else several}") from err


def _explained(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{key}: missing, and it has no default"
    if error["type"] == "value_error":  # ours: it says what was found
        return f"{key}: {error['msg'].removeprefix('Value error, ')}"
    wanted = error["msg"].replace("Input should be", "expected").replace(" after validation", "")
    return f"{key}: found {reprlib.repr(error['input'])}, {wanted}"
