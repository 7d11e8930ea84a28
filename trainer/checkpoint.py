"""A pass under way, on disk: everything its next step depends on, in one safetensors file that appears whole; two are kept."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from featurestore._bytes import appears_whole, crc32c, publish
from featurestore._maps import refuse_too_many
from featurestore.errors import InputError, StoreDamaged
from trainer.bank_trainer import BankTrainer
from trainer.optimizer import BankOptimizer


class Checkpoint:
    """The newest state of one pass, and the one before it: a newest that is damaged costs some epochs, not the sweep."""

    def __init__(self, path: Path) -> None:
        self.path, self.previous = path, path.with_name(f"previous_{path.name}")

    def save(self, trainers: Sequence[BankTrainer]) -> None:
        """Keep the state of all banks. InputError if it cannot be written; the one before it is then kept."""
        self.path.parent.mkdir(exist_ok=True)
        state = {f"{b}/{name}": tensor.detach().cpu().contiguous()
                 for b, trainer in enumerate(trainers) for name, tensor in _state(trainer).items()}
        if self.path.exists():
            publish(self.path, self.previous)
        try:
            with appears_whole(self.path) as partial:
                save_file(state, partial, {"crc32c": _crc32c(sorted(state.items()))})
        except (OSError, SafetensorError) as err:
            raise InputError(f"{self.path}: cannot be written ({err}); make room, then --resume the sweep") from err

    def load(self, trainers: Sequence[BankTrainer]) -> None:
        """Put fresh trainers where the newest whole checkpoint's were; they stay fresh if there is none."""
        found = [path for path in (self.path, self.previous) if path.exists()]
        errors = []
        for path in found:
            try:
                _load(path, trainers)
            except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as err:
                refuse_too_many(path, err)
                errors.append(f"{path}: not a checkpoint of this sweep ({err})")
            else:
                if errors:
                    warnings.warn(f"{errors[0]}; going on from {path.name}", stacklevel=2)
                return
        if errors:
            raise StoreDamaged("; ".join(errors) + "; remove it to begin its pass again")


def _load(path: Path, trainers: Sequence[BankTrainer]) -> None:
    with safe_open(path, "pt") as file:
        found = _crc32c((name, file.get_tensor(name)) for name in sorted(file.keys()))
        if (saved := (file.metadata() or {}).get("crc32c")) != found:  # before anything is restored
            raise ValueError(f"CRC-32C of its tensors {found}, {saved} when it was saved")
        for b, trainer in enumerate(trainers):
            state = {name.split("/", 1)[1]: file.get_tensor(name) for name in file.keys() if name.startswith(f"{b}/")}  # noqa: SIM118
            _restore(trainer, state)


def _crc32c(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of names, types, shapes and bytes: safetensors itself would not see a bit that has flipped."""
    crc = 0
    for name, tensor in tensors:
        crc = crc32c(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), tensor.numpy(), start=crc)
    return f"{crc:08x}"


def _state(trainer: BankTrainer) -> dict[str, Tensor]:
    """All tensors of a bank under training; of AdamW's, one a head and tensor."""
    parts = {**_stacked(trainer), "adamw": _adamw_state(trainer.optimizer)}
    shape = trainer.failed_QG.shape
    lists = {name: np.array(values).reshape(-1, *shape) for name, values in _lists(trainer).items()}  # which may be empty
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()} | {
        "counts": torch.tensor([trainer.optimizer.n_done, trainer.n_batches])} | {
        name: torch.from_numpy(array) for name, array in (_noted(trainer) | lists).items()}


def _noted(trainer: BankTrainer) -> dict[str, np.ndarray]:
    """What a trainer notes of its heads, (Q, G) each."""
    return {"best_score": trainer.best_score_QG, "best_epoch": trainer.best_epoch_QG, "failed": trainer.failed_QG}


def _lists(trainer: BankTrainer) -> dict[str, list[np.ndarray]]:
    """The same of every batch of the epoch under way, and of every epoch."""
    return {"losses": trainer.losses_QG, "errors": trainer.errors_QG}


@torch.no_grad()
def _restore(trainer: BankTrainer, state: dict[str, Tensor]) -> None:
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
    trainer.optimizer.n_done, trainer.n_batches = state["counts"].tolist()
    for name, noted in (_noted(trainer) | _lists(trainer)).items():
        noted[:] = state[name].numpy()


def _stacked(trainer: BankTrainer) -> dict[str, dict[str, Tensor]]:
    """A bank's own tensors; gradients too, since an accumulation may be under way."""
    tensors = trainer.bank.tensors
    return {"weights": tensors, "grad": {name: tensor.grad for name, tensor in tensors.items()},
            "average": trainer.optimizer.average, "best": trainer.best}


def _adamw_state(optimizer: BankOptimizer) -> dict[str, Tensor]:
    state = optimizer.adamw.state_dict()["state"]
    return {f"{number}/{key}": tensor for number, moments in state.items() for key, tensor in moments.items()}
