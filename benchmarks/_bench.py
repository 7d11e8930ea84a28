"""What the benchmarks share: a folder that goes away, medians with their spread, what it takes to
repeat a figure."""

import json
import os
import platform
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
    folder = Path(tempfile.mkdtemp(prefix="biomass_bench_", dir=parent))
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


def finish(result: dict) -> None:
    """Print the result as the last line, for machines."""
    print(json.dumps(result))


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
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    ).stdout.rstrip()
