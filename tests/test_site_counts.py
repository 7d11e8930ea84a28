"""build, extend, import and train say how many sites there are, and which look alike; a resumed
sweep keeps its own."""

import json
import shutil

import pandas as pd
import pytest
from commands import TINY, biomass
from sweeps import config, write_store

from trainer.loop.prepare import prepare_sweep
from trainer.loop.sweep import run_sweep

BUILD = ["store", "build", *TINY, "--views", 1, "--tokens", "pooled"]


def photographs(pasture, folder, **columns):
    """The pasture's six photographs, other cells in its train.csv."""
    shutil.copytree(pasture / "train", folder / "train")
    wide = pd.read_csv(pasture / "train.csv").pivot_table(
        index="image_path", columns="target_name", values="target"
    )
    wide.reset_index().assign(**columns).to_csv(folder / "train.csv", index=False)
    return folder


def test_K2_build_says_how_many_sites_there_are(pasture, tmp_path):
    dates = ["2015-01-01 10:00", "1/1/2015", "2015/1/1", "2015-02-01", "20150201", "1 Feb 2015"]
    data = photographs(pasture, tmp_path, State=["NSW", "nsw"] * 3, Sampling_Date=dates)
    plan = biomass(*BUILD, "--data", data, "--out", tmp_path / "f.h5", "--plan")
    assert "6 images of 2 sites, 6 to build" in plan.stdout
    assert biomass(*BUILD, "--data", data, "--out", tmp_path / "f.h5").stdout.endswith(
        "; 2 sites\n"
    )
    again = biomass("store", "extend", tmp_path / "f.h5", tmp_path / "g.h5", "--reserve", 1)
    assert again.stdout.endswith("; 2 sites\n")


@pytest.mark.filterwarnings("default")
def test_K2_build_warns_of_dates_that_train_refuses(pasture, tmp_path):
    dates = ["03/04/2015", "2015-04-03", "2015/5/5", "2015/5/5", "2015/5/5", "2015/5/5"]
    data = photographs(pasture, tmp_path, State="Tas", Sampling_Date=dates)
    built = biomass(*BUILD, "--data", data, "--out", tmp_path / "f.h5")
    assert (
        f"warning: {data / 'train.csv'}: Sampling_Date: day and month of these dates could be "
        "swapped" in built.stderr
    )
    assert "sites" not in built.stdout


@pytest.mark.filterwarnings("default")
def test_K2_train_refuses_swapped_dates_and_relabelled_it_goes(tmp_path):
    swapped = ["03/04/2015", "2015-04-03"] + ["2015/5/5"] * 10
    config(
        tmp_path,
        write_store(
            tmp_path / "f.h5", n=12, labels=lambda frame: frame.assign(Sampling_Date=swapped)
        ),
    )
    refused = biomass(
        "train", "--config", tmp_path / "sweep.yaml", "--out", tmp_path / "runs", code=3
    )
    assert (
        "could be swapped" in refused.stderr
        and "03/04/2015 (ID0) beside 2015/4/3" in refused.stderr
    )
    assert not (tmp_path / "runs").exists()


def test_K2_train_warns_of_sites_that_look_alike(tmp_path):
    store = write_store(
        tmp_path / "f.h5",
        labels=lambda frame: frame.assign(State=["Tas", "Tasmania"] * 15, Sampling_Date="May"),
    )
    with pytest.warns(
        UserWarning, match=r"f.h5: sites that look alike \(1 pair\)(?s:.*)Tas_May \| Tasmania_May"
    ):
        prepare_sweep(config(tmp_path, store, n_folds=2), "cpu")


def test_train_says_how_many_sites_and_regroupings(tmp_path, store):
    result = run_sweep(
        config(tmp_path, store, kind="[ridge]", repeats=3), tmp_path / "runs", "cpu", False
    )
    assert "30 images of 10 sites in 3 folds; 3 repeats, all different" in result.notes
    plan = biomass("train", "--config", tmp_path / "sweep.yaml", "--plan", "--device", "cpu").stdout
    assert plan.startswith("folds    30 images of 10 sites in 3 folds; 3 repeats, all different\n")


def test_the_interval_over_repeats_says_what_it_covers(tmp_path, store):
    """Student's t by hand: 4.303 for three repeats."""
    result = run_sweep(
        config(tmp_path, store, kind="[ridge]", repeats=3), tmp_path / "runs", "cpu", False
    )
    scores = pd.Series(
        json.loads((result.path / "summary.json").read_text())["points"][0]["last"]["per_repeat_R"]
    )
    mean, half = scores.mean(), 4.3027 * scores.std() / 3**0.5
    interval = f"95 % interval {mean - half:.4f} to {mean + half:.4f}"
    assert (
        f"best point: the mean over 3 different regroupings is {mean:.4f}, {interval}; it covers "
        "the luck of grouping these sites, not other sites: for those see low and high"
    ) in result.notes


def test_repeats_of_one_partition_give_no_interval(tmp_path):
    two = write_store(
        tmp_path / "f.h5",
        labels=lambda frame: frame.assign(State=["Tas", "Vic"] * 15, Sampling_Date="2015/1/1"),
    )
    result = run_sweep(
        config(tmp_path, two, kind="[ridge]", repeats=3, n_folds=2), tmp_path / "runs", "cpu", False
    )
    assert "30 images of 2 sites in 2 folds; 3 repeats, only 1 of them different" in result.notes
    assert not any("interval" in note and "regroupings" in note for note in result.notes)


def test_K2_a_sweep_begun_before_keeps_its_folds_and_site_names(tmp_path, store):
    """As an earlier version left them: other folds, a visit in two spellings."""
    result = run_sweep(config(tmp_path, store, kind="[ridge]"), tmp_path / "runs", "cpu", False)
    folds = pd.read_csv(result.path / "folds.csv")
    folds["site"] = folds["group"] = [f"{site} 10:0{i % 2}" for i, site in enumerate(folds["site"])]
    folds["r00"] = folds["group"].rank(method="dense").astype(int) % 3
    folds.to_csv(result.path / "folds.csv", index=False)
    (result.path / "summary.json").unlink()
    plan = json.loads((result.path / "sweep.json").read_text())
    (result.path / "sweep.json").write_text(
        json.dumps({key: plan[key] for key in plan if key not in ("folds", "labels")})
    )
    biomass("train", "--resume", result.path)
    oof = (
        pd.read_csv(next(result.path.glob("0*/oof.csv")))
        .drop_duplicates("image_id")
        .set_index("image_id")
    )
    assert (
        oof.loc[folds["image_id"], ["site", "fold"]].to_numpy() == folds[["site", "r00"]].to_numpy()
    ).all()
