"""The plain runs that stand beside every board: ridge tells its numbers, logistic regression its
classes."""

from collections.abc import Iterable

from featurestore.photos.targets import Targets
from trainer.heads import kinds
from trainer.score.metrics import CLASS_SCORES, Score

RIDGE, LOGISTIC = "ridge", "logistic"
"""Names of their runs, which are those of their kinds."""
BASELINES = (RIDGE, LOGISTIC)


def completing(targets: Targets, told: Iterable[str]) -> list[str]:
    """The baselines that tell what some kinds of models do not; all that a task has for none.

    The State of the preset is learned, and not predicted.
    """
    told = list(told)
    names = []
    if targets.n_predicted and not any(kinds.tells_numbers(kind) for kind in told):
        names.append(RIDGE)
    if targets.classes and not targets.preset and not any(map(kinds.tells_words, told)):
        names.append(LOGISTIC)
    return names


def tells_ranked(by: Score, kind: str) -> bool:
    """Whether models of a kind learn what a score is of."""
    if by.name in CLASS_SCORES:
        return kinds.tells_words(kind)
    return kinds.tells_numbers(kind)
