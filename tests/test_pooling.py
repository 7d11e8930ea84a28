"""The only code that touches tokens, against einsum."""

import numpy as np
import pytest
import torch

from trainer.heads.pooling import attend, project
from trainer.heads.step_index import StepIndex
from trainer.heads.tokens import StepTokens

Q, G, B, T, P, D, K = 2, 3, 4, 2, 6, 7, 5
RNG = np.random.default_rng(0)
ROWS = [torch.from_numpy(RNG.normal(size=(T, P, D))) for _ in range(5)]
OWN = np.array([[0, 3, 1, 1], [4, 0, -1, 2]])


def dense(row_QB: np.ndarray) -> torch.Tensor:
    return torch.stack(
        [torch.stack([ROWS[u] if u >= 0 else torch.zeros(T, P, D) for u in row]) for row in row_QB]
    )


@pytest.fixture(params=["gathered", "row by row"])
def tokens(request, monkeypatch) -> StepTokens:
    """The rows, multiplied in both ways."""
    if request.param == "row by row":
        monkeypatch.setattr("trainer.heads.tokens.SMALL_BYTES", 0)
    made = StepTokens(ROWS, torch.float64)
    assert made.is_gathered == (request.param == "gathered")
    return made


def index() -> StepIndex:
    partners = {"any": np.array([[1, 0, 3, 2], [2, 3, 0, 1]])}
    return StepIndex.of(OWN, len(ROWS), torch.device("cpu"), partners=partners)


def partner_rows() -> np.ndarray:
    return np.take_along_axis(OWN, index().partner_QB["any"].numpy(), 1)


def test_attend_equals_einsum_forward_and_backward(tokens):
    w = torch.rand(Q, G, B, T, P, dtype=torch.float64, requires_grad=True)
    y = attend(w, tokens, index().pairs["any"])
    both = torch.stack([dense(OWN), dense(partner_rows())], 2)
    expected = torch.einsum("qgbtp,qbstpd->qgbstd", w, both)
    assert torch.allclose(y, expected, rtol=1e-12)
    dy = torch.rand_like(y)
    (got,) = torch.autograd.grad(y, w, dy)
    (want,) = torch.autograd.grad(expected, w, dy)
    assert torch.allclose(got, want, rtol=1e-12)


def test_project_equals_einsum_forward_and_backward(tokens):
    w = torch.rand(Q, G, D, K, dtype=torch.float64, requires_grad=True)
    y = project(w, tokens, index().own)
    expected = torch.einsum("qbtpd,qgdk->qgbtpk", dense(OWN), w)
    assert torch.allclose(y, expected, rtol=1e-12)
    dy = torch.rand_like(y)
    (got,) = torch.autograd.grad(y, w, dy)
    (want,) = torch.autograd.grad(expected, w, dy)
    assert torch.allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
    "block", [1, 16 * D * 8, 1 << 20], ids=["smallest blocks", "several blocks", "one block"]
)
@pytest.mark.parametrize("weights", [3, 20])
def test_blocks_of_patches_make_no_difference(monkeypatch, block, weights):
    monkeypatch.setattr("trainer.heads.tokens.BLOCK_BYTES", block)
    monkeypatch.setattr("trainer.heads.tokens.SMALL_BYTES", 0)
    row = torch.from_numpy(RNG.normal(size=(2, 53, D)))
    maps, sums = (torch.from_numpy(RNG.normal(size=(1, 2, weights, n))) for n in (D, 53))
    tokens = StepTokens([row], torch.float64)
    assert torch.allclose(tokens.through(maps, [weights])[0], maps[0] @ row.mT, rtol=1e-12)
    assert torch.allclose(tokens.under(sums, [weights])[0], sums[0] @ row, rtol=1e-12)


