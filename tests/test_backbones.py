"""Every family of timm with a class token: its tokens are read as timm means them, or it is refused
before any writing."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import biomass

from featurestore import FeatureStore
from featurestore.backbone.backbone import Backbone
from featurestore.backbone.load import load_backbone, spec_without_weights
from featurestore.backbone.timm_model import patch_size_of
from featurestore.errors import InputError
from featurestore.photos.views import VIEWS
from tools.list_backbones import patch_order

pytestmark = pytest.mark.usefixtures("shallow")
BY_FEATURES = ["cait_xxs24_224", "convit_tiny", "volo_d1_224", "xcit_nano_12_p16_224"]
SMALL = [
    "test_vit",
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_224",
    "tnt_s_legacy_patch16_224",
    "vit_tiny_r_s16_p8_224",
    *BY_FEATURES,
]
LARGE = [
    "beit_base_patch16_224",
    "mvitv2_small_cls",
    "naflexvit_base_patch16_radio_v3",
    "vit_base_patch14_reg1_tipsv2",
    "vit_base_patch16_sapiens2",
    "vit_relpos_medium_patch16_cls_224",
    "vit_7b_patch16_dinov3",
]
REFUSED = {
    "pit_ti_224": "timm gives no class token together with patch tokens of a "
    "PoolingVisionTransformer",
    "coat_tiny": "has 4 class tokens, one for each scale",
    "crossvit_tiny_240": "has 2 class tokens, one for each scale",
    "resnet18": "not a vision transformer with a class token",
    "mvitv2_small_cls": "a trial with a tile of 96 x 160 pixels failed",
}


@cache
def backbone(name: str, precision: str = "fp32") -> Backbone:
    """On tiles of 3 x 5 patches, so that rows cannot be taken for columns; of ConViT, which takes
    squares alone, 3 x 3."""
    columns = 3 if name == "convit_tiny" else 5
    return load_backbone(
        name,
        "random",
        crop="whole",
        image_size=3 * patch_size_of(name),
        views=VIEWS[:1],
        aspect=columns / 3,
        precision=precision,
    )


@pytest.mark.parametrize("name", SMALL)
def test_K6_patch_tokens_are_row_by_row_in_every_family(name):
    order = patch_order(backbone(name))
    assert order == sorted(order)


@pytest.mark.parametrize("name", BY_FEATURES)
def test_K6_the_class_token_is_the_one_that_timm_classifies_by(name):
    made = backbone(name)
    tile = torch.randint(
        0, 256, (1, made.spec.tile_height, made.spec.tile_width, 3), dtype=torch.uint8
    )
    x = (
        tile.permute(0, 3, 1, 2) / 255 - torch.tensor(made.spec.mean).view(3, 1, 1)
    ) / torch.tensor(made.spec.std).view(3, 1, 1)
    with torch.inference_mode():
        theirs = made.model(x)  # without a classifier: what the classifier would get
    assert torch.allclose(made.tokens(tile, "x", VIEWS[0])[0].float(), theirs, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", LARGE)
def test_K6_models_too_large_to_compute_here_pass_the_trial(name):
    spec = spec_without_weights(name, crop="squash", image_size=224, views=VIEWS[:1])
    assert spec.grid == (224 // spec.patch_size, 224 // spec.patch_size)


@pytest.mark.parametrize("name, reason", REFUSED.items(), ids=REFUSED)
def test_K6_what_cannot_be_used_is_refused_with_the_reason(name, reason):
    with pytest.raises(InputError, match=f"^{name}: .*{reason}.*; try "):
        backbone(name)


def test_K6_a_model_of_no_known_name_gets_no_empty_list_of_others():
    with pytest.raises(
        InputError, match=r"no such model; docs/backbones.md lists those that can be used$"
    ):
        backbone("#")


def test_K6_layers_before_the_last_are_refused_where_they_have_no_class_token():
    with pytest.raises(
        InputError,
        match=r"layers \[-2, -1\]: timm gives the class token of a Xcit after the last layer only",
    ):
        load_backbone(
            "xcit_nano_12_p16_224",
            "random",
            crop="squash",
            image_size=64,
            views=VIEWS[:1],
            layers=(-2, -1),
        )


def test_K6_half_precision_takes_batch_norms_along():
    full, half = backbone("xcit_nano_12_p16_224"), backbone("xcit_nano_12_p16_224", "bf16")
    tile = torch.randint(
        0, 256, (1, full.spec.tile_height, full.spec.tile_width, 3), dtype=torch.uint8
    )
    expected, found = (each.tokens(tile, "x", VIEWS[0])[0].float() for each in (full, half))
    assert (found - expected).norm() < 0.05 * expected.norm()


BUILD = ["--crop", "squash", "--image-size", 32, "--weights", "random", "--device", "cpu"]


@pytest.mark.parametrize(
    "name, options, reason",
    [
        ("pit_ti_224", [], "no class token together with patch tokens"),
        ("vit_relpos_small_patch16_224", [], "not a vision transformer with a class token"),
        (
            "vit_relpos_medium_patch16_cls_224",
            ["--precision", "bf16"],
            "cannot be used on cpu in bf16, a trial",
        ),
    ],
)
def test_K6_nothing_is_written_for_a_model_that_cannot_be_used(
    pasture, tmp_path, name, options, reason
):
    result = biomass(
        "store",
        "build",
        "--data",
        pasture,
        "--out",
        tmp_path / "f.h5",
        "--views",
        1,
        "--backbone",
        name,
        *BUILD,
        *options,
        code=3,
    )
    assert reason in result.stderr
    assert list(tmp_path.iterdir()) == []


RIDGE = """
experiment: {{name: ridge, seed: 0}}
dataset: {{store: {store}}}
head: {{kind: ridge}}
optimization: {{lr: 1e-2, weight_decay: 0}}
inference: {{tta_indices: [0]}}
cv: {{n_folds: 2, groups: date}}
"""


def test_K6_a_model_read_by_its_features_is_built_extended_trained_and_predicted(pasture, tmp_path):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    biomass(
        "store",
        "build",
        "--data",
        pasture,
        "--out",
        one,
        "--views",
        1,
        "--backbone",
        "xcit_nano_12_p16_224",
        *BUILD,
    )
    biomass("store", "extend", one, two, "--data", pasture, "--views", 2, "--device", "cpu")
    old, new = FeatureStore.open(one), FeatureStore.open(two)
    assert np.array_equal(old.cls[:, 0], new.cls[:, 0])
    assert new.patches.shape == (6, 2, 1, 4, 128)
    (tmp_path / "ridge.yaml").write_text(RIDGE.format(store=two))
    biomass(
        "train", "--config", tmp_path / "ridge.yaml", "--out", tmp_path / "runs", "--device", "cpu"
    )
    biomass(
        "predict",
        "--data",
        pasture,
        "--sweep",
        next((tmp_path / "runs").iterdir()),
        "--tta",
        1,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
    )
    assert pd.read_csv(tmp_path / "s.csv").notna().all(axis=None)


@pytest.mark.filterwarnings("default:the weights that made these tokens are unknown")
def test_K6_tokens_of_a_hybrid_are_imported_at_the_size_they_were_made_at(tmp_path):
    (tmp_path / "npz").mkdir()
    np.savez(
        tmp_path / "npz" / "ID1.npz",
        cls_0=np.ones(192, np.float16),
        patches_0=np.ones((9, 192), np.float16),
    )
    biomass(
        "store",
        "import",
        tmp_path / "npz",
        "--out",
        tmp_path / "f.h5",
        "--backbone",
        "vit_tiny_r_s16_p8_224",
    )
    tokens = FeatureStore.open(tmp_path / "f.h5").spec.tokens
    assert (tokens.tile_height, tokens.patch_size, tokens.grid) == (96, 32, (3, 3))


def test_K6_the_page_says_of_each_family_what_is_found_here():
    page = (Path(__file__).parent.parent / "docs" / "backbones.md").read_text()
    refused, usable = page.split("## Not usable")[1].split("## Usable")
    assert all(f"`{name}`" in usable and f"`{name}`" not in refused for name in {*SMALL, *LARGE})
    assert all(
        f"| `{name}` | {reason}" in refused
        for name, reason in REFUSED.items()
        if name not in ("resnet18", *LARGE)
    )
