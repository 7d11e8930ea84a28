"""A store cut short while it is mapped kills whoever reads it (SIGBUS): the last words are a sentence that says so.

No Python handler runs then: the read faults again before it is called. But `faulthandler` writes to a file from within the fault,
here to a pipe, at whose other end a shell says the sentence in place of "Bus error" and its traceback, and passes on all else.
"""

import faulthandler
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SAY = "say "
READER = f"""
trap '' INT TERM HUP
while IFS= read -r line; do
    case $line in
        "{SAY}"*) sentence=${{line#"{SAY}"}} ;;
        "Fatal Python error: Bus error"*) printf '\\nerror: %s\\n' "$sentence" >&2; exec cat >/dev/null ;;  # after a progress bar
        *) printf '%s\\n' "$line" >&2 ;;
    esac
done
"""
_pipe: int | None = None


@contextmanager
def bus_errors_explained() -> Iterator[None]:
    """In this block a SIGBUS says on stderr what `explain_bus_error` was told last, not a traceback, and ends the process still.

    Nothing changes where there is no shell, or where faulthandler is on already: somebody wants tracebacks.
    """
    global _pipe
    if faulthandler.is_enabled() or not os.access("/bin/sh", os.X_OK):
        yield
        return
    end, _pipe = os.pipe()  # no child inherits the writing end: the shell ends when this process does, however it does
    with subprocess.Popen(["/bin/sh", "-c", READER], stdin=end, stdout=subprocess.DEVNULL):
        os.close(end)
        explain_bus_error("a mapped file was cut or replaced while it was read (SIGBUS); bring it back, then train again")
        faulthandler.enable(_pipe)
        try:
            yield
        finally:
            faulthandler.disable()
            os.close(_pipe)
            _pipe = None


def explain_bus_error(sentence: str) -> None:
    """From here on say this: for who knows what is read, and how to go on. Does nothing outside of `bus_errors_explained`."""
    if _pipe is not None:
        with suppress(BrokenPipeError):  # somebody killed the shell
            os.write(_pipe, f"{SAY}{' '.join(sentence.split())}\n".encode())
