"""What a command does not need it does not import: each runs in a process of its own."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import config, write_store

from featurestore.disk.imports import quick_imports

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
from cli import main
main(sys.argv[1:], standalone_mode=False)
print(*sys.modules)
"""


def imported(*arguments: str | Path) -> set[str]:
    """Names of the modules that are there when a command has ended."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("start") / "store.h5")


@pytest.mark.parametrize("command", ["info", "stats"])
def test_a_look_at_a_store_needs_no_torch_and_no_pandas(store, command):
    there = imported("store", command, store)
    assert "h5py" in there
    assert not there & {"torch", "pandas", "PIL", "scipy", "zarr"}


def test_the_plan_of_a_sweep_needs_torch_and_no_more(store, tmp_path):
    """It trains steps of a bank and fits ridge to time them, so a sweep begins as quickly."""
    config(tmp_path, store)
    there = imported("train", "--plan", "--config", tmp_path / "sweep.yaml")
    assert {"torch", "pandas"} <= there
    others = {"timm", "torchvision", "matplotlib", "sklearn", "scipy.stats", "scipy.optimize"}
    assert not there & others
    # torch's compiler, which torch.optim's classes would import, and what it imports
    assert not there & {"torch._dynamo", "torch._inductor", "sympy", "triton"}


@pytest.mark.parametrize(
    "mistake",
    [
        ["train"],
        ["train", "--resume", ".", "--passes", "2"],
        ["predict", "--data", ".", "--only-folds", "x"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_options_does_not_wait_for_torch(mistake):
    program = PROGRAM.replace("main(sys", "try:\n    main(sys").replace(
        "print(*", "except SystemExit as end:\n    print(end.code, file=sys.stderr)\nprint(*"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *mistake],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.startswith("error: ") and done.stderr.splitlines()[-1] == "2"
    assert "torch" not in set(done.stdout.splitlines()[-1].split())


def test_cycles_are_collected_again_after_imports():
    with quick_imports():
        assert not gc.isenabled()
        with quick_imports():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
