"""An MLP over the class token and the stored pooled vectors: no patch is read.

Pooled vectors are not linear in the tokens (a maximum of a mix is no mix of maxima): mixup mixes
vectors here, whatever its kind.
"""

import torch

from trainer.heads.bank import Bank, HeadKind, Inputs, Outputs
from trainer.heads.shape import HeadShape
from trainer.heads.trunk import trunk, trunk_tensors


class PooledMlp(HeadKind):
    """The trunk over `features`: cls, mean, std, max, min, gem3 of any store, one after another."""

    settings = ("features", "columns", "shared_hidden", "dropout", "normalize")
    reads_pooled = True
    reads_patches = False
    floats_per_patch = 0

    def tensors(self, shape: HeadShape) -> dict[str, tuple[int, ...]]:
        return trunk_tensors(shape, sum(shape.feature_widths))

    def reads(self, shape: HeadShape) -> dict[str, list[str]]:
        return {"shared_mlp.0": list(shape.features)}

    def forward(self, bank: Bank, inputs: Inputs) -> Outputs:
        features = [bank.normal(name, inputs.vector(name)) for name in bank.shape.features]
        mixed = inputs.mixed(torch.cat(features, -1))
        return trunk(bank, inputs, bank.each_point(mixed))


KIND = PooledMlp()
