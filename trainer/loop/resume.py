"""resume_sweep: a sweep that was stopped goes on, if nothing it depends on has changed."""

import reprlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurestore.errors import InputError, MismatchError, UsageError
from trainer.heads import kinds
from trainer.loop.baselines import BASELINES, completing
from trainer.loop.begin import FITS, Begun, Item, resuming_options
from trainer.loop.checkpoint import Checkpoint
from trainer.loop.fits import baseline_alone
from trainer.loop.grid import SweepConfig
from trainer.loop.identity import Identity, check_facts, check_settings
from trainer.loop.multiply import begun_multiply, remark_on_older
from trainer.loop.notes import Note
from trainer.loop.places import Place, places_now
from trainer.loop.plan import refit_costs, too_large
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.refit import chosen_shares, refit_members
from trainer.loop.result import SweepResult
from trainer.loop.runs import SweepFolder, read_json
from trainer.loop.sweep import train_alone, train_sweep
from trainer.loop.threads import begun_side_by_side, same_threads

OF_PLAN = {
    "base": (dict, "keys and values"),
    "axes": (dict, "keys and values"),
    "passes": (list, "a list of points for each pass"),
    "device": (str, "the name of a device"),
}
"""Keys of sweep.json that may be edited, and what lies under them."""


def resume_sweep(
    path: Path,
    fold: str | None = None,
    store: Place | Mapping[str, Place] | None = None,
    progress: bool = True,
    check: bool = True,
) -> SweepResult:
    """Go on with a sweep that was stopped, from the last checkpoint of each pass.

    On CPU it ends with the same bits as without the stop. It computes with as many threads as the
    sweep began with, and warns where torch cannot set that number.

    Parameters
    ----------
    store : where its store is now, path or URL; of several stores those of some by name. None, and
        where a store is not named, is where it was, or where it is if it was moved together with
        the sweep.
    fold : "all" refits the chosen point on all images afterwards; so it can be asked of a finished
        sweep too.
    check : as in `run_sweep`.

    Raises InputError if the folder is no sweep's, or the images that can be used are others;
    MismatchError if tokens, labels, folds, or settings that move a number are no longer those it
    began with.
    """
    plan = plan_of(path)
    with _reopened(path, plan, store, check) as begun:
        sweep = begun.sweep
        folder = begun.folder
        refits = fold == "all" or sweep.base.cv.fold == "all"
        if folder.is_finished:
            if not refits or folder.is_refitted:
                raise InputError(
                    f"{path}: this sweep is finished, there is nothing to resume; --fold all "
                    "refits what it chose on all images"
                )
            _check_finished(sweep, folder, "labels" in plan)
        _check_checkpoints(begun)
        costs = sweep.plan(begun.passes, refits)
        if folder.is_finished and (members := refit_members(sweep, folder)):
            costs = refit_costs(costs, [member.config for member in members], sweep.data)
        if refusal := too_large(costs, sweep.data.device, begun=True):
            raise InputError(f"{path}: {refusal}")
        return train_sweep(begun, refits, progress)


def resume_pass(
    path: Path,
    item: Item,
    store: Place | Mapping[str, Place] | None = None,
    progress: bool = True,
    check: bool = True,
    device: str | None = None,
) -> dict[str, str]:
    """Train one pass of a sweep that was begun, while other processes may train others, and save
    what it came to for `resume_sweep`, which finishes the sweep.

    It goes on from the pass's checkpoint, and ends with the same bits as if one process had trained
    them all. One that is trained stays as it is.

    Parameters
    ----------
    item : number of the pass, from 0, or "fits": all regressors, with the baselines beside the
        board.
    device : None is the sweep's, of several the first; another of its kind ends alike.

    Returns the points that failed, and why. Raises as `resume_sweep`, UsageError for a pass that
    the sweep has not, and LockedError where another process is at it.
    """
    plan = plan_of(path)
    plan["device"] = device or plan["device"]
    passes = plan["passes"]
    if item != FITS and item not in range(len(passes)):
        there = f"0 to {len(passes) - 1} and {FITS}" if passes else f"{FITS} alone"
        raise UsageError(f"{path}: no pass {item} (--pass); there are {there}")
    if SweepFolder(path).is_finished:
        return {}

    with _reopened(path, plan, store, check) as begun:
        _check_checkpoints(begun)
        # what this process will need, not what others do meanwhile
        if item == FITS:
            costs = begun.sweep.plan([])
        else:
            costs = replace(begun.sweep.plan([passes[item]]), fit_bytes=0)
        if refusal := too_large(costs, begun.sweep.data.device, begun=True):
            raise InputError(f"{path}: {refusal}")
        results = train_alone(begun, item, progress)
        return {result.name: result.failure for result in results if result.failure}


