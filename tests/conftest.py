"""Small stores of made-up tokens, whose axes all differ in length."""

import errno
import gc
import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

from featurestore.format.spec import POOLED, STATS, StoreSpec, TokenSpec, ViewSpec
from featurestore.write.columns import catalog_columns
from featurestore.write.writer import ImageRows, open_writer

# the same examples each time: a change that is sound must not fail by chance. `make test-system`
# draws new ones
settings.register_profile("repeated", derandomize=True, database=None)
settings.load_profile("repeated")

# imports and collected tests stay: collecting takes 24 s of a core, and 28 where Python looks for
# garbage among them after every 700 objects
gc.set_threshold(50_000)


def pytest_collection_finish() -> None:
    """What is there before the first test is never garbage."""
    gc.freeze()


VIEWS = (
    ViewSpec(name="plain"),
    ViewSpec(name="hflip", hflip=True),
    ViewSpec(name="vflip", vflip=True),
)


def tiny_frame(n: int = 5) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"ID{i:03d}" for i in range(n)],
            "path": [f"train/ä {i}.jpg" for i in range(n)],
            "State": ["Tas", "Vic", "NSW", "WA", ""][:n] + ["Tas"] * (n - 5),
            "Dry_Total_g": np.arange(n) * 1.5 + 1,
        }
    )


def tiny_spec(frame: pd.DataFrame, **changes) -> StoreSpec:
    """3 views x 2 tiles x (2 x 3 patches) x 7 channels."""
    tokens = {
        "model": "made_up",
        "weights_sha256": "0" * 64,
        "layers": (-1,),
        "crop": "halves",
        "tile_height": 32,
        "tile_width": 48,
        "interpolation": "bicubic",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.2),
        "patch_size": 16,
        "n_tiles": 2,
        "width": 7,
        "views": VIEWS,
        "seed": 0,
    } | changes
    return StoreSpec(tokens=TokenSpec(**tokens), thumb=(4, 8), columns=catalog_columns(frame))


def tiny_rows(spec: StoreSpec, image: int) -> ImageRows:
    """Tokens that depend on the image alone."""
    rng = np.random.default_rng(image)
    t = spec.tokens
    shape = (len(t.views), t.n_tiles)
    return ImageRows(
        cls_VTD=rng.normal(size=(*shape, t.width)).astype(np.float16),
        patches_VTPD=rng.normal(size=(*shape, t.n_patches, t.width)).astype(np.float16),
        pooled_VT5D=rng.normal(size=(*shape, len(POOLED), t.width)).astype(np.float32),
        stats_VS=np.abs(rng.normal(size=(shape[0], len(STATS)))),
        thumb_HW3=rng.integers(0, 255, (*spec.thumb, 3)).astype(np.uint8),
        facts={"sha256": f"{image:064x}", "width": 2000, "height": 1000, "status": "ok"},
    )


def write_tiny(path: Path, n: int = 5, seal: int | None = None, reserve: int = 0) -> StoreSpec:
    """A store of n images, of which the first `seal` (all by default) are put and committed."""
    frame = tiny_frame(n)
    spec = tiny_spec(frame)
    with open_writer(path, spec, frame, reserve) as writer:
        for image in writer.pending()[: n if seal is None else seal]:
            writer.put(image, tiny_rows(spec, image))
            writer.commit()
    return spec


@pytest.fixture(params=["h5", "zarr"])
def store_path(request, tmp_path, monkeypatch) -> Path:
    """Where a store of either format goes; Zarr shards hold two tiny images, inner chunks of small
    arrays a few."""
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)
    monkeypatch.setattr("featurestore.format.zarr.CHUNK_BYTES", 200)
    return tmp_path / f"features.{request.param}"


@pytest.fixture
def memory_path():
    """A folder in memory where there is one, for what tests an order and not the disk."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture(scope="session", autouse=True)
def drawing():
    """A sweep's pictures are not drawn, which took most of a small sweep's time; gives what lays
    them out, and what renders them."""
    from trainer.judge import report

    laying_out = {name: getattr(report, name) for name in ("draw_curves", "draw_leaderboard")}
    rendering = {"_save": report._save}
    with pytest.MonkeyPatch.context() as patch:
        for name in (*laying_out, *rendering):
            patch.setattr(report, name, lambda _what, out, *_: out.write_bytes(b"no picture"))
        yield laying_out, rendering


@pytest.fixture
def laid_out(drawing, monkeypatch) -> None:
    """A sweep's pictures are laid out and not rendered: for what may be odd about a sweep."""
    for name, draw in drawing[0].items():
        monkeypatch.setattr(f"trainer.judge.report.{name}", draw)


