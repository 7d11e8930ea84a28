"""TensorBoard events beside metrics.jsonl, which is what everything else reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from featurestore.errors import InputError

SCALARS = ("loss", "score", "lr", "train_s")


class Events:
    """A writer for each of some runs. InputError if the package tensorboard is not installed."""

    def __init__(self, runs: Sequence[Path], first: int) -> None:
        """first : epoch they begin with; later ones of a run that was killed are dropped."""
        self._writers = {run: writer_class()(run, purge_step=first) for run in runs}

    def log(self, run: Path, epoch: int, record: Mapping) -> None:
        """One epoch of a run."""
        if run in self._writers:
            for name in SCALARS:
                self._writers[run].add_scalar(name, record[name], epoch)
            self._writers[run].flush()

    def close(self) -> None:
        """End the writers' threads."""
        for writer in self._writers.values():
            writer.close()


def writer_class() -> type:
    """SummaryWriter, or InputError if the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise InputError(
            f"trainer.tensorboard: the package tensorboard is not installed ({err}); pip install "
            "tensorboard, or leave it off: metrics.jsonl holds the same"
        ) from err
    return SummaryWriter
