"""Labels that cannot be learned as they are, are told when a store is built, and refused where
heads would learn nonsense."""

import shutil

import numpy as np
import pandas as pd
import pytest
from commands import TINY, biomass
from sweeps import config, write_store

from featurestore.errors import InputError
from featurestore.photos.catalog import read_catalog
from featurestore.photos.labels import label_remarks, unbalanced
from trainer.loop.prepare import prepare_sweep

pytestmark = pytest.mark.filterwarnings("default")  # what is warned of is read from stderr
MASSES = {
    "Dry_Green_g": 10.0,
    "Dry_Dead_g": 5.0,
    "Dry_Clover_g": 2.0,
    "GDM_g": 12.0,
    "Dry_Total_g": 17.0,
}


def table(**changes) -> pd.DataFrame:
    """Two images, the second of which has other masses."""
    return pd.DataFrame([{"image_id": "A", **MASSES}, {"image_id": "B", **MASSES, **changes}])


def labelled(pasture, folder, **changes):
    """The pasture's folder with other masses for its first image; a wide CSV."""
    data = shutil.copytree(pasture, folder / "data")
    frame = read_catalog(data / "train.csv")
    for name, value in changes.items():
        frame[name] = frame[name].astype(object)
        frame.loc[0, name] = value
    frame.to_csv(data / "train.csv", index=False)
    return data, frame["image_id"][0]


@pytest.mark.parametrize(
    "total, grams, share, allowed",
    [
        (17.49, 0.5, 0.01, True),
        (17.52, 0.5, 0.01, False),
        (16.52, 0.5, 0.01, True),
        (16.48, 0.5, 0.01, False),
        (17.52, 0.5, 0.1, True),
        (17.1, 0.0, 0.01, True),
        (17.2, 0.0, 0.01, False),
        (17.0, 0.0, 0.0, True),
    ],
)
def test_K3_grams_or_share_whichever_is_more(total, grams, share, allowed):
    found = unbalanced(table(Dry_Total_g=total), grams, share)
    assert [str(each) for each in found] == (
        [] if allowed else [f"B: Dry_Total_g is {total:g}, GDM_g + Dry_Dead_g is 17"]
    )


def test_K3_both_sums_are_checked_and_what_is_unknown_is_not():
    assert [each.whole for each in unbalanced(table(Dry_Clover_g=0.0, Dry_Total_g=28.0))] == [
        "GDM_g",
        "Dry_Total_g",
    ]
    assert not unbalanced(table(Dry_Total_g=np.nan)) and not unbalanced(
        table().drop(columns="GDM_g")
    )


def test_K3_an_image_that_is_a_third_of_a_gram_short_is_told_and_accepted():
    (remark,) = label_remarks(table(GDM_g=11.69, Dry_Total_g=16.69))
    assert "B: GDM_g is 11.69, Dry_Green_g + Dry_Clover_g is 12" in remark
    assert (
        "Dry_Clover_g is predicted as GDM_g - Dry_Green_g" in remark and "Dry_Dead_g" not in remark
    )
    assert "train accepts them" in remark


def test_K3_build_lists_the_rows_and_the_constraint_that_acts(pasture, tmp_path):
    data, image_id = labelled(pasture, tmp_path, Dry_Total_g=1000)
    said = biomass(
        "store", "build", "--data", data, "--out", tmp_path / "f.h5", "--views", "1", *TINY
    ).stderr
    assert f"\n  {image_id}: Dry_Total_g is 1000, GDM_g + Dry_Dead_g is" in said
    assert (
        "Dry_Dead_g is predicted as Dry_Total_g - GDM_g" in said
        and "train refuses 1 of them" in said
    )
    planned = biomass(
        "store",
        "build",
        "--data",
        data,
        "--out",
        tmp_path / "g.h5",
        "--views",
        "1",
        *TINY,
        "--plan",
    ).stderr
    assert "Dry_Total_g is 1000" in planned


def unbalanced_store(folder):
    """A store whose first Total is 9 g more than its parts."""

    def heavier(frame):
        return frame.assign(Dry_Total_g=frame["Dry_Total_g"] + np.eye(1, len(frame))[0] * 9)

    return write_store(folder / "f.h5", labels=heavier)


def test_K3_train_refuses_what_is_beyond_the_tolerance_before_it_leaves_anything(tmp_path):
    config(tmp_path, unbalanced_store(tmp_path))
    arguments = [
        "train",
        "--config",
        tmp_path / "sweep.yaml",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    ]
    said = biomass(*arguments, code=3).stderr
    assert "dataset.balance_tolerance (0.5 g or 0.01" in said and "\n  ID0: Dry_Total_g is" in said
    assert not (tmp_path / "runs").exists()
    text = (tmp_path / "sweep.yaml").read_text()
    (tmp_path / "sweep.yaml").write_text(
        text.replace("store: ", "balance_tolerance: {grams: 10}, store: ")
    )
    assert "heads" in biomass(*arguments, "--plan").stdout


def test_K3_a_sweep_begun_before_only_warns(tmp_path):
    wide = config(tmp_path, unbalanced_store(tmp_path), kind="ridge", lr="1e-2")
    with pytest.raises(InputError, match="1 mass is not the sum of its parts"):
        prepare_sweep(wide, "cpu")
    with pytest.warns(UserWarning, match="the sweep began with these labels"):
        prepare_sweep(wide, "cpu", begun=True)


def test_a_height_that_is_text_is_told_at_build_and_at_train(pasture, tmp_path):
    data, image_id = labelled(pasture, tmp_path, Height_Ave_cm="tall")
    said = biomass(
        "store", "build", "--data", data, "--out", tmp_path / "f.h5", "--views", "1", *TINY
    ).stderr
    line = (
        "Height_Ave_cm: 1 cell is no number, so heads do not learn these heights:\n  "
        f"{image_id}: 'tall'"
    )
    assert line in said
    config(tmp_path, tmp_path / "f.h5", n_folds=2)
    text = (
        (tmp_path / "sweep.yaml")
        .read_text()
        .replace("[0, 2]", "[0]")
        .replace("cv: {", "cv: {groups: date, ")
    )
    (tmp_path / "sweep.yaml").write_text(text)
    assert (
        line
        in biomass("train", "--config", tmp_path / "sweep.yaml", "--device", "cpu", "--plan").stderr
    )


def test_masses_that_are_all_zero_are_the_reason_for_a_missing_score(tmp_path):
    zero = dict.fromkeys(MASSES, 0.0)
    store = write_store(tmp_path / "f.h5", labels=lambda frame: frame.assign(**zero))
    config(tmp_path, store, kind="density", lr="1e-2", epochs=1)
    said = biomass(
        "train", "--config", tmp_path / "sweep.yaml", "--out", tmp_path / "runs", "--device", "cpu"
    ).stdout
    assert "there is no score: all masses are 0 g" in said
    assert list(label_remarks(table(**zero).iloc[1:])) == [
        "all masses are 0: there is nothing to learn, and no score"
    ]
