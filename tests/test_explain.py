"""A picture per photograph: maps say what heads say, lie where the patches lie, and one page shows
them all."""

import errno
import os
import re
import shutil
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch
from commands import biomass
from PIL import Image
from preset import MASSES, TARGETS, csiro
from torch import nn

from featurestore.backbone.backbone import Backbone
from featurestore.disk.picture_names import picture_names
from featurestore.photos.decode import decode
from featurestore.photos.views import TRANSPOSES, VIEWS, make_view, tta_views, view_amounts
from predictor.extras import report
from predictor.extras.explain import regridded, upright
from predictor.extras.picture import Map, colours, draw_picture, fitted, overlay
from predictor.extras.report import PAGE_BYTES, About, Entry, write_report
from predictor.members.ensemble import BankEnsemble, Tokens
from predictor.predictor import Predictor
from predictor.predictor import test_photographs as photographs_of
from trainer.heads.bank import load_bank
from trainer.heads.shape import HeadShape
from trainer.loop.runs import RunFolder

ROOT = Path(__file__).parent.parent
MAPS = "report.html.progress"
KINDS = ("cls_gating", "density", "attention", "pooled_mlp", "ridge", "gpr")


def run_of(sweep, kind):
    return next(sweep.glob(f"*kind-{kind}*"))


def looked(runs, pasture, folder, tta=8):
    """Maps and raw masses of the two test photographs."""
    predictor, photographs = Predictor.load(runs, device="cpu"), photographs_of(pasture)
    explainer = predictor.explainer(folder, tta)
    raws = predictor.raws(photographs, tta, progress=False, explainer=explainer)
    crop = predictor.backbone.crop
    return [
        (explainer.map(i, decode(path, crop).facts["sha256"]), raws[i])
        for i, path in photographs.items()
    ]


def explain(out, *arguments, code=0):
    return biomass(
        "predict",
        "--out",
        out / "s.csv",
        "--device",
        "cpu",
        "--explain",
        out / "seen",
        *arguments,
        code=code,
    )


def shown_ids(page):
    return [unescape(text) for text in re.findall(r'<span class="id">(.*?)</span>', page)]


def test_a_density_map_sums_to_the_masses(sweep, pasture, tmp_path):
    for seen, (raw,) in looked([run_of(sweep, "density")], pasture, tmp_path):
        assert seen.unit == "grams" and seen.values_HWM.shape == (4, 8, 5)
        np.testing.assert_allclose(
            seen.values_HWM.sum((0, 1)), raw.values_HVK.mean((0, 1)), rtol=1e-5
        )


def test_shares_equal_plain_torch(sweep, pasture):
    path = next(iter(photographs_of(pasture).values()))
    for kind in ("cls_gating", "attention"):
        predictor = Predictor.load(run_of(sweep, kind), device="cpu")
        tiles_THW3 = decode(path, predictor.backbone.crop).tiles_THW3
        tokens = [Tokens(*predictor.backbone.tokens(tiles_THW3, "a", view)) for view in VIEWS[:2]]
        maps_VTPM = predictor.ensemble.maps({"": tokens})
        states = list(RunFolder(run_of(sweep, kind)).heads("last").values())
        for (cls_TD, patches_TPD, _), map_TPM in zip(tokens, maps_VTPM, strict=True):
            plain_HTP = torch.stack(
                [plain_share(state, cls_TD.float(), patches_TPD.float()) for state in states]
            )
            np.testing.assert_allclose(map_TPM[..., 0], plain_HTP.mean(0).numpy(), rtol=1e-4)
            np.testing.assert_allclose(map_TPM.sum(1), 1, rtol=1e-5)


def plain_share(state, cls_TD, patches_TPD):
    if "attention.weight" in state:
        return (patches_TPD @ state["attention.weight"].T).softmax(1).mean(2)
    hidden = nn.functional.gelu(
        nn.functional.linear(cls_TD, state["gate_mlp.0.weight"], state["gate_mlp.0.bias"])
    )
    return nn.functional.linear(
        hidden, state["gate_mlp.2.weight"], state["gate_mlp.2.bias"]
    ).softmax(-1)


def test_grams_are_preferred_and_other_members_left_out(sweep, pasture, tmp_path):
    density = run_of(sweep, "density")
    alone = looked([density], pasture, tmp_path / "a", 1)
    several = looked(
        [run_of(sweep, "attention"), density, run_of(sweep, "ridge")], pasture, tmp_path / "b", 1
    )
    for (one, _), (other, _) in zip(alone, several, strict=True):
        assert other.unit == "grams"
        np.testing.assert_array_equal(one.values_HWM, other.values_HWM)


