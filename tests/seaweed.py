"""SeaweedFS, a real server of object storage, on loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BUCKET = "pasture"
STARTING_S = 60


@contextmanager
def seaweed(folder: Path) -> Iterator[dict[str, str]]:
    """A server that keeps its objects below folder, with a bucket; the environment it is read by."""
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    settings = [
        *(f"-{name}.port={port}" for name, port in ports.items()),
        # it would tell its makers of itself, and listen for what nobody here asks
        "-master.telemetry=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
    ]
    places = [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    weed = Path(sys.executable).with_name("weed")
    with open(folder / "weed.log", "wb") as log:
        process = subprocess.Popen(
            [weed, "-logtostderr=true", "server", *places, *settings, "-volume.max=50"],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | {"HOME": str(folder)},
        )
    try:
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        ask_once_it_listens(lambda: request, process, folder / "weed.log")
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "anyone",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_REGION": "us-east-1",
            "AWS_SKIP_SIGNATURE": "true",
        }
    finally:
        process.kill()  # it takes 25 s to stop by itself
        process.wait()


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on, nor 10,000 higher, where SeaweedFS has its gRPC."""
    found: list[int] = []
    port = 20_000 + os.getpid() % 10_000
    while len(found) < n:
        port += 1
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            found.append(port)
    return found


def ask_once_it_listens(
    request: Callable[[], urllib.request.Request],
    process: subprocess.Popen,
    log: Path,
) -> None:
    """Ask a server that is starting, until it answers; RuntimeError with its log if it does not.

    request : made anew for every try, as one that is signed holds its time.
    """
    until = time.monotonic() + STARTING_S
    while True:
        try:
            urllib.request.urlopen(request(), timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no server:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.2)
