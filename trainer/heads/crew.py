"""Threads that work side by side: on rows, each computing alone, and on banks.

Where torch splits every small product over all cores, each waits for the slowest at its end: beside
one busy process a full-size step of two threads took 4.1 times as long, and 1.6 times where threads
take row after row and wait for nobody (benchmarks/bench_step.py).
"""

import functools
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, wait
from typing import TypeVar

import torch

from featurestore.disk.threads import Pool, lone_pool

Item = TypeVar("Item")

WAITING = 2
"""Items handed over for each thread, at most: each keeps its row mapped."""


def spread(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call work with every item, as many at a time as torch computes with threads here; nothing of
    it is recorded for autograd.

    Items are made in order, in this thread; each result must depend on its own item alone. The
    first exception is raised once the items handed over are done.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        for item in items:
            work(item)
        return

    in_mode = _in_mode(work, is_recorded=False)
    crew = _crew(n_threads, 1)
    handed: deque[Future] = deque()
    try:
        for item in items:
            if len(handed) == WAITING * n_threads:
                handed.popleft().result()
            handed.append(crew.submit(in_mode, item))
    finally:
        # also after an exception: no thread may write into a result that is given up
        _wait_for(handed)
    for future in handed:
        future.result()


def side_by_side(work: Callable[[Item], None], items: Collection[Item]) -> None:
    """Call work with as many items at a time as torch has threads, which are shared out evenly.

    For operations too small to be shared out themselves. What work records for autograd must be
    used within it. The first exception, in the order of the items, is raised once all are done.
    """
    n_threads = torch.get_num_threads()
    n_crew = min(n_threads, len(items))
    if n_crew <= 1:
        for item in items:
            work(item)
        return

    in_mode = _in_mode(work, torch.is_grad_enabled())
    crew = _crew(n_crew, n_threads // n_crew)
    handed: list[Future] = []
    try:
        for item in items:
            handed.append(crew.submit(in_mode, item))
    finally:
        # before anybody looks at what they change, to save it say
        _wait_for(handed)
    for future in handed:
        future.result()


def _wait_for(handed: Collection[Future]) -> None:
    """Wait until nobody works any more; a KeyboardInterrupt meanwhile is raised afterwards."""
    interrupt = None
    while not all(future.done() for future in handed):
        try:
            wait(handed)
        except KeyboardInterrupt as err:
            interrupt = err
    if interrupt:
        raise interrupt


def _in_mode(work: Callable[[Item], None], is_recorded: bool) -> Callable[[Item], None]:
    """The same in another thread, whose modes are its own."""
    is_inference = torch.is_inference_mode_enabled()

    def in_mode(item: Item) -> None:
        with torch.inference_mode(is_inference), torch.set_grad_enabled(is_recorded):
            work(item)

    return in_mode


@functools.cache
def _crew(n_threads: int, n_each: int) -> Pool:
    return lone_pool(n_threads, n_each)
