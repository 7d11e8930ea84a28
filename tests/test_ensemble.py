"""Several runs, backbones and devices; deadlines, resumed predictions, and photographs that cannot
be used."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import TINY, biomass
from conftest import SWEEP
from PIL import Image
from preset import TARGETS, csiro
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from featurestore import FeatureStore
from featurestore.backbone.backbone import Backbone
from featurestore.backbone.load import load_backbone
from featurestore.backbone.timm_model import read_tokens
from featurestore.disk.durations import parse_duration
from featurestore.errors import InputError, UsageError
from featurestore.format.spec import StoreSpec
from featurestore.photos.decode import decode
from featurestore.photos.views import VIEWS, chosen_tta, tta_views
from predictor.extras.picture import draw_picture
from predictor.members.combine import Combiner
from predictor.members.deadline import Clock
from predictor.members.journal import journal_key
from predictor.members.member import Member, Raw
from predictor.predictor import Predictor, predict
from predictor.predictor import test_photographs as photographs_of
from trainer.loop.runs import RunFolder
from trainer.score.constraints import constrained

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def other_sweep(pasture, tmp_path_factory):
    """A sweep over tokens of another crop: another spec, another backbone to load."""
    folder = tmp_path_factory.mktemp("other")
    biomass(
        "store",
        "build",
        "--data",
        pasture,
        "--out",
        folder / "f.h5",
        "--views",
        1,
        "--crop",
        "squash",
        *TINY,
    )
    text = SWEEP.format(store=folder / "f.h5").replace(
        "[cls_gating, density, attention, pooled_mlp, ridge, gpr]", "density"
    )
    (folder / "small.yaml").write_text(text)
    biomass("train", "--config", folder / "small.yaml", "--out", folder / "runs", "--device", "cpu")
    return next((folder / "runs").iterdir())


def runs(sweep):
    return sorted(sweep.glob("00*"))


def masses(table):
    return table[list(TARGETS)].to_numpy(float)


def test_an_ensemble_of_runs_and_backbones_averages_raw_masses(
    sweep, other_sweep, pasture, monkeypatch
):
    made = []
    encode = Backbone.encode
    monkeypatch.setattr(
        Backbone, "encode", lambda self, rows: made.append(self.spec.crop) or encode(self, rows)
    )
    chosen = [*runs(sweep)[:2], *runs(other_sweep)]
    photographs = photographs_of(pasture)
    raw_NM = Predictor.load(chosen, device="cpu").raws(photographs, tta=2, progress=False)
    assert made == ["halves"] * 4 + ["squash"] * 4  # 2 photographs x 2 views, once a backbone
    together = masses(predict(chosen, pasture, tta=2, progress=False, device="cpu"))
    for n, raw_M in enumerate(raw_NM.values()):
        raw_5 = np.mean([raw.values_HVK.mean((0, 1)) for raw in raw_M], 0)
        np.testing.assert_allclose(together[n], constrained(raw_5[None], csiro())[0], rtol=1e-9)
        assert [raw.values_HVK.shape for raw in raw_M] == [(2, 2, 5)] * 3


def test_from_the_command_line(sweep, other_sweep, pasture, tmp_path):
    out = tmp_path / "s.csv"
    arguments = [*command(pasture, out, runs(sweep)[1]), "--run", runs(other_sweep)[0]]
    biomass(*arguments, "--tta", "plain,vflip", "--average", "median")
    assert len(pd.read_csv(out)) == 10 and sorted(p.name for p in tmp_path.iterdir()) == [
        "s.csv",
        "s.predictions.csv",
    ]
    assert "'flop'" in biomass(*arguments, "--tta", "plain,flop", code=3).stderr
    assert "give one of" in biomass(*arguments, "--sweep", sweep, code=2).stderr


def command(data, out, run):
    return ["predict", "--data", data, "--out", out, "--device", "cpu", "--run", run]


def member(sweep, weight=1.0):
    return Member.load(runs(sweep)[1]).weighing(weight)


def test_weights_and_median_count(sweep):
    a, b = member(sweep, 3), member(sweep, 1)
    low, high = (Raw(np.full((2, 3, 5), value), None) for value in (10.0, 30.0))
    assert Combiner([a, b]).values([low, high]).tolist() == pytest.approx(
        constrained(np.full((1, 5), 15.0), csiro())[0]
    )
    odd = Raw(np.concatenate([np.full((4, 1, 5), 10.0), np.full((1, 1, 5), 1e6)]), None)
    assert Combiner([a], average="median").values([odd]).max() == pytest.approx(10)
    sd = Combiner([a, b]).spread([low, high])
    each = [constrained(np.full((1, 5), value), csiro())[0] for value in (10.0, 30.0)]
    assert sd == pytest.approx(np.sqrt(0.75 * 0.25) * np.abs(each[1] - each[0]))


def test_states_that_only_a_member_of_no_share_tells_are_not_told(sweep):
    silent, telling = (
        member(sweep, 1),
        dataclasses.replace(member(sweep, 0), targets=csiro(["NSW", "Tas"])),
    )
    raw = [
        Raw(np.full((2, 3, 5), 10.0), None),
        Raw(np.full((2, 3, 5), 30.0), np.full((2, 3, 2), 0.5)),
    ]
    assert Combiner([silent, telling]).values(raw).tolist() == pytest.approx(
        constrained(np.full((1, 5), 10.0), csiro())[0]
    )


def test_a_sweep_for_a_run_and_a_run_for_a_sweep_are_told_apart(sweep, pasture, tmp_path):
    options = ["--data", pasture, "--out", tmp_path / "s.csv", "--device", "cpu"]
    assert "give it as --sweep" in biomass("predict", "--run", sweep, *options, code=3).stderr
    assert (
        "give it as --run" in biomass("predict", "--sweep", runs(sweep)[0], *options, code=3).stderr
    )
    stopped = shutil.copytree(sweep, tmp_path / "stopped")
    (stopped / "summary.json").unlink()
    assert (
        f"biomass train --resume {stopped}"
        in biomass("predict", "--sweep", stopped, *options, code=3).stderr
    )
    store = FeatureStore.open(RunFolder(runs(sweep)[0]).config.dataset.store)
    said = biomass(
        "store", "serve", store.path, "--sweep", runs(sweep)[0], "--port", 0, code=3
    ).stderr
    assert f"give {sweep}" in said


def test_no_folds_are_refused_rather_than_all_taken(sweep):
    with pytest.raises(UsageError, match="no folds"):
        Member.load(runs(sweep)[1], [])


def test_runs_with_other_constraints_are_no_ensemble(sweep, tmp_path):
    copy = shutil.copytree(runs(sweep)[1], tmp_path / "clipped")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("constraints: order", "constraints: clip"))
    with pytest.raises(InputError, match="same constraints and rules"):
        Predictor.load([runs(sweep)[1], copy], device="cpu")


def test_two_devices_share_the_photographs(sweep, pasture):
    one = predict(runs(sweep)[1], pasture, tta=2, progress=False, device="cpu")
    two = predict(runs(sweep)[1], pasture, tta=2, progress=False, device="cpu,cpu")
    pd.testing.assert_frame_equal(one, two)


def test_an_error_on_one_of_two_devices_ends_both(sweep, pasture, monkeypatch):
    encode = Backbone.encode

    def failing(self, rows):
        if rows[0].image_id == list(photographs_of(pasture))[1]:
            raise InputError("no such luck")
        return encode(self, rows)

    monkeypatch.setattr(Backbone, "encode", failing)
    with pytest.raises(InputError, match="no such luck"):
        predict(runs(sweep)[1], pasture, tta=1, progress=False, device="cpu,cpu")


def test_photographs_that_are_predicted_together_get_what_each_gets_alone(
    sweep, pasture, monkeypatch
):
    paths = photographs_of(pasture)
    alone = Predictor.load(runs(sweep), device="cpu").predict(paths, 2, progress=False)
    sizes, encode = [], Backbone.encode
    monkeypatch.setattr(StoreSpec, "batch", 12)
    monkeypatch.setattr(
        Backbone, "encode", lambda self, rows: sizes.append(len(rows)) or encode(self, rows)
    )
    together = Predictor.load(runs(sweep), device="cpu").predict(paths, 2, progress=False)
    assert sizes == [4]  # two photographs, two views
    assert together.equals(alone)


def test_B24_out_of_device_memory_halves_the_batch_for_good(monkeypatch):
    backbone = load_backbone(
        "vit_tiny_patch16_dinov3_qkvb", "random", crop="grid:1x5", image_size=64, views=VIEWS[:1]
    )
    tiles = torch.arange(5 * 64 * 64 * 3).remainder(251).to(torch.uint8).reshape(5, 64, 64, 3)
    whole, sizes = backbone.tokens(tiles, "a", VIEWS[0]), []

    def small(model, layers, x):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read_tokens(model, layers, x)

    monkeypatch.setattr("featurestore.backbone.forward.read_tokens", small)
    with pytest.warns(UserWarning, match="out of memory with 5 tiles"):
        parts = backbone.tokens(tiles, "a", VIEWS[0])
    assert sizes == [5, 3, 2, 2, 2]  # the last is padded
    again = backbone.tokens(tiles, "a", VIEWS[0])
    assert sizes[5:] == [2, 2, 2] and torch.equal(again[1], parts[1])
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-2)


def test_P01_a_photograph_that_cannot_be_used_gets_the_training_mean(sweep, pasture, tmp_path):
    data = shutil.copytree(pasture, tmp_path / "data")
    first, second = sorted((data / "test").iterdir())
    first.unlink()
    arguments = [
        "predict",
        "--data",
        data,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
        "--run",
        runs(sweep)[1],
        "--tta",
        1,
    ]
    assert first.name in biomass(*arguments, code=3).stderr
    result = biomass(*arguments, "--on-error", "mean", code=6)
    assert first.name in result.stderr and "training mean stands for 1 photograph:" in result.stderr
    table = pd.read_csv(tmp_path / "s.predictions.csv").set_index("image_id")
    train = (
        pd.read_csv(data / "train.csv")
        .pivot_table(index="sample_id", values="target")
        .reset_index()
    )
    mean = train[train["sample_id"].str.endswith("__GDM_g")]["target"].mean()
    assert table.loc[first.stem, "GDM_g"] == pytest.approx(mean, abs=1e-6)
    assert table.loc[second.stem, "GDM_g"] != pytest.approx(mean, abs=1e-6)
    assert len(pd.read_csv(tmp_path / "s.csv")) == 10


@pytest.mark.parametrize(
    "text, seconds", [("8h30m", 30600), ("45m", 2700), ("90s", 90), ("1h1s", 3601)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds
    with pytest.raises(UsageError, match="--deadline"):
        parse_duration(text + "x")


def test_P10_a_deadline_lowers_the_views_rather_than_overrun():
    said, views = [], tta_views(8)
    clock = Clock(100.0, 10, said.append)
    assert len(clock.views(views)) == 8  # nothing is known yet
    clock.done(8, 16.0)  # two seconds a view: nine photographs left, some 95 s
    assert len(clock.views(views)) == 4 and "4 views each from here on" in said[0]
    clock.start -= 60
    assert len(clock.views(views)) == 2
    clock.start -= 15
    assert len(clock.views(views)) == 1
    clock.start -= 60
    assert len(clock.views(views)) == 1 and "not even one view" not in said[-1]
    assert len(Clock(None, 10).views(views)) == 8
    both = Clock(100.0, 10, said.append, n_at_once=2)
    both.done(8, 16.0)
    assert len(both.views(views)) == 8  # two devices do twice as much


def test_P10_a_passed_deadline_still_predicts_every_row(sweep, pasture, tmp_path):
    result = biomass(
        "predict",
        "--data",
        pasture,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
        "--run",
        runs(sweep)[1],
        "--tta",
        4,
        "--deadline",
        "1s",
    )
    assert len(pd.read_csv(tmp_path / "s.csv")) == 10 and result.exit_code == 0


def test_a_killed_prediction_resumes_with_the_photographs_it_had(
    sweep, pasture, tmp_path, monkeypatch
):
    out = tmp_path / "s.csv"
    arguments = [*command(pasture, out, runs(sweep)[1]), "--tta", 2]
    code = (
        "import os, signal, sys\nfrom predictor.members.journal import Journal\nadd = Journal.add\n"
        "def killed(self, *a):\n    add(self, *a)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.add = killed\nfrom cli import main\nmain(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL and not out.exists()
    assert len((tmp_path / "s.csv.progress").read_text().splitlines()) == 1
    with open(tmp_path / "s.csv.progress", "a") as file:
        file.write('{"key": "torn')
    seen, encode = [], Backbone.encode
    monkeypatch.setattr(
        Backbone, "encode", lambda self, rows: seen.append(rows[0].image_id) or encode(self, rows)
    )
    decoded = []
    monkeypatch.setattr(
        "featurestore.photos.decode.decode",
        lambda path, *more: decoded.append(path.stem) or decode(path, *more),
    )
    biomass(*arguments, "--continue")
    # two views of the other photograph, and what was finished is not decoded
    assert len(seen) == 2 and {seen[0]} == {seen[1]} == set(decoded)
    resumed = out.read_bytes()
    biomass(*arguments)
    assert out.read_bytes() == resumed and not (tmp_path / "s.csv.progress").exists()


def test_K7_what_the_same_tensors_said_in_another_way_is_not_taken(sweep):
    """Saved regressors of other vectors, or in another space, may have the same tensors."""
    member = Member.load(runs(sweep)[5])
    config, keys = member.config, {journal_key([member], ["plain"], None)}
    reads = config.head.model_copy(update={"features": config.head.features[::-1]})
    for other in (
        config.model_copy(update={"head": reads}),
        config.model_copy(update={"loss": config.loss.model_copy(update={"space": "log1p"})}),
    ):
        keys.add(journal_key([dataclasses.replace(member, config=other)], ["plain"], None))
    keys.add(
        journal_key([dataclasses.replace(member, targets=csiro(["Vic", "Tas"]))], ["plain"], None)
    )
    assert len(keys) == 4


def test_what_another_prediction_finished_is_not_taken(sweep, pasture, tmp_path, monkeypatch):
    predictor = Predictor.load(runs(sweep)[1], device="cpu")
    photographs, path = photographs_of(pasture), tmp_path / "progress"
    first = predictor.raws(photographs, 1, False, kept=predictor.journal(path, 1, False))
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2
    other = Predictor.load(runs(sweep)[1], folds=[1], device="cpu")
    assert other.journal(path, 1, True).get(0, next(iter(first)), "") is None and not path.exists()


def test_views_by_name():
    assert [view.name for view in chosen_tta("hflip, transpose")] == ["hflip", "transpose"]
    assert chosen_tta("4") == chosen_tta(4) == VIEWS[:4]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("from cli import main\nmain(sys.argv[1:])\n", id="biomass"),
        pytest.param(
            "import runpy\ndel sys.argv[1]\nrunpy.run_module('predictor', run_name='__main__')\n",
            id="python -m predictor",
            marks=pytest.mark.system,
        ),
    ],
)
@pytest.mark.system
def test_sigterm_while_predicting_says_how_to_go_on(sweep, pasture, tmp_path, program):
    """The first photograph is finished, the second is waited for, then the signal comes."""
    code = (
        "import sys, time\nfrom predictor.members.journal import Journal\nadd = Journal.add\n"
        "def slow(self, *a):\n    add(self, *a)\n    time.sleep(30)\n"
        "Journal.add = slow\n" + program
    )
    arguments = [
        sys.executable,
        "-c",
        code,
        *map(str, command(pasture, tmp_path / "s.csv", runs(sweep)[1])),
        "--tta",
        "1",
    ]
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "s.csv.progress").exists():
            time.sleep(0.05)
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
        said = process.stderr.read()
        assert re.search(
            r"go on with:\n(biomass predict|python -m predictor) .* --continue\n", said
        )
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("model", ["vit_tiny_patch16_dinov3_qkvb", "vit_demo_patch16_dinov3"])
def test_half_precision_computes_tokens_near_those_of_full(model):
    tiles = torch.arange(2 * 64 * 64 * 3).remainder(251).to(torch.uint8).reshape(2, 64, 64, 3)
    options = {"crop": "halves", "image_size": 64, "views": VIEWS[:1]}
    full, half = (
        load_backbone(
            model, "random" if "tiny" in model else None, **options, precision=precision
        ).tokens(tiles, "a", VIEWS[0])[1]
        for precision in ("fp32", "bf16")
    )
    assert torch.nn.functional.cosine_similarity(full.float(), half.float(), dim=-1).min() > 0.98


def test_two_backbones_explain_together(sweep, other_sweep, pasture, tmp_path, monkeypatch):
    """Density heads on halves and on the squashed whole: one map on the finer grid, its sum the raw
    mass."""
    made, encode = [], Backbone.encode
    maps, draw = [], draw_picture
    monkeypatch.setattr(
        Backbone, "encode", lambda self, rows: made.append(self.spec.crop) or encode(self, rows)
    )
    monkeypatch.setattr(
        "predictor.extras.explain.draw_picture", lambda *a: maps.append(a[1]) or draw(*a)
    )
    both = [
        "--run",
        runs(sweep)[1],
        "--run",
        runs(other_sweep)[0],
        "--tta",
        2,
        "--explain",
        tmp_path / "seen",
    ]
    biomass(*command(pasture, tmp_path / "s.csv", runs(sweep)[1])[:-2], *both)
    assert made == ["halves"] * 4 + ["squash"] * 4 and len(maps) == 2
    raw_NM = Predictor.load([runs(sweep)[1], runs(other_sweep)[0]], device="cpu").raws(
        photographs_of(pasture), 2, False
    )
    total_N = [
        np.mean([raw.values_HVK[..., 0].mean() for raw in raw_M]) for raw_M in raw_NM.values()
    ]
    assert maps[0].values_HWM.shape == (4, 8, 5)
    np.testing.assert_allclose(
        sorted(seen.layer("Dry_Total_g").sum() for seen in maps), sorted(total_N), rtol=1e-5
    )
    page = (tmp_path / "seen" / "report.html").read_text()
    assert (
        "4 density" in page
        and "halves" in page
        and "squash" in page
        and len(list((tmp_path / "seen").glob("*.png"))) == 2
    )


def test_two_devices_leave_no_thread_behind(sweep, pasture, monkeypatch):
    """Torch aborts a process that ends while a thread computes."""
    encode = Backbone.encode

    def slow(self, rows):
        if rows[0].image_id == list(photographs_of(pasture))[0]:
            raise InputError("no such luck")
        time.sleep(0.3)
        return encode(self, rows)

    monkeypatch.setattr(Backbone, "encode", slow)
    before = threading.active_count()
    with pytest.raises(InputError, match="no such luck"):
        predict(runs(sweep)[1], pasture, tta=1, progress=False, device="cpu,cpu")
    assert threading.active_count() <= before


def test_a_journal_taken_over_is_there_throughout(sweep, pasture, tmp_path, monkeypatch):
    """What a kill leaves at any moment of --continue has every photograph that was finished
    before."""
    predictor, path = Predictor.load(runs(sweep)[1], device="cpu"), tmp_path / "progress"
    predictor.raws(photographs_of(pasture), 1, False, kept=predictor.journal(path, 1, False))
    whole = path.read_text()
    path.write_bytes(whole.encode() + b'{"key": "torn\xff')
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predictor.journal(path, 1, True)
    assert path.read_bytes().startswith(whole.encode())
    predictor.journal(path, 1, True)
    assert path.read_text() == whole


def test_journals_are_gathered_and_read_from_disk(sweep, pasture, tmp_path):
    """Each photograph's latest line, of whichever journal; once it is removed nothing is known."""
    predictor, photographs = Predictor.load(runs(sweep)[1], device="cpu"), photographs_of(pasture)
    paths = [tmp_path / name for name in ("one", "other", "third")]
    told = {}
    for path, (image_id, photograph) in zip(paths, photographs.items(), strict=False):
        kept = predictor.journal(path, 1, False)
        told |= predictor.raws({image_id: photograph}, 1, False, kept=kept)
    lines = [path.read_bytes() for path in paths[:2]]
    paths[1].write_bytes(lines[0].replace(b"[[[[", b"[[[[7") + lines[1])  # older, and of both
    kept = predictor.journal(paths[2], 1, True, [paths[1], paths[0]])
    assert sorted(paths[2].read_bytes().splitlines(True)) == sorted(lines)
    for line in map(json.loads, lines):
        (found,) = kept.get(0, line["image_id"], line["sha256"])
        np.testing.assert_array_equal(found.values_HVK, told[line["image_id"]][0].values_HVK)
    assert kept.get(0, "another", line["sha256"]) is None
    kept.close()
    assert kept.get(0, line["image_id"], line["sha256"]) is None


