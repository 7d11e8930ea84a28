"""A pass under way, on disk: everything its next step depends on, in one safetensors file.

It appears whole; two are kept.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featurestore.disk.durable import appears_whole, crc32c, publish
from featurestore.disk.maps import refuse_too_many
from featurestore.disk.tensor_file import readable_name, save_tensors
from featurestore.errors import InputError, MismatchError, NoAccessError, StoreDamaged
from trainer.heads.saved import MOST_HEADER, Kept, differences, read_header
from trainer.loop.bank_trainer import BankTrainer, place_of
from trainer.loop.identity import Identity

BYTES_A_TENSOR = 256  # in a header, at most
TYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


class Checkpoint:
    """The newest state of one pass, and the one before it: a newest that is damaged costs some
    epochs, not the sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(f"previous_{path.name}")
        self._newest_is_damaged = False
        self._tried: tuple[int, int] | None = None

    def save(self, trainers: Sequence[BankTrainer], identity: Identity) -> None:
        """Keep the state of all banks, and what it depends on.

        InputError if it cannot be written; the one before it is then kept.
        """
        # noted before it is tried: a disk that is full now would be full again a moment later
        self._tried = place_of(trainers[0])
        self.path.parent.mkdir(exist_ok=True)
        state = {}
        for b, trainer in enumerate(trainers):
            for name, tensor in _state(trainer).items():
                state[f"{b}/{name}"] = tensor.detach().cpu().contiguous()
        # a damaged one must not take the good one's place
        if self.path.exists() and not self._newest_is_damaged:
            publish(self.path, self.previous)
        try:
            with appears_whole(self.path) as partial:
                text = identity.to_json()
                metadata = {"crc32c": checksum(sorted(state.items()), text), "identity": text}
                save_tensors(state, partial, metadata)
        except (OSError, SafetensorError) as err:
            raise InputError(
                f"{self.path}: cannot be written ({err}); make room, then --resume the sweep"
            ) from err
        self._newest_is_damaged = False

    def has_tried(self, trainers: Sequence[BankTrainer]) -> bool:
        """Whether these banks' state was the last to be saved, with success or without."""
        return place_of(trainers[0]) == self._tried

    def check(self, identity: Identity) -> None:
        """MismatchError if it was trained by other settings, or on other labels, folds or tokens.

        Of files that cannot be read `load` says what to do.
        """
        for path in (self.path, self.previous):
            check_saved(path, identity)

    def load(self, trainers: Sequence[BankTrainer], identity: Identity) -> None:
        """Put fresh trainers where the newest whole checkpoint's were, if there is one.

        MismatchError as by `check`, before anything is restored; one that keeps no identity, as
        those of before, is warned of.
        """
        found = [path for path in (self.path, self.previous) if path.exists()]
        errors = []
        for path in found:
            try:
                _load(path, trainers, identity)
            except PermissionError as err:
                raise NoAccessError.of(err, path) from err
            except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as err:
                refuse_too_many(path, err)
                errors.append(f"{path}: not a checkpoint of this sweep ({err})")
            else:
                if errors:
                    warnings.warn(f"{errors[0]}; going on from {path.name}", stacklevel=2)
                self._newest_is_damaged = path == self.previous and self.path in found
                return
        if errors:
            raise StoreDamaged("; ".join(errors) + "; remove it to begin its pass again")


def check_saved(path: Path, identity: Identity) -> None:
    """MismatchError if a file is of another identity; one that cannot be read is passed over.

    Tensors are read only where something differs.
    """
    with suppress(SafetensorError, ValueError, KeyError, OSError), opened(path) as file:
        try:
            check_identity(path, file.metadata() or {}, identity)
        except (MismatchError, InputError):
            # a flipped bit of the settings is damage, not a difference: ValueError
            whole_metadata(file)
            raise


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    with readable_name(path) as name, safe_open(name, "pt") as file:
        yield file


def _load(path: Path, trainers: Sequence[BankTrainer], identity: Identity) -> None:
    expected = _expected(trainers)
    # the identity is JSON within the header's JSON, where quotes take a backslash each
    identity_bytes = 4 * len(identity.to_json())
    most_bytes = MOST_HEADER + BYTES_A_TENSOR * len(expected) + identity_bytes
    found = read_header(path, most_bytes)
    with opened(path) as file:
        # before anything is restored
        if not check_identity(path, whole_metadata(file), identity):
            warnings.warn(
                f"{path}: made before checkpoints kept their settings and digests of labels, folds "
                "and store; whether they are still the same is not known",
                stacklevel=4,
            )
        if not any("/adamw/" in name for name in found):  # saved before the optimiser's first step
            expected = {name: kept for name, kept in expected.items() if "/adamw/" not in name}
        for b in range(len(trainers)):
            _, shape = found.get(f"{b}/losses", ("", (-1,)))
            if tuple(shape[:1]) == (0,):  # of no batch, so of no type
                _, axes = expected[f"{b}/losses"]
                expected[f"{b}/losses"] = "F64", axes
        if faults := differences(found, expected):
            raise ValueError(f"{len(faults)} of its tensors are others: {faults[0]}")
        for b, trainer in enumerate(trainers):
            state = {}
            for name in file.keys():  # noqa: SIM118
                bank, _, rest = name.partition("/")
                if bank == str(b):
                    state[rest] = file.get_tensor(name)
            _restore(trainer, state)


