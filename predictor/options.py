"""What `biomass predict` is asked for, as one value that its ways to predict pass on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurestore.format.spec import ViewSpec
from featurestore.photos.views import chosen_tta
from predictor.extras.blend import Blend
from predictor.members.combine import Average

OnError = Literal["fail", "mean"]

OF_HEADS = (
    *("folds", "weights", "backbone_weights", "device", "precision"),
    *("average", "constraints", "allow_partial", "max_pixels"),
)
"""Options that are handed on to `Predictor.load`, whose docstring says what they mean."""


@dataclass(frozen=True)
class PredictOptions:
    """Which photographs, by which heads, in what way, and where to.

    Most are None where they are not given: --oof, and a merge, tell an option that was left out
    from one that says the default.
    """

    data: Path
    """Folder of test.csv and its photographs."""
    out: Path | None = None
    """None is submission.csv, predictions.csv where there is one table alone, or
    oof_predictions.csv with `oof`. Of a part, the folder of all parts."""
    csv: Path | None = None
    """The table to read, instead of test.csv or with `oof` of train.csv."""
    allow_outside: bool = False
    """Also take photographs that are not below `data`."""

    run: Sequence[Path] = ()
    """Folders of runs, several as an ensemble. Without a run, sweep or bundle, what the newest
    sweep under ./runs chose."""
    sweep: Path | None = None
    bundle: Path | None = None
    point: str | None = None
    """A row of the sweep's board; None is what it chose."""

    folds: Sequence[int] | None = None
    weights: str | None = None
    backbone_weights: str | None = None
    device: str = "auto"
    precision: str | None = None
    allow_partial: bool = False
    max_pixels: int | None = None
    average: Average | None = None
    constraints: str | None = None

    tta: int | str | None = None
    """Views, None is 4."""
    blend: Blend | None = None
    """How an ensemble's members are weighed, None as they say."""
    interval: float | None = None
    """Level of the intervals in the wide table."""
    on_error: OnError | None = None
    """None or `fail` lists all photographs that cannot be used before work starts; `mean` writes
    the training mean."""
    deadline: str | None = None
    """`8h30m` from now."""
    resume: bool = False
    """Take up what a stopped prediction of this output had finished; a part always does."""
    oof: bool = False
    """The training photographs instead, see `check_oof`; all that the run says by itself cannot be
    chosen then."""
    explain: Path | None = None
    """Folder for a picture of every photograph and report.html, drawn when the submission is
    written."""

    @property
    def test_csv(self) -> Path:
        """The table of the photographs, unless they are those of `oof`."""
        return self.csv or self.data / "test.csv"

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        return chosen_tta(4 if self.tta is None else self.tta)

    @property
    def takes_mean(self) -> bool:
        return self.on_error == "mean"

    def of_heads(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OF_HEADS}
