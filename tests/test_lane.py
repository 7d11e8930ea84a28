"""The path of a device, on the CPU through its interface: what is waited for, and in which order."""

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import biomass
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from featurestore import FeatureStore
from featurestore.backbone.backbone import Backbone, Row
from featurestore.backbone.forward import Forward
from featurestore.backbone.lane import Cuda, Streamed
from featurestore.backbone.load import load_backbone
from featurestore.backbone.moments import finite_stats, pool, row_stats
from featurestore.backbone.probe import probed
from featurestore.photos import views
from featurestore.photos.views import VIEWS
from featurestore.write import build as build_module

MODEL = "vit_demo_patch16_dinov3"
DEMO = ["--backbone", MODEL, "--image-size", 64, "--device", "cpu", "--views", "plain,hsv,vflip"]
CUDA = torch.device("cuda")


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        """Nothing is computed later here."""


class Event:
    def __init__(self, log: list[str]) -> None:
        self._log = log

    def record(self, stream: Stream) -> None:
        self._log.append("sent")

    def synchronize(self) -> None:
        self._log.append("waited")


class CpuAsCuda:
    """Answers what `Cuda` answers; `log` has what a build did, in order."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.log: list[str] = []
        self.n_copies: list[int] = []

    def stream(self) -> Stream:
        return Stream()

    computing = stream

    def on(self, stream: Stream) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def event(self) -> Event:
        return Event(self.log)

    def pinned(self, tiles: torch.Tensor) -> torch.Tensor:
        self.log.append("up")
        return tiles.clone()

    def empty_pinned(self, shape, dtype) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=dtype)


class Reads(TorchDispatchMode):
    """Counts what a host would have to wait for."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def cuda(monkeypatch) -> CpuAsCuda:
    cuda = CpuAsCuda()
    monkeypatch.setattr("featurestore.backbone.load.lane_of", lambda place: Streamed(cuda))
    encode, down = Backbone.encode, Streamed.down
    monkeypatch.setattr(
        Streamed, "down", lambda self, pairs: cuda.n_copies.append(len(pairs)) or down(self, pairs)
    )
    monkeypatch.setattr(
        Backbone, "encode", lambda self, rows: cuda.log.append("computed") or encode(self, rows)
    )
    return cuda


def build(pasture: Path, out: Path) -> None:
    biomass("store", "build", "--data", pasture, "--out", out, "--batch", 8, *DEMO)


def test_a_device_is_waited_for_once_a_batch_while_it_computes_the_next(
    pasture, tmp_path, cuda, monkeypatch
):
    reads, build_images = Reads(), build_module.build_images

    def counted(*arguments):
        with reads:
            build_images(*arguments)

    monkeypatch.setattr(build_module, "build_images", counted)
    build(pasture, tmp_path / "device.h5")
    assert reads.n == 0
    assert cuda.log.count("up") == 6  # once a photograph
    steps = [step for step in cuda.log if step != "up"]
    first, others = ["computed", "sent"], ["computed", "sent", "waited"]
    assert steps == first + 4 * others + ["waited"]  # 18 rows, 4 a batch
    # four arrays of each image's views, and the checks
    assert cuda.n_copies == [9, 9, 9, 9, 5]

    monkeypatch.undo()
    build(pasture, tmp_path / "cpu.h5")
    assert (tmp_path / "device.h5").read_bytes() == (tmp_path / "cpu.h5").read_bytes()


def test_what_arrives_and_is_not_finite_is_refused_by_name(pasture, tmp_path, cuda, monkeypatch):
    once, calls = Forward.once, []

    def third_infinite(self, x):
        calls.append(1)
        cls, patches = once(self, x)
        if len(calls) == 4:  # the trial is the first
            patches = [patches[0].clone()]
            patches[0][2, 1] = float("inf")
        return cls, patches

    monkeypatch.setattr(Forward, "once", third_infinite)
    arguments = ["--data", pasture, "--out", tmp_path / "f.h5", "--batch", 8, *DEMO]
    said = biomass("store", "build", *arguments, code=3).stderr
    store = FeatureStore.open(tmp_path / "f.h5")
    # row 9 of three a photograph
    assert f"image {store.catalog['image_id'][3]!r}, view 'plain', layer -1" in said
    assert store.n_sealed == 2


def test_on_cuda_encoding_reads_nothing():
    """Fake tensors: an operation of two devices, or one whose value the host needs, is an error.

    What goes up is torchvision's table of hues alone, 144 bytes, for which CUDA does not wait.
    """
    backbone = load_backbone(MODEL, None, crop="halves", image_size=64, views=VIEWS, batch=8)
    views._on.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in backbone.model.modules():
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    if tensor is not None:
                        kind[name] = torch.empty_like(tensor, device=CUDA)
        there = replace(backbone, device=CUDA)
        tiles_T3HW = torch.empty(2, 3, 64, 64, device=CUDA)
        for view in VIEWS:
            made = there.encode([Row("a", view, tiles_T3HW), None])
            pooled_RT5D = pool(made.patches_RTPD.flatten(0, 1)).unflatten(0, (4, 2))
            stats_RS = finite_stats(made.cls_RTD, made.patches_RTPD, pooled_RT5D)
            assert {x.device.type for x in (stats_RS, made.is_finite_RL)} == {"cuda"}
        with pytest.raises(DataDependentOutputException):
            made.check(made.is_finite_RL)
    views._on.cache_clear()


