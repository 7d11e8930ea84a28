"""Does a shuffled epoch over cold tokens run at the disk's own pace? And what does reading ahead
cost when they are warm?

Cold: every file of the store leaves the page cache first, and that it left is checked. Then, in
turns: (a) the file from end to end in large preads; (b) an epoch's steps of 32 rows, one view of
each image in shuffled order, each row touched where it is mapped, read ahead as training does; (c)
the same without reading ahead; (d) as (b), but the rows in the file's order, all of them: what
shuffling costs. To touch a row is to sum its words. A virtual disk's host may cache too: all four
share that. Warm: an epoch touched, and many epochs only handed out, by one reader that reads ahead
and straight from the store; what the reader takes longer, over touching, is what it costs at most,
since nothing then overlaps it.
"""

import argparse
import gc
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from _bench import context, finish, spread, work_folder
from bench_random_read import cached_share, files_in, make_store, touch

from featurestore.disk.durable import page_aligned
from featurestore.store import FeatureStore
from trainer.data.stream import Stream, everything
from trainer.data.tokens import TokenReader

BATCH, PIECE, WARM_EPOCHS = 32, 8 << 20, 50
COLD_MARK, WARM_MARK, COLD_SHARE = 0.9, 0.01, 0.01
Read = Callable[[FeatureStore, Sequence[np.ndarray]], Iterator[np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=192, help="images, one row of each an epoch (default 192)"
    )
    parser.add_argument(
        "--views", type=int, default=2, help="views of each, 9.2 MB a view (default 2)"
    )
    parser.add_argument("--format", choices=["h5", "zarr"], default="h5")
    parser.add_argument("--rounds", type=int, default=9, help="five or more (default 9)")
    parser.add_argument(
        "--dir", type=Path, help="where the store goes for a while: the disk that is measured"
    )
    args = parser.parse_args()
    if args.rounds < 5 or args.images < BATCH:
        parser.error(f"needs --rounds >= 5 and --images >= {BATCH}")
    found = context(
        {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}, ["numpy", "torch"]
    )
    with work_folder(args.dir) as folder:
        path = folder / f"features.{args.format}"
        make_store(path, args.images, args.views, args.images)
        os.sync()
        finish(
            {"cold": bench_cold(path, args), "warm": bench_warm(path, args)}
            | {"context": found | {"load_average_after": os.getloadavg()}}
        )


def shuffled(args: argparse.Namespace, epochs: range) -> list[np.ndarray]:
    """Rows of every step of some epochs."""
    stream = Stream(args.images, args.views, [everything(args.images, 1)], 10**9, BATCH, seed=0)
    return [stream.batch(epoch, step).rows_U2 for epoch in epochs for step in range(stream.n_steps)]


def in_order(args: argparse.Namespace) -> list[np.ndarray]:
    rows_N2 = np.stack(np.divmod(np.arange(args.images * args.views), args.views), 1)
    return [rows_N2[start : start + BATCH] for start in range(0, len(rows_N2), BATCH)]


# -- how rows are read


def read_ahead(store: FeatureStore, steps: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    reader = TokenReader(store, torch.device("cpu"))
    for rows_U2, following_U2 in itertools.zip_longest(steps, steps[1:]):
        tokens = reader.step(rows_U2)
        if following_U2 is not None:
            reader.expect(following_U2)
        for row in tokens:
            yield row.numpy()


def read_as_needed(store: FeatureStore, steps: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for rows_U2 in steps:
        for image, view in rows_U2:
            # by way of torch, as the other
            yield torch.from_dlpack(store.patches[image, view]).numpy()


# -- cold


def bench_cold(path: Path, args: argparse.Namespace) -> dict:
    """GB/s of tokens, and bytes that came from the disk for each byte asked for; the first round
    warms up."""
    cases = {
        "sequential": lambda round_: sequential(path),
        "shuffled, read ahead": lambda round_: touch_all(
            path, shuffled(args, range(round_, round_ + 1)), read_ahead
        ),
        "shuffled, as needed": lambda round_: touch_all(
            path, shuffled(args, range(round_, round_ + 1)), read_as_needed
        ),
        "in order, read ahead": lambda round_: touch_all(path, in_order(args), read_ahead),
    }
    rng, found, worst = random.Random(0), {name: [] for name in cases}, 0.0
    for round_ in range(args.rounds + 1):
        for name in rng.sample(list(cases), len(cases)):
            worst = max(worst, drop(path))
            from_disk = disk_bytes()
            n_bytes, seconds = cases[name](round_)
            found[name].append((n_bytes / 1e9 / seconds, (disk_bytes() - from_disk) / n_bytes))
    rates = {name: np.array(values)[1:].T for name, values in found.items()}
    result = {
        name: {
            "gb_per_s": spread(rate),
            "bytes_from_disk": spread(read),
            "vs_sequential": spread(rate / rates["sequential"][0]),
        }
        for name, (rate, read) in rates.items()
    }
    print_cold(result)
    ratio = result["shuffled, read ahead"]["vs_sequential"]
    return {
        "cache": "cold",
        "cached_share_at_start_at_most": worst,
        "reads": result,
        "ratio": ratio,
        "as_needed_vs_sequential": result["shuffled, as needed"]["vs_sequential"],
        "mark": COLD_MARK,
        "passed": ratio["median"] >= COLD_MARK,
    }


def sequential(path: Path) -> tuple[int, float]:
    """Bytes and seconds of the patches' files from end to end."""
    buffer, n_bytes, start = memoryview(page_aligned((PIECE,), np.uint8)), 0, time.perf_counter()
    for file in patch_files(path):
        fd, size, at = os.open(file, os.O_RDONLY), file.stat().st_size, 0
        while at < size:
            at += os.preadv(fd, [buffer], at)
        os.close(fd)
        n_bytes += size
    return n_bytes, time.perf_counter() - start


def touch_all(path: Path, steps: Sequence[np.ndarray], read: Read) -> tuple[int, float]:
    """Bytes and seconds of these steps' rows, each touched once."""
    store, n_bytes = FeatureStore.open(path), 0
    store.require_all()  # seals are no tokens
    start = time.perf_counter()
    for row in read(store, steps):
        touch(row)
        n_bytes += row.nbytes
    return n_bytes, time.perf_counter() - start


def drop(path: Path) -> float:
    """Have the store leave the page cache; the share of it that is still there."""
    gc.collect()  # what is mapped stays in memory
    for _ in range(50):
        for file in all_files(path):
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        share = max(cached_share(file) for file in patch_files(path))
        if share < COLD_SHARE:
            return share
        time.sleep(0.1)  # reads or writes that are under way
    raise SystemExit(f"{path}: {share:.0%} of it does not leave the page cache; who maps it?")


def all_files(path: Path) -> list[Path]:
    return files_in(path) if path.is_dir() else [path]


def patch_files(path: Path) -> list[Path]:
    return files_in(path / "patches" / "c") if path.is_dir() else [path]


def disk_bytes() -> int:
    """What this process has had fetched from storage."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def print_cold(result: dict) -> None:
    print(
        "cold:  GB/s of tokens (min-max)   bytes from disk a byte asked for   x sequential "
        "(min-max)"
    )
    for name, case in result.items():
        rate, ratio = case["gb_per_s"], case["vs_sequential"]
        print(
            f"    {name:22} {rate['median']:.3g} ({rate['min']:.3g}-{rate['max']:.3g})   "
            f"{case['bytes_from_disk']['median']:.2f}   {ratio['median']:.3g} "
            f"({ratio['min']:.3g}-{ratio['max']:.3g})"
        )


# -- warm


def bench_warm(path: Path, args: argparse.Namespace) -> dict:
    """Milliseconds a row: touched, and what handing it out costs with and without reading ahead."""
    store, rng = FeatureStore.open(path), random.Random(0)
    one, many = shuffled(args, range(1)), shuffled(args, range(WARM_EPOCHS))
    touch_all(path, in_order(args), read_as_needed)
    cases = {
        "touched": (read_as_needed, touch, one),
        "touched, read ahead": (read_ahead, touch, one),
        "handed out": (read_as_needed, len, many),
        "handed out, read ahead": (read_ahead, len, many),
    }
    found = {name: [] for name in cases}
    for _ in range(args.rounds + 1):
        for name in rng.sample(list(cases), len(cases)):
            read, use, steps = cases[name]
            start = time.perf_counter()
            n = sum(use(row) is not None for row in read(store, steps))
            found[name].append(1e3 * (time.perf_counter() - start) / n)
    ms = {name: np.array(values[1:]) for name, values in found.items()}  # the first warms up
    cost = spread((ms["handed out, read ahead"] - ms["handed out"]) / ms["touched"])
    print(
        "warm:  ms a row  ",
        "   ".join(f"{name} {np.median(values):.3g}" for name, values in ms.items()),
    )
    print(
        f"       reading ahead costs {cost['median']:.2%} of touching at most "
        f"({cost['min']:.2%}-{cost['max']:.2%})"
    )
    return {
        "cache": "warm",
        "row_ms": {name: spread(values) for name, values in ms.items()},
        "cost": cost,
        "mark": WARM_MARK,
        "passed": cost["median"] <= WARM_MARK,
    }


if __name__ == "__main__":
    main()
