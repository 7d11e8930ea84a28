"""Store to sweep to run folders."""

from importlib import import_module

_PUBLIC = {
    "MixupBatches": "trainer.data.batches",
    "SweepConfig": "trainer.loop.grid",
    "run_sweep": "trainer.loop.sweep",
    "weighted_r2": "trainer.score.metrics",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    """Import a public name when it is first asked for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