@pytest.mark.parametrize("line", ["3", "[]", '{"key": 1}', "{", "\0\0"])
def test_a_journal_of_anything_else_is_not_believed(sweep, pasture, tmp_path, line):
    predictor, path = Predictor.load(runs(sweep)[1], device="cpu"), tmp_path / "progress"
    path.write_text(line + "\n")
    predictor.journal(path, 1, True)
    assert not path.exists()


def test_views_that_a_deadline_took_are_made_up_for_with_resume(sweep, pasture, tmp_path):
    predictor, photographs = Predictor.load(runs(sweep)[1], device="cpu"), photographs_of(pasture)
    path, said = tmp_path / "progress", []
    few = predictor.raws(
        photographs,
        4,
        False,
        deadline_s=0.0,
        kept=predictor.journal(path, 4, False),
        say=said.append,
    )
    assert [raw.values_HVK.shape[1] for (raw,) in few.values()] == [4, 1]
    again = predictor.raws(photographs, 4, False, kept=predictor.journal(path, 4, True))
    assert [raw.values_HVK.shape[1] for (raw,) in again.values()] == [4, 4]
    kept = predictor.raws(
        photographs, 4, False, deadline_s=0.0, kept=predictor.journal(path, 4, True)
    )
    assert [raw.values_HVK.shape[1] for (raw,) in kept.values()] == [4, 4]


