"""Tensors that were saved: a file's header is compared with what it must hold before it is read.

A safetensors file begins with eight bytes of length and a JSON object of names, types, shapes and
offsets. Its own reader sees to the offsets; it takes the last of two equal names, any number of
tensors and any types.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from featurestore.disk.tensor_file import readable_name
from featurestore.errors import InputError, MismatchError, NoAccessError, list_some

MOST_HEADER = 1 << 16  # bytes: some 600 tensors, where a head has a dozen
METADATA = "__metadata__"

Kept = tuple[str, tuple[int | str, ...]]
"""Type of a tensor, as safetensors calls it, and its shape; axes of one letter have one length,
whatever it is."""


def read_head(path: Path, expected: Mapping[str, Kept] | None) -> dict[str, Tensor]:
    """All tensors of a saved head.

    expected : every name that its kind and its run's config make, with type and shape; None for a
        kind that does not say.
    InputError for a file that is damaged or was never a head's, or holds values that are not
    finite; MismatchError if names, types or shapes are others than expected.
    """
    try:
        found = read_header(path)
    except PermissionError as err:
        raise NoAccessError.of(err, path) from err
    except (OSError, ValueError) as err:
        raise _damaged(path, getattr(err, "strerror", None) or str(err)) from err
    if expected is not None and (faults := differences(found, expected)):
        raise MismatchError(
            f"{path}: not a head of this run, whose config.yaml and spec.json say what it holds; "
            f"copy the run again, or train it again:{list_some(faults, 5)}"
        )
    try:
        with readable_name(path) as name:
            tensors = load_file(name)
    except SafetensorError as err:
        raise _damaged(path, str(err)) from err
    wrong = []
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            wrong.append(name)
    if wrong:
        raise _damaged(path, f"values of {', '.join(wrong)} are not finite")
    return tensors


def read_header(path: Path, most_bytes: int = MOST_HEADER) -> dict[str, Kept]:
    """Type and shape of each tensor of a file, from its header alone. ValueError if that is none,
    or has more bytes."""
    with open(path, "rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        # before it is read: a foreign file's first bytes may be any number
        if n_bytes > most_bytes:
            raise ValueError(f"a header of {n_bytes} bytes, at most {most_bytes} are read")
        text = file.read(n_bytes)
    try:
        header = json.loads(text, object_pairs_hook=_each_once)
        return {name: _kept(name, entry) for name, entry in header.items() if name != METADATA}
    except (AttributeError, RecursionError) as err:
        raise ValueError(f"no header of a safetensors file ({err})") from err


def differences(found: Mapping[str, Kept], expected: Mapping[str, Kept]) -> list[str]:
    """What is wrong with the names, types and shapes of a file, a sentence each."""
    faults = [f"{name}: missing" for name in expected if name not in found]
    faults += [f"{name}: not expected" for name in found if name not in expected]
    lengths: dict[str, int] = {}
    for name in sorted(expected.keys() & found.keys()):
        dtype, shape = found[name]
        wanted, axes = expected[name]
        fits = dtype == wanted and len(shape) == len(axes)
        for size, axis in zip(shape, axes, strict=False):
            # the first tensor with an axis of that letter says how long it is
            length = lengths.setdefault(axis, size) if isinstance(axis, str) else axis
            fits &= size == length
        if not fits:
            faults.append(f"{name}: {dtype} {list(shape)}, expected {wanted} {list(axes)}")
    return faults


def _each_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _kept(name: str, entry: Any) -> Kept:
    dtype = entry.get("dtype")
    shape = entry.get("shape")
    # type() and not isinstance: true and false are ints in Python
    is_shape = isinstance(shape, list) and all(type(size) is int for size in shape)
    if not (isinstance(dtype, str) and is_shape):
        raise ValueError(f"{name!r} has no type and shape")
    return dtype, tuple(shape)


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: damaged weights ({what}); copy the run again, or train it again")
