"""One folder predicts anywhere: made the same each time, refused by name when anything is wrong,
with a run's numbers."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import TIMM, biomass, environment_without_home
from conftest import SWEEP

import predictor
from featurestore.about import DISTRIBUTION
from featurestore.backbone.weights import saved_weights_path
from featurestore.errors import InputError, StoreDamaged
from predictor.bundle.bundle import check_bundle, load_members
from predictor.bundle.listing import LISTING, MAX_BYTES, UPLOAD_FILES
from predictor.bundle.pack import licence_note, make_bundle
from predictor.bundle.texts import SETTINGS
from predictor.bundle.wheel import write_wheel
from predictor.extras.blend import weighed
from predictor.members.member import Member
from predictor.predictor import test_photographs as photographs_of
from trainer.loop.chosen import best_run
from trainer.loop.runs import RunFolder

ROOT = Path(__file__).parent.parent
HEAD = "runs/002_small__kind-density/weights/last_fold0.safetensors"


@pytest.fixture(scope="module")
def whole(sweep, tmp_path_factory) -> Path:
    """A bundle of every run of the sweep, with the backbone."""
    out = tmp_path_factory.mktemp("bundle") / "whole"
    biomass("bundle", sweep, "--points", "all", "--with-backbone", "--out", out)
    return out


@pytest.fixture(scope="module")
def small(sweep, tmp_path_factory) -> Path:
    """A bundle of two runs, with random weights that are made where they are needed."""
    out = tmp_path_factory.mktemp("bundle") / "small"
    biomass(
        "bundle", sweep, "--points", "002_small__kind-density,005_small__kind-ridge", "--out", out
    )
    return out


@pytest.fixture(scope="module")
def of_timm(pasture, tmp_path_factory) -> Path:
    """A sweep over tokens of a model of timm's own, whose weights have Meta's licence."""
    folder = tmp_path_factory.mktemp("timm")
    build = ["store", "build", "--data", pasture, "--out", folder / "f.h5", "--views", 1]
    biomass(*build, *TIMM)
    text = SWEEP.format(store=folder / "f.h5").replace(
        "[cls_gating, density, attention, pooled_mlp, ridge, gpr]", "density"
    )
    (folder / "small.yaml").write_text(text)
    biomass("train", "--config", folder / "small.yaml", "--out", folder / "runs", "--device", "cpu")
    return next((folder / "runs").iterdir())


@pytest.fixture
def broken(small, tmp_path) -> Path:
    """A copy of it, to be broken."""
    return shutil.copytree(small, tmp_path / "broken")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def relist(folder: Path, **changes) -> None:
    """Make the listing fit the files, as who wants to be believed would."""
    listing = json.loads((folder / LISTING).read_text())
    listing["files"] = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in content(folder).items()
        if name not in (LISTING, *UPLOAD_FILES)
    }
    (folder / LISTING).write_text(json.dumps(listing | changes))


# -- making one


def test_U09_the_same_inputs_give_the_same_bytes(sweep, whole, tmp_path):
    before = os.umask(0o077)
    try:
        biomass("bundle", "--out", tmp_path / "again", "--points", "all", "--with-backbone", sweep)
    finally:
        os.umask(before)
    again = tmp_path / "again"
    assert content(again) == content(whole)
    assert {path.stat().st_mode & 0o777 for path in again.rglob("*")} == {0o600, 0o700}
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.system
def test_U09_a_locale_without_utf8_gives_the_same_bytes(sweep, whole, tmp_path):
    plain = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [
        sys.executable,
        "-m",
        "cli",
        "bundle",
        sweep,
        "--points",
        "all",
        "--with-backbone",
        "--out",
        tmp_path / "again",
    ]
    subprocess.run(command, env=plain, cwd=ROOT, check=True, capture_output=True)
    assert content(tmp_path / "again") == content(whole)


def test_nothing_in_it_tells_where_it_was_made(sweep, built, whole):
    for name, data in content(whole).items():
        assert not [
            place for place in (sweep.parents[1], built.parent, ROOT) if str(place).encode() in data
        ], name


def test_a_bundles_runs_are_runs_of_the_chosen_weights_alone(sweep, tmp_path):
    run = sweep / "002_small__kind-density"
    make_bundle([run], tmp_path / "b", weights="best", folds=[1])
    listed = json.loads((tmp_path / "b" / LISTING).read_text())
    assert listed["members"] == [{"name": run.name, "weights": "best", "folds": [1], "weight": 1.0}]
    assert os.listdir(tmp_path / "b" / "runs" / run.name / "weights") == ["best_fold1.safetensors"]
    (member,) = load_members(tmp_path / "b")
    assert (member.weights, member.splits) == ("best", [(0, 1)])
    pd.testing.assert_frame_equal(
        member.oof.reset_index(drop=True), Member.load(run, [1], "best").oof.reset_index(drop=True)
    )
    with pytest.raises(InputError, match="has best weights of 002_small__kind-density, not last"):
        load_members(tmp_path / "b", weights="last")


def test_shares_of_an_ensemble_are_kept(sweep, tmp_path):
    points = "001_small__kind-cls_gating,002_small__kind-density"
    told = biomass(
        "bundle", sweep, "--points", points, "--blend", "fitted", "--out", tmp_path / "b"
    ).stderr
    members = weighed([Member.load(sweep / point) for point in points.split(",")], "fitted", print)
    assert "weights: " in told
    assert [(m.name, m.weight) for m in load_members(tmp_path / "b")] == [
        (m.name, m.weight) for m in members
    ]


def test_runs_of_the_same_name_go_by_their_sweeps(sweep, tmp_path):
    other = shutil.copytree(
        sweep / "005_small__kind-ridge", tmp_path / "other" / "005_small__kind-ridge"
    )
    make_bundle([sweep / "005_small__kind-ridge", other], tmp_path / "b")
    assert sorted(os.listdir(tmp_path / "b" / "runs")) == sorted(
        f"{parent}__005_small__kind-ridge" for parent in ("other", sweep.name)
    )


def test_a_run_is_itself_however_it_is_spelled(sweep, tmp_path, monkeypatch):
    run = sweep / "005_small__kind-ridge"
    monkeypatch.chdir(run / "weights")
    make_bundle(
        [Path(".."), run, sweep / ".." / sweep.name / run.name],
        tmp_path / "new" / ".." / "b",
        folds=[1, 0, 1],
    )
    assert json.loads((tmp_path / "b" / LISTING).read_text())["members"] == [
        {"name": run.name, "weights": "last", "folds": [0, 1], "weight": 1.0}
    ]
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("name", [".hidden", "a\nb", "a\\b", os.fsdecode(b"\xff")])
def test_a_run_whose_name_no_bundle_may_hold_is_refused(sweep, tmp_path, name):
    run = shutil.copytree(sweep / "005_small__kind-ridge", tmp_path / name)
    with pytest.raises(InputError, match="no bundle may hold: .*rename"):
        make_bundle([run], tmp_path / "b")
    assert os.listdir(tmp_path) == [name]


def test_names_with_blanks_and_letters_of_any_kind_are_kept(sweep, pasture, tmp_path):
    run = shutil.copytree(sweep / "005_small__kind-ridge", tmp_path / "ä | 草 {0}")
    make_bundle([run], tmp_path / "c c" / "b")
    (tmp_path / "link").symlink_to(tmp_path / "c c" / "b")
    (member,) = load_members(tmp_path / "link")
    assert (
        member.name == run.name
        and "| ä &#124; 草 {0} |" in (tmp_path / "link/README.md").read_text()
    )
    predictor.predict(tmp_path / "link", pasture, tta=1, progress=False, device="cpu")


@pytest.mark.parametrize(
    "data, message",
    [(b"licen\xe9", "UTF-8"), (b"", "empty"), (b" " * (1 << 20), "empty, of 1048576")],
)
def test_a_licence_that_is_no_text_is_refused(sweep, tmp_path, data, message):
    (tmp_path / "licence").write_bytes(data)
    options = ["--with-backbone", "--backbone-licence", tmp_path / "licence"]
    assert message in biomass("bundle", sweep, *options, "--out", tmp_path / "b", code=3).stderr


@pytest.mark.parametrize(
    "why, message", [("long", "File name too long"), ("full", "No space left on device")]
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    sweep, tmp_path, monkeypatch, why, message
):
    if why == "full":
        monkeypatch.setattr(
            "predictor.bundle.pack.write_wheel", lambda folder: Path("/dev/full").write_bytes(b"x")
        )
    with pytest.raises(InputError, match=f"{message}.*another --out"):
        make_bundle([sweep], tmp_path / ("x" * 255 if why == "long" else "b"))
    assert not list(tmp_path.iterdir())


def test_what_its_own_check_refuses_does_not_appear(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("predictor.bundle.pack.notebook", lambda *_: "x" * (1 << 21))
    with pytest.raises(InputError, match="predict.ipynb: 2097152 bytes, of at most 1048576"):
        make_bundle([sweep], tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_failed_head_is_said_and_the_other_folds_can_be_chosen(sweep, tmp_path):
    run = shutil.copytree(sweep / "002_small__kind-density", tmp_path / "run")
    (run / "weights/last_fold0.safetensors").unlink()  # a sweep saves no head that failed
    assert (
        "choose other --only-folds"
        in biomass("bundle", run, "--out", tmp_path / "b", code=3).stderr
    )
    biomass("bundle", run, "--only-folds", 1, "--out", tmp_path / "b")


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--points", "007"], 3, "no point 007"),
        (["--only-folds", 7], 3, "no last weights last_fold7.safetensors"),
        (["--only-folds", "a"], 2, "numbers with commas"),
        (["--backbone-weights", __file__], 2, "add that"),
    ],
)
def test_what_cannot_be_made_leaves_nothing(sweep, tmp_path, arguments, code, message):
    assert (
        message in biomass("bundle", sweep, "--out", tmp_path / "b", *arguments, code=code).stderr
    )
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_written_over(sweep, tmp_path):
    assert "exists" in biomass("bundle", sweep, "--out", tmp_path, code=3).stderr
    assert "neither a run" in biomass("bundle", tmp_path, "--out", tmp_path / "b", code=3).stderr


def test_U08_dinov3_weights_need_their_licence_in_the_bundle(of_timm, tmp_path):
    biomass("bundle", of_timm, "--with-backbone", "--out", tmp_path / "random")
    (weights,) = (tmp_path / "random/backbone").iterdir()
    options = ["--with-backbone", "--backbone-weights", weights, "--out", tmp_path / "b"]
    assert "--backbone-licence FILE" in biomass("bundle", of_timm, *options, code=3).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["random"]
    licence = tmp_path / "licence.md"
    licence.write_text("You may, with this text.")
    biomass("bundle", of_timm, *options, "--backbone-licence", licence)
    assert (tmp_path / "b/backbone/LICENCE.txt").read_text() == licence.read_text()
    assert "backbone/LICENCE.txt" in check_bundle(tmp_path / "b").listing.files


def test_the_licence_is_the_one_that_timm_tells():
    assert licence_note("vit_demo_patch16_dinov3") == "apache-2.0"
    assert licence_note("vit_huge_plus_patch16_dinov3") == "dinov3-license"
    assert licence_note("no_such_model") == "not stated by timm"


# -- the check


def test_check_tells_the_listings_sha256_and_compares_it(small):
    told = biomass("bundle", "check", small).stdout
    sha256 = hashlib.sha256((small / LISTING).read_bytes()).hexdigest()
    assert sha256 in told and "002_small__kind-density: last weights, folds all" in told
    biomass("bundle", "check", small, "--sha256", sha256.upper())
    refused = biomass("bundle", "check", small, "--sha256", "0" * 64, code=5).stderr
    assert sha256 in refused and "0" * 64 in refused


def test_U04_an_edited_listing_does_not_pass_a_pin(broken):
    sha256 = check_bundle(broken).sha256
    (broken / HEAD).write_bytes((broken / HEAD).read_bytes()[::-1])
    relist(broken)
    assert "has sha256" in biomass("bundle", "check", broken, "--sha256", sha256, code=5).stderr


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "changed": (lambda b: flip(b / HEAD), HEAD),
    "changed text": (lambda b: flip(b / "README.md"), "README.md"),
    "changed wheel": (lambda b: flip(next((b / "wheel").iterdir())), "wheel/biomass_tokens-"),
    "cut": (lambda b: os.truncate(b / HEAD, 100), f"{HEAD}: changed, 100 bytes"),
    "empty": (lambda b: os.truncate(b / HEAD, 0), f"{HEAD}: changed, 0 bytes"),
    "missing": (lambda b: (b / HEAD).unlink(), f"{HEAD}: missing"),
    "missing config": (
        lambda b: (b / "runs/005_small__kind-ridge/config.yaml").unlink(),
        "config.yaml: missing",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_U04_damage_is_named(broken, what):
    damage, name = DAMAGE[what]
    damage(broken)
    assert name in biomass("bundle", "check", broken, code=4).stderr


def deep_folder(b: Path) -> None:
    (b / "runs/a/b/c/d").mkdir(parents=True)
    (b / "runs/a/b/c/d/e.txt").write_text("")


def link(b: Path, name: str) -> None:
    (b / name).rename(b.parent / "elsewhere")
    (b / name).symlink_to(b.parent / "elsewhere")


def huge(path: Path, size: int) -> None:
    with open(path, "ab") as file:
        file.truncate(size)


SPEC = "runs/002_small__kind-density/spec.json"
STRANGE = {
    "extra": (lambda b: (b / "runs/notes.txt").write_text("x"), "runs/notes.txt: extra"),
    "hidden": (lambda b: (b / ".env").write_text("x"), ".env: extra"),
    "module": (lambda b: (b / "timm.py").write_text("x"), "timm.py: extra"),
    "linked file": (lambda b: link(b, HEAD), f"{HEAD}: a link"),
    "linked folder": (lambda b: link(b, "wheel"), "wheel: a link"),
    "fifo": (
        lambda b: os.mkfifo(b / "backbone.fifo"),
        "backbone.fifo: neither a file nor a folder",
    ),
    "deep": (deep_folder, "runs/a/b/c/d: more than 4 folders deep"),
    "oversized": (
        lambda b: huge(b / HEAD, (4 << 30) + 1),
        f"{HEAD}: 4294967297 bytes, of at most 4294967296",
    ),
    "empty folder": (lambda b: (b / "timm").mkdir(), "timm/: an empty folder"),
    "oversized upload file": (
        lambda b: huge(b / UPLOAD_FILES[0], 1 << 30),
        f"{UPLOAD_FILES[0]}: {1 << 30} bytes",
    ),
}


@pytest.mark.parametrize("what", STRANGE)
def test_U04_what_no_bundle_holds_is_named(broken, what):
    change, message = STRANGE[what]
    change(broken)
    assert message in biomass("bundle", "check", broken, code=3).stderr


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def as_torch_zip(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return file.getvalue()


def as_object_array(canary: Canary) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([canary], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "name", ["heads.pkl", "heads.pt", "model.joblib", "x.npy", "X.PTH", "pytorch_model.bin"]
)
@pytest.mark.parametrize("listed", [False, True], ids=["extra", "listed"])
def test_U01_C5_files_that_hold_pickles_are_refused_by_extension(
    broken, pasture, tmp_path, name, listed
):
    (broken / "runs/002_small__kind-density/weights" / name).write_bytes(
        pickle.dumps(Canary(tmp_path / "canary"))
    )
    if listed:
        relist(broken)
    told = biomass(
        "predict", "--bundle", broken, "--data", pasture, "--out", tmp_path / "s.csv", code=3
    ).stderr
    assert name in told and "pickles" in told
    assert not (tmp_path / "canary").exists() and not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "torch", "numpy"])
@pytest.mark.parametrize(
    "name",
    [HEAD, "runs/002_small__kind-density/oof.csv", "runs/002_small__kind-density/config.yaml"],
)
def test_U01_C5_pickles_under_another_name_are_refused_by_magic(
    broken, pasture, tmp_path, name, protocol
):
    canary = Canary(tmp_path / "canary")
    data = {
        "torch": lambda: as_torch_zip(pickle.dumps(canary)),
        "numpy": lambda: as_object_array(canary),
    }.get(protocol, lambda: pickle.dumps(canary, protocol))()
    (broken / name).write_bytes(data)
    # a listing that says the same does not help
    for change in (lambda: None, lambda: relist(broken)):
        change()
        told = biomass(
            "predict", "--bundle", broken, "--data", pasture, "--out", tmp_path / "s.csv", code=3
        ).stderr
        assert f"{name}: a " in told and "which is never read" in told
    assert not (tmp_path / "canary").exists() and not (tmp_path / "s.csv").exists()


BELIEVED = {  # changes under a listing that fits them
    "not safetensors": (HEAD, b"\xff" * 100, "not safetensors"),
    "header longer than the file": (
        HEAD,
        (10**6).to_bytes(8, "little") + b"{" * 50,
        "not safetensors",
    ),
    "binary": ("README.md", b"\xff\xfe", "not text"),
    "zeros": ("README.md", b"a\0", "not text"),
    "no wheel": ("wheel/biomass_tokens-0.1.0-py3-none-any.whl", b"#!/bin/sh", "not a wheel"),
    "deep JSON": (SPEC, b"[" * 100_000, "nested more than 64 deep"),
    "deep YAML": (
        "runs/002_small__kind-density/config.yaml",
        b"a: " + b"{a: " * 1000,
        "nested more than 64 deep",
    ),
    "large text": (
        "README.md",
        b"a" * ((1 << 20) + 1),
        "README.md: 1048577 bytes, of at most 1048576",
    ),
    "another kind": (
        "runs/002_small__kind-density/run.sh",
        b"echo",
        "run.sh: listed, and not a kind of file that bundles have",
    ),
}


@pytest.mark.parametrize("what", BELIEVED)
def test_C5_a_listing_that_fits_makes_nothing_right(broken, what):
    name, data, message = BELIEVED[what]
    (broken / name).write_bytes(data)
    relist(broken)
    told = biomass("bundle", "check", broken, code=3).stderr
    assert name in told and message in told


LISTINGS = {
    "newer": (
        lambda v: json.dumps(v | {"format_version": 2}),
        "version 2, this program reads 'biomass-bundle' version 1",
    ),
    "other": (lambda v: json.dumps(v | {"format": "zoo"}), "format 'zoo'"),
    "unknown key": (lambda v: json.dumps(v | {"run": "sh"}), "run: Extra inputs"),
    "no members": (lambda v: json.dumps(v | {"members": []}), "members"),
    "member elsewhere": (
        lambda v: json.dumps(v | {"members": [v["members"][0] | {"name": "../x"}]}),
        "members.0.name",
    ),
    "member twice": (
        lambda v: json.dumps(v | {"members": v["members"] * 2}),
        "members: Value error, a run is there twice",
    ),
    "no share": (
        lambda v: json.dumps(v | {"members": [m | {"weight": 0.0} for m in v["members"]]}),
        "the shares sum to nothing",
    ),
    "member without heads": (
        lambda v: json.dumps(
            v | {"files": {n: f for n, f in v["files"].items() if "/weights/" not in n}}
        ),
        "runs/002_small__kind-density/: a member of which no head is listed",
    ),
    "member without spec": (
        lambda v: json.dumps(v | {"files": {n: f for n, f in v["files"].items() if n != SPEC}}),
        "runs/002_small__kind-density/: a member whose config.yaml or spec.json is not listed",
    ),
    "control characters": (
        lambda v: json.dumps(v | {"files": {"runs/\x1b[2J/oof.csv": v["files"]["README.md"]}}),
        "not a kind",
    ),
    "NaN share": (
        lambda v: json.dumps(v | {"members": [v["members"][0] | {"weight": float("nan")}]}),
        "members.0.weight",
    ),
    "a list": (lambda v: "[]", "not the JSON of a bundle"),
    "empty": (lambda v: "", "not the JSON of a bundle"),
    "deep": (lambda v: "[" * 1_000_000, "nested more than 64 deep"),
    "a key twice": (lambda v: '{"format": 1, "format": 2}', "a key is there twice"),
    "huge": (lambda v: " " * ((16 << 20) + 1), "not a file of at most"),
    "absolute path": (
        lambda v: json.dumps(v | {"files": {"/etc/passwd": v["files"]["README.md"]}}),
        "/etc/passwd: listed",
    ),
    "path upwards": (
        lambda v: json.dumps(v | {"files": {"runs/../../x": v["files"]["README.md"]}}),
        "runs/../../x: listed",
    ),
}


@pytest.mark.parametrize("what", LISTINGS)
def test_C10_listings_that_are_none_are_refused(broken, what):
    change, message = LISTINGS[what]
    (broken / LISTING).write_text(change(json.loads((broken / LISTING).read_text())))
    assert message in biomass("bundle", "check", broken, code=3).stderr


SPECS = {
    "store elsewhere": ({"store_folder": "/etc"}, "points out of the bundle, to /etc"),
    "store nowhere": ({"store_folder": 5}, "store_folder: Input should be a valid string"),
    "states": ({"states": "Tas"}, "states: Input should be a valid list"),
    "no store": ({"store": []}, "store: Input should be a valid dictionary"),
    "model of a hub": (
        "hf-hub:some/model",
        "hf-hub:some/model is described on a hub or in a folder",
    ),
    "model of a folder": ("local-dir:/etc", "local-dir:/etc is described on a hub or in a folder"),
    "huge tiles": (1 << 20, "tiles of 1099511627776 pixels, of at most"),
}


@pytest.mark.parametrize("what", SPECS)
def test_C5_C8_a_run_that_reaches_out_of_the_bundle_is_refused(broken, what):
    changes, message = SPECS[what]
    told = json.loads((broken / SPEC).read_text())
    if not isinstance(changes, dict):
        tokens = (
            {"model": changes}
            if isinstance(changes, str)
            else {"tile_height": changes, "tile_width": changes}
        )
        spec = RunFolder((broken / SPEC).parent).spec
        changes = {
            "store": json.loads(
                spec.changed(tokens=spec.tokens.model_copy(update=tokens)).to_json()
            )
        }
    (broken / SPEC).write_text(json.dumps(told | changes))
    relist(broken)
    assert message in biomass("bundle", "check", broken, code=3).stderr


def test_C5_a_config_of_countless_heads_is_refused(broken):
    path = broken / SPEC.replace("spec.json", "config.yaml")
    path.write_text(path.read_text().replace("repeats: 1", "repeats: 1000000000"))
    relist(broken)
    assert "2000000000 heads, of at most 10000" in biomass("bundle", "check", broken, code=3).stderr


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "weights,repeat\nlast,0\n"], ids=["empty", "other", "cut"]
)
def test_an_out_of_fold_table_that_is_none_is_refused(broken, text):
    (broken / SPEC.replace("spec.json", "oof.csv")).write_text(text)
    relist(broken)
    with pytest.raises(InputError, match="oof.csv: no out-of-fold table"):
        load_members(broken)[0].oof  # noqa: B018


def test_more_files_than_a_bundle_has_are_not_gone_through(broken, monkeypatch):
    monkeypatch.setattr("predictor.bundle.contents.MAX_FILES", 9)
    for k in range(5):
        (broken / f"runs/{k}").mkdir()
    assert "more than 9 files" in biomass("bundle", "check", broken, code=3).stderr


def test_what_upload_tools_change_is_not_checked(broken):
    (broken / UPLOAD_FILES[0]).write_text('{"id": "me/mine"}')
    (broken / UPLOAD_FILES[1]).unlink()
    check_bundle(broken)


def test_a_folder_that_is_no_bundle(sweep, pasture, tmp_path):
    assert (
        f"{tmp_path / LISTING}: cannot be read"
        in biomass("bundle", "check", tmp_path, code=3).stderr
    )
    assert "no bundle" in biomass("predict", "--bundle", tmp_path, "--data", pasture, code=3).stderr
    assert (
        "give one of"
        in biomass(
            "predict", "--bundle", tmp_path, "--sweep", sweep, "--data", pasture, code=2
        ).stderr
    )


# -- predicting


def test_bundle_and_runs_give_the_same_numbers(sweep, whole, pasture):
    by_runs, by_bundle = (
        predictor.predict(each, pasture, tta=2, progress=False, device="cpu")
        for each in (sorted(sweep.glob("00*")), whole)
    )
    pd.testing.assert_frame_equal(by_bundle, by_runs, check_exact=True)


def test_one_run_and_its_bundle_write_the_same_files(sweep, pasture, tmp_path):
    # the backbone's random weights are made from their seed
    biomass("bundle", sweep, "--out", tmp_path / "b")
    for name, option in (("a", ["--bundle", tmp_path / "b"]), ("b", ["--run", best_run(sweep)])):
        (tmp_path / "out" / name).mkdir(parents=True)
        biomass(
            "predict",
            *option,
            "--data",
            pasture,
            "--tta",
            1,
            "--device",
            "cpu",
            "--out",
            tmp_path / "out" / name / "s.csv",
        )
    assert content(tmp_path / "out/a") == content(tmp_path / "out/b")
    biomass(
        "predict",
        "--oof",
        "--bundle",
        tmp_path / "b",
        "--data",
        pasture,
        "--device",
        "cpu",
        "--out",
        tmp_path / "oof.csv",
    )


def test_the_bundles_own_backbone_is_used_and_another_refused(whole, pasture, tmp_path):
    own = predictor.Predictor.load(whole, device="cpu")
    assert len(own.members) == 6
    copy = shutil.copytree(whole, tmp_path / "b")
    tokens = own.members[0].spec.tokens
    weights = saved_weights_path(copy / "backbone", tokens.weights_sha256)
    data = bytearray(weights.read_bytes())
    data[-4:] = np.float32(7).tobytes()
    weights.write_bytes(data)
    relist(copy)
    told = biomass(
        "predict",
        "--bundle",
        copy,
        "--data",
        pasture,
        "--out",
        tmp_path / "s.csv",
        "--device",
        "cpu",
        code=5,
    ).stderr
    assert tokens.weights_sha256 in told and "tokens were made with" in told


def test_C8_without_the_backbones_weights_nothing_is_downloaded(of_timm, tmp_path):
    biomass("bundle", of_timm, "--out", tmp_path / "b")
    for path in (tmp_path / "b/runs").glob("*/spec.json"):
        spec = json.loads(path.read_text())
        spec["store"]["made_by"]["weights"] = "timm"
        path.write_text(json.dumps(spec))
    relist(tmp_path / "b")
    with pytest.raises(
        InputError,
        match="holds no weights of vit_tiny_patch16_dinov3_qkvb; give them with --backbone-weights",
    ):
        load_members(tmp_path / "b")


@pytest.mark.filterwarnings("default:.*heads? (is|are) missing")
@pytest.mark.parametrize("damage", [Path.unlink, flip], ids=["missing", "wrong hash"])
def test_P11_a_head_that_is_not_as_listed_is_refused_or_left_out(
    broken, sweep, pasture, tmp_path, damage
):
    damage(broken / HEAD)
    predict = [
        "predict",
        "--bundle",
        broken,
        "--data",
        pasture,
        "--tta",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "s.csv",
    ]
    assert HEAD in biomass(*predict, code=4).stderr and not (tmp_path / "s.csv").exists()
    told = biomass(*predict, "--allow-partial").stderr
    assert "1 head is missing or damaged" in told and HEAD in told
    rest = [
        Member.load(sweep / "002_small__kind-density", [1]),
        Member.load(sweep / "005_small__kind-ridge"),
    ]
    expected = predictor.Predictor(rest, ["cpu"]).predict(
        photographs_of(pasture), 1, progress=False
    )
    with pytest.warns(UserWarning, match=HEAD):
        table = predictor.predict(
            broken, pasture, tta=1, progress=False, device="cpu", allow_partial=True
        )
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


def test_P11_members_without_heads_are_left_out_and_the_rest_must_be_whole(broken, small):
    for head in (broken / "runs/002_small__kind-density/weights").iterdir():
        head.unlink()
    with pytest.warns(UserWarning, match="2 heads are missing"):
        assert [member.name for member in load_members(broken, allow_partial=True)] == [
            "005_small__kind-ridge"
        ]
    shutil.copy(small / HEAD, broken / HEAD)
    # of the fold that is asked for there is none
    with pytest.warns(UserWarning, match="1 head is missing"):
        assert [member.name for member in load_members(broken, [1], allow_partial=True)] == [
            "005_small__kind-ridge"
        ]
    (broken / "runs/005_small__kind-ridge/oof.csv").unlink()
    with pytest.raises(StoreDamaged, match="oof.csv: missing"):
        load_members(broken, allow_partial=True)
    assert all(most < 1 << 40 for most in MAX_BYTES.values())


# -- offline


def pip(*arguments: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
        capture_output=True,
    )


def offline(
    folder: Path, *command: object, path: Path | None = None, **environment: object
) -> subprocess.CompletedProcess:
    """Run tests/offline_child.py in a folder, which alone it may write to; HOME is not set."""
    temporary = folder / "tmp"  # torch makes a folder there when it is imported
    temporary.mkdir(exist_ok=True)
    given = {"PYTHONDONTWRITEBYTECODE": 1, "TMPDIR": temporary, **environment}
    if path:
        given["PYTHONPATH"] = path
    return subprocess.run(
        [sys.executable, ROOT / "tests/offline_child.py", folder, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment_without_home(**given),
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def unpacked(whole, tmp_path_factory) -> Path:
    """The bundle's wheel, as pip installs it."""
    (wheel,) = (whole / "wheel").iterdir()
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel)
    return folder


