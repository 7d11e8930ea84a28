"""Regressors of a sweep: one fit a split, noted when a point's fits end or are stopped, so that a
resume goes on from there, and whoever finishes the sweep reads them.

What ends the process at once, SIGKILL say, loses the fits of the point under way.
"""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from featurestore.disk.durable import remove
from featurestore.errors import InputError
from featurestore.photos.targets import Targets
from trainer.config.sections import PointConfig
from trainer.heads import kinds
from trainer.heads.fitted import numbers_and_words
from trainer.judge.baselines import blank_values, fit_each, fit_splits, spaces_of
from trainer.loop.baselines import completing, tells_ranked
from trainer.loop.grid import SweepConfig
from trainer.loop.identity import Identity
from trainer.loop.notes import Note, are_whole, head_crc32c
from trainer.loop.prepare import Sweep
from trainer.loop.results import (
    PointResult,
    Prediction,
    baseline_point,
    head_file_of,
    scores_of,
    write_oof,
)
from trainer.loop.runs import ALL_FILE, RunFolder, SweepFolder
from trainer.score.constraints import constrained

WARM_S = 2.0
"""A first fit imports its library; one that takes longer than this is not timed again."""


@dataclass
class Fits:
    """What the fits of a point came to so far, its splits in order."""

    raw_VRNK: np.ndarray
    """Raw numbers of what is held out, NaN where nobody has predicted yet."""
    files: dict[str, int] = field(default_factory=dict)
    """CRC-32C of each head's file."""
    spaces: list[list[str]] = field(default_factory=list)
    """Of each fit, the space that it chose for each number, in the order of heads; of no fit if its
    kind chooses none."""
    n_done: int = 0
    failure: str | None = None

    def n_by_space(self, targets: Targets) -> dict[str, dict[str, int]] | None:
        """How many fits chose each space, by amount; None if none chose."""
        if not self.spaces:
            return None
        by_target = zip(targets.outputs, zip(*self.spaces, strict=True), strict=False)
        return {
            target.name: dict(Counter(chosen).most_common())
            for target, chosen in by_target
            if target.kind == "amount"
        }


def close_regressor(
    sweep: Sweep,
    p: int,
    run: RunFolder,
    note: Note,
    after_each: Callable[[], object] = lambda: None,
) -> PointResult:
    """Fit a point's regressor in every split, save it, predict what is held out under TTA views.

    One that cannot be fitted has failed, as a head whose loss diverged has: the other points go on.
    after_each : called once a split, for those too that an earlier call fitted.
    """
    config = sweep.config.points[p]
    run.begin(sweep.run_config(p), sweep.data)
    fits = _fit_splits(sweep, p, run, note, after_each)

    views = _views(sweep)
    targets = sweep.data.targets
    of_views = [fits.raw_VRNK[views.index(view)] for view in sweep.views]
    mean_RNK = np.mean(of_views, 0)
    prediction = Prediction(*numbers_and_words(mean_RNK, targets), config, targets)
    own_RNK, own_RNC = numbers_and_words(fits.raw_VRNK[views.index(0)], targets)
    own_RNK = constrained(own_RNK, targets, config.inference.constraints)
    scored_RNK = sweep.scored(own_RNK, own_RNC)
    errors_Q = sweep.by.split_errors(sweep.scored_truth_NK, scored_RNK, sweep.splits)
    is_finite = np.isfinite(errors_Q).all()
    if not tells_ranked(sweep.by, config.head.kind):  # a baseline of what is not ranked
        told = [own_RNK[split.repeat, split.val_N] for split in sweep.splits]
        is_finite = np.isfinite(np.concatenate(told)).all()
    failure = fits.failure
    if failure is None and not is_finite:
        failure = (
            "it predicts numbers that are not finite; choose another loss.space, "
            "or leave the kind out"
        )
    # no epochs to choose among, and no step to fail at, which is -1
    blank = np.zeros(len(sweep.splits), int)
    result = PointResult(
        p,
        sweep.config.names[p],
        config,
        {"last": prediction},
        errors_Q[None],
        blank,
        blank - 1,
        failure,
        fits.n_by_space(targets),
    )
    run.log(
        {"epoch": 0, "score": scores_of(sweep, prediction.values_RNK, prediction.word_RNC).mean}
    )
    write_oof(sweep, result, run)
    return result


