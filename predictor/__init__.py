"""Images to tokens to heads to grams."""

from importlib import import_module

_PUBLIC = {"predict": "predictor.predictor", "Predictor": "predictor.predictor"}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    """Import a public name when it is first asked for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
