"""Every patch's part of each number: K (D + 1) parameters, at any resolution."""

import torch
from torch import Tensor

from trainer.heads.bank import Bank, HeadKind, Inputs, Outputs
from trainer.heads.outputs import of_patches
from trainer.heads.padding import share_of_photo, without_padding
from trainer.heads.shape import HeadShape
from trainer.heads.trunk import linear_tensors


class Density(HeadKind):
    """softplus(density(T)) summed over patches and tiles; levels and shares are averaged over them.

    It learns predicted numbers alone, no classes.
    """

    settings = ("normalize",)
    normalizes = True
    has_trunk = False
    floats_per_patch = 24
    leaves_padding_out = True
    maps_say = "grams"

    def tensors(self, shape: HeadShape) -> dict[str, tuple[int, ...]]:
        return linear_tensors({"density": (shape.targets.n_predicted, shape.width)})

    def reads(self, shape: HeadShape) -> dict[str, list[str]]:
        return {"density": ["patch"]}

    def forward(self, bank: Bank, inputs: Inputs) -> Outputs:
        targets = bank.shape.targets
        n_amounts = targets.n_amounts
        of_patch = self.maps(bank, inputs)
        values = of_patch.sum((3, 4))
        if n_amounts < targets.n_predicted:
            averaged = of_patch[..., n_amounts:].mean((3, 4))
            values = torch.cat([values[..., :n_amounts], averaged], -1)
        return Outputs(inputs.late(values))

    def maps(self, bank: Bank, inputs: Inputs) -> Tensor:
        weight = bank.tensor("density.weight")
        bias = bank.tensor("density.bias")
        # into the weights: normalising every patch would be a pass over the tokens
        if bank.moments:
            mean, std = bank.moments["patch"]
            weight = weight / std[:, None, :, None]
            bias = bias - torch.einsum("qd,qgdk->qgk", mean, weight)
        y_QGBTPK = inputs.early(inputs.project(weight))
        raw = y_QGBTPK + bias[:, :, None, None, None]
        kinds = [target.kind for target in bank.shape.targets.outputs]
        parts = []
        for kind in ("amount", "level", "share"):
            own = [k for k in range(raw.shape[-1]) if kinds[k] == kind]
            if own:
                part = raw[..., own[0] : own[-1] + 1]
                of_patch = of_patches(kind, bank.shape.targets, part)
                of_patch = without_padding(inputs, of_patch, 0.0)
                if kind != "amount":  # so that the mean over all is that over the photograph
                    of_patch = of_patch / share_of_photo(inputs)
                parts.append(of_patch)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


KIND = Density()
