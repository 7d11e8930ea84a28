"""Messages, bars and results whose reader has gone, whose disk is full, or whose descriptor is
missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import config, write_store

from featurestore import FeatureStore
from featurestore.disk.messages import new_bar, say
from trainer.loop.sweep import run_sweep

ROOT = Path(__file__).parent.parent
SPEAK = """
import sys, warnings
import click
from featurestore.disk.messages import new_bar, say, secure_standard_streams
secure_standard_streams()
for _ in range(3):
    print("a result", flush=True)
    click.echo("a result")
    print("a message", file=sys.stderr)
    click.echo("a message", err=True)
    sys.stderr.buffer.write(b"bytes")
    warnings.warn("a warning")
with new_bar("work", 3, "step", mininterval=0) as bar:
    for _ in range(3):
        bar.update()
sys.exit(7)
"""


def spoken(**options: object) -> subprocess.CompletedProcess:
    """What becomes of a process that says all kinds of things."""
    return subprocess.run([sys.executable, "-c", SPEAK], cwd=ROOT, check=False, **options)


def pipe_without_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_L1_results_and_messages_without_a_reader_are_lost():
    pipe = pipe_without_reader()
    assert spoken(stdout=pipe, stderr=pipe).returncode == 7
    os.close(pipe)


def test_L1_messages_for_a_full_disk_are_lost_but_results_are_not():
    with open("/dev/full", "w") as full:
        assert spoken(stdout=subprocess.DEVNULL, stderr=full).returncode == 7
        done = spoken(stdout=full, stderr=subprocess.PIPE)
    assert done.returncode != 7 and b"No space left on device" in done.stderr


def test_L1_what_can_be_written_is_written_in_order():
    done = spoken(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (7, "a result\n" * 6)
    assert done.stderr.count("a message\na message\nbytes") == 3
    assert done.stderr.count("a warning") == 1 and "3 of 3 steps" in done.stderr


def test_L1_a_message_or_bar_that_cannot_be_written_is_lost(no_reader):
    say("lost")
    with new_bar("work", 3, "step", mininterval=0) as bar:
        bar.update(3)
    assert bar.n == 3
    no_reader.close()
    say("lost")
    new_bar("work", 3, "step").close()


def test_L1_a_sweep_in_python_outlives_the_reader_of_its_bar(tmp_path, store, no_reader):
    sweep = config(tmp_path, store, kind="[density]", lr="[1e-2]", epochs=2)
    assert run_sweep(sweep, tmp_path / "runs", "cpu").best


COMMANDS = """
import os, sys
from pathlib import Path
import cli
folder = Path(sys.argv[1])
commands = {
    "verify": ["store", "verify", folder / "f.h5"],
    "convert": ["store", "convert", folder / "f.h5", folder / "f.zarr"],
    "merge": ["store", "merge", folder / "f.h5", "--out", folder / "merged.h5"],
    "train": ["train", "--config", folder / "sweep.yaml", "--out", folder / "runs", "--device", "cpu"]}
codes = []
for command in commands.values():
    try:
        cli.main([str(word) for word in command])
    except SystemExit as end:
        codes.append(str(end.code))
(folder / "codes").write_text(" ".join(codes))
(folder / "standard").write_text(" ".join(os.readlink(f"/proc/self/fd/{n}") for n in range(3)))
"""


def run_commands(folder: Path, command: list[str], **options: object) -> None:
    """Verify, convert, merge and train, one after another in one process."""
    write_store(folder / "f.h5", n=12)
    config(folder, folder / "f.h5", kind="[density]", lr="[1e-2]", epochs=2)
    subprocess.run(
        [*command, sys.executable, "-c", COMMANDS, folder], cwd=ROOT, check=True, **options
    )
    assert (folder / "codes").read_text() == "0 0 0 0"
    for copy in ("f.zarr", "merged.h5"):
        assert FeatureStore.open(folder / copy).n_sealed == 12
    assert len(list(folder.glob("runs/*/summary.json"))) == 1


@pytest.mark.system
def test_L1_commands_outlive_the_readers_of_what_they_say(tmp_path):
    pipe = pipe_without_reader()
    run_commands(tmp_path, [], stdout=pipe, stderr=pipe)
    os.close(pipe)


CLOSE_ALL = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]


@pytest.mark.system
def test_L4_commands_run_without_standard_descriptors(tmp_path):
    """No stdin, stdout or stderr: messages are lost, and no data file takes their place."""
    run_commands(tmp_path, CLOSE_ALL)
    assert (tmp_path / "standard").read_text() == "/dev/null /dev/null /dev/null"


DESCRIPTORS = """
import os, subprocess, sys
from featurestore.disk.messages import open_missing_descriptors
open_missing_descriptors()
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print("lost", file=sys.stderr)
print("lost")
said = subprocess.run(["/bin/sh", "-c", "echo lost >&2"]).returncode
nulls = [os.path.samestat(os.fstat(n), os.stat("/dev/null")) for n in range(3)]
os.write(fd, f"{fd > 2} {said} {nulls} {sys.stdin.read()!r}".encode())
"""


def test_L4_missing_descriptors_are_dev_null_also_for_children(tmp_path):
    command = [*CLOSE_ALL, sys.executable, "-c", DESCRIPTORS, tmp_path / "told"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "told").read_text() == "True 0 [True, True, True] ''"


@pytest.mark.system
def test_L4_python_m_predictor_opens_them_too(tmp_path):
    command = [*CLOSE_ALL, sys.executable, "-m", "predictor", "--data", tmp_path, "--run", tmp_path]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 3


def test_L4_a_bar_where_there_is_no_stderr_is_not_shown(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    say("lost")
    with new_bar("work", 3, "step", mininterval=0) as bar:
        bar.update(3)
