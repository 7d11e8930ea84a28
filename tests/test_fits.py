"""trainer.loop.fits: what was fitted is not fitted again, and a stop is acted on within a fit."""

import json
from collections import Counter

import numpy as np
import pytest
from preset import MASSES
from safetensors.numpy import load_file
from sweeps import config

from featurestore.errors import InputError
from trainer.heads import kinds
from trainer.heads.regressor import Regressor
from trainer.heads.spaces import SPACES
from trainer.loop.resume import resume_sweep
from trainer.loop.runs import SweepFolder
from trainer.loop.sweep import run_sweep

KINDS = "[ridge, hist_gbdt, pls]"
N_FITS = 3 * 4  # splits of each point, and of the ridge beside them


class Stop(Exception):
    pass


@pytest.fixture
def count(monkeypatch):
    """Counts fits, and stops in one of them."""
    count = {"fits": 0, "stop_at": None}

    def counted(original):
        def fit(self, *arguments):
            count["fits"] += 1
            if count["fits"] == count["stop_at"]:
                raise Stop
            return original(self, *arguments)

        return fit

    monkeypatch.setattr(Regressor, "fit_rows", counted(Regressor.fit_rows))
    trees = type(kinds.load("hist_gbdt"))
    monkeypatch.setattr(trees, "fit_predict", counted(trees.fit_predict))
    monkeypatch.setattr("trainer.heads.kinds.hist_gbdt.ROUNDS", 2)
    return count


@pytest.fixture
def given(tmp_path, store):
    return config(tmp_path, store, kind=KINDS, lr="[1e-2]")


def files_of(folder):
    kept = [*folder.glob("0*/weights/*"), *folder.rglob("*.csv"), *folder.rglob("*.jsonl")]
    return {path.relative_to(folder): path.read_bytes() for path in kept}


# in the first point, in one for reports only, at the last point's first split
@pytest.mark.parametrize("stop_at", [5, 9, 10])
def test_resume_fits_nothing_again(given, tmp_path, count, stop_at):
    whole = run_sweep(given, tmp_path / "whole", "cpu", progress=False).path
    assert count["fits"] == N_FITS
    count.update(fits=0, stop_at=stop_at)
    with pytest.raises(Stop):
        run_sweep(given, tmp_path / "stopped", "cpu", progress=False)
    (stopped,) = (tmp_path / "stopped").iterdir()
    assert len(list(stopped.glob("checkpoints/fit*.safetensors"))) >= 1
    resume_sweep(stopped, progress=False)
    assert count["fits"] == N_FITS + 1
    assert files_of(stopped) == files_of(whole)


def test_a_point_that_failed_is_not_tried_again(given, tmp_path, count, monkeypatch):
    def refused(*_):
        raise InputError("no")

    monkeypatch.setattr(type(kinds.load("ridge")), "_fit_rows", refused)
    count["stop_at"] = 6  # after 1 + 1 that fail, and the trees' 3
    with pytest.raises(Stop), pytest.warns(UserWarning, match="left out: no"):
        run_sweep(given, tmp_path, "cpu", progress=False)
    (stopped,) = tmp_path.glob("*_tiny")
    count["fits"] = 0
    with pytest.warns(UserWarning, match="left out: no"):
        result = resume_sweep(stopped, progress=False)
    assert result.failed == {"001_tiny__kind-ridge": "no"} and count["fits"] == 3


@pytest.mark.parametrize("harm", ["lost", "changed", "note"])
def test_what_is_lost_is_fitted_again(given, tmp_path, count, harm, monkeypatch):
    monkeypatch.setattr(SweepFolder, "remove_checkpoints", lambda _: None)
    folder = run_sweep(given, tmp_path, "cpu", progress=False).path
    before = files_of(folder)
    (folder / "summary.json").unlink()
    head = folder / "001_tiny__kind-ridge/weights/last_fold1.safetensors"
    note = SweepFolder(folder).fit_note(0)
    if harm == "lost":
        head.unlink()
    elif harm == "changed":
        head.write_bytes(head.read_bytes()[:-1] + b"x")
    else:
        note.write_bytes(note.read_bytes()[:-1] + b"x")
    count["fits"] = 0
    resume_sweep(folder, progress=False)
    assert count["fits"] == 3 and files_of(folder) == before


def test_the_board_tells_which_spaces_were_chosen(tmp_path, store, count):
    given = config(tmp_path, store, kind="[ridge]", lr="[1e-2]", space="[chosen, average]")
    folder = run_sweep(given, tmp_path / "whole", "cpu", progress=False).path
    summary = json.loads((folder / "summary.json").read_text())
    points = {point["name"]: point for point in summary["points"]}
    name = "001_tiny__kind-ridge__space-chosen"
    assert ["spaces" in point for point in points.values()].count(True) == 1
    chosen = points[name]["spaces"]

    # as the shares in the saved files say
    heads = [load_file(file) for file in folder.glob(f"{name}/weights/last_*")]
    assert len(heads) == 3 and list(chosen) == list(MASSES)
    for k, mass in enumerate(MASSES):
        shares = [[head[f"{space}_MK"][:, k].sum() for space in SPACES] for head in heads]
        singles = [
            space for share in shares for space, s in zip(SPACES, share, strict=True) if s == 1
        ]
        n_average = sum(max(share) == 0.5 for share in shares)
        counted = Counter(singles) + Counter(average=n_average)
        assert chosen[mass] == dict(counted)
    # of the point, and of the ridge beside it
    notes = [note for note in summary["notes"] if "spaces that 3 fits chose" in note]
    (note,) = [note for note in notes if note.startswith(f"{name}: ")]
    space, n = next(iter(chosen["GDM_g"].items()))
    assert f"; GDM_g {space} {n}" in note

    # and after a resume, which fits nothing again
    count.update(fits=0, stop_at=3 + 3 + 2)
    with pytest.raises(Stop):
        run_sweep(given, tmp_path / "stopped", "cpu", progress=False)
    (stopped,) = (tmp_path / "stopped").iterdir()
    resume_sweep(stopped, progress=False)
    again = json.loads((stopped / "summary.json").read_text())
    assert [p.get("spaces") for p in again["points"]] == [
        p.get("spaces") for p in summary["points"]
    ]


def test_fits_have_a_bar(given, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("featurestore.disk.messages._is_terminal", lambda file: True)
    run_sweep(given, tmp_path, "cpu")
    assert f"{N_FITS}/{N_FITS}" in capsys.readouterr().err


# a kind, and what it does over and over within a fit
WITHIN = {
    "ridge": "trainer.heads.shrinkage.check_interrupt",
    "kernel_ridge": "trainer.heads.regressor.check_interrupt",
    "svr": "trainer.heads.kinds.svr.check_interrupt",
    "gpr": "trainer.heads.kinds.gpr.check_interrupt",
    "pls": "trainer.heads.kinds.pls.check_interrupt",
    "hist_gbdt": "trainer.heads.kinds.hist_gbdt.check_interrupt",
}


@pytest.mark.parametrize("name", WITHIN)
def test_a_signal_is_acted_on_within_a_fit(name, monkeypatch):
    rng = np.random.default_rng(0)
    x_NF, y_NK = rng.normal(size=(30, 9)), rng.gamma(2, 1, (30, 5))
    asked = []

    def stop_at_the_second():
        asked.append(1)
        if len(asked) == 2:
            raise Stop

    monkeypatch.setattr(WITHIN[name], stop_at_the_second)
    with pytest.raises(Stop):
        kinds.load(name).fit_predict(x_NF, y_NK, np.arange(30) % 6, 0, x_NF)
