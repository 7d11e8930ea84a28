"""With how many threads a sweep computes, and whether its banks share them out: both change how
torch rounds sums."""

import math
import reprlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from featurestore.disk.usable import usable_cpus
from featurestore.errors import InputError
from trainer.config.sections import PointConfig
from trainer.data.dataset import TrainingData
from trainer.heads.reads import patch_stores
from trainer.heads.tokens import SMALL_BYTES


def choose_side_by_side(data: TrainingData, points: Sequence[PointConfig]) -> bool:
    """Whether banks compute side by side: on a CPU, where rows are small. Torch shares out few of
    the small operations; products of large rows keep all threads busy."""
    if data.device.type != "cpu":
        return False
    for name in patch_stores(points):
        tokens = data.tokens[name]
        row_TPD = tokens.n_tiles, tokens.n_patches, tokens.width
        if math.prod(row_TPD) * data.dtype.itemsize > SMALL_BYTES:
            return False
    return True


def begun_side_by_side(plan: Mapping[str, Any], file: Path) -> bool:
    """What a sweep that goes on began with; plan : its sweep.json, `file`."""
    found = plan.get("side_by_side", False)  # of before this was kept
    if not isinstance(found, bool):
        raise InputError(
            f"{file}: side_by_side: found {reprlib.repr(found)}, expected true or false; bring "
            "back what `biomass train` wrote"
        )
    return found


@contextmanager
def same_threads(began: Any, plan: Path) -> Iterator[None]:
    """Compute with as many threads as a sweep began with; warn where torch cannot.

    began : `threads` in the sweep's `sweep.json`; None, in a file that was made before this was
        kept, changes nothing.
    plan : that file, for warnings.
    """
    # of the whole process: a notebook that calls this gets its own number back
    before = torch.get_num_threads()
    if remark := _set_threads(began):
        warnings.warn(f"{plan}: {remark}", stacklevel=4)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _set_threads(began: Any) -> str:
    """Set their number; what is to be said of it, or nothing."""
    now = torch.get_num_threads()
    if began is None or began == now:
        return ""
    # it cannot in an edited file's case, nor in some builds of torch
    with suppress(RuntimeError, TypeError, ValueError):
        torch.set_num_threads(began)
    if torch.get_num_threads() != began:
        return (
            f"the sweep began with {began!r} threads, which torch cannot set here; it goes on with "
            f"{now}, and its results may be rounded otherwise"
        )
    usable = usable_cpus()
    if began > usable:
        return (
            f"the sweep began with {began} threads and goes on with as many, for the same results; "
            f"only {usable} CPUs are usable here, which can make it slow"
        )
    return ""
