"""Lists of photographs, asked over HTTP: what passes a filter, its order, who comes next in it."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from served import app_of
from starlette.testclient import TestClient
from sweeps import write_store

from featurestore import FeatureStore
from featurestore.photos.targets import CSIRO
from service.explore import photographs
from service.explore.photographs import date_column, inside

S = "/v1/stores/features"
LIST = f"{S}/photographs.json"
TOTAL = CSIRO.foremost.name


def oof_of(catalog: pd.DataFrame, repeats: int, seed: int) -> pd.DataFrame:
    """An out-of-fold table as a run writes it; what is predicted is drawn."""
    rng = np.random.default_rng(seed)
    parts = []
    for repeat in range(repeats):
        part = catalog[["image_id"]].assign(weights="last", repeat=repeat)
        part["site"] = catalog["State"] + "_" + catalog["Sampling_Date"]
        part["fold"] = (np.arange(len(catalog)) + repeat) % 3
        for name in CSIRO.names:
            part[f"true_{name}"] = catalog[name]
            part[name] = catalog[name] + rng.normal(0, 5, len(catalog))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    """A sweep's folder: a run of one repeat, which is the best, and one of two."""
    folder = tmp_path_factory.mktemp("sweep") / "drawn"
    catalog = FeatureStore.open(store).catalog
    for name, repeats in (("001_one", 1), ("002_two", 2)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").touch()
        table = oof_of(catalog, repeats, seed=repeats)
        table.iloc[1:].to_csv(folder / name / "oof.csv", index=False)  # not of ID0's first
    # a blend has predictions alone
    (folder / "blend_equal").mkdir()
    (folder / "blend_equal/blend.json").write_text("{}")
    shutil.copy(folder / "001_one/oof.csv", folder / "blend_equal/oof.csv")
    (folder / "003_begun").mkdir()
    (folder / "003_begun/config.yaml").touch()
    (folder / "sweep.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps({"best": "001_one"}))
    return folder


@pytest.fixture(scope="module")
def client(store, folder):
    return TestClient(app_of(store, sweeps=[folder], hosts=["testserver"]))


@pytest.fixture(scope="module")
def known(store, folder):
    """What the run of one repeat says of the weightiest target, by photograph."""
    table = pd.read_csv(folder / "001_one/oof.csv").set_index("image_id")
    error = table[TOTAL] - table[f"true_{TOTAL}"]
    catalog = FeatureStore.open(store).catalog.set_index("image_id")
    return catalog.assign(error=error, fold=table["fold"])


def listed(client, query: str = "", status: int = 200):
    answer = client.get(f"{LIST}?{query}")
    assert answer.status_code == status, answer.text
    found = answer.json()
    return (
        pd.DataFrame(found["rows"], columns=found["columns"])
        if status == 200
        else (found["error"]["message"])
    )


def test_without_a_filter_all_sealed_photographs_stand_in_the_store_s_order(client, known):
    found = listed(client)
    assert found["image_id"].tolist() == known.index.tolist()
    np.testing.assert_allclose(found["true"], known[TOTAL], rtol=1e-6)
    assert found["date"][3] == "2015-09-04" and found["error"].isna().all()


FILTERS = {
    "in.State=Vic": lambda known: known["State"] == "Vic",
    "site=Vic_2015/9/2": lambda known: known["Sampling_Date"] == "2015/9/2",
    "from=2015-09-03&to=2015-09-08": lambda known: known["Sampling_Date"].str[-1].between("3", "8"),
    "fold=1": lambda known: known["fold"] == 1,
    "sign=high": lambda known: known["error"] > 0,
    "sign=low&off=2.5": lambda known: known["error"] < -2.5,
}


@pytest.mark.parametrize("first", FILTERS)
def test_what_passes_is_what_pandas_says(client, known, first):
    for second in FILTERS:
        if first != second and "sign" in first and "sign" in second:
            continue
        passes = FILTERS[first](known) & FILTERS[second](known)
        found = listed(client, f"sweep=drawn&{first}&{second}")
        assert found["image_id"].tolist() == known.index[passes].tolist(), second


@pytest.mark.parametrize(
    ("order", "keys"),
    [
        ("off", lambda known: known["error"].abs()),
        ("-off", lambda known: -known["error"].abs()),
        ("error", lambda known: known["error"]),
        ("-true", lambda known: -known[TOTAL]),
        ("-date", lambda known: -known["Sampling_Date"].str.split("/").str[-1].astype(int)),
        ("-position", lambda known: -np.arange(len(known))),
    ],
)
def test_orders_are_those_of_numbers_and_unknown_errors_are_left_out(client, known, order, keys):
    rows = known.dropna(subset="error") if "error" in order or "off" in order else known
    expected = rows.assign(key=keys(rows)).sort_values("key", kind="stable").index
    assert listed(client, f"sweep=drawn&order={order}")["image_id"].tolist() == expected.tolist()


def test_a_fold_of_a_repeat_is_told_by_its_own_heads(client, folder):
    table = pd.read_csv(folder / "002_two/oof.csv")
    own = table.query("repeat == 1 and fold == 2").set_index("image_id")
    found = listed(client, "sweep=drawn&run=002_two&fold=1.2&target=GDM_g").set_index("image_id")
    assert found.index.tolist() == own.index.tolist()
    np.testing.assert_allclose(found["predicted"], own["GDM_g"])
    averaged = listed(client, "sweep=drawn&run=002_two&target=GDM_g").set_index("image_id")
    np.testing.assert_allclose(
        averaged["predicted"]["ID5"], table.groupby("image_id")["GDM_g"].mean()["ID5"]
    )


def test_a_lasso_holds_the_photographs_within_it(client):
    points = client.get(f"{S}/map.json?view=hflip").json()
    places = pd.DataFrame(points["rows"], columns=points["columns"])
    x, y = places["x"].median(), places["y"].median()
    corners = f"{x},-99,99,-99,99,{y},{x},{y}"
    found = listed(client, f"lasso=pca,hflip,{corners}")
    expected = places[(places["x"] > x) & (places["y"] < y)]["image_id"]
    assert found["image_id"].tolist() == expected.tolist() and 0 < len(found) < 30


def test_a_list_of_ids_keeps_its_order_and_passes_the_filter(client):
    among = "among=ID9,ID3,ID%252C,ID12"  # the third is none
    assert listed(client, among)["image_id"].tolist() == ["ID9", "ID3", "ID12"]
    assert listed(client, f"{among}&in.State=Tas")["image_id"].tolist() == ["ID9", "ID3"]
    assert listed(client, f"{among}&in.State=Vic")["image_id"].tolist() == []
    assert listed(client, f"{among}&order=-position")["image_id"].tolist() == ["ID12", "ID9", "ID3"]
    card = client.get(f"{S}/images/ID3?{among}").json()
    assert (card["previous"], card["next"], card["at"], card["n"]) == ("ID9", "ID12", 1, 3)


def test_inside_is_the_area_of_a_shape_with_a_bay():
    place_N2 = np.random.default_rng(0).random((20_000, 2))
    corners = np.array([(0, 0), (1, 0), (1, 1), (0.5, 0.25), (0, 1)])  # 1 less a triangle of 3 / 8
    assert inside(place_N2, corners).mean() == pytest.approx(5 / 8, abs=0.01)
    assert not inside(np.array([[0.5, 0.5], [np.nan, 0.5]]), corners).any()


def test_the_next_photograph_is_that_of_the_list(client):
    query = "sweep=drawn&order=-off&in.State=Tas"
    ids = listed(client, query)["image_id"].tolist()
    for at, image_id in enumerate(ids):
        card = client.get(f"{S}/images/{image_id}?{query}").json()
        before, after = [None, *ids][at], [*ids[1:], None][at]
        assert (card["at"], card["n"]) == (at, len(ids))
        assert (card["previous"], card["next"]) == (before, after)
        assert (card["row"]["run"], card["row"]["target"]) == ("001_one", TOTAL)
    other = client.get(f"{S}/images/ID1?{query}").json()  # of another State
    assert (other["at"], other["previous"], other["next"]) == (None, None, ids[0])
    plain = client.get(f"{S}/images/ID1").json()
    assert (plain["at"], plain["n"], plain["previous"], plain["row"]) == (1, 30, "ID0", None)


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ("in.Moon=full", 404, "no such column"),
        ("in.State=Mars", 404, "there is NSW, Tas, Vic"),
        ("site=nowhere", 404, "no photograph has 'nowhere'"),
        ("from=today", 400, "2015-07-21"),
        ("sign=high", 400, "those of a run"),
        ("sweep=drawn&off=-1", 400, "0 or more"),
        ("sweep=drawn&off=nan", 400, "0 or more"),
        ("sweep=drawn&order=colour", 400, "position"),
        ("sweep=drawn&fold=x", 400, "fold"),
        ("sweep=drawn&run=003_begun&off=1", 404, "not finished"),
        ("sweep=drawn&run=nobody", 404, "no run 'nobody'"),
        ("sweep=drawn&target=Moon&sign=low", 404, "no target 'Moon'"),
        ("lasso=pca,plain,0,0,1", 400, "corners"),
        ("lasso=pca,plain,0,0,1,1,nan,0", 400, "corners"),
        ("lasso=circle,plain,0,0,1,1,0,1", 400, "corners"),
    ],
)
def test_what_cannot_be_read_is_told(client, query, status, told):
    assert told in listed(client, query, status)


