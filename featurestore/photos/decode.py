"""Photographs checked before work starts, and decoded in threads ahead of their use."""

import threading
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from featurestore.counts import count_of
from featurestore.disk.threads import Pool
from featurestore.disk.usable import give_back_freed_memory, usable_cpus
from featurestore.errors import InputError, NoAccessError, list_some
from featurestore.format.spec import MAX_PIXELS
from featurestore.photos.crop import Crop
from featurestore.photos.images import (
    find_brightest,
    find_damage,
    inspect_photograph,
    naming_memory,
    read_photograph,
)

AHEAD = 4  # a slow file must not stop the backbone
DARK = 1 << 13  # an eighth of the range of 16 bits
LOOKED_AT = 100  # photographs that are decoded in vain before a build begins
CHECKED_TOGETHER = 100
"""Headers at most that a thread reads at one request, which costs as much as reading one."""
LARGE = 40_000_000  # pixels, 160 MB as Pillow holds them, twice that while it turns them
_turn = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """One photograph as the backbone takes it; facts are its catalog cells."""

    tiles_THW3: torch.Tensor
    thumb_HW3: np.ndarray | None
    facts: dict

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the photograph, upright."""
        return self.facts["width"], self.facts["height"]


def decode_ahead(
    paths: Mapping[Hashable, Path],
    crop: Crop,
    thumb: tuple[int, int] | None = None,
    damaged: Callable[[Hashable, InputError], None] | None = None,
    sealed: Collection[Hashable] = (),
    ahead: int = AHEAD,
) -> Iterator[tuple[Hashable, Decoded]]:
    """(key, photograph) in the mapping's order, the next few being decoded meanwhile.

    damaged : told of a photograph that is damaged, which is then left out; None raises what it
        says. One that may not be read is always an error.
    sealed : keys of photographs whose tokens a store holds; of damage inside their pictures they
        are warned of alone.
    ahead : how many are being decoded at once, see `ahead_for`.
    """
    with Pool(min(ahead, usable_cpus())) as pool:
        todo = iter(paths.items())

        def begun(n: int) -> list[tuple[Hashable, Future]]:
            return [
                (key, pool.submit(decode, path, crop, thumb, key in sealed))
                for key, path in islice(todo, n)
            ]

        waiting = begun(ahead)
        try:
            while waiting:
                key, future = waiting.pop(0)
                # before this one is waited for: as many are decoded meanwhile as ever
                waiting += begun(1)
                try:
                    decoded = future.result()
                except InputError as err:
                    if damaged is None or isinstance(err, NoAccessError):
                        raise
                    damaged(key, err)
                else:
                    yield key, decoded
        finally:
            pool.shutdown(cancel_futures=True)


def ahead_for(device: torch.device) -> int:
    """Photographs to decode at once: the backbone computes on a CPU itself, a device wants all of
    its cores to feed it."""
    return AHEAD if device.type == "cpu" else max(AHEAD, usable_cpus())


def decode(
    path: Path,
    crop: Crop,
    thumb: tuple[int, int] | None = None,
    sealed: bool = False,
) -> Decoded:
    """One photograph, decoded and cropped; the same for building a store and for predicting.

    Raises InputError as `read_photograph`, and for damage inside the picture; of a sealed one that
    is a warning.
    """
    # from its header: the pixels themselves are what must not be in memory twice
    width, height = inspect_photograph(path, crop.max_pixels)
    if width * height <= LARGE:
        return _decode(path, crop, thumb, sealed)
    # of large ones there is one at a time
    with _turn:
        decoded = _decode(path, crop, thumb, sealed)
        give_back_freed_memory()
        return decoded


def _decode(
    path: Path,
    crop: Crop,
    thumb: tuple[int, int] | None,
    sealed: bool,
) -> Decoded:
    photograph = read_photograph(path, crop.bits, crop.max_pixels)
    if photograph.damage and sealed:
        warn_of_sealed(path, photograph.damage)
    elif photograph.damage:
        raise InputError(f"{path}: {photograph.damage}; copy it again")
    with naming_memory(path):
        small = crop.thumbnail(photograph.picture, *thumb) if thumb else None
        tiles_THW3 = torch.from_numpy(crop(photograph.picture))
    facts = {
        "sha256": photograph.sha256,
        "width": photograph.width,
        "height": photograph.height,
        "status": "ok",
    }
    return Decoded(tiles_THW3, small, facts)


def warn_of_sealed(path: Path, damage: str) -> None:
    """Say that tokens were made of a damaged photograph, and stay."""
    warnings.warn(
        f"{path}: {damage}; its tokens are kept as they are. Restore the photograph and build a "
        "new store, or go without this image",
        stacklevel=3,
    )


def warn_of_all_sealed(paths: list[Path], max_pixels: int) -> None:
    """`warn_of_sealed` for each of many photographs that is damaged inside its picture.

    Sound and missing ones are passed.
    """

    def damage_of(path: Path) -> str | None:
        try:
            return find_damage(path, max_pixels)
        except InputError:
            return None

    with Pool(min(AHEAD, usable_cpus())) as pool:
        for path, damage in zip(paths, pool.map(damage_of, paths), strict=True):
            if damage:
                warn_of_sealed(path, damage)


def dark_remark(
    paths: Iterable[Path],
    command: str = "build",
    max_pixels: int = MAX_PIXELS,
) -> str | None:
    """What to say where no 16-bit photograph uses an eighth of its range, else None.

    None also where there are no 16-bit photographs.

    The first LOOKED_AT of them are read, or as many as it takes to find a brighter one. command :
    of `biomass store`.
    """
    greatest = []
    for path in paths:
        try:
            found = find_brightest(path, max_pixels)
        except InputError:  # others say so
            continue
        if found is not None and found >= DARK:
            return None
        greatest += [] if found is None else [found]
        if len(greatest) == LOOKED_AT:
            break
    if not greatest:
        return None
    bits = max(8, max(greatest).bit_length())
    return (
        f"the 16-bit photographs are nearly black: {len(greatest)} were looked at, and no value is "
        f"above {max(greatest)} of 65535. If their values have {bits} bits, make a store with "
        f"`biomass store {command} --bits {bits}`, which every later command then follows; give "
        "more bits if other photographs may be brighter"
    )


def check_photographs(paths: list[Path], crop: Crop) -> tuple[int, int]:
    """Width and height of the first photograph, from headers alone.

    InputError lists every one that cannot be used.
    """
    size, unusable = inspect_photographs(paths, crop)
    if unusable:
        raise InputError(
            f"{count_of(len(unusable), 'photograph', len(paths))} cannot be "
            f"used:{list_some([each.why for each in unusable.values()])}"
        )
    return size


@dataclass(frozen=True)
class Unusable:
    """Why a photograph gives no tokens: status is `missing`, `damaged`, `aspect` or `unreadable`.

    An unreadable one may be sound, so no option goes without it.
    """

    status: str
    why: str


def inspect_photographs(
    paths: list[Path], crop: Crop
) -> tuple[tuple[int, int] | None, dict[int, Unusable]]:
    """Width and height of the first usable photograph, and by position the unusable ones.

    From headers alone.
    """

    def size_of(path: Path) -> tuple[int, int] | InputError:
        try:
            return inspect_photograph(path, crop.max_pixels)
        except InputError as err:
            return err

    def sizes_of(some: list[Path]) -> list[tuple[int, int] | InputError]:
        return [size_of(path) for path in some]

    # threads: on a network share the files' latency is what counts; few paths keep them all busy
    n_together = max(1, min(CHECKED_TOGETHER, len(paths) // (4 * AHEAD)))
    together = [paths[i : i + n_together] for i in range(0, len(paths), n_together)]
    with Pool(min(AHEAD, usable_cpus())) as pool:
        found = list(chain.from_iterable(pool.map(sizes_of, together)))

    first, unusable = None, {}
    # sizes that fit: photographs have one of a few, and to look at each one took 25 us
    fitting: set[tuple[int, int]] = set()
    for i, (path, size) in enumerate(zip(paths, found, strict=True)):
        if isinstance(size, InputError):
            unreadable = isinstance(size, NoAccessError)
            status = "unreadable" if unreadable else "damaged" if path.is_file() else "missing"
            unusable[i] = Unusable(status, str(size))
            continue
        if size in fitting:
            continue
        try:
            crop.sized_for(*(first or size)).check(*size)
        except InputError as err:
            unusable[i] = Unusable("aspect", f"{path}: {err}")
        else:
            first = first or size
            fitting.add(size)
    return first, unusable
