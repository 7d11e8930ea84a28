"""A prediction cut into parts: the merged tables have the bytes of one prediction, or it is said
what is missing, damaged or of another prediction."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import biomass

from featurestore.errors import BiomassError, UsageError
from predictor.members.journal import Journal
from predictor.members.member import Raw
from predictor.members.part_file import Part, PartFile, check_complete, parts_in, write_part
from predictor.predictor import Predictor

ROOT = Path(__file__).parent.parent
TOTAL = 3
ABOUT = {
    "parts": 2,
    "table": "a" * 64,
    "heads": "b" * 64,
    "options": {"tta": ["plain"], "average": "mean"},
    "device": "cpu",
    "torch": "2.9",
    "places": {"runs": []},
}


@pytest.fixture(scope="module")
def data(pasture, tmp_path_factory) -> Path:
    """The pasture with a test.csv of all its photographs, one of which is cut off."""
    folder = shutil.copytree(pasture, tmp_path_factory.mktemp("parts") / "data")
    photographs = sorted([*folder.glob("train/*.jpg"), *folder.glob("test/*.jpg")])
    names = [f"{path.relative_to(folder)}\n" for path in photographs]
    (folder / "test.csv").write_text("image_path\n" + "".join(names))
    photographs[4].write_bytes(photographs[4].read_bytes()[:1000])
    return folder


def command(data: Path, run: Path) -> list:
    """Predict all but the photograph that is cut off."""
    return [
        *("predict", "--data", data, "--run", run, "--device", "cpu"),
        *("--tta", 1, "--on-error", "mean"),
    ]


@pytest.fixture(scope="module")
def run(sweep) -> Path:
    return min(sweep.glob("001*"))


@pytest.fixture(scope="module")
def made(data, run, tmp_path_factory) -> Path:
    """All parts of a prediction."""
    folder = tmp_path_factory.mktemp("made") / "P"
    for number in range(TOTAL):
        biomass(*command(data, run), "--part", f"{number}/{TOTAL}", "--out", folder)
    return folder


@pytest.fixture
def parts(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "P")


def tables(out: Path) -> list[bytes]:
    return [out.read_bytes(), (out.parent / "predictions.csv").read_bytes()]


def test_merged_parts_have_the_bytes_of_one_prediction(sweep, data, tmp_path):
    """Of an ensemble by fitted weights, with intervals and a training mean: all that needs more
    than a part's photographs."""
    first, _, third, *_ = sorted(sweep.glob("00*"))
    options = ["--run", third, "--tta", "hflip,plain", "--blend", "fitted", "--interval", 0.4]
    ways = [*command(data, first), *options]
    whole = tmp_path / "whole" / "submission.csv"
    biomass(*ways, "--out", whole, code=6)

    parts, merged = tmp_path / "P", tmp_path / "merged" / "submission.csv"
    for number in (2, 0, 1):
        told = biomass(*ways, "--part", f"{number}/{TOTAL}", "--out", parts)
        assert told.stdout.strip() == str(parts / f"part_{number:05d}_of_00003.jsonl")
    assert len(list(parts.glob("*.jsonl"))) == TOTAL
    merging = ["predict", "--merge", parts, "--data", data, "--out", merged]
    told = biomass(*merging, code=6)
    assert "the training mean stands for 1 photograph:" in told.stderr
    assert tables(merged) == tables(whole)

    # what the parts had may be said again
    biomass(*merging, *options[2:4], "--interval", 0.4, "--run", first, "--run", third, code=6)
    assert tables(merged) == tables(whole)


def test_a_part_that_is_there_is_left_as_it_is(data, run, parts):
    before = (parts / Part(1, TOTAL).name).stat().st_mtime_ns
    told = biomass(*command(data, run), "--part", "1/3", "--out", parts)
    assert "is there already" in told.stderr
    assert (parts / Part(1, TOTAL).name).stat().st_mtime_ns == before


def test_P13_a_stopped_part_goes_on_where_it_was(data, run, parts, monkeypatch):
    """What its attempts had finished is taken, a torn last line is not."""
    path = parts / Part(2, TOTAL).name
    before = path.read_bytes()
    path.unlink()
    add, added = Journal.add, []

    def stopped(self, group, image_id, *rest):
        add(self, group, image_id, *rest)
        added.append(image_id)
        if len(added) in (1, 2):
            raise RuntimeError("stopped")

    monkeypatch.setattr(Journal, "add", stopped)
    arguments = [*command(data, run), "--part", "2/3", "--out", parts]
    for n in (1, 2):
        with pytest.raises(RuntimeError, match="stopped"):
            biomass(*arguments)
        journals = list(parts.glob("*.progress"))
        assert len(journals) == n and not path.exists()
        with open(journals[0], "a") as file:
            file.write('{"key": "torn')
    biomass(*arguments)
    assert len(added) == len(set(added)) == 3
    assert path.read_bytes() == before
    assert not list(parts.glob("*.progress"))


