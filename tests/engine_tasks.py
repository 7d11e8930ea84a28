"""Tasks for tests of engines: what a worker's process may do."""

import os
import signal
import time
from pathlib import Path

from featurestore.errors import MismatchError


def tell(word: str, device: str) -> list:
    print("no answer")
    return [word, device, os.getpid(), os.environ.get("OMP_NUM_THREADS")]


def die(folder: str, n_deaths: int, device: str) -> str:
    """Be killed so many times, then finish."""
    deaths = Path(folder) / "deaths"
    before = len(deaths.read_text()) if deaths.exists() else 0
    if before < n_deaths:
        deaths.write_text("x" * (before + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return f"after {before} deaths"


def crash(device: str) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def refuse(device: str) -> None:
    raise MismatchError("weights differ")


def wait(folder: str, name: str, device: str) -> None:
    """Say that it has begun, wait for ever, and say how it ended."""
    begun = Path(folder) / f"{name}.{os.getpid()}"
    begun.touch()
    try:
        while True:
            time.sleep(0.1)  # Ray's cancelling ends no sleep
    finally:
        begun.rename(begun.with_suffix(".ended"))


def kill_driver(device: str) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def outlive(folder: str, name: str, device: str) -> str:
    """Wait for ever where it is the first to begin; else say who came before."""
    first = Path(folder) / f"{name}.first"
    if first.exists():
        return "after another"
    first.write_text(str(os.getpid()))
    time.sleep(1000)
    return "not reached"
