"""Where the mass is: maps of what heads say of every patch, kept while photographs are predicted,
drawn once that is written.

Drawn last, so that pictures never stand between a deadline and the submission; until then a map is
a small file, so memory does not grow with the photographs, and a prediction that goes on with
--continue finds those of before. How a picture looks is `picture`'s business, the page with all of
them is `report`'s.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd

from featurestore.disk.durable import appears_whole, remove
from featurestore.disk.interrupts import check_interrupt
from featurestore.disk.messages import new_bar
from featurestore.disk.picture_names import picture_names
from featurestore.disk.threads import Pool
from featurestore.disk.usable import usable_cpus
from featurestore.errors import InputError, UsageError
from featurestore.explore.pictures import upright_grid
from featurestore.format.spec import ViewSpec
from featurestore.photos.crop import Crop
from featurestore.photos.decode import AHEAD
from featurestore.photos.images import read_photograph
from predictor.extras.picture import Map, blank, draw_picture, fitted
from predictor.extras.report import About, Entry, write_report
from predictor.extras.shown import Shown
from predictor.members.combine import Combiner
from predictor.members.member import Member, Stage, StageTokens, by_spec
from predictor.members.submission import can_write
from trainer.heads import kinds

PICTURE_S = 0.5  # to draw one of 1200 pixels on one core, of which a deadline must leave some


@dataclass(frozen=True)
class Explainer:
    """What a prediction's members see in its photographs, on its way to `folder`."""

    folder: Path
    members: Sequence[Member]
    view_names: Sequence[str]
    key: str
    """What maps depend on besides their photograph: `journal_key`."""
    crop: Crop
    """Of the first member: what of a photograph is drawn."""

    def __post_init__(self) -> None:
        shown = set()
        for member in self.members:
            for spec in member.specs.values():
                t = spec.tokens
                is_whole = t.crop != "center" and t.fit not in ("crop", "pad")
                shown.add(None if is_whole else (t.crop, t.fit))
        if len(shown) > 1:
            raise UsageError(
                "--explain: the members see other parts of a photograph, or padding around it, by "
                "stores of other crops; "
                "choose members of one store"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(
                f"--explain {self.folder}: is a file; "
                "name a folder for the pictures and report.html"
            )
        with self._can_write():
            # tried now, not once all photographs are predicted
            self._maps.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.folder).close()

    @cached_property
    def unit(self) -> str | None:
        """What the maps say: grams if any member counts them, else shares, else nothing."""
        told = [kinds.load(member.config.head.kind).maps_say for member in self.members]
        units = ("grams", "share") if self.shown.first else ("share",)
        return next((unit for unit in units if unit in told), None)

    @cached_property
    def shown(self) -> Shown:
        return Shown(Combiner(list(self.members)).targets)

    @cached_property
    def shares(self) -> np.ndarray:
        """(M,) weight of each member's map; 0 where its kind says something else."""
        told_M = [kinds.load(member.config.head.kind).maps_say for member in self.members]
        # grams and shares of attention do not add up: members that say the other have no part
        says_M = np.array([told == self.unit for told in told_M])
        weight_M = says_M * np.array([member.weight for member in self.members])
        return weight_M / weight_M.sum() if self.unit else np.zeros(len(self.members))

    def has(self, group: int, image_id: str, sha256: str) -> bool:
        """Whether nothing has to be looked at for a group's map of a photograph."""
        return (
            not self.shares[by_spec(self.members)[group]].any()
            or self._path(group, image_id, sha256).exists()
        )

    def keep(
        self,
        group: int,
        image_id: str,
        sha256: str,
        stage: Stage,
        tokens: StageTokens,
        views: Sequence[ViewSpec],
    ) -> None:
        """A group's map of one photograph: the mean over its views, with flips undone."""
        share_M = self.shares[by_spec(self.members)[group]]
        maps = []
        for m in np.flatnonzero(share_M):
            map_VTPM = stage.ensembles[m].maps(stage.read(m, tokens))
            told = stage.members[m].spec.tokens
            map_ThwM = upright(map_VTPM, views, told.grid)
            whole = told.laid_out(map_ThwM)
            # shares of a tile become shares of the photograph
            if self.unit == "share":
                whole = whole / told.n_tiles
            else:
                # levels and shares are means over patches: a part of them each, to sum to them
                outputs = self.shown.targets.outputs[: whole.shape[-1]]
                is_mean_M = [target.kind != "amount" for target in outputs]
                n_patches = whole.shape[0] * whole.shape[1]
                whole = np.where(is_mean_M, whole / n_patches, whole)
            maps.append(share_M[m] * whole)
        if maps:
            with (
                self._can_write(),
                appears_whole(self._path(group, image_id, sha256)) as partial,
                open(partial, "wb") as file,
            ):
                # by a handle: to the end of a name np.save would add .npy
                np.save(file, summed(maps).astype(np.float32))

    def map(self, image_id: str, sha256: str) -> Map | None:
        """All groups' maps of a photograph together, on their finest grid, or None."""
        n_groups = len(by_spec(self.members))
        paths = [self._path(group, image_id, sha256) for group in range(n_groups)]
        maps = [np.load(path).astype(float) for path in paths if path.exists()]
        if not maps:
            return None
        return Map(self.unit, summed(maps), self.shown)

    def report(
        self,
        paths: Mapping[str, Path],
        table: pd.DataFrame,
        unusable: Mapping[str, str],
        level: float | None = None,
        progress: bool = True,
    ) -> Path:
        """Draw a picture of every row of `table`, and report.html; returns the page's path.

        unusable : why, by image_id, of photographs that the training mean stands for; level : of
            the table's intervals.
        """
        names = picture_names(list(table["image_id"]))

        def entry(row: pd.Series) -> Entry:
            image_id = row["image_id"]
            path = paths[image_id]
            try:
                found = read_photograph(path, self.crop.bits, self.crop.max_pixels)
            except InputError as err:
                photograph, seen = blank(_by_name(f"no picture: {err}", path)), None
            else:
                photograph = fitted(self.crop.framed(found.picture))
                seen = self.map(image_id, found.sha256)
            why = _by_name(unusable.get(image_id, ""), path)
            with self._can_write(), appears_whole(self.folder / names[image_id]) as partial:
                picture = draw_picture(
                    photograph,
                    seen,
                    row,
                    f"the training mean stands in: {why}" if why else "",
                    level,
                    self.shown,
                )
                # 0.25 s and 3.0 MB; Pillow's own level 6: 0.6 s and 2.8 MB
                picture.save(partial, "PNG", compress_level=1)
            return Entry.of(row, names[image_id], photograph, seen, why, len(table))

        entries = _in_threads(entry, [row for _, row in table.iterrows()])
        bar = new_bar("explain", len(table), "image", progress, iterable=entries)
        about = About(self.members, self.view_names, self.unit, level, self.shown)
        with self._can_write():
            page = write_report(self.folder / "report.html", about, table, list(bar))
        remove(self._maps)
        return page

    def _can_write(self) -> AbstractContextManager[None]:
        return can_write(self.folder, "--explain")

    @property
    def _maps(self) -> Path:
        # no name that a folder of someone else's would have
        return self.folder / "report.html.progress"

    def _path(self, group: int, image_id: str, sha256: str) -> Path:
        """Where a map is; other heads, views or bytes of the photograph have another."""
        # a NUL between them, which none of them holds
        parts = [self.key, str(self.shares), str(group), image_id, sha256]
        address = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self._maps / f"{address[:32]}.npy"