def test_P14_two_attempts_at_a_part_do_not_disturb_each_other(data, run, parts, monkeypatch):
    """One begins and ends while the other is at its first photograph."""
    path = parts / Part(0, TOTAL).name
    before = path.read_bytes()
    path.unlink()
    arguments = [*command(data, run), "--part", "0/3", "--out", parts]
    add = Journal.add

    def overtaken(self, *line):
        monkeypatch.setattr(Journal, "add", add)
        add(self, *line)
        biomass(*arguments)
        assert path.read_bytes() == before
        path.unlink()

    monkeypatch.setattr(Journal, "add", overtaken)
    biomass(*arguments)
    assert path.read_bytes() == before
    assert not list(parts.glob("*.progress"))


def test_P14_an_attempt_that_ends_after_its_successor_leaves_its_part(
    data, run, parts, monkeypatch
):
    path = parts / Part(0, TOTAL).name
    before = path.read_bytes()
    path.unlink()
    arguments = [*command(data, run), "--part", "0/3", "--out", parts]
    predict = Predictor.predict
    found = []

    def overtaken(self, *given, **options):
        monkeypatch.setattr(Predictor, "predict", predict)
        predicted = predict(self, *given, **options)
        biomass(*arguments)
        found.append(path.stat().st_ino)
        return predicted

    monkeypatch.setattr(Predictor, "predict", overtaken)
    biomass(*arguments)
    assert found == [path.stat().st_ino] and path.read_bytes() == before


@pytest.mark.parametrize(
    "more, why",
    [
        (["--tta", 2], "--part 1/3: options --tta plain, not plain,hflip;"),
        (["--part", "0/4"], "--part 0/4: number of parts 3, not 4;"),
        (["--run", "002"], "--part 1/3: heads 001_small__kind-cls_gating ("),
        (["--csv", "other.csv"], "--part 1/3: table "),
    ],
    ids=["options", "number", "heads", "table"],
)
def test_P15_a_part_of_another_prediction_is_not_begun(data, sweep, run, parts, more, why):
    other = {"002": min(sweep.glob("002*")), "other.csv": parts / "other.csv"}
    (parts / "other.csv").write_text((data / "test.csv").read_text() + "test/b.jpg\n")
    given = [other.get(each, each) for each in more]
    told = biomass(*command(data, run), "--part", "1/3", "--out", parts, *given, code=5)
    assert f"of another prediction than {why}" in told.stderr
    assert "part_00000_of_00003.jsonl" in told.stderr


def test_P15_what_is_merged_belongs_together(data, sweep, run, parts, tmp_path):
    out = tmp_path / "s.csv"
    merging = ["predict", "--merge", parts, "--data", data, "--out", out]
    told = biomass(*merging, "--average", "median", code=5)
    assert "--average median" in told.stderr and "with mean" in told.stderr
    told = biomass(*merging, "--interval", 0.4, code=5)
    assert "--interval 0.4" in told.stderr and "were predicted without it; leave" in told.stderr
    told = biomass(*merging, "--run", min(sweep.glob("002*")), code=5)
    assert "of other heads than" in told.stderr
    (tmp_path / "test.csv").write_text("image_path\ntrain/a.jpg\n")
    told = biomass(*merging, "--csv", tmp_path / "test.csv", code=5)
    assert "is not the table" in told.stderr

    path = parts / Part(1, TOTAL).name
    path.rename(parts / Part(1, 4).name)
    assert f"{Part(1, 4).name}: is not a whole part" in biomass(*merging, code=3).stderr
    (parts / Part(1, 4).name).unlink()
    assert "1 of 3 parts are missing" in biomass(*merging, code=3).stderr
    assert not out.exists()


def test_runs_that_were_moved_are_named_again(data, run, parts, tmp_path):
    out = tmp_path / "s.csv"
    for path in parts.iterdir():
        path.write_text(path.read_text().replace(str(run), "/nowhere/run"))
    merging = ["predict", "--merge", parts, "--data", data, "--out", out]
    told = biomass(*merging, code=3)
    assert "of /nowhere/run, which is not there" in told.stderr
    biomass(*merging, "--run", run, code=6)
    assert out.exists()


@pytest.mark.parametrize(
    "more, why",
    [
        (["--part", "3/3"], "counted from 0"),
        (["--part", "three"], "counted from 0"),
        (["--part", "0/9"], "the table has 8 photographs"),
        (["--part", "0/3", "--explain", "d"], "--explain does not go with --part"),
        (["--part", "0/3", "--oof"], "--oof does not go with --part"),
        (["--part", "0/3", "--merge", "."], "give one of --part, --merge"),
        (["--merge", ".", "--explain", "d"], "--explain does not go with --merge"),
    ],
)
def test_what_cannot_be_had_in_parts_is_refused(data, run, tmp_path, more, why):
    told = biomass(*command(data, run), "--out", tmp_path / "P", *more, code=2)
    assert why in told.stderr
    assert not (tmp_path / "P").exists()


