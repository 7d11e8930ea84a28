"""Which device and number format a backbone computes in."""

import torch

from featurestore.errors import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str) -> torch.device:
    """The requested device, where "auto" is CUDA if there is one.

    InputError rather than a silent other one.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as err:
        raise InputError(
            f"device {device!r}: not a torch device; use auto, cpu, cuda or cuda:N"
        ) from err
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r}: not supported; use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r}: {torch.cuda.device_count()} CUDA devices here; use auto or cpu"
        )
    return chosen