class Driver:
    """What torch's `device` and `stream` ask of CUDA, and which devices that makes contexts on."""

    def __init__(self, monkeypatch) -> None:
        self.current = 0
        self.contexts: set[int] = set()
        self.streams = {i: SimpleNamespace(device=i) for i in range(2)}
        monkeypatch.setattr("torch.cuda._get_device_index", self.index)
        monkeypatch.setattr("torch.cuda._exchange_device", self.exchange)
        monkeypatch.setattr("torch.cuda._maybe_exchange_device", self.maybe_exchange)
        monkeypatch.setattr("torch.cuda.current_stream", lambda i: self.streams[self.index(i)])
        monkeypatch.setattr("torch.cuda.set_stream", self.set_stream)

    def index(self, device, optional: bool = False) -> int:
        return self.current if device is None else getattr(device, "index", device)

    def exchange(self, index: int) -> int:
        self.contexts.add(index)
        return self.maybe_exchange(index)

    def maybe_exchange(self, index: int) -> int:
        before, self.current = self.current, index
        return before

    def set_stream(self, stream: SimpleNamespace) -> None:
        if stream.device != self.current:
            self.exchange(stream.device)
        self.streams[stream.device] = stream


def test_a_stream_of_a_second_device_leaves_the_first_one_alone(monkeypatch):
    driver = Driver(monkeypatch)
    default, own = driver.streams[1], SimpleNamespace(device=1)
    with Cuda(torch.device("cuda:1")).on(own):
        assert driver.streams[1] is own
    assert driver.streams[1] is default
    assert (driver.current, driver.contexts) == (0, {1})


def test_statistics_of_a_batch_are_those_of_its_rows():
    rng = np.random.default_rng(0)
    cls_RTD, patches_RTPD = (
        torch.from_numpy(rng.normal(1, 3, shape).astype(np.float16))
        for shape in ((3, 2, 96), (3, 2, 6, 96))
    )
    pooled = [pool(patches_TPD) for patches_TPD in patches_RTPD]
    assert torch.equal(pool(patches_RTPD.flatten(0, 1)), torch.cat(pooled))
    stats_RS = finite_stats(cls_RTD, patches_RTPD, torch.stack(pooled))
    for row in zip(stats_RS, cls_RTD, patches_RTPD, pooled, strict=True):
        assert torch.equal(row[0], row_stats(*row[1:]))


class Measured(Streamed):
    """A device of known speed and memory."""

    def __init__(self, tiles_a_second: dict[int, float], free_bytes: int = 1 << 40) -> None:
        super().__init__(CpuAsCuda())
        self._speeds = iter(tiles_a_second.items())
        self._free_bytes = free_bytes

    def measure(self, call) -> tuple[float, int]:
        batch, speed = next(self._speeds)
        if not speed:
            raise torch.OutOfMemoryError
        return batch / speed, batch << 20

    def free_bytes(self) -> int:
        return self._free_bytes


@pytest.mark.parametrize(
    "lane, expected",
    [
        (Measured({2: 10, 4: 20, 8: 38, 16: 39, 32: 80}), 8),
        (Measured({2: 10, 4: 20, 8: 0}), 4),
        (Measured({2: 10, 4: 20, 8: 40, 16: 80}, free_bytes=24 << 20), 8),
        (Measured({2 << n: 2.0**n for n in range(10)}), 512),
    ],
    ids=["no faster", "out of memory", "half of the memory", "the host's memory"],
)
def test_a_device_takes_as_many_tiles_as_it_is_faster_with(lane, expected):
    backbone = load_backbone(MODEL, None, crop="halves", image_size=64, views=VIEWS[:1])
    assert probed(backbone, lambda tried: True) is backbone  # a CPU
    found = probed(replace(backbone, lane=lane), lambda tried: tried.batch <= 512)
    assert found.batch == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_real_device_rows_keep_their_bits_and_are_near_those_of_the_cpu():
    options = {"crop": "halves", "image_size": 64, "views": VIEWS[:1], "batch": 8}
    tiles = torch.randint(256, (4, 2, 64, 64, 3), generator=torch.manual_seed(0)).byte()
    made = {}
    for device in ("cpu", "cuda"):
        backbone = load_backbone(MODEL, None, device=device, **options)
        rows = [Row(str(i), VIEWS[0], backbone.on_device(tiles[i])) for i in range(4)]
        made[device] = backbone.encode(rows).patches_RTPD.cpu().float()
        alone = backbone.encode([None, rows[1]]).patches_RTPD[1].cpu().float()
        assert torch.equal(alone, made[device][1])
    torch.testing.assert_close(made["cuda"], made["cpu"], rtol=0, atol=3e-2)
