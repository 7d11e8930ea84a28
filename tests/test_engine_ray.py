"""Items of work as Ray tasks on nodes that are processes of this machine, some of which are killed.

Needs `pip install 'ray>=2.40'`; `make test-system` runs it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from commands import TINY, biomass
from sweeps import as_found
from test_publish import files

from featurestore import FeatureStore
from featurestore.engines.choose import check_engine
from featurestore.engines.ray import run
from featurestore.engines.ray_nodes import LocalNodes
from featurestore.errors import MismatchError, PartFailed, UsageError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray", reason="needs pip install 'ray>=2.40'")
    with LocalNodes(2) as nodes:
        yield nodes


@pytest.fixture
def do(nodes, tmp_path):
    """Run items of a task of `engine_tasks`."""

    def do(task: str, items: dict, **options):
        address = nodes.engine.removeprefix("ray://")
        (tmp_path / "counts").mkdir()
        return run(
            f"engine_tasks:{task}",
            items,
            devices=["auto"],
            folder=tmp_path / "counts",
            address=address,
            **options,
        )

    yield do
    assert list((tmp_path / "counts").iterdir()) == []


@pytest.mark.parametrize("text", ["ray", "ray://10.0.0.1:6379", "ray://head:6379"])
def test_engines_that_are_known(text):
    assert check_engine(text) == text


@pytest.mark.parametrize("text", ["dask", "ray://", "ray://head", "ray:6379", ""])
def test_other_engines_are_refused(text):
    with pytest.raises(UsageError, match="give ray, or ray://HOST:PORT"):
        check_engine(text)


def test_without_ray_the_way_to_it_is_named(sweep, pasture, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    told = biomass(
        *("predict", "--sweep", sweep, "--data", pasture, "--engine", "ray"),
        *("--out", tmp_path / "s.csv", "--parts", 2),
        code=2,
    )
    assert "pip install 'biomass-tokens[ray]'" in told.stderr


@pytest.mark.system
def test_items_are_done_by_workers_that_stay(do):
    items = {f"part {i}": {"word": f"word {i}"} for i in range(20)}
    finished = []
    answers = do("tell", items, progress=finished.append)
    assert sorted(finished) == sorted(answers) == sorted(items)
    for name, (word, device, pid, _threads) in answers.items():
        assert word == items[name]["word"] and device == "cpu" and pid != os.getpid()
    assert len({answer[2] for answer in answers.values()}) <= 2


@pytest.mark.system
def test_W04_a_process_that_dies_is_started_anew_by_ray(do, tmp_path):
    items = {"part 3": {"folder": str(tmp_path), "n_deaths": 2}}
    assert do("die", items) == {"part 3": "after 2 deaths"}


@pytest.mark.system
def test_W05_an_item_that_always_fails_ends_a_run_on_ray_with_its_name(do):
    with pytest.raises(PartFailed) as found:
        do("crash", {"part 1": {}}, tries=2)
    assert "part 1: failed 2 times" in str(found.value)
    assert "CUDA error: an illegal memory access" in str(found.value)


@pytest.mark.parametrize("device, code", [("cuda", 1), ("cpu", 7)])
def test_W05_a_process_whose_cuda_failed_ends_and_so_tries_nothing_again(tmp_path, device, code):
    """An error of CUDA stays with its process; Ray starts another for the next try."""
    program = (
        "import sys\n"
        "from featurestore.engines.ray import _do\n"
        "try:\n"
        f"    _do('engine_tasks:crash', 'part 1', {{'device': {device!r}}}, [], sys.argv[1], 2)\n"
        "except RuntimeError:\n"
        "    sys.exit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, check=False)
    assert done.returncode == code
    assert "illegal memory access" in (tmp_path / "part 1.txt").read_text()


@pytest.mark.system
def test_W05_a_process_that_is_always_killed_ends_a_run_on_ray_with_its_name(do, tmp_path):
    with pytest.raises(PartFailed, match="part 1: failed 2 times"):
        do("die", {"part 1": {"folder": str(tmp_path), "n_deaths": 9}}, tries=2)


@pytest.mark.system
def test_an_error_of_the_family_ends_a_run_on_ray_as_itself(do):
    with pytest.raises(MismatchError, match="^part 1: weights differ$"):
        do("refuse", {"part 1": {}})


@pytest.mark.system
def test_devices_that_no_node_has_are_refused(nodes, tmp_path):
    address = nodes.engine.removeprefix("ray://")
    with pytest.raises(Exception, match="no node of the cluster has a GPU"):
        run("engine_tasks:tell", {}, devices=["cuda"], folder=tmp_path, address=address)


def wait_for(paths, process: subprocess.Popen | None = None) -> list[Path]:
    """The first that are there."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = [path for path in paths() if path.exists()]
        if found:
            return found
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("nothing came")


