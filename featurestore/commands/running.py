"""How a command runs: errors become one line and an exit code, signals end it in order."""

import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from featurestore.commands.reporting import QUIET, is_set
from featurestore.disk.interrupts import go_on_with, stopped_by_signals
from featurestore.disk.messages import quiet, show_crashes
from featurestore.disk.refusals import as_ours, memory_short
from featurestore.disk.threads import check_thread

WORDS = "biomass.words"
"""Key of click's `meta` under which the outermost command keeps the words that were typed."""


def typed_words(context: click.Context) -> list[str]:
    """What followed the program's name."""
    return context.meta.setdefault(WORDS, sys.argv[1:])


def with_same_command(*more: str) -> str:
    """A way on after a signal: what was typed, and options that it lacked."""
    context = click.get_current_context().find_root()
    words = typed_words(context)
    lacking = [option for option in more if option not in words]
    # as it was started, where that is no installed program
    name = context.info_name or ""
    program = name if name.startswith("python -m") else "biomass"
    return go_on_with(f"{program} {shlex.join([*words, *lacking])}")


@contextmanager
def one_line_errors(after: str = "", needs_threads: bool = True) -> Iterator[None]:
    """A BiomassError becomes one line and its exit code, here and nowhere else.

    A signal becomes 128 + its number.

    after : what a user can do after a signal, said when it comes.
    needs_threads : refuse at once where the system starts no thread.
    """
    show_crashes()
    with quiet(is_set(QUIET)), stopped_by_signals(after), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
        try:
            if needs_threads:
                check_thread()
            yield
        except Exception as err:
            told = as_ours(err) or memory_short(err)
            if told is None:  # a bug, which stays a traceback
                raise
            click.echo(f"error: {told}", err=True)
            sys.exit(told.exit_code)