@pytest.mark.system  # without these guards the demos' bundles predict in the quick tests
def test_P09_C8_a_bundle_predicts_without_zarr_matplotlib_a_network_or_a_home(
    sweep, whole, unpacked, pasture, tmp_path
):
    arguments = ["--bundle", whole, "--data", pasture, "--tta", 2, "--device", "cpu"]
    arguments += ["--interval", 0.5, "--blend", "fitted"]
    pictures = ["--explain", "pictures"]
    done = offline(tmp_path, "-m", *arguments, *pictures, "--out", "submission.csv", path=unpacked)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("simplejpeg is not installed") == 1  # L7
    biomass("predict", *arguments, "--out", tmp_path / "here.csv")
    for theirs, ours in {
        "submission.csv": "here.csv",
        "predictions.csv": "here.predictions.csv",
    }.items():
        assert (tmp_path / theirs).read_bytes() == (tmp_path / ours).read_bytes()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert sorted(os.listdir(tmp_path)) == [
        "here.csv",
        "here.predictions.csv",
        "pictures",
        "predictions.csv",
        "submission.csv",
        "tmp",
    ]


def test_the_child_that_shows_it_would_notice(tmp_path):
    for breach in (
        "import socket; socket.socket()",
        "open('/tmp/biomass-breach', 'w')",
        "import zarr",
        "import pickle; pickle.loads(b'cos\\nsystem\\n.')",
    ):
        (tmp_path / "n.ipynb").write_text(
            json.dumps({"cells": [{"cell_type": "code", "source": [breach]}]})
        )
        assert offline(tmp_path, "n.ipynb").returncode == 1, breach


