"""What the page is told of a store: odd images, targets, maps, heat maps, photographs."""

import io
import json
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from PIL import Image
from sweeps import write_store

from featurestore import FeatureStore, open_writer
from featurestore.errors import InputError, StoreDamaged, UsageError
from featurestore.format.spec import STATS, ViewSpec
from featurestore.read.sources.pread import Pread
from service.errors import ServiceError
from service.explore import maps, outliers, overview, patch_grids, pictures

MAX, STD = STATS.index("patch_max"), STATS.index("cls_m2")


def opened(path) -> FeatureStore:
    return FeatureStore(Pread.open(path))


def written(
    path, change=lambda rows, image: rows, n: int = 4, frame=None, **tokens
) -> FeatureStore:
    """A store of n images whose rows were changed before they were put."""
    frame = tiny_frame(n) if frame is None else frame
    spec = tiny_spec(frame, **tokens)
    with open_writer(path, spec, frame) as writer:
        for image in range(n):
            writer.put(image, change(tiny_rows(spec, image), image))
    return opened(path)


def stats(n: int, seed: int = 0) -> np.ndarray:
    """(n, 14) statistics as of images that are alike."""
    rng = np.random.default_rng(seed)
    typical = dict.fromkeys(STATS, 0.0) | {
        "cls_count": 100,
        "patch_count": 900,
        "cls_m2": 120,
        "patch_m2": 800,
        "cls_max": 3,
        "patch_max": 4,
        "cls_min": -3,
        "patch_min": -4,
        "cls_norm": 9,
        "patch_norm": 8,
    }
    varied = [0.0 if "count" in name or "non_finite" in name else 1.0 for name in STATS]
    return np.array(list(typical.values())) + 0.1 * rng.normal(size=(n, len(STATS))) * varied


# -- odd images


def test_images_that_are_alike_are_not_odd():
    assert not len(outliers.outlying_rows(stats(5000)))


def test_a_row_far_from_the_others_is_odd_by_its_worst_statistic():
    rows_NS = stats(50)
    rows_NS[7, MAX] += 3
    rows_NS[7, STD] += 500
    (found,) = outliers.outlying_rows(rows_NS).to_dict("records")
    assert (found["row"], found["what"]) == (7, "cls_std") and found["score"] > outliers.OUTLYING
    assert found["typical"] == pytest.approx(1.2**0.5, abs=0.01) and found[
        "value"
    ] == pytest.approx(6.2**0.5, abs=0.01)


def test_what_is_not_finite_comes_first_and_has_no_score(tmp_path):
    def change(rows, image):
        rows.stats_VS[:] = stats(len(rows.stats_VS), image)
        if image in (3, 9):
            rows.stats_VS[1, STATS.index("patch_non_finite")] = image
            rows.stats_VS[1, MAX] = np.nan
        rows.stats_VS[2, MAX] += 50 * (image == 5)
        return rows

    found = outliers.outliers(written(tmp_path / "a.h5", change, n=30))
    assert found["image_id"].tolist() == ["ID009", "ID003", "ID005"] and found["view"].tolist() == [
        "hflip",
        "hflip",
        "vflip",
    ]
    assert found["what"].tolist() == ["patch_non_finite"] * 2 + ["patch_max"]
    assert found["score"].isna().tolist() == [True, True, False]


def test_of_a_handful_of_images_none_is_odd():
    rows_NS = stats(outliers.FEWEST)
    rows_NS[7, MAX] += 30
    assert len(outliers.outlying_rows(rows_NS)) == 1 and not len(
        outliers.outlying_rows(rows_NS[1:])
    )


def test_where_most_are_equal_a_step_of_half_precision_is_not_odd():
    rows_NS = stats(1)[[0] * 40]
    rows_NS[3, MAX] *= 1 + 2.0**-11
    assert not len(outliers.outlying_rows(rows_NS))
    rows_NS[3, MAX] *= 1.5
    assert outliers.outlying_rows(rows_NS)["row"].tolist() == [3]


# -- targets


def test_targets_by_state_and_by_date_in_their_order(store):
    found = overview.overview(opened(store))["targets"]
    assert [row["group"] for row in found["Sampling_Date"]][::5] == [
        f"2015/9/{day}" for day in range(1, 11)
    ]
    tas = [row for row in found["State"] if row["group"] == "Tas" and row["target"] == "GDM_g"]
    frame = opened(store).catalog.query("State == 'Tas'")["GDM_g"]
    assert tas == [
        pytest.approx(
            {
                "group": "Tas",
                "target": "GDM_g",
                "count": 12,
                "mean": frame.mean(),
                "sd": frame.std(),
            }
        )
    ]