@pytest.mark.system
def test_W20_items_of_a_node_that_is_killed_are_done_by_another(tmp_path):
    """Two nodes have one item each when one is killed, and the other item is let go by hand.

    stdout has the answers alone."""
    pytest.importorskip("ray", reason="needs pip install 'ray>=2.40'")
    with LocalNodes(2) as nodes:
        items = {name: {"folder": str(tmp_path), "name": name} for name in ("a", "b")}
        firsts = [tmp_path / f"{name}.first" for name in items]
        address = nodes.engine.removeprefix("ray://")
        code = (
            "import sys, json; from pathlib import Path; from featurestore.engines.ray import run\n"
            f"found = run('engine_tasks:outlive', {items!r}, devices=['cpu'], "
            f"folder=Path({str(tmp_path)!r}), address={address!r})\n"
            "print(json.dumps(found))"
        )
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        with subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as driver:
            for first in firsts:
                wait_for(lambda first=first: [first], driver)
            time.sleep(0.2)
            nodes.kill(1)
            # whichever of the two the head does: that process is killed too, and tried again
            for first in firsts:
                with suppress(ProcessLookupError):
                    os.kill(int(first.read_text()), signal.SIGKILL)
            out, said = driver.communicate(timeout=120)
        assert set(json.loads(out).values()) == {"after another"}, said
        # what Ray tells of the node is no result, and has colours at a terminal alone
        assert "raylet" in said and "\x1b" not in said


@pytest.mark.system
def test_a_driver_on_ray_that_is_stopped_has_the_exit_code_of_its_signal(nodes, tmp_path):
    items = {name: {"folder": str(tmp_path), "name": name} for name in "abc"}
    address = nodes.engine.removeprefix("ray://")
    code = (
        "from pathlib import Path; from featurestore.engines.ray import run\n"
        "from featurestore.disk.interrupts import stopped_by_signals\n"
        "with stopped_by_signals('go on so'):\n"
        f"    run('engine_tasks:wait', {items!r}, devices=['cpu'], folder=Path({str(tmp_path)!r}), "
        f"address={address!r})"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
    ) as driver:
        wait_for(lambda: tmp_path.glob("?.[0-9]*"), driver)
        driver.send_signal(signal.SIGTERM)
        said = driver.communicate(timeout=120)[1]
    assert driver.returncode == 128 + signal.SIGTERM
    assert "stopping; go on so" in said
    # tasks were waited for: none began a try afterwards
    assert not (tmp_path / "tries").exists()
    assert len(list(tmp_path.glob("*.ended"))) == len(list(tmp_path.glob("?.*")))


