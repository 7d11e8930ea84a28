"""What stands beside the score that ranks: the other scores of a task, and how its classes are
confused.

Arrays in, plain numbers out. Predictions of several repeats count once a repeat.
"""

from typing import Any

import numpy as np

from featurestore.photos.targets import Targets
from trainer.score.metrics import CLASS_SCORES, SCORES, Score, class_columns, scored_classes


def other_scores(
    by: Score,
    targets: Targets,
    truth_RNK: np.ndarray,
    values_RNK: np.ndarray,
    true_NC: np.ndarray,
    share_RNC: np.ndarray | None,
) -> dict[str, float]:
    """Every score that these targets have, means over repeats, but the one that ranks.

    truth_RNK : numbers in the order of tables, NaN where a repeat does not hold an image out.
    true_NC, share_RNC : one-hot and probabilities over each class's words; NaN where a repeat does
        not hold an image out.
    """
    found = {}
    for name in SCORES:
        if name == by.name:
            continue
        other = Score.of(name, targets)
        if not any(other.weights):
            continue
        if name in CLASS_SCORES:
            if share_RNC is None:
                continue
            losses_RNW = class_columns(other, targets, true_NC, share_RNC)
            truth_RNW = np.where(np.isnan(losses_RNW), np.nan, 0.0)
            own = Score(name, tuple(target.weight for target in scored_classes(targets)))
            found[name] = float(np.mean(own(truth_RNW, losses_RNW)))
        else:
            own = Score(name, targets.weights)
            found[name] = float(np.mean(own(truth_RNK, values_RNK)))
    return found


def class_report(
    targets: Targets,
    true_NC: np.ndarray,
    share_RNC: np.ndarray | None,
) -> dict[str, dict[str, Any]]:
    """Of each class: its words, how often each true word (a row) is taken for each (a column), the
    accuracy and the macro F1, the mean over the words that there are.

    Images whose word is not known, or that a repeat does not hold out, are left out.
    """
    if share_RNC is None:
        return {}
    report = {}
    for target, own in zip(targets.classes, targets.word_slices, strict=True):
        n_words = len(target.values)
        counts_VV = np.zeros((n_words, n_words), int)
        for share_NV in share_RNC[..., own]:
            is_known_N = true_NC[:, own].any(-1)
            is_told_N = ~np.isnan(share_NV).any(-1)
            counts_N = is_known_N & is_told_N
            true_n = true_NC[counts_N][:, own].argmax(-1)
            told_n = share_NV[counts_N].argmax(-1)
            # in place, pair by pair: an index that comes twice would count once by +=
            np.add.at(counts_VV, (true_n, told_n), 1)
        if not counts_VV.sum():
            continue
        right_V = counts_VV.diagonal()
        either_V = counts_VV.sum(0) + counts_VV.sum(1)
        # 2 precision recall / (precision + recall), of words that are true or told somewhere
        f1_V = 2 * right_V[either_V > 0] / either_V[either_V > 0]
        report[target.name] = {
            "words": list(target.values),
            "confusion": counts_VV.tolist(),
            "accuracy": float(right_V.sum() / counts_VV.sum()),
            "macro_f1": float(f1_V.mean()),
        }
    return report
