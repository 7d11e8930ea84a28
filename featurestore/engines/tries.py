"""How often each item was begun, counted on disk.

A driver that is killed and started again goes on counting, so an item that takes the driver down
with it ends the run too.
"""

import json
from pathlib import Path

from featurestore.disk.durable import remove
from featurestore.errors import PartFailed

BEGUN = "begun"


class Tries:
    """Counts of a run's items, below a folder that is theirs alone."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, name: str) -> None:
        """Count one more try of an item; PartFailed, with its last words, if it has had all."""
        path = self._path(name)
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        n_begun = lines.count(BEGUN)
        if n_begun >= self._most:
            words = [json.loads(line) for line in lines if line != BEGUN]
            last = words[-1] if words else "whatever ran it was killed, too"
            raise PartFailed(
                f"{name}: failed {n_begun} times, the last time with:\n{last.rstrip()}\n"
                "What is finished is kept, and the same command goes on from there; put right what "
                "this says first"
            )
        self._add(path, BEGUN)

    def failed(self, name: str, words: str) -> None:
        """Keep what was heard of a try that failed."""
        self._add(self._path(name), json.dumps(words))

    def finished(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def forget(self) -> None:
        """At the end of a run, however it came: the next one has all tries again."""
        remove(self._folder)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.txt"

    def _add(self, path: Path, line: str) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
