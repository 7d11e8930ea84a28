"""Predictor: images -> tokens -> heads -> grams, by the functions that made the store."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.device import choose_device
from featurestore.counts import count_of
from featurestore.disk.interrupts import check_interrupt, patient_keyboard
from featurestore.disk.messages import new_bar, say
from featurestore.disk.threads import usable_threads
from featurestore.errors import InputError, NoAccessError, UsageError, list_some
from featurestore.format.spec import StoreSpec, TokenSpec, ViewSpec
from featurestore.photos.catalog import read_test
from featurestore.photos.crop import Crop
from featurestore.photos.decode import (
    Decoded,
    check_photographs,
    dark_remark,
    inspect_photographs,
)
from featurestore.photos.find import find_photographs
from featurestore.photos.jpeg import UNCHECKED, can_check
from featurestore.photos.views import chosen_tta
from predictor.bundle.bundle import load_members
from predictor.extras.explain import Explainer
from predictor.extras.intervals import Intervals
from predictor.members.combine import Average, Combiner
from predictor.members.deadline import Clock
from predictor.members.ensemble import BankEnsemble, RegressorEnsemble
from predictor.members.journal import Journal, journal_key
from predictor.members.member import Member, Raw, Stage, by_spec, check_finite
from predictor.members.table import Table
from predictor.photographs import Pass


@dataclass
class Predictor:
    """Members, and where their backbones run."""

    members: list[Member]
    devices: list[str]
    precision: str | None = None
    backbone_weights: str | None = None
    average: Average = "mean"
    constraints: str | None = None
    max_pixels: int | None = None
    table: Table | None = None
    _stages: dict[tuple[int, str], Stage] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        runs: Path | Sequence[Path],
        folds: Sequence[int] | None = None,
        weights: str | None = None,
        backbone_weights: str | None = None,
        device: str = "auto",
        precision: str | None = None,
        average: Average | None = None,
        constraints: str | None = None,
        allow_partial: bool = False,
        weigh: Callable[[list[Member]], list[Member]] | None = None,
        max_pixels: int | None = None,
        table: Path | None = None,
        backbones: bool = True,
    ) -> "Predictor":
        """The predictor of a run's folder, of several, or of a bundle's, which is checked first.

        folds : which folds' heads (all repeats of them); weights : `last` or `best`; None is all,
            and `last` or a bundle's own.
        allow_partial : a bundle's heads that are missing or damaged are left out, with a warning,
            instead of refused.
        weigh : gives members their shares in the ensemble, and leaves some out, before anything
            heavy is loaded for them.
        backbone_weights : file of the backbone; None takes those kept beside the store, else what
            made the store. Where nobody recorded that, the file is believed, with a warning.
        device : one, or several with commas that share the photographs; precision : of the
            backbone; None is the store's.
        max_pixels : the most that a photograph may have, None is the store's.
        table : CSV of the photographs, of which heads read `head.columns`; InputError where some
            do, and it lacks one.
        average : over heads and views, None is the mean; constraints : `order` or `clip`, None is
            the run's.
        backbones : False loads none before it is needed, as to combine what was predicted before.

        Raises InputError or MismatchError if a folder lacks something or the weights are not those
        of the store.
        """
        paths = [runs] if isinstance(runs, str | Path) else list(runs)
        chosen = folds, weights, backbone_weights, allow_partial
        members = []
        for path in paths:
            members += load_members(Path(path), *chosen)
        members = weigh(members) if weigh else members
        devices = [str(choose_device(name)) for name in device.split(",")]
        predictor = cls(
            members,
            devices,
            precision,
            backbone_weights,
            average or "mean",
            constraints,
            max_pixels,
            Table.of(members, table),
        )
        # members that do not go together are refused before a backbone is loaded
        predictor.combiner  # noqa: B018
        if backbones:
            predictor.stage(0, devices[0])
        return predictor

    @property
    def combiner(self) -> Combiner:
        return Combiner(self.members, self.average, self.constraints)

    @property
    def backbone(self) -> Backbone:
        """Of the first member."""
        return self.stage(0, self.devices[0]).backbone

    @property
    def ensemble(self) -> BankEnsemble | RegressorEnsemble:
        """Of the first member."""
        return self.stage(0, self.devices[0]).ensembles[0]

    def stage(self, group: int, device: str) -> Stage:
        """Backbones and heads of a group of members on a device; those of other groups are let go,
        since two may not fit."""
        key = (group, device)
        if key not in self._stages:
            # before the new one is loaded, or both would be in memory for a moment
            for other in [each for each in self._stages if each[0] != key[0]]:
                del self._stages[other]
            members = [self.members[m] for m in by_spec(self.members)[group]]
            given = self.precision, self.backbone_weights, self.max_pixels
            self._stages[key] = Stage.load(members, device, *given)
        return self._stages[key]

    def raw(self, photograph: Decoded, image_id: str, views: Sequence[ViewSpec]) -> Raw:
        """What the first member says of one photograph."""
        stage = self.stage(0, self.devices[0])
        tokens = stage.tokens([(image_id, {stage.backbone.crop: photograph})], views)[0]
        rows = self._rows([image_id], by_spec(self.members)[0])
        return stage.told(tokens, rows[image_id])[0]

    def predict(
        self,
        paths: dict[str, Path],
        tta: int | str | Sequence[ViewSpec] = 4,
        progress: bool = True,
        **options,
    ) -> pd.DataFrame:
        """Predictions of photographs by id; options as `tell`.

        Returns one row an image: image_id, the targets (averaged over views, heads and members,
        then constrained), and for each `TARGET_sd`, the spread of single heads and views, which are
        constrained on their own; see `Combiner.table`.
        """
        rows = self.combiner.rows(list(paths))
        self.tell(paths, rows.put, tta, progress, **options)
        return rows.table()

    def raws(
        self,
        paths: dict[str, Path],
        tta: int | str | Sequence[ViewSpec] = 4,
        progress: bool = True,
        **options,
    ) -> dict[str, list[Raw] | None]:
        """What each member says of each photograph, by id; None of those that cannot be used.

        Options as `tell`. It is all in memory, kilobytes a photograph.
        """
        raw_NM: dict[str, list[Raw] | None] = dict.fromkeys(paths)
        self.tell(paths, raw_NM.__setitem__, tta, progress, **options)
        return raw_NM

    @usable_threads()
    def tell(
        self,
        paths: dict[str, Path],
        take: Callable[[str, list[Raw]], None],
        tta: int | str | Sequence[ViewSpec] = 4,
        progress: bool = True,
        deadline_s: float | None = None,
        kept: Journal | None = None,
        unusable: dict[str, str] | None = None,
        explainer: Explainer | None = None,
        sealed: bool = False,
        say: Callable[[str], object] = say,
    ) -> None:
        """Hand over what all members say of a photograph as soon as they have said it; one pass
        over the photographs per backbone.

        take : gets id and what each member says, photographs in any order.
        tta : 1, 2, 4 or 8, names of views with commas, or views.
        deadline_s : seconds from now; views are left out rather than overrun, and `say` is told.
        kept : keeps finished photographs, and gives back what it has.
        unusable : gets the photographs that cannot be used, and why, of which nothing is handed
            over; without it they are all listed in an InputError before work starts.
        explainer : keeps maps of what heads see, to draw them later.
        sealed : a store holds tokens of all these photographs; damage inside their pictures is a
            warning then.
        """
        start = time.monotonic()  # of the deadline: what is looked at before counts as well
        if not can_check():
            say(UNCHECKED)
        views = chosen_tta(tta)
        groups = by_spec(self.members)
        for group in groups:
            crops: dict[Crop, None] = {}  # each way of cutting once: headers are read for each
            for m in group:
                for spec in self.members[m].specs.values():
                    _check_views(views, spec.tokens)
                    crops[Crop.of(spec.tokens, self._most_of(spec))] = None
            for crop in crops:
                _check_photographs(paths, crop, unusable)
        left_out = unusable or {}
        todo = {image_id: path for image_id, path in paths.items() if image_id not in left_out}

        all_specs = [spec for member in self.members for spec in member.specs.values()]
        takes_16_bits = any(spec.tokens.bits is None for spec in all_specs)
        # a store that knows its depth was told; elsewhere dark pictures may be 12 bits in 16
        if takes_16_bits:
            most = max(self._most_of(spec) for spec in all_specs)
            remark = dark_remark(todo.values(), max_pixels=most)
            if remark:
                say(f"warning: {remark}")

        def note_damaged(image_id: str, err: InputError) -> None:
            unusable[image_id] = str(err)

        damaged = None if unusable is None else note_damaged
        # what members of the backbones until now said
        begun: dict[str, dict[int, Raw]] = {}
        clock = Clock(deadline_s, len(todo) * len(groups), say, len(self.devices), start)
        waits = patient_keyboard("the same call goes on from here") if kept else nullcontext()
        with waits, new_bar("predict", clock.n_left, "image", progress) as bar:
            # one pass over the photographs for each backbone, since two may not fit in memory
            for group, positions in enumerate(groups):
                members = [self.members[position] for position in positions]
                stages = [self.stage(group, device) for device in self.devices]
                rows = self._rows(todo, positions)
                work = Pass(group, views, clock, kept, explainer, damaged, sealed, rows)
                for found in work.run(stages, todo):
                    # before the journal: what is not finite must not be taken up again
                    check_finite(members, found.raws, found.image_id)
                    if kept and found.n_views:
                        kept.add(group, found.image_id, found.read, found.raws)
                    clock.done(found.n_views, found.seconds)
                    told = begun.pop(found.image_id, {})
                    told |= zip(positions, found.raws, strict=True)
                    if len(told) == len(self.members):
                        take(found.image_id, [told[m] for m in range(len(told))])
                    else:
                        begun[found.image_id] = told
                    bar.update()
                    check_interrupt()

    def _most_of(self, spec: StoreSpec) -> int:
        """The most pixels that a photograph may have for the tokens of a store."""
        return self.max_pixels or spec.max_pixels

    def _rows(
        self, image_ids: Iterable[str], positions: Sequence[int]
    ) -> dict[str, list[np.ndarray]]:
        """What each of some members reads beside each photograph."""
        table = self.table or Table.of(self.members, None)
        return table.rows(list(image_ids), [self.members[m] for m in positions])

    def intervals(self, level: float) -> Intervals:
        """At this level, as `Intervals.of`; UsageError for a way to predict whose errors out of
        fold are not known."""
        scored = self.members[0].config.inference.constraints
        others = [f"--average {self.average}"] * (self.average != "mean")
        others += [f"--constraints {self.constraints}"] * (self.constraints not in (None, scored))
        if others:
            raise UsageError(
                "--interval: errors out of fold are known of means over heads and views and "
                f"constraints {scored!r} alone; leave out --interval, or {' and '.join(others)}"
            )
        return Intervals.of(self.members, level)

    def journal(
        self,
        path: Path,
        tta: int | str | Sequence[ViewSpec],
        resume: bool,
        earlier: Sequence[Path] = (),
    ) -> Journal:
        """Where finished photographs of such a prediction are kept until its output is written;
        with `resume` those of earlier journals too."""
        return Journal(path, self.key(tta), resume, earlier)

    def explainer(
        self, folder: Path, tta: int | str | Sequence[ViewSpec], photographs: Sequence[Path] = ()
    ) -> Explainer:
        """What keeps and draws maps of such a prediction, in a folder without photographs."""
        if os.path.realpath(folder) in {os.path.realpath(path.parent) for path in photographs}:
            raise UsageError(
                f"--explain {folder}: photographs lie there, and pictures may take their names; "
                "name another folder"
            )
        names = [view.name for view in chosen_tta(tta)]
        first = self.members[0].spec
        crop = Crop.of(first.tokens, self._most_of(first))
        return Explainer(folder, self.members, names, self.key(tta), crop)

    def key(self, tta: int | str | Sequence[ViewSpec]) -> str:
        """sha256 of all that makes raw predictions what they are, besides the photographs."""
        names = [view.name for view in chosen_tta(tta)]
        return journal_key(self.members, names, self.precision, self.backbone_weights)


def predict(
    run: Path | Sequence[Path],
    data: Path,
    tta: int | str = 4,
    progress: bool = True,
    interval: float | None = None,
    allow_outside: bool = False,
    keep: Path | None = None,
    csv: Path | None = None,
    **options,
) -> pd.DataFrame:
    """Masses of every photograph in data/test.csv; options as `Predictor.load`.

    allow_outside : also take photographs that are not below `data`, by an absolute path, `..` or a
        link.
    keep : file for finished photographs until the table is returned; after a stop the same call
        goes on from there.
    csv : the table to read instead of test.csv; its paths start from `data` all the same.

    Returns the wide table of `Predictor.predict`, with the ends of `Intervals` at a level if one is
    given. Missing or damaged photographs are all listed before work starts.
    """
    paths = test_photographs(Path(data), allow_outside=allow_outside, csv=csv)
    predictor = Predictor.load(run, table=csv or Path(data) / "test.csv", **options)
    intervals = None if interval is None else predictor.intervals(interval)
    kept = predictor.journal(keep, tta, resume=True) if keep else None
    table = predictor.predict(paths, tta, progress, kept=kept)
    if kept:
        kept.close()
    return table if intervals is None else intervals.added(table)


def test_photographs(
    data: Path, missing: bool = False, allow_outside: bool = False, csv: Path | None = None
) -> dict[str, Path]:
    """Photograph of each image of test.csv or `csv`; InputError listing all that are missing or
    outside `data`, unless they may be."""
    images = read_test(csv or data / "test.csv").images
    return photographs_of(images, data, missing, allow_outside)


def photographs_of(
    images: pd.DataFrame, data: Path, missing: bool = False, allow_outside: bool = False
) -> dict[str, Path]:
    """As `test_photographs`, of a table with image_id and path."""
    paths = find_photographs(
        images, data, allow_outside, missing, allow="--allow-outside", without="--on-error mean"
    )
    return dict(zip(images["image_id"], paths, strict=True))


def _check_views(views: Sequence[ViewSpec], tokens: TokenSpec) -> None:
    if any(view.transpose for view in views) and tokens.tile_height != tokens.tile_width:
        raise InputError(
            f"transposed views need square tiles, these are {tokens.tile_height} x "
            f"{tokens.tile_width}; choose --tta 1, 2 or 4, or other views"
        )


def _check_photographs(paths: dict[str, Path], crop: Crop, unusable: dict[str, str] | None) -> None:
    """Note what cannot be used, or InputError listing it all, from headers alone."""
    if paths and unusable is None:
        check_photographs(list(paths.values()), crop)
    elif paths:
        ids = list(paths)
        found = inspect_photographs(list(paths.values()), crop)[1]
        # somebody else's mistake, easily mended: the training mean must not stand for it
        if unreadable := [each.why for each in found.values() if each.status == "unreadable"]:
            raise NoAccessError(
                f"{count_of(len(unreadable), 'photograph', len(ids))} may not be "
                f"read:{list_some(unreadable)}"
            )
        unusable.update({ids[i]: each.why for i, each in found.items()})
