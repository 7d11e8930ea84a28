"""How large the parts of gpu_day.py are, and where they run; what the device is, and the tests.

`told` of a part are the lines that the page shows.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from _bench import ROOT


@dataclass(frozen=True)
class Built:
    """What a part builds: a backbone over some photographs."""

    backbone: str
    image_size: int
    photographs: int
    views: int


@dataclass(frozen=True)
class Size:
    """How large the parts are."""

    images: int
    grid: int
    width: int
    epochs: int
    product: int
    """Side of the matrices by which the device's peak is measured."""
    copied_bytes: int
    photograph: tuple[int, int]
    builds: dict[str, Built]
    predicted: Built


DINO = "vit_{}_patch16_dinov3"
FULL = Size(
    images=357,
    grid=60,
    width=1280,
    epochs=200,
    product=8192,
    copied_bytes=1 << 30,
    photograph=(2000, 1000),
    builds={
        "small": Built(DINO.format("small"), 224, 1024, 4),
        "huge": Built(DINO.format("huge_plus"), 960, 48, 4),
    },
    predicted=Built(DINO.format("small"), 448, 128, 4),
)
SMALL = Size(
    images=30,
    grid=4,
    width=32,
    epochs=2,
    product=128,
    copied_bytes=1 << 20,
    photograph=(200, 100),
    builds={
        "small": Built(DINO.format("demo"), 32, 6, 2),
        "huge": Built(DINO.format("demo"), 64, 4, 2),
    },
    predicted=Built(DINO.format("demo"), 32, 4, 2),
)


@dataclass(frozen=True)
class Day:
    """Where a part runs, in which size, and for how long it may."""

    device: str
    size: Size
    folder: Path
    """Shared by all parts."""
    seconds: float

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    def wait(self) -> None:
        """For all that the device was given."""
        if self.place.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, work: Callable[[], object], seconds: float = 0.5) -> float:
        """Times a second that the device does some work, warm."""
        work()
        work()
        self.wait()
        n = 0
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(3):
                work()
            self.wait()
            n += 3
        return n / (time.perf_counter() - start)


def machine(day: Day) -> dict:
    """What the device is, and its ceilings as measured here."""
    found: dict = {"device": day.device}
    if day.place.type == "cuda":
        about = torch.cuda.get_device_properties(day.place)
        found |= {
            "device": about.name,
            "memory_gb": round(about.total_memory / 1e9, 1),
            "capability": [about.major, about.minor],
            "cuda": torch.version.cuda,
        }
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    found["tflops"] = {str(dtype).removeprefix("torch."): peak(day, dtype) for dtype in dtypes}

    host = torch.empty(day.size.copied_bytes, dtype=torch.uint8)
    if day.place.type == "cuda":
        host = host.pin_memory()
    there, other = (torch.empty_like(host, device=day.place) for _ in range(2))
    gb = day.size.copied_bytes / 1e9
    copies = {
        "on the device": lambda: other.copy_(there),
        "to the device": lambda: there.copy_(host, non_blocking=True),
        "to the host": lambda: host.copy_(there, non_blocking=True),
    }
    found["gb_s"] = {name: round(gb * day.rate(copy), 1) for name, copy in copies.items()}
    rates = ", ".join(f"{name} {rate:.4g}" for name, rate in found["tflops"].items())
    moved = ", ".join(f"{name} {rate:.4g}" for name, rate in found["gb_s"].items())
    told = [f"{found['device']}", f"products, TFLOP/s: {rates}", f"copies, GB/s: {moved}"]
    return {"told": told, **found}


def peak(day: Day, dtype: torch.dtype) -> float:
    """TFLOP/s of products of large matrices."""
    n = day.size.product
    a, b = (torch.randn(n, n, device=day.place).to(dtype) for _ in range(2))
    return round(2 * n**3 * day.rate(lambda: a @ b) / 1e12, 3)


def tests(day: Day) -> dict:
    """The tests marked `gpu`, by pytest."""
    marked = sorted(
        path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text()
    )
    names = [str(path.relative_to(ROOT)) for path in marked]
    # a line for each test, at once: a device that hangs ends this part without a summary
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-vv", "-rfE", "--tb=short"]
    # a warning of packages newer than ours says nothing of the device
    command += ["-W", "default", "-p", "no:cacheprovider", *names]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        last = ""
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    if process.returncode:
        raise SystemExit(f"pytest ended with {process.returncode}: {last}")
    return {"told": [last], "files": names}
