"""Do memory, descriptors and threads of `biomass store serve` stay flat under a steady load?

CLIENTS clients, half of them with a connection of their own for each request, ask at a fixed rate
together for what programs and the page ask for: rows, arrays, Zarr objects, tables, maps,
photographs, pictures of patches, and a sweep if one is given. Every PERIOD_S the resident sets,
descriptors and threads of the server and of its worker are written down. An hour of it:
`bench_soak.py --seconds 3600`.
"""

import argparse
import http.client
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from _bench import context, finish, work_folder
from bench_random_read import make_store
from bench_serve import mb, ours, status_of

from featurestore import FeatureStore

CLIENTS = 4
PERIOD_S = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="how long (default 120)")
    parser.add_argument(
        "--rate",
        type=float,
        default=50,
        help="requests a second, all clients together (default 50)",
    )
    parser.add_argument(
        "--images", type=int, default=12, help="images of the store that is made (default 12)"
    )
    parser.add_argument("--views", type=int, default=2, help="its views, 9.2 MB each (default 2)")
    parser.add_argument("--store", type=Path, help="serve this one instead")
    parser.add_argument("--sweep", type=Path, help="serve this sweep too")
    parser.add_argument("--dir", type=Path, help="where the store goes for a while")
    args = parser.parse_args()
    found = context(
        {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        ["starlette", "uvicorn", "h11"],
    )
    with work_folder(args.dir) as folder:
        path = args.store or folder / "features.h5"
        if not args.store:
            make_store(path, args.images, args.views, args.images)
        finish(soak(path, args) | {"context": found})


def soak(path: Path, args: argparse.Namespace) -> dict:
    """Serve, ask for so long, and sum up: first, last and greatest of what was written down, after
    a tenth of the time."""
    with ours(path, *(["--sweep", str(args.sweep)] if args.sweep else [])) as server:
        addresses = addresses_of(FeatureStore.open(path), args.sweep)
        end, times_ms, statuses = time.monotonic() + args.seconds, [], Counter()
        clients = [
            threading.Thread(
                target=ask,
                args=(server.port, addresses, i, end, args.rate / CLIENTS, times_ms, statuses),
            )
            for i in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        samples = sampled(server.pid, end)
        for client in clients:
            client.join()
    median, p99 = np.quantile(times_ms, (0.5, 0.99)).round(2).tolist()
    return {
        "requests": len(times_ms),
        "statuses": statuses,
        "median_ms": median,
        "p99_ms": p99,
        **{name: summed_up([sample[name] for sample in samples]) for name in samples[0]},
    }


def addresses_of(store: FeatureStore, sweep: Path | None) -> list[str]:
    """What is asked for, each as often as the others."""
    s = f"/v1/stores/{store.path.stem}"
    images = [
        f"{s}/images/@{image}" for image in range(0, store.n_images, max(1, store.n_images // 12))
    ]
    whole = [
        f"{s}/{each}"
        for each in (
            "catalog.json",
            "catalog.csv",
            "stats.json",
            "overview.json",
            "odd.json",
            "map.json",
            "zarr/zarr.json",
            "arrays/seal",
            "arrays/cls",
            "rows/@0/0?tokens=cls",
            "rows/@1/1",
        )
    ]
    pictures = [
        f"{image}{below}"
        for image in images
        for below in ("", "/thumb.jpg", "/pca.png", "/norms.json", "/similar.json?patch=1,1")
    ]
    sweeps = []
    if sweep:
        w = f"/v1/sweeps/{sweep.name}"
        runs = [file.parent.name for file in sweep.glob("*/oof.csv")]
        sweeps = [
            w,
            f"{w}/leaderboard.json",
            *(f"{w}/runs/{run}/{table}.json" for run in runs for table in ("oof", "curves")),
        ]
    return ["/", "/healthz", "/metrics", "/v1/stores", s, *whole, *pictures, *sweeps]


def ask(
    port: int,
    addresses: list[str],
    seed: int,
    end: float,
    rate: float,
    times_ms: list,
    statuses: Counter,
) -> None:
    rng, connection, due = (
        random.Random(seed),
        http.client.HTTPConnection("127.0.0.1", port),
        time.monotonic(),
    )
    while (due := due + 1 / rate) < end:
        time.sleep(max(0.0, due - time.monotonic()))
        begun = time.perf_counter()
        connection.request("GET", rng.choice(addresses))
        answer = connection.getresponse()
        while answer.read(1 << 20):
            pass
        times_ms.append((time.perf_counter() - begun) * 1e3)
        statuses[answer.status] += 1
        if seed % 2:
            connection.close()


def sampled(server: int, end: float) -> list[dict[str, float]]:
    samples = []
    while time.monotonic() + PERIOD_S < end:
        time.sleep(PERIOD_S)
        worker = int(Path(f"/proc/{server}/task/{server}/children").read_text().split()[0])
        samples.append(
            {
                f"{name}_{what}": value
                for name, pid in (("server", server), ("worker", worker))
                for what, value in of_process(pid).items()
            }
        )
        print(
            f"{round(end - time.monotonic())} s to go: {samples[-1]}", file=sys.stderr, flush=True
        )
    return samples


def of_process(pid: int) -> dict[str, float]:
    status = status_of(pid)
    return {
        "rss_mb": mb(status["VmRSS"]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def summed_up(values: list[float]) -> dict[str, float]:
    settled = values[len(values) // 10 :]
    return {"first": settled[0], "last": settled[-1], "most": max(settled)}


if __name__ == "__main__":
    main()
