"""Rules of post-processing as a config names them; `trainer.score.postprocess` applies them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.config.section import PositiveNumber, Section, Weight

TargetName = Annotated[str, Field(min_length=1)]


class WaDeadZeroRule(Section):
    rule: Literal["wa_dead_zero"]
    """Where the predicted State is WA, Dead is 0: there it was never sorted out."""


class ClipRule(Section):
    rule: Literal["clip"]
    """Bring a number into bounds; parts that it is the sum of scale along."""

    target: TargetName
    """Its name."""

    low: Weight = 0.0
    """Its least value."""

    high: PositiveNumber
    """Its greatest value."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(
                f"found low {self.low:g} above high {self.high:g}; the bounds of a clip rise"
            )
        return self


class FactorRule(Section):
    rule: Literal["factor"]
    """Multiply a number; parts that it is the sum of scale along."""

    target: TargetName
    """Its name."""

    factor: PositiveNumber
    """What it is multiplied by."""


Rule = Annotated[WaDeadZeroRule | ClipRule | FactorRule, Field(discriminator="rule")]