@pytest.mark.system
def test_W21_a_driver_that_is_killed_and_started_again_takes_what_is_finished(
    nodes, sweep, pasture, tmp_path
):
    photographs = sorted([*pasture.glob("train/*.jpg"), *pasture.glob("test/*.jpg")])
    names = [f"{path.relative_to(pasture)}\n" for path in photographs]
    table = tmp_path / "table.csv"
    table.write_text("image_path\n" + "".join(names))
    ways = ["predict", "--sweep", sweep, "--data", pasture, "--csv", table, "--interval", 0.4]
    whole = tmp_path / "whole" / "submission.csv"
    biomass(*ways, "--device", "cpu", "--out", whole)

    out = tmp_path / "submission.csv"
    arguments = [str(each) for each in [*ways, "--out", out, "--engine", nodes.engine]]
    command = [sys.executable, "-m", "cli", *arguments, "--parts", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parts = tmp_path / "submission.csv.parts"
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        first, *_ = wait_for(lambda: parts.glob("*.jsonl"), driver)
        driver.kill()
    before = first.stat().st_mtime_ns
    # without --parts: as many as there were
    with subprocess.Popen(command[:-2], env=environment, stderr=subprocess.PIPE) as driver:
        while driver.poll() is None:
            if first.exists():
                assert first.stat().st_mtime_ns == before
            time.sleep(0.05)
        assert driver.returncode == 0, driver.stderr.read()
    assert not parts.exists()
    for name in ("submission.csv", "predictions.csv"):
        assert (tmp_path / name).read_bytes() == (whole.parent / name).read_bytes()


@pytest.mark.system
def test_W20_a_build_into_a_bucket_ends_with_the_bytes_of_a_local_one(
    bucket, pasture, tmp_path, monkeypatch
):
    """A node is killed while it puts a file of patches, which the bucket has all the same."""
    pytest.importorskip("ray", reason="needs pip install 'ray>=2.40'")
    asked = ["store", "build", "--data", pasture, "--views", "1", "--device", "cpu", *TINY]
    with monkeypatch.context() as patch:
        patch.setattr("featurestore.format.zarr.SHARD_BYTES", 1)  # a photograph, as a part has
        biomass(*asked, "--out", tmp_path / "whole.zarr")
    with FeatureStore.open(tmp_path / "whole.zarr") as store:
        n_parts = store.n_images

    put, killed = set(), threading.Event()

    def hold(request) -> bool:
        if request.method == "PUT" and "/patches/c/" in request.key:
            put.add(request.key)
            assert killed.wait(120)
        return False

    bucket.fault = hold
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    with LocalNodes(2) as nodes:
        places = ["--out", bucket.url, "--scratch", scratch]
        words = [*asked, *places, "--engine", nodes.engine, "--parts", n_parts]
        with subprocess.Popen(
            [sys.executable, "-m", "cli", *map(str, words)],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as driver:
            wait_for(lambda: [tmp_path] if len(put) == 2 else [], driver)
            nodes.kill(1)
            killed.set()
            said = driver.communicate(timeout=300)[1]
    assert driver.returncode == 0, said
    assert len(put) == n_parts
    assert bucket.keys(bucket.url) == files(tmp_path / "whole.zarr")
    assert not (tmp_path / "features.zarr.parts").exists()
    assert list(scratch.iterdir()) == []


def made_by_demo(out: Path) -> dict[str, bytes]:
    """What a demo leaves, less times and what stands beside the results."""
    (sweep,) = (out / "runs").iterdir()
    found = {name: (out / name).read_bytes() for name in ("features.h5", "submission.csv")}
    found["predictions.csv"] = (out / "predictions.csv").read_bytes()
    for path in sweep.rglob("*"):
        if path.suffix in (".csv", ".safetensors"):
            found[str(path.relative_to(sweep))] = as_found(path)
    return found


@pytest.mark.system
def test_W20_the_demo_ends_with_the_same_bytes_where_two_nodes_are_killed(tmp_path):
    """Some three minutes; the scores that are printed are the same, too."""
    pytest.importorskip("ray", reason="needs pip install 'ray>=2.40'")
    said = {}
    for name, options in {"plain": ["--passes", "3"], "ray": ["--engine", "ray"]}.items():
        command = [sys.executable, "-m", "cli", "demo", "--out", tmp_path / name, *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said[name] = done.stdout
    assert "a node was killed while it built" in said["ray"]
    assert "a node was killed while it trained a pass" in said["ray"]
    score = re.compile("score on unseen sites.*")
    assert score.search(said["ray"])[0] == score.search(said["plain"])[0]
    plain, ray = (made_by_demo(tmp_path / name) for name in ("plain", "ray"))
    assert plain.keys() == ray.keys() and len(plain) > 60
    assert [name for name in plain if plain[name] != ray[name]] == []
