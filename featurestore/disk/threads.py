"""Threads: how many torch takes, pools for work on views, and a system that starts none."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from featurestore.disk.usable import usable_cpus
from featurestore.errors import NoThreadError

MOST = 4
ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
NOT_STARTED = "can't start new thread"  # CPython's only words for it
NO_MORE = (
    "the system starts no further thread or process; raise `ulimit -u` (in a container its limit "
    "of processes) or `ulimit -v`, end other programs, or set OMP_NUM_THREADS=1"
)


@contextmanager
def starting() -> Iterator[None]:
    """A thread or process that this block starts does start, or NoThreadError says what to do."""
    try:
        yield
    except BlockingIOError as err:  # of fork
        raise NoThreadError(NO_MORE) from err
    except RuntimeError as err:
        ours = not_started(err)
        if ours is None:
            raise  # `from err` would make it its own cause, and a search for causes endless
        raise ours from err


def not_started(err: BaseException) -> NoThreadError | None:
    """The error to raise if a thread that could not be started is behind `err`, else None."""
    cause: BaseException | None = err
    seen = set()  # an error that was raised again may be a cause of its own cause
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, RuntimeError) and NOT_STARTED in str(cause):
            return NoThreadError(NO_MORE)
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None


class Pool(ThreadPoolExecutor):
    """A ThreadPoolExecutor that raises NoThreadError where the system starts no thread."""

    def submit(self, *arguments, **more) -> Future:
        with starting():
            return super().submit(*arguments, **more)


def check_thread() -> None:
    """NoThreadError if no thread can be started at all.

    OpenBLAS and OpenMP would end the process without a word of ours.
    """
    thread = threading.Thread(target=bool)
    with starting():
        thread.start()
    thread.join()


def wait_asleep() -> None:
    """Have OpenMP's threads sleep between operations, not spin; before torch is loaded.

    A thread that spins has used up its time where another process is busy, and the next operation
    waits for it: a step of the demo on two cores took 140 to 400 ms so, 20 asleep. Nothing changes
    where the environment says how to wait.
    """
    if not any(os.environ.get(name) for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


@contextmanager
def usable_threads() -> Iterator[None]:
    """In this block torch takes no more threads than this process has CPUs.

    Nothing changes where its environment says how many.

    Torch itself heeds the affinity, not a cgroup's quota: of 64 threads with a quota of 2 CPUs most
    wait for the others.
    """
    import torch

    n, most = torch.get_num_threads(), usable_cpus()
    if n <= most or any(os.environ.get(name) for name in ASKED):
        yield  # not even set again: setting it switches MKL's own choice off
        return
    torch.set_num_threads(most)
    try:
        yield
    finally:
        torch.set_num_threads(n)


@contextmanager
def lone_threads() -> Iterator[Pool]:
    """A pool of lone threads for a block, of no more than MOST."""
    with lone_pool(min(MOST, usable_cpus())) as threads:
        yield threads


def lone_pool(n_threads: int, n_each: int = 1) -> Pool:
    """Threads in each of which torch computes with n_each threads; with one it shares out no
    operation.

    Where it does, its helpers wait for each other, spinning, at the end of each: small operations
    took 100 times as long on two busy cores.
    """
    import torch

    before = torch.get_num_threads()
    pool = Pool(n_threads)
    all_begun = threading.Barrier(n_threads)

    def begin() -> None:
        # asked first: torch would set a thread's number anew when it is asked for the first time
        torch.get_num_threads()
        torch.set_num_threads(n_each)
        all_begun.wait()

    try:
        begun = [pool.submit(begin) for _ in range(n_threads)]
    except NoThreadError:
        all_begun.abort()
        pool.shutdown()
        torch.set_num_threads(before)
        raise
    for future in begun:
        future.result()
    # each thread keeps its own number; this one is also what threads begin with that start later
    torch.set_num_threads(before)
    return pool
