"""Photographs amid padding (`--fit pad`): by hand, and portrait and landscape through build, train
and predict."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import TINY, biomass
from conftest import tiny_frame, tiny_spec
from PIL import Image
from read_by_the_text import TextReader

from featurestore import FeatureStore
from featurestore.errors import InputError
from featurestore.explore.pictures import GRAY, photo_grid
from featurestore.format.spec import TokenSpec
from featurestore.manage.transfer import given_columns
from featurestore.photos.crop import Crop, plan_crop
from featurestore.photos.decode import decode
from featurestore.photos.padding import photo_patches
from featurestore.photos.picture import Picture
from featurestore.photos.views import TRANSPOSES, VIEWS
from featurestore.write.writer import open_writer
from predictor.members.ensemble import Tokens
from predictor.predictor import Predictor
from service.explore import patch_grids
from trainer import MixupBatches
from trainer.heads import kinds
from trainer.loop.runs import RunFolder

SKY = 9, 90, 200


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


def amid_sky(pixels: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]):
    """A photograph resized to a box of a picture of one colour."""
    left, top, right, bottom = box
    inner = Image.fromarray(pixels).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    whole = Image.new("RGB", size, SKY)
    whole.paste(inner, (left, top))
    return np.asarray(whole)


# -- pixels


def test_a_square_shows_the_whole_photograph_in_its_middle():
    crop = Crop("grid:1x1", 30, 30, "bicubic", fit="pad", background=SKY)
    wide, high = noise(20, 50), noise(50, 20)
    assert np.array_equal(crop(wide)[0], amid_sky(wide, (0, 9, 30, 21), (30, 30)))
    assert np.array_equal(crop(high)[0], amid_sky(high, (9, 0, 21, 30), (30, 30)))


def test_tiles_cut_the_photograph_and_the_padding():
    portrait = noise(40, 32)
    tiles = Crop("halves", 10, 10, "bicubic", fit="pad", background=SKY)(portrait)
    left = amid_sky(portrait[:, :16], (6, 0, 10, 10), (10, 10))
    right = amid_sky(portrait[:, 16:], (0, 0, 4, 10), (10, 10))
    assert np.array_equal(tiles, [left, right])


def test_a_photograph_that_fits_has_the_pixels_of_before():
    picture = noise(100, 192)  # 4 % off
    plain = Crop("halves", 6, 6, "bicubic")(picture)
    assert np.array_equal(
        Crop("halves", 6, 6, "bicubic", fit="pad", background=SKY)(picture), plain
    )


def test_people_see_what_the_tiles_show():
    crop = Crop("grid:1x1", 30, 30, "bicubic", fit="pad", background=SKY)
    picture = Picture(Image.fromarray(noise(20, 50)))
    framed = np.asarray(crop.framed(picture))
    assert np.array_equal(framed, amid_sky(noise(20, 50), (0, 15, 50, 35), (50, 50)))
    assert crop.framed_size(50, 20) == (50, 50)
    small = crop.thumbnail(picture, 10, 10)
    is_sky_HW = (small == SKY).all(-1)
    assert is_sky_HW[:3].all() and is_sky_HW[7:].all() and not is_sky_HW[3:7].any()


@pytest.mark.parametrize(
    "kind, width, height, is_taken",
    [
        ("grid:3x4", 3024, 4032, True),  # the outer columns show an eighth of a tile
        ("grid:3x4", 1080, 1920, False),
        ("grid:1x3", 3024, 4032, False),
        ("grid:3x1", 4032, 3024, False),
        ("grid:2x2", 1080, 1920, True),
        ("grid:1x1", 20, 4000, True),
    ],
)
def test_no_tile_is_padding_alone(kind, width, height, is_taken):
    for crop in (Crop(kind, 32, 32, "bicubic", fit="pad"), Crop.unsized(kind, "pad", 10**9)):
        crop = crop.sized_for(width, height)
        if is_taken:
            crop.check(width, height)
            assert all(left < right for left, _, right, _ in crop.places(width, height))
        else:
            with pytest.raises(InputError, match="to padding; build with a grid that has as many"):
                crop.check(width, height)


def test_a_crop_of_any_aspect_says_how_to_keep_it():
    with pytest.raises(InputError, match="--crop grid:1x1 --fit pad keeps the aspect"):
        plan_crop("squash", 28, 14, "bicubic", 1.0, "pad")


# -- which patches are photograph


def padded_tokens(**changes) -> TokenSpec:
    """One tile of 48 x 48 in patches of 16."""
    square = {"crop": "grid:1x1", "n_tiles": 1, "tile_height": 48, "tile_width": 48, "fit": "pad"}
    return tiny_spec(tiny_frame(), **(square | changes)).tokens


def test_a_patch_that_holds_any_photograph_counts():
    tokens = padded_tokens()
    # of 48 rows the photograph takes 17: one of the upper patches', and all of the middle ones'
    upper_and_middle = [[True, True, True], [True, True, True], [False, False, False]]
    place = Crop.of(tokens).place(480, 170)
    assert place == (0, 15, 48, 32)
    found = photo_patches(tokens, VIEWS[0], 480, 170)
    assert np.array_equal(found.reshape(3, 3), upper_and_middle)
    by_view = {view.name: view for view in VIEWS + TRANSPOSES}
    flipped = photo_patches(tokens, by_view["vflip"], 480, 170)
    assert np.array_equal(flipped.reshape(3, 3), upper_and_middle[::-1])
    turned = photo_patches(tokens, by_view["transpose_hflip"], 480, 170)
    assert np.array_equal(turned.reshape(3, 3), np.array(upper_and_middle).T[:, ::-1])


def test_without_padding_there_is_no_mask():
    assert photo_patches(padded_tokens(), VIEWS[0], 100, 104) is None
    assert photo_patches(padded_tokens(fit="crop"), VIEWS[0], 480, 170) is None
    assert photo_patches(padded_tokens(fit=None), VIEWS[0], float("nan"), float("nan")) is None


def test_the_padding_is_the_backbones_mean_colour():
    assert Crop.of(padded_tokens()).background == (128, 102, 76)
    assert Crop.of(padded_tokens(fit="crop")).background == (0, 0, 0)


# -- portrait and landscape, end to end

VIEWS_BUILT = "plain,hflip,vflip"


@pytest.fixture(scope="module")
def phone(pasture, tmp_path_factory):
    """A pasture of a phone: 4:3 held both ways, some by EXIF, and one photograph of 2:1."""
    data = shutil.copytree(pasture, tmp_path_factory.mktemp("phone") / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    sizes = [(160, 120), (120, 160), (160, 80)]
    for part in ("train", "test"):
        for i, path in enumerate(sorted((data / part).iterdir())):
            on_its_side = {"exif": exif.tobytes()} if i == 3 else {}
            Image.open(path).resize(sizes[i % 3]).save(path, "JPEG", **on_its_side)
    return data


def build(data, out, *more, code: int = 0):
    where = "--data", data, "--out", out, "--views", VIEWS_BUILT
    return biomass("store", "build", *where, *TINY, "--fit", "pad", *more, code=code)


@pytest.fixture(scope="module")
def padded(phone, tmp_path_factory):
    out = tmp_path_factory.mktemp("padded") / "f.h5"
    build(phone, out, "--crop", "halves")
    return out


def pooled_by_hand(patches_PD: np.ndarray) -> np.ndarray:
    x = patches_PD.astype(np.float64)
    cubes = (x**3).mean(0)
    return np.array([x.mean(0), x.std(0), x.max(0), x.min(0), np.cbrt(cubes)])


@pytest.mark.parametrize("form", ["h5", "zarr"])
def test_pooled_vectors_are_of_the_photograph_alone(phone, padded, tmp_path, form):
    path = padded
    if form == "zarr":
        path = tmp_path / "f.zarr"
        biomass("store", "convert", padded, path)
    text, store = TextReader(path), FeatureStore.open(path)
    assert store.spec.format_version == 2
    assert len(text.sealed()) == 6
    n_padded = 0
    for image in text.sealed():
        for view in range(3):
            photo_TP = text.photo(image, view)
            assert np.array_equal(photo_TP, store[image].photo(view))
            patches_TPD = text.patches(image, view)
            for tile in range(2):
                expected = pooled_by_hand(patches_TPD[tile][photo_TP[tile]])
                found = text.cells("pooled")[image, view, tile]
                # a cube root near zero is far less exact than the cube
                assert np.allclose(found[:4], expected[:4], atol=1e-5)
                assert np.allclose(found[4] ** 3, expected[4] ** 3, atol=1e-5)
            own = patches_TPD[photo_TP].astype(np.float64)
            count, _, least, greatest, mean, m2, norm = text.cells("stats")[image, view, 7:]
            assert count == own.size and least == own.min() and greatest == own.max()
            assert np.isclose(mean, own.mean(), atol=1e-6)
            assert np.isclose(m2, own.var() * own.size, rtol=1e-4)
            assert np.isclose(norm, np.linalg.norm(own, axis=1).mean(), rtol=1e-5)
        n_padded += not photo_TP.all()
    assert n_padded == 4  # two of 2:1 have none


def test_a_tile_is_the_photograph_scaled_into_mean_colour(phone, padded):
    """By Pillow alone: 120 x 160 in a frame of 128 x 64 is 48 x 64."""
    store = FeatureStore.open(padded)
    image = int(np.flatnonzero(store.catalog["width"] == 120)[0])
    path = phone / store.catalog["path"][image]
    upright = Image.open(path)
    if upright.getexif().get(0x0112) == 6:
        upright = upright.transpose(Image.Transpose.ROTATE_270)
    colour = tuple(round(255 * mean) for mean in store.spec.tokens.mean)
    expected = []
    for cut, corner in (((0, 0, 60, 160), 40), ((60, 0, 120, 160), 0)):
        tile = Image.new("RGB", (64, 64), colour)
        half = upright.convert("RGB").crop(cut).resize((24, 64), Image.Resampling.BICUBIC)
        tile.paste(half, (corner, 0))
        expected.append(np.asarray(tile))
    tiles_THW3 = decode(path, Crop.of(store.spec.tokens)).tiles_THW3
    assert np.array_equal(tiles_THW3.numpy(), expected)


def test_copies_pool_the_photograph_alone(phone, padded, tmp_path):
    small = tmp_path / "small.h5"
    biomass("store", "convert", padded, tmp_path / "a.zarr", "--codec", "int8")
    biomass("store", "convert", tmp_path / "a.zarr", small)
    text = TextReader(small)
    photo_TP = text.photo(0, 1)
    expected = pooled_by_hand(text.patches(0, 1)[1][photo_TP[1]])
    assert np.allclose(text.cells("pooled")[0, 1, 1][:4], expected[:4], atol=1e-5)
    assert text.cells("stats")[0, 1, 7] == photo_TP.sum() * text.tokens["width"]

    build(phone, tmp_path / "pooled.h5", "--crop", "halves", "--tokens", "pooled")
    pooled, full = FeatureStore.open(tmp_path / "pooled.h5"), FeatureStore.open(padded)
    assert np.array_equal(pooled.array("pooled"), full.array("pooled"))
    assert np.array_equal(pooled.array("stats"), full.array("stats"))


def test_statistics_of_chosen_layers_leave_padding_out(phone, tmp_path):
    both = tmp_path / "both.h5"
    build(phone, both, "--crop", "grid:1x1", "--layers", "-2,-1")
    biomass("store", "convert", both, tmp_path / "one.h5", "--layers", "-1")
    text = TextReader(tmp_path / "one.h5")
    photo_TP = text.photo(2, 2)
    own = text.patches(2, 2)[photo_TP].astype(np.float64)
    assert not photo_TP.all() and text.cells("stats")[2, 2, 7] == own.size
    assert np.isclose(text.cells("stats")[2, 2, 11], own.mean(), atol=1e-6)


def test_pictures_leave_padding_out(padded):
    store = FeatureStore.open(padded)
    photo_HW = photo_grid(store, 0, 1)
    assert not photo_HW.all() and np.array_equal(photo_HW, photo_grid(store, 0, 0))
    assert (store.pca(0, 1)[~photo_HW] == GRAY).all()
    values = patch_grids.norms(store, 0, 1)["values"]
    assert [value is not None for value in values] == photo_HW.ravel().tolist()
    row, column = np.argwhere(photo_HW)[0]
    cosines = patch_grids.similar(store, 0, (int(row), int(column)))
    assert sum(value is None for value in cosines["values"]) == (~photo_HW).sum()


SWEEP = """\
experiment: {{name: phone, seed: 3}}
dataset: {{store: {store}}}
head: {{kind: {kinds}, features: [cls, mean, max], shared_hidden: 8}}
trainer: {{num_epochs: 1, batch_size: 3}}
optimization: {{lr: 1e-2, weight_decay: 0.01}}
inference: {{tta_indices: [0, 1]}}
cv: {{n_folds: 2, groups: date}}
"""


def swept(store, folder, chosen: str, more: str = ""):
    """A sweep of some kinds over a store, one fold trained for an epoch or two."""
    folder.mkdir()
    config = folder / "sweep.yaml"
    config.write_text(SWEEP.format(store=store, kinds=chosen) + more)
    biomass("train", "--config", config, "--out", folder / "runs", "--device", "cpu")
    (sweep,) = (folder / "runs").iterdir()
    return sweep


def test_heads_learn_and_predict_by_the_photograph_alone(phone, padded, tmp_path):
    sweep = swept(padded, tmp_path / "pooled", "[ridge, pooled_mlp]")
    for run in sorted(sweep.glob("00*")):
        test = "predict", "--data", phone, "--run", run, "--device", "cpu"
        biomass(*test, "--out", tmp_path / "s.csv")
        assert np.isfinite(pd.read_csv(tmp_path / "s.csv")["target"]).all()
        # the training photographs' tokens and pooled vectors are made again, and agree
        biomass(*test, "--oof", "--out", tmp_path / "oof.csv")

    predictor = Predictor.load(run, device="cpu")
    store = FeatureStore.open(padded)
    stage = predictor.stage(0, "cpu")
    crop = stage.backbone.crop
    decoded = decode(phone / store.catalog["path"][0], crop)
    views = store.spec.tokens.views
    asked = [(store.catalog["image_id"][0], {crop: decoded})]
    (tokens,) = stage.tokens(asked, views)[0].values()
    for view, each in enumerate(tokens):
        assert np.array_equal(each.photo_TP, TextReader(padded).photo(0, view))


POOLED_MIXUP = "augmentation: {mixup: {enabled: true, kind: [none, pooled]}}\n"


@pytest.fixture(scope="module")
def patch_sweep(padded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "one"
    return swept(padded, folder, "[density, attention, cls_gating]", POOLED_MIXUP)


def with_noise(padded, out):
    """A copy of the store with other tokens in the padding."""
    store = FeatureStore.open(padded)
    frame = store.catalog[given_columns(store)]
    with open_writer(out, store.spec, frame) as writer:
        for image in writer.pending():
            rows = store.rows(image)
            patches_VTPD = np.array(rows.patches_VTPD)
            for view in range(len(patches_VTPD)):
                patches_VTPD[view][~store[image].photo(view)] = 50
            writer.put(image, replace(rows, patches_VTPD=patches_VTPD))
        writer.commit()


def test_no_head_sees_what_is_in_padding(padded, patch_sweep, tmp_path):
    """Other tokens in the padding leave every head's last bit as it was."""
    noisy = tmp_path / "noisy.h5"
    with_noise(padded, noisy)
    assert (FeatureStore.open(noisy).patches[0] == 50).any()
    other = swept(noisy, tmp_path / "other", "[density, attention, cls_gating]", POOLED_MIXUP)
    runs = sorted(path.name for path in patch_sweep.glob("00*"))
    assert len(runs) == 6
    for run in runs:
        heads = RunFolder(patch_sweep / run).heads("last")
        for name, state in RunFolder(other / run).heads("last").items():
            for key, tensor in state.items():
                assert torch.equal(tensor, heads[name][key]), (run, key)


