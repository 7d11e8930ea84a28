"""What a stopped prediction had finished: a line a photograph and backbone, beside the output, gone
when that is written."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from featurestore.disk.durable import appears_whole, file_sha256, remove
from predictor.members.member import Member, Raw
from predictor.members.submission import can_write
from trainer.heads.reads import vectors_of


class Journal:
    """Raw predictions on disk, appended as they come; a torn last line is not believed."""

    def __init__(self, path: Path, key: str, resume: bool, earlier: Sequence[Path] = ()) -> None:
        """key : what a line depends on besides its photograph; lines of another key are dropped, as
        all are without `resume`. earlier : other journals whose lines are taken too."""
        self.path, self._key = path, key
        # of the line of each photograph; the lines, kilobytes each, stay on disk
        self._place: dict[bytes, int] = {}
        sources = [each for each in (*earlier, path) if resume]
        if not self._take(sources):
            remove(path)

    def has(self, group: int, image_id: str) -> bool:
        """Whether a photograph of this id was finished, whatever its bytes were."""
        return _name(group, image_id) in self._place

    def get(self, group: int, image_id: str, sha256: str) -> list[Raw] | None:
        """What members of a group said of a photograph with these bytes, if it was finished."""
        place = self._place.get(_name(group, image_id))
        if place is None:
            return None
        try:
            with open(self.path, "rb") as file:
                file.seek(place)
                line = json.loads(file.readline())
        except (OSError, ValueError):  # another attempt at this part has finished, and removed it
            return None
        if (line["group"], line["image_id"], line["sha256"]) != (group, image_id, sha256):
            return None
        raws = []
        for values, words in line["raw"]:
            raws.append(Raw(np.array(values), None if words is None else np.array(words)))
        return raws

    def add(self, group: int, image_id: str, sha256: str, raws: Sequence[Raw]) -> None:
        """Keep a finished photograph: from here on a kill does not lose it."""
        plain = []
        for raw in raws:
            words = None if raw.word_HVC is None else raw.word_HVC.tolist()
            plain.append([raw.values_HVK.tolist(), words])
        line = {
            "key": self._key,
            "group": group,
            "image_id": image_id,
            "sha256": sha256,
            "raw": plain,
        }
        # opened anew each time: closing it writes the line out
        with can_write(self.path), open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """The output is written."""
        remove(self.path)

    def _take(self, sources: Sequence[Path]) -> int:
        """Gather the last line of each photograph; returns how many there are.

        The file appears whole: a kill while a journal is taken over must not lose it.
        """
        with ExitStack() as stack:
            files = []
            for source in sources:
                # none yet, or whoever wrote it has finished
                with suppress(FileNotFoundError):
                    files.append(stack.enter_context(open(source, "rb")))
            last: dict[bytes, tuple[BinaryIO, int]] = {}
            for file in files:
                for name, place in self._lines(file):
                    last[name] = file, place
            if not last:
                return 0
            with (
                can_write(self.path),
                appears_whole(self.path) as partial,
                open(partial, "wb") as gathered,
            ):
                for name, (file, place) in last.items():
                    file.seek(place)
                    self._place[name] = gathered.tell()
                    gathered.write(file.readline())
        return len(last)

    def _lines(self, file: BinaryIO) -> Iterator[tuple[bytes, int]]:
        """Of each whole line of this journal's key: which photograph, and where it begins."""
        place = 0
        for text in file:
            start, place = place, place + len(text)
            if not text.endswith(b"\n"):
                continue  # the one that was being written
            # what heads said is parsed when it is asked for: that is most of a line
            head, mark, _ = text.partition(b', "raw": ')
            try:
                line = json.loads(head + b"}" if mark else text)
            except ValueError:
                continue
            if isinstance(line, dict) and line.get("key") == self._key:
                yield _name(line["group"], line["image_id"]), start


def _name(group: int, image_id: str) -> bytes:
    """A photograph, as a backbone's group reads it, in 16 bytes."""
    return hashlib.sha256(f"{group} {image_id}".encode()).digest()[:16]


def journal_key(
    members: Sequence[Member],
    view_names: Sequence[str],
    precision: str | None,
    weights: str | None = None,
) -> str:
    """sha256 over all heads, how they read tokens, their specs and the views: what makes raw
    predictions what they are.

    weights : file of the backbone; it counts where nobody recorded which weights made the tokens.
    """
    digest = hashlib.sha256(json.dumps([list(view_names), precision]).encode())
    if weights and any(member.unknown_stores for member in members):
        digest.update(file_sha256(Path(weights)).encode())
    for member in members:
        for spec in member.specs.values():
            digest.update(spec.fingerprint.encode())
        # two heads may have the same tensors, and read other vectors, in another space, or for
        # States in another order
        reads = [
            member.config.head.model_dump(mode="json"),
            member.config.loss.space,
            member.targets.to_json(),
        ]
        if member.columns:
            reads.append(member.columns.to_json())
        if len(member.specs) > 1:
            reads.append(vectors_of(member.config))
        digest.update(json.dumps(reads).encode())
        for head in member.heads:
            for name, tensor in sorted(head.items()):
                digest.update(name.encode())
                digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