@pytest.mark.system
def test_P08_the_notebooks_cells_run_offline(whole, pasture, tmp_path):
    done = offline(tmp_path, whole / "predict.ipynb", BIOMASS_BUNDLE=whole, BIOMASS_DATA=pasture)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "submission.csv")) == 10
    assert sorted(os.listdir(tmp_path)) == ["predictions.csv", "submission.csv", "tmp"]


@pytest.mark.system
def test_L11_the_notebook_takes_linked_photographs_when_told(whole, pasture, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "test.csv").write_bytes((pasture / "test.csv").read_bytes())
    (data / "test").symlink_to(pasture / "test")
    settings = {"BIOMASS_BUNDLE": whole, "BIOMASS_DATA": data}
    refused = offline(tmp_path, whole / "predict.ipynb", **settings)
    assert refused.returncode and "lie outside" in refused.stderr
    done = offline(tmp_path, whole / "predict.ipynb", **settings, BIOMASS_ALLOW_OUTSIDE=1)
    assert done.returncode == 0, done.stderr


@pytest.mark.system
def test_a_notebook_run_inside_the_bundle_adds_nothing_to_it_and_runs_again(broken, pasture):
    code = (
        "import json, os\n"
        "names = {}\n"
        "cells = [''.join(c['source']) for c in json.load(open('predict.ipynb'))['cells'] if "
        "c['cell_type'] == 'code']\n"
        "for cell in [*cells, *cells]: exec(cell, names)\n"
    )
    before = content(broken)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=broken,
        text=True,
        capture_output=True,
        env=environment_without_home(BIOMASS_DATA=pasture),
    )
    assert done.returncode == 0, done.stderr
    assert content(broken) == before
    assert sorted(os.listdir(broken.parent)) == ["broken", "predictions.csv", "submission.csv"]


