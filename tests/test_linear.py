"""A bank's layers against torch.nn's, one head after another; and the work of their gradients."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.heads.bank import Bank

Q, G, B, T, N_OUT = 2, 3, 4, 2, 5
WIDTHS = (7, 6, 3)


@pytest.fixture
def bank():
    torch.manual_seed(0)
    shapes = {"layer.weight": (Q, G, sum(WIDTHS), N_OUT), "layer.bias": (Q, G, N_OUT)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = torch.randn(shape, dtype=torch.float64).requires_grad_()
    return Bank(None, tensors)


def parts(*learning):
    """Of each width, and whether a gradient is asked of it."""
    made = [torch.randn(Q, G, B, T, width, dtype=torch.float64) for width in WIDTHS]
    return [part.requires_grad_(is_asked) for part, is_asked in zip(made, learning, strict=True)]


def test_parts_are_read_one_behind_another_by_each_heads_own_layer(bank):
    read = parts(True, True, True)
    y = bank.linear("layer", *read)
    y.pow(2).sum().backward()
    for q in range(Q):
        for g in range(G):
            plain = nn.Linear(sum(WIDTHS), N_OUT, dtype=torch.float64)
            with torch.no_grad():
                plain.weight.copy_(bank.tensors["layer.weight"][q, g].T)
                plain.bias.copy_(bank.tensors["layer.bias"][q, g])
            own = [part[q, g].detach().requires_grad_() for part in read]
            expected = plain(torch.cat(own, -1))
            expected.pow(2).sum().backward()
            torch.testing.assert_close(y[q, g], expected)
            for name, grad in (("weight", plain.weight.grad.T), ("bias", plain.bias.grad)):
                torch.testing.assert_close(bank.tensors[f"layer.{name}"].grad[q, g], grad)
            for part, one in zip(read, own, strict=True):
                torch.testing.assert_close(part.grad[q, g], one.grad)


def test_a_part_that_learns_nothing_costs_no_gradient(bank):
    """A full-size step would spend a fortieth of its products on that of class tokens."""
    y = bank.linear("layer", *parts(False, True, False))
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    # it does not count baddbmm_, which adds the gradients of weights where they are
    assert counter.get_total_flops() == 2 * Q * G * B * T * N_OUT * WIDTHS[1]
