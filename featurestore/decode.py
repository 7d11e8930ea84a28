"""Photographs checked before work starts, and decoded in threads ahead of whoever needs them next."""

import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from featurestore.errors import InputError, list_some
from featurestore.images import Crop, inspect_photograph, naming_memory, read_photograph, thumbnail

AHEAD = 4  # a slow file must not stop the backbone


@dataclass(frozen=True)
class Decoded:
    """One photograph as the backbone takes it; facts are its catalog cells."""

    tiles_THW3: torch.Tensor
    thumb_HW3: np.ndarray | None
    facts: dict


def decode_ahead(paths: Mapping[Hashable, Path], crop: Crop, thumb: tuple[int, int] | None = None,
                 damaged: Callable[[Hashable, InputError], None] | None = None) -> Iterator[tuple[Hashable, Decoded]]:
    """(key, photograph) in the mapping's order, the next few being decoded meanwhile.

    damaged : told of a photograph that does not decode, which is then left out; None raises what it says.
    """
    with ThreadPoolExecutor(min(AHEAD, os.cpu_count() or 1)) as pool:
        todo = iter(paths.items())
        ahead = [(key, pool.submit(decode, path, crop, thumb)) for key, path in islice(todo, AHEAD)]
        try:
            while ahead:
                key, future = ahead.pop(0)
                ahead += [(k, pool.submit(decode, path, crop, thumb)) for k, path in islice(todo, 1)]
                try:
                    decoded = future.result()
                except InputError as err:
                    if damaged is None:
                        raise
                    damaged(key, err)
                else:
                    yield key, decoded
        finally:
            pool.shutdown(cancel_futures=True)


def decode(path: Path, crop: Crop, thumb: tuple[int, int] | None = None) -> Decoded:
    """One photograph, decoded and cropped; the same for building a store and for predicting."""
    photograph = read_photograph(path)
    with naming_memory(path):
        small = thumbnail(photograph.pixels_HW3, *thumb) if thumb else None
        tiles_THW3 = torch.from_numpy(crop(photograph.pixels_HW3))
    facts = {"sha256": photograph.sha256, "width": photograph.width, "height": photograph.height, "status": "ok"}
    return Decoded(tiles_THW3, small, facts)


def check_photographs(paths: list[Path], crop: str) -> tuple[int, int]:
    """Width and height of the first photograph, from headers alone; InputError listing every one that cannot be used."""
    size, unusable = inspect_photographs(paths, crop)
    if unusable:
        raise InputError(f"{len(unusable)} of {len(paths)} photographs cannot be used:"
                         f"{list_some([each.why for each in unusable.values()])}")
    return size


@dataclass(frozen=True)
class Unusable:
    """Why a photograph gives no tokens: status is `missing`, `damaged` or `aspect`."""

    status: str
    why: str


def _size_or_error(path: Path) -> tuple[int, int] | InputError:
    try:
        return inspect_photograph(path)
    except InputError as err:
        return err


def inspect_photographs(paths: list[Path], crop: str) -> tuple[tuple[int, int] | None, dict[int, Unusable]]:
    """Width and height of the first photograph that can be used, from headers alone, and by position those that cannot."""
    first, unusable = None, {}
    with ThreadPoolExecutor(min(AHEAD, os.cpu_count() or 1)) as pool:
        found = list(pool.map(_size_or_error, paths))
    for i, (path, size) in enumerate(zip(paths, found, strict=True)):
        if isinstance(size, InputError):
            unusable[i] = Unusable("damaged" if path.is_file() else "missing", str(size))
            continue
        try:
            width, height = (first or size) if crop == "whole" else (1, 1)
            Crop(crop, height, width, "bicubic").check(*size)
            first = first or size
        except InputError as err:
            unusable[i] = Unusable("aspect", f"{path}: {err}")
    return first, unusable
