"""Two runs beside each other: on what both predicted, by an account of scikit-learn's."""

import json

import numpy as np
import pandas as pd
import pytest
from served import client_of, error_of, write_served
from sklearn.metrics import mean_squared_error, r2_score

from featurestore.photos.targets import CSIRO
from trainer.score.metrics import weighted_r2

NAMES = list(CSIRO.names)
TRUE = [f"true_{name}" for name in NAMES]
N = 40


def oof_of(run: int, repeats: int = 2, images: range = range(N), seed: int = 0) -> pd.DataFrame:
    """What a run predicts: the truth of each image and noise of the run's own."""
    truth_NK = np.random.default_rng(seed).uniform(0, 50, (N, len(NAMES)))
    noise = np.random.default_rng([1, run])
    rows = []
    for repeat in range(repeats):
        for n in images:
            predicted = truth_NK[n] + noise.normal(0, 3 + run, len(NAMES))
            about = ["last", repeat, f"ID{n}", f"site{n % 8}", n % 4]
            rows.append([*about, *predicted, *truth_NK[n]])
    columns = ["weights", "repeat", "image_id", "site", "fold", *NAMES, *TRUE]
    return pd.DataFrame(rows, columns=columns)


def write_sweep(folder, **runs: pd.DataFrame):
    """A finished sweep's tables, and nothing else of it."""
    for name, table in runs.items():
        (folder / name).mkdir(parents=True)
        marker = "blend.json" if name.startswith("blend") else "config.yaml"
        (folder / name / marker).write_text("{}")
        table.to_csv(folder / name / "oof.csv", index=False)
    (folder / "sweep.json").write_text(json.dumps({"base": {"experiment": {"seed": 3}}}))
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    first = write_sweep(folder / "first", one=oof_of(1), two=oof_of(2), blend=oof_of(4))
    second = write_sweep(
        folder / "second",
        three=oof_of(3, 1, range(5, N)),
        shuffled=oof_of(2).sample(frac=1, random_state=0),
        other=oof_of(5, seed=9),
        none=oof_of(6, 1).replace({"image_id": r"^ID"}, {"image_id": "no"}, regex=True),
    )
    path = write_served(folder, "h5")
    return client_of(path, sweeps=[first, second])


def table(client, a: str, b: str, what: str) -> pd.DataFrame:
    (w, r), (w2, r2) = a.split("/"), b.split("/")
    found = client.get(f"/v1/sweeps/{w}/runs/{r}/beside/{w2}/{r2}/{what}.json").json()
    return pd.DataFrame(found["rows"], columns=found["columns"])


def test_scores_of_both_and_their_difference(client):
    found = table(client, "first/one", "first/two", "scores")
    assert (found["n_images"] == N).all() and (found["n_sites"] == 8).all()
    assert list(found["score"][:3]) == ["contest", "r2", "rmse"]
    assert found["target"][1] == CSIRO.foremost.name
    for side, run in (("a", 1), ("b", 2)):
        repeats = [rows for _, rows in oof_of(run).groupby("repeat")]
        contest = [weighted_r2(rows[TRUE].to_numpy(), rows[NAMES].to_numpy()) for rows in repeats]
        assert found[side][0] == pytest.approx(np.mean(contest))
        for name in NAMES:
            own = found[found["target"] == name].set_index("score")[side]
            pairs = [(rows[f"true_{name}"], rows[name]) for rows in repeats]
            assert own["r2"] == pytest.approx(np.mean([r2_score(*pair) for pair in pairs]))
            squares = [mean_squared_error(*pair) for pair in pairs]
            assert own["rmse"] == pytest.approx(np.mean(np.sqrt(squares)))
    assert np.allclose(found["difference"], found["b"] - found["a"])
    assert ((found["low"] <= found["difference"]) & (found["difference"] <= found["high"])).all()


def test_the_other_way_round_all_signs_are_turned(client):
    found = table(client, "first/one", "first/two", "scores")
    turned = table(client, "first/two", "first/one", "scores")
    assert np.allclose(turned["difference"], -found["difference"])
    assert np.allclose(turned["low"], -found["high"], rtol=0.05)
    assert (turned["apart"] == found["apart"]).all()


def test_of_two_sweeps_what_both_predicted_counts(client):
    found = table(client, "first/one", "second/three", "scores")
    assert (found["n_images"] == N - 5).all() and (found["n_repeats"] == 1).all()
    a, b = oof_of(1, 1).iloc[5:], oof_of(3, 1, range(5, N))
    expected = [weighted_r2(rows[TRUE].to_numpy(), rows[NAMES].to_numpy()) for rows in (a, b)]
    # of run one the first repeat alone: the other has no second
    assert found[["a", "b"]].iloc[0].tolist() == pytest.approx(expected)


def test_rows_of_a_table_may_stand_in_any_order(client):
    for what in ("scores", "photographs"):
        found = table(client, "first/one", "second/shuffled", what)
        pd.testing.assert_frame_equal(found, table(client, "first/one", "first/two", what))


