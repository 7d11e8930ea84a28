"""What the benchmarks share: a folder that goes away, medians with their spread, what it takes to
repeat a figure."""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# a checkout can be measured without being installed; import this module first
sys.path.insert(0, str(ROOT))


@contextmanager
def work_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder under parent (the system's temporary folder if None), removed at the end
    whatever happens."""
    # from the root: parts of a benchmark run in it, and are told it
    folder = Path(tempfile.mkdtemp(prefix="biomass_bench_", dir=parent)).absolute()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def spread(values: Iterable[float], digits: int = 4) -> dict[str, float]:
    """Median, least, greatest and number of some measurements, to so many significant digits."""
    values = np.asarray(list(values), float)
    least, middle, most = (float(f"{x:.{digits}g}") for x in np.quantile(values, (0, 0.5, 1)))
    return {"median": middle, "min": least, "max": most, "runs": len(values)}


def context(config: dict, packages: Iterable[str]) -> dict:
    """Machine, versions, commit and configuration: enough to repeat a run, or to see why it cannot
    be."""
    versions = {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
    return {
        "machine": _machine(),
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": _git("status", "--porcelain").splitlines(),
        "config": config,
    }


def beside(script: Path, before: Path, arguments: list[str], rounds: int) -> dict:
    """Seconds of a benchmark by another checkout and by this one, in turns, each round in processes
    of its own; `now_to_before` is of each round's.

    `whole_cpu` are CPU seconds of whole processes, which busy neighbours change little.
    """
    seconds: dict[str, dict[str, list[float]]] = {"before": {}, "now": {}}
    for _ in range(rounds):
        for name, root in (("before", before.resolve()), ("now", ROOT)):
            command = [sys.executable, root / "benchmarks" / script.name, *arguments]
            cpu_s = _children_cpu_s()
            done = subprocess.run(
                [*command, "--rounds", "1"],
                env=os.environ | {"PYTHONPATH": str(root)},
                capture_output=True,
                text=True,
                check=True,
            )
            told = json.loads(done.stdout.splitlines()[-1])["seconds"]
            told["whole_cpu"] = {"median": _children_cpu_s() - cpu_s}
            for what, spread_s in told.items():
                seconds[name].setdefault(what, []).append(spread_s["median"])
    ratios = {}
    for what, now in seconds["now"].items():
        ratios[what] = spread(n / b for n, b in zip(now, seconds["before"][what], strict=True))
        print(f"{what:8} takes {ratios[what]['median']:.3f} x what it took before")
    spreads = {}
    for name, told in seconds.items():
        spreads[name] = {what: spread(values) for what, values in told.items()}
    config = {"script": script.name, "before": str(before), "arguments": arguments}
    return {"now_to_before": ratios, "seconds": spreads, **context(config, ["torch", "timm"])}


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def add_before(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--before", type=Path, help="another checkout, to be measured in turns with this one"
    )


def measured_beside(script: Path, options: argparse.Namespace) -> dict | None:
    """`beside` of a benchmark's own command line, if it names another checkout."""
    if options.before is None:
        return None
    arguments, skipped = [], False
    for word in sys.argv[1:]:
        if not skipped and word not in ("--before", "--rounds"):
            arguments.append(word)
        skipped = not skipped and word in ("--before", "--rounds")
    return beside(script, options.before, arguments, options.rounds)


def finish(result: dict) -> None:
    """Print the result as the last line, for machines."""
    # at once: whoever ends a part that takes too long reads what it has found until then
    print(json.dumps(result), flush=True)


def _machine() -> dict:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
    }


def _cpu_model() -> str:
    fields = [
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    ]
    found = {key.strip(): value.strip() for key, value in fields}
    name = found.get("model name", platform.machine())
    return f"{name} (family {found.get('cpu family')}, model {found.get('model')})"


def _git(*words: str) -> str:
    """What git says; nothing where there is no git, or no repository."""
    try:
        told = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return told.stdout.rstrip()
