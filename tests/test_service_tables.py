"""Tables: catalog and statistics as JSON and CSV, a part at a time."""

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from served import client_of, error_of
from sweeps import write_store

from featurestore import FeatureStore, open_writer
from trainer.data.splits import save_splits
from trainer.loop.runs import RunFolder

S = "/v1/stores/features"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    path = write_store(tmp_path_factory.mktemp("tables") / "features.h5")
    return client_of(path)


def test_the_catalog_in_both_formats(client, store):
    table, text = client.get(f"{S}/catalog.json").json(), client.get(f"{S}/catalog.csv").text
    expected = FeatureStore.open(store).catalog
    frame = pd.read_csv(io.StringIO(text), keep_default_na=False)
    assert table["columns"] == list(frame.columns)
    assert (table["columns"][:3], table["total"], table["next"]) == (
        ["image_id", "position", "sealed"],
        30,
        None,
    )
    assert (
        [row[0] for row in table["rows"]]
        == frame["image_id"].tolist()
        == expected["image_id"].tolist()
    )
    assert frame["Dry_Total_g"].tolist() == expected["Dry_Total_g"].tolist()


def test_missing_numbers_are_null(client):
    table = client.get(f"{S}/catalog.json?columns=Height_Ave_cm&offset=4&limit=1").json()
    assert table["rows"] == [[None]]


def test_next_leads_through_all_rows(client):
    address, ids = f"{S}/catalog.json?columns=image_id&limit=13", []
    while address:
        table = client.get(address).json()
        ids += [row[0] for row in table["rows"]]
        address = table["next"]
    assert ids == [f"ID{i}" for i in range(30)]
    assert (
        client.get(f"{S}/catalog.csv?limit=13").headers["Link"]
        == '<?offset=13&limit=13>; rel="next"'
    )


@pytest.mark.parametrize(
    "query",
    ["offset=-1", "limit=0", "limit=nan", "limit=1e9", "offset=0x1", "columns=image_id,nix"],
)
def test_s06_what_is_no_number_or_column_is_a_bad_request(client, query):
    assert error_of(client.get(f"{S}/catalog.json?{query}")) == (400, "bad-request")


def test_s06_a_limit_beyond_all_is_capped(client):
    assert len(client.get(f"{S}/catalog.json?limit=1000000000").json()["rows"]) == 30
    assert client.get(f"{S}/catalog.json?offset=99999999999").json()["rows"] == []


def test_statistics_are_those_of_the_store(client, store, tmp_path):
    write_tiny(tmp_path / "features.h5")
    stats = FeatureStore.open(tmp_path / "features.h5").stats()
    table = client_of(tmp_path / "features.h5").get(f"{S}/stats.json").json()
    assert table["columns"] == list(stats.columns)
    np.testing.assert_array_equal(
        [row[2:] for row in table["rows"]], stats.to_numpy(object)[:, 2:].astype(float)
    )


def test_a_table_has_two_formats_only(client):
    assert error_of(client.get(f"{S}/catalog.xml")) == (404, "not-found")


def test_many_rows_come_in_blocks_that_fit_together(client, monkeypatch):
    whole = client.get(f"{S}/catalog.json").json()
    monkeypatch.setattr("service.answers.tables.BLOCK", 7)
    assert json.loads(client.get(f"{S}/catalog.json").text) == whole


FORMULAS = ["=1+1", "+cmd", "@SUM(A1)", "-x", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "-", '="a",b']
PLAIN = ["-3.5", "+2", "-.5e-3", "1=1", "a@b", "a\r=1", "b\n=1", "", "'=1", "ID-1", "2015-9-4"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A client of a store whose catalog holds texts that spreadsheets run, and a column named like
    one."""
    texts = [*FORMULAS, *PLAIN]
    frame = tiny_frame(len(texts)).assign(State=texts, **{"=name": np.arange(len(texts)) - 9.5})
    spec = tiny_spec(frame)
    path = tmp_path_factory.mktemp("odd") / "features.h5"
    with open_writer(path, spec, frame) as writer:
        writer.put(0, tiny_rows(spec, 0))
    return client_of(path)


def test_K12_cells_that_spreadsheets_run_get_an_apostrophe(odd):
    rows = list(
        csv.reader(io.StringIO(odd.get(f"{S}/catalog.csv?columns=State,=name").text, newline=""))
    )
    assert rows[0] == ["State", "'=name"]
    assert [row[0] for row in rows[1:]] == [*(f"'{text}" for text in FORMULAS), *PLAIN]
    assert rows[1][1] == "-9.5"  # a number is none


def test_K12_json_has_texts_as_they_are(odd):
    table = odd.get(f"{S}/catalog.json?columns=State,=name").json()
    assert table["columns"] == ["State", "=name"] and [row[0] for row in table["rows"]] == [
        *FORMULAS,
        *PLAIN,
    ]


def test_K12_csvs_that_commands_write_are_not_changed(tmp_path):
    frame = pd.DataFrame({"image_id": ["=1+1"], "site": ["@a"], "r00": [0]})
    save_splits(frame, tmp_path / "folds.csv")
    RunFolder(tmp_path).write_table("oof.csv", frame)
    for name in ("folds.csv", "oof.csv"):
        assert (tmp_path / name).read_text().splitlines()[1] == "=1+1,@a,0"
