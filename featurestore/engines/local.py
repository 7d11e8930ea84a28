"""Items of work in plain processes of this machine, one process a device.

Whatever else runs items (a cluster's engine, say) has the same `run`. Which items there are is
their maker's business, and so is what they leave: files alone.
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from featurestore.disk.messages import say
from featurestore.disk.threads import ASKED, Pool, starting
from featurestore.engines.tries import Tries
from featurestore.engines.worker import value_of

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from featurestore.engines.worker import main; main()"
)
"""A worker's program, which finds modules where this process finds them; -P: and nowhere else."""
KEPT_LINES = 20


def run(
    task: str,
    items: Mapping[str, Mapping[str, Any]],
    *,
    devices: Sequence[str],
    folder: Path,
    threads: int | None = None,
    tries: int = 3,
    progress: Callable[[str], object] = lambda name: None,
) -> dict[str, Any]:
    """Do all items, as many at once as there are devices; what the task returned for each, by name.

    Parameters
    ----------
    task : "module:function", which a worker calls as `function(**item, device=DEVICE)`. All that it
        takes and returns has a JSON. It keeps its results in files, and may be called again for an
        item that it has finished.
    items : arguments by the item's name. A name is part of a file's name, and stands in messages:
        "part 3".
    devices : "cpu", "cuda:1", ...: one worker each, a new interpreter that does item after item.
    folder : where tries are counted. Only one run at a time may use it.
    threads : of a worker's operations, where the environment does not say (OMP_NUM_THREADS).
    tries : how often an item is begun. A worker that dies (killed, a crash, an exception that is no
        BiomassError) is started anew. Tries of a driver that was killed count; the end of a run
        forgets them.
    progress : is called in this thread with the name of each item that is finished.

    Raises PartFailed, with the worker's last words, for an item that fails every time. A
    BiomassError of the task ends the run at once, under the item's name. On an error and on a
    signal (see `featurestore.disk.interrupts`) workers stop as a command does, and are waited for;
    they also stop when this process is killed.
    """
    counted = Tries(folder / "tries", tries)
    workers = [_Worker(task, device, threads) for device in devices]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def do(name: str) -> Any:
        worker = idle.get()
        try:
            return _do(worker, name, items[name], counted)
        finally:
            idle.put(worker)

    answers = {}
    pool = Pool(len(workers))
    try:
        futures = {pool.submit(do, name): name for name in items}
        for future in as_completed(futures):
            name = futures[future]
            answers[name] = future.result()
            progress(name)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.stop()
        pool.shutdown()
        for worker in workers:
            worker.close()
        counted.forget()
    return answers


def _do(
    worker: "_Worker",
    name: str,
    item: Mapping[str, Any],
    counted: Tries,
) -> Any:
    """A worker's answer for an item, which is tried again while its process dies."""
    while True:
        counted.begin(name)
        try:
            answer = worker.do(item)
        except _Died as err:
            counted.failed(name, str(err))
            say(f"{name}: its process on {worker.device} ended; it is started again")
            continue
        value = value_of(name, answer)
        counted.finished(name)
        return value


class _Died(Exception):
    """A worker's process ended before it had answered; its last words."""


class _Stopped(Exception):
    """The run is over: no process is started any more."""


class _Worker:
    """A process that does items for a device, and the next one when it has died."""

    def __init__(self, task: str, device: str, threads: int | None) -> None:
        self.device = device
        self._task = task
        self._environment = dict(os.environ)
        if threads and not any(self._environment.get(name) for name in ASKED):
            self._environment[ASKED[0]] = str(threads)
        self._process: subprocess.Popen | None = None
        self._words: deque[str] = deque(maxlen=KEPT_LINES)
        self._is_stopped = False
        # one thread gives items while another stops the run
        self._lock = Lock()

    def do(self, item: Mapping[str, Any]) -> dict:
        with self._lock:
            if self._is_stopped:
                raise _Stopped
            if self._process is None:
                self._start()
            process = self._process
        with suppress(OSError, ValueError):  # it has died, or is being stopped: no answer says so
            process.stdin.write(json.dumps(item) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if line.endswith("\n"):
            return json.loads(line)

        code = process.wait()
        self.close()
        if self._is_stopped:
            raise _Stopped
        end = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise _Died(f"{''.join(self._words)}(its process ended with {end})")

    def stop(self) -> None:
        """Have the process stop what it does, and end: it sees that its items have."""
        with self._lock:
            self._is_stopped = True
            process = self._process
        if process is not None:
            with suppress(OSError):
                process.stdin.close()

    def close(self) -> None:
        """Wait for a process that has died or was stopped, and let go of it."""
        process, self._process = self._process, None
        if process is not None:
            process.wait()
            self._listener.join(1)  # a child of its own may keep its stderr open
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()

    def _start(self) -> None:
        paths = json.dumps([os.path.abspath(path) for path in sys.path])
        command = [sys.executable, "-P", "-c", START, paths, self._task, self.device]
        with starting():
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                process_group=0,  # ^C is for the driver
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
        self._words.clear()
        self._listener = Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen) -> None:
        """Hand on what the process says, and keep its last lines."""
        with process.stderr as lines:
            for line in lines:
                self._words.append(line)
                if not self._is_stopped:
                    say(f"{self.device}: {line.rstrip()}")