def test_a_run_without_a_table_leaves_errors_unknown(client):
    assert len(listed(client, "sweep=drawn&run=003_begun")) == 30


def test_a_blend_is_listed_like_a_run_and_has_no_curves(client):
    query = "sweep=drawn&order=-off&run="
    assert listed(client, f"{query}blend_equal").equals(listed(client, f"{query}001_one"))
    assert client.get(f"{S}/filters.json?{query}blend_equal").json()["run"] == "blend_equal"
    assert client.get("/v1/sweeps/drawn/runs/blend_equal/curves.json").json()["rows"] == []
    each = client.get(f"{S}/images/ID7").json()["predictions"]
    of_run, of_blend = (
        [row["predicted"] for row in each if row["run"] == run]
        for run in ("001_one", "blend_equal")
    )
    assert of_blend == of_run != []
    assert client.get("/v1/sweeps/drawn/runs/blend_equal/config.json").json()["config"] == {}


def test_choices_are_what_the_store_and_the_run_have(client):
    found = client.get(f"{S}/filters.json?sweep=drawn").json()
    assert found["groups"] == {"State": {"NSW": 9, "Tas": 12, "Vic": 9}}
    assert (found["dates"], len(found["sites"])) == (["2015-09-01", "2015-09-10"], 10)
    assert (found["run"], found["runs"]) == ("001_one", ["001_one", "002_two", "blend_equal"])
    assert (found["target"], found["targets"]) == (TOTAL, list(CSIRO.names))
    alone = client.get(f"{S}/filters.json").json()
    assert (alone["runs"], alone["target"]) == ([], TOTAL)


