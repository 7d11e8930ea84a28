"""Tensors in safetensors files: written as the umask says, and read wherever they lie."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def readable_name(path: Path) -> Iterator[Path]:
    """A name of the file by which safetensors opens it.

    Its reader refuses folders whose names are not UTF-8.

    Valid within the block. Raises OSError if the file cannot be opened.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        pass
    else:
        yield path
        return
    with open(path, "rb") as file:
        yield Path(f"/proc/self/fd/{file.fileno()}")


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a safetensors file with the mode of any other new file, 0666 less the umask.

    Raises OSError if it cannot be written; what is there then is not whole.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata)
    except SafetensorError as err:
        if found := re.search(r"\(os error (\d+)\)", str(err)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from err
        raise
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)  # safetensors 0.8 renames a temporary file of mode 0600 to this name
