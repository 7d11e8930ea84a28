"""How fast does `biomass store serve` hand out rows, beside nginx sending the same bytes of the
same file? Who waits meanwhile?

Rows: random rows of patch tokens in turns from both servers, one client, page cache warm:
`rows/@N/V` of ours, a Range of the file of nginx's (sendfile on, one worker). Small: the time of
small requests of one client, alone and while CLIENTS others stream rows without a pause; of nginx a
file of as many bytes. Memory: the server's greatest resident set. Without nginx (Debian:
nginx-light) ours is measured alone.
"""

import argparse
import http.client
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _bench import ROOT, context, finish, spread, work_folder
from bench_random_read import make_store

from featurestore import FeatureStore

CLIENTS = 8
NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; root {folder}; }} }}
"""


@dataclass(frozen=True)
class Server:
    """Where one listens, what to ask it for, and its process."""

    port: int
    pid: int
    small: str
    row: Callable[[FeatureStore, int, int], tuple[str, dict[str, str]]]
    """Address and headers of the request for a row."""


def row_of_ours(store: FeatureStore, image: int, view: int) -> tuple[str, dict[str, str]]:
    return f"/v1/stores/{store.path.stem}/rows/@{image}/{view}", {}


def range_of_nginx(store: FeatureStore, image: int, view: int) -> tuple[str, dict[str, str]]:
    _, offset, n_bytes = store.layout.extents["patches"].locate(
        image * len(store.view_names) + view
    )
    return f"/{store.path.name}", {"Range": f"bytes={offset}-{offset + n_bytes - 1}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="images of the store (default 24)")
    parser.add_argument(
        "--views", type=int, default=4, help="views of each, 9.2 MB a view (default 4)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="five or more (default 7)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=5,
        help="of small requests, alone and beside streams (default 5)",
    )
    parser.add_argument("--dir", type=Path, help="where the store goes for a while")
    args = parser.parse_args()
    if args.rounds < 5:
        parser.error("needs --rounds >= 5")
    found = context(
        {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        ["starlette", "uvicorn", "h11"],
    )
    with work_folder(args.dir) as folder, ExitStack() as running:
        folder.chmod(0o755)
        path = folder / "features.h5"
        make_store(path, args.images, args.views, args.images)
        store = FeatureStore.open(path)
        servers = {"ours": running.enter_context(ours(path))}
        if shutil.which("nginx"):
            servers["nginx"] = running.enter_context(nginx(folder))
        result = {
            "rows": bench_rows(servers, store, args),
            "small": bench_small(servers, store, args),
        }
        finish(
            result
            | {
                "peak_rss_mb": {name: peak_mb(server.pid) for name, server in servers.items()},
                "context": found,
            }
        )


def bench_rows(servers: dict[str, Server], store: FeatureStore, args: argparse.Namespace) -> dict:
    """GB/s of all rows in random order, servers in turns; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in servers}
    rows = [(image, view) for image in range(args.images) for view in range(args.views)]
    for number in range(args.rounds + 1):
        random.Random(number).shuffle(rows)
        for name, server in servers.items():
            begun = time.perf_counter()
            n_bytes = sum(stream(server, store, rows))
            if number:
                found[name].append(n_bytes / (time.perf_counter() - begun) / 1e9)
    for name, values in found.items():
        print(f"rows, {name}: {spread(values)} GB/s", file=sys.stderr)
    return {name: spread(values) for name, values in found.items()}


def bench_small(servers: dict[str, Server], store: FeatureStore, args: argparse.Namespace) -> dict:
    """Milliseconds of small requests: median, 99th percentile and greatest, alone and beside
    CLIENTS streams."""
    found = {}
    for name, server in servers.items():
        for n_clients in (0, CLIENTS):
            with streaming(server, store, args, n_clients):
                times_ms = small_times(server, args.seconds)
            median, p99, most = np.quantile(times_ms, (0.5, 0.99, 1)).round(2).tolist()
            case = f"{name}, {n_clients} streams"
            found[case] = {
                "median_ms": median,
                "p99_ms": p99,
                "max_ms": most,
                "requests": len(times_ms),
            }
            print(f"small requests, {case}: {found[case]}", file=sys.stderr)
    return found


def stream(server: Server, store: FeatureStore, rows: list[tuple[int, int]]) -> Iterator[int]:
    """Bytes of each row, received into one buffer over one connection."""
    connection, buffer = (
        http.client.HTTPConnection("127.0.0.1", server.port),
        memoryview(bytearray(1 << 20)),
    )
    for image, view in rows:
        address, headers = server.row(store, image, view)
        connection.request("GET", address, headers=headers)
        answer, n_bytes = connection.getresponse(), 0
        assert answer.status in (200, 206), answer.status
        while n := answer.readinto(buffer):
            n_bytes += n
        yield n_bytes
    connection.close()


@contextmanager
def streaming(
    server: Server, store: FeatureStore, args: argparse.Namespace, n: int
) -> Iterator[None]:
    """n processes that ask for rows without a pause."""
    clients = [
        multiprocessing.get_context("fork").Process(
            target=stream_for_ever, args=(server, store, args, i), daemon=True
        )
        for i in range(n)
    ]
    for client in clients:
        client.start()
    time.sleep(0.5 if n else 0)
    try:
        yield
    finally:
        for client in clients:
            client.kill()
            client.join()


def stream_for_ever(
    server: Server, store: FeatureStore, args: argparse.Namespace, seed: int
) -> None:
    rng = random.Random(seed)
    while True:
        list(
            stream(
                server,
                store,
                [(rng.randrange(args.images), rng.randrange(args.views)) for _ in range(20)],
            )
        )


def small_times(server: Server, seconds: float) -> list[float]:
    connection, times_ms = http.client.HTTPConnection("127.0.0.1", server.port), []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        connection.request("GET", server.small)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        times_ms.append((time.perf_counter() - begun) * 1e3)
        time.sleep(0.005)
    connection.close()
    return times_ms


@contextmanager
def ours(path: Path, *options: str) -> Iterator[Server]:
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "store",
        "serve",
        str(path),
        "--port",
        "0",
        "--no-token",
        "--json",
        *options,
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            port = json.loads(process.stdout.readline())["port"]
            yield Server(port, process.pid, f"/v1/stores/{path.stem}/arrays/seal", row_of_ours)
        finally:
            process.terminate()


@contextmanager
def nginx(folder: Path) -> Iterator[Server]:
    from service.server import listen

    free = listen("127.0.0.1", 0)
    free.socket.close()
    (folder / "seal").write_bytes(bytes(100))
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=free.port))
    with subprocess.Popen(
        ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL
    ) as process:
        try:
            time.sleep(0.5)
            worker = int(
                Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
            )
            yield Server(free.port, worker, "/seal", range_of_nginx)
        finally:
            process.terminate()


def peak_mb(pid: int) -> float:
    return mb(status_of(pid)["VmHWM"])


def status_of(pid: int) -> dict[str, str]:
    """What the kernel tells of a process, /proc/PID/status."""
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def mb(kb: str) -> float:
    return round(int(kb.split()[0]) / 1024, 1)


if __name__ == "__main__":
    main()
