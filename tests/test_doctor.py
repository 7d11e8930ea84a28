"""Each check sees what it is there for, tries leave nothing behind, and the report comes also where
nothing loads."""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import biomass
from conftest import write_tiny
from served import TOKEN, serving

from featurestore import FeatureStore
from featurestore.about import DISTRIBUTION
from featurestore.disk.usable import Memory
from featurestore.explore import doctor, installation, machine
from featurestore.explore.doctor import FAIL, OK, WARN, Check, mounts

ROOT = Path(__file__).parent.parent
PLACE = """
import sys
from pathlib import Path
from featurestore.explore.doctor import check_place, mounts
from featurestore.explore.installation import check_packages
for check in [*check_packages(), *check_place(Path(sys.argv[1]), mounts(Path("/proc/self/mountinfo").read_text()))]:
    print(check.level, check.name, check.found, sep="|")
"""


def install(site: Path, name: str, version: str, *lines: str) -> None:
    """What pip leaves of a package's metadata."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
    )


def place(path: Path) -> dict[str, Check]:
    """The checks of a folder or store, by name."""
    mounted = mounts(Path("/proc/self/mountinfo").read_text())
    return {check.name: check for check in doctor.check_place(path, mounted)}


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of change of every file below the folder."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# -- the command


def test_a_sound_store_on_a_sound_machine(tmp_path, monkeypatch):
    write_tiny(tmp_path / "features.h5")
    (tmp_path / "torch.py").write_text(
        "raise RuntimeError('of the current folder, which `biomass` would not import')"
    )
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    checks = {
        each["name"]: each
        for each in json.loads(biomass("doctor", tmp_path / "features.h5", "--json").stdout)
    }
    assert (
        checks["store"]["found"]
        == f"{tmp_path}/features.h5: 5 of 5 images sealed, 3 views, made_up"
    )
    assert {
        "torch pair",
        "torch loads",
        "CUDA",
        "CPU",
        "OMP_NUM_THREADS",
        "memory",
        "file system",
        "free room",
        "writing",
        "flock",
        "mmap",
        "sparse files",
        "fdatasync",
    } <= set(checks)
    assert all(each["level"] != FAIL for each in checks.values())
    assert contents(tmp_path) == before


def test_a_served_store_and_the_folder_its_rows_are_kept_in(tmp_path, torch_untried, monkeypatch):
    monkeypatch.setenv("BIOMASS_CACHE", str(tmp_path / "kept"))
    (tmp_path / "file").touch()
    write_tiny(tmp_path / "features.h5")
    with serving(tmp_path / "features.h5", token=TOKEN) as address:
        url = f"{address}/v1/stores/features"
        checks = {
            each["name"]: each
            for each in json.loads(biomass("doctor", f"{url}?token={TOKEN}", "--json").stdout)
        }
        assert checks["store"]["found"] == f"{url}: 5 of 5 images sealed, 3 views, made_up"
        assert (
            checks["file system"]["found"].startswith(f"{tmp_path}/kept: ")
            and checks["mmap"]["level"] == OK
        )
        refused = list(doctor.check_served(f"{url}?token=not-{TOKEN}", []))[-1]
        assert (
            refused.level == FAIL
            and "(401): set BIOMASS_TOKEN" in refused.found
            and TOKEN not in refused.found
        )
        monkeypatch.setenv("BIOMASS_CACHE", str(tmp_path / "file"))
        (no_folder,) = doctor.check_served(url, [])
        assert (no_folder.level, no_folder.advice) == (
            FAIL,
            "choose another folder with BIOMASS_CACHE",
        )
    monkeypatch.setenv("BIOMASS_CACHE", str(tmp_path / "kept"))
    assert "is `biomass store serve` running there" in list(doctor.check_served(url, []))[-1].found


def test_an_address_without_its_scheme_is_told_so(tmp_path):
    assert (
        "begins with http://"
        in biomass("store", "info", "127.0.0.1:8000/v1/stores/features", code=3).stderr
    )


def test_a_torchvision_made_for_another_torch(tmp_path, torch_untried, monkeypatch):
    install(
        tmp_path,
        "torchvision",
        "0.0",
        "Requires-Dist: torch ==1.0",
        "Requires-Dist: torch >=9; extra == 'other'",
    )
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = [
        line
        for line in biomass("doctor", tmp_path, code=3).output.splitlines()
        if "torch pair" in line
    ]
    words = " ".join(line.split())  # the column is as wide as the longest package's name
    assert words.startswith("FAIL torch pair torchvision 0.0 needs torch==1.0, found ")
    assert "pip install --upgrade torch torchvision" in line


def test_the_table_is_aligned():
    checks = [Check("CPU", OK, "2"), Check("torch loads", FAIL, "no", "do this")]
    assert doctor.table(checks) == "ok    CPU          2\nFAIL  torch loads  no; do this"


# -- the installation


def test_packages_are_compared_with_our_own_metadata(tmp_path, monkeypatch):
    install(
        tmp_path,
        DISTRIBUTION,
        "9.9",
        "Requires-Python: >=3.11",
        "Requires-Dist: click>=8",
        "Requires-Dist: numpy>=99",
        "Requires-Dist: no_such_package>=1",
        "Requires-Dist: h5py>=99; extra == 'test'",
        "Requires-Dist: half_there>=1",
    )
    (tmp_path / "half_there-1.0.dist-info").mkdir()  # pip was killed here
    monkeypatch.syspath_prepend(tmp_path)
    checks = {check.name: check for check in installation.check_packages()}
    assert {name: check.level for name, check in checks.items()} == {
        "Python": OK,
        "click": OK,
        "numpy": FAIL,
        "no_such_package": FAIL,
        "half_there": FAIL,
    }
    assert checks["numpy"].advice == "pip install 'numpy>=99'"
    assert checks["no_such_package"].found == "not installed, >=1 is needed"


def test_whether_heic_photographs_are_read(tmp_path, monkeypatch):
    install(tmp_path, "pillow-heif", "1.2.3")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert installation.check_heic().found == "1.2.3, HEIC photographs are read"
    monkeypatch.setattr(installation, "version", lambda name: None)
    absent = installation.check_heic()
    assert (absent.level, absent.advice) == (OK, "pip install pillow-heif if there are some")


def test_an_older_python_than_we_need(tmp_path, monkeypatch):
    install(tmp_path, DISTRIBUTION, "9.9", "Requires-Python: >=99")
    monkeypatch.syspath_prepend(tmp_path)
    (check,) = installation.check_packages()
    assert (check.name, check.level, check.advice) == ("Python", FAIL, "use Python >=99")


@pytest.mark.parametrize(
    "found, level",
    [("2.6.0", OK), ("2.6.0+cu124", OK), ("2.6.1", FAIL), ("2.7.0.dev20260101", FAIL)],
)
def test_the_pair_by_metadata_alone(found, level, tmp_path, monkeypatch):
    install(tmp_path, "torch", found)
    install(
        tmp_path, "torchvision", "0.21.0", "Requires-Dist: numpy", "Requires-Dist: torch (==2.6.0)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert installation.check_pair().level == level


@pytest.mark.parametrize(
    "body, said",
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "operator torchvision::nms does not exist",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
    ],
    ids=["raises", "crashes", "lacks"],
)
def test_a_torchvision_that_does_not_load(body, said, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "torchvision.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (check,) = installation.check_loading()
    assert (check.name, check.level) == ("torch loads", FAIL)
    assert said in check.found


def test_a_torch_that_never_loads_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(installation, "LOAD_SECONDS", 1)
    (check,) = installation.check_loading()
    assert (check.level, check.found) == (FAIL, "not within 1 s")


@pytest.mark.parametrize(
    "torch, has_driver, level, said",
    [
        (
            {"cuda": "13.0", "devices": ["H100, 85 GB", "A100, 42 GB"], "said": []},
            True,
            OK,
            "cuda:0 H100, 85 GB; cuda:1 A100, 42 GB",
        ),
        ({"cuda": "13.0", "devices": [], "said": []}, False, OK, "no device"),
        ({"cuda": None, "devices": [], "said": []}, True, WARN, "built without CUDA"),
        (
            {"cuda": "13.0", "devices": [], "said": ["driver\ntoo old"]},
            True,
            WARN,
            "built for CUDA 13.0: driver too old",
        ),
    ],
    ids=["two devices", "none", "CPU build", "old driver"],
)
def test_cuda(torch, has_driver, level, said):
    check = installation.check_cuda(torch, has_driver)
    assert check.level == level
    assert said in check.found


# -- the machine


def test_what_the_cpu_can():
    found = machine.check_cpu(
        "model name\t: Xeon 9\nflags\t\t: fpu avx512f avx512_bf16x amx_bf16\n", 7
    ).found
    assert (
        found == f"7 of {os.cpu_count()} usable, Xeon 9; AVX-512 yes, AVX-512 bf16 no, AMX bf16 yes"
    )


@pytest.mark.parametrize(
    "value, level",
    [(None, OK), ("3", OK), ("2,1", OK), ("4", WARN), ("0", WARN), ("many", WARN), ("", WARN)],
)
def test_threads_on_three_cpus(value, level):
    assert machine.check_threads(value, 3, 3).level == level


def test_L5_a_quota_below_the_cores_is_a_warning_that_says_what_to_export():
    check = machine.check_threads(None, 2, 64)
    assert (check.level, check.advice) == (WARN, "export OMP_NUM_THREADS=2")
    assert "64 cores" in check.found and "the CPU quota allows 2" in check.found


@pytest.mark.parametrize("n_bytes, level", [(4 * 10**9, OK), (4 * 10**9 - 1, WARN)])
def test_memory(n_bytes, level):
    check = machine.check_memory({"MemTotal": 9 * 10**9}, Memory(n_bytes, "a limit"))
    assert check.level == level
    assert check.found == "9.0 GB in the machine; usable 4 GB (a limit)"


def test_L5_doctor_tells_the_usable_memory_and_cpus(tmp_path, torch_untried, monkeypatch):
    monkeypatch.setattr(doctor, "usable_cpus", lambda: 1)
    monkeypatch.setattr(doctor, "usable_memory", lambda: Memory(5 * 10**9, "a limit"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    checks = {check.name: check for check in doctor.examine(tmp_path)}
    assert checks["CPU"].found.startswith(f"1 of {os.cpu_count()} usable")
    assert "usable 5 GB (a limit)" in checks["memory"].found


def test_the_mount_a_folder_is_in():
    mounted = mounts(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /my\\040data rw shared:1 - xfs /dev/b rw\n"
        "3 1 8:3 / /my rw - vfat /dev/c rw\n4 2 8:4 / /my\\040data rw master:1 shared:2 - nfs4 "
        "host:/d rw\n"
    )
    kinds = {
        path: machine.check_file_system(Path(path), mounted).found.split(": ")[1].split(",")[0]
        for path in ("/my data/x", "/my dat", "/my/data", "/mine")
    }
    assert kinds == {"/my data/x": "nfs4", "/my dat": "ext4", "/my/data": "vfat", "/mine": "ext4"}
    assert machine.check_file_system(Path("/my"), mounted).level == WARN  # files end at 4 GB


# -- the folder


def refuse(number: int):
    def refused(*_args, **_more):
        raise OSError(number, os.strerror(number))

    return refused


def write_zeros(fd: int, size: int) -> None:
    """How vfat, which has no holes, makes a file longer."""
    os.pwrite(fd, bytes(size), 0)


@pytest.mark.parametrize(
    "target, stand_in, name, level, advice",
    [
        (
            (fcntl, "flock"),
            refuse(errno.ENOLCK),
            "flock",
            FAIL,
            "reading a store works here; building one needs flock",
        ),
        ((fcntl, "flock"), lambda *_: None, "flock", FAIL, "building one needs flock"),
        ((mmap, "mmap"), refuse(errno.ENODEV), "mmap", FAIL, "neither read nor built"),
        ((os, "ftruncate"), write_zeros, "sparse files", WARN, "takes all its room"),
        ((os, "fdatasync"), refuse(errno.EIO), "fdatasync", FAIL, "stops at its first commit"),
        (
            (shutil, "disk_usage"),
            lambda _: shutil._ntuple_diskusage(10**12, 10**12, 5),
            "free room",
            WARN,
            "make room",
        ),
    ],
    ids=["no locks", "locks for all", "no maps", "no holes", "no sync", "full"],
)
def test_a_file_system_that_lacks_something(
    target, stand_in, name, level, advice, tmp_path, monkeypatch
):
    monkeypatch.setattr(*target, stand_in)  # no file system of this kernel lacks it
    checks = place(tmp_path)
    assert {check.name: check.level for check in checks.values() if check.level != OK} == {
        name: level
    }
    assert advice in checks[name].advice
    assert not list(tmp_path.iterdir())


def test_a_folder_where_nothing_can_be_made():
    checks = place(Path("/proc"))
    assert checks["writing"].level == FAIL
    assert "flock" not in checks  # cannot be tried
    assert checks["free room"].found == "this file system does not tell"


def mounted_place(options: str, tmp_path: Path, inside: str = "") -> dict[str, str]:
    """Level by name of the checks of a fresh mount, in a namespace of its own."""
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("no mounting in a namespace of one's own here")
    script = f'mount {options} none "$1" && exec "$2" -c "$3" "$1{inside}"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path, sys.executable, PLACE],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        name: level for level, name, _ in (line.split("|", 2) for line in done.stdout.splitlines())
    }


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare(1)")
def test_real_mounts(tmp_path):
    read_only = mounted_place("-t tmpfs -o ro", tmp_path)
    assert (read_only["writing"], "flock" in read_only) == (FAIL, False)
    ramfs = mounted_place("-t ramfs", tmp_path)
    assert (ramfs["free room"], ramfs["flock"], ramfs["mmap"]) == (OK, OK, OK)  # it counts no room


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare(1)")
def test_a_store_on_a_read_only_disk_can_be_read(tmp_path):
    write_tiny(tmp_path / "features.h5")
    levels = mounted_place(
        f"--bind '{tmp_path}' '{tmp_path}' && mount -o remount,bind,ro", tmp_path, "/features.h5"
    )
    assert (levels["writing"], levels["store"]) == (WARN, OK)


def test_a_folder_that_is_not_there(tmp_path):
    assert [(check.name, check.level) for check in place(tmp_path / "no" / "such").values()] == [
        ("folder", FAIL)
    ]


# -- the store


def test_a_store_is_opened_and_left_alone(store_path):
    write_tiny(store_path, seal=2)
    before = contents(store_path.parent)
    check = place(store_path)["store"]
    assert (check.level, check.found) == (
        WARN,
        f"{store_path}: 2 of 5 images sealed, 3 views, made_up",
    )
    assert "goes on" in check.advice
    assert contents(store_path.parent) == before


def test_images_a_build_was_told_to_skip_are_not_missed(store_path):
    write_tiny(store_path, seal=4)
    file, offset, _ = FeatureStore.open(store_path).layout.extents["catalog/status"].locate(4)
    with open(file, "r+b") as status:
        os.pwrite(status.fileno(), b"damaged", offset)
    check = place(store_path)["store"]
    assert (check.level, "4 of 5 images sealed, 1 skipped, 3 views" in check.found) == (OK, True)


def test_nothing_is_tried_inside_a_store(store_path, tmp_path):
    write_tiny(store_path)
    within = [path for path in store_path.rglob("*") if path.is_dir()]
    (tmp_path / "link").symlink_to(within[0] if within else store_path)
    for path in (store_path, *within, tmp_path / "link"):
        assert doctor.locate(path) == (store_path.parent, store_path)
    assert doctor.locate(store_path.parent) == (store_path.parent, None)


def test_a_damaged_store(store_path):
    write_tiny(store_path)
    file = store_path if store_path.is_file() else store_path / "seal" / "c" / "0"
    os.truncate(file, file.stat().st_size - 1)
    check = place(store_path)["store"]
    assert check.level == FAIL
    assert str(store_path) in check.found
    assert "; restore it or build" in check.found or "restore it or build it again" in check.found


@pytest.mark.parametrize(
    "name, said",
    [
        ("none.h5", "no such store"),
        ("none.zarr", "no such store"),
        ("text.txt", "not a readable HDF5 file"),
    ],
)
def test_what_is_not_a_store(name, said, tmp_path):
    (tmp_path / "text.txt").write_text("hello")
    check = place(tmp_path / name)["store"]
    assert (check.level, said in check.found) == (FAIL, True)


def test_where_no_package_loads_the_report_still_comes(tmp_path):
    write_tiny(tmp_path / "features.h5")
    done = subprocess.run(
        [sys.executable, "-S", "-c", PLACE, tmp_path / "features.h5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "warn|packages|not compared with what is needed: packaging is not installed"
    assert (
        lines[-1]
        == f"FAIL|store|{tmp_path}/features.h5: ModuleNotFoundError: No module named 'numpy'"
    )
    assert "ok|flock|a second lock is refused, as it must be" in lines
