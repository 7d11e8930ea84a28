"""A member of an ensemble: the chosen heads of one run, from its folder; and a stage: members that
share a backbone, loaded."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from featurestore.backbone.backbone import Backbone, Row
from featurestore.backbone.device import choose_device
from featurestore.backbone.load import backbone_of_store
from featurestore.backbone.weights import UNKNOWN_WEIGHTS
from featurestore.disk.tables import find_table
from featurestore.errors import InputError, UsageError, list_some
from featurestore.format.spec import StoreSpec, ViewSpec
from featurestore.photos.crop import Crop
from featurestore.photos.decode import Decoded
from featurestore.photos.padding import photo_patches
from featurestore.photos.targets import Targets
from predictor.members.ensemble import BankEnsemble, RegressorEnsemble, Tokens, new_ensemble
from trainer.config.sections import PointConfig
from trainer.heads import kinds
from trainer.heads.input_columns import NO_COLUMNS, InputColumns
from trainer.heads.reads import stores_of
from trainer.judge.baselines import MEANS
from trainer.judge.simplex import shares_among
from trainer.loop.runs import RunFolder

KEYS = ["weights", "repeat", "image_id", "site", "fold"]
StageTokens = Mapping[str, Sequence[Tokens]]
"""Class and patch tokens of a photograph's views, by the fingerprint of what made them."""
Photograph = Mapping[Crop, Decoded]
"""A photograph's tiles, by the way that it was cut."""


@dataclass(frozen=True)
class Raw:
    """What a member's heads say of one photograph: raw numbers in the order of heads; probabilities
    of each class's words, one class after another, or None."""

    values_HVK: np.ndarray
    word_HVC: np.ndarray | None


@dataclass(frozen=True)
class Member:
    """Trained heads with all that says how they are used; weight is its share in the ensemble."""

    run: RunFolder
    config: PointConfig
    specs: dict[str, StoreSpec]
    """Of the stores whose tokens the heads read, by name; the one they read first is first."""
    targets: Targets
    splits: list[tuple[int, int] | None]
    """(repeat, fold) that each head was held out from; None learned on every image."""
    heads: list[dict[str, Tensor]]
    weights: str
    """`last` or `best`: which epoch's heads these are."""
    weight: float = 1.0
    columns: InputColumns = NO_COLUMNS
    """What the heads read beside a photograph."""

    @classmethod
    def load(
        cls,
        run: Path,
        folds: Sequence[int] | None = None,
        weights: str = "last",
        without: Collection[str] = (),
    ) -> "Member":
        """All heads of a run's folder, or those of some folds, less those of some files.

        A regressor gives its only weights, also for `best`.
        Raises InputError or MismatchError if the folder lacks something, UsageError for no folds.
        """
        folder = RunFolder(Path(run))
        if folds is not None and not len(folds):
            raise UsageError("no folds: name some, or leave them out for the heads of all")
        chosen = None if folds is None else sorted(set(folds))
        weights = folder.weights_for(weights)
        files = folder.head_files(weights, chosen)
        # beside the heads, one for one: files that are left out have no place in either
        splits = []
        for split, file in zip(folder.splits(chosen), files, strict=True):
            if file not in without:
                splits.append(split)
        return cls(
            folder,
            folder.config,
            {name: folder.specs[name] for name in stores_of(folder.config)},
            folder.targets,
            splits,
            list(folder.heads(weights, chosen, without).values()),
            weights,
            columns=folder.columns,
        )

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def spec(self) -> StoreSpec:
        """Of the store whose patches are read, or the first vector."""
        return next(iter(self.specs.values()))

    def weighing(self, weight: float) -> "Member":
        return replace(self, weight=weight)

    @property
    def tells_words(self) -> bool:
        """Whether its heads know classes."""
        return kinds.tells_words(self.config.head.kind)

    @property
    def tells_numbers(self) -> bool:
        """Whether its heads know numbers, and tell no training means in their place."""
        is_of_before = any(MEANS in head for head in self.heads)
        return is_of_before or kinds.tells_numbers(self.config.head.kind)

    @property
    def has_oof(self) -> bool:
        """Whether the run has an out-of-fold table: a refit, which learned on every image, has
        none."""
        return find_table(self.run.path / "oof.csv").is_file()

    @cached_property
    def oof(self) -> pd.DataFrame:
        """The run's out-of-fold rows for these weights: repeat, image_id, site, fold, the targets,
        `true_` targets."""
        return read_oof(self.run.path / "oof.csv", self.weights, self.targets)

    @property
    def unknown_stores(self) -> list[Path]:
        """Stores whose weights nobody recorded, of those that the heads read."""
        dataset = self.config.dataset
        places = []
        for name, spec in self.specs.items():
            if spec.tokens.weights_sha256 == UNKNOWN_WEIGHTS:
                place = dataset.stores.get(name, dataset.store)
                places.append(self.run.store_folders(name)[0] / Path(str(place)).name)
        return places

    @property
    def training_mean_sd(self) -> np.ndarray:
        """(2, K) in the order of tables: mean and standard deviation of the training labels.

        Of a run of one fold alone those of the images it held out: its folder has no others.
        """
        truth = self.oof.drop_duplicates("image_id")[true_names(self.targets)]
        return np.array([truth.mean(), truth.std(ddof=0)])


