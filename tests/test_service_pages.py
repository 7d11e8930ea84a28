"""The page's addresses, asked over HTTP: a store's and its images', a sweep's and its runs'."""

import io
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from served import app_of
from starlette.testclient import TestClient
from sweeps import config

from featurestore.errors import InputError
from featurestore.photos.targets import CSIRO
from service.explore import out_of_fold, sweeps
from trainer.loop.sweep import run_sweep

S = "/v1/stores/features"
IMAGE = f"{S}/images/ID7"


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """A sweep of two kinds over two repeats."""
    folder = tmp_path_factory.mktemp("sweep")
    return run_sweep(
        config(folder, store, kind="[cls_gating, ridge]", lr="[3e-2]", repeats=2),
        folder,
        "cpu",
        False,
    ).path


@pytest.fixture(scope="module")
def client(store, finished):
    return TestClient(app_of(store, sweeps=[finished], hosts=["testserver"]))


def asked(client, url: str, status: int = 200):
    """The JSON of an answer; NaN in it is refused."""
    answer = client.get(url)
    assert answer.status_code == status, answer.text
    return json.loads(answer.text, parse_constant=pytest.fail)


def rows(table: dict) -> pd.DataFrame:
    return pd.DataFrame(table["rows"], columns=table["columns"])


# -- stores and images


def test_the_page_and_its_files(client):
    assert "<main" in client.get("/").text and client.get("/").headers["content-type"].startswith(
        "text/html"
    )
    (script,) = re.findall(r'src="([^"]*)"', client.get("/").text)
    assert "javascript" in client.get(f"/{script}").headers["content-type"]
    for path in ("/static/../pages.py", "/static/%2e%2e/pages.py", "/static/"):
        assert client.get(path).status_code == 404


def test_an_overview_counts_and_the_odd_are_as_many_as_the_table_has(client):
    about = asked(client, f"{S}/overview.json")
    assert (about["n_images"], about["n_sealed"], about["grid"]) == (30, 30, [2, 6])
    assert about["odd"] == asked(client, f"{S}/odd.json")["total"] and {
        "all",
        "State",
        "Sampling_Date",
    } == set(about["targets"])


def test_maps_are_tables_and_others_are_refused(client):
    table = asked(client, f"{S}/map.json?view=hflip&limit=7")
    assert table["columns"] == ["image_id", "position", "x", "y"] and (
        len(table["rows"]),
        table["total"],
    ) == (7, 30)
    assert client.get(f"{S}/map.csv").text.startswith("image_id,position,x,y\nID0,0,")
    assert asked(client, f"{S}/map.json?method=circle", 400)["error"]["kind"] == "bad-request"


def test_a_card_has_labels_neighbours_and_predictions(client, finished):
    card = asked(client, IMAGE)
    assert (card["previous"], card["next"], card["position"]) == ("ID6", "ID8", 7) and len(
        card["nearest"]
    ) == 12
    assert asked(client, f"{S}/images/ID4")["labels"]["Height_Ave_cm"] is None
    run = finished / card["predictions"][0]["run"]
    table = pd.read_csv(run / "oof.csv").query("image_id == 'ID7' and weights == 'last'")
    assert len(card["predictions"]) == 25 and len(table) == 2
    assert card["predictions"][0]["target"] == CSIRO.foremost.name
    found = {
        row["target"]: row["predicted"] for row in card["predictions"] if row["run"] == run.name
    }
    assert (
        found == pytest.approx(table[list(found)].mean().to_dict())
        and card["predictions"][0]["sweep"] == finished.name
    )


@pytest.mark.parametrize("name", ["nearest", "predictions", "views"])
def test_a_card_s_tables_are_tables(client, name):
    card, table = asked(client, f"{IMAGE}?k=3")[name], asked(client, f"{IMAGE}/{name}.json?k=3")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert rows == [row | each for row, each in zip(rows, card, strict=True)]
    assert client.get(f"{IMAGE}/{name}.csv").text.splitlines()[0] == ",".join(table["columns"])


