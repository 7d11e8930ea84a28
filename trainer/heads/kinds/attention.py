"""Learned queries weigh the patches by what they hold, so one head serves every resolution.

Scores and sums both need the tokens: four passes over a row a step (T @ W and A @ T, forward and
backward), twice those of `cls_gating`.
"""

import torch
from torch import Tensor

from trainer.heads.bank import Bank, HeadKind, Inputs, Outputs
from trainer.heads.padding import without_padding
from trainer.heads.shape import HeadShape
from trainer.heads.trunk import trunk, trunk_tensors


class Attention(HeadKind):
    """For each of `queries`: w = softmax(T @ attention) over patches, z = w @ T; then the trunk
    over [cls, z_1, z_2, ...].

    The scores have no bias: a softmax would not see it. Source: attention pooling, Ilse et al.
    2018, arXiv:1802.04712.
    """

    settings = ("queries", "columns", "shared_hidden", "dropout", "normalize")
    floats_per_patch = 16
    leaves_padding_out = True
    maps_say = "share"

    def tensors(self, shape: HeadShape) -> dict[str, tuple[int, ...]]:
        n_in = (1 + shape.queries) * shape.width  # the class token, and a sum for each query
        queries = {"attention.weight": (shape.queries, shape.width)}
        return queries | trunk_tensors(shape, n_in)

    def reads(self, shape: HeadShape) -> dict[str, list[str]]:
        return {"attention": ["patch"], "shared_mlp.0": ["cls"] + ["patch"] * shape.queries}

    def forward(self, bank: Bank, inputs: Inputs) -> Outputs:
        w_QGBTPM = self.maps(bank, inputs)
        q, g, b, t, p, m = w_QGBTPM.shape
        # queries beside points, as if they were more heads
        w_QGMBTP = w_QGBTPM.permute(0, 1, 5, 2, 3, 4)
        w_QHBTP = w_QGMBTP.reshape(q, g * m, b, t, p)
        z_QHBTD = bank.normal("patch", inputs.attend(w_QHBTP))
        # and back: what a head reads of a tile is one query's sum after another's
        z_QGMBTD = z_QHBTD.view(q, g, m, b, t, -1)
        z_QGBTMD = z_QGMBTD.permute(0, 1, 3, 4, 2, 5)
        z = z_QGBTMD.reshape(q, g, b, t, -1)
        c = bank.each_point(inputs.early(bank.own_cls(inputs)))
        return trunk(bank, inputs, inputs.late(c), inputs.late(z))

    def maps(self, bank: Bank, inputs: Inputs) -> Tensor:
        weight = bank.tensor("attention.weight")
        if bank.moments:
            # into the weights: normalising every patch would be a pass over the tokens
            _, std = bank.moments["patch"]
            weight = weight / std[:, None, :, None]
        scores = inputs.early(inputs.project(weight))
        return without_padding(inputs, scores, -torch.inf).softmax(4)


KIND = Attention()