@pytest.mark.parametrize(
    "found, message",
    [
        ([], "set BUNDLE: one folder with bundle.json is needed, found none"),
        (["a", "b"], "set BUNDLE: one folder with bundle.json is needed, found .*/a, .*/b"),
        (["a"], "set DATA: one folder with test.csv is needed, found none"),
    ],
)
def test_the_notebook_says_which_folder_it_cannot_choose(tmp_path, monkeypatch, found, message):
    for name in found:
        (tmp_path / "inputs" / name).mkdir(parents=True)
        (tmp_path / "inputs" / name / LISTING).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        exec(SETTINGS.replace("/kaggle/input", str(tmp_path / "inputs")), {})


@pytest.mark.system
def test_the_notebook_runs_in_jupyter(whole, pasture, tmp_path):
    pytest.importorskip("nbclient")
    code = (
        "import nbclient, nbformat, sys\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "nbformat.validate(notebook)\n"
        "nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': "
        "sys.argv[2]}}).execute()\n"
        "print(notebook.cells[-1].outputs)\n"
    )
    environment = environment_without_home(
        HOME=tmp_path / "home",
        BIOMASS_DATA=pasture,
        BIOMASS_OUT=tmp_path / "submission.csv",
    )
    done = subprocess.run(
        [sys.executable, "-c", code, whole / "predict.ipynb", whole],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: str(value) for name, value in environment.items()},
    )
    assert done.returncode == 0, done.stderr
    assert "sample_id" in done.stdout and len(pd.read_csv(tmp_path / "submission.csv")) == 10


