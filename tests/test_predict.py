"""Photographs to grams: the same tokens as the store's, test.csv's rows, a file that is whole or
not there."""

import os
import resource
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import TINY, biomass
from plain_heads import plain_masses
from preset import TARGETS, csiro

from featurestore import FeatureStore
from featurestore.checks import FAIL
from featurestore.errors import InputError, UsageError
from featurestore.photos.catalog import target_rows
from featurestore.photos.data_folder import check_data
from featurestore.photos.decode import decode
from predictor.checks import check_file_name
from predictor.members.submission import check_targets, submission, wide_path, write_predictions
from predictor.predictor import Predictor, predict
from trainer.loop.chosen import best_run
from trainer.loop.runs import RunFolder
from trainer.score.constraints import constrained


def predictors(sweep):
    return [Predictor.load(run, device="cpu") for run in sorted(sweep.glob("00*"))]


@pytest.mark.parametrize(
    "out, wide",
    [
        ("submission.csv", "predictions.csv"),
        ("b.csv", "b.predictions.csv"),
        ("of/a.b.csv", "of/a.b.predictions.csv"),
    ],
)
def test_every_output_has_a_wide_table_of_its_own(out, wide):
    assert wide_path(Path(out)) == Path(wide)


def test_another_output_leaves_predictions_csv_alone(sweep, pasture, tmp_path):
    arguments = [
        "predict",
        "--data",
        pasture,
        "--sweep",
        sweep,
        "--device",
        "cpu",
        "--tta",
        1,
        "--out",
    ]
    (tmp_path / "predictions.csv").write_text("of another prediction")
    biomass(*arguments, tmp_path / "b.csv")
    assert (tmp_path / "predictions.csv").read_text() == "of another prediction"
    first = {name: (tmp_path / name).read_bytes() for name in ("b.csv", "b.predictions.csv")}
    (tmp_path / "b.predictions.csv").write_text("image_id,GDM_g_sd\n")  # an older one
    biomass(*arguments, tmp_path / "b.csv")
    assert {name: (tmp_path / name).read_bytes() for name in first} == first


def test_predict_writes_test_csvs_rows_and_a_wide_table(sweep, pasture, tmp_path):
    out = tmp_path / "submission.csv"
    result = biomass(
        "predict", "--tta", 4, "--data", pasture, "--sweep", sweep, "--out", out, "--device", "cpu"
    )
    assert str(out) in result.stdout and best_run(sweep).name in result.stderr
    rows = pd.read_csv(out)
    assert rows["sample_id"].tolist() == pd.read_csv(pasture / "test.csv")["sample_id"].tolist()
    wide = pd.read_csv(tmp_path / "predictions.csv")
    assert list(wide) == ["image_id", *TARGETS, *(f"{t}_sd" for t in TARGETS)]
    np.testing.assert_allclose(wide["Dry_Total_g"], wide["GDM_g"] + wide["Dry_Dead_g"], atol=2e-6)
    assert rows["target"].min() >= 0 and (wide[[f"{t}_sd" for t in TARGETS]].to_numpy() >= 0).all()
    assert not list(tmp_path.glob("*.partial"))


def test_tokens_of_predict_equal_the_stores_row(sweep, pasture, built):
    """Bit for bit, on one device, precision and versions."""
    store = FeatureStore.open(built)
    backbone = predictors(sweep)[0].backbone
    decoded = decode(pasture / store.catalog["path"][3], backbone.crop)
    for v, view in enumerate(store.spec.tokens.views):
        cls_TD, patches_TPD = backbone.tokens(
            decoded.tiles_THW3, store.catalog["image_id"][3], view
        )
        assert np.array_equal(cls_TD.numpy(), store.cls[3, v])
        assert np.array_equal(patches_TPD.numpy(), store.patches[3, v])


def test_heads_predict_what_plain_torch_modules_do(sweep, pasture, built):
    store = FeatureStore.open(built)
    decoded = decode(pasture / store.catalog["path"][3], predictors(sweep)[0].backbone.crop)
    for run in sorted(sweep.glob("00[1-4]*")):
        raw_HV5 = (
            Predictor.load(run, device="cpu")
            .raw(decoded, store.catalog["image_id"][3], store.spec.tokens.views)
            .values_HVK
        )
        for h, state in enumerate(RunFolder(run).heads("last").values()):
            for v in range(2):
                with torch.no_grad():
                    masses = plain_masses(
                        state,
                        torch.tensor(store.cls[3, v]).float(),
                        torch.tensor(store.patches[3, v]).float(),
                    )
                np.testing.assert_allclose(raw_HV5[h, v], masses.numpy(), rtol=1e-4)