def true_names(targets: Targets) -> list[str]:
    """Columns of the truth in an out-of-fold table."""
    return [f"true_{name}" for name in targets.names]


def read_oof(path: Path, weights: str, targets: Targets) -> pd.DataFrame:
    """The rows of an out-of-fold table for some weights; InputError if it cannot be read."""
    path = find_table(path)
    if not path.is_file():
        raise InputError(
            f"{path}: missing, as for every refit, whose heads learned on all images; it holds "
            "what is known of "
            "heads' errors, and the training means: choose a run of the sweep's points"
        )
    try:
        table = pd.read_csv(path, dtype={"image_id": str, "site": str}, keep_default_na=False)
        numbers = [*targets.names, *true_names(targets)]
        table[numbers] = table[numbers].apply(pd.to_numeric)
        return table[table["weights"] == weights][KEYS + numbers]
    except (ValueError, KeyError) as err:  # pandas' own, and what is no UTF-8, are ValueErrors
        raise InputError(
            f"{path}: no out-of-fold table ({err}); copy the run again, or train it again"
        ) from err


@dataclass(frozen=True)
class Stage:
    """Backbones on their device, and the members that read their tokens."""

    backbones: dict[str, Backbone]
    """By the fingerprint of their tokens."""
    members: Sequence[Member]
    ensembles: list[BankEnsemble | RegressorEnsemble]
    """Of the members, in their order."""

    @classmethod
    def load(
        cls,
        members: Sequence[Member],
        device: str,
        precision: str | None,
        weights: str | None,
        max_pixels: int | None = None,
    ) -> "Stage":
        """MismatchError if the backbone's weights are not those that made the members' tokens."""
        backbones: dict[str, Backbone] = {}
        for member in members:
            for name, spec in member.specs.items():
                # equal fingerprints are equal tokens, so members share what made them
                if spec.fingerprint not in backbones:
                    folders = member.run.store_folders(name)
                    backbones[spec.fingerprint] = backbone_of_store(
                        spec,
                        weights,
                        folders,
                        "--backbone-weights",
                        device,
                        precision,
                        believes=True,
                        max_pixels=max_pixels,
                    )
        place = choose_device(device)
        ensembles = []
        for m in members:
            ensemble = new_ensemble(m.config, m.specs, m.targets, m.columns, m.heads, place)
            ensembles.append(ensemble)
        return cls(backbones, members, ensembles)

    @property
    def backbone(self) -> Backbone:
        """The first member's first."""
        return next(iter(self.backbones.values()))

    @property
    def crops(self) -> list[Crop]:
        """How photographs are decoded for the backbones, each way once."""
        return list(dict.fromkeys(backbone.crop for backbone in self.backbones.values()))

    def n_photographs(self, n_views: int) -> int:
        """Photographs whose views fill a batch of every backbone."""
        n_rows = max(backbone.n_rows for backbone in self.backbones.values())
        return max(1, n_rows // n_views)

    def tokens(
        self,
        photographs: Sequence[tuple[str, Photograph]],
        views: Sequence[ViewSpec],
    ) -> list[StageTokens]:
        """Class and patch tokens of each view of each photograph by each backbone, once.

        photographs : (image_id, tiles).
        """
        made: list[dict[str, list[Tokens]]] = [{} for _ in photographs]
        for fingerprint, backbone in self.backbones.items():
            rows = []
            for image_id, decoded in photographs:
                tiles_T3HW = backbone.on_device(decoded[backbone.crop].tiles_THW3)
                rows += [Row(image_id, view, tiles_T3HW) for view in views]

            # one iterator for all: a batch may begin with one photograph's views and end with
            # another's
            of_rows = backbone.tokens_of(rows)
            for tokens, (_, decoded) in zip(made, photographs, strict=True):
                size = decoded[backbone.crop].size
                tokens[fingerprint] = []
                for view, of_view in zip(views, islice(of_rows, len(views)), strict=True):
                    photo_TP = photo_patches(backbone.spec, view, *size)
                    tokens[fingerprint].append(Tokens(*of_view, photo_TP))
        return made

    def read(self, m: int, tokens: StageTokens) -> dict[str, Sequence[Tokens]]:
        """What member m reads of a photograph's tokens, by the names that it gives its stores."""
        specs = self.members[m].specs
        return {name: tokens[spec.fingerprint] for name, spec in specs.items()}

    def told(self, tokens: StageTokens, rows: Sequence[np.ndarray]) -> list[Raw]:
        """What each member says of a photograph's tokens, and of its row (C,) of `columns`."""
        told = []
        for m, (ensemble, row_C) in enumerate(zip(self.ensembles, rows, strict=True)):
            told.append(Raw(*ensemble(self.read(m, tokens), row_C)))
        return told


def say_lone_folds(members: Sequence[Member], say: Callable[[str], object]) -> None:
    """Warn of members trained on one fold alone: few heads, blind to a part of the images."""
    for member in members:
        if told := member.config.cv.lone_fold:
            say(f"{member.name}: {told}")


def number_shares(members: Sequence[Member]) -> np.ndarray:
    """(M,) what members weigh in numbers: those that tell none nothing, beside others that do."""
    weight_M = np.array([member.weight for member in members])
    tells_M = [member.tells_numbers for member in members]
    return shares_among(weight_M, tells_M)


def by_spec(members: Sequence[Member]) -> list[list[int]]:
    """Positions of members in groups that have no tokens in common: one group a backbone, unless a
    member reads several."""
    groups: list[tuple[set[str], list[int]]] = []
    for position, member in enumerate(members):
        reads = {spec.fingerprint for spec in member.specs.values()}
        positions = [position]
        # it may join groups that had nothing in common so far
        for group in [group for group in groups if group[0] & reads]:
            groups.remove(group)
            reads |= group[0]
            positions += group[1]
        groups.append((reads, sorted(positions)))
    return sorted(positions for _, positions in groups)


def check_finite(members: Sequence[Member], raws: Sequence[Raw], image_id: str) -> None:
    """InputError at the first number that is not finite, rather than after the last photograph."""
    for member, raw in zip(members, raws, strict=True):
        if len(failed := np.flatnonzero(~np.isfinite(raw.values_HVK).all((1, 2)))):
            names = []
            for h in failed:
                split = member.splits[h]
                names.append(f"repeat {split[0]} fold {split[1]}" if split else "the refit")
            raise InputError(
                f"{member.name}: {len(failed)} heads say no finite number of {image_id}: "
                f"{', '.join(names)}; choose other --only-folds, or another run"
            )


def check_alike(members: Sequence[Member]) -> None:
    """InputError unless all members predict the same targets by the same constraints and rules, and
    read no more than one store of unknown weights: two need not be of one backbone."""
    unknown = {place for member in members for place in member.unknown_stores}
    if len(unknown) > 1:
        raise InputError(
            f"nobody recorded which weights made the tokens of {len(unknown)} stores, so they may "
            "be of different backbones; use runs of one of them alone, or import them again by "
            f"`biomass store import` with --weights:{list_some(sorted(map(str, unknown)))}"
        )

    words = {target.name: () for target in members[0].targets.classes}
    first = members[0].targets.with_values(words)
    for member in members[1:]:
        if member.targets.with_values(words) != first:
            raise InputError(
                f"runs of one ensemble must have the same targets; {members[0].name} predicts "
                f"{', '.join(first.names)}, {member.name} {', '.join(member.targets.names)}, or "
                "they differ in kinds, weights or sums"
            )
    # they are applied once, to the average
    told = {}
    for member in members:
        inference = member.config.inference
        told[member.name] = inference.constraints, str(inference.postprocess)
    if len(set(told.values())) > 1:
        some = []
        for name, (how, rules) in told.items():
            some.append(f"{name}: constraints {how}, postprocess {rules}")
        raise InputError(
            f"runs of one ensemble must have the same constraints and rules:{list_some(some)}"
        )
