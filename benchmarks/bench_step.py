"""A sweep's step against the same step of another checkout, in turn: full size, the demo's size,
beside a busy process.

Each checkout, and the plain torch loop of bench_sweep, is a process of its own that holds its sweep
and trains one epoch when asked; so all share the machine's ups and downs. Seconds are per step.
`--busy N` adds rounds beside N processes that never rest. P3 as a share of the machine's ceiling:
the FLOP of the step's products at the rate that one large product reaches here; once by the clock,
once by processor time, which a neighbour on the same cores moves less (.63 quiet and .73 at load 8,
where the clock gave .60 and 1.4).

    python benchmarks/bench_step.py --against ../before --busy 1
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from _bench import ROOT, context, finish, spread, work_folder

WORKER = """
import sys, time
from pathlib import Path
import torch
checkout, folder, what, multiply = sys.argv[1:]
sys.path[:0] = [checkout, checkout + "/benchmarks"]
import bench_sweep
from trainer.loop.grid import SweepConfig
from trainer.loop.memory import keep_freed_memory
from trainer.loop.prepare import prepare_sweep
keep_freed_memory()
sweep = prepare_sweep(SweepConfig.load(Path(folder) / f"{what}-{multiply}.yaml"), "cpu")
is_plain = what == "plain"
run = bench_sweep.plain(sweep, 1) if is_plain else bench_sweep.ready(sweep)
n_steps = 1 if is_plain else sweep.stream.n_steps
print(getattr(sweep.data, "multiply", "float32"), flush=True)
a, b = torch.randn(48, 409), torch.randn(409, 1280)
for number, _ in enumerate(sys.stdin):
    before = time.process_time()
    seconds = run(number)
    core_s = (time.process_time() - before) / n_steps
    # products on one core, right beside the steps
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = time.process_time()
    for _ in range(200):
        a @ b
    rate = 200 * 2 * a.numel() * b.shape[1] / (time.process_time() - before)
    torch.set_num_threads(n_threads)
    print(seconds, core_s, rate, flush=True)
