"""A sweep ready to run: what a config, a store and its folds come to.

What can be refused is refused here, before any step.
"""

import functools
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from featurestore.backbone.device import choose_device
from featurestore.errors import InputError
from featurestore.photos.labels import check_balance, height_remarks
from featurestore.photos.sites import has_sites, warn_of_sites
from featurestore.photos.targets import Targets
from trainer.config.sections import PointConfig, forgetting
from trainer.data.dataset import TrainingData
from trainer.data.groups import Groups, doubts_about_groups
from trainer.data.groups import decided as decided_groups
from trainer.data.readers import TokenReaders
from trainer.data.splits import make_splits, read_splits, shape_of
from trainer.data.strata import decided as decided_strata
from trainer.data.stream import Split, Stream, make_splits_of
from trainer.data.used_store import UsedStore
from trainer.heads import kinds
from trainer.heads.reads import columns_of, patch_stores
from trainer.heads.tokens import Multiply
from trainer.loop.bank_trainer import BankTrainer, new_trainers
from trainer.loop.events import writer_class
from trainer.loop.grid import SweepConfig
from trainer.loop.multiply import multiply_for
from trainer.loop.plan import Plan, plan_sweep
from trainer.loop.store_checks import check_stores
from trainer.loop.threads import choose_side_by_side
from trainer.score.metrics import CLASS_SCORES, Score, class_columns
from trainer.score.postprocess import rules_of

MOST_LEFT = 0.05  # of the weights a head began with, in its moving average at the end


