"""What the system refuses, a thread, a process, a temporary folder, ends in a sentence, not in a
traceback."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import biomass
from conftest import write_tiny

from featurestore import FeatureStore
from featurestore.commands.running import one_line_errors
from featurestore.disk.durable import appears_whole
from featurestore.disk.refusals import as_ours
from featurestore.disk.tensor_file import save_tensors
from featurestore.disk.threads import Pool, check_thread, not_started, starting
from featurestore.errors import NoThreadError
from featurestore.explore import installation
from featurestore.explore.doctor import FAIL

ROOT = Path(__file__).parent.parent
HUGE = 1 << 47  # bytes of stack: all addresses that a process has


@pytest.fixture
def no_thread():
    """The system refuses every thread that is started meanwhile: there is no room for its stack."""
    before = threading.stack_size(HUGE)
    yield
    threading.stack_size(before)


def test_L15_a_pool_says_what_to_do_where_no_thread_starts(no_thread):
    with (
        pytest.raises(
            NoThreadError, match="starts no further thread or process; raise `ulimit -u`"
        ),
        Pool(2) as pool,
    ):
        list(pool.map(abs, [1, 2]))


def test_L15_reading_rows_says_so_too(tmp_path, no_thread):
    write_tiny(tmp_path / "f.h5")
    store = FeatureStore.open(tmp_path / "f.h5")
    with pytest.raises(NoThreadError):
        store.take(np.array([[0, 0]]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["store", "info", "f.h5"],
        ["store", "build", "--data", ".", "--out", "new.h5"],
        ["store", "convert", "f.h5", "new.zarr"],
        ["store", "verify", "f.h5"],
        ["store", "serve", "f.h5"],
        ["train", "--config", "f.h5"],
        ["predict", "--data", "."],
        ["bundle", "make", "runs", "--out", "b"],
        ["demo", "--out", "d"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_L15_every_command_refuses_in_a_sentence_before_it_writes(
    arguments, tmp_path, monkeypatch, no_thread
):
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "f.h5")
    before = set(tmp_path.iterdir())
    assert biomass(*arguments, code=75).stderr.startswith(
        "error: the system starts no further thread or process; raise"
    )
    assert set(tmp_path.iterdir()) == before


def test_L15_doctor_reports_it(tmp_path, torch_untried, no_thread):
    lines = biomass("doctor", tmp_path, code=3).stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith(FAIL)] == ["threads"]


def test_L15_a_thread_is_named_as_the_cause_of_what_followed_and_a_lock_is_not():
    bug, lock = RuntimeError("cannot join thread before it is started"), ValueError("another")
    bug.__context__ = RuntimeError("can't start new thread")  # so zarr's own thread fails
    lock.__context__ = BlockingIOError(11, "Resource temporarily unavailable")  # flock's
    assert isinstance(not_started(bug), NoThreadError)
    assert not_started(lock) is None
    check_thread()


@pytest.mark.system
@pytest.mark.skipif(not shutil.which("setpriv") or os.geteuid(), reason="needs root and setpriv(1)")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_L15_at_a_real_limit_of_processes(tmp_path, threads):
    """Of another account, for root has no such limit; with its right to read our files."""
    rights = "+dac_override,+dac_read_search"
    account = [
        "setpriv",
        "--reuid",
        "54321",
        f"--inh-caps={rights}",
        f"--ambient-caps={rights}",
        "--bounding-set=-sys_resource,-sys_admin",
        "bash",
        "-c",
    ]
    command = f"ulimit -u 1; exec {sys.executable} {ROOT / 'cli.py'} predict --data ."
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*account, command], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (75, 1)
    assert done.stderr.startswith("error: the system starts no further thread")


# -- no folder for temporary files


@pytest.fixture
def no_temporary(tmp_path, monkeypatch):
    """As on a read-only root file system: none of the folders that tempfile tries can be written
    to."""
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none", "/sys/none"])
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_L12_doctor_names_the_folder_that_torch_needs(no_temporary):
    check = installation.check_temporary()
    assert (check.level, "set TMPDIR to one, such as the output's folder" in check.advice) == (
        FAIL,
        True,
    )


def test_L12_doctor_does_not_advise_another_torch_where_it_fails_for_want_of_that_folder(
    tmp_path, monkeypatch
):
    raising = "raise FileNotFoundError(2, \"No usable temporary directory found in ['/tmp']\")"
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "torchvision.py").write_text(raising)  # as torch's own import does then
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (check,) = installation.check_loading()
    assert check.level == FAIL
    assert "set TMPDIR" in check.advice and "install" not in check.advice


def test_L12_a_command_ends_in_a_sentence(no_temporary, capsys):
    with pytest.raises(SystemExit, match="3"), one_line_errors():
        tempfile.gettempdir()  # as torch's own import does
    stderr = capsys.readouterr().err
    assert "No usable temporary directory found" in stderr and stderr.endswith(
        "set TMPDIR to one, such as the output's folder\n"
    )


@pytest.mark.system
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare(1)")
def test_L12_on_a_real_read_only_root_the_outputs_folder_will_do():
    folders = " ".join(each for each in ("/tmp", "/var/tmp", "/usr/tmp") if os.path.isdir(each))
    predict = f"{sys.executable} -m predictor --data . --run . --out /mnt/s.csv"
    script = f"""
for each in {folders}; do mount -t tmpfs -o ro none $each || exit 99; done
mount -t tmpfs none /mnt && cd /proc || exit 99
export PYTHONPATH={ROOT}
{predict}
TMPDIR=/mnt {predict}
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TMPDIR", "TEMP", "TMP")
    }
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env=environment, capture_output=True, text=True
    )
    if done.returncode == 99:
        pytest.skip("no mounting in a namespace of one's own here")
    first, second = done.stderr.strip().splitlines()
    assert first.startswith("error: No usable temporary directory") and "set TMPDIR" in first
    # of what came after torch: there is no such run
    assert second.startswith("error: ") and "temporary" not in second


def test_L15_another_error_of_a_thread_stays_itself_and_is_no_refusal():
    with pytest.raises(RuntimeError, match="of its own") as caught, starting():
        raise RuntimeError("of its own")
    assert caught.value.__cause__ is None and as_ours(caught.value) is None


def of_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nOf the rest")


@pytest.mark.parametrize(
    ("take", "told"),
    [
        # more than any address space
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), "DefaultCPUAllocator: can't allocate"),
        (lambda: np.empty(1 << 60, np.uint8), "Unable to allocate 1.00 EiB"),
        (of_cuda, "CUDA out of memory. Tried to allocate 2.00 GiB.; free memory"),
    ],
    ids=["torch", "numpy", "cuda"],
)
def test_memory_that_is_not_given_is_told_with_what_to_do(take, told, capfd):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        take()
    assert ended.value.code == 75
    said = capfd.readouterr().err
    assert said.startswith("error: ") and told in said and "--passes" in said
    assert said.count("\n") == 1


def test_P04_a_full_disk_is_told_by_the_file_that_found_it_full(tmp_path):
    """A table's bytes, whose error names no file, and tensors, whose error is safetensors' own."""
    tensors = tmp_path / "a.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError) as table, appears_whole(tmp_path / "a.csv"):
        Path("/dev/full").write_bytes(b"x")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError) as saved, appears_whole(tensors) as partial:
            save_tensors({"a": torch.zeros(1000)}, partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = str(as_ours(table.value))
    assert told.startswith(f"{tmp_path}/a.csv: No space left on device; make room")
    assert str(as_ours(saved.value)).startswith(f"{tensors}.partial: File too large; make room")
    assert not list(tmp_path.iterdir())
