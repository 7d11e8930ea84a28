"""The TAB key, in the shells that are here: the printed script and the console entry together."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from commands import biomass

from cli import main

ROOT = Path(__file__).parent.parent
ASK = {  # what a shell does when its TAB key is pressed after `biomass sto`
    "bash": 'eval "$(biomass completion bash)"; COMP_WORDS=(biomass {0}); COMP_CWORD={1}; '
    "_biomass_completion biomass; "
    'printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": 'biomass completion fish | source; complete -C "biomass {0}" | cut -f 1',
    # zsh has no way to ask from outside: its own two builtins that would show the words print them
    "zsh": "compdef() {{ :; }}; _describe() {{ print -rl -- ${{${{(P)3}}%%:*}}; }}; compadd() {{ "
    "print -rl -- ${{(P)@[-1]}}; }}; "
    'eval "$(biomass completion zsh)"; words=(biomass {0}); CURRENT=$(({1} + 1)); '
    "_biomass_completion",
}


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """One in which `biomass` is what pip makes of the console entry."""
    entry = tmp_path / "biomass"
    entry.write_text(f"#!{sys.executable}\nimport sys\nfrom cli import main\nsys.exit(main())\n")
    entry.chmod(0o755)
    return os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
    }


@pytest.mark.parametrize(
    "typed, words",
    [
        ("sto", ["store"]),
        ("store st", ["stats"]),
        ("completion z", ["zsh"]),
        ("train --pl", ["--plan"]),
        ("nothing", []),
        ("train --device c", ["cpu", "cuda"]),
        ("store build --device a", ["auto"]),
        ("predict --tta 4", ["4"]),
        ("store build --backbone vit_demo", ["vit_demo_patch16_dinov3"]),
        ("store build --views plain,vflip_h", ["plain,vflip_hsv"]),
    ],
)
@pytest.mark.parametrize("shell", list(ASK))
def test_tab_completes(shell, typed, words, environment):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not here")
    flags = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}
    asked = ASK[shell].format(typed, len(typed.split()))
    done = subprocess.run(
        [shell, flags[shell], "-c", asked],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (words, "")


def test_a_tab_imports_nothing_heavy():
    code = (
        "import sys, atexit, cli; atexit.register(lambda: print(*sys.modules)); "
        "cli.main(prog_name='biomass')"
    )
    asked = os.environ | {
        "_BIOMASS_COMPLETE": "bash_complete",
        "COMP_WORDS": "biomass predict --on",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=asked,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    *found, modules = done.stdout.splitlines()
    assert found == ["plain,--only-folds", "plain,--on-error"]
    assert not {"torch", "numpy", "pandas", "h5py", "zarr"} & set(modules.split())


def test_help_says_where_the_script_goes():
    said = biomass("completion", "--help").output
    assert all(f"biomass completion {shell}" in said for shell in ASK)
    assert all(
        file in said
        for file in ("~/.bashrc", "~/.zshrc", "~/.config/fish/completions/biomass.fish")
    )


def test_another_shell_is_a_usage_error():
    assert "tcsh" in biomass("completion", "tcsh", code=2).output


def test_tab_after_bundle_offers_commands_and_paths():
    asked = ShellComplete(main, {}, "biomass", "_BIOMASS_COMPLETE")
    found = [(item.value, item.type) for item in asked.get_completions(["bundle"], "ma")]
    assert found == [("make", "plain"), ("ma", "file")]
    words = [item.value for item in asked.get_completions(["bundle", "SWEEP"], "--ou")]
    assert words == ["--out"]


def offered(*typed: str) -> list[tuple[str, str]]:
    """What is offered for the last word, and whether a shell lists files or folders instead."""
    asked = ShellComplete(main, {}, "biomass", "_BIOMASS_COMPLETE")
    found = asked.get_completions(list(typed[:-1]), typed[-1])
    return [(item.value, item.type) for item in found]


def test_all_backbones_of_the_page_are_offered_and_ours():
    usable = (ROOT / "docs/backbones.md").read_text().split("## Usable")[1]
    listed = {*re.findall(r"`(\w+)`", usable), "vit_demo_patch16_dinov3"}
    names = [value for value, _ in offered("store", "build", "--backbone", "")]
    assert names == sorted(listed)


def test_a_view_is_offered_once():
    names = [value for value, _ in offered("store", "build", "--views", "plain,hflip,")]
    assert len(names) == 18 and "plain,hflip,vflip" in names and "plain,hflip,plain" not in names


def test_locks_are_not_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    for name in ("f.h5", "f.h5.lock", "g.h5", "deep/g.h5", "deep/g.h5.lock"):
        (tmp_path / name).touch()
    (tmp_path / "f.zarr").mkdir()
    assert offered("store", "info", "f") == [("f.h5", "plain"), ("f.zarr", "plain")]
    assert offered("train", "--store", "f.h") == [("f.h5", "plain")]
    assert offered("store", "merge", "deep/g") == [("deep/g.h5", "plain")]
    everything = [value for value, _ in offered("store", "info", "")]
    assert everything == ["deep/", "f.h5", "f.zarr", "g.h5"]
    # no lock is near: the shell's own list, which goes on into folders
    for typed in ("g", "d", "~/", "none/f"):
        assert offered("store", "info", typed) == [(typed, "file")]
    # a name that a shell would have to quote
    (tmp_path / "f g.h5").touch()
    assert offered("store", "info", "f") == [("f", "file")]
