"""The seam: a reader works over any source of bytes, and asks it for no more than it needs."""

import pickle

import numpy as np
import pytest
from conftest import write_tiny

from featurestore import FeatureStore
from featurestore.errors import InputError, StoreDamaged
from featurestore.read.sources.mapped import Mapped


class InMemory:
    """A Source of arrays in memory, without files: what somebody would write for another storage."""

    checks_rows = False
    n_begun = 1
    manner = "held in memory"
    path = address = "memory://made-up"
    folder = "."

    def __init__(self, mapped: Mapped) -> None:
        self.layout = mapped.layout
        names = [name for name in mapped.layout.extents if name != "patches"]
        self.arrays = {name: mapped.array(name).copy() for name in names}
        views = range(len(mapped.layout.spec.tokens.views))
        self.rows = [mapped.patches(image, views).copy() for image in range(mapped.layout.n)]
        self.asked: list[tuple[int, list[int]]] = []
        self.n_distrusted = 0

    def array(self, name):
        return self.arrays[name]

    def patches(self, image, views):
        self.asked.append((image, list(views)))
        return self.rows[image]

    def will_need(self, rows):
        return len(rows)

    def read_into(self, rows, out):
        for (image, view), row in zip(rows, out, strict=True):
            row[...] = self.rows[image][view]

    def place(self, image, view):
        return f"row {image}, {view}"

    def refresh(self):
        pass

    def distrust(self):
        self.n_distrusted += 1
        return " (held in memory)"

    def close(self):
        pass


@pytest.fixture
def mapped(tmp_path):
    write_tiny(tmp_path / "features.h5", n=5, seal=4)
    return FeatureStore.open(tmp_path / "features.h5")


@pytest.fixture
def store(mapped):
    return FeatureStore(InMemory(mapped.source), "first-touch")


def test_a_reader_is_the_same_over_another_source(store, mapped):
    assert store.stats().equals(mapped.stats()) and store.catalog.equals(mapped.catalog)
    np.testing.assert_array_equal(store.patches[1:4, 2], mapped.patches[1:4, 2])
    np.testing.assert_array_equal(store.take([(3, 0), (0, 2)]), mapped.take([(3, 0), (0, 2)]))
    assert store.nearest(1, 2).equals(mapped.nearest(1, 2))
    assert store.will_need([(0, 0), (1, 1)]) == 2


def test_what_is_not_sealed_is_refused_whatever_the_source(store):
    for read in (lambda: store.patches[4, 0], lambda: store.rows(4), lambda: store.take([(4, 0)])):
        with pytest.raises(InputError, match="memory://made-up: image 4 .* not built yet"):
            read()
    assert not store.source.asked


@pytest.mark.parametrize(
    "index, views",
    [
        ((2, 1), [1]),
        ((2, -1), [2]),
        ((2, slice(1, None)), [1, 2]),
        ((2, [2, 0, 2]), [0, 2]),
        ((2, None, 1), [1]),
        ((2,), [0, 1, 2]),
        ((2, ..., 0), [0, 1, 2]),
    ],
    ids=repr,
)
def test_a_source_is_asked_for_the_views_that_an_index_touches(mapped, index, views):
    store = FeatureStore(InMemory(mapped.source))
    np.testing.assert_array_equal(store.patches[index], mapped.patches[index])
    assert store.source.asked == [(2, views)]


def test_damage_is_told_to_the_source_and_its_advice_to_the_reader(store):
    store.source.rows[2][1, 0, 0, 0] += 1
    store.source.arrays["catalog/path"][3, 0] ^= 1
    with pytest.raises(StoreDamaged, match=r"row 2, 1: image 2 .*changed.*\(held in memory\)"):
        store.patches[2, 1]
    with pytest.raises(StoreDamaged, match=r"seal of image 3 .*\(held in memory\)"):
        store.patches[3, 1]
    assert store.source.n_distrusted == 2


def test_a_seal_that_changes_is_compared_again(store):
    store.patches[2, 1]
    store.source.arrays["seal"][2] ^= 1
    with pytest.raises(StoreDamaged, match="seal of image 2"):
        store.patches[2, 1]


def test_another_reader_takes_over_what_was_compared(store, monkeypatch):
    assert store.sealed.tolist() == [0, 1, 2, 3]
    again = FeatureStore(store.source, store.check, store.seals)
    monkeypatch.setattr(again.seals, "expected", None)  # not called
    assert again.sealed.tolist() == [0, 1, 2, 3]


def test_a_store_travels_as_its_kind_and_place(mapped):
    there = pickle.loads(pickle.dumps(mapped))
    assert type(there) is FeatureStore and there.path == mapped.path
    assert len(pickle.dumps(mapped)) < 1000
