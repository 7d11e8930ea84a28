"""Usable memory and CPUs: read from folder trees as kernels lay them out, and asked wherever much
is taken."""

import os
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from commands import TIMM, TINY, biomass
from served import write_served

from featurestore.disk.threads import usable_threads
from featurestore.disk.usable import Memory, check_memory, usable_cpus, usable_memory
from featurestore.errors import MemoryShortError
from service.answers.computations import Computations
from service.library import Library
from service.relay import Relay

MANY = 1 << 40
NONE_V1 = str((1 << 63) - 4096)
V1 = "9:name=systemd:/a/b\n4:cpu,memory:/a/b\n0::/\n"
V2 = "0::/a/b\n"
CORES = len(os.sched_getaffinity(0))


def kernel(
    tmp_path: Path,
    cgroup: str,
    mounts: dict[str, str],
    files: dict[str, str],
    available_kb: int = MANY,
) -> Path:
    """A /proc whose mounts of cgroups lie in tmp_path. mounts : by folder "ROOT KIND OPTIONS";
    files : below tmp_path."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        f"MemTotal: 9 kB\nMemFree: 5 kB\nMemAvailable: {available_kb} kB\n"
    )
    (proc / "self/cgroup").write_text(cgroup)
    lines = []
    for folder, text in mounts.items():
        root, kind, options = text.split()
        lines.append(
            f"31 23 0:28 {root} {tmp_path / folder} rw shared:9 - {kind} cgroup {options}\n"
        )
    (proc / "self/mountinfo").write_text("".join(lines))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    return proc


MEMORY = {
    "v2 own": (V2, "/", {"a/b/memory.max": "500", "a/memory.max": "700"}, 500),
    "v2 parent": (
        V2,
        "/",
        {"a/b/memory.max": "max", "a/memory.max": "700", "memory.max": "800"},
        700,
    ),
    "v2 max": (V2, "/", {"a/b/memory.max": "max"}, None),
    "v2 no controller": (V2, "/", {"a/b/cgroup.procs": "1"}, None),
    "v2 mount is the own group": (V2, "/a/b", {"memory.max": "300"}, 300),
    "v2 mount of another group": (
        V2,
        "/elsewhere",
        {"memory.max": "300", "a/b/memory.max": "1"},
        300,
    ),
    "v2 path not below the mount": (V2, "/", {"memory.max": "300", "a/memory.max": "1"}, 300),
    "v2 above the namespace": (
        "0::/../a/b\n",
        "/",
        {"memory.max": "300", "../a/b/memory.max": "1"},
        300,
    ),
    "v1 parent": (
        V1,
        "/",
        {"a/b/memory.limit_in_bytes": NONE_V1, "a/memory.limit_in_bytes": "600"},
        600,
    ),
    "v1 none": (V1, "/", {"a/b/memory.limit_in_bytes": NONE_V1}, None),
    "v1 container": (
        V1,
        "/a",
        {"b/memory.limit_in_bytes": "400", "memory.limit_in_bytes": NONE_V1},
        400,
    ),
    "v1 path not below the mount": (V1, "/", {"memory.limit_in_bytes": "400"}, 400),
}


@pytest.mark.parametrize("cgroup, root, files, expected", MEMORY.values(), ids=MEMORY)
def test_L5_the_least_limit_from_the_own_cgroup_up_to_the_mount(
    cgroup, root, files, expected, tmp_path
):
    kind = "cgroup rw,cpu,memory" if cgroup == V1 else "cgroup2 rw"
    below = {f"cg/{name}": text for name, text in files.items()}
    # what lies above the mount is of nobody
    proc = kernel(
        tmp_path,
        cgroup,
        {"cg": f"{root} {kind}"},
        {"memory.max": "1", "memory.limit_in_bytes": "1"} | below,
    )
    assert usable_memory(proc).n_bytes == (expected or 1024 * MANY)


def test_L5_anonymous_memory_and_tmpfs_are_taken_from_the_limit_they_count_against_and_page_cache_is_not(
    tmp_path,
):
    inner = {
        "cg/a/b/memory.max": "1000",
        "cg/a/b/memory.stat": "anon 300\nfile 690\nshmem 50\nsock 7",
    }
    outer = {"cg/a/memory.max": "2000", "cg/a/memory.stat": "anon 1400\nfile 600\nshmem 50"}
    proc = kernel(tmp_path, V2, {"cg": "/ cgroup2 rw"}, inner | outer)
    assert usable_memory(proc).n_bytes == 2000 - 1450
    assert f"in {tmp_path}/cg/a, " in str(usable_memory(proc))


def test_L5_of_v1_the_sums_over_all_cgroups_below_count(tmp_path):
    stat = (
        "cache 90\nrss 1\nshmem 1\nhierarchical_memory_limit 1000\ntotal_cache 700\ntotal_rss "
        "200\ntotal_shmem 40"
    )
    files = {"cg/a/b/memory.limit_in_bytes": "1000", "cg/a/b/memory.stat": stat}
    assert (
        usable_memory(kernel(tmp_path, V1, {"cg": "/ cgroup rw,memory"}, files)).n_bytes
        == 1000 - 240
    )


def test_L5_more_taken_than_the_limit_leaves_nothing(tmp_path):
    files = {
        "cg/memory.max": "1000",
        "cg/memory.stat": "anon 1100",
    }  # the limit was lowered meanwhile
    assert usable_memory(kernel(tmp_path, "0::/\n", {"cg": "/ cgroup2 rw"}, files)).n_bytes == 0


def test_L5_what_the_machine_has_available_is_a_bound_too(tmp_path):
    proc = kernel(
        tmp_path, "0::/\n", {"cg": "/ cgroup2 rw"}, {"cg/memory.max": "4096"}, available_kb=3
    )
    assert usable_memory(proc) == Memory(3072, "available by /proc/meminfo")


def test_L5_hybrid_mounts_each_answer_for_their_controllers(tmp_path):
    mounts = {
        "memory": "/ cgroup rw,memory",
        "cpu": "/ cgroup rw,cpu,cpuacct",
        "unified": "/ cgroup2 rw",
    }
    files = {
        "memory/a/b/memory.limit_in_bytes": "900",
        "cpu/a/b/memory.limit_in_bytes": "1",
        "unified/memory.max": "950",
        "cpu/a/b/cpu.cfs_quota_us": "100000",
        "cpu/a/b/cpu.cfs_period_us": "100000",
    }
    proc = kernel(
        tmp_path, "4:memory:/a/b\n2:cpu,cpuacct:/a/b\n1:name=systemd:/a\n0::/\n", mounts, files
    )
    assert (usable_memory(proc).n_bytes, usable_cpus(proc)) == (900, 1)


def test_L5_a_mount_point_with_a_space_is_found(tmp_path):
    proc = kernel(tmp_path, "0::/\n", {"c\\040g": "/ cgroup2 rw"}, {"c g/memory.max": "300"})
    assert usable_memory(proc).n_bytes == 300


def test_L5_a_kernel_that_tells_nothing_sets_no_bound(tmp_path):
    assert usable_memory(tmp_path).n_bytes > 1 << 50
    assert usable_cpus(tmp_path) == CORES


QUOTAS = {
    "v2": (V2, {"a/b/cpu.max": "100000 100000"}, 1),
    "v2 rounded down": (V2, {"a/b/cpu.max": "190000 100000"}, 1),
    "v2 below one": (V2, {"a/b/cpu.max": "30000 100000"}, 1),
    "v2 parent": (V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 50000"}, 1),
    "v2 max": (V2, {"a/b/cpu.max": "max 100000"}, CORES),
    "v2 more than the affinity": (V2, {"a/b/cpu.max": "99900000 100000"}, CORES),
    "v1": (V1, {"a/b/cpu.cfs_quota_us": "150000", "a/b/cpu.cfs_period_us": "100000"}, 1),
    "v1 none": (V1, {"a/b/cpu.cfs_quota_us": "-1", "a/b/cpu.cfs_period_us": "100000"}, CORES),
}


@pytest.mark.parametrize("cgroup, files, expected", QUOTAS.values(), ids=QUOTAS)
def test_L5_cpus_are_the_affinity_and_the_quota_rounded_down(cgroup, files, expected, tmp_path):
    kind = "cgroup rw,cpu" if cgroup == V1 else "cgroup2 rw"
    proc = kernel(
        tmp_path, cgroup, {"cg": f"/ {kind}"}, {f"cg/{name}": text for name, text in files.items()}
    )
    assert usable_cpus(proc) == expected


def test_L5_a_quota_of_three_and_a_half_cpus_is_three(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    proc = kernel(tmp_path, "0::/\n", {"cg": "/ cgroup2 rw"}, {"cg/cpu.max": "350000 100000"})
    assert usable_cpus(proc) == 3


# -- who asks


def test_L5_a_need_above_it_is_refused_with_both_numbers(tmp_path):
    proc = kernel(
        tmp_path,
        "0::/\n",
        {"cg": "/ cgroup2 rw"},
        {"cg/memory.max": "4000000", "cg/memory.stat": "anon 1000000"},
    )
    check_memory(3_000_000, "this", "rest", proc)
    with pytest.raises(
        MemoryShortError,
        match=r"this needs 0.003 GB of memory, usable are 0.003 GB \(memory limit of 0.004 GB",
    ):
        check_memory(3_000_001, "this", "rest", proc)


@pytest.fixture
def quota(monkeypatch):
    """One CPU, whatever this machine has, and no word of the user's."""
    monkeypatch.setattr("featurestore.disk.threads.usable_cpus", lambda: 1)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_L5_torch_takes_no_more_threads_than_cpus_and_gets_its_own_back(quota):
    with usable_threads():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_L5_a_number_that_the_environment_names_stays(quota, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with usable_threads():
        assert torch.get_num_threads() == 3


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_L5_build_extend_and_predict_compute_by_the_quota_and_train_by_torchs_own(
    quota, sweep, pasture, tmp_path, monkeypatch
):
    from featurestore.backbone.backbone import Backbone
    from trainer.loop.bank_trainer import BankTrainer

    seen = []

    def noting(owner, name):
        before = getattr(owner, name)
        monkeypatch.setattr(
            owner,
            name,
            lambda *args, **more: seen.append(torch.get_num_threads()) or before(*args, **more),
        )

    noting(Backbone, "encode")
    noting(BankTrainer, "step")

    def threads_of(*arguments):
        seen.clear()
        biomass(*arguments)
        return set(seen)

    store = tmp_path / "f.h5"
    build = ["store", "build", "--data", pasture, "--out", store, "--views", "plain", *TINY]
    assert threads_of(*build, "--plan") == {1}
    assert threads_of(*build) == {1}
    assert threads_of(
        "store", "extend", store, tmp_path / "g.h5", "--views", "plain,hflip", "--data", pasture
    ) == {1}
    assert threads_of(
        "predict", "--sweep", sweep, "--data", pasture, "--out", tmp_path / "s.csv", "--tta", "1"
    ) == {1}
    config = (sweep.parent.parent / "small.yaml").read_text()
    one_kind = re.sub(r"kind: \[.*?\]", "kind: density", config)
    (tmp_path / "one.yaml").write_text(one_kind)
    assert threads_of(
        "train",
        "--config",
        tmp_path / "one.yaml",
        "--out",
        tmp_path / "r",
        "--device",
        "cpu",
    ) == {3}


def short(monkeypatch, n_bytes: int) -> None:
    monkeypatch.setattr(
        "featurestore.disk.usable.usable_memory", lambda proc=None: Memory(n_bytes, "a limit")
    )


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_L5_weights_that_do_not_fit_are_refused_before_anything_is_written(
    sweep, pasture, tmp_path, monkeypatch
):
    short(monkeypatch, 1_000_000)
    build = ["store", "build", "--data", pasture, "--out", tmp_path / "f.h5", *TIMM]
    assert "a copy of its weights needs 0.02" in biomass(*build, code=75).stderr
    predict = ["predict", "--sweep", sweep, "--data", pasture, "--out", tmp_path / "s.csv"]
    assert "usable are 0.001 GB (a limit)" in biomass(*predict, code=75).stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_L5_tokens_that_do_not_fit_are_refused_before_a_store_is_laid_out(
    pasture, tmp_path, monkeypatch
):
    short(monkeypatch, 25_000_000)
    build = [
        "store",
        "build",
        "--data",
        pasture,
        "--out",
        tmp_path / "f.h5",
        *TIMM[:2],
        "--image-size",
        "640",
        *TIMM[4:],
    ]
    assert "holding the tokens of 2 photographs" in biomass(*build, code=75).stderr
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize(
    "usable, kept",
    [(1 << 40, 1 << 30), (400 << 20, 100 << 20)],
    ids=["much", "a small container"],
)
def test_L5_a_server_keeps_at_most_a_quarter_of_what_is_usable(usable, kept, monkeypatch):
    monkeypatch.setattr(
        "service.answers.computations.usable_memory", lambda: Memory(usable, "a limit")
    )
    assert Computations().kept_bytes == kept


def test_L5_a_servers_worker_starts_with_the_quotas_threads(quota, tmp_path, monkeypatch):
    monkeypatch.setattr("service.relay.usable_cpus", lambda: 1)
    with closing(Relay(Library([write_served(tmp_path, "h5")]))) as relay:
        environ = Path(f"/proc/{relay.pid}/environ")
        end = time.monotonic() + 20
        # the kernel shows none in the middle of an exec
        while not environ.read_bytes() and time.monotonic() < end:
            time.sleep(0.01)
        assert b"OMP_NUM_THREADS=1" in environ.read_bytes().split(b"\0")


IN_A_GROUP = """
import sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text("0")
taken = b"x" * 10**8
with open(sys.argv[2], "wb") as file:
    for _ in range(3):
        file.write(taken)
from featurestore.disk.usable import usable_memory
print(usable_memory().n_bytes)
"""


@pytest.mark.system
def test_L5_a_limit_of_a_real_cgroup(tmp_path):
    """v1 or v2, whichever controller this machine lets us make a cgroup of."""
    for folder, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        group = Path(folder, f"biomass_test_{os.getpid()}")
        try:
            group.mkdir()
            (group / limit).write_text("300000000")
            break
        except OSError:
            if group.is_dir():
                group.rmdir()
    else:
        pytest.skip("no cgroup can be made here")
    try:
        command = [sys.executable, "-c", IN_A_GROUP, group, tmp_path / "cached"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        group.rmdir()
    assert 150_000_000 < int(done.stdout) < 200_000_000  # 300 MB of page cache do not count


@pytest.mark.parametrize(
    "given, expected",
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, None)],
    ids=["nothing said", "how to wait", "how long to spin"],
)
def test_commands_let_waiting_threads_sleep_unless_told_otherwise(given, expected):
    """Before torch is loaded, which reads it once."""
    code = (
        "import os, sys, cli; cli.main(['--version'], standalone_mode=False);"
        "print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_WAIT", "GOMP", "KMP"))}
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=plain | given,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.splitlines()[-1] == f"{expected} False"
