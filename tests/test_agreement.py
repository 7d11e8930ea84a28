"""What a build says of a store that holds other tokens than it was asked for."""

import pytest
from conftest import VIEWS, tiny_frame, tiny_spec, write_tiny

from featurestore import FeatureStore
from featurestore.errors import MismatchError
from featurestore.write.agreement import check_same


def difference(tmp_path, **changes) -> str:
    """The lines below the first of the refusal."""
    path = tmp_path / "f.h5"
    write_tiny(path)
    with pytest.raises(MismatchError) as caught:
        check_same(FeatureStore.open(path), tiny_spec(tiny_frame(), **changes))
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: holds other tokens; choose another name or remove it"
    return "\n".join(line.strip() for line in lines)


def test_the_same_tokens_agree(tmp_path):
    write_tiny(tmp_path / "f.h5")
    check_same(FeatureStore.open(tmp_path / "f.h5"), tiny_spec(tiny_frame()))


def test_other_views_are_told_apart_by_their_names(tmp_path):
    assert difference(tmp_path, views=VIEWS[:2]) == (
        "views: store 3 (plain, hflip, vflip), asked 2 (plain, hflip)"
    )


def test_views_of_equal_names_are_told_apart_by_what_they_do(tmp_path):
    turned = (*VIEWS[:2], VIEWS[2].model_copy(update={"hflip": True}))
    said = difference(tmp_path, views=turned)
    assert said.startswith("views: store [{") and said.count("'name': 'vflip'") == 2


def test_every_part_that_differs_has_a_line(tmp_path):
    assert difference(tmp_path, model="another", seed=7).splitlines() == [
        "model: store 'made_up', asked 'another'",
        "seed: store 0, asked 7",
    ]
