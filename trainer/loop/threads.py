"""With how many threads a sweep computes: their number changes how torch rounds sums."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from featurestore.disk.usable import usable_cpus


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
