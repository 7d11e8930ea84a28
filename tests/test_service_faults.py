"""Stores that are replaced, cut, deleted or written to while they are served, and more work than
there is room for."""

import asyncio
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from served import client_of, error_of, serving, write_served

from featurestore import FeatureStore, open_writer
from featurestore.disk.usable import Memory
from service.answers import file_bytes
from service.answers.computations import Computations
from service.errors import ServiceError
from service.library import HIDDEN, Library
from service.served import Served

S = "/v1/stores/features"
ROW = f"{S}/rows/@0/0"


def _first_file(path):
    return path if path.is_file() else path / "patches/c/0/0/0/0/0"


def test_s10_a_replaced_store_has_another_generation_and_other_etags(store_path, tmp_path):
    write_tiny(store_path, n=5)
    client = client_of(store_path)
    before = client.get(ROW), client.get(f"{S}/arrays/seal")
    other = tmp_path / f"other{store_path.suffix}"
    write_tiny(other, n=4)
    os.rename(store_path, tmp_path / f"old{store_path.suffix}")
    os.rename(other, store_path)
    after = client.get(ROW), client.get(f"{S}/arrays/seal")
    assert client.get(S).json()["n_images"] == 4
    assert before[0].headers["X-Store-Generation"] != after[0].headers["X-Store-Generation"]
    assert before[1].headers["ETag"] != after[1].headers["ETag"]
    # the same tokens by their checksum
    assert before[0].headers["ETag"] == after[0].headers["ETag"]


def test_s10_another_store_copied_over_the_file_is_seen(tmp_path):
    path, other = tmp_path / "features.h5", tmp_path / "other.h5"
    write_tiny(path)
    frame = tiny_frame(5).rename(columns={"State": "Stade"})
    with open_writer(other, tiny_spec(frame), frame) as writer:
        writer.put(0, tiny_rows(tiny_spec(frame), 3))
    client = client_of(path)
    before = client.get(S).json()
    path.write_bytes(other.read_bytes())  # the inode stays
    after = client.get(S).json()
    assert before["generation"] != after["generation"] and after["n_sealed"] == 1
    assert client.get(ROW).content == FeatureStore.open(other).patches[0, 0].tobytes()


