"""How far a sweep is that is being trained, and what a question costs that was asked before."""

import json
import os

import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec
from served import client_of, write_served

from featurestore import open_writer
from featurestore.disk.durable import locked
from service.explore.progress import TAIL_BYTES, last_record, progress

NAMES = ["001_a", "002_b", "003_c"]


def log(epochs: int, score: float = 0.5) -> str:
    """A run's log after so many epochs."""
    lines = [{"epoch": n, "loss": 10.0 - n, "score": score + n / 100} for n in range(epochs)]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def sweep(tmp_path):
    """Two passes of ten epochs: the first has three runs' first two, of which one is behind."""
    folder = tmp_path / "sweep"
    for name, epochs in zip(NAMES, (4, 3, 0), strict=True):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").write_text("")
        if epochs:
            (folder / name / "metrics.jsonl").write_text(log(epochs))
            os.utime(folder / name / "metrics.jsonl", (1000, 1000 + epochs))
    told = {
        "base": {"trainer": {"num_epochs": 10}},
        "runs": {name: {} for name in NAMES},
        "passes": [[0, 1], [2]],
    }
    (folder / "sweep.json").write_text(json.dumps(told))
    return folder


def test_epochs_by_pass_and_scores_by_run(sweep):
    found = progress(sweep)
    assert (found["finished"], found["running"]) == (False, False)
    assert (found["epoch"], found["epochs"], found["last_epoch_at"]) == (3, 20, 1004)
    assert [(each["epoch"], each["n_runs"]) for each in found["passes"]] == [(3, 2), (0, 1)]
    assert found["runs"][0] == {"name": "001_a", "epoch": 4, "loss": 7.0, "score": 0.53}
    assert found["runs"][2] == {"name": "003_c", "epoch": 0, "loss": None, "score": None}


@pytest.mark.parametrize("item", ["sweep", "pass1", "fits"])
def test_it_runs_while_somebody_holds_one_of_its_locks(sweep, item):
    with locked(sweep / item):
        found = progress(sweep)
        assert found["running"] is True
        assert [each["running"] for each in found["passes"]] == [False, item == "pass1"]
    assert progress(sweep)["running"] is False


def test_elsewhere_nobody_knows(sweep):
    (sweep / "pass0.lock").write_text('{"pid": 3, "host": "another.example"}')
    assert progress(sweep)["running"] is None
    with locked(sweep / "pass1"):
        assert progress(sweep)["running"] is True


def test_of_a_log_the_last_whole_line_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_record(path) is None
    for text, epoch in (
        (log(3), 2),
        (log(3) + '{"epoch": 3, "lo', 2),
        (log(TAIL_BYTES // 30), 8737),
    ):
        path.write_text(text)
        assert last_record(path)["epoch"] == epoch
    for text in ("", "{", "[]\n", "no\n"):
        path.write_text(text)
        assert last_record(path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": ["a"], "passes": [[5]], "base": 3}'])
def test_a_sweep_that_tells_little_is_no_error(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    found = progress(tmp_path)
    assert (found["epoch"], found["epochs"], found["last_epoch_at"]) == (0, 0, None)


def test_who_knows_the_answer_gets_none(sweep, tmp_path):
    client = client_of(write_served(tmp_path, "h5"), sweeps=[sweep])
    for address in ("/v1/sweeps/sweep/progress.json", "/v1/stores"):
        first = client.get(address)
        known = {"If-None-Match": first.headers["ETag"]}
        again = client.get(address, headers=known)
        assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
        (sweep / "003_c" / "metrics.jsonl").write_text(log(1 if "progress" in address else 2))
        after = client.get(address, headers=known)
        assert after.status_code == 200 and after.headers["ETag"] != first.headers["ETag"]


def test_a_store_tells_whether_it_is_being_built(tmp_path):
    frame = tiny_frame()
    spec = tiny_spec(frame)
    path = tmp_path / "growing.h5"
    with open_writer(path, spec, frame) as writer:
        writer.put(0, tiny_rows(spec, 0))
        writer.commit()
        client = client_of(path)
        (store,) = client.get("/v1/stores").json()["stores"]
        assert (store["being_built"], store["n_sealed"]) == (True, 1)
    (store,) = client.get("/v1/stores").json()["stores"]
    assert store["being_built"] is False
