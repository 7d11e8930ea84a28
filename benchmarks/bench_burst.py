"""How long does a small request take while 200 clients ask at once for what must be computed?

Each burst: CLIENTS connections at the same moment, each asking for statistics, a map, the catalog,
the overview, or what is like a patch; meanwhile one client asks for /healthz on a new connection
each time, from before the burst until its last answer.
"""

import argparse
import asyncio
import multiprocessing
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from _bench import context, finish, work_folder
from bench_random_read import make_store
from bench_serve import Server, ours

CLIENTS = 200
ASKED = (
    "stats.json",
    "map.json",
    "catalog.json",
    "overview.json",
    "images/@1/similar.json?patch=1,1",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="images of the store (default 24)")
    parser.add_argument(
        "--views", type=int, default=2, help="views of each, 9.2 MB a view (default 2)"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="bursts after one that warms up (default 7)"
    )
    parser.add_argument("--dir", type=Path, help="where the store goes for a while")
    args = parser.parse_args()
    found = context(
        {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        ["starlette", "uvicorn", "h11"],
    )
    with work_folder(args.dir) as folder:
        path = folder / "features.h5"
        make_store(path, args.images, args.views, args.images)
        with ours(path) as server:
            bursts = [burst(server, path.stem) for _ in range(args.rounds + 1)][1:]
    times_ms = np.concatenate([times for times, _ in bursts])
    median, p99, most = np.quantile(times_ms, (0.5, 0.99, 1)).round(2).tolist()
    statuses = dict(sum((statuses for _, statuses in bursts), Counter()))
    finish(
        {
            "healthz": {
                "median_ms": median,
                "p99_ms": p99,
                "max_ms": most,
                "requests": len(times_ms),
            },
            "burst": statuses,
            "context": found,
        }
    )


def burst(server: Server, name: str) -> tuple[list[float], Counter]:
    """Milliseconds of /healthz during a burst, and the statuses of its answers."""
    spawn = multiprocessing.get_context("spawn")
    ready, done, statuses = spawn.Event(), spawn.Event(), spawn.Queue()
    client = spawn.Process(target=ask_all, args=(server.port, name, ready, done, statuses))
    client.start()
    ready.wait()
    times_ms = []
    while not done.is_set():
        times_ms.append(healthz_ms(server.port))
        time.sleep(0.002)
    found = Counter(statuses.get())
    client.join()
    print(
        f"{found}; /healthz {np.quantile(times_ms, (0.5, 0.99, 1)).round(1).tolist()} ms",
        file=sys.stderr,
    )
    return times_ms, found


def healthz_ms(port: int) -> float:
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200"), answer[:80]
    return (time.perf_counter() - begun) * 1e3


def ask_all(port: int, name: str, ready, done, statuses) -> None:
    async def ask(i: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        address = f"/v1/stores/{name}/{ASKED[i % len(ASKED)]}"
        writer.write(
            f"GET {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        return int(answer[9:12])

    async def ask_together() -> list[int]:
        return await asyncio.gather(*map(ask, range(CLIENTS)))

    ready.set()
    found = asyncio.run(ask_together())
    done.set()
    statuses.put(found)


if __name__ == "__main__":
    main()
