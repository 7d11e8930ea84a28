"""The kinds of models a point can be, one file each: `head.kind: NAME` is the file NAME.py, and its
KIND says what it does.

Two families: kinds of heads (`trainer.heads.bank.HeadKind`), trained together from one read of the
tokens, and regressors (`trainer.heads.regressor.Regressor`), fitted on pooled rows. docs/sweep.md
shows how to write one.
"""

import pkgutil
from importlib import import_module


def names() -> list[str]:
    """Every kind there is, by its file; nothing heavy is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str):
    """The KIND of a file here: a HeadKind or a Regressor."""
    return import_module(f"{__name__}.{name}").KIND


def tells_numbers(name: str) -> bool:
    """Whether models of a kind learn amounts, levels and shares."""
    kind = load(name)
    return kind.trained or not kind.tells_words


def tells_words(name: str) -> bool:
    """Whether models of a kind learn classes."""
    kind = load(name)
    return kind.has_trunk if kind.trained else kind.tells_words
