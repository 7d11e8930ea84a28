"""Rules of post-processing as a config names them; `trainer.score.postprocess` applies them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from featurestore.photos.catalog import TARGETS
from trainer.config.section import PositiveNumber, Section, Weight

Target = Literal[tuple(TARGETS)]


class WaDeadZeroRule(Section):
    rule: Literal["wa_dead_zero"]
    """Where the predicted State is WA, Dead is 0: there it was never sorted out."""


class ClipRule(Section):
    rule: Literal["clip"]
    """Bring a mass into bounds; its parts scale along."""

    target: Target
    """The mass."""

    low: Weight = 0.0
    """Least grams."""

    high: PositiveNumber
    """Most grams."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(
                f"found low {self.low:g} above high {self.high:g}; the bounds of a clip rise"
            )
        return self


class FactorRule(Section):
    rule: Literal["factor"]
    """Multiply a mass; its parts scale along."""

    target: Target
    """The mass."""

    factor: PositiveNumber
    """What it is multiplied by."""


Rule = Annotated[WaDeadZeroRule | ClipRule | FactorRule, Field(discriminator="rule")]
