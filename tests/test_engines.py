"""Items of work in processes of their own: deaths, errors, signals, and what is left of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestore.engines.local import run
from featurestore.errors import MismatchError, PartFailed

DRIVER = """
import json, sys
from pathlib import Path
from featurestore.disk.interrupts import stopped_by_signals
from featurestore.engines.local import run
task, items, devices, folder = sys.argv[1:]
with stopped_by_signals():
    run(task, json.loads(items), devices=devices.split(","), folder=Path(folder))
"""


def drive(task: str, items: str, devices: str, folder: Path) -> subprocess.Popen:
    """A process that does items by the engine."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", DRIVER, f"engine_tasks:{task}", items, devices, str(folder)]
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_each_device_has_a_process_that_does_item_after_item(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    items = {f"part {i}": {"word": f"word {i}"} for i in range(6)}
    finished = []
    answers = run(
        "engine_tasks:tell",
        items,
        devices=["cpu", "cuda:1"],
        folder=tmp_path,
        threads=3,
        progress=finished.append,
    )
    assert sorted(finished) == sorted(answers) == sorted(items)
    assert all(answers[name][0] == items[name]["word"] for name in items)
    assert {answer[3] for answer in answers.values()} == {"3"}
    pids_of = {
        device: {a[2] for a in answers.values() if a[1] == device} for device in ["cpu", "cuda:1"]
    }
    assert all(len(pids) <= 1 for pids in pids_of.values())
    assert os.getpid() not in {answer[2] for answer in answers.values()}
    assert list(tmp_path.iterdir()) == []


def test_W10_eight_devices_work_at_once(tmp_path):
    """Each waits until all have begun, then all are stopped."""
    items = (
        "{" + ",".join(f'"{i}": {{"folder": "{tmp_path}", "name": "{i}"}}' for i in range(8)) + "}"
    )
    devices = ",".join(f"cuda:{i}" for i in range(8))
    driver = drive("wait", items, devices, tmp_path / "counts")
    assert len(begun(driver, tmp_path, 8)) == 8
    driver.send_signal(signal.SIGTERM)
    assert driver.wait() == 128 + signal.SIGTERM
    assert len(list(tmp_path.glob("*.ended"))) == 8
    assert "Traceback" not in driver.stderr.read()
    driver.stderr.close()


def begun(driver: subprocess.Popen, folder: Path, n: int) -> list[Path]:
    """Files of tasks that have begun, once there are n."""
    while driver.poll() is None:
        found = [path for path in folder.glob("?.*") if path.suffix[1:].isdecimal()]
        if len(found) == n:
            return found
        time.sleep(0.01)
    raise AssertionError(driver.stderr.read())


def test_W04_a_process_that_dies_is_started_anew(tmp_path, capfd):
    items = {"part 3": {"folder": str(tmp_path), "n_deaths": 2}}
    answers = run("engine_tasks:die", items, devices=["cpu"], folder=tmp_path / "counts")
    assert answers == {"part 3": "after 2 deaths"}
    assert capfd.readouterr().err.count("part 3: its process on cpu ended") == 2


def test_W05_an_item_that_always_fails_ends_the_run_with_its_name_and_last_words(tmp_path):
    with pytest.raises(PartFailed) as found:
        run("engine_tasks:crash", {"part 1": {}}, devices=["cpu"], folder=tmp_path, tries=2)
    assert "part 1: failed 2 times" in str(found.value)
    assert "CUDA error: an illegal memory access" in str(found.value)
    assert "exit code 1" in str(found.value)
    # put right, it has all tries again
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_family_ends_the_run_at_once_as_itself(tmp_path, capfd):
    with pytest.raises(MismatchError, match="^part 1: weights differ$"):
        run("engine_tasks:refuse", {"part 1": {}}, devices=["cpu"], folder=tmp_path)
    assert capfd.readouterr().err == ""


def test_W05_tries_of_killed_drivers_count(tmp_path):
    """An item that takes the driver down with it does not go on for ever."""
    codes = []
    for _ in range(4):
        with drive("kill_driver", '{"part 0": {}}', "cpu", tmp_path) as driver:
            codes.append(driver.wait())
            words = driver.stderr.read()
    assert codes == [-9, -9, -9, 1]
    assert "PartFailed: part 0: failed 3 times" in words


def test_W04_workers_end_with_a_driver_that_is_killed(tmp_path):
    items = f'{{"a": {{"folder": "{tmp_path}", "name": "a"}}}}'
    with drive("wait", items, "cpu", tmp_path / "counts") as driver:
        (file,) = begun(driver, tmp_path, 1)
        driver.kill()
    while not file.with_suffix(".ended").exists():
        time.sleep(0.01)
