"""Grams of every patch, summed over the photograph: 5 (D + 1) parameters, at any resolution."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.heads.bank import N_AUX, N_MAIN, Bank, HeadKind, Inputs, Outputs, linear_tensors
from trainer.heads.shape import HeadShape


class Density(HeadKind):
    """softplus(density(T)) summed over patches and tiles; it knows no State and no Height."""

    settings = ("normalize",)
    normalizes = True
    has_state = False
    floats_per_patch = 24
    maps_say = "grams"

    def tensors(self, shape: HeadShape) -> dict[str, tuple[int, ...]]:
        return linear_tensors({"density": (N_MAIN + N_AUX, shape.width)})

    def reads(self, shape: HeadShape) -> dict[str, list[str]]:
        return {"density": ["patch"]}

    def forward(self, bank: Bank, inputs: Inputs) -> Outputs:
        return Outputs(inputs.late(self.maps(bank, inputs).sum((3, 4))))

    def maps(self, bank: Bank, inputs: Inputs) -> Tensor:
        weight = bank.tensors["density.weight"]
        bias = bank.tensors["density.bias"]
        # into the weights: normalising every patch would be a pass over the tokens
        if bank.moments:
            mean, std = bank.moments["patch"]
            weight = weight / std[:, None, :, None]
            bias = bias - torch.einsum("qd,qgdk->qgk", mean, weight)
        y_QGBTPK = inputs.early(inputs.project(weight))
        return F.softplus(y_QGBTPK + bias[:, :, None, None, None])


KIND = Density()