"""
YAML = """
experiment: {{name: bench, seed: 0}}
dataset: {{store: {store}}}
head: {{kind: [{kinds}]}}
trainer: {{num_epochs: 1000, batch_size: {batch}{multiply}}}
optimization: {{lr: [2e-3, 1e-3, 1e-4], weight_decay: [1e-2, 1e-3]}}
augmentation: {{mixup: {{enabled: true, disable_ratio: 0}}}}
inference: {{tta_indices: [0]}}
"""
SIZES = {"full": (64, 60, 1280), "small": (120, 12, 96)}
"""Images, patches on a side, channels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["cls_gating"],
        help="30 heads of each; the plain loop and the "
        "share of the ceiling are of cls_gating alone",
    )
    parser.add_argument("--multiply", nargs="*", default=["auto"], help="ways of this checkout")
    parser.add_argument("--busy", type=int, default=0, help="busy processes of further rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-plain", action="store_true", help="leave the plain loop out")
    parser.add_argument("--dir", type=Path, help="where the store goes for the time being")
    options = parser.parse_args()
    if options.kinds != ["cls_gating"] and not options.no_plain:
        parser.error("--kinds: the plain loop trains cls_gating alone; add --no-plain")
    with work_folder(options.dir) as folder:
        finish(measure(options, folder))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Seconds a step of every way, quiet and beside busy processes."""
    import bench_sweep

    images, grid, width = SIZES[options.size]
    of_store = argparse.Namespace(images=images, grid=grid, width=width)
    store = bench_sweep.make_store(of_store, folder / "features.h5")
    ways = {}
    for multiply in options.multiply:
        ways[f"now {multiply}"] = ROOT, "sweep", multiply
    if options.against:
        ways["before"] = options.against.resolve(), "sweep", "before"
    if not options.no_plain:
        ways["plain"] = ROOT, "plain", "before"
    workers = {}
    for name, (checkout, what, multiply) in ways.items():
        chosen = "" if multiply == "before" else f", multiply: {multiply}"
        kinds = ", ".join(options.kinds)
        text = YAML.format(store=store.path, kinds=kinds, batch=options.batch, multiply=chosen)
        (folder / f"{what}-{multiply}.yaml").write_text(text)
        arguments = [checkout, folder, what, multiply]
        # as the commands of each checkout wait, and as a notebook does
        waiting = {"OMP_WAIT_POLICY": "PASSIVE"} if name.startswith("now") else {}
        workers[name] = Worker([sys.executable, "-c", WORKER, *map(str, arguments)], waiting)
        print(f"{name:14} multiplies in {workers[name].said}")

    found = {}
    core_shares: dict[str, list[float]] = {name: [] for name in workers}
    flop = flop_of_step(options.batch)
    for busy in dict.fromkeys([0, options.busy]):
        times: dict[str, list[float]] = {name: [] for name in workers}
        with busy_processes(busy):
            for number in range(-1, options.rounds):
                for name, worker in workers.items():
                    seconds, core_s, rate = worker.step()
                    if number >= 0:  # the round before warms up
                        times[name].append(seconds)
                        core_shares[name].append(flop / rate / core_s)
        found[f"busy {busy}"] = times
        for name, values in times.items():
            print(f"busy {busy}  {name:14} {spread(values)['median']:.4f} s a step")
    for worker in workers.values():
        worker.end()

    rate = flops_a_second()
    result = {
        "step_s": {
            load: {name: spread(values) for name, values in times.items()}
            for load, times in found.items()
        },
        "times_faster": ratios(found["busy 0"], "before"),
        "product_gflops": round(rate / 1e9, 1),
        "threads": torch.get_num_threads(),
    }
    if options.busy:
        quiet = found["busy 0"]
        result["slowdown"] = {
            name: round(spread(values)["median"] / spread(quiet[name])["median"], 2)
            for name, values in found[f"busy {options.busy}"].items()
        }
        print(f"slowdown beside load {result['slowdown']}")
    if options.size == "full" and options.kinds == ["cls_gating"]:
        result["step_gflop"] = round(flop / 1e9, 1)
        result["share_of_ceiling"] = {
            name: round(flop / rate / spread(values)["median"], 3)
            for name, values in found["busy 0"].items()
            if name != "plain"
        }
        print(f"share of the ceiling {result['share_of_ceiling']}")
        result["share_of_ceiling_by_processor_time"] = {
            name: spread(shares, 3) for name, shares in core_shares.items() if name != "plain"
        }
        print(f"by processor time {result['share_of_ceiling_by_processor_time']}")
    settings = {key: str(value) for key, value in vars(options).items()}
    return result | context(settings, ["torch", "numpy"])


class Worker:
    """A process that trains one epoch when asked, and tells its seconds a step, those of a core,
    and FLOP a second of a core."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        environment = os.environ | environment
        self._process = subprocess.Popen(command, **pipes, text=True, env=environment)
        self.said = self._process.stdout.readline().strip()
        if not self.said:
            raise SystemExit(f"{command[-2]} of {command[-5]} could not begin")

    def step(self) -> tuple[float, float, float]:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seconds, core_s, rate = map(float, self._process.stdout.readline().split())
        return seconds, core_s, rate

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """So many processes that never rest, beside this block."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(n)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def ratios(times: dict[str, list[float]], base: str) -> dict[str, dict]:
    """Times faster than a way, round by round."""
    if base not in times:
        return {}
    return {
        name: spread(b / own for b, own in zip(times[base], values, strict=True))
        for name, values in times.items()
        if name not in (base, "plain")
    }


def flop_of_step(batch: int) -> float:
    """Of the products of 30 `cls_gating` heads in five folds at full size: pooling of own and
    partner's patches and the dense layers, forward and backward."""
    _, side, width = SIZES["full"]
    patches = side**2
    n_samples = 5 * batch * 6
    pooling = 2 * n_samples * 2 * patches * width * 2
    gate = width * (width // 4) + (width // 4) * patches
    trunk = 2 * width * 512
    # class tokens, which both first layers read, have no gradient
    without = width * (width // 4) + width * 512
    dense = 2 * n_samples * (3 * (gate + trunk) - without)
    return pooling + dense


def flops_a_second() -> float:
    """Of float32 products of a block of patches and the weights of a row."""
    a = torch.randn(48, 409)
    b = torch.randn(409, 1280)
    seconds = []
    for _ in range(40):
        start = time.perf_counter()
        for _ in range(20):
            a @ b
        seconds.append((time.perf_counter() - start) / 20)
    return 2 * 48 * 409 * 1280 / min(seconds)


if __name__ == "__main__":
    main()