def test_predicted_numbers_and_maps_are_of_the_photograph(phone, padded, patch_sweep, tmp_path):
    store = FeatureStore.open(padded)
    photo_TP = store[0].photo(1)
    assert not photo_TP.all()
    for run in sorted(patch_sweep.glob("00*")):
        predictor = Predictor.load(run, device="cpu")
        row = Tokens(
            torch.tensor(store[0].cls(1)), torch.tensor(np.array(store[0].patches(1))), photo_TP
        )
        (map_TPM,) = predictor.ensemble.maps({"": [row]})
        assert (map_TPM[~photo_TP] == 0).all() and (map_TPM[photo_TP] > 0).all()
        if predictor.members[0].config.head.kind != "density":
            assert np.allclose(map_TPM.sum(1), 1, atol=1e-5)
            continue
        state = next(iter(RunFolder(run).heads("last").values()))
        weight, bias = state["density.weight"], state["density.bias"]
        of_patch = row.patches_TPD[torch.from_numpy(photo_TP)].float() @ weight.T + bias
        values_HVK, _ = predictor.ensemble({"": [row]}, np.empty(0))
        by_hand_K = torch.nn.functional.softplus(of_patch).sum(0)
        n_amounts = predictor.members[0].targets.n_amounts
        by_hand_K[n_amounts:] /= len(of_patch)
        assert np.allclose(values_HVK[0, 0], by_hand_K, rtol=1e-4)


