"""The only code that touches tokens, against einsum."""

import numpy as np
import pytest
import torch

from trainer.pooling import attend, project

Q, G, B, T, P, D, K = 2, 3, 4, 2, 6, 7, 5
RNG = np.random.default_rng(0)
ROWS = [torch.from_numpy(RNG.normal(size=(T, P, D))) for _ in range(5)]
OWN = np.array([[0, 3, 1, 1], [4, 0, -1, 2]])
PARTNER = np.array([[3, 3, 0, 1], [2, 4, -1, 0]])


def dense(row_QB: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.stack([ROWS[u] if u >= 0 else torch.zeros(T, P, D) for u in row]) for row in row_QB])


def test_attend_equals_einsum_forward_and_backward():
    w = torch.rand(Q, G, B, T, P, dtype=torch.float64, requires_grad=True)
    y = attend(w, ROWS, np.stack([OWN, PARTNER], -1))
    expected = torch.einsum("qgbtp,qbstpd->qgbstd", w, torch.stack([dense(OWN), dense(PARTNER)], 2))
    assert torch.allclose(y, expected, rtol=1e-12)
    dy = torch.rand_like(y)
    got, = torch.autograd.grad(y, w, dy)
    want, = torch.autograd.grad(expected, w, dy)
    assert torch.allclose(got, want, rtol=1e-12)


def test_project_equals_einsum_forward_and_backward():
    w = torch.rand(Q, G, D, K, dtype=torch.float64, requires_grad=True)
    y = project(w, ROWS, OWN)
    expected = torch.einsum("qbtpd,qgdk->qgbtpk", dense(OWN), w)
    assert torch.allclose(y, expected, rtol=1e-12)
    dy = torch.rand_like(y)
    got, = torch.autograd.grad(y, w, dy)
    want, = torch.autograd.grad(expected, w, dy)
    assert torch.allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e3], ids=["tiny weights", "plain", "huge weights"])
def test_half_precision_neither_underflows_nor_overflows(scale):
    """Rows of 900 patches with an outlier channel, as DINOv3 has; error relative to the largest result."""
    rng = np.random.default_rng(1)
    row = torch.from_numpy(rng.normal(size=(1, 900, 32)))
    row[..., 3] += 60
    w = torch.softmax(torch.from_numpy(rng.normal(size=(1, 2, 3, 1, 900))), -1) * scale
    exact = attend(w, [row], np.zeros((1, 3, 1), int))
    half = attend(w.float(), [row.half()], np.zeros((1, 3, 1), int)).double()
    assert ((half - exact).abs().max() / exact.abs().max()) < 2e-3
    maps = torch.from_numpy(rng.normal(size=(1, 2, 32, 5))) * scale
    exact, half = project(maps, [row], np.zeros((1, 1), int)), project(maps.float(), [row.half()], np.zeros((1, 1), int)).double()
    assert ((half - exact).abs().max() / exact.abs().max()) < 2e-3
