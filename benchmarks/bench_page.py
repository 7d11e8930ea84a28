"""How much does the page ask for, and how long until it is there? Over a connection as of ssh, too.

Chromium opens each page of a demo's store, sweeps and predictions: cold (nothing kept) and warm
(what it kept from the visit before), on loopback and with a delay of 100 ms a request. Requests and
bytes are exact; milliseconds are medians over rounds. `--before CHECKOUT` has the server of another
checkout take turns. Needs Debian's chromium and npm.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _bench import ROOT, context, finish, spread, work_folder

LATENCIES_MS = (0, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="folder of a `biomass demo`; else one is made")
    parser.add_argument("--before", type=Path, help="another checkout, whose page takes turns")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where all goes for the time being")
    options = parser.parse_args()
    with work_folder(options.dir) as folder:
        modules = installed(folder / "browser")
        demo = options.demo or folder / "demo"
        if options.demo is None:
            subprocess.run(
                [sys.executable, "-m", "cli", "demo", "--out", demo], cwd=ROOT, check=True
            )
        finish(measure(options, demo, modules))


def installed(folder: Path) -> Path:
    """What drives Chromium, as the browser's tests pin it."""
    shutil.copytree(ROOT / "tests/browser", folder)
    install = ["npm", "ci", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, check=True, capture_output=True)
    return folder


def measure(options: argparse.Namespace, demo: Path, modules: Path) -> dict:
    checkouts = {"now": ROOT}
    if options.before:
        checkouts = {"before": options.before.resolve()} | checkouts
    seen: dict[tuple, list[dict]] = {}
    for _ in range(options.rounds):
        for name, checkout in checkouts.items():
            with serving(checkout, demo) as url:
                for latency in LATENCIES_MS:
                    for page, caches in visited(modules, url, latency).items():
                        for cache, found in caches.items():
                            seen.setdefault((name, page, cache, latency), []).append(found)

    rows = []
    for (name, page, cache, latency), found in seen.items():
        row = {"checkout": name, "page": page, "cache": cache, "latency_ms": latency}
        row |= {what: spread(each[what] for each in found) for what in found[0]}
        rows.append(row)
        told = [row[what]["median"] for what in ("requests", "kilobytes", "milliseconds")]
        told = "{:5.0f} requests {:7.0f} kB {:6.0f} ms".format(*told)
        print(f"{name:6} {page:12} {cache:4} {latency:3} ms {told}")
    return {"pages": rows, **context({"rounds": options.rounds}, ["starlette", "uvicorn"])}


@contextmanager
def serving(checkout: Path, demo: Path) -> Iterator[str]:
    """A server of all that the demo made; its address with the token."""
    sweeps = [word for each in sorted((demo / "runs").iterdir()) for word in ("--sweep", each)]
    command = [
        *(sys.executable, "-m", "cli", "store", "serve", demo / "features.h5", *sweeps),
        *("--predictions", demo / "predictions.csv", "--data", demo / "data"),
        *("--port", "0", "--json"),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=checkout, text=True, **pipes) as server:
        try:
            told = json.loads(server.stdout.readline())
            yield f"{told['url']}?token={told['token']}"
        finally:
            server.terminate()


def visited(modules: Path, url: str, latency: int) -> dict[str, dict[str, dict[str, float]]]:
    script = Path(__file__).with_name("page.mjs")
    ran = subprocess.run(
        ["node", script, modules, url, str(latency)], check=True, capture_output=True, text=True
    )
    return json.loads(ran.stdout)


if __name__ == "__main__":
    main()
