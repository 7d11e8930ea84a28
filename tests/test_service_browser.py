"""The page in a browser, end to end: a real server, Chromium, and what a person does there.

From Debian: chromium, npm; from npm: what browser/package-lock.json pins. What is done is in
browser/claims.mjs.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec
from new_photographs import IDS, write_predictions
from PIL import Image
from sweeps import config

from featurestore import FeatureStore, open_writer
from featurestore.disk.durable import locked
from featurestore.disk.picture_names import picture_names
from service.page_files import PAGE, joined
from trainer.loop.sweep import run_sweep

BROWSER = Path(__file__).parent / "browser"
MISSING = [tool for tool in ("npm", "node", "chromium") if not shutil.which(tool)]
NEEDED = f"{', '.join(MISSING)} not installed: apt-get install npm chromium"
pytestmark = [pytest.mark.system, pytest.mark.skipif(bool(MISSING), reason=NEEDED)]
BRIGHTEST = [253, 231, 37]  # viridis' end: a cosine of 1
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A store whose catalog has markup where names should be."""
    path = tmp_path_factory.mktemp("hostile") / "hostile.h5"
    frame = tiny_frame().assign(
        image_id=[f"{MARKUP}{i}" for i in range(5)],
        State=MARKUP,
        Sampling_Date="2015/9/4",
        Notes="",
    )
    spec = tiny_spec(frame)
    with open_writer(path, spec, frame) as writer:
        for image in range(5):
            writer.put(image, tiny_rows(spec, image))
    return path


@contextmanager
def serving(*words: object) -> Iterator[str]:
    """Where `biomass store serve` of these words listens, token and all."""
    command = [sys.executable, "-m", "cli", "store", "serve", *words, "--port", "0", "--json"]
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=BROWSER.parent.parent,
    ) as server:
        try:
            printed = json.loads(server.stdout.readline())
            yield f"{printed['url']}?token={printed['token']}"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def sweep(store, tmp_path_factory) -> Path:
    """A sweep of two points and two repeats."""
    folder = tmp_path_factory.mktemp("sweep")
    settings = config(folder, store, kind="[density]", repeats=2)
    return run_sweep(settings, folder / "runs", "cpu").path


