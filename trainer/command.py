"""The command that trains a sweep."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from featurestore.commands.checks import check_devices
from featurestore.commands.next_steps import biomass, data_beside, same_without, say_next
from featurestore.commands.options import (
    ANY,
    FILE,
    FOLDER,
    StorePath,
    engine_option,
    offered_devices,
    split_words,
)
from featurestore.commands.reporting import script_options, tell
from featurestore.commands.running import one_line_errors
from featurestore.disk.imports import quick_imports
from featurestore.disk.messages import say
from featurestore.disk.terminal import terminal_width
from featurestore.disk.urls import is_url
from featurestore.errors import IN_PART, InputError, UsageError

if TYPE_CHECKING:
    from trainer.loop.grid import SweepConfig
    from trainer.loop.places import Place
    from trainer.loop.result import SweepResult


class PassItem(click.ParamType):
    """A pass's number, from 0, or `fits`."""

    name = "pass"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "fits" or isinstance(value, int):
            return value
        if not value.isdecimal():
            self.fail(f"{value!r}: expected the number of a pass, from 0, or fits", param, ctx)
        return int(value)


class NamedStore(StorePath):
    """A name and a store's path or URL, of `NAME=PATH`; of `PATH` the name is empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from trainer.config.stores import NAME  # not at the top: --help stays instant

        if not isinstance(value, str):
            return value
        name, equals, place = value.partition("=")
        if not equals or not re.fullmatch(NAME, name) or os.path.exists(value):
            name = ""
            place = value
        return name, super().convert(place, param, ctx)


def _by_name(
    stores: Sequence[tuple[str, Path | str]],
) -> tuple[dict[str, Path | str], Path | str | None]:
    """Of what --store gave, places by name, and the place of the only store. UsageError for both,
    and for a name that is there twice."""
    places = dict(stores)
    if len(places) < len(stores) or ("" in places and len(places) > 1):
        raise UsageError(
            "--store: give one PATH, or NAME=PATH for each of several stores, each name once"
        )
    only = places.pop("", None)
    return places, only


@click.command()
@click.option("--config", type=FILE, help="The sweep's YAML; a list for a scalar is a grid axis.")
@click.option("--resume", type=FOLDER, help="Instead: go on with this stopped sweep.")
@click.option(
    "--store",
    "stores",
    type=NamedStore(path_type=Path),
    multiple=True,
    metavar="[NAME=]PATH",
    help="The feature store, or its URL; of several stores NAME=PATH each.  [dataset.store, "
    "dataset.stores]",
)
@click.option(
    "--fold",
    help="Train this fold only; all: every fold, then what was chosen on all images.  [cv.fold]",
)
@click.option(
    "--folds",
    type=FILE,
    help="A folds.csv, ours or another tool's, in place of new folds.  [cv.folds]",
)
@click.option(
    "--images",
    help="Ids of the images to use, with commas, or a file with one a line.  [all: dataset.images]",
)
@click.option("--out", default="runs", show_default=True, type=ANY, help="Where sweep folders go.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    shell_complete=offered_devices,
    help="auto, cpu, cuda, cuda:N; several with commas train a pass each at a time.",
)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    help="Passes over the tokens.  [as few as trainer.memory_gb allows]",
)
@click.option(
    "--plan",
    is_flag=True,
    help="Print heads, passes, bytes read, memory and time, and stop.",
)
@click.option("--begin", is_flag=True, help="Lay the sweep out, say what trains it, and stop.")
@click.option(
    "--pass",
    "item",
    type=PassItem(),
    metavar="N",
    help="With --resume: train this pass alone, from 0; fits: the regressors.",
)
@engine_option
@click.option("--yes", is_flag=True, help="Train a grid of more than 1000 points too.")
@click.option(
    "--no-check",
    is_flag=True,
    help="Use stored rows without comparing them with their checksums.",
)
@script_options
def train(
    config: Path | None,
    resume: Path | None,
    stores: tuple[tuple[str, Path | str], ...],
    fold: str | None,
    folds: Path | None,
    images: str | None,
    out: Path,
    device: str,
    passes: int | None,
    plan: bool,
    begin: bool,
    item: int | str | None,
    engine: str | None,
    yes: bool,
    no_check: bool,
) -> None:
    """Train all heads of a sweep in one pass.

    For example: `biomass train --config configs/demo.yaml --store features.h5`.
    """
    with one_line_errors():  # what goes on after a signal is known once there is a sweep's folder
        _check(config, resume, fold, item, plan, begin, engine)
        ids = _image_ids(images)
        named, store = _by_name(stores)
        check_devices(device)
        _check_there([*named.values(), store], resume)
        # below the checks: a mistake in the options must not wait for torch
        with quick_imports():
            import trainer.loop.sweep  # noqa: F401  with torch; what one way alone needs comes there

        check = not no_check
        if item is not None:
            _train_pass(resume, item, named or store, check)
            return
        if resume:
            _tell_result(_resume(resume, fold, named or store, engine, check))
            return

        overrides = {
            "dataset.store": store,
            "dataset.stores": named or None,
            "cv.fold": int(fold) if fold and fold.isdecimal() else fold,
            "cv.folds": folds,
            "trainer.passes": passes,
            "dataset.images": ids,
        }
        given = {key: value for key, value in overrides.items() if value is not None}
        sweep = _load(config, given)
        if sweep.n_combinations > 1000 and not yes:
            raise UsageError(
                f"{config}: a grid of {sweep.n_combinations} points; if that is meant, add --yes"
            )
        if plan:
            _tell_costs(sweep, device)
        elif begin:
            _begin(sweep, out, device, check)
        else:
            _tell_result(_run(sweep, out, device, engine, check))


def _train_pass(
    sweep: Path,
    item: int | str,
    places: "Mapping[str, Place] | Place | None",
    check: bool,
) -> None:
    from trainer.loop.resume import resume_pass

    failed = resume_pass(sweep, item, places, check=check)
    done = "regressors are fitted" if item == "fits" else f"pass {item} is trained"
    tell(f"{sweep}: {done}", {"path": sweep, "pass": item, "failed": failed})
    _warn_of(failed)


def _resume(
    sweep: Path,
    fold: str | None,
    places: "Mapping[str, Place] | Place | None",
    engine: str | None,
    check: bool,
) -> "SweepResult":
    from trainer.loop.on_engine import has_devices, resume_sweep_on_engine
    from trainer.loop.resume import resume_sweep

    if engine or has_devices(sweep):
        return resume_sweep_on_engine(sweep, engine, fold, places, check)
    return resume_sweep(sweep, fold, places, check=check)


def _tell_costs(sweep: "SweepConfig", device: str) -> None:
    from trainer.loop.costs import measure_costs
    from trainer.loop.prepare import prepare_sweep

    first_device, _, _ = device.partition(",")
    # what it times is not kept
    costs = measure_costs(prepare_sweep(sweep, first_device, check=False))
    tell(costs, costs.values(), indent=9)
    if not costs.refused:
        say_next(same_without("--plan"))


def _begin(sweep: "SweepConfig", out: Path, device: str, check: bool) -> None:
    from trainer.loop.begin import begin_sweep

    begun = begin_sweep(sweep, out, device, check=check)
    tell(begun.folder.path, begun.values())
    say(begun.ways_on())


def _run(
    sweep: "SweepConfig",
    out: Path,
    device: str,
    engine: str | None,
    check: bool,
) -> "SweepResult":
    from trainer.loop.on_engine import run_sweep_on_engine
    from trainer.loop.sweep import run_sweep

    if engine or "," in device:
        return run_sweep_on_engine(sweep, engine, out, device, check)
    return run_sweep(sweep, out=out, device=device, check=check)


def _tell_result(result: "SweepResult") -> None:
    """The leaderboard and the way on; ends with the exit code of points that failed."""
    refitted = f"\n{result.refit}" if result.refit else ""
    tell(f"{result.table(terminal_width())}\n{result.path}{refitted}", result.values())
    _warn_of(result.failed)
    if result.chosen:
        _say_next(result.path)
    if result.failed:
        sys.exit(InputError.exit_code if result.all_failed else IN_PART)


def _image_ids(images: str | None) -> list[str] | None:
    """Of --images: its words, or a file's lines."""
    ids = split_words(images)
    if ids == []:
        raise InputError(
            f"--images {images!r}: names no image; give ids with commas, or a file with one a line"
        )
    return ids


