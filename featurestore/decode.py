"""Photographs checked before work starts, and decoded in threads ahead of whoever needs them next."""

import os
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from featurestore.errors import InputError, list_some
from featurestore.images import Crop, inspect_photograph, read_photograph, thumbnail

AHEAD = 4  # a slow file must not stop the backbone


@dataclass(frozen=True)
class Decoded:
    """One photograph as the backbone takes it; facts are its catalog cells."""

    tiles_THW3: torch.Tensor
    thumb_HW3: np.ndarray | None
    facts: dict


def decode_ahead(paths: Mapping[Hashable, Path], crop: Crop, thumb: tuple[int, int] | None = None
                 ) -> Iterator[tuple[Hashable, Decoded]]:
    """(key, photograph) in the mapping's order, the next few being decoded meanwhile."""
    with ThreadPoolExecutor(min(AHEAD, os.cpu_count() or 1)) as pool:
        todo = iter(paths.items())
        ahead = [(key, pool.submit(decode, path, crop, thumb)) for key, path in islice(todo, AHEAD)]
        try:
            while ahead:
                key, future = ahead.pop(0)
                ahead += [(k, pool.submit(decode, path, crop, thumb)) for k, path in islice(todo, 1)]
                yield key, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def decode(path: Path, crop: Crop, thumb: tuple[int, int] | None = None) -> Decoded:
    """One photograph, decoded and cropped; the same for building a store and for predicting."""
    photograph = read_photograph(path)
    facts = {"sha256": photograph.sha256, "width": photograph.width, "height": photograph.height, "status": "ok"}
    small = thumbnail(photograph.pixels_HW3, *thumb) if thumb else None
    return Decoded(torch.from_numpy(crop(photograph.pixels_HW3)), small, facts)


def check_photographs(paths: list[Path], crop: str) -> tuple[int, int]:
    """Width and height of the first photograph, from headers alone; InputError listing every one that cannot be used."""
    sizes, wrong = [], []
    for path in paths:
        try:
            size = inspect_photograph(path)
            width, height = (sizes[0] if sizes else size) if crop == "whole" else (1, 1)
            Crop(crop, height, width, "bicubic").check(*size)
            sizes.append(size)
        except InputError as err:
            wrong.append(str(err) if str(path) in str(err) else f"{path}: {err}")
    if wrong:
        raise InputError(f"{len(wrong)} of {len(paths)} photographs cannot be used:{list_some(wrong)}")
    return sizes[0]
