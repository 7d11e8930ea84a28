"""Parts and their merge, killed anywhere: the next call ends at the same bytes, without litter."""

import shutil
from pathlib import Path

import parts_child
import pytest
from conftest import tiny_frame, tiny_spec
from test_crash import SYSTEM_CALLS, needs_strace
from test_writer import digest
from writer_child import builders

from featurestore import FeatureStore

pytestmark = pytest.mark.system
CALLS = (*SYSTEM_CALLS, "linkat", "mkdirat")


@pytest.fixture(scope="module")
def child():
    """A function (path, **request) that builds a part or merges in a child; see parts_child."""
    with builders(parts_child.__file__) as run:
        yield run


@pytest.fixture
def planned(memory_path, monkeypatch) -> Path:
    """The plan of two parts."""
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)
    monkeypatch.setattr("featurestore.format.zarr.CHUNK_BYTES", 200)
    plan = parts_child.plan_tiny(memory_path / "planned", monkeypatch)
    assert (plan.bounds, plan.shard_images) == ([0, 2, 5], 2)
    return plan.folder


@pytest.fixture
def built(planned, memory_path, child) -> Path:
    """The plan with both parts."""
    folder = Path(shutil.copytree(planned, memory_path / "built"))
    for part in (0, 1):
        assert child(folder, act="part", part=part)["status"] == 0
    return folder


def one_store(path: Path, folder: Path) -> Path:
    """The store that no parts were made for."""
    spec = FeatureStore.open(folder / "parts/00000/features.zarr").spec
    assert spec.tokens == tiny_spec(tiny_frame(parts_child.N_IMAGES)).tokens
    return parts_child.whole_store(path, spec)


def part_survives(child, planned: Path, clean: str, **kill) -> bool:
    """Build a part in a child killed as asked, then again; whether the kill came before its end."""
    folder = Path(shutil.copytree(planned, planned.with_name("killed")))
    died = child(folder, act="part", part=1, **kill)
    assert died["status"] in (-9, 0), died
    store = folder / "parts/00001/features.zarr"
    if store.parent.exists():
        assert digest(store) == clean and (store.parent / "receipt.json").exists()

    again = child(folder, act="part", part=1)
    assert again["status"] == 0 and "error" not in again, (kill, again)
    assert digest(store) == clean, kill
    assert sorted(path.name for path in store.parent.iterdir()) == ["features.zarr", "receipt.json"]
    assert list((folder / "attempts").iterdir()) == [], kill
    shutil.rmtree(folder)
    return died["status"] == -9


def merge_survives(child, built: Path, clean: str, suffix: str, **kill) -> bool:
    """Merge and remove the parts in a child killed as asked, then again."""
    folder = Path(shutil.copytree(built, built.with_name("P")))
    out = built.with_name("merged") / f"features.{suffix}"
    out.parent.mkdir()
    died = child(out, act="merge", plan=str(folder), remove=True, **kill)
    assert died["status"] in (-9, 0), died
    if out.exists() and suffix == "zarr":
        assert digest(out) == clean

    again = child(out, act="merge", plan=str(folder), remove=True)
    assert again["status"] == 0 and "error" not in again, (kill, again)
    assert digest(out) == clean, kill
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f"{out.name}.lock"]
    assert not (folder / "parts").exists() and (folder / "plan.json").exists()
    shutil.rmtree(folder)
    shutil.rmtree(out.parent)
    return died["status"] == -9


def test_W01_a_part_killed_at_durable_calls_ends_in_the_same_bytes(child, planned, built):
    clean = digest(built / "parts/00001/features.zarr")
    folder = Path(shutil.copytree(planned, planned.with_name("counted")))
    n_calls = child(folder, act="part", part=1)["calls"]
    assert n_calls > 80
    for k in range(1, n_calls + 1, 5):
        assert part_survives(child, planned, clean, kill_at=k)


@needs_strace
def test_W01_a_part_killed_at_every_system_call_ends_in_the_same_bytes(child, planned, built):
    clean = digest(built / "parts/00001/features.zarr")
    points = {}
    for call in CALLS:
        n = 1
        while part_survives(child, planned, clean, inject=f"{call}:signal=SIGKILL:when={n}"):
            n += 1
        points[call] = n - 1
    print(sum(points.values()), "system calls", {call: n for call, n in points.items() if n})
    assert sum(points.values()) > 100


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_W07_a_merge_killed_at_durable_calls_ends_in_the_same_bytes(
    child,
    built,
    memory_path,
    suffix,
):
    clean = digest(one_store(memory_path / f"whole.{suffix}", built))
    folder = Path(shutil.copytree(built, memory_path / "counted"))
    out = memory_path / f"counted.{suffix}"
    n_calls = child(out, act="merge", plan=str(folder), remove=True)["calls"]
    assert n_calls > 60
    for k in range(1, n_calls + 1, 5):
        assert merge_survives(child, built, clean, suffix, kill_at=k)


@needs_strace
@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_W07_a_merge_killed_at_every_system_call_ends_in_the_same_bytes(
    child,
    built,
    memory_path,
    suffix,
):
    clean = digest(one_store(memory_path / f"whole.{suffix}", built))
    points = {}
    for call in CALLS:
        n = 1
        kill = {"inject": f"{call}:signal=SIGKILL:when={n}"}
        while merge_survives(child, built, clean, suffix, **kill):
            n += 1
            kill = {"inject": f"{call}:signal=SIGKILL:when={n}"}
        points[call] = n - 1
    print(sum(points.values()), "system calls", {call: n for call, n in points.items() if n})
    assert sum(points.values()) > 60
