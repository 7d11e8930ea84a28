"""What heads of one bank have in common: their kind, and the sizes of what they read and hold."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from featurestore.format.spec import TokenSpec
from featurestore.photos.targets import Targets
from trainer.config.sections import PointConfig
from trainer.heads import kinds
from trainer.heads.input_columns import NO_COLUMNS, InputColumns
from trainer.heads.outputs import OutputLayer, layers_by_kind
from trainer.heads.reads import store_of, stores_of, vectors_of, widths_of

COLUMN_SCALE = ("columns.center", "columns.factor")


@dataclass(frozen=True)
class HeadShape:
    """What heads of one bank have in common; 0 or () where their kind has no such setting."""

    kind: str
    width: int
    n_patches: int
    targets: Targets
    """With the words of each class."""
    n_intervals: int = 0
    gate_hidden: int = 0
    shared_hidden: int = 0
    queries: int = 0
    features: tuple[str, ...] = ()
    """Each with its store, where there are several."""
    feature_widths: tuple[int, ...] = ()
    store: str = ""
    """Name of the store whose width, patches and tiles these are."""
    stores: tuple[str, ...] = ("",)
    """Every store that is read."""
    columns: InputColumns = NO_COLUMNS
    """Read beside the photograph, by the trunk."""

    @classmethod
    def of(
        cls,
        point: PointConfig,
        tokens: Mapping[str, TokenSpec],
        targets: Targets,
        columns: InputColumns = NO_COLUMNS,
    ) -> "HeadShape":
        """The shape of a config's heads over the tokens of stores, by name."""
        head = point.head
        kind = kinds.load(head.kind)
        own_tokens = tokens[store_of(point)]
        sizes = {
            "gate_hidden": head.gate_hidden or own_tokens.width // 4,
            "shared_hidden": head.shared_hidden,
            "queries": head.queries,
        }
        # only what the kind reads: other settings must not split a bank
        own = {name: size for name, size in sizes.items() if name in kind.settings}
        if "features" in kind.settings:
            own["features"] = tuple(vectors_of(point))
            own["feature_widths"] = tuple(widths_of(point, tokens))
        return cls(
            head.kind,
            own_tokens.width,
            own_tokens.n_patches,
            targets,
            n_intervals=point.loss.intervals if kind.has_trunk else 0,
            store=store_of(point),
            stores=tuple(stores_of(point)),
            columns=columns,
            **own,
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor of a saved head, as in nn.Linear and nn.LayerNorm."""
        return kinds.load(self.kind).tensors(self)

    @functools.cached_property
    def layers(self) -> list[OutputLayer]:
        """Output layers of the trunk, as every step computes them."""
        return layers_by_kind(self.targets)

    def saved(self) -> dict[str, tuple[int, ...]]:
        """The same, and what scales columns before the trunk reads them."""
        scales = COLUMN_SCALE if self.columns else ()
        return self.tensors() | dict.fromkeys(scales, (self.columns.width,))

    @property
    def n_parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.tensors().values())