def test_bounds_of_parts():
    """Every photograph is in one part, in the order of the table; sizes differ by one at most."""
    for n, total in ((8, 3), (16, 16), (17, 5), (1000, 7)):
        slices = [Part(number, total).slice(n) for number in range(total)]
        together = np.concatenate([np.arange(n)[each] for each in slices])
        assert together.tolist() == list(range(n))
        sizes = [each.stop - each.start for each in slices]
        assert max(sizes) - min(sizes) <= 1
    with pytest.raises(UsageError, match="make fewer parts"):
        Part(0, 3).slice(2)


def test_a_part_keeps_every_bit_of_its_table(tmp_path):
    rng = np.random.default_rng(0)
    values_N = rng.normal(size=5) * 10.0 ** rng.integers(-9, 9, 5)
    table = pd.DataFrame(
        {
            "image_id": ["1", "ä", "c", "d", "e"],
            "yield_t": values_N,
            "crop": np.array(["rye", "", "oat", "a,b", ""]),
            "crop_probability": [0.1 + 0.2, np.nan, 1 / 3, 1.0, np.nan],
        }
    )
    write_part(tmp_path / Part(0, 2).name, {**ABOUT, "part": 0}, table, {"ä": "why"})
    (found,) = parts_in(tmp_path)
    back, unusable = found.rows()
    assert unusable == {"ä": "why"} and found.part == Part(0, 2)
    assert back.to_csv(index=False) == table.to_csv(index=False)
    assert np.array_equal(back["yield_t"], values_N)


def damage_rows(path: Path) -> None:
    path.write_text(path.read_text().replace("1.5", "2.5"))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def as_json_of_another(path: Path) -> None:
    path.write_text(json.dumps({"part": 1, "parts": 2}) + "\n")


@pytest.mark.parametrize("spoil", [damage_rows, cut_off, empty, as_json_of_another])
def test_P16_a_damaged_part_is_named(tmp_path, spoil):
    table = pd.DataFrame({"image_id": ["a"], "yield_t": [1.5]})
    for number in range(2):
        write_part(tmp_path / Part(number, 2).name, {**ABOUT, "part": number}, table, {})
    path = tmp_path / Part(1, 2).name
    spoil(path)
    with pytest.raises(BiomassError, match=f"{path.name}: is not a whole part"):
        check_complete(tmp_path, parts_in(tmp_path))
        PartFile.open(path).rows()


KILLED = """
import os, signal, sys
import {module} as module
original, calls = module.{name}, []
def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
module.{name} = killed
from cli import main
main(sys.argv[1:])
"""


@pytest.mark.system
@pytest.mark.parametrize(
    "module, name, count",
    [
        ("predictor.members.journal", "can_write", 2),
        ("predictor.parts", "write_part", 1),
        ("featurestore.disk.durable", "sync_tree", 1),
        ("featurestore.disk.durable", "sync_folder", 1),
        ("predictor.parts", "remove", 1),
    ],
)
def test_P13_a_killed_part_ends_with_the_same_bytes(data, run, parts, module, name, count):
    path = parts / Part(2, TOTAL).name
    before = path.read_bytes()
    path.unlink()
    arguments = [str(each) for each in [*command(data, run), "--part", "2/3", "--out", parts]]
    code = KILLED.format(module=module, name=name, count=count)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    biomass(*arguments)
    assert path.read_bytes() == before
    names = {Part(number, TOTAL).name for number in range(TOTAL)}
    assert {each.name for each in parts.iterdir()} == names | {"parts.lock"}


def test_a_line_that_is_torn_inside_is_computed_again(tmp_path):
    """Only the head of a line is read when a journal is taken up."""
    path = tmp_path / "s.csv.progress"
    raws = [Raw(np.array([[[1.5, -0.25]]]), np.array([[[0.25, 0.75]]]))]
    journal = Journal(path, "k", resume=False)
    for image_id in ("a", ', "raw": [', "c"):
        journal.add(0, image_id, "5" * 64, raws)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + b"\n" + whole[:10])
    again = Journal(path, "k", resume=True)
    assert again.get(0, "c", "5" * 64) is None and again.get(0, "a", "6" * 64) is None
    for image_id in ("a", ', "raw": ['):
        (found,) = again.get(0, image_id, "5" * 64)
        np.testing.assert_array_equal(found.values_HVK, raws[0].values_HVK)
        np.testing.assert_array_equal(found.word_HVC, raws[0].word_HVC)
    assert Journal(path, "other", resume=True).get(0, "a", "5" * 64) is None