def _by_name(text: str, path: Path) -> str:
    """The text with file names for whole paths: room is short, and pages are passed on."""
    return text.replace(f"{path.parent}{os.sep}", "")


def upright(maps_VTPM: np.ndarray, views: Sequence[ViewSpec], grid: tuple[int, int]) -> np.ndarray:
    """(T, h, w, M): the mean over views, each turned back to how the photograph lies; grid is of an
    untransposed tile."""
    turned = []
    for map_TPM, view in zip(maps_VTPM, views, strict=True):
        height, width = grid[::-1] if view.transpose else grid
        map_ThwM = map_TPM.reshape(len(map_TPM), height, width, -1)
        turned.append(upright_grid(map_ThwM, view))
    return np.mean(turned, 0)


def summed(maps_HWM: Sequence[np.ndarray]) -> np.ndarray:
    """(H, W, M): all maps together, on the grid of the finest."""
    height, width = max((each.shape[:2] for each in maps_HWM), key=np.prod)
    resampled = []
    for each in maps_HWM:
        # left as they are where grids agree: resampling would round
        is_alike = each.shape[:2] == (height, width)
        resampled.append(each if is_alike else regridded(each, height, width))
    return sum(resampled)


def regridded(map_HWM: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, M): the same sums, each patch spread evenly over the area it covers."""
    return np.einsum(
        "yh,xw,hwm->yxm",
        _overlap(map_HWM.shape[0], height),
        _overlap(map_HWM.shape[1], width),
        map_HWM,
    )


def _overlap(n: int, m: int) -> np.ndarray:
    """(m, n): which share of each of n equal parts of a line lies in each of m."""
    edge_n = np.arange(n + 1) / n
    edge_m = np.arange(m + 1)[:, None] / m
    first = np.maximum(edge_m[:-1], edge_n[:-1])
    last = np.minimum(edge_m[1:], edge_n[1:])
    return np.maximum(last - first, 0) * n  # parts that do not meet end before they begin


def _in_threads(work, items: Sequence) -> Iterator:
    """What work makes of each item, in order; a signal or an error ends it at the next one."""
    pool = Pool(min(AHEAD, usable_cpus()))
    try:
        for result in pool.map(work, items):
            check_interrupt()
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
