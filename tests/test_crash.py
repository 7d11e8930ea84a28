"""Whatever kills the builder, or takes the power, nothing acknowledged is lost and the next build
ends at the same bytes.

Contract C1 to C3 of the store; ids name the faults: B01 a kill at a point, B02 at a random time,
B11 power loss.
"""

import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from crashfs import Disk, recorded
from test_store import flip_bit
from test_writer import digest
from writer_child import builders

from featurestore import FeatureStore, open_writer
from featurestore.disk import durable
from featurestore.manage.verify import repair
from featurestore.write.writer import StoreWriter

FORMATS = pytest.mark.parametrize("suffix", ["h5", "zarr"])
SYSTEM_CALLS = (
    "write",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "fdatasync",
    "fsync",
    "rename",
    "renameat",
    "renameat2",
    "ftruncate",
    "unlink",
    "unlinkat",
    "mkdir",
    "rmdir",
    "link",
)


@pytest.fixture(scope="module")
def build():
    """A function (path, **request) that builds in a child; see writer_child."""
    with builders() as run:
        yield run


@pytest.fixture
def memory_path():
    """A folder in memory where there is one: the kills test order, not the disk, and each build
    syncs some fifty times."""
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ) as folder:
        yield Path(folder)


def check_images(store: FeatureStore, images) -> None:
    """Each image is committed and every part of it is what was put."""
    for i in map(int, images):
        rows, truth = store.rows(i), tiny_rows(store.spec, i)
        for name in ("cls_VTD", "patches_VTPD", "pooled_VT5D", "stats_VS", "thumb_HW3"):
            assert np.array_equal(getattr(rows, name), getattr(truth, name)), (i, name)
        assert rows.facts == truth.facts
        assert store.catalog["path"][i] == f"train/ä {i}.jpg"


def check_survivor(path: Path, acknowledged) -> None:
    """What a crash left: no store and nothing acknowledged, or one where all that is sealed is
    right, all acknowledged sealed."""
    if not path.exists():
        assert not acknowledged
        return
    with FeatureStore.open(path) as store:
        assert set(acknowledged) <= set(store.sealed.tolist())
        check_images(store, store.sealed)
        assert not store.verify().faults


def check_kill(build, path: Path, clean: str, **kill) -> bool:
    """Build in a child killed as asked, then to the end; whether the kill came before the end."""
    path.parent.mkdir()
    died = build(path, **kill)
    assert died["status"] in (-9, 0)
    check_survivor(path, died["acknowledged"])
    assert build(path)["status"] == 0
    assert digest(path) == clean, kill
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, path.name + ".lock"]
    shutil.rmtree(path.parent)
    return died["status"] == -9


def check_kills(build, folder: Path, suffix: str, step: int) -> int:
    clean = folder / f"clean.{suffix}"
    n_calls = build(clean)["calls"]
    assert n_calls > 80
    points = range(1, n_calls + 1, step)
    assert all(
        check_kill(build, folder / "killed" / clean.name, digest(clean), kill_at=k) for k in points
    )
    return len(points)


@FORMATS
def test_B01_C2_killed_at_a_durable_call_it_resumes_to_the_same_bytes(memory_path, build, suffix):
    check_kills(build, memory_path, suffix, step=27 if suffix == "h5" else 81)


@pytest.mark.system
@FORMATS
def test_B01_C2_killed_at_every_durable_call_it_resumes_to_the_same_bytes(
    memory_path, build, suffix
):
    print(suffix, check_kills(build, memory_path, suffix, step=1), "durable calls")


