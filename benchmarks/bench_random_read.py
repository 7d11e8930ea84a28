"""How fast is a random row of a full-size store? P1: read in place; P2: gathered into a buffer; P9:
open to batch.

Page cache warm (its share is in the result); cold reads need other files a reader, and are another
question. To touch a row is to sum its 4-byte words: numpy then reads every byte once. Baseline and
candidates take turns, in P1 at every single row, in a new order each time, so that a neighbour's
load falls on all alike; ratios are taken within a round.

With --peers P1 also reads rows of other stores (_peers.py). How much of a map one page fault brings
in depends on the size of the pieces its file was written in, each store's own; the faults are in
the table. A used map has none.
"""

import argparse
import contextlib
import gc
import json
import mmap
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import safetensors.torch
import tensorstore
import torch
import zarr
from _bench import ROOT, context, finish, spread, work_folder
from _peers import Peer, installed, write_peers

from featurestore.format.spec import POOLED, STATS, StoreSpec, TokenSpec, ViewSpec
from featurestore.store import FeatureStore
from featurestore.write.columns import catalog_columns
from featurestore.write.writer import ImageRows, open_writer
from trainer.data.stored_row import StoredRow

GRID, WIDTH = 60, 1280  # 3600 patches x 1280 channels of a 960-pixel tile, as ViT-H+/16 gives them
BATCH = 32
P1_MARK, P2_MARK, P9_MARK_S = 1.1, 0.9, 1.0
OURS = (
    "FeatureStore .h5, mapped",
    "FeatureStore .zarr, mapped",
    "a lazy batch's row of the .h5, mapped",
)
MADV_POPULATE_READ = 22  # Linux 5.14; mmap has no name for it in Python 3.11
N_NPZ = 2  # rows kept as compressed npz: they take a hundred times as long
Reader = Callable[[int, int], np.ndarray]