@pytest.mark.parametrize("n_most", [1, 2, 5])
def test_rows_gathered_some_at_a_time_make_no_difference(monkeypatch, n_most):
    whole = StepTokens(ROWS, torch.float64)
    w_UTMP = torch.from_numpy(RNG.normal(size=(len(ROWS), T, 3, P)))
    expected = whole.under(w_UTMP, [3] * len(ROWS))
    monkeypatch.setattr("trainer.heads.tokens.GATHERED_BYTES", n_most * ROWS[0].nbytes)
    assert torch.equal(StepTokens(ROWS, torch.float64).under(w_UTMP, [3] * len(ROWS)), expected)


LIMIT = {"float32": 2e-6, "float16": 2e-3, "bf16": 2e-2, "bf16x2": 1e-2}
"""The largest error of a weight's results, relative to the largest of them."""


@pytest.fixture(scope="module")
def outlier_row() -> torch.Tensor:
    """900 patches with an outlier channel, as DINOv3 has."""
    row = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 900, 32)))
    row[..., 3] += 60
    return row.half()


def products(
    row_TPD: torch.Tensor, scale_M: torch.Tensor, multiply: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both products with columns of these sizes: found, and by float64."""
    rng, m = np.random.default_rng(2), len(scale_M)
    w_TPM = torch.softmax(torch.from_numpy(rng.normal(size=(1, 900, m))), 1) * scale_M
    maps_TDM = torch.from_numpy(rng.normal(size=(1, 32, m))) * scale_M
    w_TPM, maps_TDM = w_TPM.float(), maps_TDM.float()
    tokens = StepTokens([row_TPD], torch.float32, multiply)
    under = tokens.under(w_TPM.transpose(1, 2)[None], [m])[0].transpose(1, 2)
    through = tokens.through(maps_TDM.transpose(1, 2)[None], [m])[0].transpose(1, 2)
    return [
        (under, row_TPD.double().transpose(1, 2) @ w_TPM.double()),
        (through, row_TPD.double() @ maps_TDM.double()),
    ]


@pytest.mark.parametrize("multiply", LIMIT)
@pytest.mark.parametrize(
    "scales",
    [[1e-6] * 6, [1.0] * 6, [3e3] * 6, [1e-20, 1e4, 1e-6, 1.0, 1e10, 1e-12]],
    ids=["tiny weights", "plain", "huge weights", "every column another size"],
)
def test_neither_underflow_nor_overflow(outlier_row, scales, multiply):
    """Each column is judged by itself: a large one must not hide what a small one lost."""
    for found, exact in products(outlier_row, torch.tensor(scales), multiply):
        error_M = (found.double() - exact).abs().amax((0, 1)) / exact.abs().amax((0, 1))
        assert (error_M < LIMIT[multiply]).all(), error_M


@pytest.mark.parametrize("multiply", LIMIT)
def test_a_column_of_zeros_stays_zero(outlier_row, multiply):
    for found, exact in products(outlier_row, torch.tensor([1.0, 0.0, 1e-6]), multiply):
        assert (found[..., 1] == 0).all()
        assert (
            found.isfinite().all() and (found[..., ::2] != 0).any() and (exact[..., 1] == 0).all()
        )


@pytest.mark.parametrize("multiply, least, most", [("bf16", 5e-4, 5e-3), ("bf16x2", 0, 2e-4)])
def test_a_second_product_makes_up_for_the_rounding_of_the_first(
    monkeypatch, outlier_row, multiply, least, most
):
    """Sums of a channel of one sign, of weights and tokens that bf16 holds exactly."""
    rng = np.random.default_rng(3)
    row = torch.from_numpy(rng.integers(1, 100, (1, 900, 32))).half()
    w_1TMP = torch.from_numpy(rng.integers(1, 100, (1, 1, 7, 900))).float()
    exact = (w_1TMP[0].double() @ row.double()).squeeze(0)
    found = []
    for small_bytes in (0, 1 << 30):  # row by row, gathered
        monkeypatch.setattr("trainer.heads.tokens.SMALL_BYTES", small_bytes)
        tokens = StepTokens([row], torch.float32, multiply)
        found.append(tokens.under(w_1TMP, [7])[0, 0].double())
    for each in found:
        error = ((each - exact).abs() / exact).max().item()
        assert least <= error <= most
