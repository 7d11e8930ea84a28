"""L8: rows of a lazy batch are read in place, and an operation that would write to them is an
error, not the end of Python."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from sweeps import write_store
from torch import nn

from featurestore import FeatureStore
from featurestore.errors import UsageError
from trainer import MixupBatches
from trainer.data.stored_row import StoredRow


@pytest.fixture
def plain():
    return torch.arange(30, dtype=torch.float16).reshape(2, 3, 5)


@pytest.fixture
def row(plain):
    return StoredRow.of(plain)


WRITES = {
    "in place": lambda row: row.mul_(0.5),
    "an operator": lambda row: row.__iadd__(1),
    "an item": lambda row: row.__setitem__(0, 0),
    "by a mask": lambda row: row.masked_fill_(row > 3, 0),
    "out": lambda row: torch.add(row, 1, out=row),
    "out of two": lambda row: torch.frexp(row, out=(row, torch.empty(0, dtype=torch.int32))),
    "a list": lambda row: torch._foreach_mul_([torch.ones(2), row], 2),
    "a function's flag": lambda row: nn.functional.relu(row, inplace=True),
    "initialisation": lambda row: nn.init.zeros_(row),
    "data": lambda row: row.data.zero_(),
    "detached": lambda row: row.detach().zero_(),
    "a view": lambda row: row.view(-1)[3:].zero_(),
    "a view of other values": lambda row: row.view(torch.int16).zero_(),
    "a reshaped view": lambda row: row.reshape(6, 5).T.zero_(),
    "one of several views": lambda row: row.split(1)[1].zero_(),
    "one of its rows": lambda row: next(iter(row)).zero_(),
    "itself made contiguous": lambda row: row.contiguous().zero_(),
    "itself of the same type": lambda row: row.to(torch.float16).zero_(),
    "a shallow copy": lambda row: copy.copy(row).zero_(),
    "in inference": torch.inference_mode()(lambda row: row.view(-1).zero_()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_L8_a_row_refuses_to_be_written_to(row, plain, write):
    before = plain.clone()
    with pytest.raises(UsageError, match=r"the store's own memory .* row.clone\(\)"):
        write(row)
    assert torch.equal(plain, before)


def test_L8_the_array_of_a_row_is_its_memory_and_read_only(row, plain):
    for array in (row.numpy(), np.asarray(row), row[1].numpy()):
        assert np.shares_memory(array, plain.numpy())
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_L8_what_is_computed_from_a_row_is_plain_and_equal(row, plain):
    weight = torch.randn(5, 4).half()
    for compute in (
        lambda x: x.float() @ weight.float(),
        lambda x: x @ weight,
        lambda x: torch.stack([x, x]),
        lambda x: x.clone().mul_(2),
        lambda x: torch.empty_like(x).copy_(x),
        lambda x: torch.mul(x, 2, out=torch.empty(0).half()),
        lambda x: nn.functional.layer_norm(x, (5,)),
        lambda x: x.topk(2).values,
    ):
        assert type(compute(row)) is torch.Tensor
        assert torch.equal(compute(row), compute(plain))
    assert (repr(row), row.tolist(), row[0, 0, 1].item()) == (repr(plain), plain.tolist(), 1)


def test_L8_weights_learn_from_a_row_as_it_is(row, plain):
    """Its half-precision values are kept for the backward pass."""
    gradients = []
    for x in (row, plain):
        weight = torch.ones(5, 4).half().requires_grad_()
        (x @ weight).sum().backward()
        gradients.append(weight.grad)
    assert type(gradients[0]) is torch.Tensor and torch.equal(*gradients)


def saved(row):
    file = io.BytesIO()
    torch.save(row, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def pickled(row):
    return pickle.loads(pickle.dumps(row))


@pytest.mark.parametrize("take", [pickled, copy.deepcopy, saved])
def test_L8_a_copy_of_a_row_is_a_plain_tensor_of_its_own(row, plain, take):
    taken = take(row)
    assert type(taken) is torch.Tensor and torch.equal(taken, plain)
    taken.zero_()
    assert plain.any()


def test_L8_a_row_is_compiled_without_a_break(row, plain):
    def work(x):
        return (x.view(-1, 5).float() @ torch.ones(5, 2)).sum(0), x.view(-1)[3:]

    sums, view = torch.compile(work, backend="aot_eager", fullgraph=True)(row)
    assert torch.equal(sums, work(plain)[0])
    with pytest.raises(UsageError):
        view.zero_()


def test_L8_rows_of_a_lazy_batch_refuse_to_be_written_to(tmp_path):
    path = write_store(tmp_path / "features.h5")
    before = path.read_bytes()
    batch = next(iter(MixupBatches(FeatureStore.open(path), batch_size=4, lazy=True)))
    for row in batch.patches:
        with pytest.raises(UsageError, match="mul_: would write into a row"):
            row.mul_(0.5)
    assert path.read_bytes() == before
