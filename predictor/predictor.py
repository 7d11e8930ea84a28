"""Predictor: images -> tokens -> heads -> grams. The tokens are made by the same functions that made the store's."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from featurestore.backbone import Backbone, kept_weights, restore_backbone
from featurestore.catalog import find_photographs, read_catalog
from featurestore.decode import Decoded, check_photographs, decode_ahead
from featurestore.errors import InputError
from featurestore.spec import ViewSpec
from featurestore.views import tta_views
from predictor.ensemble import BankEnsemble, RegressorEnsemble, new_ensemble
from trainer.config import PointConfig
from trainer.metrics import TARGETS, constrained
from trainer.postprocess import apply, rules_of
from trainer.runs import RunFolder


@dataclass(frozen=True)
class Predictor:
    """A backbone, and all chosen heads of a run over its tokens."""

    backbone: Backbone
    ensemble: BankEnsemble | RegressorEnsemble
    config: PointConfig
    states: list[str]

    @classmethod
    def load(cls, run: Path, folds: Sequence[int] | None = None, weights: str = "last",
             backbone_weights: str | None = None, device: str = "auto", precision: str | None = None) -> "Predictor":
        """The predictor of a run's folder.

        folds : which folds' heads (all repeats of them); None is all.
        backbone_weights : file of the backbone; None takes those kept beside the store, else what made the store.
        precision : of the backbone; None is the store's.

        Raises InputError or MismatchError if the folder lacks something or the weights are not those of the store.
        """
        folder = RunFolder(Path(run))
        config, spec, states = folder.config, folder.spec, folder.states
        heads = list(folder.heads(weights, list(folds) if folds else None).values())
        source = backbone_weights or kept_weights(spec, folder.store_folder)
        backbone = restore_backbone(spec.tokens, source, device, precision or spec.made_by.get("precision", "fp32"))
        return cls(backbone, new_ensemble(config, spec, states, heads, backbone.device), config, states)

    def raw(self, photograph: Decoded, image_id: str, views: Sequence[ViewSpec]) -> tuple[np.ndarray, np.ndarray | None]:
        """Of one photograph: raw masses (heads, views, 5), grams, MASSES order, and probabilities of States or None."""
        return self.ensemble([self.backbone.tokens(photograph.tiles_THW3, image_id, view) for view in views])

    def predict(self, paths: dict[str, Path], tta: int = 4, progress: bool = True) -> pd.DataFrame:
        """Masses of photographs by id.

        Returns one row an image: image_id, the five targets in grams (averaged over heads and views, then constrained),
        and for each `TARGET_sd`, the spread of single heads and views, which are constrained on their own.
        """
        views = tta_views(tta)
        tokens = self.backbone.spec
        if any(view.transpose for view in views) and tokens.tile_height != tokens.tile_width:
            raise InputError(f"tta {tta}: transposed views need square tiles, these are {tokens.tile_height} x "
                             f"{tokens.tile_width}; choose 1, 2 or 4")
        if paths:
            check_photographs(list(paths.values()), self.backbone.spec.crop)
        bar = tqdm(decode_ahead(paths, self.backbone.crop), total=len(paths), desc="predict", unit="image",
                   disable=not progress, file=sys.stderr)
        raw = [self.raw(photograph, image_id, views) for image_id, photograph in bar]
        states = [state.reshape(-1, state.shape[-1]) for _, state in raw if state is not None]
        return self._table(list(paths), np.array([masses for masses, _ in raw]).reshape(len(paths), -1, 5), np.array(states))

    def _table(self, image_ids: list[str], raw_NM5: np.ndarray, state_NMC: np.ndarray) -> pd.DataFrame:
        """Wide table from each image's M = heads x views raw masses, and probabilities of States where heads tell them."""
        if not image_ids:
            raw_NM5 = np.zeros((0, 1, 5))
        state_NC = state_NMC.mean(1) if state_NMC.size else None
        mean_N5 = self._masses(raw_NM5.mean(1), state_NC)
        sd_N5 = self._masses(raw_NM5, state_NMC if state_NMC.size else None).std(1)
        columns = {name: mean_N5[:, k] for k, name in enumerate(TARGETS)}
        spread = {f"{name}_sd": sd_N5[:, k] for k, name in enumerate(TARGETS)}
        return pd.DataFrame({"image_id": image_ids, **columns, **spread})

    def _masses(self, raw_N5: np.ndarray, state_NC: np.ndarray | None) -> np.ndarray:
        """Grams in TARGETS order: constrained, then the config's rules."""
        inference = self.config.inference
        return apply(rules_of(inference.postprocess), constrained(raw_N5, inference.constraints), state_NC, self.states)


def predict(run: Path, data: Path, tta: int = 4, progress: bool = True, **options) -> pd.DataFrame:
    """Masses of the photographs of `data`/test.csv by the heads of a run; options are those of `Predictor.load`.

    Returns the wide table of `Predictor.predict`. Missing or damaged photographs are all listed before work starts.
    """
    paths = test_photographs(Path(data))
    return Predictor.load(Path(run), **options).predict(paths, tta, progress)


def test_photographs(data: Path) -> dict[str, Path]:
    """Photograph of each image of test.csv; InputError listing all that are missing."""
    frame = read_catalog(data / "test.csv")
    return dict(zip(frame["image_id"], find_photographs(frame, data), strict=True))
