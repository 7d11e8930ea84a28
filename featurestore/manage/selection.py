"""Which views, layers and kinds of tokens of a store are copied."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from featurestore.backbone.moments import pool, row_stats
from featurestore.errors import InputError
from featurestore.format.spec import StoreSpec
from featurestore.photos.padding import photo_patches
from featurestore.read.rows import ImageRows


@dataclass(frozen=True)
class Selection:
    """What of an image goes over: positions of views and of layers, and whether patch tokens do."""

    views: Sequence[int]
    layers: Sequence[int]
    patches: bool

    @classmethod
    def of(
        cls,
        spec: StoreSpec,
        views: Sequence[str | int] | None,
        layers: Sequence[int] | None,
        patches: bool,
    ) -> "Selection":
        """Views by name or position, layers by their numbers in the spec; None takes all.

        InputError for unknown ones.
        """
        t = spec.tokens
        wanted = []
        for view in t.view_names if views is None else views:
            is_position = type(view) is int and view < len(t.views)
            wanted.append(t.view_names[view] if is_position else view)
        if unknown := [str(v) for v in wanted if v not in t.view_names]:
            raise InputError(f"views {', '.join(unknown)}: the store has {', '.join(t.view_names)}")
        if unknown := [str(layer) for layer in layers or () if layer not in t.layers]:
            raise InputError(
                f"layers {', '.join(unknown)}: the store has {', '.join(map(str, t.layers))}"
            )
        positions = [t.layers.index(layer) for layer in layers or t.layers]
        is_rising = all(a < b for a, b in pairwise(positions))
        if not wanted or len(set(wanted)) < len(wanted) or not is_rising:
            raise InputError("name each view once, at least one, and layers in the store's order")
        if len(positions) < len(t.layers) and t.dtype == "int8":
            raise InputError(
                "tokens of an int8 archive were rounded over all layers together; choose layers "
                "before archiving"
            )
        if len(positions) < len(t.layers) and not spec.has_patches:
            raise InputError(
                "layers of a pooled store cannot be told apart in its statistics; take them all"
            )
        return cls(
            [t.view_names.index(name) for name in wanted], positions, patches and spec.has_patches
        )

    def is_all(self, spec: StoreSpec) -> bool:
        """Whether rows stay the bytes they are."""
        return len(self.layers) == len(spec.tokens.layers) and self.patches == spec.has_patches

    def spec(self, spec: StoreSpec) -> StoreSpec:
        """The spec of a store of what is selected."""
        t = spec.tokens
        tokens = t.changed(
            views=tuple(t.views[v] for v in self.views),
            layers=tuple(t.layers[k] for k in self.layers),
            # layers lie one after another along the width
            width=t.width // len(t.layers) * len(self.layers),
        )
        return spec.changed(tokens=tokens, has_patches=self.patches)

    def rows(self, rows: ImageRows, spec: StoreSpec) -> ImageRows:
        """What is selected of an image's rows; statistics are taken again where channels go."""
        every_view = list(range(len(spec.tokens.views)))
        if self.is_all(spec) and list(self.views) == every_view:
            return rows  # of the source's own map: picking views would copy every token

        has_all_layers = len(self.layers) == len(spec.tokens.layers)
        channels: np.ndarray | slice = slice(None)
        if not has_all_layers:
            width = spec.tokens.width // len(spec.tokens.layers)
            spans = [np.arange(k * width, (k + 1) * width) for k in self.layers]
            channels = np.concatenate(spans)

        cls = np.ascontiguousarray(rows.cls_VTD[self.views][..., channels])
        pooled = np.ascontiguousarray(rows.pooled_VT5D[self.views][..., channels])
        patches = None
        # also to leave patches out, where statistics are taken of them
        if self.patches or not has_all_layers:
            patches = np.ascontiguousarray(rows.patches_VTPD[self.views][..., channels])
        stats = rows.stats_VS[self.views]
        if not has_all_layers:
            # as a build takes them: of vectors that are pooled anew, before any rounding
            rows_of_stats = []
            for v, cls_TD, patches_TPD in zip(self.views, cls, patches, strict=True):
                photo_TP = photo_patches(spec.tokens, spec.tokens.views[v], *rows.photo_size)
                tokens_TPD = torch.from_numpy(patches_TPD)
                pooled_T5D = pool(tokens_TPD, photo_TP)
                stats_S = row_stats(torch.from_numpy(cls_TD), tokens_TPD, pooled_T5D, photo_TP)
                rows_of_stats.append(stats_S.numpy())
            stats = np.stack(rows_of_stats)
        return replace(
            rows,
            cls_VTD=cls,
            pooled_VT5D=pooled,
            stats_VS=stats,
            patches_VTPD=patches if self.patches else None,
        )