# -- the wheel


def test_U10_a_wheel_from_an_install_is_the_one_from_the_checkout(whole, unpacked, tmp_path):
    (wheel,) = (whole / "wheel").iterdir()
    code = (
        "import predictor.bundle.wheel as w, sys; from pathlib import Path; print(w.ROOT, "
        "w.write_wheel(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(unpacked)},
        check=True,
    )
    assert done.stdout.split() == [str(unpacked), str(tmp_path / wheel.name)]
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_wheel_holds_what_runs_and_nothing_else(tmp_path):
    names = zipfile.ZipFile(write_wheel(tmp_path)).namelist()
    assert {
        "cli.py",
        "predictor/__main__.py",
        "predictor/bundle/templates/README.md",
        "predictor/extras/templates/report.css",
        "predictor/extras/templates/report.html",
        "predictor/extras/templates/report.js",
        "trainer/heads/kinds/density.py",
        "featurestore/backbone/demo/CARD.md",
        "featurestore/backbone/demo/vit_demo_patch16_dinov3.safetensors",
        "service/page/index.html",
        "biomass_tokens-0.1.0.dist-info/RECORD",
    } <= set(names)
    assert not [
        name
        for name in names
        if "__pycache__" in name or name.startswith(("tests", "benchmarks", "docs"))
    ]


