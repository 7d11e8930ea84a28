"""Which targets a sweep learns from a store: those that its config names, or the contest's."""

from pathlib import Path

import pandas as pd

from featurestore.errors import InputError, list_some
from featurestore.format.spec import OWN_COLUMNS
from featurestore.photos.candidates import block_to_write, could_be_targets
from featurestore.photos.labels import class_cells
from featurestore.photos.targets import CSIRO, Targets, has_preset
from trainer.config.sections import PointConfig
from trainer.config.targets import OLD_KEYS, targets_of


def targets_in(catalog: pd.DataFrame, config: PointConfig, where: Path | str) -> Targets:
    """The targets of a sweep, with the words of each class.

    InputError where the config names none and the catalog is not the contest's.
    """
    if config.has_own_targets:
        if config.inference.constraints != "order":
            raise InputError(
                f"inference.constraints: {config.inference.constraints} is of the preset csiro; "
                "leave it out"
            )
        targets = targets_of(config.targets)
    elif config.targets is None and not has_preset(catalog.columns):
        raise InputError(_what_to_write(catalog, config, where))
    else:
        targets = CSIRO
    words = {}
    for target in targets.classes:
        words[target.name] = sorted({cell for cell in class_cells(catalog, target) if cell})
    return targets.with_values(words)


def _what_to_write(catalog: pd.DataFrame, config: PointConfig, where: Path | str) -> str:
    """Why there is nothing to learn, and the block that says what is."""
    columns = [name for name in catalog if name not in OWN_COLUMNS]
    missing = [name for name in CSIRO.names if name not in catalog]
    told = f"{where}: what is to be learned? The config has no `targets`, and the store lacks "
    told += f"{', '.join(missing)} of the preset csiro. "
    if given := config.old_keys_given:
        replaced = [f"{key}: {OLD_KEYS[key]}" for key in given]
        told += f"Keys of the preset do not say it elsewhere:{list_some(replaced)}\n"
    candidates = could_be_targets(catalog)
    if not candidates:
        return told + f"No column of the store could be a target; it has{list_some(columns)}"
    return told + f"Write, and leave out what should not be learned:\n{block_to_write(candidates)}"