@pytest.mark.system
@FORMATS
def test_B01_killed_again_while_it_clears_up_it_still_resumes(memory_path, build, suffix):
    """The second build dies among the litter of the first."""
    clean, path = memory_path / f"clean.{suffix}", memory_path / "killed" / f"clean.{suffix}"
    n_calls = build(clean)["calls"]
    for first in range(5, n_calls, n_calls // 6):
        for second in range(1, n_calls, n_calls // 30):
            path.parent.mkdir()
            build(path, kill_at=first)
            died = build(path, kill_at=second)
            check_survivor(path, died["acknowledged"])
            assert build(path)["status"] == 0 and digest(path) == digest(clean), (first, second)
            shutil.rmtree(path.parent)


def can_trace() -> bool:
    if not shutil.which("strace"):
        return False
    return (
        subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode == 0
    )


needs_strace = pytest.mark.skipif(
    not can_trace(), reason="needs strace, and leave to trace (ptrace)"
)


@pytest.mark.system
@needs_strace
@FORMATS
def test_B01_C2_killed_at_every_system_call_it_resumes_to_the_same_bytes(
    memory_path, build, suffix
):
    """Those of zarr-python and libhdf5 too: each call by name, the N-th of a thread, until no
    thread makes so many."""
    clean = memory_path / f"clean.{suffix}"
    build(clean)
    points = {}
    for call in SYSTEM_CALLS:
        path, n = memory_path / "killed" / clean.name, 1
        while check_kill(build, path, digest(clean), inject=f"{call}:signal=SIGKILL:when={n}"):
            n += 1
        points[call] = n - 1
    print(
        suffix, sum(points.values()), "system calls", {call: n for call, n in points.items() if n}
    )
    assert sum(points.values()) > 100


def kill_at_random(build, folder: Path, suffix: str, n_kills: int, n: int, seed: int) -> None:
    """Builds of n images, each killed over and over until one life is long enough; n_kills deaths
    in all."""
    clean, rng, deaths = folder / f"clean.{suffix}", np.random.default_rng(seed), 0
    build(folder / f"warm.{suffix}")  # the server is up
    began = time.monotonic()
    assert build(clean, n=n)["status"] == 0
    longest_s = (time.monotonic() - began) / 2
    while deaths < n_kills:
        path, acknowledged, status = folder / "killed" / clean.name, set(), -9
        path.parent.mkdir()
        while status == -9 and deaths < n_kills:
            died = build(path, n=n, kill_after_s=rng.uniform(0, longest_s))
            acknowledged.update(died["acknowledged"])
            status = died["status"]
            deaths += status == -9
            check_survivor(path, acknowledged)
        assert build(path, n=n)["status"] == 0
        assert digest(path) == digest(clean)
        shutil.rmtree(path.parent)


@FORMATS
def test_B02_C2_killed_at_random_times_nothing_acknowledged_is_lost(memory_path, build, suffix):
    kill_at_random(build, memory_path, suffix, n_kills=6, n=30, seed=0)


@pytest.mark.system
@FORMATS
@pytest.mark.parametrize("n", [20, 200])
def test_B02_C2_killed_at_200_random_times_nothing_acknowledged_is_lost(
    memory_path, build, suffix, n
):
    kill_at_random(build, memory_path, suffix, n_kills=200, n=n, seed=n)


# -- power loss


def build_noted(path: Path, acknowledge: Callable[[list[int]], None], late: bool = False) -> None:
    """Build in this process; images 2 and 3 share a commit group."""
    frame = tiny_frame(5)
    spec = tiny_spec(frame)
    with open_writer(path, spec, frame, reserve=1, appears_late=late) as writer:
        group = []
        for image in writer.pending():
            writer.put(image, tiny_rows(spec, image))
            group.append(image)
            if image != 2:
                writer.commit()
                acknowledge(group)
                group = []


def build_late(path: Path, acknowledge: Callable[[list[int]], None]) -> None:
    """As the store of a part is built."""
    build_noted(path, acknowledge, late=True)


def nothing(path: Path) -> None:
    """There is no store yet."""


def small_store(path: Path) -> None:
    """Two of the images are there, and room for the others."""
    write_tiny(path, n=2, reserve=4)


def damaged_store(path: Path) -> None:
    """Rot in a row of patches, and the first byte of an id is gone."""
    write_tiny(path, n=5, reserve=1)
    layout = FeatureStore.open(path).layout
    file, offset, _ = layout.extents["patches"].locate(3 * 3 + 1)
    flip_bit(file, offset)
    file, offset, _ = layout.extents["catalog/image_id"].locate(1)
    with open(file, "r+b") as handle:
        handle.seek(offset)
        handle.write(b"\0")


def repair_and_build(path: Path, acknowledge: Callable[[list[int]], None] = list) -> None:
    if path.exists():
        repair(path)
    build_noted(path, acknowledge)


def begun_store(path: Path) -> None:
    """Two images are sealed, three are not yet, and there is room for one more."""
    write_tiny(path, n=5, seal=2, reserve=1)


def drop_and_skip(path: Path, acknowledge: Callable[[list[int]], None]) -> None:
    """Images 2 and 4 are no longer asked for: the place at the catalog's end is free again. Image 3
    is skipped."""
    frame = tiny_frame(5).drop(index=[2, 4]).reset_index(drop=True)
    with (
        warnings.catch_warnings(action="ignore"),
        open_writer(path, tiny_spec(tiny_frame(5)), frame) as writer,
    ):
        writer.skip({3: "missing"})
    store = FeatureStore.open(path)
    assert store.n_images == 4 and store.catalog["status"].tolist() == [
        "ok",
        "ok",
        "dropped",
        "missing",
    ]
    acknowledge([0, 1])


def unseal_two(path: Path, acknowledge: Callable[[list[int]], None]) -> None:
    """Two images are declared absent, one of which lost its id's first byte; then they are made
    again."""
    with FeatureStore.open(path) as store:
        StoreWriter(store.layout, store).unseal([1, 3])
    assert not {1, 3} & set(FeatureStore.open(path).sealed.tolist())
    build_noted(path, acknowledge)


KEPT = (0.5, 0, 0.9, 0.1, 1)  # share of what is in doubt that is there
SCENARIOS = {
    "build": (nothing, build_noted),
    "part": (nothing, build_late),
    "grow": (small_store, build_noted),
    "repair": (damaged_store, repair_and_build),
    "drop": (begun_store, drop_and_skip),
    "unseal": (damaged_store, unseal_two),
}


def lose_power(
    folder: Path, suffix: str, scenario: str, monkeypatch, every: int, choices: int, seed: int = 0
) -> int:
    """Play a build again up to each `every`-th operation, draw disks that may be left, check each
    and build on it; how many."""
    prepare, act = SCENARIOS[scenario]
    home = folder / "recorded"
    home.mkdir()
    path = home / f"features.{suffix}"
    prepare(path)
    with recorded(home, monkeypatch) as recorder:
        begin = len(recorder.operations)
        act(path, recorder.mark)
    clean, rng, n = digest(path), np.random.default_rng(seed), 0
    for end in range(begin + seed % every, len(recorder.operations) + 1, every):
        disk = Disk(recorder.operations[:end])
        for _ in range(choices):
            check_disk(
                disk, folder / "crashed", path.name, act, clean, rng, KEPT[n % len(KEPT)], scenario
            )
            n += 1
    return n


def check_disk(
    disk: Disk, into: Path, name: str, act, clean: str, rng, kept: float, scenario: str
) -> None:
    disk.crash(into, rng, kept)
    if scenario in ("repair", "unseal"):  # what was rotten before the crash may still be
        with FeatureStore.open(into / name) as store:
            check_images(store, set(store.sealed.tolist()) - {3} | disk.acknowledged)
    else:
        check_survivor(into / name, disk.acknowledged)
    act(into / name, list)
    assert digest(into / name) == clean
    shutil.rmtree(into)


def test_C3_new_folders_for_a_store_are_durable_before_it_is(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino) or fsync(fd))
    durable.check_writable(tmp_path / "a" / "b")
    assert synced == {tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino}


@pytest.mark.parametrize("scenario", SCENARIOS)
@FORMATS
def test_B11_C3_power_loss_leaves_no_store_or_one_whose_seals_are_true(
    memory_path, monkeypatch, suffix, scenario
):
    # a drop takes some ten operations
    every = 2 if scenario == "drop" else 17 if suffix == "h5" else 26
    assert lose_power(memory_path, suffix, scenario, monkeypatch, every, choices=2) > 5


@pytest.mark.system
@pytest.mark.parametrize("scenario", SCENARIOS)
@FORMATS
def test_B11_C3_power_loss_at_every_operation(memory_path, monkeypatch, suffix, scenario):
    print(
        suffix,
        scenario,
        lose_power(memory_path, suffix, scenario, monkeypatch, every=1, choices=5),
        "disks",
    )


@pytest.mark.parametrize("mistake", ["rows unsynced", "name before content", "name unsynced"])
def test_B11_the_replay_finds_a_sync_that_is_missing(memory_path, monkeypatch, mistake):
    """Were it not for the mistake's sync, some disk would break the contract: so the replay can
    tell."""
    if mistake == "rows unsynced":
        monkeypatch.setattr("featurestore.write.writer.StoreWriter._sync", lambda self: None)
    else:
        monkeypatch.setattr(
            durable, "sync_folder" if mistake == "name unsynced" else "sync_tree", lambda path: None
        )
    with pytest.raises(Exception):  # noqa: B017  no one kind: a wrong row, an unreadable file, an acknowledged image gone
        # many files: an HDF5 sync syncs it all
        lose_power(memory_path, "zarr", "build", monkeypatch, every=40, choices=2)