def test_pictures_and_heat_maps_of_an_image(client):
    assert Image.open(io.BytesIO(client.get(f"{IMAGE}/pca.png?view=1").content)).size == (6, 2)
    photograph, thumb = client.get(f"{IMAGE}/photograph.jpg"), client.get(f"{IMAGE}/thumb.jpg")
    assert photograph.content == thumb.content and photograph.headers["x-photograph"] == "absent"
    similar = asked(client, f"{IMAGE}/similar.json?patch=1,4&k=3")
    assert similar["values"][1 * 6 + 4] == 1 and len(similar["others"]) == 3
    assert len(asked(client, f"{IMAGE}/norms.json")["values"]) == 12


def test_several_thumbnails_come_at_once(client):
    names = ["ID7", "nobody's", "ID3", "ID7"]
    query = "&".join(f"image={name}" for name in names)
    found = asked(client, f"{S}/thumbs.json?{query}")["thumbs"]
    for name, thumb in zip(names, found, strict=True):
        one = client.get(f"{S}/images/{name}/thumb.jpg")
        assert one.status_code == (404 if thumb is None else 200)
        assert thumb is None or b64decode(thumb) == one.content
    assert found[1] is None and found[0] == found[3]


@pytest.mark.parametrize("n", [0, 65])
def test_as_many_thumbnails_come_at_once_as_the_page_asks_for(client, n):
    query = "&".join(["image=ID7"] * n)
    assert asked(client, f"{S}/thumbs.json?{query}", 400)["error"]["kind"] == "bad-request"


@pytest.mark.parametrize(
    "path",
    ["similar.json", "similar.json?patch=1", "similar.json?patch=2,0", "similar.json?patch=-1,0"],
)
def test_a_patch_that_is_none_is_refused(client, path):
    assert asked(client, f"{IMAGE}/{path}", 400)["error"]["kind"] == "bad-request"


@pytest.mark.parametrize(
    "path", ["images/ID99", "images/@30/pca.png", "images/ID7/norms.json?view=upside", "odd.xml"]
)
def test_what_is_not_there_is_not_found(client, path):
    assert asked(client, f"{S}/{path}", 404)["error"]["kind"] == "not-found"


# -- sweeps


def test_a_sweep_says_what_it_tried_and_found(client, finished):
    about = asked(client, f"/v1/sweeps/{finished.name}")
    assert about["finished"] and about["settings"]["grid: head.kind"] == "cls_gating, ridge"
    assert about["settings"]["store"] == "features.h5" and str(finished.parent) not in json.dumps(
        about
    )
    assert [run["parameters"]["head.kind"] for run in about["runs"][:2]] == ["cls_gating", "ridge"]
    assert (
        set(about["baselines"]) == {"mean", "ridge"}
        and about["honest"]["last"] == about["honest"]["last"]
    )
    board = rows(asked(client, f"/v1/sweeps/{finished.name}/leaderboard.json"))
    assert about["chosen"] == board["name"][0]
    assert board["score_last"].tolist() == pytest.approx(
        pd.read_csv(finished / "summary.csv")["score_last"].tolist()
    )


def test_out_of_fold_rows_are_those_of_the_weights(client, finished):
    run = next(finished.glob("001*"))
    url = f"/v1/sweeps/{finished.name}/runs/{run.name}/oof.json"
    known = pd.read_csv(run / "oof.csv")
    for query, weights in (("", "last"), ("?weights=best", "best")):
        found = rows(asked(client, url + query)).query("target == 'GDM_g'")
        table = known[known["weights"] == weights]
        np.testing.assert_allclose(found["predicted"], table["GDM_g"])
        np.testing.assert_allclose(found["error"], table["GDM_g"] - table["true_GDM_g"], atol=1e-12)
        assert found["fold"].tolist() == table["fold"].tolist()
    averaged = (
        rows(asked(client, f"{url}?averaged=1"))
        .query("target == 'GDM_g'")
        .set_index("image_id")["predicted"]
    )
    last = known[known["weights"] == "last"].groupby("image_id")["GDM_g"].mean()
    np.testing.assert_allclose(averaged.loc[last.index], last)


