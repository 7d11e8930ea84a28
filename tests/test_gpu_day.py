"""benchmarks/gpu_day.py: a part that fails or runs on leaves the others; in small, each runs on the
CPU."""

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_day  # noqa: E402

OPTIONS = argparse.Namespace(device="cpu", small=True)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A function that puts a script of some lines in place of a part's process."""

    def put(*lines: str) -> None:
        path = tmp_path / "part.py"
        path.write_text("\n".join(lines))
        monkeypatch.setattr(gpu_day, "__file__", str(path))

    return put


def run(tmp_path: Path, left_s: float) -> dict:
    return gpu_day.run_part("P", gpu_day.Part("p", 60), OPTIONS, tmp_path, left_s)


def test_a_part_says_what_it_printed_last(script, tmp_path):
    script("print('{\"n\": 1}')", "print('between')", 'print(\'{"n": 2, "told": ["two"]}\')')
    found = run(tmp_path, 60)
    assert found["state"] == "ok" and found["figures"] == {"n": 2, "told": ["two"]}
    assert gpu_day.line_of("P", found).endswith("s\n    two")


def test_a_part_finds_packages_that_pythonpath_names_behind_this_checkout(
    script, tmp_path, monkeypatch
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/carried.py").write_text("n = 1")
    (tmp_path / "site/featurestore.py").write_text("raise ValueError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    script("import carried, featurestore", "print('{\"n\": %d}' % carried.n)")
    assert run(tmp_path, 60)["figures"] == {"n": 1}


def test_a_part_that_fails_is_recorded_with_its_error(script, tmp_path):
    script("print('{\"n\": 1}')", "raise ValueError('no such kernel')")
    found = run(tmp_path, 60)
    assert found["state"] == "failed" and found["figures"] == {"n": 1}
    assert found["error"].startswith("exit code 1")
    assert "ValueError: no such kernel" in found["error"]


def test_a_part_that_runs_on_is_ended_with_what_it_started(script, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_day, "LEAST_S", 0)
    script(
        "import subprocess",
        "print('{\"n\": 1}', flush=True)",
        # it holds the pipe open: whoever reads it to the end waits for it
        "subprocess.run(['sleep', '60'])",
    )
    found = run(tmp_path, 0.5)
    assert found["state"] == "failed" and found["figures"] == {"n": 1}
    assert "ran past its" in found["error"] and found["seconds"] < 30


def test_a_part_that_is_killed_in_the_middle_of_a_line_leaves_what_it_had_found(
    script, tmp_path, monkeypatch
):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    script(
        "import os, sys",
        f"sys.path.insert(0, {str(BENCHMARKS)!r})",
        "from _bench import finish",
        "finish({'n': 1})",
        "os.write(1, b'{\"n\": ')",
        "os.kill(os.getpid(), 9)",
    )
    found = run(tmp_path, 60)
    assert found["state"] == "failed" and found["figures"] == {"n": 1}


def test_a_part_without_time_is_left_out_and_said_to_be(script, tmp_path):
    script("raise ValueError")
    found = run(tmp_path, gpu_day.LEAST_S / 2)
    assert found["state"] == "left out"
    day = {
        "parts": {"P": found},
        "machine": {"cpu": "some", "cores": 2, "memory_gb": 8.0},
        "versions": {"torch": "2", "timm": "1"},
        "commit": "f" * 40,
        "uncommitted": [],
        "config": {},
        "seconds": 1.0,
    }
    assert "P: no time was left for it" in gpu_day.page(day)


def test_a_day_works_in_a_relative_folder_and_on_a_machine_without_git(tmp_path, monkeypatch):
    from _bench import context, work_folder

    monkeypatch.chdir(tmp_path)
    with work_folder(Path()) as folder:
        assert folder.is_absolute() and folder.parent.samefile(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = context({}, [])
    assert (found["commit"], found["uncommitted"]) == ("", [])


def test_each_gpu_test_is_told_when_it_has_ended_whatever_it_warns_of(tmp_path, monkeypatch):
    import _gpu_day

    told = tmp_path / "told"
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\nfilterwarnings = error")
    (tmp_path / "tests/test_some.py").write_text(
        "import pathlib, time, warnings\n"
        "from pytest import mark\n"
        "@mark.gpu\n"
        "def test_first(): warnings.warn('a later pandas will refuse this', FutureWarning)\n"
        "@mark.gpu\n"
        "def test_second():\n"
        f"    told = pathlib.Path({str(told)!r})\n"
        "    until = time.monotonic() + 10\n"
        "    while 'test_first PASSED' not in told.read_text():\n"
        "        assert time.monotonic() < until\n"
        "        time.sleep(0.01)\n"
    )
    monkeypatch.setattr(_gpu_day, "ROOT", tmp_path)
    with told.open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        found = _gpu_day.tests(None)
    assert "2 passed" in found["told"][0]


def test_launches_copies_waits_and_busy_time_are_told_apart():
    import _gpu_heads

    def event(where: str, name: str, us: float = 1.0, is_mark: bool = False) -> SimpleNamespace:
        device, span = SimpleNamespace(name=where), SimpleNamespace(elapsed_us=lambda: us)
        return SimpleNamespace(
            name=name, device_type=device, time_range=span, is_user_annotation=is_mark
        )

    events = [
        event("CPU", "cudaLaunchKernel"),
        event("CPU", "cuLaunchKernelEx"),
        event("CUDA", "cutlass_80_tensorop", 300),
        event("CPU", "cudaMemcpyAsync"),
        event("CUDA", "Memcpy HtoD", 200),
        event("CPU", "cudaStreamSynchronize"),
        event("CPU", "cudaDeviceSynchronize"),  # the profiler's own
        event("CPU", "aten::mm"),
        event("CUDA", "Optimizer.step#AdamW.step", 9000, is_mark=True),
    ]
    profiled = SimpleNamespace(events=lambda: events, key_averages=list)
    day = SimpleNamespace(place=SimpleNamespace(type="cuda"))
    found = _gpu_heads.counted(day, profiled)
    counts = {name: found[name] for name in ("launches", "copies", "n_waits", "busy_ms")}
    assert counts == {"launches": 2, "copies": 1, "n_waits": 1, "busy_ms": 0.5}


def test_what_torch_says_of_its_debug_mode_is_no_wait():
    import _gpu_heads

    # both as libtorch_python and libc10_cuda of torch 2.14 have them
    mode = (
        "Synchronization debug mode is a prototype feature and does not yet detect all "
        "synchronizing operations"
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.warn_explicit(mode, UserWarning, "/a/_gpu_heads.py", 1)
        for _ in range(2):
            words = "called a synchronizing CUDA operation"
            warnings.warn_explicit(words, UserWarning, "/a/bank.py", 7)
    assert _gpu_heads.told_waits(warned) == ["bank.py:7 (2)"]


@pytest.mark.system
def test_every_part_runs_in_small_on_the_cpu(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu_day.py", "--device", "cpu", "--small"]
    done = subprocess.run([*command, "--out", tmp_path, "--dir", tmp_path], check=False)
    day = json.loads((tmp_path / "gpu_day.json").read_text())
    page = (tmp_path / "gpu_day.txt").read_text()
    assert done.returncode == 0, page
    assert list(day["parts"]) == list(gpu_day.PARTS)
    for name, found in day["parts"].items():
        assert found["state"] == "ok" and found["figures"]["told"], name
        assert name in page
    losses = [found["figures"]["losses"] for name, found in day["parts"].items() if "P10" in name]
    assert losses[0] == losses[1] == losses[2]  # wherever the rows are