# for a fresh interpreter, where no import, map or cache is there already; `reopen` is open without
# its own imports
OPEN_AND_TAKE = """
import json, sys, time
import numpy as np
from featurestore import FeatureStore
rows = np.array(json.loads(sys.argv[2]))
t = [time.perf_counter()]
store = FeatureStore.open(sys.argv[1]); t.append(time.perf_counter())
batch = store.take(rows); t.append(time.perf_counter())
FeatureStore.open(sys.argv[1]); t.append(time.perf_counter())
store.catalog; t.append(time.perf_counter())
print(json.dumps(dict(zip(["open_s", "take_s", "reopen_s", "catalog_s"], np.diff(t).tolist()))))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=16, help="sealed images of the P1 and P2 stores (default 16)"
    )
    parser.add_argument(
        "--views", type=int, default=4, help="views of each, 9.2 MB a view (default 4)"
    )
    parser.add_argument("--repeats", type=int, default=9, help="rounds, five or more (default 9)")
    parser.add_argument(
        "--peers", action="store_true", help="P1 also for other stores, those that are installed"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        help="where the files go for a while; 4.5 times the store's size, 12 with --peers",
    )
    args = parser.parse_args()
    if args.repeats < 5 or args.images * args.views < BATCH:
        parser.error(f"needs --repeats >= 5 and images x views >= {BATCH}")
    peers = installed() if args.peers else {}
    found = context(
        {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        [
            "numpy",
            "h5py",
            "zarr",
            "tensorstore",
            "safetensors",
            "torch",
            *{peer.package for peer in peers.values()},
        ],
    )
    with work_folder(args.dir) as folder:
        finish(
            run(folder, args, peers) | {"context": found | {"load_average_after": os.getloadavg()}}
        )


def run(folder: Path, args: argparse.Namespace, peers: dict[str, Peer]) -> dict:
    """All three answers, printed as they come."""
    make_files(folder, args.images, args.views)
    write_peers(
        folder, peers, np.memmap(folder / "flat.bin", np.float16, "r").reshape(-1, GRID**2, WIDTH)
    )
    p1, p2 = bench_in_place(folder, args, peers), bench_gather(folder, args)
    for path in files_in(folder):
        path.unlink()  # the disk need not hold both sets
    return {"P1": p1, "P2": p2, "P9": bench_open(folder, args.repeats)}


# -- files


def spec_of(frame: pd.DataFrame, n_views: int, grid: int = GRID, width: int = WIDTH) -> StoreSpec:
    """A store of made-up tokens: one tile of grid x grid patches."""
    views = tuple(ViewSpec(name=f"view_{v}") for v in range(n_views))
    tokens = TokenSpec(
        model="made_up",
        weights_sha256="0" * 64,
        layers=(-1,),
        crop="squash",
        tile_height=16 * grid,
        tile_width=16 * grid,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        patch_size=16,
        n_tiles=1,
        width=width,
        views=views,
        seed=0,
    )
    return StoreSpec(tokens=tokens, columns=catalog_columns(frame))


def frame_of(n: int) -> pd.DataFrame:
    ids = [f"ID{i:07d}" for i in range(n)]
    return pd.DataFrame(
        {
            "image_id": ids,
            "path": [f"train/{image_id}.jpg" for image_id in ids],
            "mass_g": np.arange(n, dtype=float),
        }
    )


def rows_of(spec: StoreSpec, image: int) -> ImageRows:
    """Random finite fp16 patches; the small arrays are zeros, nobody reads them here."""
    t = spec.tokens
    shape = (len(t.views), t.n_tiles)
    bits = np.random.default_rng(image).integers(
        0, 1 << 16, (*shape, t.n_patches, t.width), np.uint16
    )
    return ImageRows(
        np.zeros((*shape, t.width), np.float16),
        (bits & 0xBFFF).view(np.float16),
        np.zeros((*shape, len(POOLED), t.width), np.float32),
        np.zeros((shape[0], len(STATS))),
        facts={"sha256": "0" * 64, "width": 2000, "height": 1000, "status": "ok"},
    )


def make_store(
    path: Path, n: int, n_views: int, n_sealed: int, grid: int = GRID, width: int = WIDTH
) -> None:
    """A store of n images as `biomass store build` would write it, of which the first few are
    sealed."""
    frame = frame_of(n)
    spec = spec_of(frame, n_views, grid, width)
    with open_writer(path, spec, frame) as writer:
        for image in range(n_sealed):
            writer.put(image, rows_of(spec, image))


def make_files(folder: Path, n: int, n_views: int) -> None:
    """The same rows for everyone: both stores, one flat file, safetensors an image, a few npz."""
    for suffix in ("h5", "zarr"):
        make_store(folder / f"features.{suffix}", n, n_views, n)
    spec = spec_of(frame_of(n), n_views)
    # row by row, as the writer does: the same folios
    with open(folder / "flat.bin", "wb", buffering=0) as flat:
        for image in range(n):
            patches_VTPD = rows_of(spec, image).patches_VTPD
            for row in patches_VTPD:
                flat.write(row)
            safetensors.torch.save_file(
                {"patches": torch.from_numpy(patches_VTPD)}, folder / f"{image}.safetensors"
            )
            for view in range(n_views):
                if image * n_views + view < N_NPZ:
                    np.savez_compressed(
                        folder / f"{image}_{view}.npz", patches_VTPD[view].astype(np.float32)
                    )
    os.sync()  # writing dirty pages back would disturb the first rounds


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def large_files_in(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if path.stat().st_size >= 1 << 20]


def cached_share(path: Path, step: int = 1 << 20) -> float:
    """Share of a file that is in the page cache, sampled every MiB by reads that may not wait for
    the disk."""
    byte, hits, offsets = bytearray(1), 0, range(0, path.stat().st_size, step)
    with open(path, "rb") as file:
        for offset in offsets:
            with contextlib.suppress(BlockingIOError):
                hits += os.preadv(file.fileno(), [byte], offset, os.RWF_NOWAIT)
    return hits / len(offsets)


# -- P1: every byte of a random row, where it lies


def bench_in_place(folder: Path, args: argparse.Namespace, peers: dict[str, Peer]) -> dict:
    """Seconds a row from a new map, whose pages must be faulted in, and from one whose pages are
    there."""
    shape = (args.images, args.views)
    check_no_copy(folder)
    rounds = {"new map": [], "used map": []}
    rng = random.Random(0)
    for _ in range(args.repeats + 1):
        gc.collect()  # unmap the last round's files here, not in the middle of a timed row
        readers = open_readers(folder, shape) | {
            name: by_number(peer.open(folder), args.views) for name, peer in peers.items()
        }
        rounds["new map"].append(read_round(readers, shape, rng))
        in_place = {
            name: reader for name, reader in readers.items() if "mapped" in name or "memmap" in name
        }
        rounds["used map"].append(read_round(in_place, shape, rng))
        del readers, in_place
    # the first is the warm-up
    result = {state: summarise_reads(found[1:]) for state, found in rounds.items()}
    print_reads(result, args)
    ratios = {
        state: {name: case["vs_memmap"]["median"] for name, case in cases.items() if name in OURS}
        for state, cases in result.items()
    }
    return {
        "cache": "warm",
        "touch": "sum of the row's 4-byte words",
        "row_bytes": GRID**2 * WIDTH * 2,
        "cached_share": {name: cached_share(folder / name) for name in ("features.h5", "flat.bin")}
        | {"any large file, at least": min(map(cached_share, large_files_in(folder)))},
        "reads": result,
        "no_copy": True,
        "others": {state: compare_others(cases) for state, cases in result.items()},
        "mark": P1_MARK,
        "passed": all(ratio <= P1_MARK for cases in ratios.values() for ratio in cases.values()),
    }


def open_readers(folder: Path, shape: tuple[int, int]) -> dict[str, Reader]:
    """Who reads a row, each with its files open: nobody pays for opening here."""
    flat = np.memmap(folder / "flat.bin", np.float16, "r", shape=(*shape, 1, GRID**2, WIDTH))
    ours = {
        suffix: FeatureStore.open(folder / f"features.{suffix}").patches
        for suffix in ("h5", "zarr")
    }
    # as ours: libhdf5 refuses a mixture
    h5 = h5py.File(folder / "features.h5", "r", locking=False)["patches"]
    zarr_array = zarr.open_group(folder / "features.zarr", mode="r")["patches"]
    kvstore = {"driver": "file", "path": f"{folder}/features.zarr/patches/"}
    ts = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()
    return {
        "np.memmap, flat file": lambda i, v: flat[i, v],
        OURS[0]: lambda i, v: ours["h5"][i, v],
        OURS[1]: lambda i, v: ours["zarr"][i, v],
        OURS[2]: lambda i, v: StoredRow.of(torch.from_dlpack(ours["h5"][i, v])).numpy(),
        "the .h5, MADV_POPULATE_READ first": populating_reader(folder / "features.h5"),
        "h5py on the .h5": lambda i, v: h5[i, v],
        "zarr-python on the .zarr": lambda i, v: zarr_array[i, v],
        "TensorStore on the .zarr": lambda i, v: ts[i, v].read().result(),
        "safetensors, numpy": safetensors_reader(folder, shape[0], "np"),
        "safetensors, torch": safetensors_reader(folder, shape[0], "pt"),
        "npz, fp32, compressed": partial(read_npz, folder),
    }


def by_number(read: Callable[[int], np.ndarray], n_views: int) -> Reader:
    return lambda image, view: read(image * n_views + view)


def populating_reader(path: Path) -> Reader:
    """Rows of a map whose pages are asked for in one system call a row, not fault by fault: does
    that pay?"""
    store = FeatureStore.open(path)
    extent, n_views = store.layout.extents["patches"], len(store.view_names)
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)

    def read(image: int, view: int) -> np.ndarray:
        _, offset, n_bytes = extent.locate(image * n_views + view)
        start = offset - offset % mmap.PAGESIZE
        memory.madvise(MADV_POPULATE_READ, start, offset + n_bytes - start)
        return np.frombuffer(memory, np.float16, n_bytes // 2, offset)

    return read


def safetensors_reader(folder: Path, n: int, framework: str) -> Reader:
    slices = [
        safetensors.safe_open(folder / f"{i}.safetensors", framework).get_slice("patches")
        for i in range(n)
    ]
    return lambda i, v: np.asarray(slices[i][v])


def read_npz(folder: Path, image: int, view: int) -> np.ndarray:
    with np.load(folder / f"{image}_{view}.npz") as file:
        return file["arr_0"]


def read_round(
    readers: dict[str, Reader], shape: tuple[int, int], rng: random.Random
) -> dict[str, dict[str, list]]:
    """Seconds and minor page faults of each reader at each row; rows come, and readers take turns,
    in random order."""
    found = {name: {"seconds": [], "faults": []} for name in readers}
    for row in rng.sample(range(shape[0] * shape[1]), shape[0] * shape[1]):
        sums = {}
        for name in rng.sample(list(readers), len(readers)):
            if "npz" in name and row >= N_NPZ:
                continue
            faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            sums[name] = touch(readers[name](*divmod(row, shape[1])))
            found[name]["seconds"].append(time.perf_counter() - start)
            found[name]["faults"].append(
                resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            )
        assert len({total for name, total in sums.items() if "npz" not in name}) == 1, (
            f"row {row}: other bytes: {sums}"
        )
    return found


def touch(row: np.ndarray) -> int:
    """Read every byte once. Sums words of 4 bytes modulo 2^32: where one store's rows begin, int64
    is not aligned, and slower."""
    return int(np.add.reduce(row.reshape(-1).view(np.uint32), dtype=np.uint32))


def summarise_reads(rounds: list[dict]) -> dict[str, dict]:
    """Per reader: milliseconds a row, its ratio in the same round to the flat map and to ours,
    faults a row."""
    row_s = {
        name: np.array([np.mean(found[name]["seconds"]) for found in rounds]) for name in rounds[0]
    }
    return {
        name: {
            "row_ms": spread(1e3 * seconds),
            "vs_memmap": spread(seconds / row_s["np.memmap, flat file"]),
            "vs_h5": spread(seconds / row_s[OURS[0]]),
            "vs_zarr": spread(seconds / row_s[OURS[1]]),
            "faults_per_row": round(float(np.mean([found[name]["faults"] for found in rounds])), 1),
        }
        for name, seconds in row_s.items()
    }


def compare_others(cases: dict[str, dict]) -> dict:
    """Every other store's times as multiples of the flat map's and of ours, and whether ours beats
    all of them in every round."""
    others = {
        name: {key: case[key] for key in ("vs_memmap", "vs_h5", "vs_zarr")}
        for name, case in cases.items()
        if name not in OURS and "memmap" not in name and "MADV" not in name
    }
    least = {
        name: min(case["vs_h5"]["min"], case["vs_zarr"]["min"]) for name, case in others.items()
    }
    return {
        "ratios": others,
        "faster_than_every_peer": all(ratio > 1 for ratio in least.values()),
        "sometimes_as_fast": [name for name, ratio in least.items() if ratio <= 1],
    }


def check_no_copy(folder: Path) -> None:
    """A row is the file's own bytes: it owns none, is the same memory twice, and the kernel says
    which file's."""
    for path in (folder / "features.h5", folder / "features.zarr"):
        store = FeatureStore.open(path)
        row = store.patches[1, 2]
        assert (
            not row.flags.owndata
            and not row.flags.writeable
            and np.shares_memory(row, store.patches[1, 2])
        )
        file, offset, _ = store.layout.extents["patches"].locate(len(store.view_names) + 2)
        assert mapped_at(row.ctypes.data) == (str(file), offset), (
            f"{path}: the row is not where its file is mapped"
        )


