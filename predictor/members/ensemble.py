"""All chosen heads of a run together: tokens of a photograph in, raw masses out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featurestore.backbone.moments import pool
from featurestore.format.spec import StoreSpec
from trainer.config.sections import PointConfig
from trainer.data.used_store import pooled_features
from trainer.heads import kinds
from trainer.heads.bank import Bank, Inputs, load_bank
from trainer.heads.pooling import in_half
from trainer.heads.shape import HeadShape
from trainer.judge.baselines import predict_masses

Tokens = tuple[Tensor, Tensor]


def pooled_as_stored(tokens: Sequence[Tokens], dtype: str) -> Tensor:
    """(V, T, 5, D) float32 pooled vectors of V views' (cls_TD, patches_TPD), rounded as the store
    of the heads holds them.

    dtype : `pooled_dtype` of its spec.
    """
    return torch.stack([pool(patches) for _, patches in tokens]).to(getattr(torch, dtype)).float()


@dataclass(frozen=True)
class BankEnsemble:
    """Trained heads as one bank."""

    bank: Bank
    half: bool
    pooled_dtype: str
    """Of the store that the heads learned on."""

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[Tokens]) -> tuple[np.ndarray, np.ndarray | None]:
        """Of V views' (cls_TD, patches_TPD): raw masses (H, V, 5), MASSES order, and States'
        probabilities (H, V, C) or None."""
        out = self.bank(self._inputs(tokens))
        state = (
            None if out.state_QGBC is None else out.state_QGBC[0].softmax(-1).double().cpu().numpy()
        )
        return out.masses_QGB5[0].double().cpu().numpy(), state

    @torch.inference_mode()
    def maps(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """(V, T, P, M), mean over heads of what its kind `maps_say`; M is 1 for shares, averaged
        over softmaxes too."""
        maps_HVTPM = self.bank.kind.maps(self.bank, self._inputs(tokens))[0].double()
        mean_VTPM = maps_HVTPM.mean(0)
        return (
            (mean_VTPM.mean(-1, keepdim=True) if self.bank.kind.maps_say == "share" else mean_VTPM)
            .cpu()
            .numpy()
        )

    def _inputs(self, tokens: Sequence[Tokens]) -> Inputs:
        rows = [patches for _, patches in tokens]
        cls_QBTD = torch.stack([cls for cls, _ in tokens]).float()[None]
        pooled = (
            pooled_as_stored(tokens, self.pooled_dtype)[None]
            if self.bank.kind.reads_pooled
            else None
        )
        return Inputs(rows, np.arange(len(tokens))[None], cls_QBTD, pooled, half=self.half)


@dataclass(frozen=True)
class RegressorEnsemble:
    """Fitted regressors: pooled rows and NumPy."""

    config: PointConfig
    pooled_dtype: str
    states: Sequence[Mapping[str, np.ndarray]]

    def __call__(self, tokens: Sequence[Tokens]) -> tuple[np.ndarray, None]:
        """As `BankEnsemble`; a regressor knows no State."""
        cls_VTD = torch.stack([cls for cls, _ in tokens]).cpu().numpy()
        pooled_VT5D = pooled_as_stored(tokens, self.pooled_dtype).cpu().numpy()
        x_VF = pooled_features(cls_VTD, pooled_VT5D, self.config.head.features)
        return np.stack([predict_masses(self.config, state, x_VF) for state in self.states]), None


def new_ensemble(
    config: PointConfig,
    spec: StoreSpec,
    states: Sequence[str],
    heads: Sequence[Mapping[str, Tensor]],
    device: torch.device,
) -> BankEnsemble | RegressorEnsemble:
    """The ensemble of a run's saved heads; spec : of the store they learned on."""
    if kinds.load(config.head.kind).trained:
        half = in_half(device, config.trainer.use_amp, torch.float32)
        return BankEnsemble(
            load_bank(HeadShape.of(config, {"": spec.tokens}, states), heads, device),
            half,
            spec.pooled_dtype,
        )
    fitted = [{name: tensor.numpy() for name, tensor in head.items()} for head in heads]
    return RegressorEnsemble(config, spec.pooled_dtype, fitted)