def test_a_photograph_that_changed_is_predicted_anew(sweep, pasture, tmp_path):
    data, predictor = (
        shutil.copytree(pasture, tmp_path / "data"),
        Predictor.load(runs(sweep)[1], device="cpu"),
    )
    photographs, path = photographs_of(data), tmp_path / "progress"
    predictor.raws(photographs, 1, False, kept=predictor.journal(path, 1, False))
    first, second = photographs.values()
    shutil.copy(second, first)
    one, other = predictor.raws(
        photographs, 1, False, kept=predictor.journal(path, 1, True)
    ).values()
    np.testing.assert_array_equal(one[0].values_HVK, other[0].values_HVK)


def test_P03_a_head_that_says_no_number_ends_it_at_the_first_photograph(
    sweep, pasture, tmp_path, monkeypatch
):
    monkeypatch.setattr("featurestore.disk.messages._is_terminal", lambda file: True)
    copy = shutil.copytree(runs(sweep)[1], tmp_path / "failed")
    spec = json.loads((copy / "spec.json").read_text())
    (copy / "spec.json").write_text(
        json.dumps(spec | {"store_folder": str(RunFolder(runs(sweep)[1]).store_folder)})
    )
    file = copy / "weights" / "last_fold1.safetensors"
    # finite; what it says is not
    huge = {name: torch.full_like(tensor, 3e38) for name, tensor in load_file(file).items()}
    save_file(huge, file, safe_open(file, "pt").metadata())
    said = biomass(*command(pasture, tmp_path / "s.csv", copy), "--tta", 1, code=3).stderr
    assert (
        f"failed: 1 heads say no finite number of {next(iter(photographs_of(pasture)))}: repeat 0 "
        "fold 1" in said
    )
    assert "0/2" in said and not (tmp_path / "s.csv").exists()
    biomass(*command(pasture, tmp_path / "s.csv", copy), "--tta", 1, "--only-folds", 0)


def test_P12_one_pixel_and_too_many(sweep, pasture, tmp_path):
    """Those that cannot be predicted are listed, not decoded."""
    (tmp_path / "data" / "test").mkdir(parents=True)
    for name, size in {
        "dot": (1, 1),
        "thin": (2, 1),
        "black": (300, 150),
        "huge": (14_142, 7_071),
    }.items():
        Image.new("L", size).save(tmp_path / "data" / "test" / f"{name}.png", compress_level=1)
    (tmp_path / "data" / "test.csv").write_text(
        "sample_id,image_path,target_name\n"
        + "".join(
            f"{name}__GDM_g,test/{name}.png,GDM_g\n" for name in ("dot", "thin", "black", "huge")
        )
    )
    arguments = [*command(tmp_path / "data", tmp_path / "s.csv", runs(sweep)[1]), "--tta", 1]
    said = biomass(*arguments, code=3).stderr
    assert (
        "dot.png: a photograph of 1 x 1" in said
        and "huge.png: 14142 x 7071 pixels" in said
        and "thin.png" not in said
    )
    biomass(*arguments, "--on-error", "mean", code=6)
    assert np.isfinite(pd.read_csv(tmp_path / "s.csv")["target"]).all()
