"""A store from a shell and a notebook: cards, pictures, neighbours, xarray, completion, and slices
like numpy's."""

import io
import json
import subprocess
import sys
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import VIEWS, tiny_frame, tiny_rows, tiny_spec, write_tiny
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from sweeps import set_status, write_store

from featurestore import FeatureStore, open_writer
from featurestore.errors import InputError, UsageError
from featurestore.explore.neighbours import Directions, directions, nearest
from featurestore.explore.pictures import components

EVIL = '<script>alert("1")</script>'


@pytest.fixture
def tiny(store_path) -> FeatureStore:
    write_tiny(store_path, reserve=2)
    return FeatureStore.open(store_path)


def write_rows(path, change=lambda rows, image: rows, frame=None, **changes) -> FeatureStore:
    """A store of four images whose rows were changed before they were put; changes: of the spec,
    `thumb` say."""
    frame = tiny_frame(4) if frame is None else frame
    whole = tiny_spec(frame)
    spec = whole.model_copy(update=changes)
    with open_writer(path, spec, frame) as writer:
        for image in range(4):
            rows = change(tiny_rows(whole, image), image)
            writer.put(
                image,
                replace(
                    rows,
                    patches_VTPD=rows.patches_VTPD if spec.has_patches else None,
                    thumb_HW3=rows.thumb_HW3 if spec.thumb else None,
                ),
            )
    return FeatureStore.open(path)


# -- repr and cards


def test_a_store_says_in_a_few_lines_what_it_is(tmp_path):
    write_tiny(tmp_path / "features.h5", seal=3, reserve=2)
    set_status(tmp_path / "features.h5", 4, "missing")
    store = FeatureStore.open(tmp_path / "features.h5")
    assert repr(store).splitlines()[1:] == [
        "  images       5 images x 3 views, 3 sealed / 5 total, 1 skipped, room for 7",
        "  tokens       2 tile(s) x (1 + 2 x 3) x 7 float16",
        "  size         " + f"{store.size_bytes / 1e3:.3g} kB",
        "  backbone     made_up, layers [-1]",
        "  tiles        halves, 32 x 48 pixels, 2 x 3 patches of 16",
        "  views        plain, hflip, vflip",
        "  fingerprint  " + store.spec.fingerprint[:12],
    ]


def test_a_pooled_store_says_so(tmp_path):
    assert "(1 + 5 pooled) x 7 float16; pooled only" in repr(
        write_rows(tmp_path / "a.h5", has_patches=False)
    )