def whole_metadata(file: safe_open) -> dict[str, str]:
    """The metadata of a file that is as it was saved; ValueError if it is not."""
    metadata = file.metadata() or {}
    tensors = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
    found = checksum(tensors, metadata.get("identity", ""))
    if (saved := metadata.get("crc32c")) != found:
        raise ValueError(f"CRC-32C of its tensors {found}, {saved} when it was saved")
    return metadata


def check_identity(path: Path, metadata: Mapping[str, str], identity: Identity) -> bool:
    """Refuse another identity; False if none is kept."""
    if "identity" not in metadata:
        return False
    advice = f"bring that back, or remove {path.parent} to train from the first epoch"
    identity.check(Identity.from_json(metadata["identity"], path), str(path), advice)
    return True


def checksum(tensors: Iterable[tuple[str, Tensor]], identity: str) -> str:
    """Of identity, names, types, shapes and bytes: safetensors would not see a flipped bit."""
    crc = crc32c(identity.encode()) if identity else 0
    for name, tensor in tensors:
        crc = crc32c(
            f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(),
            tensor.numpy(),
            start=crc,
        )
    return f"{crc:08x}"


def _state(trainer: BankTrainer) -> dict[str, Tensor]:
    """All tensors of a bank under training; of AdamW's, one a head and tensor."""
    state = {}
    for part, tensors in _stacked(trainer).items():
        for name, tensor in tensors.items():
            state[f"{part}/{name}"] = tensor
    for name, tensor in trainer.optimizer.moments().items():
        state[f"adamw/{name}"] = tensor
    state["counts"] = torch.tensor([trainer.optimizer.n_done, trainer.n_batches])
    # first: it notes which heads failed
    state["losses"] = torch.from_numpy(trainer.noted())
    for name, array in _noted(trainer).items():
        state[name] = torch.from_numpy(array)
    # with its axes even where it is empty
    errors_nQG = np.array(trainer.errors_QG).reshape(-1, *trainer.failed_QG.shape)
    state["errors"] = torch.from_numpy(errors_nQG)
    return state


def _expected(trainers: Sequence[BankTrainer]) -> dict[str, Kept]:
    """Type and shape of every tensor of a checkpoint after the optimiser's first step."""
    expected: dict[str, Kept] = {}
    for b, trainer in enumerate(trainers):
        state = _state(trainer)  # fresh, so without moments, and with lists of no batch
        for name, tensor in state.items():
            expected[f"{b}/{name}"] = TYPES[tensor.dtype], tuple(tensor.shape)

        # of any length: batches of an epoch under way, epochs so far
        own = TYPES[trainer.labels.values_NK.dtype]
        for name, dtype in (("losses", own), ("errors", "F64")):
            expected[f"{b}/{name}"] = dtype, (f"{b} {name}", *trainer.failed_QG.shape)

        for number, size in enumerate(trainer.optimizer.sizes()):
            kept = own, size
            expected[f"{b}/adamw/{number}/exp_avg"] = kept
            expected[f"{b}/adamw/{number}/exp_avg_sq"] = kept
            expected[f"{b}/adamw/{number}/step"] = ("F32", ())
    return expected


def _noted(trainer: BankTrainer) -> dict[str, np.ndarray]:
    """What a trainer notes of its heads, (Q, G) each."""
    return {
        "best_score": trainer.best_score_QG,
        "best_epoch": trainer.best_epoch_QG,
        "failed": trainer.failed_QG,
    }


def _restore(trainer: BankTrainer, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for part, tensors in _stacked(trainer).items():
            for name, tensor in tensors.items():
                # in place: the optimiser's slices share this storage
                tensor.copy_(state[f"{part}/{name}"])
    moments = {}
    for name, tensor in state.items():
        if name.startswith("adamw/"):
            moments[name.removeprefix("adamw/")] = tensor
    trainer.optimizer.load_moments(moments)
    trainer.optimizer.n_done, trainer.n_batches = state["counts"].tolist()
    for name, noted in _noted(trainer).items():
        noted[:] = state[name].numpy()
    # a list would keep views of the mapped file, which may be cut later
    trainer.errors_QG[:] = state["errors"].numpy().copy()
    losses = state["losses"].to(trainer.labels.values_NK, copy=True)
    trainer.losses_QG[:] = losses.unbind()


def _stacked(trainer: BankTrainer) -> dict[str, dict[str, Tensor]]:
    """A bank's own tensors; gradients too, since an accumulation may be under way."""
    tensors = trainer.bank.tensors
    return {
        "weights": tensors,
        "grad": {name: tensor.grad for name, tensor in tensors.items()},
        "average": trainer.optimizer.average,
        "best": trainer.best,
    }
