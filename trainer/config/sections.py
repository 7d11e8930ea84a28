"""The keys of a sweep's YAML as typed, frozen models, one point at a time.

Plain values only: the code that uses them builds the objects. `trainer.loop.grid` reads files and
grids; whether a config fits a store is checked where one is opened.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from featurestore.disk.yaml import as_yaml
from featurestore.format.spec import POOLED
from trainer.config.dataset import DatasetConfig
from trainer.config.scoring import CvConfig, InferenceConfig
from trainer.config.section import (
    BelowOne,
    Count,
    CountFromZero,
    PositiveNumber,
    Section,
    Share,
    Weight,
)
from trainer.config.stores import StoreName, VectorName
from trainer.config.targets import OLD_KEYS, Preset, ScoreName, TargetTable


def _known_kind(name: str, info: ValidationInfo) -> str:
    """Refuse a kind that is not among `kinds` of the validation context: heads are built above
    this room, so whoever loads a config says which there are."""
    known = (info.context or {}).get("kinds", [name])
    if name not in known:
        raise ValueError(f"found {name!r}, expected one of {', '.join(known)}")
    return name


def _each_once(names: list[str]) -> list[str]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is there twice")
    return names


ColumnNames = Annotated[list[str], AfterValidator(_each_once)]


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


class HeadConfig(Section):
    kind: Annotated[str, AfterValidator(_known_kind)]
    """A file of trainer/heads/kinds: heads trained together (cls_gating, density, attention,
    pooled_mlp), or a regressor on pooled rows (ridge, kernel_ridge, svr, pls, gpr, logistic,
    hist_gbdt). Keys that a kind ignores do not multiply the grid."""

    seed: CountFromZero = 0
    """Another number, other initial weights and dropout over the same folds and rows: as an axis,
    the spread by luck."""

    gate_hidden: Count | None = None
    """Hidden width of the gate; null = D // 4. `cls_gating`."""

    shared_hidden: Count = 512
    """Width of the layer all outputs share. `cls_gating`, `attention`, `pooled_mlp`."""

    queries: Count = 2
    """Ways to weigh the patches that are learned side by side. `attention`."""

    features: Annotated[list[VectorName], Field(min_length=1)] = ["cls", *POOLED]
    """Pooled vectors of a photograph, one after another. NAME/cls is one store's of
    `dataset.stores`, cls that of every store in order. `pooled_mlp` and regressors."""

    columns: ColumnNames = []
    """Columns of the store's catalog that are read beside the photograph: numbers, scaled by the
    training fold alone, or words, a channel each. Photographs to predict need them in test.csv
    (docs/sweep.md). All kinds but `density`."""

    store: StoreName | None = None
    """Which of `dataset.stores` patches are read from; null = the first. Kinds that read
    patches."""

    dropout: BelowOne = 0.2
    """Rate after the shared layer. `cls_gating`, `attention`, `pooled_mlp`."""

    normalize: bool | None = None
    """Bring each channel to mean 0 and std 1, by the rows of the training fold alone; null = as the
    kind does best: `density` does, kinds with a LayerNorm do not. Regressors always do."""

    @model_serializer(mode="wrap")
    def _without_store(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As of `DatasetConfig`."""
        values = plain(self)
        if self.store is None:
            del values["store"]
        if not self.columns:
            del values["columns"]
        return values


class LossConfig(Section):
    space: Literal["raw", "log1p", "sqrt", "average", "chosen"] | None = None
    """What the masses are compared in; heads predict grams in each. null = the kind's own: `chosen`
    for `ridge`, `sqrt` for `kernel_ridge`, `gpr` and `svr`, `raw` for all others. For `ridge`
    alone: `average` of a fit in raw and one in log1p; `chosen` for each mass among these four by
    the inner folds of the training rows."""

    scale: Literal["none", "spread"] = "spread"
    """Divide errors of masses by their spread in the training fold (in `space`, the root of the
    five variances' mean), and those of Height by its own: weights and `beta` then mean the same
    in every space; none = errors in units of `space`, and in cm."""

    beta: PositiveNumber = 1.0
    """Error, in spreads or, without `scale`, in units of `space`, below which smooth L1 is
    quadratic."""

    main_weights: Annotated[list[Weight], Field(min_length=3, max_length=3)] = [1.0, 0.5, 0.3]
    """Weights of Total, GDM and Green."""

    state_weight: Weight = 0.1
    """Weight of the State's cross-entropy."""

    height_weight: Weight = 0.1
    """Weight of the height's smooth L1."""

    aux_weight: Weight = 0.1
    """Weight of the smooth L1 of Dead and Clover."""

    intervals: Annotated[int, Field(ge=0)] = 0
    """Classify each mass into this many intervals too, of equal counts in the training fold; 0 =
    not."""

    interval_weight: Weight = 0.1
    """Weight of the cross-entropy of the intervals."""


class TrainerConfig(Section):
    num_epochs: Count = 200
    """Epochs: each walks through the training images in a new order. Its steps are the whole
    batches of a fold of average size, for every fold: one that trains on more images leaves some
    out of an epoch, one that trains on fewer shows some again."""

    batch_size: Count = 32
    """Images of a step of one fold; with more than a fold trains on, some come twice in a batch."""

    gradient_accumulation_steps: Count = 1
    """Batches whose gradients make one step of the optimiser."""

    use_amp: bool = True
    """False: `multiply: auto` is float32 everywhere."""

    multiply: Literal["auto", "float32", "float16", "bf16", "bf16x2"] = "auto"
    """What tokens and the weights over them are multiplied in; sums stay in float32. A sweep keeps
    what it began with. `auto`: float16 on CUDA; on a CPU with instructions for bf16 what a short
    timed probe finds faster; else float32. `bf16x2`: a second product makes up for what the first
    loses by rounding."""

    checkpoint_every: CountFromZero = 0
    """Epochs between checkpoints to resume from; 0 = only when a signal, KeyboardInterrupt or an
    error stops the sweep."""

    best_by: Literal["score", "loss"] = "score"
    """What chooses a head's `best` weights among the epochs: the score of what it holds out, or the
    loss it was trained by, of the same images."""

    memory_gb: PositiveNumber = 8.0
    """Memory of the device that trains, in GB, that one pass over the tokens may plan with. Points
    are dealt into as many passes as that takes; a sweep keeps its passes, whatever is free when it
    is resumed."""

    passes: Count | None = None
    """Passes over the tokens; null = as few as `memory_gb` allows."""

    tensorboard: bool = False
    """Write TensorBoard events beside metrics.jsonl; needs the package tensorboard."""


def forgetting(n_steps: int) -> float:
    """The decay, 0.997 or less, by which 1 % of the first weights is left after so many steps."""
    return min(0.997, 0.01 ** (1 / n_steps))


class OptimizationConfig(Section):
    lr: PositiveNumber
    """Peak learning rate of AdamW."""

    weight_decay: Weight
    """Decoupled weight decay of AdamW."""

    decay_biases: bool = False
    """Decay biases and the weights of LayerNorms, too. It pulls masses at the mean of features
    towards 0."""

    initial_biases: Literal["means", "drawn"] = "means"
    """Where the biases of outputs begin: at the means of the training fold, or drawn as all other
    weights are."""

    initial_weights: Literal["drawn", "zero"] = "drawn"
    """Where the weights of output layers begin: drawn as all other weights are, or at 0, so that
    every prediction begins at the biases. `zero` helps `density` (docs/drawn.md)."""

    warmup_rate: Share = 0.1
    """First part of the steps, in which the rate rises linearly; then it falls as a cosine."""

    warmup_from_zero: bool = False
    """The first step has a rate of 0, as by transformers' schedules; else it has a first part of
    the rise."""

    use_ema: bool = True
    """Score and save the moving average of the weights."""

    ema_decay: BelowOne | None = None
    """Share of itself the average keeps at a step: 0.997 looks back over some 300. null = 0.997, or
    less where training is so short (below 1,533 steps) that more than 1 % of the first weights
    would be left."""

    ema_start_ratio: Share = 0.025
    """First part of the steps, in which the average follows the weights exactly."""

    ema_delay: CountFromZero = 0
    """Further steps in which it does."""

    def average_decay(self, n_steps: int) -> float:
        """`ema_decay` of a training of so many steps."""
        return forgetting(n_steps) if self.ema_decay is None else self.ema_decay


class MixupConfig(Section):
    enabled: bool = False
    """Mix each image with a partner of its batch."""

    kind: Literal["none", "patches", "pooled", "same_site"] = "patches"
    """`patches`: patch by patch, before heads pool them. `pooled`: what a head pooled from each
    photograph. `same_site`: as `patches`, with partners of the same site (`cv.groups`); an
    image alone in its batch stays unmixed. `none` is the same as not enabled."""

    alpha: PositiveNumber = 1.0
    """Beta(alpha, alpha) draws the share of the first image."""

    disable_ratio: Share = 0.2
    """Last part of the epochs, which trains on unmixed rows."""

    @property
    def on(self) -> bool:
        return self.enabled and self.kind != "none"


class AugmentationConfig(Section):
    mixup: MixupConfig = MixupConfig()
    """Zhang et al. 2018, arXiv:1710.09412."""


class PointConfig(Section):
    """One hyper-parameter setting, complete: what is saved beside the weights."""

    config_version: Literal[1, 2] = 2
    """What missing keys and null mean. A saved config without it is of version 1, whose defaults
    were others (docs/sweep.md)."""

    experiment: ExperimentConfig
    """What this is called and the seed."""

    backbone: BackboneConfig = BackboneConfig()
    """What the store's tokens must come from."""

    dataset: DatasetConfig = DatasetConfig()
    """Which store, and which masses are learned."""

    targets: Preset | TargetTable | None = None
    """What is learned: `csiro`, the contest's five masses with State and Height beside them, or a
    table of names, each with `kind`, `weight`, `loss_weight`, `sum_of` and `auxiliary`
    (docs/targets.md). null = csiro where the store has its five columns."""

    score: ScoreName | None = None
    """What ranks: `contest`, one weighted R2 over all targets; `r2`, the weighted mean of each
    target's; `rmse`, `mae`; of classes `log_loss`, `accuracy`. null = contest under the preset,
    else r2, or log_loss where only classes are scored."""

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

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if self.has_own_targets and (given := self.old_keys_given):
            told = ", ".join(f"{key} ({OLD_KEYS[key]} says it)" for key in given)
            raise ValueError(f"beside `targets` there is no {told}; leave it out")
        return self

    @property
    def has_own_targets(self) -> bool:
        """Targets of its own, not the preset's."""
        return isinstance(self.targets, dict)

    @property
    def old_keys_given(self) -> list[str]:
        """Keys of the preset that a config names."""
        given = []
        for key in OLD_KEYS:
            section, name = key.split(".")
            if name in getattr(self, section).model_fields_set:
                given.append(key)
        return given

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The preset is saved as before there were targets, for older programs; elsewhere its own
        keys are left out."""
        values = plain(self)
        if self.has_own_targets:
            for key in OLD_KEYS:
                section, name = key.split(".")
                del values[section][name]
            return values
        del values["targets"]
        if self.score is None:
            del values["score"]
        return values


def dump_yaml(model: PointConfig) -> str:
    """The config as YAML, every default written out; `load_point` gives an equal config."""
    values = model.model_dump(mode="json")
    return as_yaml(values, sort_keys=False, default_flow_style=None, width=120)
