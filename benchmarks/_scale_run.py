"""One command as a process of its own: seconds of the processor, greatest memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

from _bench import ROOT

MEASURED = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, used = os.wait4(child.pid, 0)
told = {
    "code": os.waitstatus_to_exitcode(status),
    "cpu_s": round(used.ru_utime + used.ru_stime, 2),
    "wall_s": round(time.perf_counter() - start, 2),
    "most_gb": round(used.ru_maxrss * 1024 / 1e9, 3),
}
print(json.dumps(told))
"""


def run_all(commands: dict[str, list[object]], folder: Path) -> dict[str, dict[str, float]]:
    """Run commands of this checkout one after another, and print what each took."""
    told = {}
    for name, words in commands.items():
        told[name] = run(words, folder)
        print(
            f"{name:24} {told[name]['cpu_s']:8.2f} s of processor time, "
            f"{told[name]['wall_s']:8.2f} s, {told[name]['most_gb']:.2f} GB",
            flush=True,
        )
    return told


def run(words: list[object], folder: Path) -> dict[str, float]:
    """Run one command of this checkout to its end: seconds of the processor and the wall, and the
    greatest memory in GB."""
    log = folder / "log.txt"
    with open(log, "w") as output:
        # by a small process: the kernel counts the memory of who starts a command as the command's
        done = subprocess.run(
            [sys.executable, "-S", "-c", MEASURED, sys.executable, "-m", "cli", *map(str, words)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    told = json.loads(done.stdout)
    if code := told.pop("code"):
        raise SystemExit(f"{' '.join(map(str, words))}: exit code {code}\n{log.read_text()}")
    return told
