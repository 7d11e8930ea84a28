"""Commands that programs call: one JSON object on stdout, nothing but warnings on stderr."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from commands import TINY, biomass
from conftest import write_tiny
from sweeps import config

from featurestore.disk import messages

DOCS = (Path(__file__).parent.parent / "docs/scripts.md").read_text()


def printed(*arguments: object, code: int = 0) -> dict:
    """What --json printed, with nothing beside it."""
    result = biomass(*arguments, "--json", "--quiet", code=code)
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def documented(command: str) -> set[str]:
    """Words in backticks of a command's row."""
    (row,) = [line for line in DOCS.splitlines() if line.startswith(f"| `{command}`")]
    return set(re.findall(r"`(\w+)`", row.split("|")[2]))


@pytest.fixture
def tiny(tmp_path) -> Path:
    write_tiny(tmp_path / "f.h5")
    return tmp_path / "f.h5"


def test_a_build_and_its_plan_tell_what_is_documented(pasture, tmp_path):
    out = tmp_path / "f.h5"
    build = ["store", "build", "--data", pasture, "--out", out, "--views", 1, *TINY]
    plan = printed(*build, "--plan")
    assert set(plan) == documented("store build --plan")
    assert (plan["n_images"], plan["n_pending"], plan["grid"]) == (6, 6, [4, 4])

    built = printed(*build)
    assert set(built) == documented("store build")
    assert (built["path"], built["n_built"], built["n_bytes"]) == (
        str(out),
        6,
        plan["pending_bytes"],
    )


def test_copies_tell_what_is_documented(tiny, tmp_path):
    copied = printed("store", "convert", tiny, "--out", tmp_path / "f.zarr")
    merged = printed("store", "merge", tiny, "--out", tmp_path / "m.h5")
    archived = printed("store", "convert", tiny, "--out", tmp_path / "a.zarr", "--codec", "int8")
    assert set(copied) == set(merged)
    assert set(copied) | set(archived) == documented("store convert")
    assert (copied["n_copied"], archived["n_images"], archived["codec"]) == (5, 5, "int8")
    assert archived["error"]["max"] > 0

    store = json.loads(biomass("store", "info", tiny, "--json").stdout)
    archive = json.loads(biomass("store", "info", tmp_path / "a.zarr", "--json").stdout)
    assert archive["columns"] == store["columns"]
    told = documented("store info")
    assert told <= set(store) | set(archive) and archive["n_images"] == 5


def test_verify_and_diff_tell_what_is_wrong_with_their_exit_codes(tiny, tmp_path):
    whole = printed("store", "verify", tiny)
    told = documented("store verify")
    assert set(whole) < told and whole["faults"] == [] and whole["n_sealed"] == 5

    write_tiny(tmp_path / "g.h5", n=4)
    apart = printed("store", "diff", tiny, tmp_path / "g.h5", code=5)
    assert set(apart) == documented("store diff")
    assert any("ID004" in line for line in apart["differences"])

    bytes_ = bytearray(tiny.read_bytes())
    bytes_[-600] ^= 1  # of the last row
    tiny.write_bytes(bytes_)
    rotten = biomass("store", "verify", tiny, "--json", code=4)
    faults = json.loads(rotten.stdout)["faults"]
    assert len(faults) == 1 and set(faults[0]) | set(whole) == told
    assert rotten.stderr.startswith("error: ")


def test_an_error_leaves_stdout_empty(tmp_path):
    failed = biomass("store", "verify", tmp_path / "none.h5", "--json", code=3)
    assert failed.stdout == "" and failed.stderr.startswith("error: ")


def test_quiet_keeps_warnings_and_results(capsys):
    with messages.quiet(True):
        messages.say("a remark")
        messages.say("warning: a warning")
        messages.say_always("stopping")
        bar = messages.new_bar("work", 2, "step", mininterval=0)
        bar.update()
    messages.say("another remark")
    said = capsys.readouterr().err.splitlines()
    assert said == ["warning: a warning", "stopping", "another remark"]


def test_quiet_ends_with_its_command(pasture, tmp_path):
    build = ["store", "build", "--data", pasture, "--views", 1, *TINY]
    quiet = biomass(*build, "--out", tmp_path / "a.h5", "--quiet")
    assert "images sealed" in quiet.stdout and "targets" not in quiet.stderr
    assert "targets" in biomass(*build, "--out", tmp_path / "b.h5").stderr


def test_a_sweep_and_its_plan_tell_what_is_documented(store, tmp_path):
    config(tmp_path, store, kind="[density, ridge]", lr="[1e-2]", epochs=1)
    train = ["train", "--config", tmp_path / "sweep.yaml", "--out", tmp_path, "--device", "cpu"]
    plan = printed(*train, "--plan")
    assert set(plan) == documented("train --plan")
    assert (plan["n_heads"], plan["n_passes"], plan["refused"]) == (3, 1, None)
    assert set(plan["fit_s"]) == {"ridge"} and plan["seconds"] > plan["step_s"]

    found = printed(*train)
    told = documented("train") - {"name", "members", "shares", "summary", "predict"}
    assert set(found) == told and found["refit"] is None
    board = pd.read_csv(f"{found['path']}/summary.csv")
    assert [row["name"] for row in found["board"]] == board["name"].tolist()
    assert found["chosen"]["name"] == found["board"][0]["name"]


def test_a_prediction_and_a_bundle_tell_what_is_documented(sweep, pasture, tmp_path):
    run = next(sweep.glob("005_*"))
    out = tmp_path / "s.csv"
    given = ["--run", run, "--data", pasture, "--tta", 1, "--device", "cpu"]
    predicted = printed("predict", *given, "--out", out)
    assert set(predicted) == documented("predict")
    assert predicted["wide"] == str(tmp_path / "s.predictions.csv")
    assert (predicted["path"], predicted["n_photographs"], predicted["unusable"]) == (
        str(out),
        2,
        {},
    )

    made = printed("bundle", run, "--out", tmp_path / "b", "--epoch", "best")
    assert set(made) | set(made["members"][0]) == documented("bundle make")
    assert printed("bundle", "check", tmp_path / "b") == made