def mapped_at(address: int) -> tuple[str, int]:
    """File and offset behind an address of this process, as the kernel tells it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *name = line.split(maxsplit=5)
        first, end = (int(x, 16) for x in span.split("-"))
        if first <= address < end:
            return "".join(name), int(offset, 16) + address - first
    raise AssertionError(f"{address:#x} is not mapped")


def print_reads(result: dict, args: argparse.Namespace) -> None:
    for state, cases in result.items():
        print(
            f"P1  {args.images} x {args.views} rows of 9.2 MB, warm cache, {state}:"
            f"  ms a row (min-max)   x memmap (min-max)   faults a row"
        )
        for name, case in cases.items():
            ms, ratio = case["row_ms"], case["vs_memmap"]
            print(
                f"    {name:36} {ms['median']:8.3g} ({ms['min']:.3g}-{ms['max']:.3g})"
                f" {ratio['median']:8.3g} ({ratio['min']:.3g}-{ratio['max']:.3g}) "
                f"{case['faults_per_row']:8.0f}"
            )


# -- P2: 32 random rows into one buffer


def bench_gather(folder: Path, args: argparse.Namespace) -> dict:
    """GB/s of `take` into a resident buffer, and of other ways to fill it, beside memcpy of as many
    bytes."""
    n_rows = args.images * args.views
    cases, size, at = gather_cases(folder)
    rng, seconds = random.Random(0), {name: [] for name in cases}
    for _ in range(args.repeats + 1):
        rows = np.array([divmod(row, args.views) for row in rng.sample(range(n_rows), BATCH)])
        for name in rng.sample(list(cases), len(cases)):
            start = time.perf_counter()
            cases[name](rows)
            seconds[name].append(time.perf_counter() - start)
    result = summarise_gathers({name: np.array(found[1:]) for name, found in seconds.items()}, size)
    print_gather(result)
    takes = [case for name, case in result.items() if name.startswith("take")]
    return {
        "cache": "warm",
        "rows": BATCH,
        "bytes": size,
        "buffer_address_in_page": at,
        "gathers": result,
        "mark": P2_MARK,
        "passed": all(case["vs_memcpy"]["median"] >= P2_MARK for case in takes),
        "passed_row_by_row": all(case["vs_row_by_row"]["median"] >= P2_MARK for case in takes),
    }


def gather_cases(folder: Path) -> tuple[dict[str, Callable], int, dict[str, int]]:
    """The baseline, ours, and what ours could be instead; the bytes each copies; where in a page
    the buffers begin.

    Two buffers: numpy's own begin 16 bytes into a page, which is slow for the kernel's `rep movsb`
    on AMD Zen 3; those of pinned memory begin with a page. Two memcpy: above a threshold (192 MiB
    here) glibc bypasses the cache in one large call, which 32 calls of a row each cannot have.
    """
    # ones, not zeros: resident, not the kernel's zero page
    source = np.ones((BATCH, 1, GRID**2, WIDTH), np.float16)
    plain, paged = np.ones_like(source), page_aligned(source.shape)
    h5, zarr_store = (FeatureStore.open(folder / f"features.{suffix}") for suffix in ("h5", "zarr"))
    pool = ThreadPoolExecutor(2)
    halves = [slice(None, BATCH // 2), slice(BATCH // 2, None)]
    populate = populating_reader(h5.path)

    def threads(copy_row: Callable, rows: np.ndarray) -> None:
        list(pool.map(copy_row, plain, rows))

    def copy_row(row: np.ndarray, place: np.ndarray) -> None:
        np.copyto(row, h5.patches[place[0], place[1]])

    return (
        {
            "memcpy, one call": lambda rows: np.copyto(plain, source),
            "memcpy, row by row": lambda rows: [
                np.copyto(plain[b], source[b]) for b in range(BATCH)
            ],
            "take from .h5, numpy's buffer": lambda rows: h5.take(rows, out=plain),
            "take from .zarr, numpy's buffer": lambda rows: zarr_store.take(rows, out=plain),
            "take from .h5, page-aligned": lambda rows: h5.take(rows, out=paged),
            "take from .zarr, page-aligned": lambda rows: zarr_store.take(rows, out=paged),
            "take in 2 threads, page-aligned": lambda rows: list(
                pool.map(lambda half: h5.take(rows[half], out=paged[half]), halves)
            ),
            "copy from a used map": lambda rows: [
                copy_row(*each) for each in zip(plain, rows, strict=True)
            ],
            "copy from a used map, 2 threads": partial(threads, copy_row),
            "copy, MADV_POPULATE_READ first": lambda rows: [
                np.copyto(plain[b].reshape(-1), populate(*rows[b])) for b in range(BATCH)
            ],
            "memcpy, 2 threads": lambda rows: list(
                pool.map(lambda half: np.copyto(plain[half], source[half]), halves)
            ),
        },
        source.nbytes,
        {
            "numpy's": plain.ctypes.data % mmap.PAGESIZE,
            "page-aligned": paged.ctypes.data % mmap.PAGESIZE,
        },
    )


def page_aligned(shape: tuple[int, ...]) -> np.ndarray:
    """A resident float16 buffer that begins with a page, in huge pages as numpy's own are."""
    memory = mmap.mmap(-1, int(np.prod(shape)) * 2)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = np.frombuffer(memory, np.float16).reshape(shape)
    buffer[:] = 1
    return buffer


