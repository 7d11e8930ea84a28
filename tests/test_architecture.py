"""The layout shows the architecture: imports only go down, every command has help and stands in the
README."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest
from commands import biomass

from cli import main
from featurestore.photos.targets import CSIRO

ROOT = Path(__file__).parent.parent
FLOORS = {"featurestore": 0, "trainer": 1, "predictor": 2, "service": 3, "cli": 4}
SOURCES = [
    ROOT / "cli.py",
    *(f for name in list(FLOORS)[:4] for f in sorted((ROOT / name).rglob("*.py"))),
]


@cache
def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module
    }


def test_imports_only_go_down():
    wrong = []
    for path in SOURCES:
        inside = path.relative_to(ROOT)
        floor = FLOORS[inside.parts[0].removesuffix(".py")]
        for name in imported(path):
            if FLOORS.get(name.split(".")[0], 0) > floor:
                wrong.append(f"{inside} imports {name}")
    assert wrong == []


def test_nothing_unpickles():
    for path in SOURCES:
        packages = {name.split(".")[0] for name in imported(path)}
        assert not {"pickle", "joblib", "dill", "shelve"} & packages, path
        loads = re.findall(r"\btorch\.load\(.*", path.read_text())
        if path.name == "convert_child.py":  # the one exception, see docs/weights.md
            assert loads and all("weights_only=True)" in line for line in loads)
        else:
            assert loads == [], path


def commands(group: click.Group, prefix: str = "biomass"):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


@pytest.mark.parametrize(
    "name, command", list(commands(main)), ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_command_has_help_and_is_in_the_readme(name, command):
    assert command.help and all(p.help for p in command.params if isinstance(p, click.Option))
    assert name in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "group",
    [[], ["store"], ["bundle"], ["weights"]],
    ids=lambda group: " ".join(group) or "biomass",
)
def test_the_list_of_commands_cuts_no_text(group):
    """Click takes a text up to its first period, and cuts that at the terminal's 80 columns."""
    _, listed = biomass(*group, "--help").output.split("Commands:\n")
    texts = [line.split(maxsplit=1)[1] for line in listed.splitlines()]
    assert texts and not [
        text for text in texts if text.endswith(("...", "e.g.")) or not text.endswith(".")
    ]


def test_help_imports_nothing_heavy():
    code = (
        "import sys, cli; cli.main(['store', 'build', '--help'], standalone_mode=False); "
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not {"torch", "numpy", "pandas", "h5py", "zarr"} & set(done.stdout.split())


def test_the_tree_is_formatted():
    ruff = Path(sys.executable).with_name("ruff")
    for check in (["format", "--check"], ["check"]):
        done = subprocess.run([ruff, *check, ROOT], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_only_the_preset_and_the_demo_know_the_contests_targets():
    """Everything else takes names from what a config, a run or a table says."""
    known = [
        ROOT / "featurestore/photos/targets.py",
        *(ROOT / "featurestore/backbone/demo").iterdir(),
    ]
    folders = ["featurestore", "trainer", "predictor", "service", "benchmarks", "tools"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.is_file()]
    wrong = []
    for path in {*files, ROOT / "cli.py"}.difference(known):
        if path.suffix in {".py", ".js", ".html", ".css", ".md", ".ipynb"}:
            text = path.read_text()
            wrong += [f"{path}: {name}" for name in [*CSIRO.names, "Dry_"] if name in text]
    assert wrong == []
