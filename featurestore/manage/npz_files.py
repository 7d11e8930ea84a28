"""The .npz files of an earlier experiment: what their headers say, and their values."""

import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featurestore.errors import InputError, list_some

KEY = re.compile(r"(cls|patches)_(0|[1-9]\d*)\.npy", re.ASCII)


# what numpy, zipfile and zlib raise for files that are cut or not what they say
READ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
LARGEST = float(np.finfo(np.float16).max)


def check_files(folder: Path, files: Sequence[Path]) -> tuple[int, int, int]:
    """Views, patches and width that all files have.

    InputError lists those that cannot be read or have others.
    """
    if not files:
        raise InputError(f"{folder}: no .npz files; expected one an image, named by its id")
    expected = None
    bad = []
    for file in files:
        try:
            shapes = _shapes(file)
            n_views = max(1, -(-len(shapes) // 2))
            keys = {f"{kind}_{view}" for kind in ("cls", "patches") for view in range(n_views)}
            if missing := sorted(keys - shapes.keys()):
                has = ", ".join(sorted(shapes)[:5]) or "no tokens"
                raise ValueError(f"lacks {', '.join(missing[:5])}; has {has}")
            _check_shapes(shapes, expected or shapes)
            expected = expected or shapes  # once it has passed
        except READ_ERRORS as err:
            bad.append(f"{file.name}: {str(err) or type(err).__name__}")
    if bad:
        raise InputError(
            f"{folder}: {len(bad)} of {len(files)} files cannot be imported; nothing was "
            f"written:{list_some(bad)}"
        )
    return len(expected) // 2, *expected["patches_0"]


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each cls and patches member, from its header.

    ValueError unless it is of floats and as long as it should be.
    """
    shapes = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not KEY.fullmatch(member.filename):
                continue
            key = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                shape, dtype = _read_header(stream, key)
                n_bytes = stream.tell() + math.prod(shape) * dtype.itemsize
            # numpy would take whatever a header says, and make room for it
            if member.file_size != n_bytes:
                raise ValueError(
                    f"{key} unpacks to {member.file_size} bytes, its header says {n_bytes}"
                )
            shapes[key] = shape
    return shapes


def _read_header(stream, key: str) -> tuple[tuple[int, ...], np.dtype]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    magic = np.lib.format.read_magic(stream)
    if magic not in readers:
        raise ValueError(f"{key}: npy version {magic}, expected 1.0 or 2.0")
    shape, _, dtype = readers[magic](stream)
    # not long double, which other machines read otherwise
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"{key}: dtype {dtype}, expected float16, float32 or float64")
    return shape, dtype


def _check_shapes(shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """ValueError unless members are shaped as tokens are, and as those of the first file."""
    patches = expected["patches_0"]
    if len(patches) != 2 or min(patches) < 1:
        raise ValueError(f"patches_0 is {patches}, expected (patches, width)")
    if len(shapes) != len(expected):
        raise ValueError(f"has {len(shapes) // 2} views, the first file {len(expected) // 2}")
    for key, shape in shapes.items():
        wanted = patches if key.startswith("patches") else patches[1:]
        if shape != wanted:
            raise ValueError(f"{key} is {shape}, expected {wanted}")


def opened(file: Path):
    try:
        return np.load(file, allow_pickle=False)
    except READ_ERRORS as err:
        raise InputError(f"{file}: cannot be read: {err}; it changed since it was checked") from err


def read_values(file: Path, arrays, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array, all of whose values fit float16."""
    try:
        values = arrays[key]
    except (*READ_ERRORS, KeyError) as err:
        raise InputError(
            f"{file}: {key}: cannot be read: {err}; "
            "restore the file, what was imported before it is kept"
        ) from err
    if values.shape != shape:
        raise InputError(
            f"{file}: {key}: is {values.shape}, was {shape} when it was checked; import again"
        )
    if not np.abs(values).max() <= LARGEST:  # of NaN nothing is true
        raise InputError(
            f"{file}: {key}: its values are not finite or beyond float16's 65504; "
            "make it again or leave it out"
        )
    return values
