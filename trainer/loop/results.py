"""What finished heads leave in their run's folder: weights, out-of-fold tables, scores."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from featurestore.disk.usable import usable_memory
from featurestore.errors import InputError
from featurestore.photos.targets import Targets
from trainer.config.sections import HeadConfig, LossConfig, PointConfig
from trainer.data.readers import TokenReaders
from trainer.data.stream import Split
from trainer.judge import report
from trainer.judge.baselines import mean_predictor
from trainer.judge.beside import class_report, other_scores
from trainer.loop.bank_trainer import BankTrainer
from trainer.loop.evaluate import (
    HeldOut,
    Scores,
    held_out_truth,
    oof_table,
    predict_held_out,
    score,
)
from trainer.loop.plan import fit_bytes, most_rows
from trainer.loop.prepare import Sweep
from trainer.loop.runs import ALL_FILE, WEIGHTS, RunFolder, head_file
from trainer.loop.versions import resolved
from trainer.score.constraints import constrained
from trainer.score.postprocess import Rule, apply, rules_of


@dataclass(frozen=True)
class Prediction:
    """Of one point's heads for what they hold out, averaged over views."""

    raw_RNK: np.ndarray
    """Raw numbers, in the order of heads."""
    word_RNC: np.ndarray | None
    """Probabilities of each class's words; None for a kind that learns none."""
    config: PointConfig
    targets: Targets

    def by_rules(self, rules: Sequence[Rule]) -> np.ndarray:
        """(R, N, K) numbers in the order of tables: constrained, then rules."""
        how = self.config.inference.constraints
        values_RNK = constrained(self.raw_RNK, self.targets, how)
        return apply(rules, values_RNK, self.word_RNC, self.targets)

    @functools.cached_property
    def values_RNK(self) -> np.ndarray:
        """The same by the rules of the config: what is scored, compared and written."""
        return self.by_rules(rules_of(self.config.inference.postprocess))


@dataclass(frozen=True, eq=False)  # itself alone: its arrays have no one answer to ==
class PointResult:
    """What one point reached."""

    index: int
    name: str
    config: PointConfig
    held_out: dict[str, Prediction]
    """By `last` and, for trained heads, `best` weights."""
    errors_EQ: np.ndarray
    """Weighted squared errors on view 0 by epoch and split; one epoch for what has none."""
    best_epoch_Q: np.ndarray
    failed_Q: np.ndarray
    """Steps that a split's head took before it failed; -1 for those that are well."""
    failure: str | None = None
    """What happened and what to do, if it failed."""
    n_by_space: Mapping[str, Mapping[str, int]] | None = None
    """How many fits chose each space, by mass; None for a kind that chooses none."""

    @property
    def failed(self) -> bool:
        return self.failure is not None


def close_bank(
    sweep: Sweep,
    trainer: BankTrainer,
    reader: TokenReaders,
    runs: Mapping[int, RunFolder],
) -> list[PointResult]:
    """Predict with last and best weights under the TTA views; save heads, tables and curves of
    every point of a bank."""
    banks = {"best": trainer.bank.with_tensors(trainer.best), "last": trainer.averaged}
    batch_size = sweep.base.trainer.batch_size
    # in turn: the plan has room for the activations of one of them
    data = replace(sweep.data.as_predicted(sweep.base.trainer.use_amp), side_by_side=False)
    # both banks of a view in one pass over its rows
    by_view = []
    for view in sweep.views:
        both = predict_held_out(list(banks.values()), data, reader, sweep.splits, batch_size, view)
        by_view.append(both)
    held_out = {}
    for i, which in enumerate(banks):
        held_out[which] = HeldOut.mean([both[i] for both in by_view])

    # a loss was finite at every batch, and the last step spoilt the weights: errors tell
    spoilt_QG = (trainer.failed_QG < 0) & ~np.isfinite(trainer.errors_QG[-1])
    trainer.failed_QG[spoilt_QG] = trainer.n_batches
    for which in WEIGHTS:
        save_heads(sweep, trainer, runs, which)

    errors_EQG = np.array(trainer.errors_QG)
    results = []
    for g, p in enumerate(trainer.points):
        config = trainer.configs[g]
        predictions = {}
        for which, each in held_out.items():
            word_RNC = None if each.word_GRNC is None else each.word_GRNC[g]
            predictions[which] = Prediction(
                each.values_GRNK[g],
                word_RNC,
                config,
                sweep.data.targets,
            )
        failed_Q = trainer.failed_QG[:, g]
        result = PointResult(
            p,
            sweep.config.names[p],
            config,
            predictions,
            errors_EQG[:, :, g],
            trainer.best_epoch_QG[:, g],
            failed_Q,
            loss_failure(failed_Q, sweep.n_batches),
        )
        folder = runs[p].path
        report.draw_curves(folder / "metrics.jsonl", folder / "training_curves.png", sweep.by)
        write_oof(sweep, result, runs[p])
        results.append(result)
    return results


