"""What is served: stores and sweeps by name, named once at the start."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from featurestore.disk.urls import is_object_url, object_url
from featurestore.errors import InputError
from service.elsewhere import ServedElsewhere
from service.errors import ServiceError
from service.served import Served

HIDDEN = "the server's log says what is wrong"
P = TypeVar("P")
ABSOLUTE = re.compile(r"(?<![\w.~-])/[^\s]")


class Library:
    """All that the server may answer from, by names in addresses; nothing else is opened.

    stores : paths, or URLs of object storage; Served by name. sweep_folders : folder of each sweep,
        by name. data : folder of the photographs, or None. max_pixels : the most that one may
        have, None is the store's.
    predictions : a table of `biomass predict`, explain : the folder of its pictures, or None.
    """

    def __init__(
        self,
        stores: Sequence[Path | str],
        sweeps: Sequence[Path] = (),
        data: Path | None = None,
        max_pixels: int | None = None,
        predictions: Path | None = None,
        explain: Path | None = None,
    ) -> None:
        folders = [Path(os.path.abspath(path)) for path in sweeps]
        places = [
            object_url(place) if is_object_url(place) else os.path.abspath(place)
            for place in stores
        ]
        self.stores = {
            name: ServedElsewhere(name, place) if is_object_url(place) else Served(name, place)
            for name, place in _by_name(places, lambda place: Path(place).stem)
        }
        self.sweep_folders = dict(_by_name(folders, lambda path: path.name))
        self.data = data and Path(os.path.abspath(data))
        self.max_pixels = max_pixels
        self.predictions = predictions and Path(os.path.abspath(predictions))
        self.explain = explain and Path(os.path.abspath(explain))

    def require_all(self) -> None:
        """InputError or StoreDamaged unless all stores open and all sweeps have a sweep.json."""
        for served in self.stores.values():
            served.require()
        for folder in self.sweep_folders.values():
            if (folder.parent / "sweep.json").is_file():
                raise InputError(f"{folder}: a run's folder, not a sweep's; give {folder.parent}")
            if not (folder / "sweep.json").is_file():
                raise InputError(
                    f"{folder}: not a sweep's folder: it has no sweep.json; give one that `biomass "
                    "train` made, e.g. runs/20261228_123456_halves"
                )

    def sweep(self, name: str) -> Path:
        """A sweep's folder; ServiceError `not-found` if it is unknown or not there now."""
        if name not in self.sweep_folders:
            served = ", ".join(self.sweep_folders) or "none; start with --sweep DIR"
            raise ServiceError("not-found", f"no sweep {name!r}", f"served: {served}")
        if not (self.sweep_folders[name] / "sweep.json").is_file():
            raise ServiceError(
                "not-found",
                f"sweep {name!r} is not there now",
                "ask again once it is back",
            )
        return self.sweep_folders[name]

    def without_paths(self, text: str) -> str:
        """A message fit for anybody: served files by name; HIDDEN if another path is in it."""
        known = {str(served.path): name for name, served in self.stores.items()}
        known |= {str(path): name for name, path in self.sweep_folders.items()} | (
            {str(self.data): "data"} if self.data else {}
        )
        if self.predictions:
            known[str(self.predictions)] = self.predictions.name
        # the longest first: a store may lie below a sweep's folder
        for path in sorted(known, key=len, reverse=True):
            if path != "/":
                text = re.sub(
                    rf"{re.escape(path)}(?![^\s/:,;'\")])",
                    lambda _, name=known[path]: name,
                    text,
                )
        return HIDDEN if ABSOLUTE.search(text) else text


def _by_name(paths: Iterable[P], naming: Callable[[P], str]) -> Iterable[tuple[str, P]]:
    """(name, path) of each; a name that is taken gets -2, -3 ... behind it.

    What is not UTF-8 in a name becomes `?`.
    """
    taken: set[str] = set()
    for path in paths:
        stem = naming(path).encode(errors="replace").decode()  # an address holds UTF-8 alone
        name = stem
        n = 1
        while name in taken:
            n += 1
            name = f"{stem}-{n}"
        taken.add(name)
        yield name, path