class Page(HTMLParser):
    """Tags and image sources of a page; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.sources, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name == "src"]
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_card_needs_nothing_from_outside(tiny):
    text = tiny._repr_html_()
    page = Page(text)
    assert (
        {"script", "link", "style", "iframe"}.isdisjoint(page.tags)
        and "http" not in text
        and "color:" not in text
    )
    assert len(page.sources) == 5 and all(
        source.startswith("data:image/jpeg;base64,") for source in page.sources
    )
    assert Image.open(io.BytesIO(b64decode(page.sources[0].split(",")[1]))).size == (120, 60)
    assert (
        "3 views, 5 sealed / 5 total" in text
        and "<th" in text
        and tiny.spec.fingerprint[:12] in text
    )


def test_texts_of_a_csv_cannot_become_markup(tmp_path):
    frame = tiny_frame(4).assign(**{"image_id": [EVIL, "a&b", '"', "'"], "State": EVIL, EVIL: EVIL})
    store = write_rows(tmp_path / "a.h5", frame=frame)
    for text in (store._repr_html_(), store[EVIL]._repr_html_()):
        assert "script" not in Page(text).tags and "&lt;script&gt;" in text


def test_a_card_of_an_unfinished_store_or_image_says_why(tmp_path):
    write_tiny(tmp_path / "a.h5", seal=0)
    store = FeatureStore.open(tmp_path / "a.h5")
    assert "0 sealed / 5 total" in store._repr_html_() and not Page(store._repr_html_()).sources
    assert (
        "not built yet" in store["ID002"]._repr_html_()
        and "train/ä 2.jpg" in store["ID002"]._repr_html_()
    )


# -- pictures


def ramp(rows, image):
    """Patch tokens that grow along the photograph's width: tile 0, then tile 1, stored as each view
    has them."""
    across_T23 = np.broadcast_to(np.arange(6).reshape(2, 1, 3), (2, 2, 3))
    for v, axes in enumerate([(), (2,), (1,)]):
        rows.patches_VTPD[v] = np.flip(across_T23, axes).reshape(2, 6)[..., None] * np.array(
            [1, 0, 0, 0, 0, 0, -0.5]
        )
    return rows


@pytest.mark.parametrize("view", range(3), ids=[view.name for view in VIEWS])
def test_a_picture_lies_as_the_photograph_does(tmp_path, view):
    picture_HW3 = write_rows(tmp_path / "a.h5", ramp).pca("ID001", view)
    assert picture_HW3.shape == (2, 6, 3) and picture_HW3.dtype == np.uint8
    red_W = picture_HW3[0, :, 0].astype(int)
    # the largest loading is positive
    assert (np.diff(red_W) > 0).all() and red_W[0] == 0 and red_W[-1] == 255
    assert np.array_equal(picture_HW3[0], picture_HW3[1])
    assert (picture_HW3[..., 1:] == 128).all()  # there is no second component


def test_components_are_those_of_an_svd():
    x_ND = np.random.default_rng(3).normal(size=(200, 30)) @ np.diag(0.7 ** np.arange(30))
    x_ND = (x_ND - x_ND.mean(0)).astype(np.float32)
    found_D3, exact_3D = components(x_ND), np.linalg.svd(x_ND, full_matrices=False)[2][:3]
    assert np.abs((found_D3 * exact_3D.T).sum(0)) == pytest.approx(1, abs=1e-4)
    assert (found_D3[np.abs(found_D3).argmax(0), range(3)] > 0).all()


def constant(rows, image):
    rows.patches_VTPD[:] = 0.1
    return rows


def test_constant_tokens_are_gray(tmp_path):
    store = write_rows(tmp_path / "a.h5", constant)
    assert (store.pca(2) == 128).all()
    assert store[2].show().height > 0


def test_an_outlying_token_does_not_take_the_scale(tmp_path):
    def outlier(rows, image):
        rows = ramp(rows, image)
        rows.patches_VTPD[:, 0, 0, 3] = 60000
        return rows

    assert write_rows(tmp_path / "a.h5", outlier).pca(0).std() > 0


def test_scale_repeats_a_patch(tiny):
    assert np.array_equal(tiny.pca(3, "hflip", scale=5)[::5, ::5], tiny.pca("ID003", 1))
    assert tiny["ID003"].pca("hflip", 5).shape == (10, 30, 3)
    with pytest.raises(UsageError, match="scale 0"):
        tiny.pca(3, scale=0)


def test_show_gives_what_there_is(tmp_path):
    both = write_rows(tmp_path / "both.h5")[1].show("vflip")
    # 2000 x 1000 pixels; the gap is transparent
    assert both.size == (2 * 512 + 8, 256) and both.getpixel((515, 9))[3] == 0
    assert write_rows(tmp_path / "patches.h5", thumb=None)[1].show().size == (512, 256)
    assert write_rows(tmp_path / "thumbs.h5", has_patches=False)[1].show().size == (512, 256)
    neither = write_rows(tmp_path / "neither.h5", has_patches=False, thumb=None)
    with pytest.raises(InputError, match="neither thumbnails nor patch"):
        neither[1].show()
    with pytest.raises(InputError, match="pooled store"):
        neither.pca(1)
    assert "neither thumbnails" in neither[1]._repr_html_()


def test_an_unsealed_image_has_no_picture(store_path):
    write_tiny(store_path, seal=2)
    store = FeatureStore.open(store_path)
    for look in (store.pca, store.nearest, lambda i: store[i].show()):
        with pytest.raises(InputError, match="not built yet"):
            look(3)


# -- neighbours


def test_nearest_is_the_cosine_of_tile_means(tiny, monkeypatch):
    monkeypatch.setattr(
        "featurestore.explore.neighbours.BLOCK_BYTES", 2 * 2 * 7 * 4
    )  # two images a block
    unit_NTD = np.stack([tiny_rows(tiny.spec, i).cls_VTD[1] for i in range(5)]).astype(float)
    unit_NTD /= np.linalg.norm(unit_NTD, axis=-1, keepdims=True)
    mean_ND = unit_NTD.mean(1)
    mean_ND /= np.linalg.norm(mean_ND, axis=-1, keepdims=True)
    expected_N = mean_ND @ mean_ND[2]
    found = tiny.nearest("ID002", k=9, view="hflip")
    order = [i for i in np.argsort(-expected_N) if i != 2]
    assert found["image_id"].tolist() == [f"ID{i:03d}" for i in order]
    assert found["similarity"].to_numpy() == pytest.approx(expected_N[order], abs=1e-5)
    assert found["Dry_Total_g"].tolist() == [i * 1.5 + 1 for i in order] and found["path"][
        0
    ].startswith("train/ä")
    assert len(tiny.nearest(2, k=1)) == 1
    with pytest.raises(UsageError, match="k 0"):
        tiny.nearest(2, k=0)


def test_nearest_skips_what_is_not_sealed(store_path):
    write_tiny(store_path, seal=3)
    assert sorted(FeatureStore.open(store_path).nearest(0, k=9)["image_id"]) == ["ID001", "ID002"]


def test_equal_photographs_stay_in_their_order_from_kept_directions_too(tmp_path):
    def equal(rows, image):
        rows.cls_VTD[:] = 1 if image != 2 else -1
        return rows

    store = write_rows(tmp_path / "a.h5", equal)
    kept = directions(store, 0)
    for k, found in (1, ["ID000"]), (2, ["ID000", "ID003"]), (3, ["ID000", "ID003", "ID002"]):
        assert nearest(store, 1, k)["image_id"].tolist() == found
        assert nearest(store, 1, k, kept=kept).equals(nearest(store, 1, k))
    # of what was kept, not of what is there now
    assert nearest(store, 1, kept=Directions(*(each[2:] for each in kept))).equals(
        nearest(store, 1).iloc[1:].reset_index(drop=True)
    )


def test_a_zero_class_token_is_like_nothing(tmp_path):
    def zero(rows, image):
        rows.cls_VTD[:] *= image != 1
        return rows

    assert (write_rows(tmp_path / "a.h5", zero).nearest(1)["similarity"] == 0).all()


# -- xarray


def test_xarray_names_everything_and_copies_nothing(tiny):
    ds = tiny.to_xarray()
    assert dict(ds.sizes) == {
        "image": 5,
        "view": 3,
        "tile": 2,
        "channel": 7,
        "patch": 6,
        "pooling": 5,
        "stat": 14,
        "thumb_row": 4,
        "thumb_column": 8,
        "colour": 3,
    }
    for name in ("cls", "pooled", "stats", "thumbs"):
        assert np.shares_memory(ds[name].values, tiny.array(name))
    row = ds.patches.sel(image="ID003", view="hflip")
    assert np.shares_memory(row.values, tiny.patches[3, 1])
    assert (row.State.item(), row.Dry_Total_g.item(), ds.attrs["fingerprint"]) == (
        "WA",
        5.5,
        tiny.spec.fingerprint,
    )
    assert (
        ds.patches.isel(patch=4).patch_row.item() == 1
        and ds.patches.isel(patch=4).patch_column.item() == 1
    )


def test_xarray_reads_the_rows_asked_for_and_no_others(tiny, monkeypatch):
    read = []
    patches = tiny.source.patches
    monkeypatch.setattr(
        tiny.source, "patches", lambda i, views: read.append((i, views)) or patches(i, views)
    )
    ds = tiny.to_xarray()
    repr(ds), ds._repr_html_()
    assert read == []
    assert ds.patches.isel(image=3, view=1).values.shape == (2, 6, 7)
    assert read == [(3, (1,))]


def test_xarray_selections_are_what_numpy_gives(tiny):
    import xarray as xr

    whole = np.stack([tiny_rows(tiny.spec, i).patches_VTPD for i in range(5)])
    patches = tiny.to_xarray().patches
    assert np.array_equal(patches, whole)
    for key in [
        np.s_[-1, -1],
        np.s_[::-2, 1:],
        np.s_[[4, 0, -2]],
        np.s_[3:1],
        np.s_[:, 2, 0, ::2, -1],
    ]:
        assert np.array_equal(patches[key], whole[key]), key
    # each list along its own axis
    assert np.array_equal(patches[1, :, 1, [0, 5]], whole[1, :, 1][:, [0, 5]])
    pairs = patches.isel(
        image=xr.DataArray([4, 0, 4], dims="pair"), view=xr.DataArray([2, 1, 0], dims="pair")
    )
    assert np.array_equal(pairs, whole[[4, 0, 4], [2, 1, 0]])


def test_xarray_leaves_out_what_is_not_sealed(tmp_path):
    path = write_store(tmp_path / "a.zarr", n=6, skipped={1: "missing", 4: "damaged"})
    store = FeatureStore.open(path)
    ds = store.to_xarray()
    assert ds.image.values.tolist() == ["ID0", "ID2", "ID3", "ID5"] and ds.Dry_Total_g.shape == (4,)
    assert np.array_equal(ds.patches.isel(image=-1, view=2), store.patches[5, 2])
    assert np.array_equal(ds.cls, store.raw.cls[[0, 2, 3, 5]])


def test_an_empty_or_pooled_store_is_a_dataset_too(tmp_path):
    write_tiny(tmp_path / "empty.h5", seal=0)
    assert FeatureStore.open(tmp_path / "empty.h5").to_xarray().patches.values.shape == (
        0,
        3,
        2,
        6,
        7,
    )
    ds = write_rows(tmp_path / "pooled.h5", has_patches=False).to_xarray()
    assert "patches" not in ds and ds.pooled.sel(pooling="gem3").shape == (4, 3, 2, 7)


def test_a_column_named_like_an_axis_keeps_its_values(tmp_path):
    ds = write_rows(
        tmp_path / "a.h5", frame=tiny_frame(4).assign(view="x", cls=[3.0, 1.0, 2.0, 0.0])
    ).to_xarray()
    assert (
        ds.catalog_cls.values.tolist() == [3, 1, 2, 0]
        and ds.catalog_view.values.tolist() == ["x"] * 4
    )


def test_a_lazy_dataset_travels(tiny):
    import pickle

    there = pickle.loads(pickle.dumps(tiny.to_xarray()))
    assert np.array_equal(there.patches.isel(image=2, view=1), tiny.patches[2, 1])


def test_without_xarray_it_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    monkeypatch.delitem(sys.modules, "featurestore.explore.xarray", raising=False)
    with pytest.raises(UsageError, match="pip install xarray"):
        tiny.to_xarray()


# -- names and completion


def test_names_complete(tiny):
    assert tiny._ipython_key_completions_() == [f"ID{i:03d}" for i in range(5)]
    assert tiny["ID002"]._ipython_key_completions_() == ["plain", "hflip", "vflip"]
    assert {"nearest", "pca", "to_xarray", "patches", "catalog", "stats"} <= set(dir(tiny))
    assert {"show", "pca", "labels", "grid"} <= set(dir(tiny["ID002"]))
    assert "ID002" in tiny and "ID9" not in tiny and len(tiny["ID002"]) == 3


def test_a_view_by_name_is_an_object(tiny):
    row = tiny["ID002"]["hflip"]
    assert np.shares_memory(row.patches, tiny.patches[2, 1]) and row.grid.shape == (2, 2, 3, 7)
    assert np.array_equal(row.cls, tiny.cls[2, 1]) and np.array_equal(row.pooled, tiny.pooled[2, 1])
    assert [view.view for view in tiny["ID002"]] == ["plain", "hflip", "vflip"]
    assert "ID002" in repr(row) and row.show().size == tiny["ID002"].show("hflip").size
    with pytest.raises(InputError, match="plain, hflip, vflip"):
        tiny["ID002"]["flip"]


def test_labels_are_the_catalogs_row(tiny):
    assert tiny["ID003"].labels.equals(tiny.catalog.iloc[3]) and tiny["ID003"].labels.name == 3


def test_a_wrong_id_is_answered_with_close_ones_among_many(tmp_path, monkeypatch):
    monkeypatch.setattr("featurestore.read.catalog.MANY_NAMES", 10)
    write_tiny(tmp_path / "a.h5", n=200, seal=0)
    with pytest.raises(InputError, match="did you mean.*ID123"):
        FeatureStore.open(tmp_path / "a.h5")["ID1230"]


def test_looking_needs_no_torch(tmp_path):
    write_tiny(tmp_path / "a.h5")
    code = (
        "import sys, json; from featurestore import FeatureStore; s = "
        "FeatureStore.open(sys.argv[1]); s._repr_html_(); "
        "s.nearest(0); s[0].show(); print(json.dumps([*sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.h5"], capture_output=True, text=True, check=True
    )
    assert {"torch", "xarray", "matplotlib", "scipy"}.isdisjoint(json.loads(done.stdout))


# -- slices like numpy's

SOME = st.integers(-8, 8)
INDICES = st.one_of(
    SOME,
    SOME.map(np.int64),
    SOME.map(np.array),
    st.none(),
    st.just(Ellipsis),
    st.just(1.5),
    st.builds(slice, st.none() | SOME, st.none() | SOME, st.none() | st.integers(-3, 3)),
)


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory):
    """Patches of a store, and the same as one array."""
    path = tmp_path_factory.mktemp("rows") / "features.h5"
    spec = write_tiny(path, reserve=2)
    return FeatureStore.open(path).patches, np.stack(
        [tiny_rows(spec, i).patches_VTPD for i in range(5)]
    )


def outcome(array, key):
    """What indexing gives: the type of an error, or type, shape and values."""
    try:
        found = array[key]
    except (IndexError, TypeError, ValueError) as err:
        return type(err)
    return type(found), found.shape, found.tobytes()


@given(key=INDICES | st.lists(INDICES, max_size=7).map(tuple))
def test_slices_of_images_are_numpys(both_ways, key):
    ours, whole = both_ways
    found, expected = outcome(ours, key), outcome(whole, key)
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, slice) and part.step == 0 for part in parts):
        # a key may have a second fault, and NumPy does not say which of two it names
        assert {found, expected} <= {IndexError, ValueError}
    else:
        assert found == expected


@given(
    image=st.integers(-5, 4),
    rest=st.lists(INDICES | st.lists(st.integers(-2, 1), max_size=3) | st.booleans(), max_size=5),
)
@example(image=0, rest=[slice(None, None, 0), 1.5])  # two faults: numpy names the float
def test_whatever_numpy_takes_is_taken_of_one_image(both_ways, image, rest):
    ours, whole = both_ways
    assert outcome(ours, (image, *rest)) == outcome(whole, (image, *rest))


def test_masks_and_lists_of_images_are_refused(both_ways):
    patches, whole = both_ways
    for key in (
        True,
        np.bool_(False),
        [0, 1],
        np.array([True] * 5),
        (slice(2), [0, 1]),
        (slice(2), True),
    ):
        with pytest.raises(IndexError, match="store.take"):
            patches[key]
    assert (
        np.array_equal(np.asarray(patches), whole)
        and np.asarray(patches, np.float32).dtype == np.float32
    )
    assert (patches.size, patches.nbytes) == (whole.size, whole.nbytes)