@pytest.fixture(scope="module")
def url(store, hostile, sweep, tmp_path_factory) -> str:
    """Where a server of two small stores, and a sweep over the first and its copy `again`, and of
    predictions of three new photographs, listens."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(sweep, folder / "again")
    fix_weight_decay(folder / "again")
    there = write_predictions(folder / "new")
    for image_id in IDS[:2]:
        Image.new("RGB", (60, 90), "red").save(there["explain"] / picture_names(IDS)[image_id])
    more = [word for name, path in there.items() for word in (f"--{name}", path)]
    with serving(store, hostile, "--sweep", sweep, "--sweep", folder / "again", *more) as url:
        yield url


def fix_weight_decay(sweep: Path) -> None:
    """As if its grid had no weight decay, one of .02 stood in each run's config, and the first run
    were of a kind that ignores lr."""
    plan = json.loads((sweep / "sweep.json").read_text())
    for settings in (plan["axes"], *plan["runs"].values()):
        del settings["optimization.weight_decay"]
    (sweep / "sweep.json").write_text(json.dumps(plan))
    summary = pd.read_csv(sweep / "summary.csv")
    summary.loc[summary["name"].str.startswith("001"), "optimization.lr"] = float("nan")
    summary.to_csv(sweep / "summary.csv", index=False)
    for file in sweep.glob("*/config.yaml"):
        text = file.read_text()
        file.write_text(text.replace("weight_decay: 0.01", "weight_decay: 0.02"))


@pytest.fixture(scope="module")
def see(url, pytestconfig):
    """A function (claim, word, url) -> what browser/claims.mjs saw, once nothing was amiss on the
    console or asked for elsewhere."""
    folder = pytestconfig.cache.mkdir("browser")
    done, lock = (
        folder / "node_modules/.package-lock.json",
        (BROWSER / "package-lock.json").read_bytes(),
    )
    is_installed = done.exists() and (folder / "package-lock.json").read_bytes() == lock
    shutil.copytree(BROWSER, folder, dirs_exist_ok=True)
    if not is_installed:
        install = ["npm", "ci", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(install, check=True, capture_output=True)

    def run(claim: str, word: str = "", at: str = url) -> dict:
        ran = subprocess.run(
            ["node", folder / "claims.mjs", claim, at, word],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        seen = json.loads(ran.stdout)
        assert seen.pop("noise") == []
        return seen

    return run


def test_a_click_on_a_point_opens_the_photograph_it_showed(see, store):
    seen = see("point")
    assert seen["hovered"] == seen["opened"] and seen["opened"] in set(
        FeatureStore.open(store).catalog["image_id"]
    )


def test_a_click_on_a_patch_draws_what_resembles_it(see):
    seen = see("patch")
    (row, column), (rows, columns) = seen["patch"], seen["size"]
    assert (rows, columns, row, column) == (2, 6, 0, 3)
    assert seen["at"] == BRIGHTEST and seen["colours"] > 5
    assert seen["others"] == 8  # the nearest photographs


def test_a_bookmark_restores_the_view(see):
    seen = see("bookmark")
    assert seen["chosen"][0] == seen["chosen"][1] and "error:Dry_Dead_g" in seen["chosen"][0]
    assert seen["same"]


def test_back_from_a_photograph_is_the_same_map(see):
    assert see("back") == {"title": "Map", "same": True}


def test_a_point_of_a_curve_leads_to_the_photographs_its_fold_held_out(see, store):
    seen = see("curve")
    repeat, fold = seen["fold"].split(".")
    name = f"repeat {repeat}, fold {fold}"
    assert (
        name in seen["said"]
        and name in seen["told"]
        and seen["opened"] in set(FeatureStore.open(store).catalog["image_id"])
    )
    assert seen["back"] == seen["left"] > 0  # back is where one was


def test_a_state_shows_its_photographs_alone_and_a_bookmark_keeps_it(see):
    seen = see("state")
    (pressed, told), none = seen["pressed"], seen["none"]
    assert (
        len(pressed) == 1
        and f"photographs of State {pressed[0]} alone" in told
        and seen["again"] == seen["pressed"]
    )
    assert none[0] == [] and "mean" in none[1]


def test_the_keyboard_alone_reaches_a_photograph(see):
    seen = see("keyboard")
    assert seen["said"].startswith(f"{seen['opened']}, ")


def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_window(see):
    assert see("axe")["found"] == []


def test_the_weightiest_target_and_the_score_stand_first_at_every_width(see):
    seen = see("first")
    assert all(heads[:3] == ["Run", "Score", "R² Dry Total"] for heads in seen.values())
    assert list(seen) == ["320", "390", "1280"]


def test_columns_that_were_chosen_and_sorted_are_in_the_address(see):
    for seen in see("columns")["found"]:
        whole, chosen = seen["whole"], seen["chosen"]
        others = ["Score by part", "Other scores"]
        assert whole["groups"] == ["Out of fold", "Settings", "R² by target", *others]
        assert chosen["groups"] == ["Out of fold", "Settings", *others]
        assert len(whole["heads"]) - len(chosen["heads"]) == 5
        assert chosen["sorted"] == ["lr"]
        assert chosen["first"] != whole["first"]
        assert chosen["open"] and seen["again"] == chosen
        assert seen["axe"] == [] and seen["beyond"] <= 0


def test_a_number_that_is_rounded_to_0_has_no_sign():
    asked = "$dom.fixed(-0.04, 1), $dom.fixed(-0.06, 1), " + ", ".join(
        f"$dom.signed('Dry_Dead_g', {value})" for value in (-0.04, 0.04, -0.06, 0.06)
    )
    code = f"{joined(PAGE / 'dom.js')} console.log([{asked}].join(' '))"
    said = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["0.0", "−0.1", "0.0", "0.0", "−0.1", "+0.1"]


def test_settings_that_a_run_ignores_and_the_mean_s_distance_are_dashes(see):
    board = see("dashes")["board"]
    first, second = sorted(name for name in board if name.startswith("00"))
    assert board[first]["lr"] == "–" and float(board[second]["lr"]) > 0
    assert board["mean (baseline)"]["vs best [95 %]"] == "–"


def test_a_spread_without_an_interval_is_told_once(see, tmp_path):
    path = write_predictions(tmp_path)["predictions"]
    table = pd.read_csv(path)
    ends = [name for name in table if name.endswith(("_low", "_high"))]
    table.drop(columns=ends).to_csv(path, index=False)
    with serving("--predictions", path) as url:
        seen = see("spread", IDS[0], url)
    assert seen["told"] == "Predictions; sd is the spread over heads and views"
    assert seen["heads"] == ["Target", "Predicted", ""] and "50.0 g ± 1.0" in seen["first"]


def test_one_filter_holds_on_every_page_and_in_the_address(see, store):
    state = FeatureStore.open(store).catalog.set_index("image_id")["State"]
    for seen in see("filter")["found"]:
        assert set(seen["ofState"]) == set(state[state == "Tas"].index)
        assert seen["focus"] == "in.State"
        assert set(seen["shown"]) < set(seen["ofState"]) and len(seen["ofState"]) < seen["whole"]
        n = len(seen["shown"])
        words = "State Tas · too high, off by 1.5 or more"
        assert seen["words"] == seen["reloaded"] == words
        assert all(each["words"] == words for each in seen["told"].values())
        assert f"{n} photographs of 30" in seen["told"]["Map"]["main"]
        assert f"{n} photographs, by how far" in seen["told"]["Sweeps"]["main"]
        assert f"the photographs of {words} alone" in seen["told"]["Overview"]["main"]
        assert seen["kept"] == [] and seen["axe"] == [] and seen["wider"] <= 0


def test_one_walks_from_error_to_error_and_back_to_where_one_was(see):
    for seen in see("walk")["found"]:
        first, second, *_ = seen["list"]
        assert (seen["first"], seen["second"]) == (first, second)
        assert f"1 of {len(seen['list'])}" in seen["place"] and seen["focus"] == "next"
        assert seen["state"]["in.State"] == "Tas" and seen["state"]["fold"] == seen["back"]["fold"]
        assert seen["back"]["id"] == second and seen["back"]["seen"] and seen["back"]["focused"]
        assert seen["back"]["list"] == seen["list"] and seen["back"]["run"] == seen["run"]
        assert seen["axe"] == [] and seen["wider"] <= 0


def test_a_list_goes_on_by_keyboard_and_stays_as_long_as_it_was(see):
    seen = see("more")
    assert len(seen["list"]) == 30 and seen["begun"] == seen["list"][12]
    assert seen["right"] == seen["list"][13] and seen["end"] == seen["opened"] == seen["list"][-1]
    assert seen["below"] in seen["list"][2:12] and seen["again"] == seen["list"]


def test_next_goes_in_the_order_of_what_two_runs_differ_on(see):
    seen = see("among")
    assert [seen["opened"], seen["next"]] == seen["list"][1:3]
    assert seen["back"] == "Compare" and seen["marked"] == seen["next"]


def test_a_lasso_on_the_map_gives_the_photographs_within(see, store):
    every = set(FeatureStore.open(store).catalog["image_id"])
    for seen in see("lasso")["found"]:
        assert seen["lasso"].startswith("pca,hflip,") and seen["words"] == "within a lasso"
        assert 0 < len(seen["roped"]) < len(every) and set(seen["roped"]) < every
        assert seen["at"].split(",")[0] in seen["inSight"] and set(seen["inSight"]) < every
        assert seen["wider"] <= 0


def test_predictions_of_new_photographs_show_intervals_maps_and_errors_of_ridge(see):
    for seen in see("predictions")["found"]:
        assert seen["list"] == [IDS[1], IDS[2], IDS[0]]  # the least certain first
        assert seen["words"] == "51.0 g [42.0, 60.0]" and seen["pictures"] == 3
        assert seen["heads"][:3] == ["Photograph", "predicted", "interval"]
        assert seen["group"] == "Dry Total, g" and seen["interval"] == "42.0 to 60.0"
        assert (seen["opened"], seen["next"]) == (IDS[1], IDS[2])
        assert seen["maps"] == [True, False] and "has no picture" in seen["none"]
        assert seen["back"] == IDS[2] and seen["ridge"].startswith("ridge")
        assert "Worst photographs" in seen["errors"]
        assert seen["axe"] == [] and seen["wider"] <= 0


def test_charts_are_saved_as_png_and_svg(see):
    seen = see("saved")
    starts = {(name.split()[-1], each["start"]) for name, each in seen.items()}
    assert len(seen) == 10 and starts == {("PNG", "PNG"), ("SVG", "svg")}
    chart, curves = seen["map SVG"], seen["curves SVG"]
    assert chart["file"] == "map-of-photographs-by-class-token.svg"
    assert chart["paths"] >= 30 + 3  # a point each, and the legend's
    assert {"State", "Tas (12)", "Vic (9)", "NSW (9)"} <= set(chart["words"])
    assert "epoch" in curves["words"] and curves["paths"] > 7  # six folds and all together
    assert "epoch" in seen["curves of two SVG"]["words"]
    assert "error of A, g" in seen["errors of two SVG"]["words"]
    for name in ("curves of two SVG", "errors of two SVG"):
        named = [word for word in seen[name]["words"] if " of " in word]
        assert [word[:2] for word in named if word[:2] in ("A ", "B ")] == ["A ", "B "]
    title = seen["map of two SVG"]["words"][0]
    assert title.startswith("Map of photographs by class token · A: ") and ", B: " in title


def test_scores_that_begin_below_0_are_drawn_and_have_no_logarithmic_axis(see):
    seen = see("below")
    loss, score = seen["told"]
    assert loss.endswith(", logarithmic") and "logarithmic" not in score
    assert len(seen["drawn"]) == 4
    assert not any("NaN" in path or "Infinity" in path for path in seen["drawn"])


def test_a_comparison_that_fails_for_a_target_says_so_and_goes_on(see):
    assert see("failing") == {"busy": 0, "alerts": 0}


def test_a_comparison_says_how_many_photographs_it_leaves_out(see):
    none, some = see("listed")["told"]
    assert none == 0 and some.startswith("30 of 12,345 photographs are listed")


@pytest.mark.skipif(find_spec("umap") is not None, reason="umap-learn is installed")
def test_a_map_that_cannot_be_drawn_is_not_offered_and_shows_no_points(see):
    seen = see("methods")
    assert seen["offered"] == ["PCA", "t-SNE"]
    assert "umap-learn" in seen["told"] and seen["isBlank"]
    assert seen["again"] and seen["cleared"]


def test_what_the_server_refuses_is_told_in_its_words(see):
    seen = see("refused", "nobody")
    assert "nobody" in seen["told"] and "among" not in seen["around"]


def test_two_runs_are_compared_swapped_bookmarked_and_opened(see, store):
    seen = see("compare")
    (a, b), ids = seen["address"], set(FeatureStore.open(store).catalog["image_id"])
    assert all(each.split("/")[1] in seen["first"] for each in (a, b))
    assert a.split("/")[0] != b.split("/")[0]  # of the two sweeps that are served
    assert seen["swapped"] != seen["first"] and seen["again"] == seen["swapped"]
    assert seen["beyond"] <= 0 and seen["curves"] == 2
    settings = {name: set(values) for name, *values in seen["settings"]}
    assert settings["optimization.weight_decay"] == {"0.01", "0.02"}  # a grid's, and a fixed one
    assert "–" not in set().union(*settings.values())
    assert "Choose a trained head as run A or B to see its curves." in seen["curveless"]
    assert seen["worse"] in ids and seen["said"].startswith(f"{seen['opened']}, A ")


def test_the_map_shows_which_of_two_runs_is_nearer_and_a_bookmark_keeps_it(see):
    seen = see("nearer")
    assert seen["told"].startswith("Dry Dead: B is nearer to the truth by")
    assert (seen["others"], seen["changed"], seen["same"]) == (2, True, True)
    assert all(label == f"Run B of {sweep}" for label, sweep in seen["names"])
    assert len({sweep for _, sweep in seen["names"]}) == 2  # one of each sweep, one after another


def test_runs_whose_truths_differ_colour_no_map_however_large(see, store, sweep, tmp_path):
    other = Path(shutil.copytree(sweep, tmp_path / "other"))
    for path in other.glob("*/oof.csv"):
        table = pd.read_csv(path)
        table.assign(true_Dry_Dead_g=table["true_Dry_Dead_g"] + 1).to_csv(path, index=False)
    run = sorted(path.parent.name for path in sweep.glob("*/oof.csv"))[0]
    with serving(store, "--sweep", sweep, "--sweep", other) as url:
        query = f"page=map&colour=nearer:Dry_Dead_g&run={run}&b=other/{run}"
        (all_of_them, message), (some, same) = see("differing", query, url)["told"]
    assert (all_of_them, some) == (None, "11")
    assert message == same and "learned from other labels" in message


@pytest.fixture
def training(sweep, tmp_path) -> Path:
    """The sweep as it was after three epochs of four."""
    folder = tmp_path / "training"
    shutil.copytree(sweep, folder)
    (folder / "summary.json").unlink()
    for log in folder.glob("*/metrics.jsonl"):
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    return folder


def test_a_sweep_shows_its_epochs_by_itself_until_it_is_finished(see, store, sweep, training):
    runs = sorted(path.parent.name for path in training.glob("0*/metrics.jsonl"))
    log = sweep / runs[0] / "metrics.jsonl"
    line = log.read_text().splitlines(keepends=True)[3]
    for name in runs[1:]:
        shutil.copy(sweep / name / "metrics.jsonl", training / name / "metrics.jsonl")
    word = {
        "sweep": str(training),
        "log": str(training / runs[0] / "metrics.jsonl"),
        "line": line,
        "summary": (sweep / "summary.json").read_text(),
    }
    with serving(store, "--sweep", training) as at, locked(training / "pass0"):
        seen = see("live", json.dumps(word), at)
    assert seen["first"].startswith("Epoch 3 of 4 · running, last epoch ")
    assert seen["then"].startswith("Epoch 4 of 4 · running")
    assert float(seen["score"]) < 1
    assert seen["found"] == [] and seen["wider"] <= 0 and seen["progress"] == 0


def test_a_sweep_that_stopped_says_so_and_how_it_goes_on(see, store, training):
    with serving(store, "--sweep", training) as at:
        seen = see("stopped", "", at)
    assert seen["told"].startswith("Epoch 3 of 4 · stopped, last epoch ")
    assert "biomass train --resume" in seen["advice"]


def test_a_build_shows_how_many_are_sealed_by_itself(see, tmp_path):
    frame = tiny_frame()
    spec = tiny_spec(frame)
    path = tmp_path / "growing.h5"
    signals = [tmp_path / "seen", tmp_path / "seen2"]
    with ExitStack() as building:
        writer = building.enter_context(open_writer(path, spec, frame))
        writer.put(0, tiny_rows(spec, 0))
        writer.commit()
        with serving(path) as at, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(see, "building", str(signals[0]), at)
            wait_for(signals[0], asked)
            for image in (1, 2):
                writer.put(image, tiny_rows(spec, image))
            writer.commit()
            wait_for(signals[1], asked)
            building.close()
            seen = asked.result()
    assert "1 of 5 photographs sealed" in seen["first"] and seen["found"] == []
    assert seen["facts"].startswith("3 of 5 sealed")


def wait_for(signal: Path, asked: Future) -> None:
    """Until a claim made the file; or until it failed, which its result tells."""
    while not signal.exists() and not asked.done():
        time.sleep(0.05)


UNKNOWN = {
    "page=nix": "no page nix here",
    "store=nix": "no store nix here",
    "sweep=nix": "no sweep nix here",
    "target=nix": "no target nix here",
    "state=nix": "in.State: no photograph has 'nix'",  # of before
    "in.Moon=full": "no such column",
    "page=sweeps&run=nix": "no run nix here",
    "page=sweeps&fold=7.7": "no fold 7.7 here",
    "page=sweeps&target=nix": "no target nix here",
    "page=photograph&image=nix": "no image 'nix'",
    "page=photograph&view=nix": "no view nix here",
    "page=photograph&layer=nix": "no layer nix here",
    "page=photograph&patch=77,0": "no patch 77,0 here",
    "page=sweeps&board.sort=nix": "no board.sort nix here",
    "page=sweeps&board.columns=nix": "no board.columns nix here",
    "page=predictions&order=nix": "no order nix here",
    "page=prediction&image=nix": "no photograph 'nix'",
    "page=photographs&order=nix": "no order nix here",
    "page=map&method=nix": "no method nix here",
    "page=compare&a=nix": "no sweep nix here",
    "page=compare&target=nix": "no target nix here",
    "page=map&colour=nix": "no colour nix here",
    "page=map&colour=error:nix": "no colour error:nix here",
    "page=map&colour=nearer:nix": "no colour nearer:nix here",
    "page=map&colour=nearer:Dry_Dead_g&b=nix": "no sweep nix here",
    "page=map&colour=error:Dry_Dead_g&run=nix": "no run nix here",
    "page=map&view=nix": "no view nix here",
}


def test_an_unknown_address_is_an_error_and_never_another_page(see):
    seen = see("unknown", " ".join(UNKNOWN))
    for (query, expected), told in zip(UNKNOWN.items(), seen["told"], strict=True):
        assert len(told) == 1 and expected in told[0], query
    assert seen["alerts"] == 0 and seen["query"] == "?page=map"


def test_where_two_sweeps_are_served_tables_say_which_a_run_is_of(see):
    seen = see("sweeps")
    first, *others = seen["predictions"]
    assert set(others) == {first, "again"}
    assert seen["board"].startswith(f"Runs of {first}: out-of-fold")
    assert seen["run"] == f" of {first}" and seen["map"] == 1


def test_a_blend_shows_its_predictions_and_no_curves(see):
    assert see("blend")["parts"][:2] == ["Out of fold", "Worst photographs"]


def test_a_colour_that_nothing_tells_says_so_and_has_no_legend(see, hostile):
    seen = see("gray", hostile.stem)
    assert "The catalog tells no Notes." in seen["told"] and seen["ramps"] == 0


def test_an_old_bookmark_asks_for_the_token_and_opens_with_it(see):
    seen = see("token")
    assert "address" in seen["stale"] and seen["wrong"] == "That is not this server's token."
    assert seen["found"] == [] and seen["beyond"] <= 0
    assert seen["title"] == "Map"
    assert seen["query"] == {"page": "map", "colour": "Dry_Dead_g"}


def test_texts_of_a_catalog_stay_texts(see, hostile):
    assert see("text", hostile.stem)["found"] == [[0, True]] * 3
