"""Batches of a fixed shape: a row's bits depend on nothing but itself."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import biomass

from featurestore import FeatureStore
from featurestore.backbone.backbone import Backbone, Row
from featurestore.backbone.load import backbone_of_store, load_backbone
from featurestore.format.spec import made_together, whole_rows
from featurestore.photos.decode import decode
from featurestore.photos.views import VIEWS

DEMO = ["--backbone", "vit_demo_patch16_dinov3", "--image-size", 64, "--device", "cpu"]
THREE = "plain,hsv,vflip"


def build(pasture: Path, out: Path, *options: object) -> FeatureStore:
    biomass("store", "build", "--data", pasture, "--out", out, *DEMO, *options)
    return FeatureStore.open(out)


@pytest.fixture(scope="module")
def whole(pasture, tmp_path_factory) -> FeatureStore:
    """Batches of four rows over images of three: they begin and end inside of images."""
    out = tmp_path_factory.mktemp("batches") / "whole.h5"
    return build(pasture, out, "--views", THREE, "--batch", 9)


@pytest.fixture
def stopped(monkeypatch) -> type[Exception]:
    """The fourth batch is never computed."""
    stop = type("Stop", (Exception,), {})
    encode, made = Backbone.encode, []

    def some(self, rows):
        made.append(rows)
        if len(made) == 4:
            raise stop
        return encode(self, rows)

    monkeypatch.setattr(Backbone, "encode", some)
    return stop


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_B23_neighbours_and_places_change_no_bit_of_a_row(precision):
    backbone = load_backbone(
        "vit_demo_patch16_dinov3",
        None,
        crop="halves",
        image_size=64,
        views=VIEWS[:1],
        precision=precision,
        batch=8,
    )
    tiles = torch.randint(256, (5, 2, 64, 64, 3), generator=torch.manual_seed(0)).byte()
    # the hsv view's pixels have another order in memory
    plain, hsv = VIEWS[0], next(view for view in VIEWS if view.name == "hsv")
    views = [plain, plain, plain, hsv, hsv]
    rows = [Row(str(i), views[i], backbone.on_device(tiles[i])) for i in range(5)]
    first = backbone.encode(rows[:4])
    for order in ([3, 2, 1, 0], [None, 1, None, None], [4, 4, 1, 2]):
        there = backbone.encode([None if i is None else rows[i] for i in order])
        for place, i in enumerate(order):
            if i not in (None, 4):
                assert torch.equal(there.cls_RTD[place], first.cls_RTD[i])
                assert torch.equal(there.patches_RTPD[place], first.patches_RTPD[i])


def test_a_build_that_was_stopped_has_the_same_bytes(pasture, whole, tmp_path, stopped):
    out = tmp_path / "f.h5"
    with pytest.raises(stopped):
        build(pasture, out, "--views", THREE, "--batch", 8)
    n_sealed = FeatureStore.open(out).n_sealed
    assert 0 < n_sealed < 6  # rows of the fourth image had been computed too
    arguments = ["--data", pasture, "--out", out, "--views", THREE, "--batch", 4, *DEMO]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        said = biomass("store", "build", *arguments).stderr
    assert "was begun with --batch 8" in said
    assert out.read_bytes() == Path(whole.path).read_bytes()


def test_further_views_and_predicted_ones_have_the_same_bits(pasture, whole, tmp_path):
    build(pasture, tmp_path / "one.h5", "--views", "hsv", "--batch", 8)
    arguments = ["--data", pasture, "--views", THREE, "--device", "cpu"]
    biomass("store", "extend", tmp_path / "one.h5", tmp_path / "three.h5", *arguments)
    extended = FeatureStore.open(tmp_path / "three.h5")
    assert np.array_equal(extended.patches, whole.patches)
    assert np.array_equal(extended.pooled, whole.pooled)
    assert extended.spec.made_by["batch"] == "8"

    backbone = backbone_of_store(whole.spec, None, [Path(whole.path).parent], "--weights", "cpu")
    assert backbone.n_rows == 4
    ids, paths = whole.catalog["image_id"], whole.catalog["path"]
    rows = []
    for image in (5, 0, 3):  # in another order, and the last batch is not full
        tiles = decode(pasture / paths[image], backbone.crop).tiles_THW3
        x = backbone.on_device(tiles)
        rows += [Row(ids[image], view, x) for view in backbone.spec.views]
    found = [patches_TPD.numpy() for _, patches_TPD in backbone.tokens_of(rows)]
    assert np.array_equal(found, np.array(whole.patches)[[5, 0, 3]].reshape(9, *found[0].shape))


def test_another_kind_of_device_takes_a_photographs_tiles_at_once(whole):
    """No bit could be the same there, and a CPU would compute many empty places."""
    made_by = whole.spec.made_by | {"device": "cuda"}
    spec = whole.spec.changed(made_by=made_by)
    backbone = backbone_of_store(spec, None, [Path(whole.path).parent], "--weights", "cpu")
    assert backbone.batch == 2


def test_the_shape_is_told_where_it_is_not_a_photographs(whole, built):
    assert whole.spec.made_by["batch"] == "8" and whole.spec.batch == 8
    spec = FeatureStore.open(built).spec
    assert "batch" not in spec.made_by and spec.batch == 2
    mixed = made_together([whole.spec.made_by, spec.made_by])
    assert mixed["batch"] == "8 + unknown" and spec.changed(made_by=mixed).batch == 8


@pytest.mark.parametrize("batch, n_tiles, expected", [(9, 2, 8), (3, 4, 3), (4, 4, 4), (1, 1, 1)])
def test_a_batch_holds_whole_rows_where_it_can(batch, n_tiles, expected):
    assert whole_rows(batch, n_tiles) == expected


def test_a_row_of_more_tiles_than_a_batch_is_computed_in_parts(pasture, tmp_path):
    one = build(pasture, tmp_path / "one.h5", "--views", 1, "--batch", 1)
    two = build(pasture, tmp_path / "two.h5", "--views", 1)
    assert one.spec.batch == 1
    np.testing.assert_allclose(one.patches, two.patches, atol=2e-2)
