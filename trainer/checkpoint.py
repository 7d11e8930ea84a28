"""A pass under way, on disk: everything its next epoch depends on, in one safetensors file that appears whole."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from featurestore._bytes import appears_whole
from featurestore.errors import StoreDamaged
from trainer.optimizer import BankOptimizer


def save_checkpoint(path: Path, trainers: Sequence, n_epochs: int) -> None:
    """Keep the state of all banks after n_epochs; the file before it stays until this one is whole."""
    state = {f"{b}/{name}": tensor for b, trainer in enumerate(trainers) for name, tensor in _state(trainer).items()}
    with appears_whole(path) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, partial, {"n_epochs": str(n_epochs)})


def load_checkpoint(path: Path, trainers: Sequence) -> int:
    """Put fresh trainers where the checkpoint's were; how many epochs were done, 0 if there is no file."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            for b, trainer in enumerate(trainers):
                _restore(trainer, {n.split("/", 1)[1]: file.get_tensor(n) for n in file.keys() if n.startswith(f"{b}/")})  # noqa: SIM118
            return int(file.metadata()["n_epochs"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as err:
        raise StoreDamaged(f"{path}: not a checkpoint of this sweep ({err}); remove it to begin its pass again") from err


def _state(trainer) -> dict[str, Tensor]:
    """All tensors of a bank under training; of AdamW's, one a head and tensor."""
    parts = {**_stacked(trainer), "adamw": _adamw_state(trainer.optimizer)}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()} | {
        "n_done": torch.tensor(trainer.optimizer.n_done), "best_score": torch.from_numpy(trainer.best_score_QG),
        "best_epoch": torch.from_numpy(trainer.best_epoch_QG)}


@torch.no_grad()
def _restore(trainer, state: dict[str, Tensor]) -> None:
    for part, tensors in _stacked(trainer).items():
        for name, tensor in tensors.items():
            tensor.copy_(state[f"{part}/{name}"])  # in place: the optimiser's slices share this storage
    adamw = trainer.optimizer.adamw
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("adamw/"):
            _, number, key = name.split("/")
            moments.setdefault(int(number), {})[key] = tensor
    adamw.load_state_dict({"state": moments, "param_groups": adamw.state_dict()["param_groups"]})
    trainer.optimizer.n_done = int(state["n_done"])
    trainer.best_score_QG[:] = np.asarray(state["best_score"])
    trainer.best_epoch_QG[:] = np.asarray(state["best_epoch"])


def _stacked(trainer) -> dict[str, dict[str, Tensor]]:
    """A bank's own tensors; gradients too, since an accumulation may be under way between epochs."""
    tensors = trainer.bank.tensors
    return {"weights": tensors, "grad": {name: tensor.grad for name, tensor in tensors.items()},
            "average": trainer.optimizer.average, "best": trainer.best}


def _adamw_state(optimizer: BankOptimizer) -> dict[str, Tensor]:
    state = optimizer.adamw.state_dict()["state"]
    return {f"{number}/{key}": tensor for number, moments in state.items() for key, tensor in moments.items()}
