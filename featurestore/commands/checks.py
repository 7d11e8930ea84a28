"""Mistakes in options that are said at once: nothing here imports torch."""

from pathlib import Path

from featurestore.backbone.device_name import check_device
from featurestore.disk.urls import is_elsewhere, published_url
from featurestore.errors import InputError


def check_devices(text: str | None) -> None:
    """InputError unless --device names a device, or several with commas."""
    for each in (text or "auto").split(","):
        check_device(each.strip(), "--device")


def check_weights_there(option: str, text: str | Path | None) -> None:
    """InputError unless a file of weights is there; `random` needs none."""
    if text is not None and str(text) != "random" and not Path(text).exists():
        raise InputError(f"{option} {text}: no such weights; give a .safetensors file")


def check_store_name(out: Path | str) -> None:
    """InputError unless the name says which format is meant."""
    if is_elsewhere(out):
        published_url(out)
        return
    from featurestore.format.choose import check_suffix  # imports numpy

    check_suffix(out)
