"""A sweep whose passes run on an engine, and which is finished when all are trained."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurestore.disk.interrupts import deferred_interrupts, go_on_with
from featurestore.disk.messages import new_bar
from featurestore.disk.urls import is_elsewhere
from featurestore.engines.choose import check_engine, run_items
from trainer.loop.begin import FITS, Item, begin_sweep
from trainer.loop.grid import SweepConfig
from trainer.loop.places import Place
from trainer.loop.result import SweepResult
from trainer.loop.resume import plan_of, resume_pass, resume_sweep
from trainer.loop.runs import SweepFolder


def run_sweep_on_engine(
    config: SweepConfig,
    engine: str,
    out: Path = Path("runs"),
    device: str = "auto",
    check: bool = True,
) -> SweepResult:
    """As `run_sweep`, its passes by an engine: begun here, trained there, finished here.

    engine : `ray` or `ray://HOST:PORT`; all its nodes see the files of this one at their places.
    device : its kind counts; an engine says which of a node's.
    """
    check_engine(engine)
    begun = begin_sweep(config, out, device.partition(":")[0], check)
    return resume_sweep_on_engine(begun.folder.path, engine, check=check)


def resume_sweep_on_engine(
    path: Path,
    engine: str,
    fold: str | None = None,
    store: Place | Mapping[str, Place] | None = None,
    check: bool = True,
) -> SweepResult:
    """As `resume_sweep`, the passes that are missing by an engine."""
    check_engine(engine)
    plan = plan_of(path)
    numbers = range(len(plan["passes"]))
    items = {}
    for item in [] if SweepFolder(path).is_finished else (*numbers, FITS):
        name = item if item == FITS else f"pass {item}"
        items[name] = {
            "path": os.path.abspath(path),
            "item": item,
            "store": _as_json(store),
            "check": check,
        }
    command = shlex.join(["biomass", "train", "--resume", str(path), "--engine", engine])
    if items:
        bar = new_bar("train", len(items), "pass")
        with deferred_interrupts(go_on_with(command)), bar:
            run_items(
                "trainer.loop.on_engine:pass_item",
                items,
                engine=engine,
                bar=bar,
                devices=[plan["device"]],
                folder=path / "checkpoints",
                threads=plan.get("threads"),
            )
    return resume_sweep(path, fold, store, check=check)


def pass_item(path: str, item: Item, store: Any, check: bool, device: str) -> dict[str, str]:  # noqa: ARG001
    """A pass, by what its item says; an engine's task. Returns the points that failed, and why.

    device : its kind, which the sweep knows.
    """
    return resume_pass(Path(path), item, store, progress=False, check=check)


def _as_json(store: Place | Mapping[str, Place] | None) -> Any:
    """Where stores are, their paths from the root."""
    if isinstance(store, Mapping):
        return {name: _as_json(place) for name, place in store.items()}
    if store is None or is_elsewhere(store):
        return store
    return os.path.abspath(store)
