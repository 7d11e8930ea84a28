"""Lines for the operator, on stderr.

No text of a request can pass for a line of its own, and no token is ever in one.
"""

import traceback

from featurestore.disk import messages


def say(text: str) -> None:
    """One line, control characters escaped."""
    messages.say(f"error: {_printable(text)}")


def say_traceback(text: str) -> None:
    """A line and the traceback of the exception at hand, each line of it marked."""
    lines = [f"  | {_printable(line)}" for line in traceback.format_exc().splitlines()]
    messages.say("\n".join([f"error: {_printable(text)}", *lines]))


def _printable(text: str) -> str:
    return text.encode("unicode_escape").decode()