def test_held_out_predictions_come_back_through_predict(sweep, pasture, built):
    """A training photograph, by the heads that held it out, gives its row of oof.csv: validation
    and prediction are one."""
    store = FeatureStore.open(built)
    for run in sorted(sweep.glob("00*")):
        row = pd.read_csv(run / "oof.csv").query("weights == 'last'").iloc[4]
        predictor = Predictor.load(run, folds=[int(row["fold"])], device="cpu")
        path = pasture / store["" + row["image_id"]].labels["path"]
        wide = predictor.predict({row["image_id"]: path}, tta=1, progress=False)
        np.testing.assert_allclose(
            wide[list(TARGETS)].iloc[0].to_numpy(float),
            row[list(TARGETS)].to_numpy(float),
            rtol=1e-4,
        )


def test_tta_is_the_mean_of_its_single_views(sweep, pasture):
    from featurestore.photos.views import tta_views
    from predictor.predictor import test_photographs as photographs_of

    predictor = predictors(sweep)[1]
    (image_id, path), *_ = photographs_of(pasture).items()
    decoded = decode(path, predictor.backbone.crop)
    together = predictor.raw(decoded, image_id, tta_views(8)).values_HVK
    singles = np.concatenate(
        [predictor.raw(decoded, image_id, [view]).values_HVK for view in tta_views(8)], 1
    )
    np.testing.assert_allclose(together, singles, rtol=1e-5)
    total = constrained(together.reshape(-1, 5).mean(0)[None], csiro())[0]
    wide = predictor.predict({image_id: path}, tta=8, progress=False)
    np.testing.assert_allclose(wide[list(TARGETS)].iloc[0].to_numpy(float), total, rtol=1e-6)


def test_from_python(sweep, pasture):
    table = predict(best_run(sweep), pasture, tta=2, progress=False, device="cpu")
    assert len(table) == 2


def test_fewer_folds_are_fewer_heads(sweep, pasture):
    run, *_ = sorted(sweep.glob("001*"))
    assert Predictor.load(run, folds=[1], device="cpu").ensemble.bank.n_points == 1
    with pytest.raises(InputError, match="no last weights last_fold7.safetensors"):
        Predictor.load(run, folds=[7], device="cpu")


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--tta", 3], 3, "choose 1 (plain), 2"),
        (["--only-folds", "a"], 2, "numbers with commas"),
        (["--only-folds", 9], 3, "no last weights"),
        (["--deadline", "soon"], 2, "8h30m or 45m"),
        (["--out", "."], 2, "name a file"),
        (["--out", "predictions.csv"], 2, "name a file"),
        (["--out", "/proc/no/s.csv"], 3, "cannot write there"),
        (["--backbone-weights", "none.safetensors"], 3, "no such weights"),
    ],
)
def test_what_cannot_work_leaves_no_file(sweep, pasture, tmp_path, arguments, code, message):
    out = tmp_path / "submission.csv"
    result = biomass(
        "predict",
        "--data",
        pasture,
        "--sweep",
        sweep,
        "--out",
        out,
        "--device",
        "cpu",
        *arguments,
        code=code,
    )
    assert message in result.stderr
    assert not out.exists()


def test_missing_and_damaged_photographs_are_all_listed(sweep, pasture, tmp_path):
    data = shutil.copytree(pasture, tmp_path / "data")
    first, second = sorted((data / "test").iterdir())
    first.write_bytes(first.read_bytes()[:1000])
    second.write_bytes(b"")
    out = tmp_path / "s.csv"
    stderr = biomass(
        "predict", "--data", data, "--sweep", sweep, "--out", out, "--device", "cpu", code=3
    ).stderr
    assert first.name in stderr and second.name in stderr
    first.rename(renamed := first.with_suffix(".JPG"))
    second.unlink()
    stderr = biomass(
        "predict", "--data", data, "--sweep", sweep, "--out", out, "--device", "cpu", code=3
    ).stderr
    assert f"{first.name} (there is {renamed.name})" in stderr and f"/{second.name}\n" in stderr
    assert not out.exists()


def test_other_backbone_weights_are_refused(sweep, pasture, tmp_path):
    from featurestore.backbone.load import load_backbone
    from featurestore.backbone.weights import save_weights
    from featurestore.photos.views import VIEWS

    other = load_backbone(
        TINY[1],
        "random",
        crop="halves",
        image_size=64,
        views=VIEWS[:1],
        seed=9,
    )
    weights = save_weights(other.model.state_dict(), other.spec.weights_sha256, tmp_path)
    stderr = biomass(
        "predict",
        "--data",
        pasture,
        "--sweep",
        sweep,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
        "--backbone-weights",
        weights,
        code=5,
    ).stderr
    assert other.spec.weights_sha256 in stderr and "tokens were made with" in stderr


