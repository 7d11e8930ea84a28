"""What a command does not need it does not import: each runs in a process of its own."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from commands import biomass
from sweeps import config, write_store

from featurestore.disk.imports import quick_imports
from featurestore.photos.view_names import VIEW_NAMES

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


MISTAKES = [
    "train",
    "train --resume . --passes 2",
    "train --config setup.cfg --device gpu",
    "train --config setup.cfg --fold first",
    "train --config setup.cfg --store none.h5",
    "train --resume tests",
    "demo --out tests",
    "predict --data . --only-folds x",
    "predict --data . --tta 3",
    "predict --data . --deadline soon",
    "predict --data . --interval 2",
    "predict --data . --device cuda0",
    "predict --data . --part 3/2",
    "predict --data . --oof --average median",
    "predict --data . --run . --sweep .",
    "predict --data . --backbone-weights none.safetensors",
    "bundle none --out new",
    "bundle none --out tests",
    "bundle none --out new --only-folds x",
    "bundle none --out new --backbone-weights setup.cfg",
    "bundle check tests",
    "store build",
    "store build --data . --out new.npz",
    "store build --data . --out new.h5 --views 0",
    "store build --data . --out new.h5 --image-size 0",
    "store build --data . --out new.h5 --crop thirds",
    "store build --data . --out new.h5 --device gpu",
    "store build --data . --out new.h5 --weights none.safetensors",
    "store extend none.h5 --out new.h5 --views 0",
    "store convert none.h5 --out new.npz",
    "store convert none.h5 --out new.h5 --layers x",
    "store merge none.h5 --out new.npz",
    "store verify none.h5 --repair --data .",
    "weights check setup.cfg --image-size 4",
]
TRIED = """
import sys
from cli import main
for line in sys.stdin:
    try:
        main(line.split(), standalone_mode=False)
    except SystemExit as end:
        assert end.code in (2, 3), line
    assert "torch" not in sys.modules, line
"""


def test_a_mistake_in_the_options_does_not_wait_for_torch():
    """One after another in one process: none of them imports it."""
    done = subprocess.run(
        [sys.executable, "-c", TRIED],
        input="\n".join(MISTAKES),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(MISTAKES) and all(line.startswith("error: ") for line in said)


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("--image-size", "0", "--image-size: found 0, expected greater than or equal to 1"),
        (
            "--views",
            "0",
            f"--views: '0' unknown; give a number from 1 to {len(VIEW_NAMES)} or some of",
        ),
        ("--crop", "thirds", "--crop: crop 'thirds' is unknown; use squash"),
        ("--device", "gpu", "--device: found 'gpu', expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_an_option_is_blamed_for_its_mistake_and_a_file_for_its_own(tmp_path, option, value, said):
    build = ["store", "build", "--data", tmp_path, "--out", tmp_path / "f.h5"]
    assert f"error: {said}" in biomass(*build, option, value, code=3).stderr
    key = option.removeprefix("--").replace("-", "_")
    (tmp_path / "build.yaml").write_text(f"{key}: {value}\n")
    by_file = biomass(*build, "--config", tmp_path / "build.yaml", code=3).stderr
    assert f"error: {tmp_path / 'build.yaml'}: {said.replace(option, key)}" in by_file


def test_a_fold_that_is_not_there_is_the_options_mistake(store, tmp_path):
    config(tmp_path, store)
    train = ["train", "--config", tmp_path / "sweep.yaml", "--fold", "9"]
    assert biomass(*train, code=3).stderr.startswith("error: --fold 9: fold 9 does not exist")
    (tmp_path / "sweep.yaml").write_text("head: {}\n")
    assert biomass(*train, code=3).stderr.startswith(f"error: {tmp_path / 'sweep.yaml'}: ")


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