def test_shares_of_two_members_sum_to_one(sweep, pasture, tmp_path):
    for seen, _ in looked(
        [run_of(sweep, "attention"), run_of(sweep, "cls_gating")], pasture, tmp_path, 2
    ):
        assert seen.unit == "share" and seen.values_HWM.shape == (4, 8, 1)
        assert seen.values_HWM.sum() == pytest.approx(1, abs=1e-5)


def test_every_view_is_turned_back():
    """A view of one bright patch, looked at through its map, is that patch again."""
    views = VIEWS + TRANSPOSES
    plain_T3HW = torch.rand(2, 3, 4, 6, generator=torch.manual_seed(0))
    geometry = [view.model_copy(update={"colour": None}) for view in views]
    maps_VTPM = [
        make_view(plain_T3HW, view, view_amounts(view, 0, "a")).flatten(2).mT.numpy()
        for view in geometry
    ]
    for map_TPM, view in zip(maps_VTPM, views, strict=True):
        np.testing.assert_array_equal(
            upright(map_TPM[None], [view], (4, 6)), plain_T3HW.permute(0, 2, 3, 1).numpy()
        )


def test_the_patch_a_head_sees_is_bright_where_it_lies():
    shape = HeadShape("density", width=3, n_patches=12, targets=csiro())
    state = {"density.weight": torch.ones(5, 3), "density.bias": torch.full((5,), -9.0)}
    patches_TPD = torch.zeros(2, 12, 3)
    patches_TPD[1, 1 * 4 + 2] = 4.0  # right half, row 1 of 3, column 2 of 4
    ensemble = BankEnsemble(load_bank(shape, [state], torch.device("cpu")), False, {})
    tokens = [
        Tokens(torch.zeros(2, 3), patches_TPD),
        Tokens(torch.zeros(2, 3), patches_TPD.view(2, 3, 4, 3).flip(2).flatten(1, 2)),
    ]
    seen = Map(
        "grams", np.concatenate(upright(ensemble.maps({"": tokens}), tta_views(2), (3, 4)), 1)
    )
    painted = np.asarray(
        overlay(Image.new("RGB", (800, 300), (90, 90, 90)), seen.layer("Dry_Total_g"), (0.0, 3.0))
    ).sum(2)
    expected = np.zeros((300, 800), bool)
    expected[100:200, 600:700] = True
    np.testing.assert_array_equal(painted > 300, expected)


def test_other_grids_keep_sums_and_places():
    map_HWM = np.random.default_rng(0).random((3, 4, 2))
    finer = regridded(map_HWM, 5, 14)
    np.testing.assert_allclose(finer.sum((0, 1)), map_HWM.sum((0, 1)))
    np.testing.assert_allclose(regridded(regridded(map_HWM, 6, 8), 3, 4), map_HWM)
    np.testing.assert_allclose(finer[:, :7].sum((0, 1)), map_HWM[:, :2].sum((0, 1)))


def test_colours_are_infernos():
    from matplotlib import colormaps

    share = np.linspace(0, 1, 256)
    assert np.abs(colours(share) - 255 * colormaps["inferno"](share)[:, :3]).max() < 9


@pytest.mark.parametrize("size", [(2000, 1000), (300, 900), (3, 5), (4000, 3)], ids=str)
def test_pictures_of_any_shape(size):
    photograph = fitted(Image.new("RGB", size))
    assert 600 <= max(photograph.size) <= 1200
    row = pd.Series(
        {
            "image_id": "größe 日本 " * 30,
            **dict.fromkeys(TARGETS, 1.0),
            **{f"{name}_sd": 0.1 for name in TARGETS},
        }
    )
    for seen in (None, Map("share", np.full((2, 3, 1), 1 / 6)), Map("grams", np.zeros((2, 3, 5)))):
        assert draw_picture(photograph, seen, row, "a note", 0.9).width >= 600


def test_maps_of_a_photograph_share_one_scale_with_a_floor():
    """Half a gram of Dead beside 40 g of Green stays dark, and so does a photograph of 2 g."""

    def brightest(grams_5: tuple) -> dict[str, int]:
        """Of each map over a black photograph, 0 to 255; inferno's last colour has 252."""
        seen = Map("grams", np.tile(np.array(grams_5) / 12, (3, 4, 1)))
        black = Image.new("RGB", (40, 30))
        return {
            name: int(np.asarray(overlay(black, seen.layer(name), seen.ends)).max())
            for name in ("Dry_Total_g", "Dry_Dead_g")
        }

    assert MASSES == ("Dry_Total_g", "GDM_g", "Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g")
    dense = brightest((40.5, 40, 40, 0.5, 0))
    assert dense["Dry_Total_g"] > 240 and dense["Dry_Dead_g"] < 30
    assert brightest((2.0, 2, 2, 0, 0))["Dry_Total_g"] < 130