def test_a_kind_without_epochs_has_last_weights_alone(client, finished):
    url = f"/v1/sweeps/{finished.name}/runs/{next(finished.glob('002*')).name}"
    assert asked(client, f"{url}/oof.json")["total"] == 30 * 5 * 2
    assert "it has last" in asked(client, f"{url}/oof.json?weights=best", 404)["error"]["message"]
    assert len(asked(client, f"{url}/curves.json")["rows"]) == 1


def test_curves_have_a_row_of_all_folds_and_one_of_each(client, finished):
    run = next(finished.glob("001*"))
    table = rows(asked(client, f"/v1/sweeps/{finished.name}/runs/{run.name}/curves.json"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert table[table["fold"].isna()]["score"].tolist() == [line["score"] for line in lines]
    last = table.query("epoch == 3 and repeat == 1 and fold == 2")
    assert last[["loss", "score"]].to_numpy().tolist() == [
        [lines[3]["fold_loss"][5], lines[3]["fold_score"][5]]
    ]


def test_a_config_tells_what_is_fixed_and_leaves_out_what_its_kind_ignores(client, finished):
    trained, fitted = (
        asked(
            client,
            f"/v1/sweeps/{finished.name}/runs/{next(finished.glob(f'{n}*')).name}/config.json",
        )
        for n in ("001", "002")
    )
    assert trained["config"]["optimization.ema_decay"] == 0.9
    assert trained["config"]["inference.tta_indices"] == [0, 2]
    assert fitted["config"]["head.kind"] == "ridge" and "optimization.lr" not in fitted["config"]
    assert "/" not in fitted["config"]["dataset.store"]


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..", "nobody"])
def test_a_run_is_looked_up_and_never_a_path(client, finished, name):
    assert client.get(f"/v1/sweeps/{finished.name}/runs/{name}/oof.json").status_code == 404


def test_a_sweep_whose_folder_was_removed_is_said_to_be_gone(store, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    (folder / "sweep.json").write_text("{}")
    client = TestClient(app_of(store, sweeps=[folder], hosts=["testserver"]))
    shutil.rmtree(folder)
    for below in ("", "/leaderboard.json", "/runs/001/oof.json", "/runs/001/curves.json"):
        assert "not there now" in asked(client, f"/v1/sweeps/gone{below}", 404)["error"]["message"]
    listing = asked(client, "/v1/stores")
    assert listing["sweeps"] == [] and [each["name"] for each in listing["failing"]] == ["gone"]
    assert client.get(IMAGE).status_code == 200


def test_a_sweep_that_is_still_trained_shows_what_there_is(finished, tmp_path):
    sweep = tmp_path / finished.name
    shutil.copytree(finished, sweep)
    for file in (*sweep.glob("summary.*"), *sweep.glob("*/oof.csv")):
        file.unlink()
    run = sweeps.run_folder(sweep, next(sweep.glob("001*")).name)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    assert sweeps.curves(run)["epoch"].max() == 1
    about = sweeps.describe(sweep, sweeps.plan(sweep))
    assert (
        not about["finished"]
        and about["honest"] is None
        and [each["has_oof"] for each in about["runs"]] == [False] * 3
    )
    assert out_of_fold.predictions(sweep, "ID7") == []
    for ask in (lambda: sweeps.leaderboard(sweep), lambda: out_of_fold.oof(run)):
        with pytest.raises(InputError, match="not finished"):
            ask()


def test_a_table_that_changed_is_read_again(finished, tmp_path):
    sweep = tmp_path / finished.name
    shutil.copytree(finished, sweep)
    before = out_of_fold.predictions(sweep, "ID7")
    file = next(sweep.glob("001*")) / "oof.csv"
    table = pd.read_csv(file)
    table.assign(GDM_g=table["GDM_g"] + 10).to_csv(file, index=False)
    after = out_of_fold.predictions(sweep, "ID7")
    grown = [b["predicted"] - a["predicted"] for a, b in zip(before, after, strict=True)]
    assert grown == pytest.approx([0, 0, 0, 0, 10] + [0] * 20)


def test_a_table_with_a_cell_that_is_no_number_is_said_and_left_out(finished, tmp_path):
    sweep = tmp_path / finished.name
    shutil.copytree(finished, sweep)
    file = next(sweep.glob("001*")) / "oof.csv"
    table = pd.read_csv(file, dtype=str)
    table.loc[3, "GDM_g"] = "12.x"
    table.to_csv(file, index=False)
    with pytest.raises(InputError, match="12.x"):
        out_of_fold.oof(file.parent)
    assert {each["run"] for each in out_of_fold.predictions(sweep, "ID7")} == {
        next(sweep.glob("002*")).name,
        "blend_equal",
        "blend_fitted",
        "ridge",
    }


def test_a_sweep_that_lists_no_runs_still_tells_its_settings(finished, tmp_path):
    plan = json.loads((finished / "sweep.json").read_text())
    whole, parameters = sweeps.plan(finished)
    assert whole["points"] == "2" and len(parameters) == 2
    named = sweeps.describe(finished, (whole, parameters))["settings"]
    assert (whole["views averaged"], named["views averaged"]) == ("0, 2", "plain, vflip")
    (tmp_path / "sweep.json").write_text(
        json.dumps({name: plan[name] for name in ("base", "axes")})
    )
    assert sweeps.plan(tmp_path) == (
        {word: text for word, text in whole.items() if word != "points"},
        {},
    )


def test_settings_are_read_without_torch(finished):
    code = (
        "import sys; from pathlib import Path; from service.explore import sweeps; sweep = "
        "Path(sys.argv[1]); "
        "print(len(sweeps.describe(sweep, sweeps.plan(sweep))['settings']), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, finished], capture_output=True, text=True, check=True
    )
    n_settings, has_torch = done.stdout.split()
    assert int(n_settings) > 5 and has_torch == "False"


def test_ids_that_look_like_missing_values_stay_ids(tmp_path):
    names = [*CSIRO.names, *(f"true_{name}" for name in CSIRO.names)]
    run = tmp_path / "sweep/001_a"
    run.mkdir(parents=True)
    head = pd.DataFrame(
        {
            "weights": "last",
            "repeat": 0,
            "image_id": ["NA", "007"],
            "site": ["NA", "null"],
            "fold": 0,
        }
    )
    head.join(pd.DataFrame(1.5, range(2), names)).assign(true_GDM_g=[np.nan, 1.0]).to_csv(
        run / "oof.csv", index=False
    )
    found = out_of_fold.oof(run, averaged=True)
    assert found["image_id"].unique().tolist() == ["NA", "007"] and found[
        "site"
    ].unique().tolist() == ["NA", "null"]
    assert found["error"].isna().tolist() == [False, False, False, True, False] + [False] * 5
    (run / "config.yaml").touch()
    assert len(out_of_fold.predictions(tmp_path / "sweep", "NA")) == 5


def test_two_runs_are_as_far_apart_as_the_sweep_says(client, finished):
    pairs = pd.read_csv(finished / "comparisons.csv")
    start = f"/v1/sweeps/{finished.name}/runs"
    for pair in pairs.itertuples():
        beside = f"{start}/{pair.better}/beside/{finished.name}/{pair.other}"
        first = rows(asked(client, f"{beside}/scores.json")).iloc[0]
        for name in ("difference", "low", "high", "sd"):
            told, expected = first[name], getattr(pair, name)
            assert told == pytest.approx(expected) or (pd.isna(told) and pd.isna(expected)), name
        assert first["apart"] == pair.apart
