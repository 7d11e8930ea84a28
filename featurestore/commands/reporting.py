"""What a command says at its end: its result, for people or for programs.

docs/scripts.md lists what `--json` prints.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import click

from featurestore.disk.terminal import hung, terminal_width

JSON = "biomass.json"
QUIET = "biomass.quiet"
"""Keys of click's `meta`, true where --json or --quiet was given."""


def _note(key: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def keep(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        ctx.meta[key] = value

    return keep


quiet_option = click.option(
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_note(QUIET),
    help="Say nothing but results, warnings and errors.",
)
_json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    expose_value=False,
    callback=_note(JSON),
    help="Print the result as one JSON object.",
)


def script_options(command: Callable) -> Callable:
    """--json and --quiet, for a command that ends in `tell`."""
    return _json_option(quiet_option(command))


def is_set(key: str) -> bool:
    """Whether the command that runs was given --json or --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and context.meta.get(key, False)


def tell(
    report: object,
    values: Mapping[str, Any] | None = None,
    indent: int | None = None,
) -> None:
    """A command's result on stdout: its text, or with --json its values.

    values : None are the fields of the report, a dataclass.
    indent : of what follows where a line is broken for a narrow terminal; None breaks none.
    """
    if not is_set(JSON):
        text = str(report)
        click.echo(text if indent is None else hung(text, terminal_width(), indent))
        return
    from featurestore.disk.json_values import json_value  # imports numpy

    known = json_value(asdict(report) if values is None else values)
    click.echo(json.dumps(known, ensure_ascii=False, allow_nan=False, default=os.fspath))