def test_errors_of_each_photograph_are_averaged_over_repeats(client):
    found = table(client, "first/one", "first/blend", "photographs")
    assert len(found) == N * len(NAMES)
    for side, run in (("a", 1), ("b", 4)):
        means = oof_of(run).groupby("image_id")[NAMES].mean()
        told = found.pivot(index="image_id", columns="target", values=f"predicted_{side}")
        assert np.allclose(told[NAMES], means.loc[told.index])
        assert np.allclose(found[f"error_{side}"], found[f"predicted_{side}"] - found["true"])


def test_a_blend_has_predictions_as_a_run_has(client):
    about = client.get("/v1/sweeps/first").json()
    assert about["blends"] == [{"name": "blend", "score": None}]
    assert client.get("/v1/sweeps/first/runs/blend/oof.json").json()["total"] == 2 * N * len(NAMES)


@pytest.mark.parametrize(
    ("b", "told"),
    [
        ("second/other", "learned from other labels"),
        ("second/none", "no photograph and target in common"),
        ("second/nix", "no run 'nix'"),
        ("nix/one", "no sweep 'nix'"),
    ],
)
def test_what_cannot_be_compared_is_refused(client, b, told):
    w2, r2 = b.split("/")
    answer = client.get(f"/v1/sweeps/first/runs/one/beside/{w2}/{r2}/scores.json")
    assert error_of(answer) == (404, "not-found")
    assert told in answer.json()["error"]["message"]


def test_it_is_kept_where_both_are_of_one_sweep(client):
    state = client.get("/v1/sweeps/first").json()["state"]
    start = "/v1/sweeps/first/runs/one/beside"
    kept = client.get(f"{start}/first/two/scores.json?of={state}")
    assert "immutable" in kept.headers["Cache-Control"]
    other = client.get(f"{start}/second/three/scores.json?of={state}")
    assert other.headers["Cache-Control"] == "private, no-cache"


def test_of_one_target_some_are_drawn_and_figures_are_of_all(client):
    """What the page asks for of a million photographs."""
    url, target = "/v1/sweeps/first/runs/one/beside/first/two", NAMES[4]
    both = table(client, "first/one", "first/two", "photographs")
    some = client.get(f"{url}/photographs.json?every=9&columns=image_id,target").json()
    assert some["rows"] == [[f"ID{n}", name] for n in range(0, N, 9) for name in NAMES]
    both = both[both["target"] == target].reset_index(drop=True)
    gain = both["error_a"].abs() - both["error_b"].abs()

    drawn = client.get(f"{url}/photographs.json?target={target}&every=9").json()
    assert drawn["rows"] == both[::9].values.tolist()
    apart = client.get(f"{url}/photographs.json?target={target}&apart=1&limit=7").json()
    furthest = gain.abs().sort_values(ascending=False).index
    assert apart["rows"] == both.loc[furthest[:7]].values.tolist() and apart["total"] == N
    assert client.get(f"{url}/errors.json").json() == {"targets": NAMES}
    assert client.get(f"{url}/errors.json?target={target}").json() == {
        "targets": NAMES,
        "n": N,
        "nearer": (gain > 0).sum(),
        "most": pytest.approx(both[["error_a", "error_b"]].abs().to_numpy().max()),
    }
    assert client.get(f"{url}/photographs.json?apart=1").status_code == 400


@pytest.mark.parametrize("fold", [None, "2", "1.2"])
def test_figures_of_a_run_are_those_of_all_its_rows(client, fold):
    """Of several repeats averages are of no fold, and 1.2 is fold 2 of repeat 1."""
    url = "/v1/sweeps/first/runs/one"
    rows = oof_of(1)
    folds = [f"{repeat}.{fold}" for repeat in range(2) for fold in range(4)]
    if fold == "1.2":
        rows = rows[(rows["repeat"] == 1) & (rows["fold"] == 2)]
    query = {} if fold is None else {"fold": fold}
    found = client.get(f"{url}/errors.json", params=query).json()
    if fold == "2":  # of both repeats
        rows = rows[rows["fold"] == 2]
    assert fold is not None or found["folds"] == folds
    for each in found["targets"]:
        true, predicted = rows[f"true_{each['target']}"], rows[each["target"]]
        assert each["n"] == len(rows)
        assert each["rmse"] == pytest.approx(np.sqrt(mean_squared_error(true, predicted)))
        assert each["least"] == pytest.approx(min(true.min(), predicted.min()))
        assert each["most"] == pytest.approx(max(true.max(), predicted.max()))
    oof = client.get(f"{url}/oof.json", params=query | {"every": 4, "columns": "image_id"}).json()
    ids = [id for id in rows["image_id"][::4] for _ in NAMES]
    assert [row[0] for row in oof["rows"]] == ids
    averaged = client.get(f"{url}/errors.json?averaged=1").json()
    assert averaged["folds"] == [] and averaged["targets"][0]["n"] == N
