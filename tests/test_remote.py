"""A store over HTTP: the same object and the same bytes, fetched row by row, checked, and kept in a
bounded cache."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import served
from commands import biomass
from conftest import tiny_frame, tiny_rows, write_tiny
from safetensors.numpy import load_file
from store_server import serving, spoilt
from sweeps import DEFAULTS, YAML, write_store

from featurestore import FeatureStore
from featurestore.errors import InputError, MismatchError, StoreDamaged, UsageError
from featurestore.format.spec import StoreSpec
from featurestore.write.writer import open_writer
from trainer import MixupBatches

TOKEN = "s3cret"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A cache of the test's own whose files hold two tiny images, and a client that does not
    wait."""
    monkeypatch.setenv("BIOMASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BIOMASS_TOKEN", raising=False)
    monkeypatch.setattr("featurestore.read.sources.http_client.WAITS_S", (0.0, 0.01))
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)


@pytest.fixture
def local(tmp_path) -> FeatureStore:
    write_tiny(tmp_path / "features.h5")
    return FeatureStore.open(tmp_path / "features.h5")


@pytest.fixture
def server(local):
    with serving(local.path) as started:
        yield started


@pytest.fixture
def store(server):
    with FeatureStore.open(server.url) as opened:
        yield opened


# -- the same object


def test_every_array_and_row_is_the_same(local, store):
    for name in local.layout.extents.keys() - {"patches", "metadata_crc32c"}:
        assert np.array_equal(store.array(name), local.array(name)), name
    assert np.array_equal(store.patches[:], local.patches[:])
    assert store.catalog.equals(local.catalog)
    assert store.stats().equals(local.stats())
    assert store.nearest("ID003", k=2).equals(local.nearest("ID003", k=2))
    assert np.array_equal(store.pca(2), local.pca(2))
    assert store.checksums.of_row(4, 1) == local.checksums.of_row(4, 1)
    assert np.array_equal(store.rows(1).patches_VTPD, local.rows(1).patches_VTPD)
    assert np.array_equal(store.raw.cls, local.raw.cls)
    assert str(store).splitlines()[1:] == str(local).splitlines()[1:]


def test_a_pooled_store_is_served_without_patches(tmp_path):
    from stored import write_kind

    held = write_kind(tmp_path / "pooled.zarr", "pooled")
    with serving(tmp_path / "pooled.zarr") as server, FeatureStore.open(server.url) as store:
        assert np.array_equal(store.cls, held["cls"]) and np.array_equal(
            store.pooled, held["pooled"]
        )
        with pytest.raises(InputError, match="pooled store"):
            store.will_need([(0, 0)])


def test_a_row_is_a_view_of_the_cache(store):
    row = store.patches[3, 1]
    assert np.shares_memory(row, store.patches[3, 1]) and not row.flags.writeable
    assert np.shares_memory(store["ID003"].grid("hflip"), row)


def test_only_the_rows_asked_for_are_fetched(server, store):
    assert store.patches[3, 1].shape == (2, 6, 7)
    assert store["ID003"]["hflip"].patches.shape == (2, 6, 7)
    assert server.rows == ["@3/1"]
    store.patches[1:3, ..., ::2, 0]
    assert sorted(server.rows[1:]) == [f"@{i}/{v}" for i in (1, 2) for v in range(3)]
    store.patches[0, [2, 0]], store.patches[4, -1:, 0], store.patches[None, 4, 0]
    assert sorted(server.rows[7:]) == ["@0/0", "@0/2", "@4/0", "@4/2"]
    for beyond in (np.s_[0, 3], np.s_[5, 0]):
        with pytest.raises(IndexError):
            store.patches[beyond]
    assert len(server.rows) == 11


def test_nothing_is_fetched_that_nobody_asked_for(server, store):
    assert store.n_images == 5 and store.image_ids[4] == "ID004"
    assert [path.partition("/arrays/")[2] for path in server.asked[1:]] == [
        "seal",
        "catalog/image_id",
    ]


def test_rows_are_fetched_ahead_and_once(local, server, store):
    rows = [(4, 2), (0, 1), (4, 0), (0, 1)]
    assert store.will_need(rows) == 3
    assert np.array_equal(store.take(rows), local.take(rows))
    assert store.will_need(rows) == 0
    assert sorted(server.rows) == ["@0/1", "@4/0", "@4/2"]


