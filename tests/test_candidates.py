"""Columns that could be targets, told by their cells, and the block that a config takes."""

import numpy as np
import pandas as pd
import pytest
import yaml

from featurestore.disk.yaml import read_yaml
from featurestore.photos.candidates import Candidate, block_to_write, could_be_targets


def catalog(**columns) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    ids = {"image_id": [f"p{i}" for i in range(n)], "path": [f"p{i}.jpg" for i in range(n)]}
    return pd.DataFrame({**ids, **columns})


@pytest.mark.parametrize(
    "cells, kind",
    [
        ([0.0, 12.5, 3.0, np.nan], "amount"),
        ([0.0, 1.0, 1.0, 0.0], "amount"),
        ([5.0, 5.0, 5.0, np.nan], None),
        ([-1.5, 2.0, 4.0, 0.0], "level"),
        ([0.25, 0.5, 1.0, 0.0], "share"),
        ([0.25, 0.5, 1.5, 0.0], "amount"),
        ([11.0, 12.0, 13.0, 14.0], None),
        ([1.5, 2.5, 3.5, 4.5], "amount"),
        ([20150721.0, 20150722.0, 20150721.0, 20150904.0], None),
        (["oats", "rye", "oats", "rye "], "class"),
        (["oats", "rye", "oats", "NA"], None),
        (["oats", "oats", "oats", ""], None),
        (["a", "b", "c", "d"], None),
        (["2015-07-21", "21/7/2015", "2015-07-21", "3/4/2015"], None),
    ],
    ids=[
        "amount", "zeros and ones", "constant", "negative", "share", "beyond 1", "running number", "steps of 1",
        "dates as numbers", "class", "class without repeats", "one class", "unique texts", "dates",
    ],
)  # fmt: skip
def test_a_column_is_told_by_its_cells(cells, kind):
    found = could_be_targets(catalog(x=cells))
    assert [each.kind for each in found] == ([kind] if kind else [])


def test_a_candidate_says_how_many_photographs_have_it():
    found = could_be_targets(catalog(mass=[1.0, 2.5, np.nan], State=["Vic", "Vic", "Vic"]))
    assert found == [Candidate("mass", "amount", 2, 3, 2)]
    assert str(found[0]) == "amount, 2 of 3 photographs"


def test_a_catalogs_own_columns_are_no_targets():
    frame = catalog(width=[100.0, 200.0, 100.0], status=["", "missing", ""], sha256=["a", "a", "b"])
    assert could_be_targets(frame) == []


def test_more_than_fifty_texts_are_no_class():
    of_51 = catalog(farm=[f"farm {i % 51}" for i in range(204)])
    of_50 = catalog(farm=[f"farm {i % 50}" for i in range(204)])
    assert could_be_targets(of_51) == []
    assert could_be_targets(of_50)[0].n_values == 50


@pytest.mark.parametrize(
    "name", ["Dry_Total_g", "yes", "Höhe: cm", "1", "# of plants", "a, b", "~"]
)
def test_the_block_is_read_as_it_was_meant(tmp_path, name):
    block = block_to_write([Candidate(name, "amount", 3, 3, 3), Candidate("x", "class", 4, 5, 2)])
    (tmp_path / "config.yaml").write_text(block)
    assert read_yaml(tmp_path / "config.yaml") == {"targets": {name: {}, "x": {"kind": "class"}}}


def test_the_block_says_what_each_column_is():
    found = [
        Candidate("Dry_Total_g", "amount", 120, 120, 98),
        Candidate("crop", "class", 9, 120, 4),
    ]
    assert block_to_write(found).splitlines() == [
        "targets:",
        "  Dry_Total_g: {}      # amount, 120 of 120 photographs",
        "  crop: {kind: class}  # class of 4 values, 9 of 120 photographs",
    ]
    assert yaml.safe_load(block_to_write([])) == {"targets": None}
