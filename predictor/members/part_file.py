"""A part of a prediction on disk: what it is a part of, and its rows of the wide table."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from featurestore.counts import count_of
from featurestore.disk.durable import write_whole
from featurestore.disk.json_values import json_value
from featurestore.errors import InputError, MismatchError, UsageError, list_some
from predictor.checks import parse_part
from predictor.members.submission import can_write

SAME = {
    "parts": "number of parts",
    "table": "table",
    "options": "options",
    "heads": "heads",
    "device": "kind of device",
    "torch": "version of torch",
}
"""What all parts of a prediction have in common, in words."""


@dataclass(frozen=True)
class Part:
    """A piece of a table's photographs, counted from 0."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of `3/16`; UsageError for anything else."""
        return cls(*parse_part(text))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @property
    def name(self) -> str:
        """Of its file; in the order of parts."""
        return f"part_{self.number:05d}_of_{self.total:05d}.jsonl"

    def slice(self, n: int) -> slice:
        """Its photographs among n; UsageError where some part would have none."""
        if self.total > n:
            raise UsageError(
                f"--part {self}: the table has {count_of(n, 'photograph')}, and each part needs "
                "one; make fewer parts"
            )
        # by integers: the ends of neighbours are one, and sizes differ by one photograph at most
        start = self.number * n // self.total
        end = (self.number + 1) * n // self.total
        return slice(start, end)


@dataclass(frozen=True)
class PartFile:
    """A finished part."""

    path: Path
    about: dict[str, Any]
    """What `SAME` has, and of the part alone: its number, the places of its runs, a checksum."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """InputError for what is no part; its rows are not read yet."""
        with path.open(errors="replace") as file:
            text = file.readline()
        try:
            about = json.loads(text)
            part = Part(about["part"], about["parts"])
            missing = {*SAME, "places", "sha256"} - set(about)
        except (ValueError, KeyError, TypeError) as err:
            raise _damaged(path) from err
        if missing or part.name != path.name:
            raise _damaged(path)
        return cls(path, about)

    @property
    def part(self) -> Part:
        return Part(self.about["part"], self.about["parts"])

    def rows(self) -> tuple[pd.DataFrame, dict[str, str]]:
        """The wide table of its photographs, and why some of them have the training mean, by id."""
        text = self.path.read_text(errors="replace").partition("\n")[2]
        if _sha256(text) != self.about["sha256"]:
            raise _damaged(self.path)
        told = json.loads(text)
        columns = {}
        for name, values in told["columns"].items():
            # words as they are, else numbers, of which None is the one that is not known
            has_words = any(isinstance(value, str) for value in values)
            columns[name] = np.array(values, object if has_words else float)
        return pd.DataFrame(columns), told["unusable"]


def write_part(
    path: Path,
    about: Mapping[str, Any],
    table: pd.DataFrame,
    unusable: Mapping[str, str],
) -> None:
    """Write a part, which appears whole: `about` as `PartFile` has it, without the checksum."""
    columns = {name: json_value(values.tolist()) for name, values in table.items()}
    # JSON writes a float so that it is read back bit for bit, which a merge needs
    rows = json.dumps({"columns": columns, "unusable": unusable}) + "\n"
    first = json.dumps({**about, "sha256": _sha256(rows)}) + "\n"
    with can_write(path):
        write_whole(path, first + rows)


def parts_in(folder: Path) -> list[PartFile]:
    """The finished parts in a folder, in their order, whatever they are of."""
    return [PartFile.open(path) for path in sorted(folder.glob("part_*_of_*.jsonl"))]


def check_same(found: PartFile, about: Mapping[str, Any], whose: object) -> None:
    """MismatchError where a part is not of the prediction that `about` is of."""
    for key, what in SAME.items():
        theirs, ours = found.about[key], about[key]
        if theirs == ours:
            continue
        if key == "heads":  # a checksum tells nobody which
            told = []
            for each in (found.about, about):
                names = [Path(run).name for run in each["places"]["runs"]]
                told.append(f"{', '.join(names)} ({each[key][:12]})")
            theirs, ours = told
        raise MismatchError(
            f"{found.path}: is of another prediction than {whose}: {what} "
            f"{_difference(theirs, ours)}; remove the parts that are not wanted, or name another "
            "folder"
        )


def check_complete(folder: Path, parts: Sequence[PartFile]) -> None:
    """InputError naming what is missing, MismatchError for a part that is not like the first."""
    if not parts:
        raise InputError(
            f"{folder}: no part of a prediction is there; `biomass predict --part 0/16 --out "
            f"{folder}` makes the first of 16"
        )
    first = parts[0]
    for found in parts:
        check_same(found, first.about, first.path.name)
    total = first.part.total
    there = {found.part.number for found in parts}
    missing = [f"--part {Part(number, total)}" for number in range(total) if number not in there]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {total} parts are missing; predict them with the options "
            f"of the others:{list_some(missing)}"
        )


def _difference(theirs: Any, ours: Any) -> str:
    """Both values where they differ, shortly."""
    if not isinstance(theirs, dict):
        return f"{_short(theirs)}, not {_short(ours)}"
    differing = []
    for name in sorted({*theirs, *ours}):
        here, there = theirs.get(name), ours.get(name)
        if here != there:
            differing.append(f"{name} {_short(here)}, not {_short(there)}")
    return ", ".join(differing)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    text = "not given" if value is None else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path}: is not a whole part of a prediction; remove it, and predict that part again"
    )
