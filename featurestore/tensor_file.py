"""Tensors as a safetensors file that others may read where the umask lets them."""

import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the mode of any other new file, 0666 less the umask.

    Raises OSError or SafetensorError if it cannot be written; what is there then is not whole.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)  # safetensors 0.8 renames a temporary file of mode 0600 to this name
