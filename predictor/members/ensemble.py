"""All chosen heads of a run together: tokens of a photograph in, raw masses out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featurestore.backbone.moments import pool
from featurestore.format.spec import StoreSpec
from featurestore.photos.targets import Targets
from trainer.config.sections import PointConfig
from trainer.config.stores import split_vector
from trainer.data.dataset import inputs_of
from trainer.data.used_store import pooled_features
from trainer.heads import kinds
from trainer.heads.bank import Bank, Inputs, load_bank
from trainer.heads.fitted import numbers_and_words
from trainer.heads.input_columns import InputColumns
from trainer.heads.outputs import word_probabilities
from trainer.heads.reads import vectors_of
from trainer.heads.shape import HeadShape
from trainer.heads.step_index import StepIndex
from trainer.heads.tokens import Multiply, StepTokens, of_device
from trainer.judge.baselines import predict_numbers


class Tokens(NamedTuple):
    """Tokens of one view of a photograph."""

    cls_TD: Tensor
    patches_TPD: Tensor
    photo_TP: np.ndarray | None = None
    """Which patches are no padding, see `photo_patches`."""


def pooled_as_stored(tokens: Sequence[Tokens], dtype: str) -> Tensor:
    """(V, T, 5, D) float32 pooled vectors of V views' tokens, rounded as the store of the heads
    holds them.

    dtype : `pooled_dtype` of its spec.
    """
    pooled = [pool(view.patches_TPD, view.photo_TP) for view in tokens]
    # to the store's type and back: heads learned on rounded vectors
    return torch.stack(pooled).to(getattr(torch, dtype)).float()


@dataclass(frozen=True)
class BankEnsemble:
    """Trained heads as one bank."""

    bank: Bank
    multiply: Multiply
    pooled_dtypes: Mapping[str, str]
    """Of the stores that the heads learned on, by name."""

    @torch.inference_mode()
    def __call__(
        self,
        tokens: Mapping[str, Sequence[Tokens]],
        row_C: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Of V views' tokens by store: raw numbers (H, V, K) in the order of heads,
        and probabilities of each class's words (H, V, C) or None.

        row_C : the photograph's row of `head.columns`, NaN for a number that is not known.
        """
        inputs = self._inputs(tokens)
        columns = self.bank.shape.columns
        if columns:
            row_11C = torch.from_numpy(row_C).to(inputs.cls_QBTD)[None, None]
            parts = row_11C.split([column.width for column in columns.each], -1)
            inputs.columns = dict(zip(columns.names, parts, strict=True))
        out = self.bank(inputs)
        targets = self.bank.shape.targets
        # the axis of splits has length 1: saved heads are loaded as points of one
        values_HVK = out.values_QGBK[0, ..., : targets.n_predicted].double().cpu().numpy()
        if out.word_QGBC is None:
            return values_HVK, None
        share_HVC = word_probabilities(targets, out.word_QGBC[0])
        return values_HVK, share_HVC.double().cpu().numpy()

    @torch.inference_mode()
    def maps(self, tokens: Mapping[str, Sequence[Tokens]]) -> np.ndarray:
        """(V, T, P, M), mean over heads of what its kind `maps_say`; M is 1 for shares, averaged
        over softmaxes too."""
        maps_QHVTPM = self.bank.kind.maps(self.bank, self._inputs(tokens))
        maps_HVTPM = maps_QHVTPM[0].double()
        mean_VTPM = maps_HVTPM.mean(0)
        if self.bank.kind.maps_say == "share":
            mean_VTPM = mean_VTPM.mean(-1, keepdim=True)
        return mean_VTPM.cpu().numpy()

    def _inputs(self, tokens: Mapping[str, Sequence[Tokens]]) -> Inputs:
        shared = {}
        for name, own in tokens.items():
            rows = [view.patches_TPD for view in own]
            cls_QBTD = torch.stack([view.cls_TD for view in own]).float()[None]
            pooled = None
            if self.bank.kind.reads_pooled:
                pooled = pooled_as_stored(own, self.pooled_dtypes[name])[None]
            photo_QBTP = None
            if own[0].photo_TP is not None:
                photo_BTP = np.stack([view.photo_TP for view in own])
                photo_QBTP = torch.from_numpy(photo_BTP).to(cls_QBTD.device)[None]
            # views stand where a step has its samples; each reads its own row, and none is mixed
            step_tokens = StepTokens(rows, torch.float32, self.multiply)
            index = StepIndex.of(np.arange(len(own))[None], len(own), cls_QBTD.device)
            shared[name] = Inputs(step_tokens, index, cls_QBTD, pooled, photo_QBTP)
        return inputs_of(self.bank, shared)


@dataclass(frozen=True)
class RegressorEnsemble:
    """Fitted regressors: pooled rows and NumPy."""

    config: PointConfig
    targets: Targets
    pooled_dtypes: Mapping[str, str]
    states: Sequence[Mapping[str, np.ndarray]]

    def __call__(
        self,
        tokens: Mapping[str, Sequence[Tokens]],
        row_C: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """As `BankEnsemble`."""
        stored = {}
        for name, own in tokens.items():
            cls_VTD = torch.stack([view.cls_TD for view in own]).cpu().numpy()
            pooled = pooled_as_stored(own, self.pooled_dtypes[name])
            stored[name] = cls_VTD, pooled.cpu().numpy()
        vectors = [split_vector(vector) for vector in vectors_of(self.config)]
        parts = [pooled_features(*stored[store], [name]) for store, name in vectors]
        # the photograph's columns behind them, the same for each of its views
        parts.append(np.tile(row_C, (len(parts[0]), 1)))
        x_VF = np.hstack(parts)
        told = [predict_numbers(self.config, self.targets, each, x_VF) for each in self.states]
        return numbers_and_words(np.stack(told), self.targets)


def new_ensemble(
    config: PointConfig,
    specs: Mapping[str, StoreSpec],
    targets: Targets,
    columns: InputColumns,
    heads: Sequence[Mapping[str, Tensor]],
    device: torch.device,
) -> BankEnsemble | RegressorEnsemble:
    """The ensemble of a run's saved heads; specs : of the stores they learned on, by name."""
    pooled_dtypes = {name: spec.pooled_dtype for name, spec in specs.items()}
    if kinds.load(config.head.kind).trained:
        multiply = of_device(device, config.trainer.use_amp, torch.float32)
        tokens = {name: spec.tokens for name, spec in specs.items()}
        shape = HeadShape.of(config, tokens, targets, columns)
        bank = load_bank(shape, heads, device)
        return BankEnsemble(bank, multiply, pooled_dtypes)
    fitted = [{name: tensor.numpy() for name, tensor in head.items()} for head in heads]
    return RegressorEnsemble(config, targets, pooled_dtypes, fitted)
