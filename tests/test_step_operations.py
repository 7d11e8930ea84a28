"""What one training step asks of a device, counted on torch's meta device, which computes nothing:
the branch of CUDA without a GPU.

A fake CUDA device (FakeTensorMode) goes forward, but autograd's engine wants a real one to go back.
Nothing can be copied from the meta device to the host: that raises.
"""

import traceback
from collections import Counter
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from sweeps import TRAINED, config, write_store
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.data.readers import TokenReaders
from trainer.data.stream import validation_batches
from trainer.data.tokens import WINDOW_BYTES
from trainer.loop.bank_trainer import BankTrainer
from trainer.loop.optimizer import BankOptimizer
from trainer.loop.prepare import Sweep, prepare_sweep
from trainer.loop.sweep import train_step

DEVICE = torch.device("meta")
MOST = 200
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Counted(TorchDispatchMode):
    """Counts what would be launched on the device, and copies to it that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {tensor.device.type for tensor in _tensors((args, kwargs))}
        made = {tensor.device.type for tensor in _tensors(out)}
        if "meta" not in made or _is_view(func):
            return out
        if func in COPIES and "cpu" in given:
            goes_on = (kwargs or {}).get("non_blocking", args[2:3] == (True,))
            self.waits += [] if goes_on else [_where()]
        self.operations[str(func)] += 1
        return out


def _where() -> str:
    """The line of the project that is being run."""
    own = [frame for frame in traceback.extract_stack() if "/trainer/" in frame.filename]
    return f"{own[-1].filename}:{own[-1].lineno}"


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_view(func) -> bool:
    """Whether an operation launches nothing: a view, or memory that is not filled."""
    name = func.name().removeprefix("aten::")
    if name.startswith(("empty", "new_empty", "_unsafe_view")):
        return True
    returned = func._schema.returns
    alias = returned[0].alias_info if returned else None
    return alias is not None and not alias.is_write


def rows_on_device(sweep: Sweep) -> TokenReaders:
    """A reader all of whose rows have come to the device."""
    readers = TokenReaders(sweep.data.stores, DEVICE, room_bytes=1 << 40)
    readers._readers[""]._place._here_N[:] = True
    return readers


def moved(value):
    """A copy whose tensors are on the meta device, through dataclasses, dicts and tuples."""
    if isinstance(value, Tensor):
        return value.detach().to(DEVICE)
    if isinstance(value, dict):
        return {key: moved(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(moved, value))
    if is_dataclass(value):
        own = {each.name: moved(getattr(value, each.name)) for each in fields(value) if each.init}
        return replace(value, **own)
    return value


def on_device(trainer: BankTrainer, n_steps: int) -> BankTrainer:
    """A trainer made on the CPU, as if it had been made on the meta device."""
    bank = replace(
        trainer.bank,
        tensors=moved(trainer.bank.tensors),
        rate_G=moved(trainer.bank.rate_G),
        moments=moved(trainer.bank.moments),
    )
    optimizer = BankOptimizer(bank, trainer.configs, n_steps)
    labels = replace(
        trainer.labels,
        values_NK=moved(trainer.labels.values_NK),
        word_NC=moved(trainer.labels.word_NC),
        interval_QNAI=moved(trainer.labels.interval_QNAI),
    )
    return replace(
        trainer,
        bank=bank,
        optimizer=optimizer,
        labels=labels,
        weights=moved(trainer.weights),
        best_QGn=optimizer.averages(),
    )


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A function that trains one step of 30 heads of a kind on the meta device, and counts."""
    folder = tmp_path_factory.mktemp("operations")
    store = write_store(folder / "store.h5")

    def count(kind: str, **settings) -> Counted:
        rates = "[3e-2, 1e-2, 3e-3]"
        settings = {"kind": kind, "lr": rates, "decay": "[1e-2, 1e-3]", "n_folds": 5} | settings
        sweep = prepare_sweep(config(folder, store, **settings), "cpu")
        assert len(sweep.splits) * len(sweep.config.points) == 30
        made = sweep.trainers(range(6))
        there = replace(sweep, data=replace(sweep.data, device=DEVICE, multiply="float16"))
        trainers = [on_device(each, sweep.n_batches) for each in made]
        reader = rows_on_device(sweep)
        train_step(there, trainers, reader, 0, 0)
        with Counted() as counted:
            train_step(there, trainers, reader, 0, 1)
        return counted

    return count


@pytest.mark.parametrize("mixup", ["patches", "pooled"])
@pytest.mark.parametrize("kind", TRAINED)
def test_a_step_of_30_heads_is_few_operations_and_asks_the_host_nothing(counted, kind, mixup):
    found = counted(kind, mixup=mixup)
    assert found.operations.total() <= MOST, found.operations
    assert found.waits == []


def test_a_plan_counts_the_rows_that_a_device_gathers(tmp_path):
    sweep = prepare_sweep(config(tmp_path, write_store(tmp_path / "store.h5")), "cpu")
    on_host = sweep.plan()
    there = replace(sweep, data=replace(sweep.data, device=DEVICE, multiply="float16")).plan()
    batches = [sweep.stream.batch(0, step) for step in range(sweep.stream.n_steps)]
    batch_size = sweep.base.trainer.batch_size
    batches += validation_batches(sweep.splits, sweep.data.n_images, batch_size)
    most = max(len(batch.rows_U2) for batch in batches)
    row_bytes = sweep.data.store.patches[0, 0].nbytes
    gathered = there.pass_bytes - on_host.pass_bytes
    # in validation as many as all splits can hold out at once
    assert most * row_bytes <= gathered <= len(sweep.splits) * batch_size * row_bytes
    converted = replace(sweep, data=replace(sweep.data, device=DEVICE)).plan()
    assert converted.pass_bytes - on_host.pass_bytes == 3 * gathered


@pytest.mark.parametrize("left", [0.3, 0.9], ids=["heads need more", "half is left to heads"])
def test_rows_take_half_of_a_device_or_what_heads_leave(tmp_path, monkeypatch, left):
    sweep = prepare_sweep(config(tmp_path, write_store(tmp_path / "store.h5")), "cpu")
    data = replace(sweep.data, device=torch.device("cuda"), multiply="float16")
    there = replace(sweep, data=data)
    free = int(there.plan().pass_bytes / (1 - left))
    rooms = []
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(
        "trainer.data.readers.TokenReader", lambda store, device, room: rooms.append(room)
    )
    there.reader()
    (room,) = rooms
    assert room + WINDOW_BYTES == pytest.approx(min(left, 0.5) * free, abs=2)
