"""Builders without torch that kill themselves: for each line `STORE K` on stdin a forked child builds, and dies before its K-th
durable call (K = 0: never). A line of JSON per child: its exit status, the images acknowledged before it died, its calls.

One server forks them all since importing takes a second and building takes milliseconds.
"""

import json
import os
import signal
import sys
from pathlib import Path

from conftest import tiny_frame, tiny_rows, tiny_spec

from featurestore import _zarr, open_writer

_zarr.SHARD_BYTES, _zarr.CHUNK_BYTES = 25_000, 200  # several shards and chunks, as the tests' fixture has
COUNTED = ("pwritev", "fdatasync", "fsync", "replace", "ftruncate", "unlink")


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


def build(path: Path, kill_at: int, out: int) -> None:
    calls = count_calls(kill_at)
    frame = tiny_frame()
    spec = tiny_spec(frame)
    with open_writer(path, spec, frame) as writer:
        for image in writer.pending():
            writer.put(image, tiny_rows(spec, image))
            if image != 2:  # two images share a commit group
                writer.commit()
                os.write(out, b"%d\n" % image)
    os.write(out, b"calls %d\n" % calls[0])


for line in sys.stdin:
    name, k = line.rsplit(maxsplit=1)
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        build(Path(name), int(k), write_end)
        os._exit(0)
    os.close(write_end)
    said = os.fdopen(read_end).read().split("calls")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    calls = int(said[1]) if len(said) > 1 else None
    print(json.dumps({"status": status, "acknowledged": list(map(int, said[0].split())), "calls": calls}), flush=True)