def summarise_gathers(seconds: dict[str, np.ndarray], size: int) -> dict[str, dict]:
    return {
        name: {
            "gb_per_s": spread(size / 1e9 / found),
            "vs_memcpy": spread(seconds["memcpy, one call"] / found),
            "vs_row_by_row": spread(seconds["memcpy, row by row"] / found),
        }
        for name, found in seconds.items()
    }


def print_gather(result: dict) -> None:
    print(
        f"P2  {BATCH} random rows into one buffer, warm cache:"
        "  GB/s (min-max)   x memcpy in one call   x memcpy row by row"
    )
    for name, case in result.items():
        print(
            f"    {name:36}",
            "  ".join(
                f"{value['median']:8.3g} ({value['min']:.3g}-{value['max']:.3g})"
                for value in case.values()
            ),
        )


# -- P9: open and first batch


def bench_open(folder: Path, repeats: int) -> dict:
    """Seconds from an imported package to a batch, in fresh processes: the contest's store, and a
    million images."""
    stores = {
        "357 images, full size": dict(n=357, n_views=20, n_sealed=2),
        "1,000,000 images, 2 x 2 patches": dict(
            n=1_000_000, n_views=1, n_sealed=BATCH, grid=2, width=8
        ),
    }
    result = {}
    print(
        "P9  a fresh process, warm cache, after import, s (min-max):  open   first batch   open + "
        "batch   open again   catalog"
    )
    for what, sizes in stores.items():
        for suffix in ("h5", "zarr"):
            path = folder / f"open_{sizes['n']}.{suffix}"
            make_store(path, **sizes)
            os.sync()
            result[f"{what}, .{suffix}"] = case = time_open(path, sizes, repeats)
            print(
                f"    {what + ', .' + suffix:38}",
                "  ".join(
                    f"{value['median']:.3g} ({value['min']:.3g}-{value['max']:.3g})"
                    for value in case.values()
                ),
            )
    return {
        "cache": "warm",
        "opens": result,
        "mark_s": P9_MARK_S,
        "passed": all(case["open_and_take_s"]["median"] < P9_MARK_S for case in result.values()),
    }


def time_open(path: Path, sizes: dict, repeats: int) -> dict[str, dict]:
    """Spread over fresh processes of each step; the first process warms up."""
    rng, runs, n_rows = random.Random(0), [], sizes["n_sealed"] * sizes["n_views"]
    for _ in range(repeats + 1):
        rows = [divmod(row, sizes["n_views"]) for row in rng.sample(range(n_rows), BATCH)]
        command = [sys.executable, "-c", OPEN_AND_TAKE, str(path), json.dumps(rows)]
        answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        runs.append(json.loads(answer.stdout))
    times = {"open_s": [], "take_s": [], "open_and_take_s": [], "reopen_s": [], "catalog_s": []}
    for run_s in runs[1:]:
        for name, values in times.items():
            values.append(
                run_s["open_s"] + run_s["take_s"] if name == "open_and_take_s" else run_s[name]
            )
    return {name: spread(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
