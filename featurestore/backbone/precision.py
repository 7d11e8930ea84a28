"""Whether a backbone may compute in half precision: where that is fast, and tokens stay near."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.load import cast_backbone
from featurestore.backbone.rounding import ErrorTally
from featurestore.errors import InputError

LEAST_COSINE = 0.9999
MOST_RMS = 0.004
"""Of tokens beside those in fp32: the least cosine of any, and the root mean square of their
errors, each relative to its token's norm. Measured: fp16 .0006 (the demo's backbone) to .0012 (12
layers, random weights), bf16 eight times as much. Ridge's score moved by .00001 and .0003."""


@dataclass(frozen=True)
class Nearness:
    """How near tokens in half precision are to those in fp32."""

    least_cosine: float
    rms: float

    @property
    def is_enough(self) -> bool:
        return self.least_cosine >= LEAST_COSINE and self.rms <= MOST_RMS

    def __str__(self) -> str:
        return f"least cosine {self.least_cosine:.6f}, rms {self.rms:.2g}"


def fast_halves(device: torch.device) -> tuple[str, ...]:
    """Half precisions that a device multiplies many times faster than fp32, the finer one first.

    None on a CPU: fp16 is slow there, and bf16 is too coarse.
    """
    if device.type != "cuda":
        return ()
    generation, _ = torch.cuda.get_device_capability(device)
    halves = {"fp16": 7, "bf16": 8}  # Volta, Ampere: NVIDIA's table of compute capabilities
    return tuple(name for name, first in halves.items() if generation >= first)


def chosen_precision(
    backbone: Backbone, photographs: Sequence[Tensor]
) -> tuple[Backbone, list[str]]:
    """A backbone in fp32, or in the first fast half whose tokens are near enough; and what was
    found.

    photographs : tiles_THW3 of each, at least one.
    """
    found = []
    for name in fast_halves(backbone.device):
        half = cast_backbone(backbone, name)
        try:
            nearness = compare(backbone, half, photographs)
        except InputError:  # beyond what it can hold
            found.append(f"{name}: tokens are not finite")
            continue
        found.append(f"{name}: {nearness}")
        if nearness.is_enough:
            return half, found
    return backbone, found


def compare(exact: Backbone, other: Backbone, photographs: Sequence[Tensor]) -> Nearness:
    """How near the tokens of the first view of some photographs are, class and patch tokens alike.

    InputError where one of them is not finite.
    """
    view = exact.spec.views[0]
    tally = ErrorTally()
    least = 1.0
    for number, tiles_THW3 in enumerate(photographs):
        ours = exact.tokens(tiles_THW3, str(number), view)
        theirs = other.tokens(tiles_THW3, str(number), view)
        for one_XD, other_XD in zip(ours, theirs, strict=True):
            tally.add(one_XD, other_XD)
            cosines = torch.cosine_similarity(one_XD.float(), other_XD.float(), dim=-1)
            least = min(least, float(cosines.min()))
    return Nearness(least, tally.error()["rms_relative"])
