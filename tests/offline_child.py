"""Runs `python -m predictor` or a notebook's cells as on an offline machine: some packages are
absent, nothing connects, nothing is unpickled, and no file is opened to be written outside of one
folder.

    python offline_child.py FOLDER -m ARGUMENT...
    python offline_child.py FOLDER NOTEBOOK
"""

import json
import os
import runpy
import sys
from pathlib import Path

ABSENT = ("zarr", "google_crc32c", "matplotlib", "tensorstore", "simplejpeg")
NEVER = (
    "socket.__new__",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "pickle.find_class",
    "os.system",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def keep_to(folder: str) -> None:
    """From here on a breach is an error, whoever commits it."""

    def watch(event: str, args: tuple) -> None:
        if event in NEVER:
            raise RuntimeError(f"{event} {args}")
        written = (
            event == "open"
            and isinstance(args[0], str)
            and args[0] != os.devnull
            and args[2] & WRITES
        )
        if written and not os.path.realpath(args[0]).startswith(folder + "/"):
            raise RuntimeError(f"{args[0]} is opened to be written")

    sys.addaudithook(watch)


if __name__ == "__main__":
    folder, what, *arguments = sys.argv[1:]
    sys.path.pop(0)  # the folder of this file
    sys.modules.update(dict.fromkeys(ABSENT))
    keep_to(os.path.realpath(folder))
    if what == "-m":
        sys.argv = ["predictor", *arguments]
        runpy.run_module("predictor", run_name="__main__", alter_sys=True)
    names: dict = {}
    for cell in json.loads(Path(what).read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
