"""How fast do rows come from `biomass store serve` on this machine, beside the store itself? First
fetched, then from the cache.

A round reads every row once, in a new random order, and touches it (the sum of its 8-byte words):
of the local store; of the URL with an empty cache, asked for AHEAD rows ahead as training does; of
the URL again, by a new handle, from that cache, where each row is compared with its CRC-32C at its
first use; and once more by that handle. Page cache warm throughout, client and server share the
cores. The first round warms up.
"""

import argparse
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from _bench import context, finish, spread, work_folder
from bench_random_read import make_store
from bench_serve import ours

from featurestore import FeatureStore

AHEAD = 32  # rows, two batches of 16
Rows = list[tuple[int, int]]


def options_of(title: str, room: str) -> tuple[argparse.Namespace, dict[str, str]]:
    """What the command line says, and the same as texts; room : that --dir must have."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--images", type=int, default=24, help="images of the store (default 24)")
    parser.add_argument(
        "--views", type=int, default=4, help="views of each, 9.2 MB a view (default 4)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="five or more (default 5)")
    parser.add_argument(
        "--dir", type=Path, help=f"where stores and cache go for a while; {room} a store's size"
    )
    args = parser.parse_args()
    if args.rounds < 5:
        parser.error("needs --rounds >= 5")
    return args, {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}


def main() -> None:
    args, config = options_of(__doc__.splitlines()[0], "twice")
    found = context(config, ["numpy", "starlette", "uvicorn"])
    with work_folder(args.dir) as folder:
        path = folder / "features.h5"
        make_store(path, args.images, args.views, args.images)
        with ours(path) as server:
            url = f"http://127.0.0.1:{server.port}/v1/stores/{path.stem}"
            rounds = [run_round(path, url, folder / "cache", rows) for rows in orders(args)]
        result = {
            name: rates(FeatureStore.open(path), [each[name] for each in rounds[1:]])
            for name in rounds[0]
        }
    finish({"rows": result, "context": found})


def orders(args: argparse.Namespace) -> list[Rows]:
    """Every row once, in another order each round; one round more, which warms up."""
    rows = [(image, view) for image in range(args.images) for view in range(args.views)]
    return [random.Random(number).sample(rows, len(rows)) for number in range(args.rounds + 1)]


def run_round(path: Path, url: str, cache: Path, rows: Rows) -> dict[str, float]:
    """Seconds of each pass."""
    shutil.rmtree(cache, ignore_errors=True)
    seconds = {}
    with FeatureStore.open(path) as local:
        seconds["local"] = time_pass(local, rows)
        seconds["local, second pass"] = time_pass(local, rows)
    with FeatureStore.open(url, cache=cache) as store:
        seconds["fetched"] = time_pass(store, rows)
    with FeatureStore.open(url, cache=cache) as store:
        seconds["from the cache, first use"] = time_pass(store, rows)
        seconds["from the cache"] = time_pass(store, rows)
    return seconds


def time_pass(store: FeatureStore, rows: Rows) -> float:
    begun = time.perf_counter()
    for at, (image, view) in enumerate(rows):
        if at % (AHEAD // 2) == 0:
            store.will_need(rows[at : at + AHEAD])
        store.patches[image, view].view(np.uint64).sum()
    return time.perf_counter() - begun


def rates(store: FeatureStore, seconds: list[float]) -> dict[str, dict]:
    """Rows and GB a second."""
    n_rows, row_bytes = store.n_images * len(store.view_names), store.patches[0, 0].nbytes
    found = {
        "rows_per_s": spread(n_rows / np.array(seconds)),
        "gb_per_s": spread(n_rows * row_bytes / 1e9 / np.array(seconds)),
    }
    print(found, file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
