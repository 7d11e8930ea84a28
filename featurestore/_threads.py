"""Threads for work on views side by side."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

MOST = 4


@contextmanager
def lone_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch shares out no operation.

    Where it does, its helpers wait for each other, spinning, at the end of each: small operations took 100 times as long on two
    busy cores.
    """
    n = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(min(MOST, os.cpu_count() or 1), initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(n)  # what threads that begin later take; this thread's own number never changed
