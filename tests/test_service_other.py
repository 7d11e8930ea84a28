"""What the service tells of stores and sweeps of other targets than the contest's."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from served import app_of
from starlette.testclient import TestClient
from sweeps import write_store
from test_other_tasks import NUMBERS, TASK, config, other_labels

from featurestore import FeatureStore
from trainer.loop.sweep import run_sweep

S = "/v1/stores/features"
ENDS = ("last", "best")  # of columns `score_`, beside those of States
SCORED_BY_MAE = TASK.replace("features: [cls, mean],", "features: [mean],") + "score: mae\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    return write_store(folder / "features.h5", labels=other_labels)


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    task = SCORED_BY_MAE.replace("num_epochs: 12", "num_epochs: 3")
    given = config(folder, store, "[pooled_mlp, pls]", task=task)
    return run_sweep(given, folder, "cpu", progress=False).path


@pytest.fixture(scope="module")
def client(store, finished):
    return TestClient(app_of(store, sweeps=[finished], hosts=["testserver"]))


def asked(client, url: str):
    """The JSON of an answer; NaN in it is refused."""
    answer = client.get(url)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text, parse_constant=pytest.fail)


def rows(table: dict) -> pd.DataFrame:
    return pd.DataFrame(table["rows"], columns=table["columns"])


def test_an_overview_tells_what_could_be_a_target(client, store):
    about = asked(client, f"{S}/overview.json")
    assert about["target"] == "yield_t"
    assert list(about["targets"]) == ["all", "farm", "crop"]
    assert [row["target"] for row in about["targets"]["all"]] == NUMBERS
    counts = {row["target"]: row["count"] for row in about["targets"]["all"]}
    assert (counts["ndvi"], counts["cover"], counts["soil_c"]) == (29, 28, 30)
    labels = FeatureStore.open(store).catalog
    assert about["classes"] == {
        name: Counter(word for word in labels[name] if word) for name in ("farm", "crop")
    }


def test_a_sweep_tells_its_targets_and_which_scores_are_better(client, finished):
    about = asked(client, f"/v1/sweeps/{finished.name}")
    assert about["targets"] == [*NUMBERS, "crop"] and about["target"] == "yield_t"
    assert about["classes"] == ["crop"]
    assert about["ranked_by"] == "mae" and about["larger_is_better"] is False
    board = rows(asked(client, f"/v1/sweeps/{finished.name}/leaderboard.json"))
    assert board.dropna(subset="vs_best")["vs_best"].notna().all()
    assert not [name for name in board if name.startswith("score_") and name[6:] not in ENDS]


@pytest.mark.parametrize("averaged", [0, 1])
def test_out_of_fold_rows_have_each_target_and_the_words_of_classes(client, finished, averaged):
    run = next(finished.glob("*pooled_mlp"))
    url = f"/v1/sweeps/{finished.name}/runs/{run.name}/oof.json?averaged={averaged}"
    found = rows(asked(client, url))
    known = pd.read_csv(run / "oof.csv").query("weights == 'last'")
    assert set(found["target"]) == {*NUMBERS, "crop"}
    ndvi = found[found["target"] == "ndvi"]
    np.testing.assert_allclose(ndvi["predicted"], known["ndvi"])
    np.testing.assert_allclose(ndvi["error"], known["ndvi"] - known["true_ndvi"])
    assert (ndvi["predicted_word"] == "").all()

    crop = found[found["target"] == "crop"].set_index("image_id")
    by_id = known.set_index("image_id")
    assert crop["predicted_word"].to_dict() == by_id["predicted_crop"].to_dict()
    rye = by_id[by_id["true_crop"] == "rye"]
    np.testing.assert_allclose(crop.loc[rye.index, "predicted"], rye["probability_crop_rye"])
    assert pd.isna(crop.loc["ID5", "error"])  # its crop is not known


def test_figures_of_a_class_are_counts_of_its_words_among_what_passes(client, finished):
    run = next(finished.glob("*pooled_mlp"))
    url = f"/v1/sweeps/{finished.name}/runs/{run.name}"
    known = pd.read_csv(run / "oof.csv").query("weights == 'last'").dropna(subset="true_crop")
    farm = FeatureStore.open(client.app.state.library.stores["features"].path).catalog["farm"][7]
    narrow = f"store=features&in.farm={farm}"
    catalog = rows(asked(client, f"{S}/catalog.json?columns=image_id,farm"))
    ids = set(catalog["image_id"][catalog["farm"] == farm])
    for query, table in (("", known), (narrow, known[known["image_id"].isin(ids)])):
        (found,) = [
            each
            for each in asked(client, f"{url}/errors.json?{query}")["targets"]
            if each["target"] == "crop"
        ]
        pairs = Counter(zip(table["true_crop"], table["predicted_crop"], strict=True))
        for truth, counts in zip(found["words"], found["counts"], strict=True):
            assert counts == [pairs[truth, word] for word in found["words"]]
        assert found["n"] == len(table) < 30
        right = (table["true_crop"] == table["predicted_crop"]).mean()
        assert found["accuracy"] == pytest.approx(right)
    listed = rows(asked(client, f"{url}/oof.json?{narrow}"))
    assert set(listed["image_id"]) == ids
    told = asked(client, f"{url}/errors.json?sweep={finished.name}&{narrow}&target=yield_t&off=1e9")
    assert told["targets"] == []


def test_a_card_has_the_predictions_of_each_target_that_a_run_tells(client, finished):
    card = asked(client, f"{S}/images/ID7")
    told = pd.DataFrame(card["predictions"]).groupby("run")["target"].agg(list).to_dict()
    # each baseline tells what it learns
    assert told.pop("ridge") == NUMBERS
    assert told.pop("logistic") == ["crop"]
    assert told.pop("blend_equal") == told.pop("blend_fitted") == [*NUMBERS, "crop"]
    trained, fitted = sorted(told, key=lambda run: "pls" in run)
    assert told[trained] == [*NUMBERS, "crop"]
    assert told[fitted][: len(NUMBERS)] == NUMBERS
    table = rows(asked(client, f"{S}/images/ID7/predictions.json"))
    assert len(table) == len(card["predictions"])


def test_two_runs_are_compared_on_the_class_that_both_tell(client, finished):
    a = next(finished.glob("*pooled_mlp"))
    url = f"/v1/sweeps/{finished.name}/runs/{a.name}/beside/{finished.name}/logistic"
    found = rows(asked(client, f"{url}/scores.json")).set_index("score")
    assert list(found.index) == ["log_loss", "accuracy"] and set(found["target"]) == {"crop"}
    for letter, run in (("a", a), ("b", finished / "logistic")):
        oof = pd.read_csv(run / "oof.csv", keep_default_na=False).query("true_crop != ''")
        oof = oof[oof["weights"] == "last"]
        words = sorted(set(oof["true_crop"]))
        share_NW = oof[[f"probability_crop_{word}" for word in words]].to_numpy(float)
        true_N = oof["true_crop"].map(words.index).to_numpy()
        of_true_N = np.take_along_axis(share_NW, true_N[:, None], 1)
        assert found[letter]["log_loss"] == pytest.approx(-np.log(of_true_N).mean())
        assert found[letter]["accuracy"] == pytest.approx((share_NW.argmax(1) == true_N).mean())
    told = rows(asked(client, f"{url}/photographs.json"))
    assert set(told["target"]) == {"crop"} and {"true_word", "predicted_word_b"} <= set(told)


def test_errors_of_a_class_are_those_of_a_run_that_tells_it(client, finished):
    url = f"{S}/photographs.json?sweep={finished.name}"
    found = asked(client, f"{S}/filters.json?sweep={finished.name}&target=crop")
    assert found["classes"] == ["crop"] and found["run"] != "logistic"
    listed = rows(asked(client, f"{url}&target=crop&order=-off"))
    known = pd.read_csv(finished / found["run"] / "oof.csv").query("weights == 'last'")
    known = known.set_index("image_id")
    true = [
        known.loc[each, f"probability_crop_{known.loc[each, 'true_crop']}"]
        for each in listed["image_id"]
    ]
    np.testing.assert_allclose(listed["error"], np.array(true) - 1)
    assert listed["error"].is_monotonic_increasing and len(listed) == 29
    alone = asked(client, f"{S}/filters.json?sweep={finished.name}&target=crop&run=logistic")
    assert alone["run"] == "logistic"
