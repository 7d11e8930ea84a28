"""How heads are scored: the views and rules of a prediction, and what is held out."""

import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from trainer.config.rules import Rule
from trainer.config.section import Count, CountFromZero, Section

USUAL_FOLDS = 5


def _each_once(value: list[int] | None) -> list[int] | None:
    if value == []:
        raise ValueError("found [], expected one number or more")
    if value and len(set(value)) < len(value):
        raise ValueError(
            f"found {reprlib.repr(value)}, expected each once: "
            "what is there twice would count twice"
        )
    return value


class InferenceConfig(Section):
    tta_indices: Annotated[list[CountFromZero] | None, AfterValidator(_each_once)] = None
    """Views averaged when `best` and `last` are scored; 0 to 3 are the plain flips. null = these
    four, or as many as the store has."""

    constraints: Literal["order", "clip"] = "order"
    """How averaged masses are made to hold Total >= GDM >= Green >= 0: isotonic projection, or
    clipping upwards."""

    postprocess: list[Rule] = []
    """Rules applied after that, in order; the summary says what each of them gains out of fold."""


def _groups(value: Any) -> Any:
    """A word or a list of columns; another text is a column."""
    if value is None or value in ("site", "date", "state", "none"):
        return value
    columns = [value] if isinstance(value, str) else value
    # what is no list, or an empty one, is refused below like a list of anything but texts
    if not columns or not isinstance(columns, list):
        columns = [None]
    if not all(isinstance(column, str) for column in columns):
        raise ValueError(
            f"found {reprlib.repr(value)}, expected columns of the table, [Farm, Date] say, or "
            "site, date, state or none"
        )
    return columns


class CvConfig(Section):
    n_folds: Annotated[int, Field(ge=2)] | None = None
    """Parts the groups are dealt into; null = 5, or as many as there are groups where each is left
    out once."""

    repeats: Count = 1
    """Regroupings, each an independent draw with all its folds; 20 give error bars."""

    groups: Annotated[list[str] | str | None, BeforeValidator(_groups)] = None
    """What is held out together: columns, [Farm, Date] say (photographs that share the values of
    all of them), `site` (State and Sampling_Date), `date`, `state` (leaves each State out once) or
    `none` (each photograph alone). null = `site` where the table has State and Sampling_Date, else
    `none`. Copies of a photograph are always held out together."""

    splitter: Literal["balanced", "group_kfold", "leave_one_out"] = "balanced"
    """How groups are dealt: at random, then balanced by `strata`; by scikit-learn's GroupKFold,
    which balances sizes alone; or each is a fold of its own. The last two have one result, so they
    allow one repeat."""

    strata: list[str] | None = None
    """Columns that folds are balanced by, as well as scikit-learn's StratifiedGroupKFold does it:
    a class by its values, an amount by whether it is 0, a level or share by its median. null =
    the contest's clover and dead mass where the table has both, else none."""

    fold: CountFromZero | Literal["all"] | None = None
    """Train only this fold of each repeat; null = every one; all = every one, then the chosen point
    on all images."""

    # not strict: YAML has texts, and no paths
    folds: Annotated[Path, Field(strict=False)] | None = None
    """A folds table (folds.csv), ours or another tool's, in place of new folds."""

    tta: bool = True
    """Score `best` and `last` with the views of `inference.tta_indices` too."""

    @property
    def leaves_one_out(self) -> bool:
        """Each group is a fold of its own."""
        return self.splitter == "leave_one_out" or self.groups == "state"

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
        if self.splitter != "balanced" and self.repeats > 1 and self.folds is None:
            raise ValueError(
                f"repeats {self.repeats}: splitter {self.splitter} has one result; set repeats to "
                "1, or splitter to balanced"
            )
        return self

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        n_folds = self.n_folds
        if n_folds is None and not self.leaves_one_out:
            n_folds = USUAL_FOLDS
        known = self.folds is None and n_folds is not None
        if known and isinstance(self.fold, int) and self.fold >= n_folds:
            raise ValueError(
                f"fold {self.fold} does not exist: n_folds is {n_folds}, the first fold is 0"
            )
        return self