def test_a_catalog_without_states_or_masses_has_no_such_groups(tmp_path):
    frame = pd.DataFrame(
        {"image_id": list("abcd"), "path": list("abcd"), "Dry_Total_g": [1.0, np.nan, 3.0, 4.0]}
    )
    assert list(overview.overview(written(tmp_path / "a.h5", frame=frame))["targets"]) == ["all"]
    assert overview.targets(frame[["image_id"]].assign(State="Vic")) == {"all": []}


# -- maps


def test_the_map_is_that_of_an_svd_in_blocks_or_not(tmp_path, monkeypatch):
    store = opened(write_store(tmp_path / "a.h5"))
    whole = maps.image_map(store, view=1)
    x_ND = store.array("cls")[store.sealed, 1].astype(float)
    x_ND = (x_ND / np.linalg.norm(x_ND, axis=-1, keepdims=True)).mean(1)
    x_ND /= np.linalg.norm(x_ND, axis=-1, keepdims=True)
    u, s, _ = np.linalg.svd(x_ND - x_ND.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(whole[["x", "y"]]), np.abs((u * s)[:, :2]), atol=2e-3)
    monkeypatch.setattr("featurestore.explore.neighbours.BLOCK_BYTES", 300)
    pd.testing.assert_frame_equal(maps.image_map(store, view=1), whole, atol=2e-5)


def test_an_image_that_is_not_finite_has_no_place_and_moves_no_other(tmp_path):
    def change(rows, image):
        rows.cls_VTD[0, 0, 2] = np.nan if image == 1 else rows.cls_VTD[0, 0, 2]
        return rows

    place = maps.image_map(written(tmp_path / "a.h5", change, n=6))
    assert (
        place["x"].isna().tolist() == [False, True, False, False, False, False]
        and place["y"].notna().sum() == 5
    )


def test_tsne_is_the_same_each_time(store):
    first, second = (maps.image_map(opened(store), "tsne") for _ in range(2))
    assert np.isfinite(first[["x", "y"]]).all(axis=None)
    pd.testing.assert_frame_equal(first, second)


def test_maps_that_cannot_be_made_say_what_to_do(tmp_path, monkeypatch):
    store = written(tmp_path / "a.h5", n=3)
    with pytest.raises(UsageError, match="3 images .* too few"):
        maps.image_map(store, "tsne")
    monkeypatch.setitem(maps.MOST, "tsne", 2)
    with pytest.raises(UsageError, match="3 sealed images, up to 2 are drawn"):
        maps.image_map(store, "tsne")
    for found in (None, ModuleType("umap")):  # nothing, or a folder of that name
        monkeypatch.setitem(sys.modules, "umap", found)
        assert maps.offered() == ["pca", "tsne"]
        with pytest.raises(ServiceError, match="needs umap-learn") as err:
            maps.image_map(store, "umap")
        assert err.value.status == 501 and "pip install umap-learn" in err.value.hint


# -- patches


VIEWS = (
    ViewSpec(name="plain"),
    ViewSpec(name="hflip", hflip=True),
    ViewSpec(name="turned", transpose=True, vflip=True),
)
# of tile 1, the last stored row and column 0
PLACES = {"plain": (0, [1, 3]), "hflip": (1, [1, 5]), "turned": (2, [0, 3])}


@pytest.mark.parametrize("name", PLACES)
def test_the_most_similar_patch_lies_where_the_photograph_has_it(tmp_path, name):
    view, there = PLACES[name]

    def change(rows, image):
        rows.patches_VTPD[...] = -1
        last_row = 2 * 2 if VIEWS[view].transpose else 1 * 3
        rows.patches_VTPD[view, 1, last_row if image else 0] = [9, 1, 1, 0, 0, 0, 2]
        return rows

    store = written(tmp_path / "a.h5", change, n=2, views=VIEWS)
    own = patch_grids.norms(store, 0, view)
    assert (own["rows"], own["columns"]) == (2, 6)
    at = divmod(int(np.argmax(own["values"])), 6)
    found = patch_grids.similar(store, 0, at, view, k=1)
    assert found["others"][0] | {"values": None} == {
        "image_id": "ID001",
        "best": 1.0,
        "at": there,
        "rows": 2,
        "columns": 6,
        "values": None,
    }
    assert found["values"][at[0] * 6 + at[1]] == 1 and np.sum(np.array(found["values"]) == 1) == 1


