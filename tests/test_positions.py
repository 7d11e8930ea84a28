"""What names rows: pairs, ids and positions; what only seems to is refused, since it would read
other rows."""

import numpy as np
import pytest
from conftest import tiny_rows, write_tiny

from featurestore import FeatureStore
from featurestore.errors import UsageError

WRONG = {
    "mask of images": np.array([True, False, True, False]),
    "mask of rows": np.eye(5, 3, dtype=bool),
    "two masks": [[True, False]],
    "flat": [0, 1, 2, 3],
    "one pair": (0, 1),
    "triples": [(0, 1, 2)],
    "floats": [(0.0, 1.0)],
    "halves": [(0.5, 1.0)],
    "names": [("ID000", "plain")],
    "ragged": [(0, 1), (2,)],
    "a number": 3,
    "no mask": np.zeros((0, 2), bool),
    "nested": [[(0, 1)]],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    path = tmp_path_factory.mktemp("store") / "features.h5"
    write_tiny(path)
    return FeatureStore.open(path)


@pytest.mark.parametrize("rows", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("method", ["take", "will_need", "check_rows"])
def test_rows_that_are_no_pairs_are_refused_with_the_right_form(store, method, rows):
    with pytest.raises(
        UsageError,
        match=r"give pairs of positions, \(image, view\), e\.g\. store\.take\(\[\(3, 0\), ",
    ):
        getattr(store, method)(rows)


@pytest.mark.parametrize(
    "rows",
    [[(3, 0), (1, 2)], np.array([(3, 0), (1, 2)], np.uint8), [(-2, 0), (1, -1)], ([3, 0], [1, 2])],
)
def test_pairs_are_taken_whatever_holds_them(store, rows):
    wanted = [tiny_rows(store.spec, 3).patches_VTPD[0], tiny_rows(store.spec, 1).patches_VTPD[2]]
    assert np.array_equal(store.take(rows), wanted)


@pytest.mark.parametrize("rows", [[], (), np.empty((0, 2), int), np.empty((0, 2))])
def test_no_rows_are_no_rows(store, rows):
    assert store.take(rows).shape == (0, 2, 6, 7)


@pytest.mark.parametrize("rows", [[(5, 0)], [(-6, 0)], [(0, 3)], [(0, -4)]])
def test_rows_that_are_not_there_are_an_index_error(store, rows):
    with pytest.raises(IndexError, match="out of bounds"):
        store.take(rows)


NO_POSITION = {
    "true": True,
    "numpy's true": np.True_,
    "mask": np.array([True] * 5),
    "float": 1.0,
    "none": None,
    "several": [0, 1],
}


@pytest.mark.parametrize("index", NO_POSITION.values(), ids=NO_POSITION.keys())
def test_an_image_or_view_is_a_name_or_an_integer(store, index):
    for read in (
        lambda: store[index],
        lambda: store["ID001"].patches(index),
        lambda: store["ID001"].cls(index),
        lambda: store["ID001"][index],
        lambda: store.nearest(index),
    ):
        with pytest.raises(UsageError, match="neither a name nor a position"):
            read()


@pytest.mark.parametrize(
    "index",
    [True, np.array([True, False, True, False, True]), 1.0, [0, 1], (np.array([0, 1]), 0), "ID001"],
    ids=["true", "mask", "float", "list", "lists", "name"],
)
def test_patches_refuse_what_would_name_other_images(store, index):
    with pytest.raises(IndexError):
        store.patches[index]