def loss_failure(failed_Q: np.ndarray, n_steps: int) -> str | None:
    """How far the first head to fail came, and how many did; None if all are well."""
    taken = failed_Q[failed_Q >= 0]
    if not taken.size:
        return None
    heads = f" ({taken.size} of {failed_Q.size} heads failed)" if failed_Q.size > 1 else ""
    return (
        f"its loss was no longer finite after {taken.min()} of {n_steps} steps{heads}; lower "
        "optimization.lr"
    )


def save_heads(
    sweep: Sweep,
    trainer: BankTrainer,
    runs: Mapping[int, RunFolder],
    which: str,
) -> None:
    """Save the heads of every point, but not those whose weights are not finite."""
    bank = trainer.averaged if which == "last" else trainer.bank.with_tensors(trainer.best)
    for g, p in enumerate(trainer.points):
        for q, split in enumerate(sweep.splits):
            state = bank.head_state(q, g)
            if all(tensor.isfinite().all() for tensor in state.values()):
                runs[p].save_head(head_file_of(sweep, which, split), state)


def score_mean(sweep: Sweep) -> Scores:
    """Of the training mean, under the constraints of the points."""
    raw_RNK = mean_predictor(sweep.data, sweep.splits)
    values_RNK = Prediction(raw_RNK, None, sweep.base, sweep.data.targets).by_rules([])
    return scores_of(sweep, values_RNK, frequencies(sweep))


def baseline_point(sweep: Sweep, kind: str) -> PointConfig:
    """A kind of regressor on all pooled rows, which stands beside the board, under the views,
    constraints and rules of the points; InputError if it would not fit in memory."""
    # in the space that the kind does best, whatever the points are compared in
    own = {"head": HeadConfig(kind=kind), "loss": LossConfig()}
    inference = sweep.base.inference
    if any(rule.needs_state for rule in rules_of(inference.postprocess)):  # it tells no State
        own["inference"] = inference.model_copy(update={"postprocess": []})
    point = resolved(sweep.base.model_copy(update=own))
    need = fit_bytes(point, sweep.data, most_rows(sweep.splits))
    usable = usable_memory()
    if need > usable.n_bytes:
        raise InputError(
            f"it would take {need / 1e9:.3g} GB of memory, usable are {usable}; as a point of "
            "the grid it can have fewer head.features"
        )
    return point


def frequencies(sweep: Sweep) -> np.ndarray:
    """(R, N, C) how often each word is among the training images, for what splits hold out: what
    the training mean is of classes."""
    true_NC = sweep.true_words_NC
    n_repeats = max(split.repeat for split in sweep.splits) + 1
    share_RNC = np.full((n_repeats, *true_NC.shape), np.nan)
    for split in sweep.splits:
        for own in sweep.data.targets.word_slices:
            n_V = true_NC[split.train_N][:, own].sum(0)
            # 1 where no training image has a word: shares of 0, not of 0 / 0
            share_RNC[split.repeat, split.val_N, own] = n_V / max(n_V.sum(), 1)
    return share_RNC


def scored_of(sweep: Sweep, prediction: Prediction) -> np.ndarray:
    """(R, N, K) a prediction as scores compare it."""
    return sweep.scored(prediction.values_RNK, prediction.word_RNC)


def scores_of(sweep: Sweep, values_RNK: np.ndarray, word_RNC: np.ndarray | None) -> Scores:
    """Scores of predictions, numbers in the order of tables and probabilities of words, for what
    the sweep holds out."""
    catalog = sweep.data.catalog
    state = catalog.get("State", pd.Series("", catalog.index))
    scored_RNK = sweep.scored(values_RNK, word_RNC)
    targets = sweep.data.targets
    scores = score(sweep.by, targets.names, sweep.scored_truth_NK, scored_RNK, sweep.splits, state)
    truth_RNK = held_out_truth(sweep.data.truth_table_NK, values_RNK, sweep.splits)
    others = other_scores(sweep.by, targets, truth_RNK, values_RNK, sweep.true_words_NC, word_RNC)
    scores = replace(scores, others=others)
    if targets.preset:  # its State is scored nowhere
        return scores
    return replace(scores, classes=class_report(targets, sweep.true_words_NC, word_RNC))


def write_oof(
    sweep: Sweep,
    result: PointResult,
    run: RunFolder,
) -> None:
    """oof.csv: what a point's heads predict for what they hold out, by each kind of weights."""
    run.write_table("oof.csv", oof_of(sweep, result.held_out))


def oof_of(sweep: Sweep, held_out: Mapping[str, Prediction]) -> pd.DataFrame:
    """The out-of-fold table of predictions by `last` and, for trained heads, `best` weights."""
    tables = [
        oof_table(
            which,
            sweep.data,
            sweep.folds,
            sweep.splits,
            prediction.values_RNK,
            prediction.word_RNC,
        )
        for which, prediction in sorted(held_out.items())
    ]
    return pd.concat(tables)


def head_file_of(
    sweep: Sweep,
    which: str,
    split: Split,
) -> str:
    """Name of the file of a split's head."""
    if not sweep.holds_out:
        return ALL_FILE.format(which=which)
    return head_file(which, split.repeat, split.fold, sweep.base.cv.repeats)