def test_what_is_not_finite_is_null(tmp_path):
    def change(rows, image):
        rows.patches_VTPD[0, 0, 1, 3] = np.inf
        return rows

    store = written(tmp_path / "a.h5", change)
    found = [
        patch_grids.norms(store, 0),
        patch_grids.similar(store, 0, (0, 1)),
        patch_grids.similar(store, 0, (0, 0), k=2),
    ]
    assert [each["values"][1] for each in found] == [None, None, None] and found[0]["values"].count(
        None
    ) == 1
    assert found[1]["others"][0]["best"] is None and json.dumps(found, allow_nan=False)
    assert pictures.pca_png(store, 0, 0).startswith(b"\x89PNG")


def test_patches_and_numbers_that_are_not_there_are_refused(tmp_path):
    store = written(tmp_path / "a.h5")
    with pytest.raises(UsageError, match="row 0 to 1 and column 0 to 5"):
        patch_grids.similar(store, 0, (2, 0))
    with pytest.raises(UsageError, match="0 to 24"):
        patch_grids.similar(store, 0, (0, 0), k=25)


def test_a_store_that_was_cut_is_an_error(store_path):
    write_tiny(store_path)
    store = opened(store_path)
    last = store.layout.extents["patches"].paths[-1]
    with open(last, "r+b") as file:
        file.truncate(last.stat().st_size // 3)
    for ask in (patch_grids.norms, patch_grids.similar, pictures.pca_png):
        with pytest.raises(StoreDamaged, match="cut"):
            ask(store, 4, *{patch_grids.similar: [(0, 0)], pictures.pca_png: [0]}.get(ask, []))


def test_the_card_walks_over_sealed_images(tmp_path):
    write_tiny(tmp_path / "a.h5", n=5, seal=3)
    store = opened(tmp_path / "a.h5")
    cards = [overview.image_card(store, image, k=1) for image in range(3)]
    assert [(card["previous"], card["next"]) for card in cards] == [
        (None, "ID001"),
        ("ID000", "ID002"),
        ("ID001", None),
    ]
    assert cards[0]["grid"] == [2, 6] and cards[0]["aspect"] == 2 and len(cards[0]["nearest"]) == 1
    with pytest.raises(InputError, match="not built yet"):
        overview.image_card(store, 3)


# -- photographs


@pytest.fixture
def photographs(tmp_path):
    """A store of one image at photos/a.jpg, and a function that puts a photograph there."""
    frame = tiny_frame(1).assign(path="photos/a.jpg")
    store = written(tmp_path / "a.h5", n=1, frame=frame)
    (tmp_path / "data/photos").mkdir(parents=True)

    def put(width: int = 40, at: str = "data/photos/a.jpg"):
        Image.new("RGB", (width, width // 2), "green").save(tmp_path / at)
        return tmp_path / at

    return store, tmp_path / "data", put


def test_a_photograph_is_at_most_1600_pixels_wide_and_told_changed(photographs):
    store, data, put = photographs
    put(width=2000)
    body, state = pictures.photograph_jpeg(store, 0, data)
    assert Image.open(io.BytesIO(body)).size == (1600, 800) and state == "changed"


def test_a_photograph_that_is_not_below_the_folder_is_its_thumbnail(photographs):
    store, data, put = photographs
    thumb = pictures.thumb_jpeg(store, 0)
    assert (
        pictures.photograph_jpeg(store, 0, None)
        == pictures.photograph_jpeg(store, 0, data)
        == (thumb, "absent")
    )
    (data / "photos/a.jpg").symlink_to(put(at="secret.jpg"))
    assert pictures.photograph_jpeg(store, 0, data) == (thumb, "absent")
    (data / "photos/a.jpg").unlink()
    (data / "photos/a.jpg").write_bytes(b"no picture")
    assert pictures.photograph_jpeg(store, 0, data) == (thumb, "damaged")


def test_a_store_without_thumbnails_has_none_to_show(tmp_path):
    frame = tiny_frame(1)
    spec = tiny_spec(frame).changed(thumb=None)
    with open_writer(tmp_path / "a.h5", spec, frame) as writer:
        writer.put(0, replace(tiny_rows(tiny_spec(frame), 0), thumb_HW3=None))
    with pytest.raises(InputError, match="no thumbnails"):
        pictures.photograph_jpeg(opened(tmp_path / "a.h5"), 0, tmp_path)
