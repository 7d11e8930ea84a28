"""How many calls stand between `biomass train` and the first mapped row that a training step
reads."""

import sys
import tempfile
from pathlib import Path
from types import FrameType

from commands import biomass
from sweeps import config, write_store

ROOT = Path(__file__).parent.parent
PACKAGES = ("cli.py", "featurestore", "trainer")
MAPPED = "featurestore/read/sources/mapped.py:Mapped.patches"
"""The function that hands out rows of a mapped file."""
NAME = MAPPED.rpartition(".")[2]


def first_row() -> list[str]:
    """The project's calls from the command down to the first mapped row of patches inside a
    step."""
    found: list[list[str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == NAME and not found:
            calls = stack(frame)
            if calls[-1] == MAPPED and any("pooling" in call for call in calls):
                found.append(calls)

    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "features.h5")
        config(Path(folder), store, kind="density", epochs=1)
        sys.setprofile(note)
        try:
            biomass(
                "train", "--config", Path(folder) / "sweep.yaml", "--out", Path(folder) / "runs"
            )
        finally:
            sys.setprofile(None)
    return found[0] if found else []


def stack(frame: FrameType | None) -> list[str]:
    """The project's functions that are running, outermost first."""
    calls = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            calls.append(f"{path.relative_to(ROOT)}:{frame.f_code.co_qualname}")
        frame = frame.f_back
    return calls[::-1]


if __name__ == "__main__":
    print(*first_row(), sep="\n")
