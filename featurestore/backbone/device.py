"""Which device and number format a backbone computes in."""

import torch

from featurestore.backbone.device_name import check_device
from featurestore.errors import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str) -> torch.device:
    """The requested device, where "auto" is CUDA if there is one.

    InputError rather than a silent other one.
    """
    check_device(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r}: {torch.cuda.device_count()} CUDA devices here; use auto or cpu"
        )
    return chosen
