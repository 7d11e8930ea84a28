"""How a command runs: errors become one line and an exit code, signals end it in order."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from featurestore.disk.interrupts import stopped_by_signals
from featurestore.disk.messages import show_crashes
from featurestore.disk.refusals import as_ours
from featurestore.disk.threads import check_thread


@contextmanager
def one_line_errors(after: str = "", needs_threads: bool = True) -> Iterator[None]:
    """A BiomassError becomes one line and its exit code, here and nowhere else.

    A signal becomes 128 + its number.

    after : what a user can do after a signal, said when it comes.
    needs_threads : refuse at once where the system starts no thread.
    """
    show_crashes()
    with stopped_by_signals(after), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
        try:
            if needs_threads:
                check_thread()
            yield
        except Exception as err:
            told = as_ours(err)
            if told is None:  # a bug, which stays a traceback
                raise
            click.echo(f"error: {told}", err=True)
            sys.exit(told.exit_code)
