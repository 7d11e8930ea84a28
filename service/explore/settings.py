"""The settings of a sweep in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config.scoring import CvConfig
from trainer.loop.grid import SweepConfig

VIEWS = "views averaged"


def in_words(config: SweepConfig, n_points: int) -> dict[str, str]:
    """What a page says of a config, by what it is about.

    n_points : 0 where they are not known.
    """
    base = config.base
    points = {"points": str(n_points)} if n_points else {}
    cv = base.cv
    trainer = base.trainer
    mixup = base.augmentation.mixup
    axes = {}
    for key, values in config.axes.items():
        axes[f"grid: {key}"] = ", ".join(map(str, values))
    trained = f"only fold {cv.fold} of {cv.n_folds}" if cv.lone_fold else str(cv.n_folds)
    places = base.dataset.stores.values() or [base.dataset.store]
    return {
        "name": base.experiment.name,
        "store": ", ".join(Path(place or "").name for place in places),
        **points,
        **axes,
        "folds": f"{trained} x {cv.repeats} repeats, {_kept_together(cv)}",
        "training": f"{trainer.num_epochs} epochs, batches of {trainer.batch_size}",
        "mixup": mixup.kind if mixup.on else "none",
        VIEWS: ", ".join(map(str, base.inference.tta_indices)),
        "seed": str(base.experiment.seed),
    }


def _kept_together(cv: CvConfig) -> str:
    if cv.folds:
        return "dealt by a folds table"
    if cv.groups == "none":
        return "each photograph on its own"
    columns = [cv.groups] if isinstance(cv.groups, str) else cv.groups
    return f"{' and '.join(columns)} kept together"


def with_view_names(settings: dict[str, str], spec: Mapping[str, Any]) -> dict[str, str]:
    """The same with views by their names.

    spec : what spec.json of a run tells of its store; with one that tells no views, or not all,
    their numbers stay.
    """
    try:
        views = spec["store"]["tokens"]["views"]
        names = [views[int(number)]["name"] for number in settings[VIEWS].split(", ")]
    except (KeyError, IndexError, TypeError):
        return settings
    return settings | {VIEWS: ", ".join(names)}