def plan_of(path: Path) -> dict[str, Any]:
    """What a sweep began with. InputError for a sweep.json that none begins with: some of it may be
    edited."""
    file = path / "sweep.json"
    plan = read_json(file, *OF_PLAN, "fingerprint")
    for key, (kind, wanted) in OF_PLAN.items():
        is_right = isinstance(plan[key], kind)
        if key == "passes" and is_right:
            is_right = all(isinstance(points, list) for points in plan[key])
        if not is_right:
            raise InputError(
                f"{file}: {key}: found {reprlib.repr(plan[key])}, expected {wanted}; bring back "
                "what `biomass train` wrote"
            )
    return plan


@contextmanager
def _reopened(
    path: Path,
    plan: Mapping[str, Any],
    store: Place | Mapping[str, Place] | None,
    check: bool,
) -> Iterator[Begun]:
    """The sweep as it began, computing with its number of threads; errors as of `resume_sweep`."""
    file = path / "sweep.json"
    with same_threads(plan.get("threads"), file):
        plan["base"]["dataset"] |= places_now(plan, path, store)
        given = SweepConfig.of(plan["base"], plan["axes"], file)

        # The folds as the sweep wrote them: they hold whatever made them. The configs of its runs
        # go on naming what did.
        own_folds = given.with_cv(folds=path / "folds.csv")
        multiply = begun_multiply(plan, own_folds.base.trainer.use_amp, file)
        sweep = prepare_sweep(
            own_folds,
            plan["device"],
            begun=True,
            check=check,
            multiply=multiply,
            side_by_side=begun_side_by_side(plan, file),
        )
        sweep = replace(sweep, config=sweep.config.with_cv(folds=given.base.cv.folds))

        # sweeps made before this was kept pooled in float32
        began = {"pooled_dtype": "float32", **plan}
        advice = "bring back that store and folds.csv, or begin a new sweep"
        check_facts(began, sweep.facts, f"{sweep.data.store.path}, {path / 'folds.csv'}", advice)
        yield Begun(sweep, SweepFolder(path), plan, resuming_options(store, check))


def _check_finished(sweep: Sweep, folder: SweepFolder, has_digests: bool) -> None:
    """A refit must be of what was chosen, as it was trained; MismatchError if sweep.json says
    something else now."""
    names = chosen_shares(folder)
    if not names:
        return

    plan = folder.path / "sweep.json"
    for name in names:
        if name not in (*sweep.config.names, *BASELINES):
            raise MismatchError(
                f"{plan}: has no point {name} any more, which the sweep chose; bring back the "
                "file as it was"
            )
    for member in refit_members(sweep, folder):
        now = member.sweep.run_config(member.p)
        advice = f"it was {member.name}'s when the sweep was trained: bring that back"
        check_settings(folder.run(member.name).config, now, str(plan), advice)

    if not has_digests:
        warnings.warn(
            f"{plan}: made before sweeps kept digests of labels and folds; whether they are still "
            "the same is not known",
            stacklevel=3,
        )


def _check_checkpoints(begun: Begun) -> None:
    """MismatchError, before regressors are fitted and their runs written, if a checkpoint or a note
    is not of these passes and settings."""
    sweep = begun.sweep
    folder = begun.folder
    passes = begun.passes
    plan = folder.path / "sweep.json"
    trained = set()
    for p, point in enumerate(sweep.config.points):
        if kinds.load(point.head.kind).trained:
            trained.add(p)
    if {p for points in passes for p in points} != trained:
        raise MismatchError(
            f"{plan}: its passes train the points {list(passes)}, its grid has {sorted(trained)} "
            "to train; bring back the file as it was"
        )

    fitted = [p for p in range(len(sweep.config.points)) if p not in trained]
    refit = folder.checkpoint("refit")
    known = {refit, *map(folder.fit_note, [*fitted, *BASELINES])}
    known |= {*map(folder.checkpoint, passes), *map(folder.pass_note, passes)}
    if folder.is_finished:
        known |= {member.checkpoint for member in refit_members(sweep, folder)}
    for file in sorted(refit.parent.glob("*.safetensors")):
        if file.with_name(file.name.removeprefix("previous_")) not in known:
            raise MismatchError(
                f"{file}: of no pass in {plan.name}; bring back that file as it was, or remove the "
                "checkpoint to train from the first epoch"
            )
    for points in passes:
        identity = Identity.of(sweep, points)
        Checkpoint(folder.checkpoint(points)).check(identity)
        Note(folder.pass_note(points)).check(identity)
    for p in fitted:
        Note(folder.fit_note(p)).check(Identity.of(sweep, [p]))
    for name in completing(sweep.data.targets, []):
        with suppress(InputError):  # it does not fit in memory, and will be left out
            Note(folder.fit_note(name)).check(Identity.of(baseline_alone(sweep, name), [0]))
    is_under_way = any(folder.checkpoint(points).exists() for points in passes)
    if is_under_way and (remark := remark_on_older(begun.plan)):
        warnings.warn(f"{plan}: {remark}", stacklevel=3)