def _check(
    config: Path | None,
    resume: Path | None,
    fold: str | None,
    item: int | str | None,
    plan: bool,
    begin: bool,
    engine: str | None,
) -> None:
    """UsageError for options that do not go together."""
    if (config is None) == (resume is None):
        raise UsageError("give --config FILE to begin a sweep, or --resume SWEEP to go on with one")
    # defaults cannot be told from what was typed otherwise
    typed = click.get_current_context().get_parameter_source
    fixed = ("folds", "images", "out", "device", "passes", "plan", "begin", "yes")
    refused = [f"--{name}" for name in fixed if typed(name) is ParameterSource.COMMANDLINE]
    if fold is not None and (fold != "all" or item is not None):
        refused.append(f"--fold {fold}")
    if resume and refused:
        raise UsageError(
            "--resume takes folds, images and passes from the sweep, and its place and device "
            f"too; leave out {', '.join(refused)}, and give it alone or with --store, "
            "--no-check, --pass or --fold all"
        )
    if item is not None and not resume:
        raise UsageError("--pass trains a part of a sweep that was begun: add --resume SWEEP")
    if plan and begin:
        raise UsageError("--plan leaves nothing behind, --begin lays the sweep out; give one")
    if fold and fold != "all" and not fold.isdecimal():
        raise UsageError(f"--fold {fold}: give a fold's number, from 0, or all")
    if engine and (plan or begin or item is not None):
        raise UsageError(
            "--engine trains all passes and finishes the sweep; leave out --plan, --begin and "
            "--pass"
        )


