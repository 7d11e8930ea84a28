"""Builders without torch, for tests that kill them: `builders()` starts a server that forks a child
for each build asked of it.

One server forks them all since importing takes a second and building takes milliseconds. A request
is a line of JSON:
act : "build" (if not given) or "read", that is: open, read every image on first touch, verify.
path : the store. n, reserve : images of the catalog, free places. limit : build at most so many
    images. pace : a FIFO; a byte of it is awaited after each commit.
room : bytes of memory the child may take beyond what it has. uid : whose rights it shall have.
kill_at : die before that durable call of Python's (0: never). kill_after_s : be killed so long
    after the start.
inject : what strace shall do to a system call, e.g. "fsync:signal=SIGKILL:when=3". rlimits : limits
    of the child, by name.
trace : the system calls that strace, where it is asked to inject, writes to `log`.
The answer: exit status, images acknowledged (committed, and then told), durable calls, and the
error it ended with; of a reader: images read and right, images refused, whether any was wrong, how
many faults verify found, and how long opening took.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.errors import BiomassError

COUNTED = ("pwritev", "fdatasync", "fsync", "replace", "ftruncate", "unlink")
ARRAYS = ("cls_VTD", "patches_VTPD", "pooled_VT5D", "stats_VS", "thumb_HW3")


@contextmanager
def builders(program: str = __file__) -> Iterator[Callable[..., dict]]:
    """A function (path, **request) that builds in a child of its own, and tells what became of
    it."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}
    with subprocess.Popen(
        [sys.executable, program],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:

        def run(path: Path, **request) -> dict:
            print(json.dumps({"path": str(path), **request}), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()


def count_calls(kill_at: int) -> list[int]:
    calls = [0]

    def counted(call):
        def wrapper(*args, **kwargs):
            calls[0] += 1
            if calls[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for name in COUNTED:
        setattr(os, name, counted(getattr(os, name)))
    return calls


def build(request: dict, tell: Callable[..., None]) -> None:
    calls = count_calls(request.get("kill_at", 0))
    frame = tiny_frame(request.get("n", 5))
    spec = tiny_spec(frame)
    reserve = request.get("reserve", 0)
    with (
        open(request.get("pace", os.devnull), "rb", buffering=0) as pace,
        open_writer(Path(request["path"]), spec, frame, reserve) as writer,
    ):
        group = []
        for image in writer.pending()[: request.get("limit")]:
            # a repaired catalog may have another order
            writer.put(image, tiny_rows(spec, int(writer.image_ids[image][2:])))
            group.append(image)
            if image != 2:  # two images share a commit group
                writer.commit()
                tell(acknowledged=group)
                group = []
                pace.read(1)
    tell(acknowledged=group, calls=calls[0])


def read(request: dict, tell: Callable[..., None]) -> None:
    began = time.perf_counter()
    store = FeatureStore.open(request["path"], check="first-touch")
    tell(open_s=time.perf_counter() - began)
    right, refused, wrong = [], [], []
    for image in range(store.n_images):
        try:
            rows, truth = store.rows(image), tiny_rows(store.spec, image)
        except BiomassError:
            refused.append(image)
            continue
        same = all(np.array_equal(getattr(rows, name), getattr(truth, name)) for name in ARRAYS)
        (right if same else wrong).append(image)
    tell(right=right, refused=refused, wrong=wrong)
    tell(faults=len(store.verify().faults))


def restrict(request: dict) -> None:
    """Take on the limits and rights asked for; what takes longer than a minute dies."""
    for name, limit in request.get("rlimits", {}).items():
        # hard ones too: a soft limit is raised where it can be
        resource.setrlimit(getattr(resource, name), (limit, limit))
    if "room" in request:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(
            resource.RLIMIT_AS, (pages * resource.getpagesize() + request["room"],) * 2
        )
    if "uid" in request:
        os.setuid(request["uid"])
    signal.alarm(60)


def run_child(request: dict, gate: int, out: int) -> None:
    """Wait for the gate, build or read, tell; the child's whole life."""

    def tell(**said) -> None:
        os.write(out, json.dumps(said).encode() + b"\n")

    os.read(gate, 1)
    restrict(request)
    try:
        ACTS[request.get("act", "build")](request, tell)
    except BiomassError as err:
        tell(error=f"{type(err).__name__}: {err}")
    os._exit(0)


def strace(request: dict, pid: int) -> subprocess.Popen:
    """A tracer that has seized the child."""
    trace = request.get("trace") or request["inject"].split(":")[0]
    tracer = subprocess.Popen(
        [
            "strace",
            "-f",
            "-p",
            str(pid),
            "-o",
            request.get("log", "/dev/null"),
            "-e",
            f"trace={trace}",
            "-e",
            "signal=none",
            "-e",
            f"inject={request['inject']}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    if "attached" not in (line := tracer.stderr.readline()):
        raise OSError(f"strace: {line}")
    return tracer


def serve(request: dict) -> dict:
    gate_end, gate = os.pipe()
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        for fd in (gate, read_end):
            os.close(fd)
        run_child(request, gate_end, write_end)
    for fd in (gate_end, write_end):
        os.close(fd)
    tracer = strace(request, pid) if "inject" in request else None
    os.close(gate)
    if "kill_after_s" in request:
        time.sleep(request["kill_after_s"])
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(read_end) as told:
        # a killed child may leave half a line
        said = [json.loads(line) for line in told if line.endswith("\n")]
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if tracer:
        tracer.communicate()
    answer = {
        "status": status,
        "acknowledged": [i for line in said for i in line.get("acknowledged", [])],
    }
    return answer | {
        key: value for line in said for key, value in line.items() if key != "acknowledged"
    }


def serve_requests() -> None:
    import zarr

    from featurestore.format import zarr as zarr_format

    # one thread writes its metadata: a tracer counts a thread's calls
    zarr.config.set({"threading.max_workers": 1})
    # several shards and chunks, as the tests' fixture has
    zarr_format.SHARD_BYTES, zarr_format.CHUNK_BYTES = 25_000, 200
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


ACTS = {"build": build, "read": read}

if __name__ == "__main__":
    import h5py  # noqa: F401  imported here once, not by every child
    import numpy as np
    from conftest import tiny_frame, tiny_rows, tiny_spec

    from featurestore import FeatureStore, open_writer

    serve_requests()
