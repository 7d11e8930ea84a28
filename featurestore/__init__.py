"""Images to tokens on disk, and back."""

from importlib import import_module

_PUBLIC = {
    "FeatureStore": "featurestore.store",
    "StoreSpec": "featurestore.format.spec",
    "StoreWriter": "featurestore.write.writer",
    "open_writer": "featurestore.write.writer",
    "build_store": "featurestore.write.build",
    "verify": "featurestore.manage.verify",
    "BiomassError": "featurestore.errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    """Import a public name when it is first used, so that torch and h5py can stay out."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