def test_a_submission_follows_test_csv_whatever_its_order(tmp_path):
    csv = tmp_path / "test.csv"
    csv.write_text(
        "sample_id,image_path,target_name\nB__GDM_g,test/B.jpg,GDM_g\nA__Dry_Total_g,test/A.jpg,Dry_Total_g\n"
    )
    wide = pd.DataFrame(
        {"image_id": ["A", "B"], **{t: [i + 1.0, i + 10.0] for i, t in enumerate(TARGETS)}}
    )
    assert submission(target_rows(csv), wide, csiro())["target"].tolist() == [13.0, 5.0]
    with pytest.raises(InputError, match="not finite, or below 0:\n  B__GDM_g"):
        submission(target_rows(csv), wide.assign(GDM_g=[1, np.nan]), csiro())
    csv.write_text("sample_id,image_path,target_name\nB__Weeds_g,test/B.jpg,Weeds_g\n")
    with pytest.raises(InputError, match="unknown targets Weeds_g"):
        check_targets(csv, target_rows(csv), csiro())


def test_the_wide_table_has_no_index_and_six_decimals(tmp_path):
    csv = tmp_path / "test.csv"
    csv.write_text("sample_id,image_path,target_name\nA__GDM_g,test/A.jpg,GDM_g\n")
    wide = pd.DataFrame({"image_id": ["A"], **{t: [1 / 3] for t in TARGETS}})
    write_predictions(target_rows(csv), wide, tmp_path / "submission.csv", csiro())
    assert (
        tmp_path / "predictions.csv"
    ).read_text() == f"image_id,{','.join(TARGETS)}\nA{5 * ',0.333333'}\n"
    assert (tmp_path / "submission.csv").read_text() == f"sample_id,target\nA__GDM_g,{1 / 3}\n"


@pytest.mark.parametrize("value", [-0.5, np.inf, -np.inf, np.nan])
def test_one_value_that_is_no_mass_is_refused_by_its_row(tmp_path, value):
    csv = tmp_path / "test.csv"
    csv.write_text(
        "sample_id,image_path,target_name\na__GDM_g,test/a.jpg,GDM_g\nb__GDM_g,test/b.jpg,GDM_g\n"
    )
    wide = pd.DataFrame({"image_id": ["a", "b"], **dict.fromkeys(TARGETS, 1.0)})
    table = submission(target_rows(csv), wide, csiro())
    assert table.columns.tolist() == ["sample_id", "target"] and table["target"].tolist() == [1, 1]
    with pytest.raises(InputError, match="1 predictions are not finite, or below 0:\n  b__GDM_g"):
        submission(target_rows(csv), wide.assign(GDM_g=[1, value]), csiro())


def test_unknown_targets_are_refused_before_the_work(sweep, pasture, tmp_path):
    data = shutil.copytree(pasture, tmp_path / "data")
    (data / "test.csv").write_text((data / "test.csv").read_text().replace("GDM_g", "Weeds_g"))
    said = biomass(
        "predict", "--data", data, "--sweep", sweep, "--out", tmp_path / "s.csv", code=3
    ).stderr
    assert (
        "unknown targets Weeds_g" in said
        and "predict:" not in said
        and [p.name for p in tmp_path.iterdir()] == ["data"]
    )


def test_what_is_read_is_not_written_over(sweep, pasture, tmp_path):
    for name in ("test.csv", "train.csv"):
        before = (pasture / name).read_bytes()
        said = biomass(
            "predict", "--data", pasture, "--sweep", sweep, "--out", pasture / name, code=2
        ).stderr
        assert "would be written over" in said and (pasture / name).read_bytes() == before
    biomass("bundle", sweep, "--out", tmp_path / "b")
    said = biomass(
        "predict",
        "--data",
        pasture,
        "--bundle",
        tmp_path / "b",
        "--out",
        tmp_path / "b" / "s.csv",
        code=2,
    ).stderr
    assert "--out" in said and "lies in the bundle" in said
    biomass("bundle", "check", tmp_path / "b")


def test_only_tables_of_predictions_are_written_over(sweep, pasture, tmp_path):
    """Photographs, a sweep's tables, pipes and devices stay; so does what another output takes."""
    data = shutil.copytree(pasture, tmp_path / "data")
    photograph = min((data / "test").iterdir())
    os.mkfifo(pipe := tmp_path / "pipe")
    (tmp_path / "a.predictions.csv").mkdir()
    (tmp_path / "mine.predictions.csv").write_text("image_id,GDM_g\n")
    other_run = shutil.copytree(best_run(sweep), tmp_path / "other_run")
    (tmp_path / "link.csv").symlink_to(other_run / "oof.csv")
    command = ["predict", "--data", data, "--sweep", sweep, "--device", "cpu", "--tta", 1, "--out"]
    for out, *others, message in [
        (photograph, "no table of predictions"),
        (sweep / "folds.csv", "no table of predictions"),
        (other_run / "oof.csv", "a run's out-of-fold table"),
        (tmp_path / "link.csv", "a run's out-of-fold table"),
        (tmp_path / "a.csv", "a.predictions.csv is a folder"),
        (tmp_path / "mine.csv", "mine.predictions.csv, which is there, and is no table of pred"),
        (pipe, "a device or a pipe"),
        (tmp_path / ("long" * 64), "File name too long"),
        (tmp_path / "b.csv", "--explain", tmp_path / "b.csv", "would take the place of --out"),
        (tmp_path / "c/report.html", "--explain", tmp_path / "c", "would take the place of --out"),
    ]:
        before = out.read_bytes() if os.path.isfile(out) else None
        assert message in biomass(*command, out, *others, code=2).stderr
        assert before is None or out.read_bytes() == before
    with pytest.raises(UsageError, match="a device or a pipe"):
        check_file_name(Path("/dev/stdout"))

    out = tmp_path / "s.csv"
    out.touch()
    biomass(*command, out)
    biomass(*command, out)
    biomass(*command, wide_path(out))