@pytest.fixture
def rendered(drawing, laid_out, monkeypatch) -> None:
    """A sweep's pictures are drawn."""
    for name, draw in drawing[1].items():
        monkeypatch.setattr(f"trainer.judge.report.{name}", draw)


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """A small store with labels that its tokens explain."""
    from sweeps import write_store

    return write_store(tmp_path_factory.mktemp("labelled") / "features.h5")


@pytest.fixture(scope="session")
def pasture(tmp_path_factory) -> Path:
    """Eight drawn photographs in the contest's layout, six of them labelled."""
    from featurestore.backbone.demo.drawing import draw_pasture

    folder = tmp_path_factory.mktemp("pasture")
    draw_pasture(folder, seed=1, n_train=6, n_test=2)
    return folder


@pytest.fixture(scope="session")
def built(pasture, tmp_path_factory) -> Path:
    """The store of that pasture: two views, halves of 64 pixels, random weights."""
    from commands import TINY, biomass

    out = tmp_path_factory.mktemp("store") / "features.h5"
    biomass("store", "build", "--data", pasture, "--out", out, "--views", "plain,hsv", *TINY)
    return out


SWEEP = """
experiment: {{name: small, seed: 3}}
dataset: {{store: {store}}}
head: {{kind: [cls_gating, density, attention, pooled_mlp, ridge, gpr], gate_hidden: 6, shared_hidden: 8, normalize: true}}
trainer: {{num_epochs: 3, batch_size: 4}}
optimization: {{lr: 1e-2, weight_decay: 0.01}}
inference: {{tta_indices: [0]}}
cv: {{n_folds: 2, groups: date}}
"""


@pytest.fixture(scope="session")
def sweep(built, tmp_path_factory) -> Path:
    """A small sweep over that store: a run of each kind that can be saved, two folds."""
    from commands import biomass

    folder = tmp_path_factory.mktemp("predict")
    (folder / "small.yaml").write_text(SWEEP.format(store=built))
    biomass("train", "--config", folder / "small.yaml", "--out", folder / "runs", "--device", "cpu")
    return next((folder / "runs").iterdir())


@pytest.fixture
def shallow(monkeypatch):
    """timm's models have two blocks, for what does not depend on how many."""
    import timm

    from featurestore.backbone.timm_model import tried_model

    create = timm.create_model

    def create_shallow(name: str, **options: object):
        if name.startswith("convit"):  # the class token joins after ten blocks
            return create(name, **options)
        try:
            return create(name, **{"depth": 2} | options)
        except (AssertionError, TypeError, ValueError):  # how many is said otherwise
            return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_shallow)
    tried_model.cache_clear()
    yield
    tried_model.cache_clear()


@pytest.fixture(scope="module")
def small_searches():
    """Regressors of a module's tests search as they do, and grow trees, in a tenth of the time."""
    from sweeps import ALPHAS, GAMMAS, MARGINS

    from trainer.heads.kinds import hist_gbdt, kernel_ridge, logistic, svr

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hist_gbdt, "ROUNDS", 50)
        patch.setattr(logistic, "STRENGTHS", (1e-3, 1.0))
        for kind, penalties in (
            (kernel_ridge.KernelRidge, tuple((alpha,) for alpha in ALPHAS)),
            (svr.Svr, MARGINS),
        ):
            patch.setattr(kind, "gammas", GAMMAS)
            patch.setattr(kind, "penalties", penalties)
        yield


@pytest.fixture(scope="session")
def object_server():
    """Object storage on loopback, one for all tests of a process."""
    from buckets import object_server

    with object_server() as server:
        yield server


@pytest.fixture
def bucket(object_server, tmp_path, monkeypatch):
    """The same without faults, with its credentials in the environment and quick new tries; its
    `url` is a store's, another one for each test."""
    from datetime import timedelta

    for name, value in object_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BIOMASS_CACHE", str(tmp_path / "cache"))
    # files of patches hold two tiny images
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)
    quick = {
        "max_retries": 2,
        "retry_timeout": timedelta(minutes=1),
        "backoff": {"init_backoff": timedelta(milliseconds=1)},
    }
    monkeypatch.setattr("featurestore.read.sources.object_client.RETRY", quick)
    monkeypatch.setattr("featurestore.read.sources.object_client.WAITS_S", (0.0, 0.01))
    object_server.url = f"s3://pasture/{tmp_path.name}/features.zarr"
    object_server.asked.clear()
    yield object_server
    object_server.fault = None


@pytest.fixture
def torch_untried(monkeypatch) -> None:
    """`doctor` does not try whether torch loads, which takes a process of some seconds."""
    monkeypatch.setattr("featurestore.explore.doctor.check_loading", list)


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Whoever opens a connection or looks a host up fails."""
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class NoReader(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.fixture
def no_reader(monkeypatch) -> NoReader:
    """Nobody reads what this process says on stderr any more."""
    monkeypatch.setattr("sys.stderr", NoReader())
    return sys.stderr
