"""The section `dataset` of a sweep's YAML: which stores, which images, which masses."""

import reprlib
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from featurestore.photos.labels import TOLERANCE_G, TOLERANCE_SHARE
from featurestore.photos.targets import CSIRO_MAIN, CSIRO_OTHERS
from trainer.config.section import Count, Section, Share, Weight
from trainer.config.stores import StoreName, StorePlace


def _exactly(*names: str, settings: str = "{}") -> AfterValidator:
    """The preset's own columns; settings : what others have under `targets`."""

    def check(value: list[str]) -> list[str]:
        if value != list(names):
            block = "".join(f"\n  {name}: {settings}" for name in value)
            raise ValueError(
                f"found {reprlib.repr(value)}; this key is of the preset csiro, whose columns are "
                f"{', '.join(names)}. Leave it out, and name other targets at the top of the config"
                + (f":\ntargets:{block}" if block else "")
            )
        return value

    return AfterValidator(check)


class BalanceTolerance(Section):
    grams: Weight = TOLERANCE_G
    """How far GDM may be from Green + Clover, and Total from GDM + Dead; beyond it train refuses
    the labels."""

    share: Share = TOLERANCE_SHARE
    """The same as a share of the mass; whichever allows more counts."""


class DatasetConfig(Section):
    store: StorePlace | None = None
    """The feature store, or its URL; null = given on the command line, or in `stores`."""

    stores: dict[StoreName, StorePlace] = {}
    """Instead of `store`: several stores of the same photographs by name, at other scales or of
    other backbones say. Labels and views are those of the first."""

    images: list[Annotated[str, Field(min_length=1)]] = []
    """Ids of the images to learn from; [] = every sealed one. `--images` reads them from a file,
    too."""

    img_size: Count | None = None
    """Side of a tile in pixels; null = not checked."""

    num_aug_patterns: Count | None = None
    """Views V of each image; null = not checked."""

    target_cols: Annotated[list[str], _exactly(*CSIRO_MAIN)] = list(CSIRO_MAIN)
    """Masses of the main loss, in the order of `loss.main_weights`."""

    aux_target_cols: Annotated[list[str], _exactly(*CSIRO_OTHERS, settings="{auxiliary: true}")] = (
        list(CSIRO_OTHERS)
    )
    """Masses of the auxiliary loss."""

    balance_tolerance: BalanceTolerance = BalanceTolerance()
    """How well masses must add up."""

    @property
    def store_names(self) -> list[str]:
        """Names of `stores` in order; of the only store an empty one."""
        return list(self.stores) or [""]

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.store is not None and self.stores:
            raise ValueError(
                f"store is {str(self.store)!r} and stores names {', '.join(self.stores)}; "
                "give one of the two"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_stores(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What has one store is saved as before there could be several, for older programs."""
        return {name: value for name, value in plain(self).items() if name != "stores" or value}
