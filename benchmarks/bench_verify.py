"""How fast is every byte of a store checked, and what sets the pace? What does check="first-touch"
cost a reader of its rows?

Verify, with the files in the page cache or not (that they left it is checked):
`FeatureStore.verify()`, opening included, beside `dd` of the same files and CRC-32C of as many
bytes in memory, by one thread since the extension holds the interpreter's lock. The slower of these
two is the limit. A virtual disk's host may cache what this machine does not: dd and verify share
that.

First touch, page cache warm: every row of a store just opened is touched once in random order, with
check="seal" and with check="first-touch", and then once more. To touch a row is to sum its words.
"""

import argparse
import os
import random
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from _bench import context, finish, spread, work_folder
from bench_random_read import GRID, WIDTH, cached_share, large_files_in, make_store, touch
from bench_read_ahead import drop

from featurestore.disk.durable import crc32c
from featurestore.store import FeatureStore

CHECKS = ("seal", "first-touch")
READ_FROM = {"warm": "page cache", "cold": "disk"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="images of each store (default 16)")
    parser.add_argument(
        "--views", type=int, default=4, help="views of each, 9.2 MB a view (default 4)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="five or more (default 9)")
    parser.add_argument(
        "--dir", type=Path, help="where the stores go for a while: the disk that is measured"
    )
    args = parser.parse_args()
    if args.rounds < 5:
        parser.error("needs --rounds >= 5")
    found = context(
        {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        ["numpy", "google-crc32c"],
    )
    with work_folder(args.dir) as folder:
        stores = [folder / f"features.{suffix}" for suffix in ("h5", "zarr")]
        for path in stores:
            make_store(path, args.images, args.views, args.images)
        os.sync()  # only what is on the disk leaves the cache
        finish(
            {cache: bench_verify(stores, cache, args) for cache in READ_FROM}
            | {"first_touch": bench_first_touch(stores, args)}
            | {"context": found | {"load_average_after": os.getloadavg()}}
        )


# -- verify


def bench_verify(stores: list[Path], cache: str, args: argparse.Namespace) -> dict:
    """GB/s of verify, dd and the checksum alone, in turns; the first round warms up."""
    cases = {
        "CRC-32C in memory": partial(
            checksum, np.ones((args.images * args.views, GRID**2 * WIDTH * 2), np.uint8)
        )
    }
    for path in stores:
        cases |= {
            f"verify {path.suffix}": partial(verify, path),
            f"dd {path.suffix}": partial(dd, path),
        }
    rng, found, cached = random.Random(0), {name: [] for name in cases}, []
    for _ in range(args.rounds + 1):
        for name in rng.sample(list(cases), len(cases)):
            cached.append(set_cache(stores, cache))
            start = time.perf_counter()
            n_bytes = cases[name]()
            found[name].append(n_bytes / 1e9 / (time.perf_counter() - start))
    rates = {name: np.array(values[1:]) for name, values in found.items()}
    result = {path.suffix[1:]: limits(path.suffix, rates, READ_FROM[cache]) for path in stores}
    print_rates(rates, result, cache)
    return {
        "cache": cache,
        "cached_share_at_start": [min(cached), max(cached)],
        "gb_per_s": {name: spread(rate) for name, rate in rates.items()},
        "limits": result,
    }


def set_cache(stores: list[Path], cache: str) -> float:
    """Have every store in the page cache, or out of it; the share that is in it."""
    if cache == "cold":
        return max(map(drop, stores))
    for path in stores:
        dd(path)
    return min(cached_share(file) for path in stores for file in large_files(path))


def verify(path: Path) -> int:
    with FeatureStore.open(path) as store:
        report = store.verify()
    assert report, report
    return report.n_bytes


def dd(path: Path) -> int:
    """Bytes of the store's large files, read from end to end; a process for each small one would be
    no measure of the disk."""
    files = large_files(path)
    for file in files:
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=8M", "status=none"], check=True)
    return sum(file.stat().st_size for file in files)


def checksum(rows_NB: np.ndarray) -> int:
    for row in rows_NB:
        crc32c(row)
    return rows_NB.nbytes


def large_files(path: Path) -> list[Path]:
    return large_files_in(path) if path.is_dir() else [path]


def limits(suffix: str, rates: dict[str, np.ndarray], read_from: str) -> dict:
    """Whether reading or the checksum is the slower, by medians, and verify's pace as a share of
    both, round by round."""
    ours, read, crc = rates[f"verify {suffix}"], rates[f"dd {suffix}"], rates["CRC-32C in memory"]
    return {
        "limit": read_from if np.median(read) < np.median(crc) else "checksum",
        "vs_dd": spread(ours / read),
        "vs_checksum": spread(ours / crc),
        "vs_limit": spread(ours / np.minimum(read, crc)),
    }


def print_rates(rates: dict[str, np.ndarray], result: dict, cache: str) -> None:
    print(f"verify, {cache} cache:  GB/s (min-max)")
    for name, rate in rates.items():
        print(f"    {name:20} {np.median(rate):8.3g} ({rate.min():.3g}-{rate.max():.3g})")
    for suffix, case in result.items():
        ratio = case["vs_limit"]
        print(
            f"    .{suffix}: the limit is the {case['limit']}; verify reaches "
            f"{ratio['median']:.2f} of it ({ratio['min']:.2f}-{ratio['max']:.2f})"
        )


# -- first touch


def bench_first_touch(stores: list[Path], args: argparse.Namespace) -> dict:
    """Milliseconds a row of the first and the second pass over a store just opened; the first round
    warms up."""
    for path in stores:
        dd(path)
    cases: dict[str, Callable[[list], list[float]]] = {
        f"{path.suffix}, {check}": partial(two_passes, path, check)
        for path in stores
        for check in CHECKS
    }
    rng, found = random.Random(0), {name: [] for name in cases}
    places = [(image, view) for image in range(args.images) for view in range(args.views)]
    for _ in range(args.rounds + 1):
        rows = rng.sample(places, len(places))
        for name in rng.sample(list(cases), len(cases)):
            found[name].append(cases[name](rows))
    ms = {name: 1e3 * np.array(values)[1:].T for name, values in found.items()}
    result = {
        path.suffix[1:]: first_touch_cost(*(ms[f"{path.suffix}, {check}"] for check in CHECKS))
        for path in stores
    }
    print_first_touch(result)
    return {"cache": "warm", "stores": result}


def two_passes(path: Path, check: str, rows: list[tuple[int, int]]) -> list[float]:
    """Seconds a row: first pass, second pass."""
    seconds = []
    with FeatureStore.open(path, check=check) as store:
        for _ in range(2):
            start = time.perf_counter()
            for image, view in rows:
                touch(store.patches[image, view])
            seconds.append((time.perf_counter() - start) / len(rows))
    return seconds


def first_touch_cost(seal: np.ndarray, checked: np.ndarray) -> dict:
    """Both passes' milliseconds a row, (pass, round), and what the check adds to each as a share of
    the same round's."""
    return {
        f"{which} pass": {
            "seal_ms": spread(seal[at]),
            "first_touch_ms": spread(checked[at]),
            "ratio": spread(checked[at] / seal[at]),
        }
        for at, which in enumerate(["first", "second"])
    }


def print_first_touch(result: dict) -> None:
    print(
        'first touch, warm cache:  ms a row with check="seal"   with check="first-touch"   ratio '
        "(min-max)"
    )
    for suffix, passes in result.items():
        for which, case in passes.items():
            ratio = case["ratio"]
            print(
                f"    .{suffix + ', ' + which:20} {case['seal_ms']['median']:8.3g} "
                f"{case['first_touch_ms']['median']:8.3g}"
                f" {ratio['median']:8.3g} ({ratio['min']:.3g}-{ratio['max']:.3g})"
            )


if __name__ == "__main__":
    main()