def test_P04_a_full_disk_leaves_the_old_files_or_none(tmp_path):
    """Writing beyond a size fails as on a full disk: neither table fits, then one, then both."""
    (tmp_path / "test.csv").write_text(
        "sample_id,image_path,target_name\n"
        + "".join(f"{i}__{t},test/{i}.jpg,{t}\n" for i in range(90) for t in TARGETS)
    )
    wide = pd.DataFrame({"image_id": [str(i) for i in range(90)], **dict.fromkeys(TARGETS, 1.0)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1000, 4500, 100_000):
        (tmp_path / "s.csv").write_text("old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with (
                nullcontext()
                if limit == 100_000
                else pytest.raises(InputError, match="choose another place with --out")
            ):
                write_predictions(
                    target_rows(tmp_path / "test.csv"), wide, tmp_path / "s.csv", csiro()
                )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if limit < 100_000:
            assert (tmp_path / "s.csv").read_text() == "old"
            assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "test.csv"]
    assert (
        len(pd.read_csv(tmp_path / "s.csv")) == 450
        and len(pd.read_csv(tmp_path / "s.predictions.csv")) == 90
    )


def test_columns_that_nobody_asked_for(sweep, pasture, tmp_path):
    """One row per row, whatever else stands there."""
    data = shutil.copytree(pasture, tmp_path / "data")
    (header, row, *_) = (data / "test.csv").read_text().splitlines()
    (data / "test.csv").write_text(f"{header},target,Species\n{row},,x\n")
    biomass(
        "predict",
        "--data",
        data,
        "--sweep",
        sweep,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
        "--tta",
        1,
    )
    assert pd.read_csv(tmp_path / "s.csv")["sample_id"].tolist() == [row.split(",")[0]]
    assert len(pd.read_csv(tmp_path / "s.predictions.csv")) == 1


@pytest.mark.parametrize("header", ["image_path", "sample_id,image_path,target_name"])
def test_a_header_alone_asks_for_nothing_and_is_refused(header, sweep, tmp_path):
    (tmp_path / "test.csv").write_text(f"{header}\n")
    command = ["predict", "--data", tmp_path, "--sweep", sweep, "--out", tmp_path / "s.csv"]
    said = biomass(*command, code=3).stderr
    assert f"{tmp_path / 'test.csv'}: no rows; expected a header line and at least one" in said
    assert [path.name for path in tmp_path.iterdir()] == ["test.csv"]
    (told,) = check_data(tmp_path)  # for doctor
    assert told.level == FAIL and "no rows" in told.found


WIDE_TWICE = "image_path\ntest/a.jpg\ntest/b.jpg\ntest/a.jpg\n"
LONG_TWICE = "sample_id,image_path,target_name\na__GDM_g,test/a.jpg,GDM_g\nb__GDM_g,test/b.jpg,GDM_g\na__GDM_g,test/a.jpg,GDM_g\n"


@pytest.mark.parametrize("text", [WIDE_TWICE, LONG_TWICE], ids=["wide", "long"])
def test_L15_rows_that_come_twice_are_refused_by_their_lines(text, sweep, tmp_path):
    (tmp_path / "test.csv").write_text(text)
    out = tmp_path / "s.csv"
    said = biomass("predict", "--data", tmp_path, "--sweep", sweep, "--out", out, code=3).stderr
    assert "test.csv: " in said and "of its own" in said
    assert [line.split(":")[0].strip() for line in said.splitlines() if line.startswith("  ")] == [
        "line 2",
        "line 4",
    ]
    assert not out.exists()
    with pytest.raises(InputError, match="(?s)of its own.*line 2.*line 4"):
        predict(best_run(sweep), tmp_path)
    (told,) = check_data(tmp_path)  # for doctor
    assert (told.level, "line 2" in told.found and "line 4" in told.found) == (FAIL, True)