def test_the_wheel_is_of_the_distribution_that_is_installed(tmp_path):
    wheel = write_wheel(tmp_path)
    told = (
        zipfile.ZipFile(wheel).read("biomass_tokens-0.1.0.dist-info/METADATA").decode().splitlines()
    )
    assert wheel.name == "biomass_tokens-0.1.0-py3-none-any.whl" and "Name: biomass-tokens" in told
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["name"] == DISTRIBUTION
    # which imports nothing of ours
    assert f'package_name="{DISTRIBUTION}"' in (ROOT / "cli.py").read_text()
    assert biomass("--version").stdout.endswith(", version 0.1.0\n")


@pytest.mark.system
def test_U10_setuptools_would_put_the_same_files_in(tmp_path):
    pytest.importorskip("setuptools")
    ours = zipfile.ZipFile(write_wheel(tmp_path))
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs")
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "theirs", copy)
    theirs = zipfile.ZipFile(next((tmp_path / "theirs").iterdir()))
    code = [
        {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
        for wheel in (ours, theirs)
    ]
    assert code[0] == code[1]


PROMISED = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pandas",
    "Pillow",
    "safetensors",
    "pydantic",
    "PyYAML",
    "tqdm",
    "click",
    "scipy",
    "Jinja2",
)
READ_ONLY = (
    'for each in "$1" "$2"; do mount --bind "$each" "$each"; mount -o remount,bind,ro '
    '"$each"; done; shift 2; exec "$@"'
)


