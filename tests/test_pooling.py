"""The only code that touches tokens, against einsum."""

import numpy as np
import pytest
import torch

from trainer.heads.pooling import attend, project, times, transposed_times

Q, G, B, T, P, D, K = 2, 3, 4, 2, 6, 7, 5
RNG = np.random.default_rng(0)
ROWS = [torch.from_numpy(RNG.normal(size=(T, P, D))) for _ in range(5)]
OWN = np.array([[0, 3, 1, 1], [4, 0, -1, 2]])
PARTNER = np.array([[3, 3, 0, 1], [2, 4, -1, 0]])


def dense(row_QB: np.ndarray) -> torch.Tensor:
    return torch.stack(
        [torch.stack([ROWS[u] if u >= 0 else torch.zeros(T, P, D) for u in row]) for row in row_QB]
    )


def test_attend_equals_einsum_forward_and_backward():
    w = torch.rand(Q, G, B, T, P, dtype=torch.float64, requires_grad=True)
    y = attend(w, ROWS, np.stack([OWN, PARTNER], -1))
    expected = torch.einsum("qgbtp,qbstpd->qgbstd", w, torch.stack([dense(OWN), dense(PARTNER)], 2))
    assert torch.allclose(y, expected, rtol=1e-12)
    dy = torch.rand_like(y)
    (got,) = torch.autograd.grad(y, w, dy)
    (want,) = torch.autograd.grad(expected, w, dy)
    assert torch.allclose(got, want, rtol=1e-12)


def test_project_equals_einsum_forward_and_backward():
    w = torch.rand(Q, G, D, K, dtype=torch.float64, requires_grad=True)
    y = project(w, ROWS, OWN)
    expected = torch.einsum("qbtpd,qgdk->qgbtpk", dense(OWN), w)
    assert torch.allclose(y, expected, rtol=1e-12)
    dy = torch.rand_like(y)
    (got,) = torch.autograd.grad(y, w, dy)
    (want,) = torch.autograd.grad(expected, w, dy)
    assert torch.allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
    "block", [1, 16 * D * 8, 1 << 20], ids=["smallest blocks", "several blocks", "one block"]
)
@pytest.mark.parametrize("columns", [3, 20])
def test_blocks_of_patches_make_no_difference(monkeypatch, block, columns):
    monkeypatch.setattr("trainer.heads.pooling.BLOCK_BYTES", block)
    row = torch.from_numpy(RNG.normal(size=(2, 53, D)))
    x_TDM, x_TPM = (torch.from_numpy(RNG.normal(size=(2, n, columns))) for n in (D, 53))
    assert torch.allclose(times(row, x_TDM, half=False), row @ x_TDM, rtol=1e-12)
    assert torch.allclose(
        transposed_times(row, x_TPM, half=False), row.transpose(1, 2) @ x_TPM, rtol=1e-12
    )


LIMIT = {False: 2e-6, True: 2e-3}
"""Of float32 and of half precision: the largest error of a column, relative to its largest
result."""


@pytest.fixture(scope="module")
def outlier_row() -> torch.Tensor:
    """900 patches with an outlier channel, as DINOv3 has."""
    row = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 900, 32)))
    row[..., 3] += 60
    return row.half()


def products(
    row_TPD: torch.Tensor, scale_M: torch.Tensor, half: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both products with columns of these sizes: found, and by float64."""
    rng, m = np.random.default_rng(2), len(scale_M)
    w_TPM = torch.softmax(torch.from_numpy(rng.normal(size=(1, 900, m))), 1) * scale_M
    maps_TDM = torch.from_numpy(rng.normal(size=(1, 32, m))) * scale_M
    w_TPM, maps_TDM = w_TPM.float(), maps_TDM.float()
    return [
        (transposed_times(row_TPD, w_TPM, half), row_TPD.double().transpose(1, 2) @ w_TPM.double()),
        (times(row_TPD, maps_TDM, half), row_TPD.double() @ maps_TDM.double()),
    ]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(
    "scales",
    [[1e-6] * 6, [1.0] * 6, [3e3] * 6, [1e-20, 1e4, 1e-6, 1.0, 1e10, 1e-12]],
    ids=["tiny weights", "plain", "huge weights", "every column another size"],
)
def test_neither_underflow_nor_overflow(outlier_row, scales, half):
    """Each column is judged by itself: a large one must not hide what a small one lost."""
    for found, exact in products(outlier_row, torch.tensor(scales), half):
        error_M = (found.double() - exact).abs().amax((0, 1)) / exact.abs().amax((0, 1))
        assert (error_M < LIMIT[half]).all(), error_M


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_a_column_of_zeros_stays_zero(outlier_row, half):
    for found, exact in products(outlier_row, torch.tensor([1.0, 0.0, 1e-6]), half):
        assert (found[..., 1] == 0).all()
        assert (
            found.isfinite().all() and (found[..., ::2] != 0).any() and (exact[..., 1] == 0).all()
        )