def _check_there(stores: Sequence[Path | str | None], resume: Path | None) -> None:
    """InputError for a store or a sweep that is not where an option says."""
    for place in stores:
        if isinstance(place, Path) and not place.exists():  # a URL is a text
            raise InputError(
                f"{place}: no such store; `biomass store build --data DIR --out {place}` makes one"
            )
    if resume and not (resume / "sweep.json").exists():
        raise InputError(
            f"{resume}: no sweep's folder, it has no sweep.json; `biomass train --config FILE` "
            "makes one"
        )


def _load(config: Path, given: Mapping[str, Any]) -> "SweepConfig":
    """The sweep; a mistake that an option made is said to be the option's, not the file's.

    given : values of options by their key.
    """
    from trainer.loop.grid import SweepConfig

    try:
        return SweepConfig.load(config, given)
    except InputError:
        SweepConfig.load(config)  # what is wrong without the options is the file's
        for key, value in given.items():
            try:
                SweepConfig.load(config, {key: value})
            except InputError as err:
                _, _, told = str(err).removeprefix(f"{config}: ").partition(": ")
                raise InputError(f"--{key.rpartition('.')[2]} {value}: {told}") from err
        raise


def _warn_of(failed: Mapping[str, str]) -> None:
    """Points that failed, and why."""
    for name, why in failed.items():
        click.echo(f"warning: {name} failed: {why}", err=True)


def _say_next(sweep: Path) -> None:
    """How to predict with a sweep, and how to look at it beside its stores."""
    from trainer.loop.runs import read_json

    dataset = read_json(sweep / "sweep.json", "base")["base"]["dataset"]
    places = (dataset.get("stores") or {"": dataset["store"]}).values()
    stores = [_shortened(each) for each in places]
    data = data_beside(stores[0])
    say_next(biomass("predict", "--sweep", sweep, "--data", data))
    if not any(map(is_url, stores)):
        serve = biomass("store", "serve", *stores, "--sweep", sweep, "--data", data)
        say_next(serve, label="look")


def _shortened(place: str) -> str:
    """A store's path relative to this folder, if it lies below."""
    if is_url(place):
        return place
    there = os.path.relpath(place)
    return place if there.startswith("..") else there
