"""The class token weighs the patches, an MLP reads both: the head this project starts from."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.heads.bank import Bank, HeadKind, Inputs, Outputs
from trainer.heads.padding import without_padding
from trainer.heads.shape import HeadShape
from trainer.heads.trunk import linear_tensors, trunk, trunk_tensors


class ClsGating(HeadKind):
    """w = softmax(gate_mlp(cls)) over patches, z = w @ T, then the trunk over [cls, z].

    Tied to one grid of patches: the gate has an output for each.
    """

    settings = ("gate_hidden", "columns", "shared_hidden", "dropout", "normalize")
    leaves_padding_out = True
    maps_say = "share"

    def tensors(self, shape: HeadShape) -> dict[str, tuple[int, ...]]:
        gate = {
            "gate_mlp.0": (shape.gate_hidden, shape.width),
            "gate_mlp.2": (shape.n_patches, shape.gate_hidden),
        }
        return linear_tensors(gate) | trunk_tensors(shape, 2 * shape.width)

    def reads(self, shape: HeadShape) -> dict[str, list[str]]:
        return {"gate_mlp.0": ["cls"], "shared_mlp.0": ["cls", "patch"]}

    def forward(self, bank: Bank, inputs: Inputs) -> Outputs:
        c = _cls(bank, inputs)
        z = bank.normal("patch", inputs.attend(_weights(bank, inputs, c)))
        return trunk(bank, inputs, inputs.late(c), inputs.late(z))

    def maps(self, bank: Bank, inputs: Inputs) -> Tensor:
        return _weights(bank, inputs, _cls(bank, inputs))[..., None]


def _cls(bank: Bank, inputs: Inputs) -> Tensor:
    return bank.each_point(inputs.early(bank.own_cls(inputs)))


def _weights(bank: Bank, inputs: Inputs, c_QGBTD: Tensor) -> Tensor:
    hidden = F.gelu(bank.linear("gate_mlp.0", c_QGBTD))
    scores_QGBTP = bank.linear("gate_mlp.2", hidden)
    # -inf is a weight of exactly 0: padding has no part in the sum
    scores_QGBTP1 = without_padding(inputs, scores_QGBTP[..., None], -torch.inf)
    return scores_QGBTP1[..., 0].softmax(-1)


KIND = ClsGating()