def test_a_density_head_predicts_its_own_photographs_again(phone, patch_sweep, tmp_path):
    run = next(patch_sweep.glob("00*kind-density*"))
    test = "predict", "--data", phone, "--run", run, "--device", "cpu"
    biomass(*test, "--oof", "--out", tmp_path / "oof.csv")
    biomass(*test, "--out", tmp_path / "s.csv", "--explain", tmp_path / "pictures")
    assert (tmp_path / "pictures/report.html").exists()


def test_patches_of_photographs_and_padding_are_not_mixed(padded, tmp_path):
    config = tmp_path / "sweep.yaml"
    mixed = "augmentation: {mixup: {enabled: true}}\n"
    config.write_text(SWEEP.format(store=padded, kinds="[pooled_mlp, density]") + mixed)
    where = "--out", tmp_path / "runs", "--device", "cpu"
    said = biomass("train", "--config", config, *where, code=5).stderr
    assert "built with --fit pad, and mixup of kind patches" in said
    assert "head.kind density; set augmentation.mixup.kind to pooled" in said
    with pytest.raises(InputError, match="padding would be mixed with photographs"):
        MixupBatches(FeatureStore.open(padded), batch_size=2)


def test_a_build_lists_photographs_whose_tiles_would_be_padding(phone, tmp_path):
    said = build(phone, tmp_path / "f.h5", "--crop", "grid:1x3", code=3).stderr
    assert said.count("to padding; build with a grid") == 3
    assert not (tmp_path / "f.h5").exists()


def test_a_kind_that_does_not_leave_padding_out_is_refused(padded, tmp_path, monkeypatch):
    monkeypatch.setattr(kinds.load("attention"), "leaves_padding_out", False)
    config = tmp_path / "sweep.yaml"
    config.write_text(SWEEP.format(store=padded, kinds="attention"))
    where = "--out", tmp_path / "runs", "--device", "cpu"
    said = biomass("train", "--config", config, *where, code=5).stderr
    assert "head.kind attention does not leave padding out; choose another" in said
