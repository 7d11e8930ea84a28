"""The keys `targets` and `score` of a sweep's YAML: what is learned, and by what it is ranked."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from featurestore.errors import InputError
from featurestore.photos.targets import Kind, Targets
from trainer.config.section import Section, Weight

Preset = Literal["csiro"]
ScoreName = Literal["contest", "r2", "rmse", "mae", "log_loss", "accuracy"]


class TargetConfig(Section):
    kind: Kind = "amount"
    """`amount` is never negative and adds up over tiles, `level` and `share` (0 to 1) are averaged
    over them, `class` is a word."""

    weight: Weight | None = None
    """In the score; null = 1, or 0 where it is auxiliary."""

    loss_weight: Weight | None = None
    """In the loss; null = `weight`, or 0.1 where it is auxiliary."""

    sum_of: list[Annotated[str, Field(min_length=1)]] = []
    """Targets that it is the sum of. Predictions hold it exactly."""

    auxiliary: bool = False
    """Learned beside the others, not scored."""


TargetTable = dict[Annotated[str, Field(min_length=1)], TargetConfig | None]

OLD_KEYS = {
    "dataset.target_cols": "the names under `targets`",
    "dataset.aux_target_cols": "`auxiliary: true` of a target",
    "loss.main_weights": "`loss_weight` of each target",
    "loss.aux_weight": "`loss_weight` of each target",
    "loss.state_weight": "`loss_weight` of a target of kind class",
    "loss.height_weight": "`loss_weight` of a target of kind level",
}
"""Keys that say under the preset what `targets` says elsewhere."""


def targets_of(table: Mapping[str, TargetConfig | None]) -> Targets:
    """The value that a config's table of targets stands for. InputError for sums that cannot be,
    or no target that is scored."""
    if not table:
        raise InputError(
            "targets: names no column; name those to be learned, or leave it out for the contest's "
            "five masses"
        )
    settings: dict[str, dict[str, Any]] = {}
    for name, target in table.items():
        settings[name] = target.model_dump() if target else {}
    targets = Targets.of(settings)
    if all(target.auxiliary for target in targets.each):
        raise InputError(
            "targets: all are auxiliary, so none is scored; name one that is not, or leave "
            "`auxiliary: true` out"
        )
    scored = [target for target in targets.each if not target.auxiliary]
    if not any(target.weight for target in scored):
        raise InputError("targets: no target has a weight in the score; give one a weight above 0")
    return targets


def check_score(name: str | None, targets: Targets) -> None:
    """InputError for a score that these targets do not have."""
    if name is None:
        return
    scored = [target for target in targets.each if not target.auxiliary and target.weight]
    is_class = {target.kind == "class" for target in scored}
    of_classes = name in ("log_loss", "accuracy")
    # one target of the kind is enough: those of the other kind weigh nothing in this score
    if of_classes not in is_class:
        kind = "classes" if of_classes else "numbers"
        raise InputError(f"score: {name} is of {kind}, and no target that is scored is one")
