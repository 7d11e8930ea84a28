"""Items of work as Ray tasks, on all nodes of a cluster; nothing else imports Ray.

Nodes see the same files at the same places, and have this program. As `featurestore.engines.local`
this leaves nothing but what the items leave: a driver that is killed is started again.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from featurestore.disk.interrupts import KILLING, check_interrupt
from featurestore.disk.terminal import terminal_width
from featurestore.disk.threads import wait_asleep
from featurestore.engines.tries import Tries
from featurestore.engines.worker import answer_of, value_of
from featurestore.errors import InputError, LockedError, PartFailed, UsageError

LOOK_S = 0.5
"""Between looks at signals."""
CANCEL_S = 10
"""How long the tasks of a run that ends early are waited for."""
LOCKED_S = 60
"""An item that another process is at is tried again for so long: a process of a driver or a node
that was killed may take a while to end."""


def run(
    task: str,
    items: Mapping[str, Mapping[str, Any]],
    *,
    devices: Sequence[str],
    folder: Path,
    threads: int | None = None,
    tries: int = 3,
    progress: Callable[[str], object] = lambda name: None,
    address: str | None = None,
) -> dict[str, Any]:
    """As `featurestore.engines.local.run`, on the nodes of a cluster.

    devices : their kind counts alone: "cuda" takes a GPU for each item, "cpu" takes `threads`
        cores, and "auto" takes GPUs where some node has one.
    threads : None is an even share of a node's cores, and on a CPU all of them.
    folder : is on a disk that all nodes see, and so is what the task reads and writes.
    address : HOST:PORT of the cluster's head; None is the cluster that this machine is in, else one
        of this machine alone.

    Raises InputError where there is no cluster, and no node that could do an item.
    """
    ray = _import()
    with _connected(ray, address):
        kind = _kind(ray, devices)
        needs = _needs(ray, kind, threads)
        # a node that goes away takes its tasks along: they begin again on another
        do = ray.remote(max_calls=0, max_retries=tries, retry_exceptions=True, **needs)(_do)
        tried = folder / "tries"
        Tries(tried, tries)  # makes the folder
        paths = [os.path.abspath(path) for path in sys.path]
        running = {}
        for name, item in items.items():
            item = {**item, "device": kind}
            running[do.remote(task, name, item, paths, str(tried), tries)] = name

        answers = {}
        try:
            while running:
                try:
                    ready, _ = ray.wait(list(running), timeout=LOOK_S)
                finally:  # what a signal raises in there Ray makes an exit with code 1
                    check_interrupt()
                for each in ready:
                    name = running.pop(each)
                    answers[name] = value_of(name, _got(ray, each, name))
                    progress(name)
        finally:
            for each in running:
                ray.cancel(each)
            # a task that has not ended yet would count a try that the next run is then short of
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=CANCEL_S)
            Tries(tried, tries).forget()
        return answers


def n_nodes() -> int:
    """Nodes that are alive, while items run."""
    return len(_alive(_import()))


def _do(
    task: str,
    name: str,
    item: dict,
    paths: list[str],
    tried: str,
    tries: int,
) -> dict:
    """What a node does: one item, counted before it begins."""
    wait_asleep()
    sys.path += [path for path in paths if path not in sys.path]
    counted = Tries(Path(tried), tries)
    has_had_all = answer_of(counted.begin, {"name": name})
    if "error" in has_had_all:
        return has_had_all
    try:
        module, function = task.split(":")
        do = getattr(import_module(module), function)
        patient_until = time.monotonic() + LOCKED_S
        answer = answer_of(do, item)
        while answer.get("error") == LockedError.__name__ and time.monotonic() < patient_until:
            time.sleep(1)
            answer = answer_of(do, item)
    except Exception:
        counted.failed(name, traceback.format_exc())
        if item["device"] == "cuda":
            # after an illegal access CUDA refuses every call of this process: a retry needs another
            os._exit(1)
        raise
    counted.finished(name)
    return answer


def _got(ray: Any, reference: Any, name: str) -> dict:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as err:
        words = str(err).strip().splitlines()
        raise PartFailed(
            f"{name}: Ray gave it up: {words[-1] if words else type(err).__name__}\nWhat is "
            "finished is kept, and the same command goes on from there"
        ) from err


def _kind(ray: Any, devices: Sequence[str]) -> str:
    kind = devices[0].partition(":")[0]
    if kind == "auto":
        return "cuda" if ray.cluster_resources().get("GPU") else "cpu"
    return kind


def _needs(ray: Any, kind: str, threads: int | None) -> dict[str, int]:
    """What an item takes of its node; InputError where no node has it."""
    cores = []
    shares = []
    for node in _alive(ray):
        there = node["Resources"]
        n_devices = int(there.get("GPU", 0)) if kind == "cuda" else 1
        if n_devices:
            cores.append(int(there.get("CPU", 0)))
            shares.append(max(1, cores[-1] // n_devices))
    if not shares:
        raise InputError("--engine ray: no node of the cluster has a GPU; choose --device cpu")
    n_cores = threads or min(shares)
    if n_cores > max(cores):
        raise InputError(
            f"--engine ray: an item takes {n_cores} cores, and the largest node has {max(cores)}; "
            "begin again on a node like the others, or with a smaller OMP_NUM_THREADS"
        )
    return {"num_cpus": n_cores, "num_gpus": 1} if kind == "cuda" else {"num_cpus": n_cores}


def _alive(ray: Any) -> list[dict]:
    return [node for node in ray.nodes() if node["Alive"]]


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """In a cluster, unless whoever calls is in one already.

    What Ray and the nodes say goes to stderr, up to what it still has at the end: a thread of Ray's
    prints it, and stdout is for results.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address, "log_to_driver": True}
    if address and address.startswith("127."):
        # of several loopback addresses Ray would take the first for this machine's
        options["_node_ip_address"] = address.partition(":")[0]
    if terminal_width(is_stderr=True) is None:
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # it does not look what it prints to
    handlers = {number: signal.getsignal(number) for number in KILLING}
    with redirect_stdout(sys.stderr):
        try:
            ray.init(logging_level="ERROR", **options)
        except (ConnectionError, RuntimeError, ValueError) as err:
            raise InputError(
                f"--engine ray: no cluster at {address or 'this machine'} ({err}); start one with "
                "`ray start --head`, and name its HOST:PORT"
            ) from err
        try:
            # it takes signals for itself
            for number, handler in handlers.items():
                signal.signal(number, handler)
            yield
        finally:
            ray.shutdown()


def _import() -> Any:
    try:
        import ray
    except ImportError as err:
        raise UsageError(
            "--engine ray needs Ray, which is not installed: pip install 'biomass-tokens[ray]'"
        ) from err
    return ray
