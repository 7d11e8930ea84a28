"""A member of an ensemble: the chosen heads of one run, from its folder; and a stage: members that
share a backbone, loaded."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from featurestore.backbone.backbone import Backbone, backbone_of_store
from featurestore.errors import InputError, UsageError, list_some
from featurestore.format.spec import StoreSpec, ViewSpec
from featurestore.photos.decode import Decoded
from predictor.members.ensemble import BankEnsemble, RegressorEnsemble, Tokens, new_ensemble
from trainer.config.sections import PointConfig
from trainer.loop.runs import RunFolder
from trainer.score.metrics import TARGETS

KEYS = ["weights", "repeat", "image_id", "site", "fold"]
GRAMS = [*TARGETS, *(f"true_{name}" for name in TARGETS)]


@dataclass(frozen=True)
class Raw:
    """What a member's heads say of one photograph: masses_HV5 in grams, MASSES order; probabilities
    of States or None."""

    masses_HV5: np.ndarray
    state_HVC: np.ndarray | None


@dataclass(frozen=True)
class Member:
    """Trained heads with all that says how they are used; weight is its share in the ensemble."""

    run: RunFolder
    config: PointConfig
    spec: StoreSpec
    states: list[str]
    splits: list[tuple[int, int] | None]
    """(repeat, fold) that each head was held out from; None learned on every image."""
    heads: list[dict[str, Tensor]]
    weights: str
    """`last` or `best`: which epoch's heads these are."""
    weight: float = 1.0

    @classmethod
    def load(
        cls,
        run: Path,
        folds: Sequence[int] | None = None,
        weights: str = "last",
        without: Collection[str] = (),
    ) -> "Member":
        """All heads of a run's folder, or those of some folds, less those of some files.

        Raises InputError or MismatchError if the folder lacks something, UsageError for no folds.
        """
        folder = RunFolder(Path(run))
        if folds is not None and not len(folds):
            raise UsageError("no folds: name some, or leave them out for the heads of all")
        if folder.config.dataset.stores:
            raise InputError(
                f"{folder.path}: it learned from several stores (dataset.stores), which `predict` "
                "and `bundle` cannot use yet; choose a run of one store"
            )
        chosen = None if folds is None else sorted(set(folds))
        files = folder.head_files(weights, chosen)
        splits = [
            split
            for split, file in zip(folder.splits(chosen), files, strict=True)
            if file not in without
        ]
        return cls(
            folder,
            folder.config,
            folder.spec,
            folder.states,
            splits,
            list(folder.heads(weights, chosen, without).values()),
            weights,
        )

    @property
    def name(self) -> str:
        return self.run.path.name

    def weighing(self, weight: float) -> "Member":
        return replace(self, weight=weight)

    @cached_property
    def oof(self) -> pd.DataFrame:
        """The run's out-of-fold rows for these weights: repeat, image_id, site, fold, the targets,
        `true_` targets."""
        path = self.run.path / "oof.csv"
        if not path.is_file():
            raise InputError(
                f"{path}: missing, as for every refit, whose heads learned on all images; it holds "
                "what is known of "
                "heads' errors, and the training means: choose a run of the sweep's points"
            )
        try:
            table = pd.read_csv(path, dtype={"image_id": str, "site": str}, keep_default_na=False)
            table[GRAMS] = table[GRAMS].apply(pd.to_numeric)
            return table[table["weights"] == self.weights][KEYS + GRAMS]
        except (ValueError, KeyError) as err:  # pandas' own, and what is no UTF-8, are ValueErrors
            raise InputError(
                f"{path}: no out-of-fold table ({err}); copy the run again, or train it again"
            ) from err

    @property
    def training_mean_sd(self) -> np.ndarray:
        """(2, 5) grams in TARGETS order: mean and standard deviation of the training masses.

        Of a run of one fold alone those of the images it held out: its folder has no others.
        """
        truth = self.oof.drop_duplicates("image_id")[[f"true_{name}" for name in TARGETS]]
        return np.array([truth.mean(), truth.std(ddof=0)])


@dataclass(frozen=True)
class Stage:
    """A backbone on its device, and the members that read its tokens."""

    backbone: Backbone
    ensembles: list[BankEnsemble | RegressorEnsemble]

    @classmethod
    def load(
        cls, members: Sequence[Member], device: str, precision: str | None, weights: str | None
    ) -> "Stage":
        """MismatchError if the backbone's weights are not those that made the members' tokens."""
        first = members[0]
        backbone = backbone_of_store(
            first.spec, weights, first.run.store_folders(), "--backbone-weights", device, precision
        )
        return cls(
            backbone,
            [new_ensemble(m.config, m.spec, m.states, m.heads, backbone.device) for m in members],
        )

    def __call__(self, photograph: Decoded, image_id: str, views: Sequence[ViewSpec]) -> list[Raw]:
        """Of one photograph: what each member says; its tokens are made once."""
        return self.told(self.tokens(photograph, image_id, views))

    def tokens(self, photograph: Decoded, image_id: str, views: Sequence[ViewSpec]) -> list[Tokens]:
        """Class and patch tokens of each view."""
        return [self.backbone.tokens(photograph.tiles_THW3, image_id, view) for view in views]

    def told(self, tokens: Sequence[Tokens]) -> list[Raw]:
        """What each member says of a photograph's tokens."""
        return [Raw(*ensemble(tokens)) for ensemble in self.ensembles]


def say_lone_folds(members: Sequence[Member], say: Callable[[str], object]) -> None:
    """Warn of members trained on one fold alone: few heads, blind to a part of the images."""
    for member in members:
        if told := member.config.cv.lone_fold:
            say(f"{member.name}: {told}")


def by_spec(members: Sequence[Member]) -> list[list[int]]:
    """Positions of members that read the same tokens, grouped: one group a backbone."""
    groups: dict[str, list[int]] = {}
    for position, member in enumerate(members):
        groups.setdefault(member.spec.fingerprint, []).append(position)
    return list(groups.values())


def check_alike(members: Sequence[Member]) -> None:
    """InputError unless all members make masses balance by the same constraints and rules."""
    told = {
        member.name: (member.config.inference.constraints, str(member.config.inference.postprocess))
        for member in members
    }
    if len(set(told.values())) > 1:
        some = list_some(
            [f"{name}: constraints {c}, postprocess {rules}" for name, (c, rules) in told.items()]
        )
        raise InputError(f"runs of one ensemble must have the same constraints and rules:{some}")
