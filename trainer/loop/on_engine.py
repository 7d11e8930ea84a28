"""A sweep whose passes run on an engine, and which is finished when all are trained."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.disk.durable import locked
from featurestore.disk.interrupts import deferred_interrupts, go_on_with, told_way_on
from featurestore.disk.messages import new_bar
from featurestore.disk.urls import is_elsewhere
from featurestore.engines.choose import check_engine, run_items
from trainer.loop.begin import FITS, Item, begin_sweep, resuming_options
from trainer.loop.grid import SweepConfig
from trainer.loop.places import Place
from trainer.loop.result import SweepResult
from trainer.loop.resume import plan_of, resume_pass, resume_sweep
from trainer.loop.runs import SweepFolder


def run_sweep_on_engine(
    config: SweepConfig,
    engine: str | None = None,
    out: Path = Path("runs"),
    device: str = "auto",
    check: bool = True,
) -> SweepResult:
    """As `run_sweep`, its passes by an engine: begun here, trained there, finished here.

    engine : `ray` or `ray://HOST:PORT`; all its nodes see the files of this one at their places.
        None is processes of this machine, one for each device.
    device : for Ray its kind counts, which says what a node gives; else several with commas.
    """
    if engine:
        check_engine(engine)
        device = device.partition(":")[0]
    begun = begin_sweep(config, out, device, check)
    return resume_sweep_on_engine(begun.folder.path, engine, check=check)


def resume_sweep_on_engine(
    path: Path,
    engine: str | None = None,
    fold: str | None = None,
    store: Place | Mapping[str, Place] | None = None,
    check: bool = True,
) -> SweepResult:
    """As `resume_sweep`, the passes that are missing by an engine.

    LockedError where another process has an engine at this sweep, or finishes it.
    """
    if engine:
        check_engine(engine)
    plan = plan_of(path)
    items = {}
    for item in _missing(SweepFolder(path), plan["passes"]):
        name = item if item == FITS else f"pass {item}"
        items[name] = {
            "path": os.path.abspath(path),
            "item": item,
            "store": _as_json(store),
            "check": check,
        }
    options = resuming_options(store, check)
    if engine:
        options += ["--engine", engine]
    if fold:
        options += ["--fold", fold]
    way_on = go_on_with(shlex.join(["biomass", "train", "--resume", str(path), *options]))
    # Ray's driver looks for signals; that of processes is woken by them
    stops = deferred_interrupts(way_on) if engine else told_way_on(way_on)
    if items:
        n_passes = len(plan["passes"])
        # what is fitted is no pass
        sizes = {name: 0 if name == FITS else 1 for name in items}
        n_trained = n_passes - sum(sizes.values())
        bar = new_bar("train", n_passes, "pass", initial=n_trained)
        # of two runs, one would end the other's: they count tries in one folder
        with locked(path / "sweep"), stops, bar:
            run_items(
                "trainer.loop.on_engine:pass_item",
                items,
                engine=engine,
                bar=bar,
                sizes=sizes,
                devices=plan.get("devices") or [plan["device"]],
                folder=path / "checkpoints",
                threads=plan.get("threads"),
            )
    return resume_sweep(path, fold, store, check=check)


def has_devices(path: Path) -> bool:
    """Whether a sweep began with several devices."""
    return "devices" in plan_of(path)


def pass_item(
    path: str,
    item: Item,
    store: Any,
    check: bool,
    device: str,
) -> dict[str, str]:
    """A pass, by what its item says; an engine's task. Returns the points that failed, and why."""
    return resume_pass(Path(path), item, store, progress=False, check=check, device=device)


def _missing(folder: SweepFolder, passes: Sequence[Sequence[int]]) -> list[Item]:
    """Passes that are not trained, and what is fitted; last, since it needs no device."""
    if folder.is_finished:
        return []
    missing: list[Item] = []
    for number, points in enumerate(passes):
        if not folder.pass_note(points).exists():
            missing.append(number)
    return [*missing, FITS]


def _as_json(store: Place | Mapping[str, Place] | None) -> Any:
    """Where stores are, their paths from the root."""
    if isinstance(store, Mapping):
        return {name: _as_json(place) for name, place in store.items()}
    if store is None or is_elsewhere(store):
        return store
    return os.path.abspath(store)