def test_large_arrays_come_in_several_requests(local, server, store, monkeypatch):
    monkeypatch.setattr("featurestore.read.sources.fetched.BLOCK_BYTES", 100)
    assert np.array_equal(store.pooled, local.pooled)
    assert server.asked.count("/v1/stores/features/arrays/pooled") == -(-local.pooled.nbytes // 100)


def test_batches_are_those_of_the_local_store(local, store):
    kwargs = {"batch_size": 2, "seed": 3, "targets": ["Dry_Total_g"]}
    for ours, theirs in zip(
        MixupBatches(store, **kwargs), MixupBatches(local, **kwargs), strict=True
    ):
        assert (
            ours.patches.equal(theirs.patches)
            and ours.cls.equal(theirs.cls)
            and ours.targets.equal(theirs.targets)
        )


def test_xarray_reads_over_http_as_well(local, server, store):
    pytest.importorskip("xarray")
    there = store.to_xarray()
    assert np.array_equal(there["patches"].isel(image=1, view=2).to_numpy(), local.patches[1, 2])
    assert server.rows == ["@1/2"]


def test_a_handle_travels_without_its_token(local):
    with serving(local.path, TOKEN) as server:
        with FeatureStore.open(f"{server.url}?token={TOKEN}") as store:
            frozen = pickle.dumps(store)
            assert (
                TOKEN.encode() not in frozen
                and TOKEN not in repr(store) + store.to_json() + store.address
            )
        with pickle.loads(frozen) as there:
            assert np.array_equal(there.patches[2, 1], local.patches[2, 1])


def test_a_store_grows_while_it_is_read(tmp_path):
    path = tmp_path / "features.zarr"
    write_tiny(path, seal=2)
    with serving(path) as server, FeatureStore.open(server.url) as store:
        first = store.patches[1, 0]
        with pytest.raises(InputError, match="not built yet"):
            store.patches[4, 2]
        spec = write_tiny(path)
        store.refresh()
        assert store.n_sealed == 5 and np.array_equal(
            store.patches[4, 2], tiny_rows(spec, 4).patches_VTPD[2]
        )
        assert np.array_equal(store.cls[4], tiny_rows(spec, 4).cls_VTD)
        assert np.array_equal(first, tiny_rows(spec, 1).patches_VTPD[0])
        assert server.rows == ["@1/0", "@4/2"]


def test_images_that_are_added_are_seen(tmp_path):
    path = tmp_path / "features.zarr"
    write_tiny(path, n=3, reserve=2)
    with serving(path) as server, FeatureStore.open(server.url) as store:
        assert store.image_ids == ["ID000", "ID001", "ID002"]
        spec, frame = store.spec, tiny_frame(5)
        with open_writer(path, spec, frame) as writer:
            for image in writer.pending():
                writer.put(image, tiny_rows(spec, image))
        store.refresh()
        assert store.n_images == 5 and np.array_equal(
            store.patches[4, 1], tiny_rows(spec, 4).patches_VTPD[1]
        )


# -- what is kept


def test_a_restart_fetches_no_row_again(local, server, store):
    store.patches[:]
    store.close()
    n = len(server.asked)
    with FeatureStore.open(server.url) as again:
        assert np.array_equal(again.patches[:], local.patches[:]) and np.array_equal(
            again.pooled, local.pooled
        )
    assert server.asked[n:] == ["/v1/stores/features", "/v1/stores/features/arrays/seal"]


def test_the_cache_opens_as_a_store_of_what_is_whole(local, store):
    store.patches[0], store.patches[3, 1]
    path = store.layout.path
    store.close()
    with FeatureStore.open(path) as kept:
        assert kept.sealed.tolist() == [0] and np.array_equal(kept.patches[0], local.patches[0])
        assert kept.verify()


@pytest.mark.parametrize("name", ["patches", "cls", "crc32c", "catalog/path"])
def test_rot_in_the_cache_is_fetched_again(local, server, store, name):
    store.patches[:]
    path, offset, _ = store.layout.extents[name].locate(4)
    store.close()
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff\xfe")
    n = len(server.rows)
    with FeatureStore.open(server.url) as again:
        assert np.array_equal(again.patches[:], local.patches[:]) and again.catalog.equals(
            local.catalog
        )
        assert np.array_equal(again.cls, local.cls)
    assert server.rows[n:] == (["@1/1"] if name == "patches" else [])


def test_a_cache_that_is_broken_is_made_anew(local, server, store):
    path = store.layout.path
    store.patches[0]
    store.close()
    (path / "cls/zarr.json").unlink()
    with FeatureStore.open(server.url) as again:
        assert again.layout.path == path and np.array_equal(again.patches[0], local.patches[0])


@pytest.mark.parametrize(
    "name", ["catalog/image_id", "catalog/path", "thumbs", "crc32c", "cls", "pooled"]
)
def test_an_array_that_was_spoilt_on_its_way_is_not_kept(local, server, name):
    def fault(request, body) -> bool:
        if request.path.endswith(f"/arrays/{name}"):
            request.answer(bytes(len(body)))
        return request.path.endswith(f"/arrays/{name}")

    server.fault = fault
    with FeatureStore.open(server.url) as store:
        for _ in range(2):
            with pytest.raises((StoreDamaged, IndexError)):
                store.patches[3, 1]
        server.fault = None
        store.refresh()
        assert np.array_equal(store.patches[3, 1], local.patches[3, 1]) and store.catalog.equals(
            local.catalog
        )
    with FeatureStore.open(server.url) as again:
        assert np.array_equal(again.array(name), local.array(name)) and again.index("ID003") == 3


def test_what_was_spoilt_in_a_pooled_store_is_found_at_first_touch(tmp_path):
    from stored import write_kind

    held = write_kind(tmp_path / "pooled.zarr", "pooled")
    with (
        serving(tmp_path / "pooled.zarr") as server,
        FeatureStore.open(server.url, check="first-touch") as store,
    ):
        server.fault = lambda request, body: (
            request.path.endswith("/arrays/pooled") and (request.answer(spoilt(body)), True)[1]
        )
        with pytest.raises(StoreDamaged, match="fetched anew"):
            store.pooled.sum()
        server.fault = None
        assert np.array_equal(store.pooled, held["pooled"])


def test_a_cache_that_is_removed_while_in_use_says_so(local, store):
    row = store.patches[0, 0]
    shutil.rmtree(store.layout.path)
    for read in (
        lambda: store.patches[4, 1],
        lambda: store.will_need([(3, 0)]),
        lambda: store.take([(3, 0), (3, 1)]),
    ):
        with pytest.raises(InputError, match="removed while.*open the store again"):
            read()
    assert np.array_equal(row, local.patches[0, 0])


@pytest.fixture
def tight(server, monkeypatch):
    """The same with room for about two of three files."""
    monkeypatch.setattr("featurestore.read.sources.cache.LEAST_FILES", 1)
    with FeatureStore.open(server.url) as store:
        used = sum(
            os.stat(path).st_blocks * 512
            for name, e in store.layout.extents.items()
            for path in e.paths
        )
        arrays = sum(e.array.n_bytes for n, e in store.layout.extents.items() if n != "patches")
    with FeatureStore.open(server.url, cache_bytes=used + arrays + 12 * 4096) as store:
        yield store


def test_what_is_emptied_keeps_its_views(local, server, tight):
    first = tight.patches[0, 0]
    for image in range(5):
        assert np.array_equal(tight.patches[image], local.patches[image])
    assert np.array_equal(first, local.patches[0, 0])
    assert tight.will_need([(0, 0)]) == 1, "its file was the least recently used"
    assert np.array_equal(tight.patches[0, 0], first) and not np.shares_memory(
        tight.patches[0, 0], first
    )
    assert tight.will_need([(4, v) for v in range(3)]) == 0


def test_the_cache_stays_within_its_bound(local, tight):
    for _ in range(3):
        for image in (0, 2, 4, 1, 3):
            assert np.array_equal(tight.patches[image], local.patches[image])
    tight.close()
    shards = sorted(tight.layout.path.glob("patches/c/*/0/0/0/0"))
    assert (
        len(shards) == 3
        and sum(path.stat().st_blocks * 512 for path in shards) <= 12 * 4096 + 3 * 4096
    )
    assert FeatureStore.open(tight.layout.path).verify()


def test_other_caches_go_first(local, server, tight, tmp_path):
    tight.patches[0]
    root, bound = tight.layout.path.parent, tight.source._given[1]
    tight.close()
    write_tiny(tmp_path / "other.h5", n=4)
    mine = root / "a store of mine.zarr"
    write_tiny(mine)
    with (
        serving(tmp_path / "other.h5") as other,
        FeatureStore.open(other.url, cache_bytes=bound) as store,
    ):
        store.patches[:]
    assert sorted(path.name for path in root.glob("*.zarr")) == sorted(
        [mine.name, store.layout.path.name]
    )


def test_a_bound_that_holds_nothing_is_refused_before_anything_is_made(server, tmp_path):
    with pytest.raises(UsageError, match=r"cache_bytes 1000: less than the \d+ bytes"):
        FeatureStore.open(server.url, cache_bytes=1000)
    assert not (tmp_path / "cache").exists()


def test_two_processes_have_a_cache_each(local, server, store):
    code = (
        "import sys; from featurestore import FeatureStore; s = FeatureStore.open(sys.argv[1]); "
        "print(s.layout.path.name[32:], s.patches[:].sum(dtype='f8'))"
    )
    store.patches[:]
    done = subprocess.run(
        [sys.executable, "-c", code, server.url], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["-1.zarr", str(local.patches[:].sum(dtype="f8"))]


@pytest.mark.filterwarnings("default:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_cache_of_its_own(local, server, store):
    store.will_need([(0, 0)])
    seen = store.patches[0, 0]
    child = os.fork()
    if child == 0:
        right = np.array_equal(
            store.patches[:], local.patches[:]
        ) and store.layout.path.name.endswith("-1.zarr")
        os._exit(0 if right and np.array_equal(seen, local.patches[0, 0]) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.layout.path.name.endswith("-0.zarr") and np.array_equal(
        store.patches[4], local.patches[4]
    )


def test_a_closed_handle_says_so(store):
    row = store.patches[0, 0]
    store.close()
    with pytest.raises(UsageError, match="was closed"):
        store.patches[0, 1]
    assert row.shape == (2, 6, 7)


# -- what a network does


def once(fault):
    """A fault that happens to the first answer about rows."""
    met = []

    def happens(request, body) -> bool:
        if "/rows/" not in request.path or met:
            return False
        met.append(1)
        fault(request, body)
        return True

    return happens


FAULTS = {
    "cut": lambda request, body: request.cut(body),
    "bit": lambda request, body: request.answer(spoilt(body)),
    "busy": lambda request, body: request.error(503, "busy", "too many", Retry_After="0"),
    "hangs up": lambda request, body: setattr(request, "close_connection", True),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_passes_is_tried_again(local, server, store, fault):
    server.fault = once(fault)
    assert np.array_equal(store.patches[3, 1], local.patches[3, 1])
    assert server.rows == ["@3/1", "@3/1"]


def test_a_server_that_does_not_answer_is_not_waited_for(local, server, monkeypatch):
    monkeypatch.setattr("featurestore.read.sources.http_client.READ_S", 0.2)
    server.fault = once(lambda request, body: time.sleep(0.6))
    with FeatureStore.open(server.url) as store:
        assert np.array_equal(store.patches[3, 1], local.patches[3, 1])


def always(answer):
    def happens(request, body) -> bool:
        if "/rows/" in request.path:
            answer(request, body)
        return "/rows/" in request.path

    return happens


@pytest.mark.parametrize(
    "answer, error, match",
    [
        (
            FAULTS["bit"],
            StoreDamaged,
            r"/v1/stores/features: image 3 \(ID003\), view 'hflip'.*checksum",
        ),
        (FAULTS["cut"], InputError, "an answer was cut.*84 bytes.*168"),
        (FAULTS["busy"], InputError, "503.*too many"),
        (FAULTS["hangs up"], InputError, "no answer"),
        (
            lambda request, body: request.answer(body + b"!"),
            StoreDamaged,
            "169 bytes, 168 expected",
        ),
        (lambda request, body: request.answer(body[:-1]), StoreDamaged, "167 bytes, 168 expected"),
        (
            lambda request, body: request.error(409, "not-sealed", "image 'ID003' is not built"),
            InputError,
            "refresh",
        ),
        (
            lambda request, body: request.error(404, "not-found", "no image"),
            InputError,
            "404.*no image",
        ),
        (
            lambda request, body: request.error(500, "store-damaged", "a file is cut"),
            StoreDamaged,
            "a file is cut",
        ),
        (
            lambda request, body: request.error(302, "", "", Location="http://elsewhere/"),
            InputError,
            "redirection",
        ),
        (
            lambda request, body: request.begin(200, len(body), X_Store_Generation="1" * 16),
            MismatchError,
            "replaced, open it again",
        ),
    ],
    ids=[
        "bit",
        "cut",
        "busy",
        "hangs up",
        "long",
        "short",
        "unsealed",
        "gone",
        "damaged",
        "redirected",
        "replaced",
    ],
)
def test_what_stays_is_an_error_that_says_where(local, server, store, answer, error, match):
    server.fault = always(answer)
    for read in (lambda: store.patches[3, 1], lambda: store.take([(3, 1), (0, 0)])):
        with pytest.raises(error, match=match):
            read()
    server.fault = None
    assert np.array_equal(store.patches[3], local.patches[3])


def test_a_token_is_wanted_and_never_told(local, monkeypatch):
    with serving(local.path, TOKEN) as server:
        with pytest.raises(InputError, match="BIOMASS_TOKEN"):
            FeatureStore.open(server.url)
        with pytest.raises(InputError, match="401") as refused:
            FeatureStore.open(f"{server.url}/?token=wr0ng")
        assert "wr0ng" not in str(refused.value) and "another token" in str(refused.value)
        monkeypatch.setenv("BIOMASS_TOKEN", TOKEN)
        assert FeatureStore.open(server.url).n_sealed == 5


def test_a_servers_own_url_is_enough_for_one_store(server):
    address = server.url.partition("/v1")[0]
    assert FeatureStore.open(address + "/").path == server.url


def test_stores_of_a_server_are_listed_as_they_can_be_typed(server):
    stores = [{"name": name} for name in ("a b", "50%25", "c#d?")]
    server.fault = lambda request, body: (
        request.answer(json.dumps({"stores": stores}).encode()),
        True,
    )[1]
    address = server.url.partition("/v1")[0]
    with pytest.raises(InputError, match="3 stores") as refused:
        FeatureStore.open(address)
    assert [line.rpartition("/")[2] for line in str(refused.value).splitlines()[1:]] == [
        "a%20b",
        "50%2525",
        "c%23d%3F",
    ]


@pytest.mark.parametrize(
    "url, error, match",
    [
        ("http://127.0.0.1:9/v1/stores/features", InputError, "no answer.*biomass store serve"),
        ("{server}/v1/stores/other", InputError, "not found"),
        ("http://user:pass@127.0.0.1:9/v1/stores/features", UsageError, "password"),
        ("http://127.0.0.1:9/v1/stores/features?key=1", UsageError, "no store's URL"),
        ("http://", UsageError, "no store's URL"),
        ("http://[::1/v1/stores/a", UsageError, "no store's URL"),
        ("http://127.0.0.1:x/v1/stores/a", UsageError, "no store's URL.*port"),
    ],
)
def test_what_is_no_store_is_refused(server, url, error, match):
    with pytest.raises(error, match=match) as refused:
        FeatureStore.open(url.format(server=server.url.partition("/v1")[0]))
    assert "pass@" not in str(refused.value)


@pytest.mark.parametrize(
    "answer",
    [b"<html>", b"[]", b"{}", b'{"spec": 3, "n_room": 5}', b'{"spec": {}, "n_room": 99999999999}'],
)
def test_C5_answers_that_are_no_stores_are_refused(server, answer):
    server.fault = lambda request, body: (request.answer(answer), True)[1]
    with pytest.raises(
        (InputError, StoreDamaged), match=r"127\.0\.0\.1.*(JSON|tells of no store|spec)"
    ):
        FeatureStore.open(server.url)


@pytest.mark.parametrize(
    "told, error",
    [
        ({"n_room": [5] * 100_000}, InputError),
        ({"n_room": 1 << 60}, InputError),
        ({"n_room": 1 << 24}, UsageError),
        ({"width": 1 << 40}, UsageError),
        ({"width": 64, "tile_height": 1 << 14}, UsageError),
    ],
    ids=str,
)
def test_C5_what_a_server_tells_of_takes_no_room_before_it_is_checked(
    server, tmp_path, told, error
):
    def fault(request, body) -> bool:
        if "/arrays/" in request.path:
            request.answer(bytes(4 * n))
            return True
        request.answer(json.dumps({"spec": spec, "n_room": n}).encode())
        return True

    n = told.get("n_room", 1 << 22)
    spec = retold(
        server.store.spec, **{name: value for name, value in told.items() if name != "n_room"}
    )
    server.fault = fault
    with pytest.raises(error) as refused:
        FeatureStore.open(server.url)
    assert len(str(refused.value)) < 300 and not (tmp_path / "cache").exists()


def retold(spec, **tokens) -> dict:
    """A spec of other tokens, with the fingerprint that is theirs."""
    fields = json.loads(spec.to_json())
    return json.loads(
        StoreSpec.model_validate(
            {k: v for k, v in fields.items() if k != "fingerprint"}
            | {"tokens": fields["tokens"] | tokens}
        ).to_json()
    )


def test_what_a_server_says_does_not_move_the_cursor(server, store):
    server.fault = always(
        lambda request, body: request.error(404, "not-found", "\x1b[2Jgone\r\nover")
    )
    with pytest.raises(InputError, match=r"404\): {1,2}\[2Jgone  over"):
        store.patches[3, 1]


# -- what a user types


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """A small store with labels that its tokens explain."""
    return write_store(tmp_path_factory.mktemp("labelled") / "features.h5")


def test_heads_trained_over_http_are_those_of_the_local_store(labelled, tmp_path):
    (tmp_path / "config.yaml").write_text(
        YAML.format(**DEFAULTS | dict(store="x", kind="cls_gating", lr="1e-2", epochs=2, n_folds=2))
    )
    with served.serving(labelled, token=served.TOKEN) as address:
        for out, where in [
            ("near", labelled),
            ("far", f"{address}/v1/stores/features?token={served.TOKEN}"),
        ]:
            biomass(
                "train",
                "--config",
                tmp_path / "config.yaml",
                "--store",
                where,
                "--out",
                tmp_path / out,
                "--device",
                "cpu",
            )
    near, far = (
        sorted((tmp_path / out).glob("*/*/weights/*.safetensors")) for out in ("near", "far")
    )
    # best and last of two folds, and the ridge beside the board
    assert len(near) == 6 and [path.name for path in near] == [path.name for path in far]
    for a, b in zip(near, far, strict=True):
        a, b = load_file(a), load_file(b)
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    left = [path for path in (tmp_path / "far").rglob("*") if path.is_file()]
    assert not [path for path in left if served.TOKEN.encode() in path.read_bytes()]


def test_the_service_is_read_like_its_store(local, monkeypatch):
    monkeypatch.setattr("featurestore.read.sources.fetched.BLOCK_BYTES", 100)
    with served.serving(local.path) as address, FeatureStore.open(address) as store:
        for name in local.layout.extents.keys() - {"patches", "metadata_crc32c"}:
            assert np.array_equal(store.array(name), local.array(name)), name
        assert np.array_equal(store.patches[:], local.patches[:])
        with pytest.raises(InputError, match="404"):
            FeatureStore.open(f"{address}/v1/stores/other")


def test_store_info_and_stats_take_a_url(local, server):
    assert f"FeatureStore {server.url}\n" in biomass("store", "info", server.url).output
    assert (
        biomass("store", "stats", server.url).output == biomass("store", "stats", local.path).output
    )
    assert "server's machine" in biomass("store", "verify", server.url, code=2).output
    assert "a URL where a file" in biomass("store", "extend", server.url, "out.h5", code=3).output


@pytest.mark.parametrize(
    "name, codec",
    [("copy.zarr", []), ("archive.zarr", ["--codec", "zstd"])],
    ids=["store", "archive"],
)
def test_a_served_store_can_be_copied_and_compared(local, server, tmp_path, name, codec):
    biomass("store", "convert", server.url, tmp_path / name, *codec)
    if codec:
        biomass("store", "convert", tmp_path / name, tmp_path / "copy.zarr")
    assert biomass("store", "diff", server.url, tmp_path / "copy.zarr").output == "no difference\n"


@pytest.mark.filterwarnings("default:.*fork:DeprecationWarning")
def test_a_forked_child_compares_what_it_fetches_itself(tmp_path):
    from stored import write_kind

    write_kind(tmp_path / "pooled.zarr", "pooled")
    with (
        serving(tmp_path / "pooled.zarr") as server,
        FeatureStore.open(server.url, check="first-touch") as store,
    ):
        assert store.pooled.any()
        server.fault = lambda request, body: (
            request.path.endswith("/arrays/pooled") and (request.answer(spoilt(body)), True)[1]
        )
        child = os.fork()
        if child == 0:
            try:
                store.pooled.sum()
            except StoreDamaged:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_one_rotten_id_has_other_arrays_fetched_anew_once(local, server):
    place = local.layout.extents["catalog/image_id"]
    path, offset, _ = place.locate(3)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\0")
    with FeatureStore.open(server.url) as store:
        asked = []
        for image in range(3):
            store["ID00" + str(image)].cls()
            asked.append(len(server.asked))
            server.asked.clear()
        assert asked[1] <= 2 and asked[2] <= 2, "the ids alone"
