"""An MLP over the class token and the stored pooled vectors: no patch is read.

Pooled vectors are not linear in the tokens (a maximum of a mix is no mix of maxima): mixup mixes
vectors here, whatever its kind.
"""

import torch

from featurestore.format.spec import POOLED
from trainer.heads.bank import Bank, HeadKind, HeadShape, Inputs, Outputs, trunk, trunk_tensors


class PooledMlp(HeadKind):
    """The trunk over `features`: any of cls, mean, std, max, min, gem, one after another."""

    settings = ("features", "shared_hidden", "dropout", "normalize")
    reads_pooled = True
    reads_patches = False
    floats_per_patch = 0

    def tensors(self, shape: HeadShape) -> dict[str, tuple[int, ...]]:
        return trunk_tensors(shape, len(shape.features) * shape.width)

    def reads(self, shape: HeadShape) -> dict[str, list[str]]:
        return {"shared_mlp.0": list(shape.features)}

    def forward(self, bank: Bank, inputs: Inputs) -> Outputs:
        vectors = {name: inputs.pooled_QBT5D[:, None, :, :, i] for i, name in enumerate(POOLED)}
        vectors["cls"] = inputs.cls_QBTD[:, None]
        features = [bank.normal(name, vectors[name]) for name in bank.shape.features]
        mixed = inputs.mixed(torch.cat(features, -1))
        return trunk(bank, inputs, bank.each_point(mixed))


KIND = PooledMlp()
