"""A crash that Python cannot catch (SIGBUS, SIGSEGV) shows on stderr where it was, whatever the
command."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import biomass
from sweeps import write_store

from featurestore.explore.doctor import check_store

ROOT = Path(__file__).parent.parent
CUT = """
import mmap, sys
from featurestore.commands.running import one_line_errors
with open(sys.argv[1], "w+b") as file, one_line_errors():
    file.write(bytes(9000))
    file.flush()
    mapped = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
    mapped[5000]
"""
READS_NO_STORE = {"completion"}
PACKAGES = ("featurestore", "trainer", "predictor", "service")
SOURCES = [ROOT / "cli.py", *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]


def run(script: str, *arguments: object) -> tuple[int, str]:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_map_that_is_cut_shows_the_line_that_read_it(tmp_path):
    code, said = run(CUT, tmp_path / "f")
    assert code == -signal.SIGBUS
    assert said.startswith("Fatal Python error: Bus error") and 'File "<string>", line 9' in said


@pytest.mark.parametrize("stderr", ["None", "io.StringIO()"])
def test_without_a_file_for_it_nothing_is_shown_and_nothing_fails(stderr):
    script = (
        "import io, sys\nfrom featurestore.commands.running import one_line_errors\n"
        f"sys.stderr = {stderr}\nwith one_line_errors(): pass"
    )
    assert run(script) == (0, "")


def test_tracebacks_that_were_asked_for_stay_where_they_go(tmp_path):
    asked = "import faulthandler, sys; log = open(sys.argv[2], 'w'); faulthandler.enable(log)"
    code, said = run(asked + CUT, tmp_path / "f", tmp_path / "log")
    assert (code, said) == (-signal.SIGBUS, "")
    assert "Bus error" in (tmp_path / "log").read_text()


def test_every_command_that_may_map_a_store_shows_its_crashes():
    parts = [part for path in SOURCES for part in ast.parse(path.read_text()).body]
    functions = [part for part in parts if isinstance(part, ast.FunctionDef)]
    sources = {function.name: ast.unparse(function) for function in functions}
    commands = set()
    for function in functions:
        decorators = [ast.unparse(each) for each in function.decorator_list]
        if any(".command(" in text for text in decorators):
            commands.add(function.name)
    showing = {name for name, source in sources.items() if "with one_line_errors(" in source}
    assert commands - showing == READS_NO_STORE


def test_doctor_says_what_a_bus_error_was(tmp_path):
    path = write_store(tmp_path / "features.h5")
    os.truncate(path, path.stat().st_size // 2)
    cause = '"Bus error" (SIGBUS) while it read this store: the store was modified'
    assert cause in check_store(path).advice
    assert "SIGBUS" in biomass("doctor", "--help").output