def test_groups_and_days_of_another_task_are_found(tmp_path):
    def other(frame):
        frame = frame.drop(columns=[*CSIRO.names, "Sampling_Date", "State"])
        n = np.arange(len(frame))
        day = [f"{1 + i % 9} May 2021" for i in n]
        return frame.assign(yield_t=n / 7, farm=[f"farm {i % 4}" for i in n], cut=day)

    path = write_store(tmp_path / "features.h5", labels=other)
    client = TestClient(app_of(path, hosts=["testserver"]))
    assert date_column(FeatureStore.open(path).catalog) == "cut"
    found = listed(client, "in.farm=farm+3&from=2021-05-04&target=yield_t&order=-true")
    expected = [i for i in range(29, -1, -1) if i % 4 == 3 and i % 9 >= 3]
    assert found["image_id"].tolist() == [f"ID{i}" for i in expected]
    assert found["true"].tolist() == pytest.approx([i / 7 for i in expected])


def test_what_a_filter_may_ask_for_is_counted_once(folder, store, monkeypatch):
    """At a million photographs counting took 18 s."""
    client, counted = TestClient(app_of(store, sweeps=[folder]), base_url="http://127.0.0.1"), []
    count = photographs.choices
    monkeypatch.setattr(
        photographs, "choices", lambda *given: counted.append(given) or count(*given)
    )
    asked = [f"{S}/filters.json", f"{S}/filters.json?sweep=drawn"]
    first, again = [[client.get(each).json() for each in asked] for _ in range(2)]
    assert first == again and first[0] != first[1]
    assert len(counted) == 2


def test_every_so_many_are_the_same_of_each_table(client):
    """What the map draws of a million photographs, and its colours."""
    tables = [
        f"{S}/map.json?method=pca&view=plain",
        f"{S}/catalog.json?columns=image_id",
        f"{LIST}?sweep=drawn&run=001_one",
    ]
    for address in tables:
        rows = client.get(address).json()["rows"]
        sign = "&" if "?" in address else "?"
        some = client.get(f"{address}{sign}every=7").json()
        assert some["rows"] == rows[::7] and some["total"] == len(rows[::7])
        assert [row[0] for row in some["rows"]] == ["ID0", "ID7", "ID14", "ID21", "ID28"]
    two = "/v1/sweeps/drawn/runs/001_one/beside/drawn/002_two/photographs.json"
    among = "&among=ID9,ID3,ID4,ID1"  # the filter's order, not the tables'
    # no run predicted ID0
    for narrow, ids in (("", {"ID7", "ID14", "ID21", "ID28"}), (among, {"ID9"})):
        some = client.get(f"{two}?store=features&every=7&columns=image_id{narrow}").json()
        assert {image_id for (image_id,) in some["rows"]} == ids
    assert client.get(f"{S}/map.json?every=0").status_code == 400