def test_names_are_safe_and_unique():
    ids = ["a", "A", "ä/b", "ä_b", "../x", "", "<script>", "日" * 200, "CON.", "a b"]
    names = picture_names(ids)
    assert names["a"] == "a.png" and names["ä_b"] == "ä_b.png"
    assert len({name.casefold() for name in names.values()}) == len(ids)
    assert all(
        len(name.encode()) < 200 and not re.search(r'[/\\<>:"|?* ]', name) and name[0] != "."
        for name in names.values()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_a_picture_whatever_the_kind(sweep, pasture, tmp_path, kind):
    explain(tmp_path, "--data", pasture, "--run", run_of(sweep, kind), "--tta", 2)
    ids = pd.read_csv(tmp_path / "s.predictions.csv")["image_id"].tolist()
    assert sorted(p.name for p in (tmp_path / "seen").iterdir()) == sorted(
        [*(f"{i}.png" for i in ids), "report.html"]
    )
    with Image.open(tmp_path / "seen" / f"{ids[0]}.png") as picture:
        assert picture.height > (900 if kind in ("density", "attention", "cls_gating") else 500)
    page = (tmp_path / "seen" / "report.html").read_text()
    assert sorted(shown_ids(page)) == sorted(ids) and f"<dd>2 {kind}</dd>" in page


@pytest.fixture
def odd(pasture, tmp_path):
    """The pasture's test photographs under ids that are no good file names, nor HTML."""
    data = shutil.copytree(pasture, tmp_path / "data")
    text = (data / "test.csv").read_text()
    first, second = dict.fromkeys(row.split("__")[0] for row in text.splitlines()[1:])
    text = re.sub(f"^{first}__", "<script>alert(1)</script>&amp;__", text, flags=re.MULTILINE)
    (data / "test.csv").write_text(re.sub(f"^{second}__", "ä 日本__", text, flags=re.MULTILINE))
    return data


def test_the_page_escapes_and_needs_nothing_else(sweep, odd, tmp_path):
    explain(
        tmp_path, "--data", odd, "--run", run_of(sweep, "density"), "--tta", 1, "--interval", 0.6
    )
    page = (tmp_path / "seen" / "report.html").read_text()
    assert page.count("<script>") == 1 and "alert(1)" not in page.replace(
        escape("<script>alert(1)</script>"), ""
    )
    assert sorted(shown_ids(page)) == ["<script>alert(1)</script>&amp;", "ä 日本"]
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", page)
    pictures = [unquote(link) for link in re.findall(r'<a href="(.*?)"', page)]
    assert (
        all((tmp_path / "seen" / name).is_file() for name in pictures) and len(set(pictures)) == 2
    )
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert re.findall(r"<button type=\"button\">(.*?)</button></th>", page) == [
        "Photograph",
        "Total",
        "± of Total",
        "Interval",
        "GDM",
        "Green",
        "Dead",
        "Clover",
    ]
    assert "covers 60%" in page


def test_a_photograph_that_cannot_be_used_is_shown_as_such(sweep, pasture, tmp_path):
    data = shutil.copytree(pasture, tmp_path / "data")
    first, second = sorted((data / "test").iterdir())
    first.unlink()
    second.write_bytes(b"")
    explain(
        tmp_path,
        "--data",
        data,
        "--run",
        run_of(sweep, "density"),
        "--tta",
        1,
        "--on-error",
        "mean",
        code=6,
    )
    page = (tmp_path / "seen" / "report.html").read_text()
    assert f"<small>{second.name}: the file is empty</small>" in page and str(data) not in page
    assert (
        page.count("<em>training mean stands in</em>") == 2
        and len(list((tmp_path / "seen").glob("*.png"))) == 2
    )


def test_resume_keeps_maps_and_makes_missing_ones_again(sweep, pasture, tmp_path, monkeypatch):
    made, drawn, encode = [], [], Backbone.encode
    monkeypatch.setattr(
        Backbone, "encode", lambda self, rows: made.append(rows[0].image_id) or encode(self, rows)
    )
    stop = type("Stop", (Exception,), {})

    def stopping(row, *_):
        drawn.append(row)
        raise stop

    monkeypatch.setattr("predictor.extras.report.Entry.of", stopping)
    arguments = ["--data", pasture, "--run", run_of(sweep, "density"), "--tta", 2, "--continue"]
    with pytest.raises(stop):
        explain(tmp_path, *arguments)
    assert (
        (tmp_path / "s.csv").exists()
        and len(made) == 4
        and len(list((tmp_path / "seen" / MAPS).iterdir())) == 2
    )
    next((tmp_path / "seen" / MAPS).iterdir()).unlink()
    monkeypatch.undo()
    monkeypatch.setattr(
        Backbone, "encode", lambda self, rows: made.append(rows[0].image_id) or encode(self, rows)
    )
    explain(tmp_path, *arguments)
    assert (
        len(made) == 5
        and not (tmp_path / "seen" / MAPS).exists()
        and not (tmp_path / "s.csv.progress").exists()
    )


def test_what_does_not_go_together_is_refused(sweep, pasture, tmp_path):
    arguments = ["--data", pasture, "--run", run_of(sweep, "density")]
    assert "leave --explain out, or --oof" in explain(tmp_path, *arguments, "--oof", code=2).stderr
    (tmp_path / "seen").write_text("")
    assert "is a file" in explain(tmp_path, *arguments, code=2).stderr


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(sweep, pasture, tmp_path):
    (tmp_path / "seen").symlink_to("/proc/no-such-folder")
    said = explain(tmp_path, "--data", pasture, "--run", run_of(sweep, "density"), code=3).stderr
    assert (
        "choose another place with --explain" in said
        and "--out" not in said
        and not (tmp_path / "s.csv").exists()
    )


def test_photographs_are_not_written_over(sweep, pasture, tmp_path):
    """A picture of ID.png would be ID.png."""
    data = shutil.copytree(pasture, tmp_path / "data")
    for path in (data / "test").iterdir():
        Image.open(path).save(path.with_suffix(".png"))
    (data / "test.csv").write_text((data / "test.csv").read_text().replace(".jpg", ".png"))
    before = sorted((path, path.stat().st_size) for path in (data / "test").iterdir())
    said = biomass(
        "predict",
        "--data",
        data,
        "--run",
        run_of(sweep, "density"),
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
        "--explain",
        data / "test",
        code=2,
    ).stderr
    assert "photographs lie there" in said and before == sorted(
        (p, p.stat().st_size) for p in (data / "test").iterdir()
    )


def test_what_else_lies_in_the_folder_stays(sweep, pasture, tmp_path):
    (tmp_path / "seen" / "maps").mkdir(parents=True)
    (tmp_path / "seen" / "maps" / "of_the_farm.txt").write_text("")
    explain(tmp_path, "--data", pasture, "--run", run_of(sweep, "density"), "--tta", 1)
    assert (tmp_path / "seen" / "maps" / "of_the_farm.txt").exists() and not (
        tmp_path / "seen" / MAPS
    ).exists()


def test_a_full_disk_while_drawing_keeps_the_submission(sweep, pasture, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arguments = ["--data", pasture, "--run", run_of(sweep, "density"), "--tta", 1]
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        said = explain(tmp_path, *arguments, code=3).stderr
    assert "No space left on device" in said and "--explain" in said
    assert (
        (tmp_path / "s.csv").exists()
        and not list(tmp_path.rglob("*.partial"))
        and not list(tmp_path.rglob("*.png"))
    )
    explain(tmp_path, *arguments, "--continue")
    assert len(list(tmp_path.rglob("*.png"))) == 2 and not list(tmp_path.rglob("*.progress"))


def test_800_photographs_are_a_page_of_bounded_size(tmp_path):
    """Of noise, which JPEG squeezes worst."""
    photograph = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (600, 1200, 3)).astype(np.uint8)
    )
    row = pd.Series(
        {"image_id": "a", **dict.fromkeys(TARGETS, 1.0), **{f"{t}_sd": 0.1 for t in TARGETS}}
    )
    entry = Entry.of(row, "a.png", photograph, None, "", 800)
    assert 1000 < len(entry.thumbnail) <= PAGE_BYTES / 800
    table = pd.DataFrame([row] * 800)
    page = write_report(
        tmp_path / "report.html", About([], ["plain"], None, None), table, [entry] * 800
    )
    assert page.stat().st_size < 1.1 * PAGE_BYTES and page.read_text().count("<tr role") == 801


def test_braces_in_the_style_are_not_the_templates(tmp_path, monkeypatch):
    package = Path(report.__file__).parent
    shutil.copytree(package / "templates", tmp_path / "templates")
    style = tmp_path / "templates/report.css"
    style.write_text(style.read_text() + "/* {{ no_name }} {% nor this */\n")
    monkeypatch.setattr(report.resources, "files", lambda name: tmp_path)
    table = pd.DataFrame(columns=["image_id", *TARGETS, "Dry_Total_g_sd"])
    page = write_report(tmp_path / "report.html", About([], ["plain"], None, None), table, [])
    assert style.read_text() in page.read_text()
