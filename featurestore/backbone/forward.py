"""A model's forward pass over the same number of crops each time.

Kernels are chosen by shape, and kernels add in different orders: of one shape, the tokens of a crop
depend on that crop alone.
"""

import warnings
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor, nn

from featurestore.backbone.timm_model import read_tokens

Layers = list[Tensor]
"""Tokens of each layer, float16."""


class Forward:
    """Class and patch tokens of each layer, `n_crops` crops at once."""

    def __init__(self, model: nn.Module, layers: Sequence[int], n_crops: int) -> None:
        self.model = model
        self._layers = layers
        self.n_crops = n_crops
        """Falls to half where the device has no memory for more, and stays there."""

    def __call__(self, x_B3HW: Tensor) -> tuple[Layers, Layers]:
        """Class tokens (B, D) and patch tokens (B, P, D) of each layer, for any B."""
        while True:
            try:
                parts = [self._padded(part) for part in x_B3HW.split(self.n_crops)]
                break
            except torch.OutOfMemoryError:
                if self.n_crops == 1:
                    raise
            # after the handler, whose error would keep the tensors that did not fit
            n, half = self.n_crops, -(-self.n_crops // 2)
            warnings.warn(
                f"{x_B3HW.device}: out of memory with {n} tiles at once; going on with {half}. "
                "Rows from here on may differ in the last bit from what a device with more memory "
                "gives",
                stacklevel=3,
            )
            torch.cuda.empty_cache()
            self.n_crops = half

        if len(parts) == 1:
            return parts[0]
        cls, patches = zip(*parts, strict=True)
        return _joined(cls), _joined(patches)

    def once(self, x_B3HW: Tensor) -> tuple[Layers, Layers]:
        """The same for as many crops as are given."""
        with torch.inference_mode(), FULL_FLOAT32:
            cls, patches = read_tokens(self.model, self._layers, x_B3HW)
            cls = [layer_BD.half() for layer_BD in cls]
            return cls, [layer_BPD.half() for layer_BPD in patches]

    def _padded(self, x_B3HW: Tensor) -> tuple[Layers, Layers]:
        n = len(x_B3HW)
        n_lacking = self.n_crops - n
        if not n_lacking:
            return self.once(x_B3HW)
        # another shape would be another kernel, and so other bits
        empty_B3HW = x_B3HW.new_zeros(n_lacking, *x_B3HW.shape[1:])
        cls, patches = self.once(torch.cat([x_B3HW, empty_B3HW]))
        cls = [layer_BD[:n] for layer_BD in cls]
        patches = [layer_BPD[:n] for layer_BPD in patches]
        return cls, patches


class FullFloat32:
    """While any thread is within, convolutions in float32 are that on CUDA, too.

    cuDNN computes them in TF32 unless told otherwise, with 10 bits of mantissa: fewer than tokens
    are stored with. Products of matrices torch leaves in float32.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._n_within = 0
        self._before = True

    def __enter__(self) -> None:
        with self._lock:
            # the setting is the process's: the first thread keeps it, the last one puts it back
            if self._n_within == 0:
                self._before = torch.backends.cudnn.allow_tf32
                torch.backends.cudnn.allow_tf32 = False
            self._n_within += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_within -= 1
            if self._n_within == 0:
                torch.backends.cudnn.allow_tf32 = self._before


FULL_FLOAT32 = FullFloat32()


def _joined(parts: Sequence[Layers]) -> Layers:
    """The layers of parts of a batch, one after another."""
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]
