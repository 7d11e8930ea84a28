"""How heads are scored: the views and rules of a prediction, and what is held out."""

import reprlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trainer.config.rules import Rule
from trainer.config.section import Count, CountFromZero, Section


def _each_once(value: list[int]) -> list[int]:
    if len(set(value)) < len(value):
        raise ValueError(
            f"found {reprlib.repr(value)}, expected each once: "
            "what is there twice would count twice"
        )
    return value


class InferenceConfig(Section):
    tta_indices: Annotated[list[CountFromZero], Field(min_length=1), AfterValidator(_each_once)] = [
        0,
        1,
        2,
        3,
    ]
    """Views averaged when `best` and `last` are scored; 0 to 3 are the plain flips."""

    constraints: Literal["order", "clip"] = "order"
    """How averaged masses are made to hold Total >= GDM >= Green >= 0: isotonic projection, or
    clipping upwards."""

    postprocess: list[Rule] = []
    """Rules applied after that, in order; the summary says what each of them gains out of fold."""


class CvConfig(Section):
    n_folds: Annotated[int, Field(ge=2)] = 5
    """Parts the groups are dealt into; the number of States for groups `state`."""

    repeats: Count = 1
    """Regroupings, each an independent draw with all its folds; 20 give error bars."""

    groups: Literal["site", "date", "state"] = "site"
    """What is held out together; `state` leaves one State out."""

    splitter: Literal["balanced", "group_kfold"] = "balanced"
    """How groups are dealt: at random, then balanced by `strata`; or by scikit-learn's GroupKFold,
    which balances sizes alone and has one result, so it allows one repeat."""

    strata: list[str] = ["Dry_Clover_g", "Dry_Dead_g"]
    """Columns whose > 0 is spread evenly over the folds, as well as scikit-learn's
    StratifiedGroupKFold does it."""

    fold: CountFromZero | Literal["all"] | None = None
    """Train only this fold of each repeat; null = every one; all = every one, then the chosen point
    on all images."""

    folds: Annotated[Path, Field(strict=False)] | None = None
    """A folds table (folds.csv), ours or another tool's, in place of new folds."""

    tta: bool = True
    """Score `best` and `last` with the views of `inference.tta_indices` too."""

    @property
    def lone_fold(self) -> str | None:
        """What to know of a sweep or run of one fold, None for all others."""
        if not isinstance(self.fold, int):
            return None
        heads = "one head" if self.repeats == 1 else f"{self.repeats} heads"
        return (
            f"only fold {self.fold} of {self.n_folds} is trained (cv.fold, --fold): scores are of "
            f"the images that it holds out, and {heads} a point can predict; "
            "train without it for all folds"
        )

    @model_validator(mode="after")
    def _one_result(self) -> Self:
        if self.splitter == "group_kfold" and self.repeats > 1 and self.folds is None:
            raise ValueError(
                f"repeats {self.repeats}: splitter group_kfold has one result; set repeats to 1, "
                "or splitter to balanced"
            )
        return self

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.folds is None and isinstance(self.fold, int) and self.fold >= self.n_folds:
            raise ValueError(
                f"fold {self.fold} does not exist: n_folds is {self.n_folds}, the first fold is 0"
            )
        return self
