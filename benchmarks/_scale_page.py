"""What the page of a store of many photographs asks for: seconds, bytes, memory, and who waits."""

import gzip
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from _bench import ROOT

from featurestore.photos.targets import CSIRO

TIMES = 3  # that an answer is asked for again
PAUSE_S = 0.05  # between two questions after health


@dataclass(frozen=True)
class Server:
    port: int
    token: str
    pid: int

    def ask(self, address: str) -> tuple[float, bytes, int]:
        """Seconds, body as text, and bytes on the wire."""
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Authorization": f"Bearer {self.token}", "Accept-Encoding": "gzip"}
        connection.request("GET", address, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - start
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{address}: {answer.status} {body[:300]!r}")
        is_zipped = answer.headers.get("Content-Encoding") == "gzip"
        return seconds, gzip.decompress(body) if is_zipped else body, len(body)

    @property
    def memory_gb(self) -> float:
        """The greatest memory until now of the server and of its worker together."""
        return sum(map(_most_gb, self._pids()))

    @property
    def cpu_s(self) -> float:
        """Seconds of the processor until now, of both."""
        return sum(map(_cpu_s, self._pids()))

    def _pids(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]


def _most_gb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def _cpu_s(pid: int) -> float:
    _, fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(words: list[str], folder: Path) -> Iterator[Server]:
    """`store serve` of this checkout on a free port."""
    command = [sys.executable, "-m", "cli", "store", "serve", *words, "--port", "0", "--json"]
    with open(folder / "serve.log", "w") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        told = json.loads(process.stdout.readline())
        yield Server(urlsplit(told["url"]).port, told["token"], process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def measure_page(store: Path, sweep: Path, folder: Path) -> dict:
    """Each address that pages ask for: seconds at first and again, bytes, and its table's rest."""
    told = {}
    with serving([str(store), "--sweep", str(sweep)], folder) as server:
        told["start"] = {"memory_gb": round(server.memory_gb, 2)}
        for name, address in addresses(server, store.stem, sweep.name).items():
            told[name] = measured(server, address)
            print(f"{name:28} {json.dumps(told[name])}", flush=True)
    return told


def measured(server: Server, address: str) -> dict:
    """Of one address, all parts of its table one after another, as the page asks for them."""
    waits: list[float] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(PAUSE_S):
            waits.append(server.ask("/healthz")[0])

    health = threading.Thread(target=look)
    health.start()
    cpu_s = [server.cpu_s]
    try:
        first_s, sizes = _all_parts(server, address)
    finally:
        is_over.set()
        health.join()
    cpu_s.append(server.cpu_s)
    again_s = [_all_parts(server, address)[0] for _ in range(TIMES)]
    cpu_s.append(server.cpu_s)
    return {
        "cold_s": round(first_s, 3),
        "cold_cpu_s": round(cpu_s[1] - cpu_s[0], 2),
        "warm_s": round(statistics.median(again_s), 3),
        "warm_cpu_s": round((cpu_s[2] - cpu_s[1]) / TIMES, 2),
        "parts": len(sizes),
        "mb": round(sum(text for text, _ in sizes) / 1e6, 3),
        "sent_mb": round(sum(sent for _, sent in sizes) / 1e6, 3),
        "memory_gb": round(server.memory_gb, 2),
        "healthz_ms": round(1000 * max(waits, default=0)),
    }


def _all_parts(server: Server, address: str) -> tuple[float, list[tuple[int, int]]]:
    seconds, sizes = 0.0, []
    following = address
    while following:
        took_s, body, n_sent = server.ask(following)
        seconds += took_s
        sizes.append((len(body), n_sent))
        found = json.loads(body) if body[:1] == b"{" else {}
        is_whole = "limit=100000" in address  # of others the page shows the first part
        following = found.get("next") if "rows" in found and is_whole else None
    return seconds, sizes


def addresses(server: Server, store: str, sweep: str) -> dict[str, str]:
    """What the views ask for, by what they show."""
    s, w = f"/v1/stores/{store}", f"/v1/sweeps/{sweep}"
    about = json.loads(server.ask("/v1/stores")[1])["stores"][0]
    first = about["first"]
    n_sealed = about["n_sealed"]
    every = f"&every={-(-n_sealed // 20_000)}" if n_sealed > 100_000 else ""  # as map.js asks
    one = f"{s}/images/{first}"
    of_sweep = f"sweep={sweep}"
    a, b = (f"{w}/runs/{name}" for name in ("001_scale", "ridge"))
    beside = f"{a}/beside/{sweep}/{Path(b).name}"
    target = CSIRO.foremost.name
    # of more than 100,000 points 20,000, as run.js and compare.js ask; five targets a photograph
    of_five = f"&every={-(-5 * n_sealed // 20_000)}" if 5 * n_sealed > 100_000 else ""
    of_run = "averaged=1"
    columns = "image_id%2Csite%2Cfold%2Ctarget%2Ctrue%2Cpredicted"
    of_both = "image_id%2Ctrue%2Cpredicted_a%2Cpredicted_b%2Cerror_a%2Cerror_b"
    of_target = f"{beside}/photographs.json?target={target}&columns={of_both}"
    # what run_colours.js asks of more than 100,000 photographs, and of fewer
    of_map = f"&store={store}{every}&columns=image_id%2Cerror_a%2Cerror_b" if every else ""
    return {
        "list of stores": "/v1/stores",
        "overview": f"{s}/overview.json",
        "statistics": f"{s}/stats.json",
        "odd": f"{s}/odd.json?limit=200",
        "filter's choices": f"{s}/filters.json?{of_sweep}",
        "photographs, first": f"{s}/photographs.json?{of_sweep}&limit=60",
        "photographs by error": f"{s}/photographs.json?{of_sweep}&order=-off&limit=60",
        "photographs of a state": f"{s}/photographs.json?{of_sweep}&in.State=Tas&limit=60",
        "card": f"{one}?{of_sweep}",
        "map": f"{s}/map.json?method=pca&view=plain{every}&limit=100000",
        "map's colours": f"{s}/catalog.json?columns=position%2CState{every}&limit=100000",
        "sweep": w,
        "leaderboard": f"{w}/leaderboard.json",
        "run's curves": f"{a}/curves.json",
        "run's errors": f"{a}/errors.json?{of_run}",
        "run's points": f"{a}/oof.json?{of_run}&columns={columns}{of_five}&limit=100000",
        "run's errors of a state": f"{a}/errors.json?{of_run}&store={store}&in.State=Tas",
        "compare, errors": f"{beside}/errors.json?target={target}",
        "compare, points": f"{of_target}{every}&limit=100000",
        "compare, most apart": f"{of_target}&apart=1&limit=300",
        "map by two": f"{beside}/photographs.json?target={target}{of_map}&limit=100000",
        "compare, scores": f"{beside}/scores.json",
    }
