"""The command that checks the installation, the machine and a folder."""

import sys
from pathlib import Path

import click

from featurestore.commands.next_steps import build_first, say_next
from featurestore.commands.options import STORE
from featurestore.commands.running import one_line_errors
from featurestore.disk.terminal import terminal_width


@click.command()
@click.argument("path", default=".", type=STORE, metavar="[PATH|URL]")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list of checks.")
def doctor(path: Path | str, as_json: bool) -> None:
    """Say what is wrong with the installation, machine or folder.

    Checks packages, torch, CPU, memory, and the folder, data or store at PATH, or the store at URL
    and the folder for its rows. A folder with train.csv or test.csv is one of data: its tables and
    the photographs' headers are read.

    A command that ended in "Bus error" (SIGBUS): the store was modified while the command read it.
    This says whether it opens now; `biomass store verify` reads all of it.

    Exit code 3 if something will break.
    """
    with one_line_errors(needs_threads=False):
        from featurestore.errors import InputError
        from featurestore.explore.doctor import FAIL, OK, examine, table, to_json

        checks = examine(path)
        click.echo(to_json(checks) if as_json else table(checks, terminal_width()))
        is_sound = all(check.level != FAIL for check in checks)
        if is_sound and not as_json and (Path(path) / "train.csv").is_file():
            # a photograph that is not as the default crop needs it makes this a warning
            fits = any(check.name == "train photos" and check.level == OK for check in checks)
            say_next(build_first(path, fits))
        if not is_sound:
            sys.exit(InputError.exit_code)