def linked_site(folder: Path) -> Path:
    """Links to the packages that a bundle may need, what these require, and nothing else."""
    folder.mkdir()
    todo, seen = list(PROMISED), set()
    while todo:
        name = todo.pop()
        with contextlib.suppress(PackageNotFoundError):  # of another platform
            found = distribution(name)
            needed = {
                re.match(r"[\w.-]+", line)[0]
                for line in found.requires or []
                if "extra ==" not in line
            }
            todo += needed - seen
            seen.add(name)
            for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
                if not (folder / top).exists():
                    (folder / top).symlink_to(found.locate_file(top))
    return folder


@pytest.mark.system
@pytest.mark.skipif(
    subprocess.run(["unshare", "-rnm", "true"], capture_output=True).returncode != 0,
    reason="no namespaces here",
)
def test_P09_C8_a_bundle_predicts_in_a_fresh_environment_without_a_network(
    whole, pasture, tmp_path
):
    """Installed by pip alone beside the promised packages, without interfaces, HOME and a way to
    write to its inputs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python, (wheel,) = tmp_path / "venv/bin/python", (whole / "wheel").iterdir()
    (site,) = (tmp_path / "venv/lib").glob("*/site-packages")
    (site / "promised.pth").write_text(str(linked_site(tmp_path / "promised")))
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    out = tmp_path / "out"
    out.mkdir()
    arguments = [
        "--bundle",
        whole,
        "--data",
        pasture,
        "--tta",
        "2",
        "--device",
        "cpu",
        "--out",
        out / "submission.csv",
    ]
    alone = {
        "env": environment_without_home(TMPDIR=out),
        "cwd": out,
        "capture_output": True,
        "text": True,
    }
    assert subprocess.run([python, "-c", "import zarr"], **alone).returncode == 1
    assert "--bundle" in subprocess.run([python, "-m", "predictor", "--help"], **alone).stdout
    unshared = ["unshare", "-rnm", "sh", "-ec", READ_ONLY, "sh", whole, pasture]
    assert "Read-only" in subprocess.run([*unshared, "touch", whole / "x"], **alone).stderr
    interfaces = subprocess.run([*unshared, "cat", "/proc/net/dev"], **alone).stdout.splitlines()[
        2:
    ]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    done = subprocess.run([*unshared, python, "-m", "predictor", *arguments], **alone)
    assert done.returncode == 0, done.stderr
    biomass(
        "predict",
        "--bundle",
        whole,
        "--data",
        pasture,
        "--tta",
        2,
        "--device",
        "cpu",
        "--out",
        tmp_path / "here.csv",
    )
    assert (out / "submission.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
