"""All there is to measure on a GPU, in one command of less than nine minutes.

Each part is a process of its own: one that fails, or runs past its time, leaves the others as they
are. Parts whose time is no longer there are left out, and said to be. It leaves gpu_day.json for
machines and gpu_day.txt, a page for people. `--device cpu --small` runs every part in small.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from _bench import ROOT, context, finish, work_folder

MINUTES = 9
SPARE_S = 10  # for the page, and for what a part takes to end
LEAST_S = 5  # a part with less is not begun


@dataclass(frozen=True)
class Part:
    """One measurement: a function of a module and what it is given."""

    call: str
    """MODULE.FUNCTION."""
    limit_s: int
    """On a device; the time of the whole day bounds it too."""
    arguments: tuple[str, ...] = ()


PARTS = {
    "machine": Part("_gpu_day.machine", 40),
    "tests": Part("_gpu_day.tests", 120),
    "store": Part("_gpu_heads.store", 60),
    "launches": Part("_gpu_heads.launches", 75),
    "P10 resident": Part("_gpu_heads.train", 75, ("resident",)),
    "P10 ring": Part("_gpu_heads.train", 75, ("ring",)),
    "P11 ViT-S 224": Part("_gpu_backbones.build", 60, ("small",)),
    "P11 ViT-H+ 960": Part("_gpu_backbones.build", 130, ("huge",)),
    "P7 predict": Part("_gpu_backbones.predict", 60),
    "P10 mapped, CPU": Part("_gpu_heads.train", 40, ("mapped",)),
}
"""In order: what matters most comes first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that it may take")
    parser.add_argument("--only", action="append", help="a part by its name; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of gpu_day.json and .txt")
    parser.add_argument("--dir", type=Path, help="where stores go for the time being")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        finish(run_here(options))
        return

    unknown = set(options.only or ()) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    day = {"parts": {}, **context(_told(options), ["torch", "timm", "numpy"])}
    with work_folder(options.dir) as folder:
        for name, part in PARTS.items():
            if options.only and name not in options.only:
                continue
            left_s = options.minutes * 60 - SPARE_S - (time.monotonic() - started)
            day["parts"][name] = run_part(name, part, options, folder, left_s)
            day["seconds"] = round(time.monotonic() - started, 1)
            # after each part: whoever is stopped before the end leaves what there was
            (options.out / "gpu_day.json").write_text(json.dumps(day, indent=1))
            (options.out / "gpu_day.txt").write_text(page(day))
            print(line_of(name, day["parts"][name]), flush=True)
    failed = [name for name, found in day["parts"].items() if found["state"] != "ok"]
    sys.exit(f"not ok: {', '.join(failed)}" if failed else 0)


def run_here(options: argparse.Namespace) -> dict:
    """A part's figures, in its own process."""
    from _gpu_day import FULL, SMALL, Day

    part = PARTS[options.part]
    size = SMALL if options.small else FULL
    day = Day(options.device, size, options.folder, options.seconds)
    module, call = part.call.split(".")
    measure: Callable[..., dict] = getattr(importlib.import_module(module), call)
    return measure(day, *part.arguments)


def run_part(
    name: str, part: Part, options: argparse.Namespace, folder: Path, left_s: float
) -> dict:
    """State, seconds and figures of a part that runs in a process of its own, or why it has none.

    left_s : of the day.
    """
    limit_s = min(part.limit_s, left_s)
    if limit_s < LEAST_S:
        return {"state": "left out", "seconds": 0, "error": "no time was left for it"}

    command = [sys.executable, __file__, "--part", name, "--folder", folder]
    command += ["--device", options.device, "--seconds", str(limit_s)]
    command += ["--small"] if options.small else []
    # packages may lie where only PYTHONPATH names them
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    error = ""
    try:
        output, said = process.communicate(timeout=limit_s)
        if process.returncode:
            error = f"exit code {process.returncode}: {_end(said)}"
    except subprocess.TimeoutExpired:
        _kill(process)
        output, said = process.communicate()
        error = f"ran past its {limit_s:.0f} s: {_end(said)}"
    finally:
        _kill(process)
    found = {
        "state": "failed" if error else "ok",
        "seconds": round(time.monotonic() - started, 1),
        "limit_s": round(limit_s),
        "figures": _figures(output),
    }
    return found | ({"error": error} if error else {})


def _kill(process: subprocess.Popen) -> None:
    """End a part and what it started, if it runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _figures(output: bytes) -> dict:
    """What a part printed last, as JSON; a part that did not end may have printed some."""
    for line in reversed(output.decode(errors="replace").splitlines()):
        if line.startswith("{"):
            with suppress(ValueError):  # it was ended in the middle of a line
                return json.loads(line)
    return {}


def _end(output: bytes) -> str:
    # room for a line of each failed test
    return output.decode(errors="replace")[-8000:].strip()


def page(day: dict) -> str:
    """A line a part, then what failed."""
    machine = day["machine"]
    lines = [
        f"GPU day, commit {day['commit'][:12]}{' and changes' if day['uncommitted'] else ''}",
        f"host: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB; "
        f"torch {day['versions']['torch']}, timm {day['versions']['timm']}",
        f"options: {day['config']}",
        f"{day['seconds']:.0f} s in all",
        "",
    ]
    for name, found in day["parts"].items():
        lines.append(line_of(name, found))
    for name, found in day["parts"].items():
        if "error" in found:
            lines += ["", f"{name}: {found['error']}"]
    return "\n".join(lines) + "\n"


def line_of(name: str, found: dict) -> str:
    """State, seconds, and what the part says of itself."""
    told = found.get("figures", {}).get("told", [])
    head = f"{name:16} {found['state']:8} {found['seconds']:6.1f} s"
    return "\n".join([head, *(f"    {line}" for line in told)])


def _told(options: argparse.Namespace) -> dict:
    given = {"device": options.device, "small": options.small, "minutes": options.minutes}
    return given | ({"only": options.only} if options.only else {})


if __name__ == "__main__":
    main()
