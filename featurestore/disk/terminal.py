"""Text in a terminal's width. In files and pipes nothing is shortened or broken."""

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress

LEAST = 60  # columns: in narrower terminals lines run over


def terminal_width(is_stderr: bool = False) -> int | None:
    """Columns of the terminal that stdout, or stderr, is; None where it is none."""
    stream = sys.stderr if is_stderr else sys.stdout
    with suppress(ValueError):  # it is closed
        if stream is not None and stream.isatty():
            return max(LEAST, shutil.get_terminal_size().columns)
    return None


def hung(text: str, width: int | None, indent: int) -> str:
    """Lines that are longer than the width are broken at blanks, and go on behind an indent."""
    if width is None:
        return text
    wrapper = textwrap.TextWrapper(
        width,
        subsequent_indent=" " * indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = []
    for line in text.split("\n"):
        lines += wrapper.wrap(line) if len(line) > width else [line]
    return "\n".join(lines)


def fitting(
    columns: Sequence[str],
    droppable: Sequence[str],
    width: int | None,
    render: Callable[[Sequence[str]], str],
) -> str:
    """A table without as many of its columns as make it fit.

    droppable : in this order, each as long as the table is too wide.
    """
    shown = list(columns)
    text = render(shown)
    for name in droppable:
        if width is None or max(map(len, text.split("\n"))) <= width:
            break
        if name in shown:
            shown.remove(name)
            text = render(shown)
    return text


def shortened(name: str, most: int) -> str:
    """At most so many characters: the middle is left out, numbers stand at both ends."""
    if len(name) <= most:
        return name
    n_first = (most - 1) // 2
    return f"{name[:n_first]}…{name[len(name) - (most - 1 - n_first) :]}"
