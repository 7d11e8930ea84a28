"""Which words name a device: said before torch is imported."""

import re

from featurestore.errors import InputError


def is_device(text: str) -> bool:
    """Whether some machine can have it."""
    return re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", text) is not None


def check_device(text: str, where: str = "device") -> None:
    """InputError for what no machine can have. where : what the user calls it."""
    if not is_device(text):
        raise InputError(f"{where} {text!r}: not a device; use auto, cpu, cuda or cuda:N")
