"""Which sweep predict takes when none is named: the one that finished last, whatever the files'
times say."""

import json
import os
import shutil
from pathlib import Path

import pytest
from account import unreadable
from commands import biomass

from featurestore.errors import InputError
from trainer.loop.newest import newest_sweep


def finished(out: Path, name: str, at: str | None = None, written: int = 0) -> Path:
    """A finished sweep's folder; `written` : seconds since 1970 that its files' times say."""
    folder = out / name
    folder.mkdir(parents=True)
    summary = folder / "summary.json"
    summary.write_text(json.dumps({"best": "001"} | ({"finished_at": at} if at else {})))
    os.utime(summary, (written, written))
    return folder


def test_L10_the_time_in_a_summary_counts_and_not_that_of_its_file(tmp_path):
    newer = finished(tmp_path, "20260101_000000_a", "2026-03-02T10:00:00+00:00", written=1)
    finished(tmp_path, "20260201_000000_b", "2026-03-01T10:00:00+00:00", written=2_000_000_000)
    path, why = newest_sweep(tmp_path)
    assert path == newer
    assert why == (
        f"finished 2026-03-02 10:00:00 UTC by its summary.json, the newest of 2 under {tmp_path}; "
        "--sweep names another"
    )


def test_L10_a_sweep_of_before_counts_by_the_time_in_its_folders_name(tmp_path):
    finished(tmp_path, "20260101_000000_a", written=3)
    newer = finished(tmp_path, "20260301_000000_b", written=1)
    finished(tmp_path, "20260102_000000_c", "2026-02-01T10:00:00+00:00", written=2)
    path, why = newest_sweep(tmp_path)
    assert path == newer and "UTC by its folder's name, the newest of 3" in why


@pytest.mark.parametrize("at", ["yesterday", 7, ["2026"]])
def test_L10_a_time_that_is_none_counts_as_none(tmp_path, at):
    finished(tmp_path, "renamed", at, written=9)
    newer = finished(tmp_path, "20200101_000000_a", written=1)
    assert newest_sweep(tmp_path)[0] == newer


def test_L10_a_time_in_the_future_is_told(tmp_path):
    finished(tmp_path, "a", "2999-01-01T00:00:00+00:00")
    assert "in the future, so a clock was wrong, the only one under" in newest_sweep(tmp_path)[1]


def test_L10_a_sweep_that_may_not_be_read_is_named(tmp_path):
    mine = finished(tmp_path, "20260101_000000_mine")
    theirs = finished(tmp_path, "20260201_000000_theirs")
    with unreadable(theirs):
        path, why = newest_sweep(tmp_path)
    assert path == mine and why.endswith("; this account may not read 20260201_000000_theirs")
    shutil.rmtree(mine)
    with unreadable(theirs), pytest.raises(InputError, match="may not read 20260201_000000_theirs"):
        newest_sweep(tmp_path)


def test_L10_predict_says_which_sweep_it_takes_after_a_copy(sweep, pasture, tmp_path, monkeypatch):
    """A sweep says when it finished; a copy of an older one, made later, is not taken for the
    newest."""
    runs = tmp_path / "runs"
    newer, older = (
        shutil.copytree(sweep, runs / sweep.name),
        shutil.copytree(sweep, runs / "20200101_000000_older"),
    )
    summary = json.loads((older / "summary.json").read_text())
    (older / "summary.json").write_text(
        json.dumps(summary | {"finished_at": "2020-01-01T00:00:00+00:00"})
    )
    monkeypatch.chdir(tmp_path)
    said = biomass("predict", "--data", pasture, "--tta", 1, "--device", "cpu").stderr
    line = next(line for line in said.splitlines() if line.startswith("heads of"))
    assert (
        line.startswith(f"heads of runs/{newer.name}/")
        and "by its summary.json, the newest of 2 under runs;" in line
    )