@dataclass(frozen=True)
class Sweep:
    """A sweep ready to run: its points, what they learn from and what each fold may see."""

    config: SweepConfig
    data: TrainingData
    folds: pd.DataFrame
    splits: list[Split]
    stream: Stream

    @classmethod
    def of(
        cls,
        config: SweepConfig,
        data: TrainingData,
        folds: pd.DataFrame,
        splits: list[Split] | None = None,
    ) -> "Sweep":
        """The sweep over these folds, or some splits of them."""
        base = config.base
        splits = make_splits_of(folds, base.cv.fold) if splits is None else splits
        stream = Stream(
            data.n_images,
            len(data.store.view_names),
            splits,
            base.cv.n_folds,
            base.trainer.batch_size,
            base.experiment.seed,
            folds["site"].to_numpy(),
        )
        return cls(config, data, folds, splits, stream)

    @property
    def base(self) -> PointConfig:
        return self.config.base

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What its numbers depend on besides its settings: which tokens, and SHA-256 of labels and
        folds of the images used."""
        catalog = self.data.catalog
        learned = ["image_id", *(target.name for target in self.data.targets.each)]
        labels = catalog[[name for name in learned if name in catalog]]
        facts = {
            **_facts_of(self.data.first),
            "labels": _sha256(labels),
            "folds": _sha256(self.folds),
        }
        # left out where there are none, as in sweeps that were saved before there were any
        if columns := sorted({name for p in self.config.points for name in columns_of(p)}):
            facts["columns"] = _sha256(catalog[["image_id", *columns]])
        if "" not in self.data.stores:
            facts["stores"] = {name: _facts_of(used) for name, used in self.data.stores.items()}
        return facts

    @property
    def views(self) -> list[int]:
        """What finished heads are scored under."""
        return self.base.inference.tta_indices if self.base.cv.tta else [0]

    @functools.cached_property
    def by(self) -> Score:
        """What ranks its points."""
        return Score.of(self.base.score, self.data.targets)

    @functools.cached_property
    def scored_truth_NK(self) -> np.ndarray:
        """What scores compare with: numbers in the order of tables, 0 for the scored classes."""
        true_NC = self.true_words_NC
        # of the truth itself: NaN where it is not known. Predictions have their losses there, so
        # what they are compared with is 0
        losses_NW = class_columns(self.by, self.data.targets, true_NC, true_NC)
        truth_NW = np.where(np.isnan(losses_NW), np.nan, 0.0)
        return np.hstack([self.data.truth_table_NK, truth_NW])

    @functools.cached_property
    def true_words_NC(self) -> np.ndarray:
        """One-hot over each class's words."""
        return self.data.labels.word_NC.double().cpu().numpy()

    def scored(
        self,
        values_NK: np.ndarray,
        word_NC: np.ndarray | None,
        images_N: np.ndarray | slice = slice(None),
    ) -> np.ndarray:
        """(..., N, K) predictions of all or some images to compare with `scored_truth_NK`.

        values_NK, word_NC : constrained numbers in the order of tables, and probabilities of words.
        """
        true_NC = self.true_words_NC[images_N]
        losses_NW = class_columns(self.by, self.data.targets, true_NC, word_NC)
        n_classes = losses_NW.shape[-1]
        if not n_classes:
            return values_NK
        losses_NW = np.broadcast_to(losses_NW, (*values_NK.shape[:-1], n_classes))
        return np.concatenate([values_NK, losses_NW], -1)

    @property
    def n_batches(self) -> int:
        """Of the whole training of a head."""
        return self.base.trainer.num_epochs * self.stream.n_steps

    @property
    def remarks(self) -> list[str]:
        """What somebody who chose these settings may not have meant, a sentence each."""
        remarks = []
        trained = [point for point in self.config.points if kinds.load(point.head.kind).trained]
        n_steps = max(1, self.n_batches // self.base.trainer.gradient_accumulation_steps)
        averaging = [point.optimization for point in trained if point.optimization.use_ema]
        for decay in sorted({settings.average_decay(n_steps) for settings in averaging}):
            left = decay**n_steps
            if left > MOST_LEFT:
                remarks.append(
                    f"optimization.ema_decay {decay:g} leaves {left:.0%} of the first weights in "
                    f"the averages after all {n_steps} steps; lower it, to "
                    f"{forgetting(n_steps):.2g} say, or train longer"
                )
        # what was written, not what it came to: a default is nobody's mistake
        given = self.base.loss.model_fields_set
        if "beta" in given and "scale" not in given:
            remarks.append(
                f"loss.beta {self.base.loss.beta:g} counts spreads of the training fold "
                "(loss.scale: spread, the default since config_version 2); where it was meant in "
                "units of loss.space, add loss.scale: none"
            )
        if _says_how_to_mix(self.config) and not any(p.augmentation.mixup.enabled for p in trained):
            remarks.append(
                "augmentation.mixup says how to mix, and nothing is mixed: it is off unless "
                "augmentation.mixup.enabled is true (the default since config_version 2)"
            )
        if told := self.base.cv.lone_fold:
            remarks.append(told)
        remarks += self._constant_remarks()
        if self.base.cv.folds is None:
            remarks += doubts_about_groups(self.folds, self.data.catalog, self.base.cv.groups)
        if self.folds["site"].duplicated().any():
            return remarks

        # each photograph is its own site
        if self.base.cv.folds and not has_sites(self.data.catalog):
            remarks.append(
                "the catalog does not tell State and Sampling_Date, so each photograph is its own "
                "site; where photographs of one visit err together, intervals are too narrow"
            )
        if any(point.augmentation.mixup.kind == "same_site" for point in trained):
            remarks.append(
                "augmentation.mixup.kind same_site mixes nothing: no site has two photographs"
            )
        return remarks

    def _constant_remarks(self) -> list[str]:
        """A sentence if R2 has nothing to compare errors with."""
        truth_NK = self.data.truth_NK
        if not truth_NK.size or self.by.name not in ("contest", "r2"):
            return []
        lowest = np.nanmin(truth_NK)
        highest = np.nanmax(truth_NK)
        if lowest != highest:
            return []
        what = (
            f"masses are {highest:g} g" if self.data.targets.preset else f"labels are {highest:g}"
        )
        return [
            f"there is no score: all {what}, and R2 compares errors with how much they differ; "
            "check the labels in train.csv"
        ]

    @property
    def groups(self) -> Groups:
        """What is held out together, in words; of a folds table that was given, sites."""
        return "site" if self.base.cv.folds else self.base.cv.groups

    @property
    def holds_out(self) -> bool:
        """Not so for a refit on every image."""
        return len(self.splits[0].val_N) > 0

    def run_config(self, p: int) -> PointConfig:
        """A point's settings as its run folder keeps them: with what its heads were trained on."""
        point = self.config.points[p]
        fold = point.cv.fold
        if not self.holds_out:
            fold = "all"
        elif fold == "all":  # every fold here; the refit has a run folder of its own
            fold = None
        return point.model_copy(update={"cv": point.cv.model_copy(update={"fold": fold})})

    def plan(
        self, begun: Sequence[Sequence[int]] | None = None, refits: bool | None = None
    ) -> Plan:
        """What it will cost; see `plan_sweep`. refits : None is as `cv.fold` says."""
        if refits is None:
            refits = self.base.cv.fold == "all"
        return plan_sweep(self.config, self.data, self.splits, self.stream, begun, refits)

    def trainers(self, points: Sequence[int]) -> list[BankTrainer]:
        """Fresh banks of these points."""
        return new_trainers(points, self.config.points, self.data, self.splits, self.n_batches)

    def reader(self) -> TokenReaders:
        """Stored rows on the sweep's device."""
        # where no head reads patches the first store says so
        read = patch_stores(self.config.points) or set(list(self.data.stores)[:1])
        stores = {name: used for name, used in self.data.stores.items() if name in read}
        return TokenReaders(stores, self.data.device, heads_bytes=lambda: self.plan().pass_bytes)


def prepare_sweep(
    config: SweepConfig,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    begun: bool = False,
    check: bool = True,
    multiply: Multiply | None = None,
    side_by_side: bool | None = None,
) -> Sweep:
    """Open the store, make or read the folds, and refuse all that can be refused before any step.

    begun : the folds are those a sweep began with, so they must be of the very images that are used
        now. Other folds may hold images that the store's build skipped. Masses that do not add up
        are then warned of, not refused.
    check : see TrainingData.
    multiply, side_by_side : what a sweep that goes on began with; None chooses.
    """
    base = config.base
    if base.dataset.store is None and not base.dataset.stores:
        raise InputError("dataset.store: no store; name one in the config or with --store")
    data = TrainingData.open(base, dtype, choose_device(device), check)
    if base.inference.tta_indices is None:
        n_flips = min(4, len(data.first.tokens.views))  # views 0 to 3 are the plain flips
        config = config.with_views(range(n_flips))
    if data.targets.preset:
        for remark in height_remarks(data.catalog):
            warnings.warn(f"{data.store.path}: {remark}", stacklevel=2)
    tolerance = base.dataset.balance_tolerance
    check_balance(
        data.catalog, data.store.path, tolerance.grams, tolerance.share, begun, data.targets
    )
    check_stores(config, data)
    _check_rules(config, data.targets)
    _check_classes(config, data.targets)
    for point in config.points:
        data.columns_of(point)  # refused here if they cannot be
    if base.trainer.tensorboard:
        writer_class()
    if side_by_side is None:
        side_by_side = choose_side_by_side(data, config.points)
    multiply = multiply or multiply_for(config, data)
    data = replace(data, multiply=multiply, side_by_side=side_by_side)
    config, folds = _with_folds(config, data, begun)
    if not begun:
        _warn_of_groups(config.base, data, folds)
    return Sweep.of(config, data, folds)


def _with_folds(
    config: SweepConfig, data: TrainingData, begun: bool
) -> tuple[SweepConfig, pd.DataFrame]:
    """The folds, read or made, and the config with what null of `cv` stands for written out."""
    base = config.base
    cv = base.cv
    groups = decided_groups(cv.groups, data.catalog)
    strata = decided_strata(cv.strata, data.catalog)
    if cv.folds:
        # of a sweep that goes on the folds hold its own images alone, and must
        without = [] if begun else data.store.catalog["image_id"].drop(data.images_N)
        ids = data.catalog["image_id"].tolist()
        folds = read_splits(cv.folds, ids, data.catalog, without, groups)
    else:
        folds = make_splits(
            data.catalog,
            cv.n_folds,
            cv.repeats,
            groups,
            strata,
            base.experiment.seed,
            cv.splitter,
            {target.name: target.kind for target in data.targets.each},
        )

    n_folds, repeats = shape_of(folds)
    if isinstance(cv.fold, int) and cv.fold >= n_folds:
        where = f"{cv.folds}: " if cv.folds else ""
        raise InputError(
            f"{where}no fold {cv.fold} (cv.fold); the {n_folds} folds are numbered from 0"
        )
    known = {"groups": groups, "strata": strata, "n_folds": n_folds, "repeats": repeats}
    return config.with_cv(**known), folds


def _warn_of_groups(base: PointConfig, data: TrainingData, folds: pd.DataFrame) -> None:
    """What a person should look at before heads learn: sites that look alike, and photographs that
    may belong together and are held out apart."""
    if base.cv.groups in ("site", "date", "state"):
        warn_of_sites(data.catalog, data.store.path)
    if base.cv.folds is None:
        for doubt in doubts_about_groups(folds, data.catalog, base.cv.groups):
            warnings.warn(f"{data.store.path}: {doubt}", stacklevel=3)


def _facts_of(used: UsedStore) -> dict[str, str]:
    spec = used.store.spec
    return {"fingerprint": spec.fingerprint, "pooled_dtype": spec.pooled_dtype}


def _says_how_to_mix(config: SweepConfig) -> bool:
    """Whether a config names a kind or alpha of mixup, and does not say if it is on."""
    axes = {key.removeprefix("augmentation.mixup.") for key in config.axes}
    named = config.base.augmentation.mixup.model_fields_set | axes
    return bool({"kind", "alpha"} & named) and "enabled" not in named


def _sha256(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def _check_classes(config: SweepConfig, targets: Targets) -> None:
    """InputError for a kind that tells no class where classes alone are ranked."""
    by = Score.of(config.base.score, targets)
    if by.name not in CLASS_SCORES:
        return
    for point, name in zip(config.points, config.names, strict=True):
        if not kinds.tells_words(point.head.kind):
            raise InputError(
                f"{name}: classes alone are ranked ({by.name}), and {point.head.kind} tells none; "
                "choose another head.kind, or score numbers"
            )


def _check_rules(config: SweepConfig, targets: Targets) -> None:
    states = targets["State"].values if targets.preset else ()
    for point, name in zip(config.points, config.names, strict=True):
        kind = kinds.load(point.head.kind)
        rules = rules_of(point.inference.postprocess)
        for rule in rules:
            if not rule.needs_state and rule.target not in targets.names:
                raise InputError(
                    f"{name}: inference.postprocess: {rule}: no such number is predicted; there "
                    f"are {', '.join(targets.names)}"
                )
        needing = [str(rule) for rule in rules if rule.needs_state]
        if needing and not (states and kind.trained and kind.has_trunk):
            raise InputError(
                f"{name}: inference.postprocess: {', '.join(needing)} needs the State that heads "
                f"predict, and {point.head.kind if states else 'the catalog'} tells none; "
                "leave it out"
            )