def close_baselines(
    sweep: Sweep,
    folder: SweepFolder,
    after_each: Callable[[], object] = lambda: None,
) -> list[PointResult]:
    """Fit the baselines that stand beside the board, each as a run of its own.

    A sweep that has none of them among its points must not die of it: one that cannot be fitted is
    left out, with a warning.
    """
    results = []
    for name in completing(sweep.data.targets, []):
        run = folder.run(name)
        note = Note(folder.fit_note(name))
        try:
            result = close_regressor(baseline_alone(sweep, name), 0, run, note, after_each)
            failure = result.failure
        except InputError as err:
            failure = str(err)
        if failure is None:
            results.append(replace(result, name=name))
            continue
        remove(run.path)
        warnings.warn(
            f"{name} on all pooled rows, to compare with, is left out: {failure}", stacklevel=2
        )
    return results


def baseline_alone(sweep: Sweep, name: str) -> Sweep:
    """The same folds and rows with a baseline as the only point."""
    return replace(sweep, config=SweepConfig(baseline_point(sweep, name), {}))


def _fit_splits(
    sweep: Sweep,
    p: int,
    run: RunFolder,
    note: Note,
    after_each: Callable[[], object],
) -> Fits:
    """The fits of a point, those that are noted as they are, the others made, saved and noted.

    Whatever stops it, what was fitted so far is noted.
    """
    config = sweep.config.points[p]
    identity = Identity.of(sweep, [p])
    fits = _noted(note, identity)
    if fits is None or not are_whole(fits.files, run):
        blank_RNK = blank_values(sweep.data, sweep.splits, config)
        fits = Fits(np.stack([blank_RNK for _ in _views(sweep)]))
    for _ in range(fits.n_done):
        after_each()
    left = sweep.splits[fits.n_done :]
    if fits.failure or not left:
        return fits

    each_fit = fit_each(sweep.data, sweep.folds, left, config, _views(sweep))
    try:
        for split, (state, raw_VnK) in zip(left, each_fit, strict=True):
            if state is not None:  # a kind for reports only is not saved
                file = head_file_of(sweep, "last", split)
                run.save_head(file, _tensors(state))
                fits.files[file] = head_crc32c(run, file)
                if spaces := spaces_of(config, sweep.data.targets, state):
                    fits.spaces.append(spaces)
            fits.raw_VRNK[:, split.repeat, split.val_N] = raw_VnK
            fits.n_done += 1
            after_each()
    except InputError as err:
        fits.failure = str(err)
        # a score of the splits that could be fitted would be of other photographs than its rivals'
        fits.raw_VRNK[:] = np.nan
    finally:
        about = {name: value for name, value in vars(fits).items() if name != "raw_VRNK"}
        note.save({"raw": fits.raw_VRNK}, about, identity)
    return fits


def _noted(note: Note, identity: Identity) -> Fits | None:
    """Fits as they were noted; None if none were, or the note is damaged: then all is fitted
    again."""
    noted = note.load(identity)
    if noted is None:
        return None
    arrays, about = noted
    with suppress(KeyError, TypeError):  # another program's
        return Fits(arrays["raw"], **about)
    return None


@dataclass(frozen=True)
class FitTime:
    """What the fits of a kind on so many features cost."""

    kind: str
    n_fits: int
    one_s: float


def time_fits(sweep: Sweep) -> list[FitTime]:
    """Time one fit of each kind here, on the split that trains on most images.

    The baselines beside the board are counted in; what cannot be fitted takes no time.
    """
    points = []
    for point in sweep.config.points:
        if not kinds.load(point.head.kind).trained:
            points.append(point)
    for name in completing(sweep.data.targets, []):
        with suppress(InputError):
            points.append(baseline_point(sweep, name))
    alike: dict[tuple[str, int], list[PointConfig]] = {}
    for point in points:
        n_features = sweep.data.n_features(point)
        alike.setdefault((point.head.kind, n_features), []).append(point)

    largest = max(sweep.splits, key=lambda split: len(split.train_N))
    times = []
    for (kind, _), (point, *others) in alike.items():
        one_s = 0.0
        for _ in range(2):
            start = time.monotonic()
            with suppress(InputError):
                fit_splits(sweep.data, sweep.folds, [largest], point, sweep.views)
            one_s = time.monotonic() - start
            if one_s > WARM_S:
                break
        n_fits = (1 + len(others)) * len(sweep.splits)
        times.append(FitTime(kind, n_fits, one_s))
    return times


def save_regressor(
    sweep: Sweep,
    p: int,
    run: RunFolder,
) -> None:
    """Fit a point's regressor on every image and save it."""
    run.begin(sweep.run_config(p), sweep.data)
    point = sweep.config.points[p]
    states, _ = fit_splits(sweep.data, sweep.folds, sweep.splits, point, [])
    (state,) = states
    run.save_head(ALL_FILE.format(which="last"), _tensors(state))


def _views(sweep: Sweep) -> list[int]:
    """What is predicted: the views of the score, and view 0, whose errors are compared with those
    of a bank."""
    return sorted({0, *sweep.views})


def _tensors(state: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in state.items()}
