"""How much smaller is an archive, how fast is it written and read, and how fast do stores become
each other?

Tokens: random normal ones at full size, and real ones, of drawn photographs by the packaged
backbone, for the ratio alone. GB/s are always of the store's own bytes. Page cache warm; all that
writes syncs; the yardstick is a second copy of the store, row by row and checked.

Codec alone, one thread: blosc's shuffles, levels and block sizes on 20 MB of patch tokens, once
each.
"""

import argparse
import itertools
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _bench import context, finish, spread, work_folder
from bench_random_read import frame_of, rows_of, spec_of
from numcodecs import Blosc, blosc

from featurestore import FeatureStore
from featurestore.backbone.demo.drawing import draw_pasture
from featurestore.backbone.rounding import quantise
from featurestore.disk.durable import remove
from featurestore.manage.archive import Archive, ArchiveReport
from featurestore.manage.archive_writer import write_archive
from featurestore.manage.transfer import convert
from featurestore.write.build import build_store
from featurestore.write.config import BuildConfig
from featurestore.write.writer import open_writer

SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
LEVELS = (1, 3, 5)
BLOCKS = (0, 1 << 20)  # 0: blosc's own choice
CODEC_BYTES = 20_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="images of each store (default 8)")
    parser.add_argument("--views", type=int, default=4, help="views of each (default 4)")
    parser.add_argument(
        "--image-size", type=int, default=480, help="pixels of the real tokens' tiles (default 480)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="five or more (default 5)")
    parser.add_argument("--dir", type=Path, help="where everything goes for a while")
    args = parser.parse_args()
    if args.rounds < 5:
        parser.error("needs --rounds >= 5")
    found = context(
        {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        ["numpy", "zarr", "numcodecs", "torch"],
    )
    with work_folder(args.dir) as folder:
        stores = {"random": make_random(folder, args), "real": make_real(folder, args)}
        finish(
            {
                "codec": {name: bench_codec(name, path) for name, path in stores.items()},
                "ratio": {name: kept(folder, path) for name, path in stores.items()},
                "archives": bench_archives(folder, stores["random"], args.rounds),
                "conversion": bench_conversion(folder, stores["random"], args.rounds),
            }
            | {"context": found | {"load_average_after": os.getloadavg()}}
        )


def make_random(folder: Path, args: argparse.Namespace) -> Path:
    rng, frame, path = np.random.default_rng(0), frame_of(args.images), folder / "random.h5"
    spec = spec_of(frame, args.views)
    with open_writer(path, spec, frame) as writer:
        for image in range(args.images):
            rows = rows_of(spec, image)
            normal = rng.standard_normal(rows.patches_VTPD.shape, np.float32).astype(np.float16)
            writer.put(image, replace(rows, patches_VTPD=normal))
    return path


def make_real(folder: Path, args: argparse.Namespace) -> Path:
    draw_pasture(folder / "pasture", seed=0, n_train=args.images, n_test=1)
    build_store(
        BuildConfig.check(
            data=folder / "pasture",
            out=folder / "real.h5",
            backbone="vit_demo_patch16_dinov3",
            image_size=args.image_size,
            views=str(args.views),
            save_weights=False,
        ),
        progress=False,
    )
    return folder / "real.h5"


# -- archives


def kept(folder: Path, path: Path) -> dict:
    """Ratio and error of both codecs."""
    reports = {
        codec: archive(path, folder / f"{path.stem}_{codec}.zarr", codec)
        for codec in ("zstd", "int8")
    }
    for codec, report in reports.items():
        print(
            f"{path.stem} tokens, {codec}: ratio {report.bytes_in / report.bytes_out:.3f}, error "
            f"{report.error}"
        )
    return {
        codec: {
            "ratio": round(report.bytes_in / report.bytes_out, 4),
            "error": report.error,
            "bytes_in": report.bytes_in,
        }
        for codec, report in reports.items()
    }


def bench_archives(folder: Path, path: Path, rounds: int) -> dict:
    """GB/s of both codecs, in turns with a copy of the store; the first round warms up."""
    cases = {"copy, h5": partial(copy, path, folder / "copy.h5")}
    for codec in ("zstd", "int8"):
        out = folder / f"{path.stem}_{codec}.zarr"
        cases |= {
            f"write {codec}": partial(archive, path, out, codec),
            f"read {codec}": partial(read, out),
        }
    found = timed(cases, FeatureStore.open(path).size_bytes, rounds)
    print("archives")
    print_rates(found)
    return found


def archive(path: Path, out: Path, codec: str) -> ArchiveReport:
    remove(out)
    store = FeatureStore.open(path)
    return write_archive(store, out, codec, range(len(store)))


def read(path: Path) -> None:
    """Decode and check every image, as a conversion back does."""
    opened = Archive.open(path)
    for image in opened.sealed.tolist():
        opened.rows(image)


def copy(path: Path, out: Path, **options) -> None:
    remove(out)
    convert(path, out, **options)


# -- stores


def bench_conversion(folder: Path, path: Path, rounds: int) -> dict:
    """GB/s between the formats, and back from archives, all of them through `convert`."""
    stores = {"h5": path} | {
        name: folder / f"random{name}" for name in (".zarr", "_zstd.zarr", "_int8.zarr")
    }
    copy(path, stores[".zarr"])
    cases = {
        f"{source} to {suffix}": partial(copy, stores[source], folder / f"out.{suffix}")
        for source, suffix in itertools.product(stores, ("h5", "zarr"))
    }
    found = timed(cases, FeatureStore.open(path).size_bytes, rounds)
    print("conversion")
    print_rates(found)
    return found


def timed(cases: dict[str, Callable[[], None]], n_bytes: int, rounds: int) -> dict:
    """GB/s of each case, in turns of drawn order; the first round, in the order given, warms up."""
    rng, found = random.Random(0), {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name in cases if turn == 0 else rng.sample(list(cases), len(cases)):
            start = time.perf_counter()
            cases[name]()
            found[name].append(n_bytes / 1e9 / (time.perf_counter() - start))
    return {name: spread(rates[1:]) for name, rates in found.items()}


def print_rates(found: dict) -> None:
    for name, rate in found.items():
        print(f"    {name:22} {rate['median']:6.3f} GB/s ({rate['min']:.3f}-{rate['max']:.3f})")


# -- the codec alone


def bench_codec(name: str, path: Path) -> dict:
    """Ratio and one thread's GB/s by shuffle, level and block size, of float16 tokens and of their
    eight bits."""
    blosc.use_threads = False
    store = FeatureStore.open(path)
    tokens = np.concatenate([store.patches[i].ravel() for i in range(len(store))])[
        : CODEC_BYTES // 2
    ].copy()
    width = store.spec.tokens.width
    tokens = tokens[: tokens.size // width * width].reshape(-1, width)
    result = {}
    for kind, values in {
        "float16": tokens,
        "int8": quantise(torch.from_numpy(tokens))[0].numpy(),
    }.items():
        for shuffle, level, block in itertools.product(SHUFFLES, LEVELS, BLOCKS):
            codec = Blosc(cname="zstd", clevel=level, shuffle=SHUFFLES[shuffle], blocksize=block)
            start = time.perf_counter()
            encoded = codec.encode(values)
            middle = time.perf_counter()
            codec.decode(encoded)
            gigabytes = values.nbytes / 1e9
            row = {
                "ratio": round(values.nbytes / len(encoded), 4),
                "write": round(gigabytes / (middle - start), 3),
                "read": round(gigabytes / (time.perf_counter() - middle), 3),
            }
            result[f"{kind} {shuffle} level {level} block {block >> 10}K"] = row
            print(
                f"{name:6} {kind:8} {shuffle:10} level {level} block {block >> 10:5}K: ratio "
                f"{row['ratio']:.3f}, one thread "
                f"writes {row['write']:.2f}, reads {row['read']:.2f} GB/s"
            )
    return result


if __name__ == "__main__":
    main()