def test_s10_a_cut_store_is_an_error_until_it_is_restored(store_path, tmp_path, capfd):
    write_tiny(store_path)
    client, file = client_of(store_path), _first_file(store_path)
    whole = client.get(ROW).content
    data = file.read_bytes()
    os.truncate(file, len(data) // 2)
    for address in (ROW, S, f"{S}/arrays/cls", f"{S}/catalog.json", f"{S}/zarr/zarr.json"):
        answer = client.get(address)
        assert error_of(answer) == (500, "store-damaged")
        assert str(tmp_path) not in answer.text
    assert str(file) in capfd.readouterr().err  # who runs the server is told which
    assert client.get("/v1/stores").json()["failing"][0]["kind"] == "store-damaged"
    assert client.get("/healthz").status_code == 200
    file.write_bytes(data)
    assert client.get(ROW).content == whole


def test_s10_a_deleted_store_is_gone_until_it_is_back(store_path, tmp_path):
    write_tiny(store_path)
    client = client_of(store_path)
    os.rename(store_path, tmp_path / "away")
    answer = client.get(ROW)
    assert error_of(answer) == (503, "store-gone") and answer.headers["Retry-After"]
    os.rename(tmp_path / "away", store_path)
    assert client.get(ROW).status_code == 200


def test_s10_a_file_cut_while_it_is_sent_ends_the_connection_early(tmp_path, monkeypatch):
    import http.client

    path = tmp_path / "features.h5"
    write_tiny(path, n=40)
    monkeypatch.setattr("service.answers.file_bytes.CHUNK_BYTES", 1000)
    first_sent, cut = threading.Event(), threading.Event()

    def slow_pread(fd, span, read=file_bytes._pread):
        if first_sent.is_set():
            cut.wait(60)
        first_sent.set()
        return read(fd, span)

    monkeypatch.setattr("service.answers.file_bytes._pread", slow_pread)
    with serving(path) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        connection.request("GET", f"{S}/file")
        answer = connection.getresponse()
        first_sent.wait(60)
        os.truncate(path, 1500)
        cut.set()
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
        connection.close()
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        connection.close()


def test_s20_images_sealed_while_it_is_served_appear_whole(store_path):
    frame = tiny_frame(5)
    spec = tiny_spec(frame)
    rows = [tiny_rows(spec, image) for image in range(5)]
    with open_writer(store_path, spec, frame) as writer:
        writer.put(0, rows[0])
        writer.commit()
        client, generations = client_of(store_path), set()
        for image in range(1, 5):
            assert error_of(client.get(f"{S}/rows/@{image}/1")) == (409, "not-sealed")
            writer.put(image, rows[image])
            writer.commit()
            answer = client.get(f"{S}/rows/@{image}/1")
            assert answer.content == rows[image].patches_VTPD[1].tobytes()
            generations.add(answer.headers["X-Store-Generation"])
            table = client.get(f"{S}/catalog.json?columns=sealed,status").json()["rows"]
            assert [row[0] for row in table] == [True] * (image + 1) + [False] * (4 - image)
            assert client.get(S).json()["n_sealed"] == image + 1
            assert len(client.get(f"{S}/stats.json").json()["rows"]) == 6
    assert len(generations) == 1


def test_s20_appended_images_are_found_by_their_ids(store_path):
    frame = tiny_frame(3)
    spec = tiny_spec(frame)
    with open_writer(store_path, spec, frame, 2) as writer:
        for image in range(3):
            writer.put(image, tiny_rows(spec, image))
    client = client_of(store_path)
    assert error_of(client.get(f"{S}/rows/ID004/0")) == (404, "not-found")
    with open_writer(store_path, spec, tiny_frame(5)) as writer:
        assert error_of(client.get(f"{S}/rows/ID004/0")) == (409, "not-sealed")
        for image in writer.pending():
            writer.put(image, tiny_rows(spec, image))
    assert client.get(f"{S}/rows/ID004/0").content == tiny_rows(spec, 4).patches_VTPD[0].tobytes()


def test_an_etag_of_bytes_just_written_holds_for_nothing_else(tmp_path, monkeypatch):
    # two requests may take longer than what is real
    monkeypatch.setattr("service.served.SETTLED_S", 60)
    client = client_of(write_served(tmp_path, "h5"))
    first, second = (client.get(f"{S}/arrays/seal").headers["ETag"] for _ in range(2))
    assert first != second
    os.utime(tmp_path / "features.h5", (1, 1))
    first, second = (client.get(f"{S}/arrays/seal").headers["ETag"] for _ in range(2))
    assert first == second


def test_a_seal_that_does_not_match_is_damage(tmp_path):
    path = write_served(tmp_path, "h5")
    extent = FeatureStore.open(path).layout.extents["seal"]
    with open(path, "r+b") as file:
        file.seek(extent.locate(2)[1])
        file.write(b"\1\2\3\4")
    assert error_of(client_of(path).get(f"{S}/rows/@2/0")) == (500, "store-damaged")


def test_s09_many_requests_for_one_computation_are_one_computation(tmp_path, monkeypatch):
    calls, n = [], 40

    def stats(self, real=FeatureStore.stats):
        calls.append(1)
        time.sleep(0.2)
        return real(self)

    monkeypatch.setattr(FeatureStore, "stats", stats)
    client = client_of(write_served(tmp_path, "h5"))
    with client, ThreadPoolExecutor(n) as pool:  # one event loop for all
        answers = list(pool.map(lambda _: client.get(f"{S}/stats.json"), range(n)))
    assert {answer.status_code for answer in answers} == {200} and len(
        {answer.text for answer in answers}
    ) == 1
    assert len(calls) == 1


def test_s09_other_computations_than_there_are_slots_for_are_busy():
    async def ask():
        heavy = Computations()
        done = threading.Event()
        running = [asyncio.ensure_future(heavy.run(key, done.wait)) for key in range(10)]
        await asyncio.sleep(0)
        same = asyncio.ensure_future(heavy.run(0, done.wait))
        with pytest.raises(
            ServiceError, match="10 long computations are under way or wait"
        ) as refused:
            await heavy.run("one more", done.wait)
        done.set()
        assert await asyncio.gather(*running, same) == [True] * 11
        return refused.value.answer(), await heavy.run("one more", lambda: 3), heavy.n_running

    answer, third, n_running = asyncio.run(ask())
    assert (answer.status_code, third, n_running) == (503, 3, 0) and answer.headers["Retry-After"]


def table_of_texts() -> tuple[pd.DataFrame, int]:
    """Ids, each an object of its own, and sites, of which many cells hold one; its bytes."""
    ids = [f"ID{i:020d}" for i in range(30_000)]
    names = [f"site {k}" for k in range(100)]
    sites = [names[i % 100] for i in range(30_000)]
    n_bytes = 2 * 8 * 30_000 + sum(map(sys.getsizeof, [*ids, *names]))
    return pd.DataFrame({"image_id": ids, "site": sites}), n_bytes


@pytest.mark.parametrize("kind", ["array", "table"])
def test_results_are_kept_as_long_as_there_is_room(monkeypatch, kind):
    result, n_bytes = (np.zeros(1000, np.uint8), 1000) if kind == "array" else table_of_texts()
    usable = Memory(10 * n_bytes, "a limit")  # a quarter of it holds two results
    monkeypatch.setattr("service.answers.computations.usable_memory", lambda: usable)

    async def ask():
        heavy = Computations()
        made = []
        for key in "aabcba":
            await heavy.run(key, lambda key=key: (made.append(key), result)[1])
        return made

    assert asyncio.run(ask()) == ["a", "b", "c", "a"]


def test_an_error_is_told_to_all_who_wait_and_not_kept():
    async def ask():
        heavy, made = Computations(), []

        def fail():
            made.append(1)
            raise ServiceError("internal", "no")

        for _ in range(2):
            found = await asyncio.gather(
                *(heavy.run("a", fail) for _ in range(3)), return_exceptions=True
            )
            assert [type(each) for each in found] == [ServiceError] * 3
        return len(made)

    assert asyncio.run(ask()) == 2


def test_no_descriptor_stays_open(store_path):
    write_tiny(store_path)
    client = client_of(store_path)

    def ask():
        for below in (
            "rows/@0/0",
            "arrays/cls",
            "catalog.json",
            "stats.json",
            "zarr/zarr.json",
            "rows/@9/0",
        ):
            address = f"{S}/{below}"
            client.get(address)
            client.get(address, headers={"Range": "bytes=1-3"})
            client.head(address)
        return len(os.listdir("/proc/self/fd"))

    before = ask()
    assert ask() <= before


@pytest.mark.parametrize(
    "text, told",
    [
        ("{store}: cut", "features: cut"),
        ("'{store}/catalog' is gone", "'features/catalog' is gone"),
        ("{store}5: cut", HIDDEN),
        ("{data}/a b.jpg: damaged", "data/a b.jpg: damaged"),
        ("/home/ann/my secret data/x.jpg: no", HIDDEN),
        ("g/m2, 1/2",) * 2,
    ],
)
def test_s18_paths_are_told_by_their_names_or_not_at_all(tmp_path, text, told):
    library = Library([tmp_path / "features.h5"], data=tmp_path / "photographs")
    assert (
        library.without_paths(
            text.format(store=tmp_path / "features.h5", data=tmp_path / "photographs")
        )
        == told
    )
    assert Library([], data=Path("/")).without_paths("'a/b', 1") == "'a/b', 1"


def test_s10_a_store_that_goes_while_it_is_looked_at_is_gone(store_path, monkeypatch):
    write_tiny(store_path)
    served = Served("features", store_path)
    served.now()

    def gone(self):
        store_path.rename(store_path.with_name("elsewhere"))
        return False

    monkeypatch.setattr(Served, "_is_other", gone)
    with pytest.raises(ServiceError) as refused:
        served.now()
    assert refused.value.kind == "store-gone"


def test_removing_the_store_for_good_leaves_the_others(tmp_path):
    for name in ("a.h5", "b.zarr"):
        write_tiny(tmp_path / name)
    client = client_of(tmp_path / "a.h5", tmp_path / "b.zarr")
    shutil.rmtree(tmp_path / "b.zarr")
    assert client.get("/v1/stores/a/rows/@0/0").status_code == 200
    assert error_of(client.get("/v1/stores/b/rows/@0/0")) == (503, "store-gone")
