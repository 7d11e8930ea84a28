"""Commands that import much start quickly, and end quickly: modules are no garbage."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def quick_imports() -> Iterator[None]:
    """In this block Python does not collect cycles: it would go through all modules again and again
    while they come, .2 of the 1.9 s that torch takes.

    What is there after a process's first block is kept out of collections for good, and all that is
    there when the process ends out of the last one, which would take torch .35 s.
    """
    if not gc.isenabled():  # within such a block, or by the will of whoever calls
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        _keep_out_of_collections()
        gc.enable()


@cache
def _keep_out_of_collections() -> None:
    """Once a process: a program that calls commands again and again collects what they leave."""
    gc.freeze()
    atexit.register(gc.freeze)
