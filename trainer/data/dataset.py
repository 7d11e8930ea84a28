"""What a sweep takes from its stores besides patch tokens: labels, class tokens, moments."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featurestore.counts import count_of, for_count
from featurestore.errors import InputError, MismatchError, list_some
from featurestore.format.spec import TokenSpec
from featurestore.photos.find import spelled_as
from featurestore.photos.targets import Targets
from featurestore.store import FeatureStore
from trainer.config.sections import PointConfig
from trainer.config.stores import split_vector
from trainer.data.stream import Batch, Split
from trainer.data.targets import targets_in
from trainer.data.used_store import UsedStore
from trainer.heads.bank import Bank, Inputs
from trainer.heads.crew import side_by_side
from trainer.heads.input_columns import InputColumns
from trainer.heads.loss import Labels, labels_of
from trainer.heads.reads import columns_of, widths_of
from trainer.heads.sending import on_device
from trainer.heads.step_index import StepIndex
from trainer.heads.tokens import Multiply, StepTokens, of_device

Item = TypeVar("Item")


@dataclass(frozen=True)
class TrainingData:
    """The stores of a sweep open for training, and the labels, which are the first one's.

    Positions of images are those in `catalog`, which holds the images that are used.
    """

    stores: dict[str, UsedStore]
    """By name, in the order of `dataset.stores`; the only one has an empty name."""
    catalog: pd.DataFrame
    labels: Labels
    dtype: torch.dtype
    device: torch.device
    multiply: Multiply = "float32"
    """What tokens are multiplied in."""
    side_by_side: bool = False
    """Whether the banks of a step compute at the same time, as many as torch has threads."""
    _encoded: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    """Columns that heads read, as numbers, once one did."""

    @classmethod
    def open(
        cls,
        config: PointConfig,
        dtype: torch.dtype,
        device: torch.device,
        check: bool = True,
    ) -> "TrainingData":
        """The stores that a config names. check : compare every row with its checksum before it is
        used first.

        InputError or MismatchError for a store that is unfinished or not what was expected.
        """
        places = config.dataset.stores or {"": config.dataset.store}
        (name, path), *others = places.items()
        store = FeatureStore.open(path)
        check_store(store, config)
        images_N = used_images(store, config.dataset.images)
        catalog = store.catalog.iloc[images_N].reset_index(drop=True)
        # the first store decides which images there are; others are looked up by its catalog
        stores = {name: UsedStore(store, images_N, check)}
        for name, path in others:
            stores[name] = UsedStore.beside(path, catalog, check)
            check_store(stores[name].store, config)

        targets = targets_in(catalog, config, store.path)
        return cls(
            stores,
            catalog,
            labels_of(catalog, targets, dtype, device),
            dtype,
            device,
        )

    @property
    def first(self) -> UsedStore:
        return next(iter(self.stores.values()))

    @property
    def store(self) -> FeatureStore:
        """The first store."""
        return self.first.store

    @property
    def images_N(self) -> np.ndarray:
        """Positions in the first store."""
        return self.first.images_N

    @property
    def tokens(self) -> dict[str, TokenSpec]:
        """What the tokens of each store are, by its name."""
        return {name: used.tokens for name, used in self.stores.items()}

    @property
    def n_images(self) -> int:
        return len(self.catalog)

    @property
    def targets(self) -> Targets:
        """With the words of each class."""
        return self.labels.targets

    def as_predicted(self, use_amp: bool) -> "TrainingData":
        """The same, multiplied as `biomass predict` does on this device."""
        return replace(self, multiply=of_device(self.device, use_amp, self.dtype))

    def columns_of(self, point: PointConfig) -> InputColumns:
        """What a point's heads read beside photographs. InputError for columns that cannot be."""
        names = columns_of(point)
        return InputColumns.of(self.catalog, names, self.targets, self.store.path)

    def column_rows(self, columns: InputColumns) -> np.ndarray:
        """(N, C) float64 of every image, NaN for a number that is not known."""
        return columns.encoded(self.catalog, self.store.path)

    def n_features(self, point: PointConfig) -> int:
        """That a point's regressor reads, those of columns among them."""
        return sum(widths_of(point, self.tokens)) + self.columns_of(point).width

    @property
    def truth_NK(self) -> np.ndarray:
        """Labels of what is predicted, in the order of heads; NaN where one is not known."""
        predicted_NK = self.labels.values_NK[:, : self.targets.n_predicted]
        return predicted_NK.double().cpu().numpy()

    @property
    def truth_table_NK(self) -> np.ndarray:
        """The same in the order of tables."""
        return self.targets.in_table_order(self.truth_NK)

    def inputs(
        self,
        batch: Batch,
        rows: Mapping[str, Sequence[Tensor]],
        banks: Collection[Bank],
        partners: Collection[str] = (),
    ) -> dict[str, Inputs]:
        """A batch as these banks see it, by the names of the stores they read, unmixed; with pooled
        rows where one reads them.

        rows : of the stores whose patch tokens are read; partners: ways in which those that a bank
        mixes with are chosen.
        StoreDamaged, before any of them learns from it, if a row is not what was committed.
        """
        columns = self._column_inputs(batch, banks)
        of_way = {"any": batch.partner_QB, "same_site": batch.site_partner_QB}
        used_ways = {way: of_way[way] for way in dict.fromkeys(partners)}
        n_rows = len(batch.rows_U2)
        index = StepIndex.of(batch.own_QB, n_rows, self.device, batch.images_QB, used_ways)
        names: dict[str, None] = {}  # each once, in order
        for bank in banks:
            names |= dict.fromkeys(bank.shape.stores)
        shared = {}
        for name in names:
            used = self.stores[name]
            reading = [bank.kind for bank in banks if name in bank.shape.stores]
            reads_patches = any(kind.reads_patches for kind in reading)
            used.check_rows(used.stored(batch.rows_U2), reads_patches)
            reads_pooled = any(kind.reads_pooled for kind in reading)
            photo_UTP = used.photo(batch.rows_U2) if reads_patches else None
            photo_QBTP = None
            if photo_UTP is not None:
                # sent by row and spread there: several splits may show one row
                photo_QBTP = on_device(torch.from_numpy(photo_UTP), self.device)[index.own_QB]
            shared[name] = Inputs(
                StepTokens(rows.get(name, ()), self.dtype, self.multiply),
                index,
                self._own(used, "cls", batch, index),
                self._own(used, "pooled", batch, index) if reads_pooled else None,
                photo_QBTP,
                columns=columns,
            )
        return shared

    def each_bank(
        self,
        work: Callable[[Item], None],
        items: Collection[Item],
        shared: Mapping[str, Inputs],
        banks: Collection[Bank],
    ) -> None:
        """Call work with the item of each bank, one after another or side by side.

        shared : what it reads, of these banks.
        """
        # whoever reads a store serves one thread: all rows must have come together before
        read = {bank.shape.store for bank in banks if bank.kind.reads_patches}
        if self.side_by_side and all(shared[name].tokens.gather() for name in read):
            side_by_side(work, items)
            return
        for item in items:
            work(item)

    def _column_inputs(self, batch: Batch, banks: Collection[Bank]) -> dict[str, Tensor]:
        """(Q, B, C) each column that one of the banks reads, of each sample."""
        each = {}
        for bank in banks:
            each |= {column.name: column for column in bank.shape.columns.each}
        own_QB = batch.rows_U2[:, 0][batch.own_QB]
        parts = {}
        for name, column in each.items():
            if name not in self._encoded:
                self._encoded[name] = column.encoded(self.catalog, self.store.path)
            own_rows = self._encoded[name][own_QB]
            parts[name] = self._tensor(own_rows)
        return parts

    def _own(
        self,
        used: UsedStore,
        name: str,
        batch: Batch,
        index: StepIndex,
    ) -> Tensor:
        """(Q, B, T, ...) class tokens or pooled vectors of each sample's own row."""
        rows_U = torch.from_numpy(used.rows(name, batch.rows_U2))
        return on_device(rows_U.to(self.dtype), self.device)[index.own_QB]

    def features(self, vectors: Sequence[str], view: int, images_n: np.ndarray) -> np.ndarray:
        """(n, F) float64 features of some images for a regressor, averaged over tiles.

        vectors : names of pooled vectors or `cls`, each with its store, joined in this order.
        """
        named = [split_vector(vector) for vector in vectors]
        widths = [self.stores[store].tokens.width for store, _ in named]
        # filled in place: a copy may not fit beside it
        x_nF = np.empty((len(images_n), sum(widths)))
        parts = np.split(x_nF, np.cumsum(widths)[:-1], axis=1)
        for (store, name), part_nD in zip(named, parts, strict=True):
            part_nD[:] = self.stores[store].feature(name, view, images_n)
        return x_nF

    def moments(
        self,
        splits: Sequence[Split],
        parts: Collection[str],
        store: str | None = None,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Per split, mean and std (Q, D) of every channel of "patch", "cls" or pooled vectors, over
        its training images alone.

        store : of the parts that name none; None is the first.
        """
        own = next(iter(self.stores)) if store is None else store
        moments = {}
        for part in parts:
            name, vector = split_vector(part)
            mean_QD, std_QD = self.stores[name or own].moments(splits, vector)
            moments[part] = self._tensor(mean_QD), self._tensor(std_QD)
        return moments

    def column_scale(self, splits: Sequence[Split], columns: InputColumns) -> tuple[Tensor, Tensor]:
        """Center and factor (Q, 1, C) of columns by each split's training images alone."""
        x_NC = self.column_rows(columns)
        scales = [columns.scale(x_NC[split.train_N]) for split in splits]
        center_QC, factor_QC = (np.stack(each) for each in zip(*scales, strict=True))
        return self._tensor(center_QC[:, None]), self._tensor(factor_QC[:, None])

    def _tensor(self, array: np.ndarray) -> Tensor:
        return on_device(torch.tensor(array, dtype=self.dtype), self.device)


def inputs_of(bank: Bank, shared: Mapping[str, Inputs]) -> Inputs:
    """What a bank sees of a batch: its own store's inputs, and beside them those of all it may
    name."""
    return replace(shared[bank.shape.store], stores=shared)


def used_images(store: FeatureStore, ids: Sequence[str] = ()) -> np.ndarray:
    """Store positions of the images to learn from, in store order.

    ids : those of some images alone. Without any, all but those its build was told to go without,
        which a warning names.

    InputError for an image that is not built yet, ids that have no tokens, or where no image is
    left.
    """
    if ids:
        sealed_N = np.asarray(store.sealed)
        known = store.catalog["image_id"].iloc[sealed_N]
        ids = spelled_as(ids, known)
        if unknown := sorted(set(ids) - set(known)):
            raise InputError(
                f"{store.path}: has no such images, or no tokens of them (dataset.images, "
                f"--images):{list_some(unknown)}"
            )
        return sealed_N[known.isin(ids).to_numpy()]

    skipped = store.skipped
    images_N = np.setdiff1d(np.arange(store.n_images), skipped)
    # raises for the first that is not built yet: it was not skipped, so it is still to come
    for image in np.setdiff1d(images_N, store.sealed):
        store.require(int(image))
    if not len(images_N):
        raise InputError(
            f"{store.path}: no image to learn from, {len(skipped)} were skipped; build again with "
            "their photographs"
        )
    if skipped:
        ids = store.catalog["image_id"][skipped].tolist()
        left_out = count_of(len(skipped), "image", store.n_images)
        are = for_count(len(skipped), "has no tokens and is", "have no tokens and are")
        warnings.warn(
            f"{store.path}: {left_out} {are} left out, as photographs were missing or "
            f"damaged when it was built:{list_some(ids, 5)}",
            stacklevel=2,
        )
    return images_N


def check_store(store: FeatureStore, config: PointConfig) -> None:
    """MismatchError with both values where the config names something else than the store holds."""
    tokens = store.spec.tokens
    found = {
        "backbone.model_name": tokens.model,
        "backbone.hidden_dim": tokens.width,
        "backbone.num_patches": tokens.n_patches,
        "dataset.img_size": min(tokens.tile_height, tokens.tile_width),
        "dataset.num_aug_patterns": len(tokens.views),
    }
    for key, value in found.items():
        section, name = key.split(".")
        wanted = getattr(getattr(config, section), name)
        # None: a config need not say what a store is
        if wanted not in (None, value):
            raise MismatchError(
                f"{store.path}: {key} is {value!r}, the config says {wanted!r}; "
                "change one of the two"
            )
    n_views = len(tokens.views)
    if beyond := [i for i in config.inference.tta_indices or () if i >= n_views]:
        names = ", ".join(view.name for view in tokens.views)
        raise InputError(
            f"inference.tta_indices: {beyond}, the store has {count_of(n_views, 'view')}, numbered "
            f"from 0 ({names}); name some of these, inference: {{tta_indices: [0]}} say"
        )
