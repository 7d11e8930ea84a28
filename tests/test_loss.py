"""The loss and what it learns from, by hand: each term, each space, what is not known, borders,
biases to start from."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from preset import csiro

from trainer.heads.bank import Outputs
from trainer.heads.loss import (
    Labels,
    LossWeights,
    initial_biases,
    labels_of,
    multi_task_loss,
)
from trainer.heads.outputs import softplus

STATES = ["NSW", "Tas", "WA"]
LOG = np.log
TRUTH_B5 = [[10.0, 7, 5, 3, 2], [4, 4, 4, 0, 0]]
OFF_BY_B5 = [[4.0, -1, 0.5, 1, -5], [0, 2, 0, 3, 0]]
"""With beta 2 the smooth L1 of these is 3, 1/4, 1/16, 1/4, 4 and 0, 1, 0, 2, 0."""
SETTINGS = {
    "beta": 2.0,
    "main_weights": [1.0, 0.5, 0.25],
    "state_weight": 0.0,
    "height_weight": 0.0,
    "aux_weight": 0.0,
    "interval_weight": 0.0,
    "space": "raw",
    "scale": "none",
}


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def labels(masses_B5=TRUTH_B5, state=((0, 1, 0), (0, 0, 0)), height=(9.0, np.nan)) -> Labels:
    """Two samples: of the second neither State nor Height is known."""
    return Labels(csiro(STATES), with_height(masses_B5, height), tensor(state))


def with_height(masses_B5, height_B) -> torch.Tensor:
    """(B, 6): what heads learn numbers of."""
    masses_B5 = torch.as_tensor(masses_B5, dtype=torch.float64)
    height_B1 = torch.as_tensor(height_B, dtype=torch.float64)[..., None]
    return torch.cat([masses_B5, height_B1], -1)


def loss(out: Outputs, truth: Labels, **settings) -> float:
    """Of one head of one split."""
    point = SimpleNamespace(loss=SimpleNamespace(**SETTINGS | settings))
    weights = LossWeights.of([point], labels(), [])
    one_split = truth.take(torch.tensor([[0, 1]]))
    return multi_task_loss(out, one_split, weights).item()


def outputs(masses_B5=TRUTH_B5, state=((0.0, 0, 0), (0, 0, 0)), height=(0.0, 0.0)) -> Outputs:
    return Outputs(with_height(masses_B5, height)[None, None], tensor(state)[None, None])


MISSED = outputs(np.add(TRUTH_B5, OFF_BY_B5))
RIGHT = outputs()


@pytest.mark.parametrize("error, expected", [(0, 0), (1, 0.25), (2, 1), (3, 2), (-3, 2)])
def test_errors_count_by_their_square_below_beta(error, expected):
    guess = outputs(np.add(TRUTH_B5, [[error, 0, 0, 0, 0]] * 2))
    assert loss(guess, labels(), main_weights=[1.0, 0, 0]) == pytest.approx(expected)


def test_main_masses_are_weighted_means_over_samples():
    assert loss(MISSED, labels()) == pytest.approx(3 / 2 + 0.5 * (0.25 + 1) / 2 + 0.25 / 16 / 2)


def test_dead_and_clover_count_by_their_mean():
    settings = {"main_weights": [0.0, 0, 0], "aux_weight": 0.8}
    assert loss(MISSED, labels(), **settings) == pytest.approx(0.8 * (0.25 + 4 + 2 + 0) / 4)


@pytest.mark.parametrize(
    "space, of_guess, of_truth",
    [("raw", 8, 3), ("log1p", LOG(9), LOG(4)), ("sqrt", 8**0.5, 3**0.5)],
)
def test_masses_are_compared_in_a_space(space, of_guess, of_truth):
    truth = labels(np.zeros((2, 5)) + [3, 0, 0, 0, 0])
    guess = outputs(np.zeros((2, 5)) + [8, 0, 0, 0, 0])
    assert loss(guess, truth, beta=1e-3, space=space) == pytest.approx(of_guess - of_truth - 5e-4)


def test_points_of_one_bank_have_a_space_each():
    points = [
        SimpleNamespace(loss=SimpleNamespace(**SETTINGS | {"space": s, "beta": 0.01}))
        for s in ("sqrt", "raw")
    ]
    weights = LossWeights.of(points, labels(), [])
    masses = torch.full((1, 2, 1, 5), 9.0, dtype=torch.float64)
    truth = Labels(csiro(STATES), torch.full((1, 1, 1, 6), 4.0), torch.zeros(1, 1, 1, 3))
    found = multi_task_loss(Outputs(masses), truth, weights)
    assert found[0].tolist() == pytest.approx([1.75 * (1 - 0.005), 1.75 * (5 - 0.005)])


def test_the_root_begins_above_zero():
    nothing = torch.zeros(1, 1, 1, 5, dtype=torch.float64, requires_grad=True)
    truth = Labels(csiro(STATES), torch.ones(1, 1, 1, 6), torch.zeros(1, 1, 1, 3))
    point = SimpleNamespace(loss=SimpleNamespace(**SETTINGS | {"space": "sqrt"}))
    weights = LossWeights.of([point], labels(), [])
    multi_task_loss(Outputs(nothing), truth, weights).sum().backward()
    assert nothing.grad.isfinite().all()


def test_a_state_that_is_not_known_counts_as_a_sample_without_error():
    told = outputs(state=((LOG(2), LOG(5), 0), (9, 0, 0)))  # Tas has 5 of 8 parts
    assert loss(told, labels(), state_weight=0.6) == pytest.approx(0.6 * LOG(8 / 5) / 2)


def test_a_height_that_is_not_known_counts_as_a_sample_without_error():
    assert loss(outputs(height=(12.0, 50)), labels(), height_weight=0.4) == pytest.approx(
        0.4 * 2 / 2
    )
    assert loss(outputs(height=(12.0, 50)), labels(height=(np.nan, np.nan)), height_weight=0.4) == 0


def test_intervals_cost_the_mean_over_masses_and_samples():
    one_hot = torch.nn.functional.one_hot(torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]), 2)
    truth = replace(labels(), interval_QNAI=one_hot[None].double())
    logits = torch.zeros(1, 1, 2, 5, 2, dtype=torch.float64)
    logits[..., 0] = LOG(3)  # the first interval has 3 of 4 parts
    out = replace(RIGHT, interval_QGBAI=logits)
    assert loss(out, truth, interval_weight=0.5) == pytest.approx(
        0.5 * (9 * LOG(4 / 3) + LOG(4)) / 10
    )


def test_a_mass_at_a_border_is_of_the_interval_above():
    masses = tensor([[m] * 5 for m in (0, 10, 20, 30, 40, 20, 19.9, 99)])
    all_of_them = Labels(csiro(), with_height(masses, np.zeros(8)), torch.zeros(8, 1))
    trains = [np.arange(5), np.array([0, 2, 4])]
    interval_QN5 = all_of_them.with_intervals(trains, 2).interval_QNAI.argmax(-1)
    assert interval_QN5[0, :, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 1]  # median 20 of the first five
    thirds_QN5 = all_of_them.with_intervals(trains[1:], 4).interval_QNAI.argmax(-1)
    assert thirds_QN5[0, :, 4].tolist() == [
        0,
        1,
        2,
        3,
        3,
        2,
        1,
        3,
    ]  # of 0, 20, 40: borders 10, 20, 30


def test_every_split_has_its_own_borders():
    masses = tensor([[m] * 5 for m in (1, 2, 3, 10, 20, 30)])
    both = Labels(csiro(), with_height(masses, np.zeros(6)), torch.zeros(6, 1))
    of_splits = both.with_intervals([np.arange(3), np.arange(3, 6)], 2).interval_QNAI.argmax(-1)
    assert of_splits[..., 2].tolist() == [[0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    taken = both.with_intervals([np.arange(3), np.arange(3, 6)], 2).take(torch.tensor([[1], [1]]))
    assert taken.interval_QNAI[:, 0, 0, 0].tolist() == [[0, 1], [1, 0]]


def test_mixed_labels_are_those_of_both_parts():
    own, other = labels(), labels(TRUTH_B5[::-1], ((0, 0, 1), (1, 0, 0)), (5.0, 7))
    share = tensor([[[0.75, 1.0]]])
    mixed = own.take(torch.tensor([[0, 1]])).mix(other.take(torch.tensor([[0, 1]])), share)
    masses, height = mixed.values_NK[0, 0, :, :5], mixed.values_NK[0, 0, :, 5]
    assert masses.tolist() == [[8.5, 6.25, 4.75, 2.25, 1.5], TRUTH_B5[1]]
    assert mixed.word_NC[0, 0].tolist() == [[0, 0.75, 0.25], [0, 0, 0]]
    assert height[0] == 8 and height[1].isnan()


def test_a_partner_without_a_share_spoils_no_height():
    own, other = labels(height=(9.0, 8)), labels(height=(np.nan, np.nan))
    share = tensor([[[1.0, 0.5]]])
    mixed = own.take(torch.tensor([[0, 1]])).mix(other.take(torch.tensor([[0, 1]])), share)
    height = mixed.values_NK[0, 0, :, 5]
    assert height[0] == 9 and height[1].isnan()


def test_labels_are_the_catalogs():
    catalog = pd.DataFrame(
        {
            "image_id": list("ABCD"),
            "State": ["WA", "", "NSW", "Qld"],
            "Height_Ave_cm": [3.5, np.inf, np.nan, -np.inf],
            "Dry_Total_g": [6.0, 0, 5, 5],
            "GDM_g": [4.0, 0, 5, 5],
            "Dry_Green_g": [3.0, 0, 5, 5],
            "Dry_Dead_g": [2.0, 0, 0, 0],
            "Dry_Clover_g": [1.0, 0, 0, 0],
        }
    )
    found = labels_of(catalog, csiro(STATES), torch.float64, torch.device("cpu"))
    assert found.values_NK[0].tolist() == [6, 4, 3, 2, 1, 3.5]
    assert found.word_NC.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert found.values_NK[1:, 5].isnan().all()  # infinite is not known


def test_heads_start_at_the_training_means():
    masses = tensor([[8.0, 6, 4, 2, 0], [12, 10, 6, 2, 0], [99, 99, 99, 99, 99]])
    known = Labels(csiro(), with_height(masses, [5.0, np.nan, 99]), torch.zeros(3, 1))
    found = initial_biases(known, np.array([0, 1]), n_tiles=2, n_patches=15)
    told = {name: np.logaddexp(0, bias) for name, bias in found.items()}  # softplus
    assert told["main_head.bias"] * 2 == pytest.approx([10, 8, 5])
    assert told["aux_head.bias"] * 2 == pytest.approx(
        [2, 2e-6]
    )  # what is always 0 starts just above
    assert told["height_head.bias"] == pytest.approx([5])
    assert told["density.bias"] * 2 * 15 == pytest.approx([10, 8, 5, 2, 3e-5])


def test_where_no_height_is_known_it_starts_at_one():
    none = Labels(csiro(), with_height(np.ones((2, 5)), [np.nan] * 2), torch.zeros(2, 1))
    assert np.logaddexp(
        0, initial_biases(none, np.array([0, 1]), 2, 15)["height_head.bias"]
    ) == pytest.approx([1])


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_softplus_keeps_the_last_places_and_its_slope(dtype, limit):
    """Against NumPy's logaddexp; from where exp(x) vanishes beside 1 to where 1 does beside it."""
    x = torch.linspace(-80, 80, 40_001, dtype=dtype, requires_grad=True)
    y = softplus(x)
    exact = np.logaddexp(0, x.detach().double().numpy())
    assert (np.abs(y.detach().double().numpy() - exact) / exact).max() < limit
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope, torch.sigmoid(x.detach()), rtol=limit)
