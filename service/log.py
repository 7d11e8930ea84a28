"""Lines for the operator, on stderr. No text of a request can pass for a line of its own, and no token is ever in one."""

import sys
import traceback


def say(text: str) -> None:
    """One line, control characters escaped."""
    print(f"error: {_printable(text)}", file=sys.stderr, flush=True)


def say_traceback(text: str) -> None:
    """A line and the traceback of the exception at hand, each line of it marked."""
    lines = [f"  | {_printable(line)}" for line in traceback.format_exc().splitlines()]
    print(f"error: {_printable(text)}", *lines, sep="\n", file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    return text.encode("unicode_escape").decode()
