"""What a stopped prediction had finished: a line a photograph and backbone, beside the output, gone
when that is written."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from featurestore.disk.durable import file_sha256, remove, write_whole
from predictor.members.member import Member, Raw
from predictor.members.submission import can_write
from trainer.heads.reads import vectors_of


class Journal:
    """Raw predictions on disk, appended as they come; a torn last line is not believed."""

    def __init__(self, path: Path, key: str, resume: bool, earlier: Sequence[Path] = ()) -> None:
        """key : what a line depends on besides its photograph; lines of another key are dropped, as
        all are without `resume`. earlier : other journals whose lines are taken too."""
        self.path, self._key = path, key
        lines = {}
        for source in (*earlier, path) if resume else ():
            for line in self._lines(source):
                lines[line["group"], line["image_id"], line["sha256"]] = line
        kept = list(lines.values())
        self._done = {photograph: line["raw"] for photograph, line in lines.items()}
        if kept:  # whole: a kill while a journal is taken over must not lose it
            with can_write(path):
                write_whole(path, "".join(map(_text, kept)))
        else:
            remove(path)

    def get(self, group: int, image_id: str, sha256: str) -> list[Raw] | None:
        """What members of a group said of a photograph with these bytes, if it was finished."""
        found = self._done.get((group, image_id, sha256))
        if found is None:
            return None
        raws = []
        for values, words in found:
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
            file.write(_text(line))

    def close(self) -> None:
        """The output is written."""
        remove(self.path)

    def _lines(self, path: Path) -> Iterator[dict]:
        try:
            texts = path.read_text(errors="replace").splitlines()
        except FileNotFoundError:  # none yet, or whoever wrote it has finished
            return
        for text in texts:
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the one that was being written
            if isinstance(line, dict) and line.get("key") == self._key:
                yield line


def _text(line: dict) -> str:
    return json.dumps(line) + "\n"


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
