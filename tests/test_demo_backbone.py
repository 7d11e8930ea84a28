"""The packaged backbone: small, offline, and it knows pasture; its training repeats itself."""

import socket
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

from featurestore.backbone.demo.drawing import G_PER_CM2
from featurestore.backbone.demo.leaves import QUADRAT_CM, Layer
from featurestore.backbone.demo.model import NAME, PIXELS, WEIGHTS
from featurestore.backbone.demo.pastures import draw_pastures, grams_per_patch
from featurestore.backbone.demo.train import Recipe, train
from featurestore.backbone.load import load_backbone, restore_backbone
from featurestore.backbone.weights import weights_hash
from featurestore.photos.views import VIEWS


def load(weights=None):
    return load_backbone(NAME, weights, crop="halves", image_size=PIXELS, views=VIEWS[:1])


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_packaged_file_is_small_and_of_half_precision():
    state = load_file(WEIGHTS)
    assert WEIGHTS.stat().st_size < 1_000_000
    assert sum(tensor.numel() for tensor in state.values()) < 450_000
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_it_loads_offline_without_a_word(no_network):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = load()
    assert (backbone.spec.patch_size, backbone.spec.width, backbone.spec.interpolation) == (
        16,
        96,
        "bicubic",
    )
    assert backbone.spec.mean == (0.485, 0.456, 0.406) and backbone.spec.std == (
        0.229,
        0.224,
        0.225,
    )
    assert restore_backbone(backbone.spec, None, "cpu", "fp32").spec == backbone.spec


def test_the_hash_is_of_what_is_loaded_by_name_or_by_file():
    by_name, by_file = load(), load(str(WEIGHTS))
    assert by_name.spec == by_file.spec
    assert by_name.spec.weights_sha256 == weights_hash(by_name.model)
    for name, tensor in load_file(WEIGHTS).items():
        assert torch.equal(by_name.model.state_dict()[name], tensor.float())


def test_tokens_tell_mass_where_they_have_not_been():
    pastures = draw_pastures(24, 3_000_000, PIXELS, 16, strange=False, workers=1)
    backbone, features = load(), []
    for pixels_HW3 in pastures.pixels_NHW3:
        tiles_THW3 = np.stack(np.split(pixels_HW3, 2, 1))
        cls_TD, patches_TPD = backbone.tokens(torch.from_numpy(tiles_THW3), "", VIEWS[0])
        features.append(torch.cat([cls_TD.mean(0), patches_TPD.float().mean((0, 1))]).numpy())
    total_g, known, new = pastures.grams_NGhw.sum((1, 2, 3)), slice(0, 14), slice(14, 24)
    predicted_g = Ridge(10).fit(features[known], total_g[known]).predict(features[new])
    assert np.corrcoef(predicted_g, total_g[new])[0, 1] > 0.9


def test_training_runs_and_repeats_itself():
    recipe = Recipe(n_photos=4, n_test=2, steps=2, batch=2, pixels=64)
    (one, scores), (two, again) = (train(recipe, lambda _: None, workers=1) for _ in range(2))
    assert weights_hash(one) == weights_hash(two) and scores == again
    assert set(scores) == {"patch tokens", "class token"}


def test_grams_lie_where_the_leaf_does():
    cell_cm = QUADRAT_CM[1] / 4
    square_E2 = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]) * cell_cm
    leaves_SE2 = square_E2 + cell_cm * np.array([[5, 1], [-0.5, 3]])[:, None]
    grid = grams_per_patch(Layer(leaves_SE2, np.zeros((2, 3)), np.zeros(2)), 4)
    one_g = G_PER_CM2 * (0.8 * cell_cm) ** 2
    assert grid.shape == (4, 8)
    assert np.argwhere(grid).tolist() == [[1, 5], [3, 0]]
    assert np.allclose([grid[1, 5], grid[3, 0]], [one_g, one_g / 2])
